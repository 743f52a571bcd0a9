use std::path::PathBuf;

use proptest::prelude::*;
use spillway_device_plugin::device::{DeviceId, ResourceName};

use super::*;
use crate::holders::PodRef;

const CONTROL: Number = Number { major: 195, minor: 255 };
const ALL_NODES: &[&str] = &["gpu0", "gpu1", "shared-0", "shared-1"];

fn gpu(minor: u32) -> Number {
    Number { major: 195, minor }
}

fn resource() -> ResourceName {
    ResourceName::new("nvidia.com/gpu").unwrap()
}

/// Two GPUs of their own, and a third in two shares.
fn nodes() -> Nodes {
    let numbers = |minor| Ok(BTreeSet::from([gpu(minor), CONTROL]));
    let devices =
        [("gpu0", numbers(0)), ("gpu1", numbers(1)), ("shared-0", numbers(2)), ("shared-1", numbers(2))];
    Nodes {
        devices: devices
            .into_iter()
            .map(|(id, numbers)| ((resource(), DeviceId::new(id).unwrap()), numbers))
            .collect(),
        exclusive: BTreeSet::from([gpu(0), gpu(1)]),
        names: (0..3).map(|minor| (gpu(minor), PathBuf::from(format!("/dev/nvidia{minor}")))).collect(),
        ..Nodes::default()
    }
}

fn cgroup(uid: &str, id: u64, populated: bool) -> PodCgroup {
    PodCgroup { uid: uid.to_owned(), id, populated }
}

fn holding(uid: &str, devices: &[&str]) -> Holding {
    Holding {
        pod: PodRef { uid: uid.to_owned(), namespace: None, name: None },
        container: "main".to_owned(),
        resource: resource(),
        devices: devices.iter().map(|id| DeviceId::new(*id).unwrap()).collect(),
    }
}

fn named(uid: &str, namespace: &str) -> PodInfo {
    PodInfo {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        name: format!("pod-{uid}"),
        labels: None,
        certain: true,
    }
}

fn entry(cgroup: u64, number: Number, uid: &str) -> (AllowKey, Owner) {
    (AllowKey { cgroup, number }, Owner::of(uid))
}

/// A machine at one moment.
#[derive(Debug)]
struct Moment {
    nodes: Nodes,
    holders: Holders,
    cgroups: Vec<PodCgroup>,
    pods: Vec<PodInfo>,
    exemptions: Vec<Exemption>,
    entries: Entries,
}

impl Moment {
    fn new(holdings: Vec<Holding>, cgroups: Vec<PodCgroup>) -> Self {
        let pods = cgroups.iter().map(|pod| named(&pod.uid, "default")).collect();
        let holders = Holders { holdings };
        Self { nodes: nodes(), holders, cgroups, pods, exemptions: Vec::new(), entries: Entries::new() }
    }

    fn with(mut self, entries: impl IntoIterator<Item = (AllowKey, Owner)>) -> Self {
        self.entries.extend(entries);
        self
    }

    fn decide(&self) -> Changes {
        decide(&View {
            nodes: &self.nodes,
            holders: &self.holders,
            cgroups: &self.cgroups,
            pods: &self.pods,
            exemptions: &self.exemptions,
            own_uid: Some("agent"),
            entries: &self.entries,
        })
    }

    /// Does what was decided.
    fn step(&mut self) -> Changes {
        let changes = self.decide();
        self.entries = after(&self.entries, &changes);
        changes
    }
}

fn keys(entries: &[(AllowKey, Owner)]) -> BTreeSet<AllowKey> {
    entries.iter().map(|(key, _)| *key).collect()
}

#[test]
fn pods_get_their_devices_with_the_control_nodes_and_others_nothing() {
    let moment = Moment::new(
        vec![
            holding("a", &["gpu0"]),
            holding("a", &["gpu1"]),
            holding("s", &["shared-0"]),
            holding("t", &["shared-1"]),
            holding("gone", &["gpu0"]),
        ],
        vec![
            cgroup("a", 1, true),
            cgroup("s", 2, true),
            cgroup("t", 3, true),
            cgroup("none", 4, true),
            cgroup("agent", 5, true),
        ],
    );
    let expected = [
        entry(1, gpu(0), "a"),
        entry(1, gpu(1), "a"),
        entry(1, CONTROL, "a"),
        entry(2, gpu(2), "s"),
        entry(2, CONTROL, "s"),
        entry(3, gpu(2), "t"),
        entry(3, CONTROL, "t"),
        entry(5, Number::ALL, "agent"),
    ];
    assert_eq!(moment.decide(), Changes { allow: expected.into(), ..Changes::default() });
}

