//! Who may open what: the kernel's lists, names of cgroups and exemptions, and rounds of decisions about pods that come, hold, end and go
//! in any order.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use arbitrary::{Result, Unstructured};
use spillway_agent::{
    holders::{Holders, Holding, PodRef, is_uid},
    isolation::{
        cgroup::{PodCgroup, pod_uid},
        exempt::Exemption,
        nodes::{Nodes, Roots},
        policy::{Changes, Entries, Owner, View, after, between, decide},
        program::{AllowKey, Number},
    },
    pods::PodInfo,
    usage::processes::pod_in,
};
use spillway_device_plugin::{
    device::{Accelerator, Device, DeviceId, Health, ResourceName},
    inventory::{BackendState, Inventory},
};

use crate::tree::Tree;

const CONTROL: Number = Number { major: 195, minor: 255 };
const SHARED: Number = Number { major: 195, minor: 3 };
const UIDS: [&str; 6] = ["a", "b", "c", "d", "agent", "dcgm"];

/// By the first byte: texts, a machine's files, or rounds.
pub fn run(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => texts(&String::from_utf8_lossy(rest)),
        1 => drop(files(&mut Unstructured::new(rest))),
        _ => drop(rounds(&mut Unstructured::new(rest))),
    }
}

fn texts(text: &str) {
    if let Some(uid) = pod_in(text) {
        assert!(is_uid(&uid) && !uid.contains('/'), "{uid:?}");
    }
    for name in text.split('/') {
        if let Some(uid) = pod_uid(name) {
            assert!(!uid.is_empty() && uid.len() <= name.len());
        }
    }
    if let Ok(exemption) = text.parse::<Exemption>() {
        let stranger = PodInfo {
            uid: "x".to_owned(),
            namespace: "no such/namespace".to_owned(),
            name: "x".to_owned(),
            labels: None,
            certain: true,
        };
        assert_eq!(exemption.covers(&stranger), Some(false), "{text:?}");
        assert!(exemption.nodes.is_none_or(|nodes| !nodes.matches("/etc/passwd".as_ref())), "{text:?}");
    }
}

fn files(bytes: &mut Unstructured<'_>) -> Result<()> {
    let mut tree = Tree::new();
    tree.set(
        "proc/devices",
        "Character devices:\n  1 mem\n195 nvidia\n226 drm\n391 dfl-port\n509 nvidia-caps\n\nBlock devices:\n  8 sd\n",
    );
    tree.set("proc/driver/nvidia/capabilities/mig/config", "DeviceFileMinor: 1\nDeviceFileMode: 256\n");
    tree.set("proc/driver/nvidia/capabilities/mig/monitor", "DeviceFileMinor: 2\n");
    tree.set("sys/devices/pci0000:64/0000:65:00.1/drm/renderD129/dev", "226:129\n");
    tree.link("sys/devices/pci0000:64/0000:65:00.1/drm/renderD129/device", "../..");
    tree.link("sys/class/drm/renderD129", "../../devices/pci0000:64/0000:65:00.1/drm/renderD129");
    for (number, device) in
        [("391:0", "0000:5e:00.0/fpga_region/region0/dfl-port.0"), ("226:129", "0000:65:00.1/drm/renderD129")]
    {
        tree.link(&format!("sys/dev/char/{number}"), &format!("../../devices/pci0000:5d/{device}"));
    }
    tree.set("dev/dfl-port.0", "");
    tree.set("dev/nvidia0", "");
    tree.set("dev/xfpga/dma.qdma.u0.0", "");
    tree.spoil(bytes)?;
    let roots = Roots { sys: tree.at("sys"), dev: tree.at("dev"), proc: tree.at("proc") };
    let devices = [port("dfl-port.0"), port("dfl-port.1"), port("nvidia0"), port("../etc/passwd")].to_vec();
    let (inventory, _) = Inventory::default().with("a target", BackendState::Running, devices);
    let nodes = Nodes::look(&inventory, &roots);
    let escaped = (port("../etc/passwd").resource, DeviceId::new("---etc-passwd").expect("a sound ID"));
    assert!(nodes.devices[&escaped].is_err(), "it leaves /dev");
    for number in nodes.devices.values().flatten().flatten() {
        assert!(nodes.rules.protects(*number), "{number} is given to one pod, and open to all");
    }
    assert!(nodes.rules.protects(Number { major: 195, minor: 7 }), "NVIDIA's own major is always protected");
    for (number, path) in &nodes.names {
        assert!(path.starts_with("/dev") && nodes.rules.protects(*number), "{}", path.display());
    }
    Ok(())
}

