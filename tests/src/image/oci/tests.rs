use std::{collections::HashMap, io::Read as _};

use super::*;

fn spec() -> Spec {
    Spec::new("spillway.test/thing:7", ["/bin/thing"])
        .command(["--fast"])
        .environment("COLOUR", "red")
        .user("65534")
        .working_folder("/data")
        .entry("/bin/thing", Entry::Bytes { content: b"program".to_vec(), mode: 0o755 })
        .entry("/bin/other", Entry::Link("/bin/thing".to_owned()))
        .entry("/data", Entry::Folder { mode: 0o1777 })
}

/// Path → (type, mode, link target, content) of a tar.
type Listing = Vec<(String, tar::EntryType, u32, Option<String>, Vec<u8>)>;

fn list(bytes: &[u8]) -> Listing {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let (path, header) = (entry.path().unwrap().display().to_string(), entry.header().clone());
        assert_eq!((header.uid().unwrap(), header.mtime().unwrap()), (0, 0));
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let link = header.link_name().unwrap().map(|link| link.display().to_string());
        (path, header.entry_type(), header.mode().unwrap(), link, content)
    });
    entries.collect()
}

#[test]
fn an_image_holds_together_from_the_index_down_to_its_files() {
    let out = tempfile::tempdir().unwrap();
    let image = build(&spec(), out.path()).unwrap();
    let files: HashMap<_, _> = list(&fs::read(image.tar).unwrap())
        .into_iter()
        .map(|(path, _, _, _, content)| (path, content))
        .collect();
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let follow = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let content = &files[&format!("blobs/sha256/{digest}")];
        assert_eq!(format!("{:x}", Sha256::digest(content)), digest);
        assert_eq!(descriptor["size"], content.len());
        content.as_slice()
    };

    assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    let index = json(&files["index.json"]);
    let entry = &index["manifests"][0];
    assert_eq!(entry["annotations"]["io.containerd.image.name"], "spillway.test/thing:7");
    assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "7");
    let manifest = json(follow(entry));
    let config = json(follow(&manifest["config"]));
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    assert_eq!(
        config["config"],
        json!({"Entrypoint": ["/bin/thing"], "Cmd": ["--fast"], "Env": [PATH, "COLOUR=red"], "User": "65534", "WorkingDir": "/data"})
    );

    let layer = list(follow(&manifest["layers"][0]));
    let (folder, file, link) = (tar::EntryType::Directory, tar::EntryType::Regular, tar::EntryType::Symlink);
    let expected: Listing = vec![
        ("bin/".to_owned(), folder, 0o755, None, vec![]),
        ("bin/other".to_owned(), link, 0o777, Some("/bin/thing".to_owned()), vec![]),
        ("bin/thing".to_owned(), file, 0o755, None, b"program".to_vec()),
        ("data/".to_owned(), folder, 0o1777, None, vec![]),
    ];
    assert_eq!(layer, expected);
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let read = |folder: &Path| fs::read(build(&spec(), folder).unwrap().tar).unwrap();
    assert!(read(one.path()) == read(two.path()));
}

#[test]
fn an_image_is_made_again_only_when_something_changed() {
    let out = tempfile::tempdir().unwrap();
    let source = out.path().join("source");
    fs::write(&source, "one").unwrap();
    let spec = Spec::new("a:b", ["/f"]).entry("/f", Entry::program(&source));
    let tar = build(&spec, out.path()).unwrap().tar;

    fs::write(&tar, "untouched").unwrap();
    build(&spec, out.path()).unwrap();
    assert_eq!(fs::read(&tar).unwrap(), b"untouched");

    fs::write(&source, "another").unwrap();
    build(&spec, out.path()).unwrap();
    assert_ne!(fs::read(&tar).unwrap(), b"untouched");
}

#[test]
fn a_missing_file_is_named() {
    let out = tempfile::tempdir().unwrap();
    let spec = Spec::new("a:b", ["/f"]).entry("/f", Entry::program(Path::new("/nowhere/to/be/found")));
    let error = format!("{:#}", build(&spec, out.path()).unwrap_err());
    assert!(error.contains("/nowhere/to/be/found"), "{error}");
}
