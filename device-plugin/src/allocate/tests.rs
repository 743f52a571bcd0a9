use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{config::Overrides, device::Accelerator, inventory::tests::device, sharing::Rules};

fn ids(of: &[&str]) -> Vec<String> {
    of.iter().map(|id| (*id).to_owned()).collect()
}

fn gpu(minor: u32, numa_node: Option<u32>) -> Device {
    Device {
        nodes: [format!("/dev/nvidia{minor}").into(), "/dev/nvidiactl".into()].into(),
        listed_in: Some("NVIDIA_VISIBLE_DEVICES"),
        ..device("nvidia.com/gpu", &format!("GPU-{minor}"), numa_node)
    }
}

fn config(text: &str) -> Config {
    Config::load("a test", text.as_bytes(), &Overrides::default()).unwrap().config
}

/// As it is without a configuration.
fn plain(slice: &[Device], asked: &[String]) -> Result<ContainerAllocateResponse, AllocateError> {
    let resource = ResourceName::new("nvidia.com/gpu").unwrap();
    allocate(Manner::of(&Config::default(), &resource), &resource, slice, asked)
}

/// The answer to a container that asks for all of these devices.
fn answer(text: &str, slice: &[Device]) -> ContainerAllocateResponse {
    let (config, resource) = (config(text), slice[0].resource.clone());
    let asked: Vec<_> = slice.iter().map(|device| device.id.to_string()).collect();
    allocate(Manner::of(&config, &resource), &resource, slice, &asked).unwrap()
}

fn nodes(answer: &ContainerAllocateResponse) -> Vec<&str> {
    answer.devices.iter().map(|spec| spec.host_path.as_str()).collect()
}

