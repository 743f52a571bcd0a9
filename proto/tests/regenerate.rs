//! Compiles every `.proto` file again (without protoc) and compares the result with the committed `src/gen`.
//! `REGENERATE=1 cargo test -p spillway-proto` writes it instead.

use std::{collections::BTreeMap, fs, path::Path};

fn files(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the entry can be read").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        found.insert(name, fs::read_to_string(&path).expect("the file is text"));
    }
    found
}

#[test]
fn committed_code_is_what_the_proto_files_give() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources: Vec<_> = files(&root.join("proto")).into_keys().collect();
    let descriptors = protox::compile(&sources, [root.join("proto")]).expect("the .proto files compile");

    let fresh = tempfile::tempdir().expect("a temporary folder");
    tonic_prost_build::configure()
        .out_dir(fresh.path())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("code is generated");

    let committed = root.join("src/gen");
    if std::env::var_os("REGENERATE").is_some() {
        for (name, text) in files(fresh.path()) {
            fs::write(committed.join(name), text).expect("src/gen can be written");
        }
    }
    assert!(
        files(fresh.path()) == files(&committed),
        "src/gen is stale: run `REGENERATE=1 cargo test -p spillway-proto` and commit the result"
    );
}
