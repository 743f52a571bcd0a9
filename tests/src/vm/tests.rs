use super::*;

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_pool_is_bare_only_if_that_is_enough_for_all_tests() {
    assert!(among(ON_BARE_POOL, &owned(&["agent::a", "isolation::b"])));
    assert!(!among(ON_BARE_POOL, &owned(&["agent::a", "vk::b"])));
    let (bare, whole) = (command(Path::new("/e2e"), &[], true), command(Path::new("/e2e"), &[], false));
    assert!(bare.contains(" SPILLWAY_BARE_POOL=1 ") && !whole.contains("SPILLWAY_BARE_POOL"));
}

#[test]
fn a_shell_reads_back_what_was_quoted() {
    for word in ["plain", "two words", "it's", "$HOME `id` \\ \" ;", "'"] {
        let script = format!("printf %s {}", quoted(OsStr::new(word)));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), word);
    }
}
