use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    config::Overrides,
    device::{Accelerator, Health, Partition},
    inventory::tests::device,
};

fn rules(text: &str) -> Rules {
    Rules::of(&Config::load("a test", text.as_bytes(), &Overrides::default()).unwrap().config)
}

fn gpu(index: u32) -> Device {
    let base = device("nvidia.com/gpu", &format!("GPU-{index}"), Some(0));
    let accelerator = Accelerator {
        index: Some(index),
        product: Some("NVIDIA A100-SXM4-40GB".to_owned()),
        memory_mib: Some(40_960),
        ..(*base.accelerator).clone()
    };
    Device { accelerator: Arc::new(accelerator), ..base }
}

fn slice(gpu: &Device, instance: u32) -> Device {
    let partition = Partition {
        id: DeviceId::new(format!("MIG-{}-{instance}", gpu.id)).unwrap(),
        profile: "1g.5gb".to_owned(),
        memory_mib: Some(4_864),
        instance: Some((instance, 0)),
        index: None,
    };
    Device {
        id: partition.id.clone(),
        resource: ResourceName::new("nvidia.com/mig-1g.5gb").unwrap(),
        partition: Some(Arc::new(partition)),
        ..gpu.clone()
    }
}

fn ids(offer: &Offer) -> Vec<String> {
    offer.devices.iter().map(|device| format!("{} {}", device.resource, device.id)).collect()
}

#[test]
fn a_shared_device_is_offered_as_its_replicas() {
    let found = [gpu(0), Device { health: Health::Unhealthy("XID 79".to_owned()), ..gpu(1) }];
    let time =
        rules("sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}").offer(&found);
    assert_eq!(
        ids(&time),
        [
            "nvidia.com/gpu GPU-0::0",
            "nvidia.com/gpu GPU-0::1",
            "nvidia.com/gpu GPU-1::0",
            "nvidia.com/gpu GPU-1::1"
        ]
    );
    assert_eq!(time.devices[1].replica, Some(Replica { number: 1, of: 2, memory_mib: None }));
    let sick: Vec<_> = time.devices.iter().map(|device| device.health.is_healthy()).collect();
    assert_eq!(sick, [true, true, false, false], "a sick device reaches all of its replicas");
    assert!(
        time.devices.iter().all(|device| device.nodes == found[0].nodes || device.nodes == found[1].nodes)
    );

    let renamed = "sharing: {timeSlicing: {renameByDefault: true, resources: [{name: gpu, replicas: 2, devices: [1]}]}}";
    assert_eq!(
        ids(&rules(renamed).offer(&found)),
        ["nvidia.com/gpu GPU-0", "nvidia.com/gpu.shared GPU-1::0", "nvidia.com/gpu.shared GPU-1::1"]
    );
    assert_eq!(Rules::default().offer(&found).devices, found);
}

