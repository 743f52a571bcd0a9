use super::*;

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_pool_is_bare_only_if_that_is_enough_for_all_tests() {
    assert!(among(ON_BARE_POOL, &owned(&["agent::a", "isolation::b"])));
    assert!(!among(ON_BARE_POOL, &owned(&["agent::a", "vk::b"])));
}

#[test]
fn the_script_ends_with_the_first_program_that_fails() {
    let script = environment() + &run_line(Path::new("/bin/false"), &[]) + "echo on\n";
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let script =
        environment() + &run_line(Path::new("/bin/echo"), &owned(&["it's"])) + "echo $SPILLWAY_PATIENCE\n";
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("it's\n{PATIENCE}\n"));
}

#[test]
fn a_shell_reads_back_what_was_quoted() {
    for word in ["plain", "two words", "it's", "$HOME `id` \\ \" ;", "'"] {
        let script = format!("printf %s {}", quoted(OsStr::new(word)));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), word);
    }
}
