//! The machine's accelerators as one immutable value: who found them, and what they are now. It is replaced as a whole, in a watch
//! channel; nobody edits it in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    device::{Device, DeviceId, Health, ResourceName},
    held::Held,
    sharing::{Offer, Rules},
};

/// How a back end is doing, apart from its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum BackendState {
    /// It has not looked yet.
    #[default]
    Starting,
    /// It looked, and what it found is in the inventory.
    Running,
    /// It can't look; the text says why. What it found before stays listed as Unhealthy.
    Unavailable(String),
}

/// Shared by all copies of an inventory: shares of devices can be thousands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Part {
    state: BackendState,
    found: Arc<[Device]>,
    offer: Arc<Offer>,
    labels: Arc<BTreeMap<String, String>>,
}

/// Programs without which a resource's replicas are of no use, by the resource: running, or why not.
type Services = BTreeMap<ResourceName, Result<(), String>>;

/// Every device of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    rules: Arc<Rules>,
    services: Arc<Services>,
    held: Arc<Held>,
    parts: BTreeMap<&'static str, Part>,
}

/// What a publication changed, for the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A device that was not listed before.
    Added(&'a Device),
    /// A device that is listed no more.
    Removed(&'a Device),
    /// A device whose health is another.
    Health(&'a Device),
}

impl Inventory {
    /// An inventory in which each of these back ends is yet to look.
    pub fn starting(backends: impl IntoIterator<Item = &'static str>) -> Self {
        let parts = backends.into_iter().map(|name| (name, Part::default())).collect();
        Self { parts, ..Self::default() }
    }

    /// The same devices, offered by other rules.
    #[must_use]
    pub fn ruled_by(&self, rules: Arc<Rules>) -> Self {
        let mut next = self.clone();
        next.rules = rules;
        next.offer_anew();
        next
    }

    /// The same, knowing how the program is doing without which `resource`'s replicas are of no use; `None`: there is none.
    #[must_use]
    pub fn with_service(&self, resource: &ResourceName, state: Option<Result<(), String>>) -> Self {
        let mut services = (*self.services).clone();
        match state {
            Some(state) => services.insert(resource.clone(), state),
            None => services.remove(resource),
        };
        let mut next = self.clone();
        next.services = Arc::new(services);
        next.offer_anew();
        next
    }

    /// The same, knowing what containers hold: what one has by another name is not handed out again.
    #[must_use]
    pub fn with_held(&self, held: Held) -> Self {
        let mut next = self.clone();
        if *next.held != held {
            next.held = Arc::new(held);
            next.offer_anew();
        }
        next
    }

    /// Resources about whose programs something is known.
    pub fn services(&self) -> impl Iterator<Item = &ResourceName> {
        self.services.keys()
    }

    fn offer_anew(&mut self) {
        for part in self.parts.values_mut() {
            let mut offer = self.rules.offer(&part.found);
            for device in offer.devices.iter_mut().filter(|device| device.health.is_healthy()) {
                let served = device.replica.is_some() && self.rules.need_service(&device.resource);
                let trouble = match self.services.get(&device.resource) {
                    Some(Err(why)) if served => Some(why.clone()),
                    None if served => Some("its MPS daemon has not started".to_owned()),
                    _ => self.held.objection(device),
                };
                if let Some(trouble) = trouble {
                    device.health = Health::Unhealthy(trouble);
                }
            }
            part.offer = Arc::new(offer);
        }
    }

    /// What the rules ask for that the devices can't give.
    pub fn refused(&self) -> Vec<&str> {
        self.parts.values().flat_map(|part| &part.offer.refused).map(String::as_str).collect()
    }

    /// The same with one back end's part replaced. Devices are put in order; of two with the same ID the first stays, and the
    /// others are returned.
    #[must_use]
    pub fn with(
        &self,
        backend: &'static str,
        state: BackendState,
        devices: Vec<Device>,
    ) -> (Self, Vec<Device>) {
        let elsewhere: BTreeSet<_> = self
            .parts
            .iter()
            .filter(|(name, _)| **name != backend)
            .flat_map(|(_, part)| part.found.iter().map(key))
            .collect();
        let mut kept = BTreeMap::new();
        let mut refused = Vec::new();
        for device in devices {
            if elsewhere.contains(&key(&device)) || kept.contains_key(&key(&device)) {
                refused.push(device);
            } else {
                kept.insert(key(&device), device);
            }
        }
        let mut next = self.clone();
        let part = next.parts.entry(backend).or_default();
        part.state = state;
        if !part.found.iter().eq(kept.values()) {
            part.found = kept.into_values().collect();
            next.offer_anew();
        }
        (next, refused)
    }

    /// The same without what one back end has found: it is not wanted any more.
    #[must_use]
    pub fn without(&self, backend: &str) -> Self {
        let mut next = self.clone();
        next.parts.remove(backend);
        next
    }

    /// The same, with a back end that is yet to look if there was none.
    #[must_use]
    pub fn expecting(&self, backend: &'static str) -> Self {
        let mut next = self.clone();
        next.parts.entry(backend).or_default();
        next
    }

    /// The same with what one back end has to say of the machine replaced.
    #[must_use]
    pub fn with_labels(&self, backend: &'static str, labels: BTreeMap<String, String>) -> Self {
        let mut next = self.clone();
        next.parts.entry(backend).or_default().labels = Arc::new(labels);
        next
    }

    /// What the back ends say of the machine as a whole, as node labels; keys and values have the syntax of labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let all = self.parts.values().flat_map(|part| part.labels.iter());
        all.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// All devices as they are offered, in a stable order.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.parts.values().flat_map(|part| &part.offer.devices)
    }

    /// All devices as they were found: without replicas, by their first names.
    pub fn found(&self) -> impl Iterator<Item = &Device> {
        self.parts.values().flat_map(|part| part.found.iter())
    }

    /// The devices that one back end found.
    pub fn found_by(&self, backend: &str) -> &[Device] {
        self.parts.get(backend).map_or(&[], |part| &part.found)
    }

    /// The devices of one resource, in a stable order.
    pub fn slice<'a>(&'a self, resource: &'a ResourceName) -> impl Iterator<Item = &'a Device> {
        self.devices().filter(move |device| device.resource == *resource)
    }

    /// What is wrong with a device, if anything is. One that is only kept back, as a container has it by another name, is well.
    pub fn sickness<'a>(&self, device: &'a Device) -> Option<&'a str> {
        match &device.health {
            Health::Unhealthy(why) if self.held.objection(device).as_ref() != Some(why) => Some(why),
            _ => None,
        }
    }

    /// Why devices are kept back that are well, each with its resource and ID; of shares, the ID of what is shared.
    pub fn kept_back(&self) -> impl Iterator<Item = String> {
        self.devices().filter(|device| !device.health.is_healthy()).filter_map(|device| {
            let why = self.held.objection(device).filter(|_| self.sickness(device).is_none())?;
            let id = if device.replica.is_some() { device.unit() } else { &device.id };
            Some(format!("{} {id}: {why}", device.resource))
        })
    }

    /// Every resource that has a device, healthy or not.
    pub fn resources(&self) -> BTreeSet<ResourceName> {
        let distinct: BTreeSet<_> = self.devices().map(|device| &device.resource).collect();
        distinct.into_iter().cloned().collect()
    }

    /// How each back end is doing.
    pub fn backends(&self) -> impl Iterator<Item = (&'static str, &BackendState)> {
        self.parts.iter().map(|(name, part)| (*name, &part.state))
    }

    /// What differs between `before` and `self`, of the devices as they were found: a device's replicas are no news of their own.
    pub fn changes<'a>(&'a self, before: &'a Self) -> Vec<Change<'a>> {
        let old: BTreeMap<_, _> = before.found().map(|device| (key(device), device)).collect();
        let new: BTreeMap<_, _> = self.found().map(|device| (key(device), device)).collect();
        let removed =
            old.iter().filter(|(key, _)| !new.contains_key(*key)).map(|(_, device)| Change::Removed(device));
        let others = new.iter().filter_map(|(key, device)| match old.get(key) {
            None => Some(Change::Added(device)),
            Some(before) if before.health != device.health => Some(Change::Health(device)),
            Some(_) => None,
        });
        removed.chain(others).collect()
    }
}