#[test]
fn nothing_is_revoked_because_a_list_is_empty() {
    let had = [entry(1, gpu(0), "a"), entry(1, CONTROL, "a"), entry(2, Number::ALL, "dcgm")];
    let mut moment = Moment::new(Vec::new(), vec![cgroup("a", 1, true), cgroup("dcgm", 2, true)]).with(had);
    moment.pods.clear();
    assert_eq!(moment.decide().revoke, BTreeSet::new());
    // Between two containers nothing runs in a pod, and it is still its.
    moment.cgroups[0].populated = false;
    assert_eq!(moment.decide().revoke, BTreeSet::new());
    // A device whose driver is away, too.
    moment.holders = Holders { holdings: vec![holding("a", &["gpu0"])] };
    moment.nodes.devices.clear();
    assert_eq!(moment.decide().revoke, BTreeSet::new());
}

#[test]
fn access_ends_with_the_cgroup_and_a_reused_id_gains_nothing() {
    let had = [entry(1, gpu(0), "a"), entry(1, CONTROL, "a"), entry(2, Number::ALL, "dcgm")];
    let gone = Moment::new(vec![holding("a", &["gpu0"])], Vec::new()).with(had);
    assert_eq!(gone.decide(), Changes { revoke: keys(&had), ..Changes::default() });
    let reused = Moment::new(Vec::new(), vec![cgroup("b", 1, true), cgroup("c", 2, true)]).with(had);
    assert_eq!(reused.decide(), Changes { revoke: keys(&had), ..Changes::default() });
    let mut again = Moment::new(vec![holding("b", &["gpu0"])], vec![cgroup("b", 1, true)]).with(had);
    let changes = again.step();
    assert_eq!(changes.allow, [entry(1, gpu(0), "b"), entry(1, CONTROL, "b")].into());
    assert_eq!(again.entries, changes.allow, "and nothing else is left");
}

#[test]
fn a_device_goes_on_only_when_nothing_runs_any_more_where_it_was() {
    // The old pod was deleted by force: the kubelet has forgotten it, and its processes go on.
    let had = [entry(1, gpu(0), "old"), entry(1, CONTROL, "old")];
    let mut moment =
        Moment::new(vec![holding("new", &["gpu0"])], vec![cgroup("old", 1, true), cgroup("new", 2, true)])
            .with(had);
    let changes = moment.step();
    let wait = Wait { uid: "new".to_owned(), number: gpu(0), behind: "old".to_owned() };
    assert_eq!((changes.waits, changes.revoke), (vec![wait], BTreeSet::new()));
    assert_eq!(changes.allow, [entry(2, CONTROL, "new")].into());

    moment.cgroups[0].populated = false;
    let changes = moment.step();
    assert_eq!((changes.waits, changes.allow), (vec![], [entry(2, gpu(0), "new")].into()));
    assert_eq!(changes.revoke, keys(&had[..1]));
    assert_eq!(moment.decide(), Changes::default());
}

#[test]
fn a_pod_that_has_ended_and_is_still_listed_takes_nothing_back() {
    let both = || vec![holding("old", &["gpu0"]), holding("new", &["gpu0"])];
    let cgroups = || vec![cgroup("old", 1, false), cgroup("new", 2, true)];
    let mut moment = Moment::new(both(), cgroups()).with([entry(1, gpu(0), "old")]);
    assert_eq!(moment.step().allow.get(&AllowKey { cgroup: 2, number: gpu(0) }), Some(&Owner::of("new")));
    for populated in [true, false] {
        moment.cgroups[1].populated = populated;
        assert!(!moment.step().allow.contains_key(&AllowKey { cgroup: 1, number: gpu(0) }));
        assert!(moment.entries.contains_key(&AllowKey { cgroup: 2, number: gpu(0) }));
    }
    // The other way round in the list.
    let mut reversed = both();
    reversed.reverse();
    let mut fresh = Moment::new(reversed, cgroups());
    let changes = fresh.step();
    assert!(changes.allow.contains_key(&AllowKey { cgroup: 2, number: gpu(0) }), "{changes:?}");
    assert!(!changes.allow.contains_key(&AllowKey { cgroup: 1, number: gpu(0) }), "{changes:?}");
}

