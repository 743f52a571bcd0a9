use proptest::prelude::*;

use super::*;
use crate::inventory::tests::device;

fn ids(of: &[&str]) -> Vec<String> {
    of.iter().map(|id| (*id).to_owned()).collect()
}

fn gpu(minor: u32, numa_node: Option<u32>) -> Device {
    Device {
        nodes: vec![format!("/dev/nvidia{minor}").into(), "/dev/nvidiactl".into()],
        listed_in: Some("NVIDIA_VISIBLE_DEVICES"),
        ..device("nvidia.com/gpu", &format!("GPU-{minor}"), numa_node)
    }
}

#[test]
fn a_container_gets_its_nodes_and_the_shared_ones_once() {
    let slice = [gpu(0, None), gpu(1, None), gpu(2, None)];
    let answer = allocate(&slice, &ids(&["GPU-2", "GPU-0"])).unwrap();
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
        assert_eq!(allocate(&slice, &ids(asked)).unwrap_err(), error);
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
        match allocate(&slice, &names) {
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
