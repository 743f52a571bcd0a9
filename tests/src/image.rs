//! TEMPORARY stub by the lead so that the cluster compiles; its owner overwrites this file.
use std::path::{Path, PathBuf};
/// An image.
#[derive(Debug, Clone)]
pub struct Image { /// name
 pub name: String, /// tar
 pub tar: PathBuf }
/// Builds.
pub fn build_all(_: &Path, _: &Path, _: &Path) -> anyhow::Result<Vec<Image>> { Ok(vec![]) }
