//! How close GPUs are to each other. Pure: what NVML said about links and buses goes in, weights come out.

use std::collections::BTreeMap;

use nvml_wrapper::enum_wrappers::device::TopologyLevel;

use crate::device::DeviceId;

/// What one NVLink between two GPUs weighs: more than any path over PCI.
const NVLINK: u32 = 100;

/// What connections weigh, from each GPU to each.
pub(super) type Weights = BTreeMap<DeviceId, BTreeMap<DeviceId, u32>>;

/// A GPU and where its active links lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Linked {
    pub(super) id: DeviceId,
    pub(super) pci_address: Option<String>,
    /// A PCI address a link: another GPU's, or a switch's.
    pub(super) remotes: Vec<String>,
}

/// The weights between all of `gpus`; `level` says how two of them are connected over PCI, by their places in the list.
pub(super) fn weights(gpus: &[Linked], level: impl Fn(usize, usize) -> Option<TopologyLevel>) -> Weights {
    let mut weights: Weights = BTreeMap::new();
    for (a, one) in gpus.iter().enumerate() {
        for (b, other) in gpus.iter().enumerate().skip(a + 1) {
            let bus = level(a, b).map_or(0, pcie);
            let weight = NVLINK.saturating_mul(nvlinks(gpus, one, other)).saturating_add(bus);
            if weight > 0 {
                weights.entry(one.id.clone()).or_default().insert(other.id.clone(), weight);
                weights.entry(other.id.clone()).or_default().insert(one.id.clone(), weight);
            }
        }
    }
    weights
}

/// How many links go from one GPU to another: direct ones, else as many as both have to switches, which connect all of them.
fn nvlinks(gpus: &[Linked], one: &Linked, other: &Linked) -> u32 {
    let direct = |from: &Linked, to: &Linked| {
        from.remotes.iter().filter(|remote| to.pci_address.as_ref() == Some(remote)).count()
    };
    let switched = |gpu: &Linked| {
        let is_gpu = |remote: &String| gpus.iter().any(|gpu| gpu.pci_address.as_ref() == Some(remote));
        gpu.remotes.iter().filter(|remote| !is_gpu(remote)).count()
    };
    // A link that only one side sees is none.
    let count = match direct(one, other).min(direct(other, one)) {
        0 => switched(one).min(switched(other)),
        direct => direct,
    };
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn pcie(level: TopologyLevel) -> u32 {
    match level {
        TopologyLevel::Internal => 50,
        TopologyLevel::Single => 40,
        TopologyLevel::Multiple => 30,
        TopologyLevel::HostBridge => 20,
        TopologyLevel::Node => 10,
        TopologyLevel::System => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(number: u32, remotes: &[&str]) -> Linked {
        Linked {
            id: DeviceId::new(format!("GPU-{number}")).unwrap(),
            pci_address: Some(format!("0000:1{number}:00.0")),
            remotes: remotes.iter().map(|&remote| remote.to_owned()).collect(),
        }
    }

    fn weight(weights: &Weights, a: u32, b: u32) -> u32 {
        let id = |number| DeviceId::new(format!("GPU-{number}")).unwrap();
        let of = |a: u32, b: u32| weights.get(&id(a)).and_then(|to| to.get(&id(b))).copied().unwrap_or(0);
        assert_eq!(of(a, b), of(b, a), "links are symmetric");
        of(a, b)
    }

    #[test]
    fn nvlinks_outweigh_every_bus_and_are_counted() {
        let gpus = [
            gpu(0, &["0000:11:00.0", "0000:11:00.0", "0000:12:00.0"]),
            gpu(1, &["0000:10:00.0", "0000:10:00.0"]),
            gpu(2, &["0000:10:00.0"]),
            // One that claims a link which the other end does not know.
            gpu(3, &["0000:12:00.0"]),
        ];
        let level = |a: usize, b: usize| match (a, b) {
            (2, 3) => Some(TopologyLevel::Internal),
            (1, 2) => Some(TopologyLevel::System),
            (0, 1) => Some(TopologyLevel::Single),
            _ => None,
        };
        let weights = weights(&gpus, level);
        assert_eq!(weight(&weights, 0, 1), 240);
        assert_eq!(weight(&weights, 0, 2), 100);
        assert_eq!(weight(&weights, 2, 3), 50);
        assert_eq!(weight(&weights, 1, 2), 0);
        assert_eq!(weight(&weights, 1, 3), 0);
    }

    #[test]
    fn switches_connect_all_that_are_attached_to_them() {
        let switch = ["0000:90:00.0"; 4];
        let gpus = [gpu(0, &switch), gpu(1, &switch[..3]), gpu(2, &[])];
        let weights = weights(&gpus, |_, _| None);
        assert_eq!((weight(&weights, 0, 1), weight(&weights, 0, 2)), (300, 0));
    }
}