#[test]
fn devices_are_chosen_by_number_index_and_uuid() {
    let gpus = [gpu(1), gpu(0)];
    let partitions: Vec<_> = [2, 5].iter().map(|instance| slice(&gpus[1], *instance)).collect();
    let shared = |devices: &str, found: &[Device], name: &str| {
        let text = format!(
            "sharing: {{timeSlicing: {{resources: [{{name: {name}, replicas: 2, devices: {devices}}}]}}}}"
        );
        let offer = rules(&text).offer(found);
        let replicated = offer.devices.iter().filter(|device| device.replica.is_some());
        replicated
            .map(|device| device.unit().to_string())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    assert_eq!(shared("all", &gpus, "gpu"), ["GPU-0", "GPU-1"]);
    assert_eq!(shared("1", &gpus, "gpu"), ["GPU-0"], "the first is the vendor's first");
    assert_eq!(shared("[1]", &gpus, "gpu"), ["GPU-1"]);
    assert_eq!(shared("[GPU-0]", &gpus, "gpu"), ["GPU-0"]);
    assert_eq!(shared("[GPU-9, 7]", &gpus, "gpu"), Vec::<String>::new());
    assert_eq!(shared("[\"0:1\"]", &partitions, "mig-1g.5gb"), ["MIG-GPU-0-5"]);
    assert_eq!(shared("[0]", &partitions, "mig-1g.5gb"), Vec::<String>::new(), "a GPU is not its partitions");
}

#[test]
fn resources_are_renamed_by_product_and_profile_first() {
    let text = "resources: {gpus: [{pattern: 'A100*40GB', name: a100}, {pattern: '*', name: other}], mig: [{pattern: 1g, name: \
                small}]}\nsharing: {timeSlicing: {resources: [{name: a100, replicas: 2}]}}";
    let nameless = Device { accelerator: Arc::new(Accelerator::new(gpu(2).id)), ..gpu(2) };
    let fpga = device("fpga.intel.com/region-0", "port0", None);
    let offer = rules(text).offer(&[gpu(0), slice(&gpu(1), 3), nameless, fpga]);
    assert_eq!(
        ids(&offer),
        [
            "nvidia.com/a100 GPU-0::0",
            "nvidia.com/a100 GPU-0::1",
            "nvidia.com/small MIG-GPU-1-3",
            "nvidia.com/gpu GPU-2",
            "fpga.intel.com/region-0 port0"
        ]
    );
}

#[test]
fn replicas_have_memory_budgets_that_fit() {
    let each = |text: &str, device: Device| {
        let offer = rules(text).offer(&[device]);
        offer
            .devices
            .first()
            .and_then(|device| device.replica.clone()?.memory_mib)
            .ok_or(offer.refused.join("; "))
    };
    let memory = "sharing: {memory: {resources: [{name: gpu, replicas: 4}]}}";
    assert_eq!(each(memory, gpu(0)), Ok(10_240));
    assert_eq!(each(&memory.replace("4}", "4, memoryMiB: 8192}"), gpu(0)), Ok(8_192));
    let why = each(&memory.replace("4}", "4, memoryMiB: 10241}"), gpu(0)).unwrap_err();
    assert_eq!(why, "nvidia.com/gpu: 4 replicas of 10241 MiB each are more than the 40960 MiB of GPU-0");
    let why = each(&memory.replace("4}", "4, memoryMiB: 18446744073709551615}"), gpu(0)).unwrap_err();
    assert!(why.contains("more than the 40960 MiB"), "{why}");
    let why = each(&memory.replace("4}", "50000}"), gpu(0)).unwrap_err();
    assert!(why.contains("less than 1 MiB"), "{why}");
    let silent = Device { accelerator: Arc::new(Accelerator::new(gpu(0).id)), ..gpu(0) };
    assert_eq!(each(&memory.replace("4}", "4, memoryMiB: 8192}"), silent.clone()), Ok(8_192));
    assert_eq!(
        each(memory, silent),
        Err(String::new()),
        "what is not known is no budget, and no reason to refuse"
    );
    assert_eq!(
        each(&memory.replace("gpu", "mig-1g.5gb"), slice(&gpu(0), 1)),
        Ok(1_216),
        "a partition's own memory"
    );
}

#[test]
fn what_devices_cannot_give_is_not_offered() {
    let mps = rules(
        "sharing: {mps: {resources: [{name: nvidia.com/part, replicas: 2}]}}\nresources: {mig: [{pattern: '*', name: part}]}",
    );
    let offer = mps.offer(&[slice(&gpu(0), 1), gpu(1)]);
    assert_eq!(ids(&offer), ["nvidia.com/gpu GPU-1"]);
    assert!(offer.refused[0].contains("MPS"), "{:?}", offer.refused);

    let long = device("nvidia.com/gpu", &"x".repeat(60), None);
    let offer = rules("sharing: {timeSlicing: {resources: [{name: gpu, replicas: 100}]}}").offer(&[long]);
    assert!(offer.devices.is_empty() && offer.refused[0].contains("63"), "{:?}", offer.refused);
}

#[test]
fn a_list_that_the_kubelet_would_not_receive_is_refused_with_its_size() {
    let found: Vec<_> = (0..4).map(gpu).collect();
    let with = |replicas: u32| {
        rules(&format!("sharing: {{timeSlicing: {{resources: [{{name: gpu, replicas: {replicas}}}]}}}}"))
            .offer(&found)
    };
    let offer = with(50_000);
    assert!(offer.devices.is_empty());
    assert!(offer.refused[0].contains("200000 replicas of 4 devices"), "{:?}", offer.refused);
    let many: Vec<_> = (0..400).map(gpu).collect();
    let offer = rules("sharing: {timeSlicing: {resources: [{name: gpu, replicas: 50000}]}}").offer(&many);
    let why = &offer.refused[0];
    assert!(why.contains("20000000 replicas of 400 devices"), "before they fill the memory: {why}");
    let offer = with(20_000);
    assert_eq!(offer.refused, Vec::<String>::new());
    let list = spillway_proto::deviceplugin::ListAndWatchResponse {
        devices: crate::server::wire(offer.devices.iter()),
    };
    assert!(prost::Message::encoded_len(&list) < LIST_LIMIT, "the estimate is never too small");
}

#[test]
fn the_way_of_sharing_is_known_by_the_offered_name() {
    let rules = rules(
        "sharing: {timeSlicing: {renameByDefault: true, resources: [{name: gpu, replicas: 2}]}, memory: {resources: [{name: a, rename: b, replicas: 2}]}}",
    );
    let way = |name: &str| way_of(&rules.sharing, &ResourceName::new(format!("nvidia.com/{name}")).unwrap());
    assert_eq!(
        [way("gpu.shared"), way("b"), way("gpu"), way("a")],
        [Some(Way::TimeSlicing), Some(Way::Memory), None, None]
    );
}

proptest! {
    #[test]
    fn replicas_are_as_many_as_asked_for_and_unlike_each_other(gpus in 0..6_u32, replicas in 2..9_u32) {
        let found: Vec<_> = (0..gpus).map(gpu).collect();
        let text = format!("sharing: {{timeSlicing: {{resources: [{{name: gpu, replicas: {replicas}}}]}}}}");
        let offer = rules(&text).offer(&found);
        let distinct: BTreeSet<_> = offer.devices.iter().map(|device| device.id.clone()).collect();
        prop_assert_eq!(distinct.len(), (gpus * replicas) as usize);
        for device in &offer.devices {
            prop_assert!(found.iter().any(|one| one.id == *device.unit() && one.health == device.health));
        }
    }
}