/// A device with one node.
fn port(name: &str) -> Device {
    let id = DeviceId::new(name.replace(['/', '.'], "-")).expect("a sound ID");
    Device {
        resource: ResourceName::new("fpga.intel.com/region-0").expect("a sound name"),
        health: Health::Healthy,
        nodes: [PathBuf::from(format!("/dev/{name}"))].into(),
        listed_in: None,
        accelerator: Arc::new(Accelerator::new(id.clone())),
        partition: None,
        replica: None,
        id,
    }
}

/// A machine with three GPUs of their own and one in two shares, and its pods.
struct World {
    nodes: Nodes,
    holders: Holders,
    cgroups: Vec<PodCgroup>,
    pods: Vec<PodInfo>,
    exemptions: Vec<Exemption>,
    entries: Entries,
    next_cgroup: u64,
}

fn rounds(bytes: &mut Unstructured<'_>) -> Result<()> {
    let mut world = World::new();
    for _ in 0..bytes.int_in_range(1..=24_u8)? {
        for _ in 0..bytes.int_in_range(1..=3_u8)? {
            world.happens(bytes)?;
        }
        world.round();
    }
    Ok(())
}

fn resource() -> ResourceName {
    ResourceName::new("nvidia.com/gpu").expect("a sound name")
}

fn device(number: usize) -> DeviceId {
    DeviceId::new(format!("gpu{number}")).expect("a sound ID")
}

fn exclusive() -> BTreeSet<Number> {
    (0..3).map(|minor| Number { major: 195, minor }).collect()
}

impl World {
    fn new() -> Self {
        let numbers =
            |minor: u32| Ok(BTreeSet::from([Number { major: 195, minor: minor.min(SHARED.minor) }, CONTROL]));
        let devices = (0..5_u32).map(|minor| ((resource(), device(minor as usize)), numbers(minor)));
        let names = (0..4).map(|minor| (Number { major: 195, minor }, format!("/dev/nvidia{minor}").into()));
        Self {
            nodes: Nodes {
                devices: devices.collect(),
                exclusive: exclusive(),
                names: names.collect(),
                ..Nodes::default()
            },
            holders: Holders::default(),
            cgroups: Vec::new(),
            pods: Vec::new(),
            exemptions: vec!["monitoring/dcgm*".parse().expect("a sound exemption")],
            entries: Entries::new(),
            next_cgroup: 1,
        }
    }