/// These devices with their health replaced: what is left to say when their back end can't be asked.
pub fn all_unhealthy<'a>(devices: impl IntoIterator<Item = &'a Device>, why: &str) -> Vec<Device> {
    devices
        .into_iter()
        .map(|device| Device { health: Health::Unhealthy(why.to_owned()), ..device.clone() })
        .collect()
}

fn key(device: &Device) -> (ResourceName, DeviceId) {
    (device.resource.clone(), device.id.clone())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::{Config, Overrides},
        device::Accelerator,
    };

    /// A healthy device of `resource`, for tests.
    pub(crate) fn device(resource: &str, id: &str, numa_node: Option<u32>) -> Device {
        Device {
            id: DeviceId::new(id).unwrap(),
            resource: ResourceName::new(resource).unwrap(),
            health: Health::Healthy,
            nodes: [format!("/dev/{id}").into(), "/dev/shared".into()].into(),
            listed_in: None,
            accelerator: Arc::new(Accelerator { numa_node, ..Accelerator::new(DeviceId::new(id).unwrap()) }),
            partition: None,
            replica: None,
        }
    }

    #[test]
    fn a_device_listed_twice_is_taken_once() {
        let gpu = device("nvidia.com/gpu", "GPU-1", None);
        let (inventory, refused) =
            Inventory::default().with("nvml", BackendState::Running, vec![gpu.clone(), gpu.clone()]);
        assert_eq!(refused, std::slice::from_ref(&gpu));
        let (inventory, refused) = inventory.with("other", BackendState::Running, vec![gpu.clone()]);
        assert_eq!(refused, std::slice::from_ref(&gpu), "another back end can't take it over");
        assert_eq!(inventory.devices().collect::<Vec<_>>(), [&gpu]);
    }

    #[test]
    fn what_is_offered_follows_the_rules() {
        let config = Config::load(
            "a test",
            b"sharing: {timeSlicing: {resources: [{name: gpu, replicas: 2}]}}",
            &Overrides::default(),
        );
        let rules = Arc::new(Rules::of(&config.unwrap().config));
        let offered = |inventory: &Inventory| {
            inventory.devices().map(|device| device.id.to_string()).collect::<Vec<_>>()
        };
        let gpus = |count: u32| {
            (0..count).map(|gpu| device("nvidia.com/gpu", &format!("GPU-{gpu}"), None)).collect()
        };

        let (plain, _) = Inventory::default().with("nvml", BackendState::Running, gpus(1));
        let shared = plain.ruled_by(rules);
        assert_eq!(offered(&shared), ["GPU-0::0", "GPU-0::1"]);
        assert!(shared.changes(&plain).is_empty(), "nothing has happened to the device");
        let (more, _) = shared.with("nvml", BackendState::Running, gpus(2));
        assert_eq!(offered(&more), ["GPU-0::0", "GPU-0::1", "GPU-1::0", "GPU-1::1"]);
        assert_eq!(offered(&shared.ruled_by(Arc::default())), ["GPU-0"]);
        let (sick, _) = shared.with(
            "nvml",
            BackendState::Unavailable("no driver".into()),
            all_unhealthy(shared.found_by("nvml"), "no driver"),
        );
        assert!(sick.devices().count() == 2 && sick.devices().all(|device| !device.health.is_healthy()));
    }

    #[test]
    fn what_a_container_has_is_not_offered_by_another_name_until_it_has_ended() {
        let config = Config::load(
            "a test",
            b"sharing: {timeSlicing: {resources: [{name: gpu, replicas: 2}]}}",
            &Overrides::default(),
        );
        let rules = Arc::new(Rules::of(&config.unwrap().config));
        let gpus = ["GPU-0", "GPU-1"].map(|id| device("nvidia.com/gpu", id, None));
        let free = |inventory: &Inventory| {
            let healthy = inventory.devices().filter(|device| device.health.is_healthy());
            healthy.map(|device| device.id.to_string()).collect::<Vec<_>>()
        };
        let held = |id: &str| [(gpus[0].resource.clone(), DeviceId::new(id).unwrap())].into_iter().collect();
        let (whole, _) = Inventory::default().with("nvml", BackendState::Running, gpus.to_vec());
        let whole = whole.with_held(held("GPU-0"));
        assert_eq!(free(&whole), ["GPU-0", "GPU-1"], "the kubelet knows who has it");
        let shared = whole.ruled_by(rules);
        assert_eq!(free(&shared), ["GPU-1::0", "GPU-1::1"]);
        assert!(shared.devices().all(|device| shared.sickness(device).is_none()), "nothing is wrong with it");
        let kept: Vec<_> = shared.kept_back().collect();
        assert!(
            kept.len() == 2 && kept[0].starts_with("nvidia.com/gpu GPU-0: a container has it as"),
            "{kept:?}"
        );
        let sick = shared.with("nvml", BackendState::Running, all_unhealthy(&gpus, "XID 79")).0;
        assert!(sick.devices().all(|device| sick.sickness(device) == Some("XID 79")));
        assert_eq!(sick.kept_back().count(), 0);
        let ended = shared.with_held(Held::default());
        assert_eq!(free(&ended), ["GPU-0::0", "GPU-0::1", "GPU-1::0", "GPU-1::1"]);
        let back = ended.with_held(held("GPU-1::0")).ruled_by(Arc::default());
        assert_eq!(free(&back), ["GPU-0"]);
    }

    #[test]
    fn a_publication_replaces_only_its_own_part() {
        let gpu = device("nvidia.com/gpu", "GPU-1", None);
        let fpga = device("fpga.intel.com/region-0", "port0", None);
        let (first, _) =
            Inventory::starting(["nvml", "dfl"]).with("nvml", BackendState::Running, vec![gpu.clone()]);
        let (second, _) = first.with("dfl", BackendState::Running, vec![fpga.clone()]);
        assert_eq!(second.resources().len(), 2);
        assert_eq!(second.changes(&first), [Change::Added(&fpga)]);

        let sick = all_unhealthy(second.found_by("nvml"), "no driver");
        let (third, _) = second.with("nvml", BackendState::Unavailable("no driver".into()), sick.clone());
        assert_eq!(third.changes(&second), [Change::Health(&sick[0])]);
        let (fourth, _) = third.with("nvml", BackendState::Running, Vec::new());
        assert_eq!(fourth.changes(&third), [Change::Removed(&sick[0])]);
        assert_eq!(fourth.slice(&fpga.resource).collect::<Vec<_>>(), [&fpga]);
    }
}
