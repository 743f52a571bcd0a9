//! Real Kubernetes on one machine: a cluster as a library, and what is built on it (end-to-end tests, benchmarks, the demo).
//!
//! Everything here needs root, and nothing here is depended on by the other crates. What stands in for hardware is named a stand-in.

pub mod bench;
pub mod browser;
pub mod chaos;
pub mod cluster;
pub mod components;
pub mod conformance;
pub mod demo;
pub mod fuzz;
pub mod image;
pub mod photos;
pub mod standin;
pub mod vm;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Set in the environment of the end-to-end tests when they shall start a cluster; without it they are left out.
pub const CLUSTER_TESTS: &str = "SPILLWAY_CLUSTER_TESTS";

/// Set in the environment of the end-to-end tests when a dedicated node alone is enough for those that were chosen.
pub const BARE_POOL: &str = "SPILLWAY_BARE_POOL";

/// Set in the environment of a slow machine: how many times longer everything may take there.
pub const PATIENCE: &str = "SPILLWAY_PATIENCE";

/// The time that may pass here where `limit` may pass on an ordinary machine.
pub fn patience(limit: Duration) -> Duration {
    let factor = std::env::var(PATIENCE).ok().and_then(|value| value.parse().ok()).unwrap_or(1);
    limit * factor
}

/// The repository's root folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a folder of the repository")
}

/// Cargo's target folder, where everything that is built or downloaded goes.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// An error that no waiting mends: [`wait_for`] gives up on it at once.
#[derive(Debug)]
pub struct Fatal(pub String);

impl std::fmt::Display for Fatal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Fatal {}

/// Calls `probe` until it gives a value; an error of it is remembered, and fatal only if it is [`Fatal`].
///
/// # Errors
/// When nothing came within `limit`, as [`patience`] stretches it: names `what`, and the last error.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let (begin, limit) = (Instant::now(), patience(limit));
    let mut last;
    loop {
        let probing = Instant::now();
        match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => last = None,
            Err(error) if error.is::<Fatal>() => return Err(error.context(format!("can't wait for {what}"))),
            Err(error) => last = Some(error),
        }
        if begin.elapsed() > limit {
            let seconds = limit.as_secs();
            return Err(match last {
                Some(error) => error.context(format!("gave up waiting for {what} after {seconds} s")),
                None => anyhow::anyhow!("gave up waiting for {what} after {seconds} s"),
            });
        }
        // Where a look is expensive, looking must not be what everybody is busy with.
        std::thread::sleep((probing.elapsed() * 2).max(Duration::from_millis(100)));
    }
}
