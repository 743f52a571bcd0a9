use tempfile::TempDir;

use super::*;

const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const STATIC: &str = "5d4d6a0b9e1b4c3f8a7b6c5d4e3f2a1b";

/// A made-up hierarchy: cgroups, and which of them are populated.
fn tree(unified: bool, cgroups: &[(&str, bool)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let hierarchy = if unified { root.path().join("unified") } else { root.path().to_owned() };
    fs::create_dir_all(&hierarchy).unwrap();
    fs::write(hierarchy.join("cgroup.controllers"), "cpu memory").unwrap();
    for (cgroup, populated) in cgroups {
        let path = hierarchy.join(cgroup);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cgroup.events"), format!("populated {}\nfrozen 0\n", u8::from(*populated)))
            .unwrap();
    }
    root
}

fn found(root: &TempDir, named: Option<&str>, own: Option<&str>) -> Result<(String, u32), String> {
    let hierarchy = hierarchy(root.path()).map_err(|error| error.to_string())?;
    let kubepods = find(&hierarchy, named.map(Path::new), own).map_err(|error| error.to_string())?;
    let path = kubepods.path.strip_prefix(&hierarchy).unwrap().to_str().unwrap().to_owned();
    Ok((path, kubepods.level))
}

#[test]
fn kubepods_is_found_wherever_it_is() {
    let systemd_uid = UID.replace('-', "_");
    for (pod, path, level) in [
        (format!("kubepods/pod{UID}"), "kubepods", 1),
        (format!("kubepods/burstable/pod{UID}"), "kubepods", 1),
        (format!("a/b/kubepods/besteffort/pod{UID}"), "a/b/kubepods", 3),
        (format!("kubepods.slice/kubepods-pod{systemd_uid}.slice"), "kubepods.slice", 1),
        (
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{systemd_uid}.slice"),
            "kubepods.slice",
            1,
        ),
        (
            format!(
                "k.slice/k-kubepods.slice/k-kubepods-burstable.slice/k-kubepods-burstable-pod{systemd_uid}.slice"
            ),
            "k.slice/k-kubepods.slice",
            2,
        ),
    ] {
        for unified in [false, true] {
            // Somebody else's kubepods on the same machine, as in our own test cluster.
            let root = tree(unified, &[(&pod, true), ("other/kubepods", true)]);
            assert_eq!(found(&root, None, Some(UID)), Ok((path.to_owned(), level)), "{pod}");
        }
    }
}

#[test]
fn what_is_not_clear_is_asked_for() {
    let two = tree(false, &[("a/kubepods", true), ("b/kubepods/burstable", true)]);
    assert!(found(&two, None, None).unwrap_err().contains("--kubepods-cgroup"));
    assert_eq!(found(&two, Some("/b/kubepods"), None), Ok(("b/kubepods".to_owned(), 2)));
    assert!(found(&two, Some("/c/kubepods"), None).unwrap_err().contains("/c/kubepods"));

    let one = tree(true, &[("kubepods.slice", true)]);
    assert_eq!(found(&one, None, None), Ok(("kubepods.slice".to_owned(), 1)));
    assert!(found(&tree(false, &[]), None, Some(UID)).unwrap_err().contains("no cgroup called kubepods"));

    let flat = tree(false, &[(&format!("system.slice/pod{UID}"), true), ("kubepods", false)]);
    assert!(found(&flat, None, Some(UID)).unwrap_err().contains("cgroupsPerQOS"));

    // A hybrid host whose runtime leaves v2 alone: the kubelet makes the cgroup, and this agent's processes are elsewhere.
    for cgroups in [vec![("kubepods/burstable", false)], vec![(&*format!("kubepods/pod{UID}"), false)]] {
        let unused = tree(true, &cgroups);
        assert!(found(&unused, None, Some(UID)).unwrap_err().contains("uses another hierarchy"));
        assert_eq!(found(&unused, Some("/kubepods"), Some(UID)), Ok(("kubepods".to_owned(), 1)));
    }

    let v1 = tempfile::tempdir().unwrap();
    fs::create_dir_all(v1.path().join("devices/kubepods")).unwrap();
    assert!(found(&v1, None, None).unwrap_err().contains("no cgroup v2 hierarchy"));
}

#[test]
fn pods_of_all_classes_are_listed_with_their_state() {
    let container = format!("kubepods/burstable/pod{UID}/0123abcd");
    let root = tree(
        false,
        &[
            ("kubepods/podguaranteed", true),
            (&format!("kubepods/burstable/pod{UID}"), false),
            (&container, false),
            (&format!("kubepods/besteffort/pod{STATIC}"), true),
            ("kubepods/besteffort/crio-conmon", true),
            ("kubepods/something/podless", true),
        ],
    );
    let kubepods = find(root.path(), None, None).unwrap();
    let mut pods: Vec<_> = kubepods.pods().unwrap().into_iter().map(|pod| (pod.uid, pod.populated)).collect();
    pods.sort();
    let expected = [(UID, false), (STATIC, true), ("guaranteed", true)];
    assert_eq!(pods, expected.map(|(uid, populated)| (uid.to_owned(), populated)));
    assert_eq!(kubepods.parents().unwrap().len(), 3);

    assert!(kubepods.in_place());
    fs::rename(&kubepods.path, root.path().join("gone")).unwrap();
    fs::create_dir(&kubepods.path).unwrap();
    assert!(!kubepods.in_place());
    fs::remove_dir(&kubepods.path).unwrap();
    assert!(kubepods.pods().is_err(), "no list is better than a wrong one");
}

#[test]
fn names_of_other_cgroups_are_no_pods() {
    for (name, uid) in [
        ("pod", None),
        ("kubepods.slice", None),
        ("cri-containerd-0123.scope", None),
        ("kubepods-besteffort.slice", None),
        ("kubepods-podx_y.slice", Some("x-y")),
        ("podx-y", Some("x-y")),
    ] {
        assert_eq!(pod_uid(name).as_deref(), uid, "{name}");
    }
}

#[test]
fn in_v1_a_pod_is_populated_while_it_has_processes_or_cgroups_of_containers() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(devices(root.path()), None);
    let kubepods = root.path().join("devices/kubepods");
    for (cgroup, processes) in [("podidle", ""), ("podrunning", "12\n"), ("burstable/podc", "")] {
        fs::create_dir_all(kubepods.join(cgroup)).unwrap();
        fs::write(kubepods.join(cgroup).join("cgroup.procs"), processes).unwrap();
    }
    // Its processes are in a PID namespace that we don't see.
    fs::create_dir(kubepods.join("burstable/podc/container")).unwrap();
    fs::write(root.path().join("devices/devices.deny"), "").unwrap();
    let found = find(&devices(root.path()).unwrap(), None, None).unwrap();
    let mut pods: Vec<_> =
        found.pods_v1().unwrap().into_iter().map(|(pod, path)| (pod.uid, pod.populated, path)).collect();
    pods.sort();
    let expected =
        [("c", true, "burstable/podc"), ("idle", false, "podidle"), ("running", true, "podrunning")];
    assert_eq!(pods, expected.map(|(uid, populated, path)| (uid.to_owned(), populated, kubepods.join(path))));
}
