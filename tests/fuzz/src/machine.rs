//! Accelerators made of bytes.

use std::{path::PathBuf, sync::Arc};

use arbitrary::{Result, Unstructured};
use spillway_device_plugin::device::{Accelerator, Device, DeviceId, Health, Partition, ResourceName};

const PRODUCTS: [&str; 4] = ["NVIDIA A100-SXM4-40GB", "NVIDIA H200", "Tesla T4", "\u{fc} /,*"];
const PROFILES: [&str; 4] = ["1g.5gb", "3g.20gb", "1g.5gb+me", "7g.40gb"];

/// Up to 10 GPUs, some of them partitioned, some sick, of any memory.
///
/// # Errors
/// When the bytes are used up.
///
/// # Panics
/// Never: the names are sound.
pub fn gpus(bytes: &mut Unstructured<'_>) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for number in 0..bytes.int_in_range(0..=10_u32)? {
        let id = DeviceId::new(name(bytes, 'G', number)?).expect("a sound ID");
        let accelerator = Arc::new(Accelerator {
            index: bytes.arbitrary::<bool>()?.then_some(number),
            product: bytes
                .arbitrary::<bool>()?
                .then(|| bytes.choose(&PRODUCTS))
                .transpose()?
                .map(ToString::to_string),
            memory_mib: memory(bytes)?,
            ..Accelerator::new(id.clone())
        });
        let health =
            if bytes.ratio(1, 8)? { Health::Unhealthy("it is sick".to_owned()) } else { Health::Healthy };
        let mixed = bytes.arbitrary()?;
        let partitions = bytes.int_in_range(0..=7_u32)?;
        let whole = Device {
            id,
            resource: ResourceName::new("nvidia.com/gpu").expect("a sound name"),
            health,
            nodes: [PathBuf::from(format!("/dev/nvidia{number}")), PathBuf::from("/dev/nvidiactl")].into(),
            listed_in: Some("NVIDIA_VISIBLE_DEVICES"),
            accelerator: accelerator.clone(),
            partition: None,
            replica: None,
        };
        if partitions == 0 {
            devices.push(whole);
            continue;
        }
        for partition in 0..partitions {
            let profile = *bytes.choose(&PROFILES)?;
            let id = DeviceId::new(name(bytes, 'M', number * 8 + partition)?).expect("a sound ID");
            let resource = if mixed {
                format!("nvidia.com/mig-{}", profile.replace('+', "."))
            } else {
                "nvidia.com/gpu".to_owned()
            };
            devices.push(Device {
                id: id.clone(),
                resource: ResourceName::new(resource).expect("a sound name"),
                partition: Some(Arc::new(Partition {
                    id,
                    profile: profile.to_owned(),
                    memory_mib: memory(bytes)?,
                    instance: Some((partition + 1, 0)),
                    index: Some(partition),
                })),
                ..whole.clone()
            });
        }
    }
    Ok(devices)
}

/// An ID of any length that is unique by its number.
fn name(bytes: &mut Unstructured<'_>, kind: char, number: u32) -> Result<String> {
    let length = bytes.int_in_range(4..=63_usize)?;
    Ok(format!("{kind}{number:0>width$}", width = length - 1))
}

fn memory(bytes: &mut Unstructured<'_>) -> Result<Option<u64>> {
    Ok(match bytes.int_in_range(0..=5_u8)? {
        0 => None,
        1 => Some(bytes.int_in_range(0..=64)?),
        2 => Some(bytes.arbitrary()?),
        _ => Some(81_920),
    })
}
