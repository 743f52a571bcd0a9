#![allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.

use super::*;

fn files(entries: &[(&str, &str)]) -> Files {
    let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o640, owner: None };
    entries.iter().map(|(path, data)| (PathBuf::from(path), file(data))).collect()
}

fn put(folder: &PodFolder, entries: &[(&str, &str)]) -> PathBuf {
    folder.put_volume("v", &Content::Files { files: files(entries), memory: false }, None).unwrap()
}

#[test]
fn files_are_replaced_all_at_once_and_kept_when_right() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    let volume = put(&folder, &[("a", "1"), ("deep/b", "2")]);
    let read = |path: &str| fs::read_to_string(volume.join(path)).ok();
    let link = || fs::read_link(volume.join(DATA)).unwrap();
    let first = link();
    assert_eq!((read("a").as_deref(), read("deep/b").as_deref()), (Some("1"), Some("2")));
    assert_eq!(fs::metadata(volume.join("a")).unwrap().mode() & 0o777, 0o640);

    put(&folder, &[("a", "1"), ("deep/b", "2")]);
    assert_eq!(link(), first, "nothing changed, nothing is written");

    put(&folder, &[("a", "3"), ("c", "4")]);
    assert_ne!(link(), first);
    assert_eq!((read("a").as_deref(), read("c").as_deref()), (Some("3"), Some("4")));
    assert_eq!(read("deep/b"), None, "what is no longer there is not seen");
    assert!(!volume.join(first).exists(), "the old files are gone");

    put(&folder, &[("a", "3")]);
    assert_eq!(read("c"), None);
}

#[test]
fn sub_paths_do_not_lead_out() {
    let root = tempfile::tempdir().unwrap();
    let volume = root.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(root.path().join("secret"), "x").unwrap();
    symlink("../secret", volume.join("out")).unwrap();
    symlink("/etc/passwd", volume.join("absolute")).unwrap();
    fs::write(volume.join("file"), "y").unwrap();
    symlink("file", volume.join("inside")).unwrap();

    for path in ["out", "absolute", "../secret", "/etc/passwd", "new/../../secret"] {
        assert!(open_beneath(&volume, Path::new(path)).is_err(), "{path}");
    }
    for path in ["file", "inside", "made/on/demand"] {
        open_beneath(&volume, Path::new(path)).unwrap();
    }
    assert!(volume.join("made/on/demand").is_dir());
    assert!(!root.path().join("new").exists());
}

#[test]
fn host_paths_are_checked_and_made_as_asked() {
    let root = tempfile::tempdir().unwrap();
    let check = |name: &str, kind| check_host_path(&root.path().join(name), kind).is_ok();
    assert!(check("missing", HostKind::Anything), "the runtime makes or refuses it");
    assert!(!check("missing", HostKind::Directory));
    assert!(check("made", HostKind::DirectoryOrCreate));
    assert!(check("made", HostKind::Directory));
    assert!(!check("made", HostKind::File));
    assert!(check("file", HostKind::FileOrCreate));
    assert!(check("file", HostKind::File));
    assert!(!check("file", HostKind::Socket));
}

#[test]
fn last_words_are_kept_up_to_a_limit() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    assert_eq!(folder.termination_message("c", 0), "");
    let path = folder.put_termination_log("c", 0).unwrap();
    fs::write(&path, "x".repeat(10_000)).unwrap();
    assert_eq!(folder.termination_message("c", 0).len(), MAX_MESSAGE_BYTES);
}

#[test]
fn mounts_are_found_by_real_paths_deepest_first() {
    let table = b"1 0 0:1 / / rw - ext4 x rw\n\
        2 1 0:2 / /var/pods/u1/volumes/a rw - tmpfs t rw\n\
        3 2 0:3 / /var/pods/u1/volumes/a/with\\040blank rw - tmpfs t rw\n\
        4 1 0:4 / /var/pods/u10/volumes/a rw - tmpfs t rw\n";
    assert_eq!(
        mounts_below(table, Path::new("/var/pods/u1")),
        [PathBuf::from("/var/pods/u1/volumes/a/with blank"), PathBuf::from("/var/pods/u1/volumes/a")]
    );
}

#[test]
fn a_folder_is_removed_however_often_it_is_asked() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    put(&folder, &[("a", "1")]);
    folder.put_hosts("127.0.0.1 localhost\n").unwrap();
    assert_eq!(pod_uids(root.path()), ["u1"]);
    folder.remove().unwrap();
    folder.remove().unwrap();
    assert_eq!(pod_uids(root.path()), [""; 0]);
}
