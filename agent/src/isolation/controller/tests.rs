use super::{
    super::{policy::Owner, program::AllowKey},
    *,
};

fn number(minor: u32) -> Number {
    Number { major: 195, minor }
}

fn entries(list: &[(u64, Number)]) -> Entries {
    list.iter().map(|&(cgroup, number)| (AllowKey { cgroup, number }, Owner::of("a"))).collect()
}

#[test]
fn each_pod_is_denied_every_minor_that_it_does_not_have_and_no_other() {
    let protected = [0, 1, 255].map(number).into();
    let entries =
        entries(&[(1, number(0)), (1, number(255)), (3, Number::ALL), (9, number(1)), (1, number(7))]);
    let plan = plan(&protected, [1, 2, 3], &entries);
    let orders = |deny: &[u32], allow: &[u32]| Orders {
        deny: deny.iter().copied().map(number).collect(),
        allow: allow.iter().copied().map(number).collect(),
    };
    let expected =
        [(1, orders(&[1], &[0, 255])), (2, orders(&[0, 1, 255], &[])), (3, orders(&[], &[0, 1, 255]))];
    assert_eq!(plan, expected.into(), "and nothing is written for a pod that isn't there");
}

#[test]
fn what_is_revoked_is_denied_and_what_is_given_is_remembered() {
    let mut controller = Controller {
        hierarchy: PathBuf::new(),
        entries: entries(&[(1, number(0)), (1, number(1))]),
        paths: BTreeMap::new(),
        protected: None,
    };
    let revoke = BTreeSet::from([AllowKey { cgroup: 1, number: number(0) }]);
    controller.apply(&Changes { allow: entries(&[(2, number(0))]), revoke, waits: Vec::new() });
    assert_eq!(*controller.entries(), entries(&[(1, number(1)), (2, number(0))]));
}

#[test]
fn a_folder_that_is_no_v1_hierarchy_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("devices.allow"), "").unwrap();
    let error = Controller::open(folder.path().to_owned()).unwrap_err();
    assert!(matches!(error, ControllerError::NoController(_)), "{error}");
}
