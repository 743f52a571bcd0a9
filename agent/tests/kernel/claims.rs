//! SECURITY.md claims nothing without a test: those that it names are there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn kernel(module: &str) -> String {
    read(&format!("agent/tests/kernel/{module}.rs"))
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let document = read("SECURITY.md");
    // What is between two backticks.
    let named: BTreeSet<_> = document.split('`').skip(1).step_by(2).collect();
    let cluster = read("tests/tests/e2e/isolation.rs");
    let here = ["attacks", "controller", "filter"].map(kernel).concat();
    let mut tests = 0;
    for name in &named {
        let there = match name.split_once("::") {
            Some(("isolation", test)) if is_name(test) => cluster.contains(&format!("(\"{name}\",")),
            Some((module, test)) if is_name(module) && is_name(test) => {
                kernel(module).contains(&format!("fn {test}()"))
            }
            // Settings have fewer words.
            None if is_name(name) && name.matches('_').count() > 3 && !name.starts_with("spillway_") => {
                here.contains(&format!("fn {name}()"))
            }
            None if Path::new(name).extension().is_some_and(|end| end == "rs") => {
                let path = root().join(name);
                path.is_file() || root().join("agent/src").join(name).is_file()
            }
            _ => continue,
        };
        assert!(there, "SECURITY.md names {name}, which is nowhere");
        tests += 1;
    }
    assert!(tests > 15, "only {tests} were found to check");
}

#[test]
fn isolation_has_its_unsafe_code_in_one_file() {
    fn with_unsafe(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                with_unsafe(&path, found);
            } else if fs::read_to_string(&path).is_ok_and(|text| text.contains("allow(unsafe_code")) {
                found.push(path);
            }
        }
    }
    let agent = root().join("agent");
    let mut found = Vec::new();
    with_unsafe(&agent.join("src"), &mut found);
    // Elsewhere the workspace denies it.
    assert_eq!(found, [agent.join("src/isolation/kernel/call.rs")]);
    assert!(read("Cargo.toml").contains("unsafe_code = \"deny\""));
}

#[test]
fn security_md_tells_of_every_attack_that_is_tried() {
    let document = read("SECURITY.md");
    for name in kernel("attacks").split("fn ").filter_map(|text| text.split_once("()")).map(|(name, _)| name)
    {
        let is_test = is_name(name) && name.matches('_').count() > 3;
        assert!(
            !is_test || document.contains(&format!("`attacks::{name}`")),
            "SECURITY.md does not tell of {name}"
        );
    }
}