    fn happens(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let uid = *bytes.choose(&UIDS)?;
        match bytes.int_in_range(0..=9_u8)? {
            // A pod's cgroup comes, its processes start and end, it goes.
            0 | 1 if !self.cgroups.iter().any(|pod| pod.uid == uid) => {
                // An ID that was somebody else's before may be used again.
                let reused = bytes.arbitrary::<bool>()? && self.cgroups.iter().all(|pod| pod.id != 1);
                let id = if reused { 1 } else { self.next_cgroup + 1 };
                self.next_cgroup += 1;
                self.cgroups.push(PodCgroup { uid: uid.to_owned(), id, populated: false });
            }
            0..=3 => {
                let populated = bytes.arbitrary()?;
                self.cgroups
                    .iter_mut()
                    .filter(|pod| pod.uid == uid)
                    .for_each(|pod| pod.populated = populated);
            }
            4 => self.cgroups.retain(|pod| pod.uid != uid),
            // The kubelet gives it something, or forgets it; or everything, as a new one has.
            5 | 6 => {
                let number = bytes.int_in_range(0..=5_usize)?;
                self.holders.holdings.push(Holding {
                    pod: PodRef { uid: uid.to_owned(), namespace: None, name: None },
                    container: "main".to_owned(),
                    resource: resource(),
                    devices: BTreeSet::from([device(number)]),
                });
            }
            7 => self.holders.holdings.retain(|holding| holding.pod.uid != uid),
            8 if bytes.arbitrary()? => self.holders.holdings.clear(),
            8 => {
                let known = bytes.arbitrary()?;
                self.pods.retain(|pod| pod.uid != uid);
                if known {
                    let namespace = if uid == "dcgm" { "monitoring" } else { "default" };
                    self.pods.push(PodInfo {
                        uid: uid.to_owned(),
                        namespace: namespace.to_owned(),
                        name: uid.to_owned(),
                        labels: None,
                        certain: bytes.arbitrary()?,
                    });
                }
            }
            // A driver goes and comes.
            _ => {
                let away = bytes.arbitrary()?;
                let mut fresh = Self::new().nodes;
                if away {
                    fresh.devices.clear();
                    fresh.names.clear();
                    fresh.exclusive.clear();
                }
                self.nodes = fresh;
            }
        }
        Ok(())
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

    fn round(&mut self) {
        let changes = self.decide();
        self.granted(&changes);
        self.revoked(&changes);
        let next = after(&self.entries, &changes);
        let again = between(&self.entries, &next);
        assert_eq!(after(&self.entries, &again), next, "what makes one of the other does so");
        self.entries = next;
        for (key, owner) in &self.entries {
            let pod = self.cgroups.iter().find(|pod| pod.id == key.cgroup);
            assert_eq!(pod.map(|pod| Owner::of(&pod.uid)), Some(*owner), "an entry of nobody's");
        }
        self.shared_by_nobody(&changes);
        let again = self.decide();
        assert!(again.allow.is_empty() && again.revoke.is_empty(), "{again:?}: it was decided before");
    }

    fn is_certain(&self, uid: &str) -> bool {
        self.pods.iter().any(|pod| pod.uid == uid && pod.certain)
    }

    fn holds(&self, uid: &str, number: Number) -> bool {
        let own = self.holders.holdings.iter().filter(|holding| holding.pod.uid == uid);
        own.flat_map(|holding| &holding.devices).any(|id| {
            let numbers = self.nodes.devices.get(&(resource(), id.clone()));
            numbers.is_some_and(|numbers| numbers.as_ref().is_ok_and(|numbers| numbers.contains(&number)))
        })
    }

    /// Access is given to whom the kubelet gave the device, to the agent, and to whom is exempt.
    fn granted(&self, changes: &Changes) {
        for (key, owner) in &changes.allow {
            let pod = self.cgroups.iter().find(|pod| pod.id == key.cgroup).expect("a pod that is there");
            assert_eq!(*owner, Owner::of(&pod.uid));
            let exempt = key.number == Number::ALL
                && (pod.uid == "agent" || (pod.uid == "dcgm" && self.is_certain("dcgm")));
            assert!(exempt || self.holds(&pod.uid, key.number), "{key:?} is not {}'s", pod.uid);
        }
    }

    /// Access is taken away for a reason, and a list that lacks a pod is none.
    fn revoked(&self, changes: &Changes) {
        for key in &changes.revoke {
            let owner = self.entries[key];
            let Some(pod) =
                self.cgroups.iter().find(|pod| pod.id == key.cgroup && Owner::of(&pod.uid) == owner)
            else {
                continue;
            };
            let listed = self.holders.holdings.iter().any(|holding| holding.pod.uid == pod.uid);
            let known = self.is_certain(&pod.uid);
            let wanted =
                self.cgroups.iter().any(|other| other.id != pod.id && self.holds(&other.uid, key.number));
            let reason = if key.number == Number::ALL {
                known
            } else {
                (listed && known) || (!pod.populated && wanted)
            };
            assert!(reason, "{key:?} is taken from {} for no reason", pod.uid);
            if self.holds(&pod.uid, key.number) {
                assert!(!pod.populated && wanted, "{key:?} is taken from {}, who holds it and runs", pod.uid);
            }
        }
    }

    /// An exclusive device that somebody gets is nobody else's who runs.
    fn shared_by_nobody(&self, changes: &Changes) {
        let mut users: BTreeMap<Number, Vec<&PodCgroup>> = BTreeMap::new();
        for AllowKey { cgroup, number } in
            self.entries.keys().filter(|key| self.nodes.exclusive.contains(&key.number))
        {
            users.entry(*number).or_default().extend(self.cgroups.iter().find(|pod| pod.id == *cgroup));
        }
        for (number, pods) in users {
            let new = pods.iter().any(|pod| changes.allow.contains_key(&AllowKey { cgroup: pod.id, number }));
            assert!(pods.len() < 2 || !new, "{pods:?} can all open {number}");
        }
    }
}
