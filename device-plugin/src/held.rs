//! What containers hold by another name than it is offered by now. The kubelet keeps its accounts by resource and device ID: when a
//! configuration, or the hardware, gives the same hardware another name, it counts as free, although a container still has it. Such a device is
//! not to be handed out until that container has ended. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    device::{Device, DeviceId, ResourceName},
    sharing::shared_by,
};

/// Everything that containers which have not ended hold, of whatever resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// By the ID of what is held, without a share's number.
    by_base: BTreeMap<DeviceId, BTreeSet<(ResourceName, DeviceId)>>,
}

impl FromIterator<(ResourceName, DeviceId)> for Held {
    fn from_iter<T: IntoIterator<Item = (ResourceName, DeviceId)>>(all: T) -> Self {
        let mut held = Self::default();
        for (resource, id) in all {
            let base = shared_by(&id).unwrap_or_else(|| id.clone());
            held.by_base.entry(base).or_default().insert((resource, id));
        }
        held
    }
}

impl Held {
    /// Why `device` must not be handed out, if somebody has it by another name: whole while it is shared now, a share of it while it is not, a
    /// whole of which it is a part, or the same of another resource.
    pub(crate) fn objection(&self, device: &Device) -> Option<String> {
        let share = device.replica.is_some();
        let base = if share { shared_by(&device.id) } else { None }.unwrap_or_else(|| device.id.clone());
        let of = |id: &DeviceId| self.by_base.get(id).into_iter().flatten();
        // The kubelet knows of it, and gives it to nobody else.
        if of(&base).any(|(resource, id)| *resource == device.resource && *id == device.id) {
            return None;
        }
        let same = of(&base).find(|(_, id)| *id == device.id || (*id == base) == share);
        let whole = &device.accelerator.id;
        let (resource, id) = same.or_else(|| of(whole).find(|_| *whole != base))?;
        Some(format!(
            "a container has it as {resource} {id}, as which it is not offered any more: it is free when that container has ended"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        device::{Accelerator, Replica},
        inventory::tests::device,
    };

    fn objects(held: &[(&str, &str)], device: &Device) -> bool {
        let held: Held = held
            .iter()
            .map(|(resource, id)| (ResourceName::new(*resource).unwrap(), DeviceId::new(*id).unwrap()))
            .collect();
        held.objection(device).is_some()
    }

    #[test]
    fn what_a_container_has_by_another_name_is_not_free() {
        let whole = device("nvidia.com/gpu", "GPU-0", None);
        let share = Device {
            id: DeviceId::new("GPU-0::1").unwrap(),
            replica: Some(Replica { number: 1, of: 2, memory_mib: None }),
            ..whole.clone()
        };
        let part = Device {
            accelerator: Arc::new(Accelerator::new(DeviceId::new("GPU-0").unwrap())),
            ..device("nvidia.com/mig-1g.5gb", "MIG-1", None)
        };
        let (gpu, renamed) = ("nvidia.com/gpu", "nvidia.com/gpu.shared");
        for (held, of_whole, of_share, of_part) in [
            (&[(gpu, "GPU-0")][..], false, true, true),
            (&[(gpu, "GPU-0::0")], true, false, true),
            (&[(gpu, "GPU-0::1")], true, false, true),
            (&[(renamed, "GPU-0")], true, true, true),
            (&[(renamed, "GPU-0::0")], true, false, true),
            (&[(renamed, "GPU-0::1")], true, true, true),
            // Its own holder is not held back by another, who has it as well.
            (&[(gpu, "GPU-0"), (gpu, "GPU-0::1")], false, false, true),
            (&[(gpu, "MIG-1")], false, false, true),
            (&[("nvidia.com/mig-1g.5gb", "MIG-1")], false, false, false),
            (&[(gpu, "GPU-1"), (gpu, "GPU-01::1"), ("rdma/hca", "1")], false, false, false),
            (&[], false, false, false),
        ] {
            let found = [&whole, &share, &part].map(|device| objects(held, device));
            assert_eq!(found, [of_whole, of_share, of_part], "{held:?}");
        }
    }
}