#[test]
fn a_share_from_when_it_was_one_stays_its_pods_and_keeps_others_waiting() {
    let first = resource();
    let mut moment = Moment::new(
        vec![holding("s", &["gpu0::0"]), holding("t", &["gpu0::1"])],
        vec![cgroup("s", 1, false), cgroup("t", 2, true)],
    );
    moment.nodes.bases.insert(DeviceId::new("gpu0").unwrap(), (first, DeviceId::new("gpu0").unwrap()));
    let both = [entry(1, gpu(0), "s"), entry(1, CONTROL, "s"), entry(2, gpu(0), "t"), entry(2, CONTROL, "t")];
    // One of them is between two starts.
    assert_eq!(moment.step(), Changes { allow: both.into(), ..Changes::default() });
    assert_eq!(moment.decide(), Changes::default());

    moment.holders.holdings.push(holding("whole", &["gpu0"]));
    moment.cgroups.push(cgroup("whole", 3, true));
    moment.pods.push(named("whole", "default"));
    let changes = moment.step();
    assert!(!changes.allow.contains_key(&AllowKey { cgroup: 3, number: gpu(0) }), "{changes:?}");
    assert_eq!((changes.waits.len(), changes.revoke), (1, BTreeSet::new()));
}

#[test]
fn what_a_pod_certainly_does_not_hold_is_taken_away() {
    // A driver came back with another major, and its old one is something else now.
    let stale = entry(1, Number { major: 510, minor: 1 }, "a");
    let had = [entry(1, gpu(0), "a"), entry(1, CONTROL, "a"), stale];
    let mut moment = Moment::new(vec![holding("a", &["gpu0"])], vec![cgroup("a", 1, true)]).with(had);
    assert_eq!(moment.decide(), Changes::default(), "nobody knows what it is");
    moment.nodes.names.insert(stale.0.number, PathBuf::from("/dev/nvidia-caps/nvidia-cap1"));
    assert_eq!(moment.decide(), Changes { revoke: keys(&[stale]), ..Changes::default() });
}

#[test]
fn a_node_that_somebody_removes_from_dev_is_still_its_pods() {
    let had = [entry(1, gpu(0), "a"), entry(1, CONTROL, "a")];
    let mut moment = Moment::new(vec![holding("a", &["gpu0"])], vec![cgroup("a", 1, true)]).with(had);
    moment.nodes.names.clear();
    let own = (resource(), DeviceId::new("gpu0").unwrap());
    for left in [BTreeSet::from([gpu(0)]), BTreeSet::from([CONTROL]), BTreeSet::new()] {
        moment.nodes.devices.insert(own.clone(), Ok(left));
        assert_eq!(moment.decide(), Changes::default());
    }
}

#[test]
fn exemptions_come_and_go() {
    let exemption = |text: &str| text.parse::<Exemption>().unwrap();
    let mut moment =
        Moment::new(vec![holding("a", &["gpu0"])], vec![cgroup("dcgm", 1, true), cgroup("a", 2, true)]);
    moment.pods[0].namespace = "monitoring".to_owned();
    moment.exemptions = vec![exemption("monitoring")];
    assert!(moment.step().allow.contains_key(&AllowKey { cgroup: 1, number: Number::ALL }));
    moment.pods[0].namespace = "other".to_owned();
    assert_eq!(moment.step().revoke, keys(&[entry(1, Number::ALL, "dcgm")]));

    // By labels, which are not known until the API server has said them: then it is given, and before it is not taken away.
    moment.exemptions = vec![exemption("other:app=dcgm")];
    moment.entries.extend([entry(1, Number::ALL, "dcgm")]);
    assert_eq!(moment.step().revoke, BTreeSet::new());
    moment.pods[0].labels = Some(BTreeMap::new());
    assert_eq!(moment.step().revoke, keys(&[entry(1, Number::ALL, "dcgm")]));
    moment.pods[0].labels = Some(BTreeMap::from([("app".to_owned(), "dcgm".to_owned())]));
    assert!(moment.step().allow.contains_key(&AllowKey { cgroup: 1, number: Number::ALL }));

    // A name that somebody else may have written gives nothing, and takes nothing.
    moment.pods[0].certain = false;
    assert_eq!(moment.step(), Changes::default());
    moment.entries.retain(|key, _| key.cgroup != 1);
    assert_eq!(moment.step(), Changes::default());
    moment.pods[0].certain = true;

    // One node, exclusive to another: whoever is exempt is in nobody's way.
    moment.exemptions = vec![exemption("other@/dev/nvidia0")];
    assert!(moment.step().allow.contains_key(&AllowKey { cgroup: 1, number: gpu(0) }));
    moment.entries.retain(|key, _| key.cgroup == 1);
    let changes = moment.step();
    assert_eq!(changes.waits, []);
    assert!(changes.allow.contains_key(&AllowKey { cgroup: 2, number: gpu(0) }), "{changes:?}");
}

