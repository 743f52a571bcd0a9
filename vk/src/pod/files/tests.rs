#![allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.

use super::*;

fn files(entries: &[(&str, &str)]) -> Files {
    let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o640, owner: None };
    entries.iter().map(|(path, data)| (PathBuf::from(path), file(data))).collect()
}

fn put_files(folder: &PodFolder, entries: &[(&str, &str)], memory: bool, group: Option<u32>) -> PathBuf {
    folder.put_volume("v", &Content::Files { files: files(entries), memory }, group, &[]).unwrap()
}

fn put(folder: &PodFolder, entries: &[(&str, &str)]) -> PathBuf {
    put_files(folder, entries, false, None)
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn group(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().gid()
}

#[test]
fn folders_have_a_kubelets_modes() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    let empty = |name: &str, memory: bool, group: Option<u32>| {
        let content = Content::Empty { memory, bytes: memory.then_some(1 << 20) };
        folder.put_volume(name, &content, group, &[]).unwrap()
    };
    for (name, memory, gid, expected) in [
        ("disk", false, None, 0o777),
        ("disk-of-group", false, Some(77), 0o2777),
        ("memory", true, None, 0o1777),
        ("memory-of-group", true, Some(77), 0o3777),
    ] {
        let path = empty(name, memory, gid);
        assert_eq!((mode(&path), group(&path)), (expected, gid.unwrap_or(0)), "{name}");
        fs::write(path.join("kept"), "x").unwrap();
        chmod(&path, 0o700).unwrap();
        empty(name, memory, gid);
        assert!(
            path.join("kept").exists() && mode(&path) == 0o700,
            "once made it is the containers' own: {name}"
        );
    }
    assert_eq!(
        nix::sys::statvfs::statvfs(&folder.volume("memory")).map(|fs| fs.blocks() * fs.fragment_size()),
        Ok(1 << 20)
    );
    assert_eq!(mode(&folder.path), 0o750, "nobody else on the machine looks into it");
    folder.remove().unwrap();
    assert!(!folder.path.exists());
}

#[test]
fn the_last_start_of_each_container_is_noted() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    assert_eq!(folder.noted().unwrap(), Noted::default());
    folder.put_termination_log("made", 7).unwrap();
    for attempt in [0, 1, 9, 10] {
        folder.note_start("a", attempt).unwrap();
    }
    folder.note_start("b", 0).unwrap();
    folder.note_start("b", 0).unwrap();
    assert_eq!(folder.noted().unwrap().started, [("a".to_owned(), 10), ("b".to_owned(), 0)].into());
    folder.note_kill("a", 10).unwrap();
    assert_eq!(folder.noted().unwrap().killed, [("a".to_owned(), 10)].into());
    folder.note_start("a", 11).unwrap();
    assert_eq!(folder.noted().unwrap().killed, [].into(), "it is followed");
}

#[test]
fn files_of_a_group_can_be_read_by_it_and_secrets_are_in_memory() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    let mut wanted = files(&[("deep/a", "1")]);
    wanted.insert("b".into(), File { data: b"2".to_vec(), mode: 0o200, owner: Some(5) });
    let content = Content::Files { files: wanted, memory: true };
    let volume = folder.put_volume("v", &content, Some(77), &[]).unwrap();
    assert_eq!((mode(&volume), group(&volume)), (0o3777, 77));
    let data = volume.join(fs::read_link(volume.join(DATA)).unwrap());
    assert_eq!((mode(&data), mode(data.join("deep"))), (0o2755, 0o2755));
    assert_eq!((mode(data.join("deep/a")), mode(data.join("b"))), (0o640, 0o640));
    for path in [volume.join(DATA), volume.join("deep"), data.clone(), data.join("deep"), data.join("deep/a")]
    {
        assert_eq!(group(&path), 77, "{}", path.display());
    }
    assert_eq!(fs::metadata(data.join("b")).unwrap().uid(), 5);
    let kind = nix::sys::statfs::statfs(&volume).unwrap().filesystem_type();
    assert_eq!(kind, nix::sys::statfs::TMPFS_MAGIC);
    folder.remove().unwrap();
}

#[test]
fn what_a_killed_process_left_half_done_is_finished() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    // An empty folder without its mode.
    fs::create_dir_all(folder.volume(".e.new")).unwrap();
    let empty = folder.put_volume("e", &Content::Empty { memory: false, bytes: None }, None, &[]).unwrap();
    assert_eq!(mode(&empty), 0o777);
    // Files that were swapped in, without the links that lead to them, beside some that never were.
    let volume = put(&folder, &[("a", "1"), ("b", "2")]);
    fs::remove_file(volume.join("b")).unwrap();
    symlink("..data/gone", volume.join("gone")).unwrap();
    symlink("..half", volume.join("..data_tmp")).unwrap();
    fs::create_dir(volume.join("..half")).unwrap();
    let link = fs::read_link(volume.join(DATA)).unwrap();
    put(&folder, &[("a", "1"), ("b", "2")]);
    assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), link, "what is right is not written again");
    assert_eq!(fs::read_to_string(volume.join("b")).unwrap(), "2");
    let mut names: Vec<_> = fs::read_dir(&volume)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["..data", link.to_str().unwrap(), "a", "b"]
            .map(str::to_owned)
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_reader_never_sees_half_an_update() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    let volume = put(&folder, &[("a", "0"), ("b", "0")]);
    let (sender, receiver) = std::sync::mpsc::channel();
    let reader = std::thread::spawn({
        let volume = volume.clone();
        move || {
            let mut seen = 0;
            while receiver.try_recv().is_err() || seen < 100 {
                // As programs do that read several files: through the one link, resolved once.
                let data = volume.join(fs::read_link(volume.join(DATA)).expect("there are always files"));
                let read = |name: &str| fs::read_to_string(data.join(name)).ok();
                if let (Some(a), Some(b)) = (read("a"), read("b")) {
                    assert_eq!(a, b);
                    seen += 1;
                }
                assert!(fs::symlink_metadata(volume.join("a")).is_ok());
            }
        }
    });
    for n in 1..200 {
        put(&folder, &[("a", &n.to_string()), ("b", &n.to_string())]);
    }
    sender.send(()).unwrap();
    reader.join().unwrap();
}

#[test]
fn other_volumes_can_be_mounted_in_a_read_only_one() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    let content = Content::Files { files: files(&[("a", "1")]), memory: false };
    let nested = [PathBuf::from("for/others"), PathBuf::from("a")];
    let volume = folder.put_volume("v", &content, Some(7), &nested).unwrap();
    assert_eq!((mode(volume.join("for/others")), group(volume.join("for"))), (0o2755, 7));
    assert!(folder.put_volume("v", &content, Some(7), &nested).is_ok());
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
fn last_words_are_kept_up_to_a_limit() {
    let root = tempfile::tempdir().unwrap();
    let folder = PodFolder::new(root.path(), "u1");
    assert_eq!(folder.termination_message("c", 0), "");
    let path = folder.put_termination_log("c", 0).unwrap();
    fs::write(&path, "x".repeat(10_000) + "last").unwrap();
    let message = folder.termination_message("c", 0);
    assert_eq!(message.len(), MAX_MESSAGE_BYTES);
    assert!(message.ends_with("xlast"), "{message}");
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
