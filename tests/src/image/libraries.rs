//! Which shared objects a program needs, so that an image holds these and nothing else of a distribution.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// The shared objects that `program` links, directly or not, and the dynamic loader that starts it, at the paths where this machine
/// has them. Empty for a static program.
///
/// # Errors
/// When `program` can't be read, or this machine lacks one of them.
pub fn linked_libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !program.is_file() {
        bail!("{} is not there: build it first", program.display());
    }
    // `ldd` asks the dynamic loader itself. It fails for static programs, and says so.
    let output = Command::new("ldd").env("LC_ALL", "C").arg(program).output().context("can't run ldd")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        if stderr.contains("not a dynamic executable") {
            return Ok(Vec::new());
        }
        bail!("ldd {} failed: {}", program.display(), stderr.trim());
    }
    parse(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("can't run {} here", program.display()))
}

fn parse(listing: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in listing.lines().map(str::trim) {
        // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, `linux-vdso.so.1 (0x…)`, `statically linked`
        let found = line.split_once(" => ").map_or(line, |(_, found)| found);
        if found == "not found" {
            bail!("the shared object of `{line}`");
        }
        let path = found.rsplit_once(" (").map_or(found, |(path, _)| path);
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    libraries.sort();
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_gives_files_with_the_loader_and_without_what_the_kernel_brings() {
        let listing = "\tlinux-vdso.so.1 (0x00007f53)\n\tlibgcc_s.so.1 => /lib/x/libgcc_s.so.1 (0x00007f52)\n\tlibc.so.6 => \
                       /lib/x/libc.so.6 (0x00007f51)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f50)\n";
        let expected = ["/lib/x/libc.so.6", "/lib/x/libgcc_s.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse(listing).unwrap(), expected.map(PathBuf::from));
        assert_eq!(parse("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = parse("\tlibhwloc.so.15 => not found\n").unwrap_err().to_string();
        assert!(error.contains("libhwloc.so.15"), "{error}");
    }

    #[test]
    fn this_test_itself_is_a_program_with_a_loader() {
        let libraries = linked_libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(libraries.iter().any(|path| path.ends_with("libc.so.6")), "{libraries:?}");
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("ld-linux")), "{libraries:?}");
        assert!(libraries.iter().all(|path| path.exists()));
    }
}
