//! Every seed, once. Without libFuzzer this says that the targets still fit what they try.

use std::{fs, path::Path};

fn each(target: &str, run: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut seeds = 0;
    for entry in fs::read_dir(folder).unwrap() {
        run(&fs::read(entry.unwrap().path()).unwrap());
        seeds += 1;
    }
    assert!(seeds > 0, "{target} has no seeds");
}

#[test]
fn every_seed_keeps_what_is_promised() {
    each("bitstream", spillway_fuzz::bitstream::run);
    each("config", spillway_fuzz::config::run);
    each("env", spillway_fuzz::env::run);
    each("gpu", spillway_fuzz::gpu::run);
    each("holders", spillway_fuzz::holders::run);
    each("isolation", spillway_fuzz::isolation::run);
    each("kubelet_api", spillway_fuzz::kubelet_api::run);
    each("logs", spillway_fuzz::logs::run);
    each("pods", spillway_fuzz::pods::run);
    each("prices", spillway_fuzz::prices::run);
    each("promql", spillway_fuzz::promql::run);
    each("subpath", spillway_fuzz::subpath::run);
    each("sysfs", spillway_fuzz::sysfs::run);
    each("trace", spillway_fuzz::trace::run);
}