fn moment() -> impl Strategy<Value = Moment> {
    let uid = || prop_oneof![Just("a"), Just("b"), Just("c"), Just("agent")];
    let holdings = prop::collection::vec((uid(), prop::sample::subsequence(ALL_NODES, 0..3)), 0..5);
    let cgroups = prop::collection::vec((uid(), any::<bool>()), 0..4);
    let number = prop_oneof![(0u32..3).prop_map(gpu), Just(CONTROL), Just(Number::ALL)];
    let entries = prop::collection::vec((1u64..6, number, uid()), 0..6);
    (holdings, cgroups, entries, any::<bool>()).prop_map(|(holdings, cgroups, entries, names)| {
        let holdings = holdings.into_iter().map(|(uid, devices)| holding(uid, &devices)).collect();
        let mut seen = BTreeSet::new();
        let cgroups = cgroups.into_iter().filter(|(uid, _)| seen.insert(*uid)).enumerate();
        let cgroups =
            cgroups.map(|(index, (uid, populated))| cgroup(uid, index as u64 + 1, populated)).collect();
        let mut moment = Moment::new(holdings, cgroups);
        if !names {
            moment.pods.clear();
        }
        moment.with(entries.into_iter().map(|(cgroup, number, uid)| entry(cgroup, number, uid)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn once_decided_there_is_nothing_more_to_do(mut moment in moment()) {
        moment.step();
        let Changes { allow, revoke, .. } = moment.decide();
        prop_assert_eq!((allow, revoke), (Entries::new(), BTreeSet::new()));
    }

    #[test]
    fn a_second_pod_never_joins_on_an_exclusive_device(mut moment in moment()) {
        let users = |moment: &Moment, number| moment.entries.keys().filter(|key| key.number == number).count();
        moment.step();
        for minor in 0..2 {
            let before = users(&moment, gpu(minor));
            for devices in [&["gpu0"], &["gpu1"]] {
                moment.holders.holdings.push(holding("c", devices));
            }
            moment.step();
            prop_assert!(users(&moment, gpu(minor)) <= before.max(1));
        }
    }

    #[test]
    fn only_owners_that_live_have_entries(mut moment in moment()) {
        moment.step();
        for (key, owner) in &moment.entries {
            let pod = moment.cgroups.iter().find(|pod| pod.id == key.cgroup);
            prop_assert_eq!(pod.map(|pod| Owner::of(&pod.uid)), Some(*owner));
        }
    }

    #[test]
    fn without_lists_only_dead_and_foreign_entries_go(mut moment in moment()) {
        moment.holders.holdings.clear();
        moment.pods.clear();
        for key in moment.decide().revoke {
            let owner = moment.entries[&key];
            prop_assert!(!moment.cgroups.iter().any(|pod| pod.id == key.cgroup && Owner::of(&pod.uid) == owner));
        }
    }

    #[test]
    fn what_was_changed_between_two_states_is_undone(one in moment(), other in moment()) {
        prop_assert_eq!(after(&one.entries, &between(&one.entries, &other.entries)), other.entries);
        prop_assert_eq!(between(&one.entries, &one.entries), Changes::default());
    }
}
