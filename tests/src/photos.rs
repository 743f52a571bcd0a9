//! Real photographs for the main job: a dozen from Debian's `mate-backgrounds`, unpacked and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

const PACKAGE: &str = "mate-backgrounds";
/// Where the package has them.
const INSIDE: &str = "usr/share/backgrounds/mate/nature";

/// The folder with the photographs. Downloads the package (47 MB) the first time.
///
/// # Errors
/// When the package can't be downloaded or unpacked, or holds no photographs any more: says what to do.
pub fn ensure() -> anyhow::Result<PathBuf> {
    // A package that is installed anyway needs no download.
    let installed = Path::new("/").join(INSIDE);
    let folder = crate::target().join("photos");
    for found in [&installed, &folder] {
        if count(found) > 0 {
            return Ok(found.clone());
        }
    }
    eprintln!(
        "downloading photographs: Debian package {PACKAGE} (47 MB; unpacked into {}, not installed)",
        folder.display()
    );
    fs::create_dir_all(crate::target())
        .with_context(|| format!("can't create {}", crate::target().display()))?;
    // Unpacked beside its place and renamed, so that a killed download is never taken for a finished one.
    let unpacked = tempfile::tempdir_in(crate::target()).context("can't make a temporary folder")?;
    download(unpacked.path()).or_else(|_| {
        eprintln!("updating the package lists first");
        crate::components::apt(&["update"])?;
        download(unpacked.path())
    })?;
    let package = package(unpacked.path())?;
    run(Command::new("dpkg-deb").arg("--extract").args([&package, unpacked.path()]))?;
    let photographs = unpacked.path().join(INSIDE);
    if count(&photographs) == 0 {
        bail!("the package {PACKAGE} holds no photographs in {INSIDE}: the demo needs Debian 12's");
    }
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&photographs, &folder)
        .with_context(|| format!("can't put the photographs into {}", folder.display()))?;
    Ok(folder)
}

fn count(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "jpg"))
        .count()
}

fn download(folder: &Path) -> anyhow::Result<()> {
    // apt would drop to a user who can't write here.
    run(Command::new("apt-get")
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root", PACKAGE])
        .current_dir(folder))
}

fn package(folder: &Path) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {PACKAGE} left no .deb in {}", folder.display()))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("can't run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photographs_and_packages_are_found_by_their_extension() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(count(&folder.path().join("missing")), 0);
        assert!(package(folder.path()).unwrap_err().to_string().contains(PACKAGE));
        for name in ["Dune.jpg", "Wood.jpg", "README", "mate-backgrounds_1.26.0-1_all.deb"] {
            fs::write(folder.path().join(name), b"").unwrap();
        }
        assert_eq!(count(folder.path()), 2);
        assert!(package(folder.path()).unwrap().ends_with("mate-backgrounds_1.26.0-1_all.deb"));
    }
}