fn envs(answer: &ContainerAllocateResponse) -> BTreeMap<&str, &str> {
    answer.envs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn indexed(index: u32) -> Device {
    let base = gpu(index, None);
    let accelerator = Accelerator { index: Some(index), ..(*base.accelerator).clone() };
    Device { accelerator: Arc::new(accelerator), ..base }
}

#[test]
fn a_driver_containers_nodes_come_from_its_own_dev() {
    let base = indexed(0);
    let accelerator =
        Accelerator { dev: Some("/run/nvidia/driver/dev".into()), ..(*base.accelerator).clone() };
    let there = answer("{}", &[Device { accelerator: Arc::new(accelerator), ..base.clone() }]);
    let here = answer("{}", &[base]);
    assert!(!here.devices.is_empty());
    for (there, here) in there.devices.iter().zip(&here.devices) {
        assert_eq!(there.container_path, here.host_path);
        assert_eq!(there.host_path, format!("/run/nvidia/driver{}", here.host_path));
    }
}

/// The answers of NVIDIA's plugin (internal/plugin/server.go) to the same settings, but for the annotation's key, in which it has a
/// random number.
#[test]
fn containers_are_told_of_their_devices_as_nvidia_does() {
    let gpus = [indexed(0), indexed(1)];
    let strategy =
        |text: &str| format!("flags: {{plugin: {{passDeviceSpecs: false, deviceListStrategy: {text}}}}}");

    let by_variable = answer(&strategy("envvar"), &gpus);
    assert_eq!(envs(&by_variable), BTreeMap::from([("NVIDIA_VISIBLE_DEVICES", "GPU-0,GPU-1")]));
    assert_eq!((nodes(&by_variable), by_variable.mounts.len()), (vec![], 0));

    let by_mounts = answer(&strategy("volume-mounts"), &gpus);
    assert_eq!(
        envs(&by_mounts),
        BTreeMap::from([("NVIDIA_VISIBLE_DEVICES", "/var/run/nvidia-container-devices")])
    );
    let mounts: Vec<_> = by_mounts
        .mounts
        .iter()
        .map(|mount| (mount.host_path.as_str(), mount.container_path.as_str()))
        .collect();
    assert_eq!(
        mounts,
        [
            ("/dev/null", "/var/run/nvidia-container-devices/GPU-0"),
            ("/dev/null", "/var/run/nvidia-container-devices/GPU-1")
        ]
    );

    let names = "k8s.device-plugin.nvidia.com/gpu=GPU-0,k8s.device-plugin.nvidia.com/gpu=GPU-1";
    let by_cri = answer(&strategy("cdi-cri"), &gpus);
    let cdi: Vec<_> = by_cri.cdi_devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(cdi.join(","), names);
    assert!(by_cri.envs.is_empty() && by_cri.devices.is_empty() && by_cri.annotations.is_empty());

    let by_annotations = answer(&strategy("cdi-annotations"), &gpus);
    let [(key, value)] = by_annotations.annotations.iter().collect::<Vec<_>>()[..] else {
        panic!("one annotation")
    };
    assert_eq!(value, names);
    let name = key.strip_prefix("cdi.k8s.io/nvidia-device-plugin_").unwrap();
    assert!(name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    assert!(by_annotations.cdi_devices.is_empty() && by_annotations.envs.is_empty());

    let several = answer(&strategy("[envvar, cdi-cri]"), &gpus);
    assert_eq!((several.envs.len(), several.cdi_devices.len()), (1, 2));
}

#[test]
fn device_nodes_are_passed_unless_a_runtime_takes_them_from_a_specification() {
    let gpus = [indexed(0)];
    assert_eq!(nodes(&answer("", &gpus)), ["/dev/nvidia0", "/dev/nvidiactl"]);
    assert_eq!(nodes(&answer("flags: {plugin: {deviceListStrategy: cdi-cri}}", &gpus)), Vec::<&str>::new());
    let both = "flags: {plugin: {deviceListStrategy: [envvar, cdi-cri]}}";
    assert_eq!(nodes(&answer(both, &gpus)).len(), 2);
    let fpga = device("fpga.intel.com/region-0", "port0", None);
    let bare = "flags: {plugin: {passDeviceSpecs: false, deviceListStrategy: cdi-cri}}";
    assert_eq!(nodes(&answer(bare, &[fpga])), ["/dev/port0", "/dev/shared"], "nobody but us gives these");
}

#[test]
fn gpus_may_be_called_by_their_index() {
    let text = "flags: {plugin: {deviceIDStrategy: index, deviceListStrategy: [envvar, cdi-cri]}}";
    let by_index = answer(text, &[indexed(0), indexed(1)]);
    assert_eq!(envs(&by_index)["NVIDIA_VISIBLE_DEVICES"], "0,1");
    assert_eq!(by_index.cdi_devices[1].name, "k8s.device-plugin.nvidia.com/gpu=1");
    assert_eq!(
        envs(&answer(text, &[gpu(3, None)]))["NVIDIA_VISIBLE_DEVICES"],
        "GPU-3",
        "where there is none"
    );
}

#[test]
fn features_are_asked_for_by_variables() {
    let text = "flags: {gdsEnabled: true, mofedEnabled: true, gdrcopyEnabled: true}";
    let envs_of = answer(text, &[gpu(0, None)]);
    for variable in ["NVIDIA_GDS", "NVIDIA_MOFED", "NVIDIA_GDRCOPY"] {
        assert_eq!(envs(&envs_of).get(variable), Some(&"enabled"));
    }
}

#[test]
fn replicas_are_the_device_behind_them_once() {
    let text = "sharing: {timeSlicing: {resources: [{name: gpu, replicas: 3}]}}";
    let shares = Rules::of(&config(text)).offer(&[gpu(0, None), gpu(1, None)]).devices;
    let two_of_one = answer(text, &shares[..2]);
    assert_eq!(envs(&two_of_one)["NVIDIA_VISIBLE_DEVICES"], "GPU-0");
    assert_eq!(nodes(&two_of_one), ["/dev/nvidia0", "/dev/nvidiactl"]);
    assert_eq!(envs(&answer(text, &shares[2..4]))["NVIDIA_VISIBLE_DEVICES"], "GPU-0,GPU-1");
}

#[test]
fn more_than_one_share_is_refused_where_that_is_asked_for() {
    let check = |text: &str, asked: &[&str]| {
        let config = config(text);
        let shares = Rules::of(&config).offer(&[gpu(0, None), gpu(1, None)]).devices;
        let resource = shares[0].resource.clone();
        allocate(Manner::of(&config, &resource), &resource, &shares, &ids(asked)).map(|_| ())
    };
    let strict = "sharing: {timeSlicing: {failRequestsGreaterThanOne: true, renameByDefault: true, resources: [{name: gpu, replicas: \
                  2}]}}";
    assert_eq!(check(strict, &["GPU-0::1"]), Ok(()));
    let error = check(strict, &["GPU-0::1", "GPU-1::0"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "request for 'nvidia.com/gpu.shared: 2' too large: maximum request size for shared resources is 1"
    );
    let lenient = "sharing: {timeSlicing: {resources: [{name: gpu, replicas: 2}]}}";
    assert_eq!(check(lenient, &["GPU-0::1", "GPU-1::0"]), Ok(()));
    let mps = "sharing: {mps: {resources: [{name: gpu, replicas: 2}]}}";
    assert!(check(mps, &["GPU-0::1", "GPU-1::0"]).is_err(), "MPS refuses unless it is told not to");
    let partly = "sharing: {timeSlicing: {failRequestsGreaterThanOne: true, resources: [{name: gpu, replicas: 2, devices: [GPU-0]}]}}";
    assert_eq!(check(partly, &["GPU-0::0", "GPU-1"]), Ok(()), "a whole GPU is no share");
}

#[test]
fn a_container_that_shares_by_mps_finds_the_daemon() {
    let text = "flags: {mpsRoot: /run/mps}\nsharing: {mps: {resources: [{name: gpu, replicas: 2}]}}";
    let shares = Rules::of(&config(text)).offer(&[gpu(0, None)]).devices;
    let joined = answer(text, &shares[..1]);
    assert_eq!(envs(&joined)["CUDA_MPS_PIPE_DIRECTORY"], "/mps/nvidia.com/gpu/pipe");
    let mounts: Vec<_> =
        joined.mounts.iter().map(|mount| (mount.host_path.as_str(), mount.container_path.as_str())).collect();
    assert_eq!(
        mounts,
        [("/run/mps/nvidia.com/gpu/pipe", "/mps/nvidia.com/gpu/pipe"), ("/run/mps/shm", "/dev/shm")]
    );
    let alone = "flags: {mpsRoot: /run/mps}";
    assert!(answer(alone, &[gpu(0, None)]).mounts.is_empty());
}

#[test]
fn a_container_gets_its_nodes_and_the_shared_ones_once() {
    let slice = [gpu(0, None), gpu(1, None), gpu(2, None)];
    let answer = plain(&slice, &ids(&["GPU-2", "GPU-0"])).unwrap();
    let nodes: Vec<_> = answer
        .devices
        .iter()
        .map(|spec| (spec.host_path.as_str(), spec.container_path.as_str(), spec.permissions.as_str()))
        .collect();
    assert_eq!(nodes, ["/dev/nvidia0", "/dev/nvidia2", "/dev/nvidiactl"].map(|path| (path, path, "rw")));
    assert_eq!(
        answer.envs.into_iter().collect::<Vec<_>>(),
        [("NVIDIA_VISIBLE_DEVICES".to_owned(), "GPU-0,GPU-2".to_owned())]
    );
    assert!(answer.mounts.is_empty() && answer.annotations.is_empty() && answer.cdi_devices.is_empty());
}

#[test]
fn one_bad_id_gets_nothing_and_is_named() {
    let mut sick = gpu(1, None);
    sick.health = Health::Unhealthy("XID 79".to_owned());
    let slice = [gpu(0, None), sick];
    let check = |asked: &[&str], error: AllocateError| {
        assert_eq!(plain(&slice, &ids(asked)).unwrap_err(), error);
    };
    check(&[], AllocateError::Empty);
    check(&["GPU-0", "GPU-7"], AllocateError::Unknown("GPU-7".to_owned()));
    check(&["GPU-0", "../GPU-0"], AllocateError::Unknown("../GPU-0".to_owned()));
    check(&["GPU-0", "GPU-0"], AllocateError::Duplicate("GPU-0".to_owned()));
    check(&["GPU-0", "GPU-1"], AllocateError::Unhealthy { id: "GPU-1".to_owned(), why: "XID 79".to_owned() });
}

proptest! {
    #[test]
    fn nothing_is_granted_that_was_not_asked_for(
        asked in prop::collection::vec(0..6_u32, 0..6),
        sick in any::<u8>(),
    ) {
        let slice: Vec<_> = (0..4)
            .map(|minor| {
                let health = if sick >> minor & 1 == 1 { Health::Unhealthy("XID".to_owned()) } else { Health::Healthy };
                Device { health, ..gpu(minor, None) }
            })
            .collect();
        let names: Vec<_> = asked.iter().map(|minor| format!("GPU-{minor}")).collect();
        let distinct: BTreeSet<_> = asked.iter().copied().collect();
        let sound = !asked.is_empty()
            && distinct.len() == asked.len()
            && distinct.iter().all(|minor| *minor < 4 && sick >> minor & 1 == 0);
        match plain(&slice, &names) {
            Ok(answer) => {
                prop_assert!(sound);
                let nodes: BTreeSet<_> = answer.devices.into_iter().map(|spec| spec.host_path).collect();
                let expected: BTreeSet<_> = distinct
                    .iter()
                    .map(|minor| format!("/dev/nvidia{minor}"))
                    .chain(["/dev/nvidiactl".to_owned()])
                    .collect();
                prop_assert_eq!(nodes, expected);
            }
            Err(_) => prop_assert!(!sound),
        }
    }
}

/// As NVIDIA's plugin, which has one channel for everybody.
#[test]
fn a_channel_between_machines_comes_with_its_gpus() {
    let mut gpu = indexed(0);
    gpu.nodes = gpu.nodes.iter().cloned().chain(["/dev/nvidia-caps-imex-channels/channel0".into()]).collect();
    let listed = |strategy: &str| {
        answer(&format!("flags: {{plugin: {{deviceListStrategy: {strategy}}}}}"), std::slice::from_ref(&gpu))
    };
    let by_variable = listed("envvar");
    assert_eq!(envs(&by_variable)["NVIDIA_IMEX_CHANNELS"], "0");
    assert!(nodes(&by_variable).contains(&"/dev/nvidia-caps-imex-channels/channel0"));
    let by_mounts = listed("volume-mounts");
    assert!(!by_mounts.envs.contains_key("NVIDIA_IMEX_CHANNELS"));
    assert_eq!(by_mounts.mounts[1].container_path, "/var/run/nvidia-container-devices/imex/0");
    assert!(!plain(&[indexed(0)], &["GPU-0".to_owned()]).unwrap().envs.contains_key("NVIDIA_IMEX_CHANNELS"));
}
