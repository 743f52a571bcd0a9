//! Plugins against a stand-in kubelet: real gRPC over real sockets, and everything that can happen to either side.

#![allow(clippy::unwrap_used, reason = "every function here is part of a test")]

mod standin_kubelet;

use std::{collections::BTreeSet, future::Future, path::PathBuf, sync::Arc};

use spillway_device_plugin::{
    device::{Accelerator, Device, DeviceId, Health, Readings, ResourceName},
    inventory::{BackendState, Inventory},
    metrics::Metrics,
    plugins::{self, Neighbour, Offers},
    registration::{FolderError, KubeletFolder, Registrations},
    server::Shared,
};
use spillway_proto::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest,
    PreferredAllocationRequest,
};
use standin_kubelet::StandinKubelet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;

const GPU: &str = "nvidia.com/gpu";
const FPGA: &str = "fpga.intel.com/region-69528db6eb31577a8c3668f9faa081f6";

fn device(resource: &str, id: &str) -> Device {
    Device {
        id: DeviceId::new(id).unwrap(),
        resource: ResourceName::new(resource).unwrap(),
        health: Health::Healthy,
        nodes: [PathBuf::from(format!("/dev/{id}"))].into(),
        listed_in: (resource == GPU).then_some("NVIDIA_VISIBLE_DEVICES"),
        accelerator: Arc::new(Accelerator {
            numa_node: Some(1),
            ..Accelerator::new(DeviceId::new(id).unwrap())
        }),
        partition: None,
        replica: None,
    }
}

fn sick(resource: &str, id: &str) -> Device {
    Device { health: Health::Unhealthy("XID 79".to_owned()), ..device(resource, id) }
}

/// A folder as the kubelet has it, and an inventory to change.
struct Machine {
    folder: tempfile::TempDir,
    inventory: watch::Sender<Inventory>,
    registrations: watch::Sender<Registrations>,
    neighbours: watch::Sender<Vec<Neighbour>>,
    stop: CancellationToken,
}

impl Machine {
    fn with(devices: Vec<Device>) -> Self {
        let machine = Self {
            folder: tempfile::tempdir().unwrap(),
            inventory: watch::Sender::default(),
            registrations: watch::Sender::default(),
            neighbours: watch::Sender::default(),
            stop: CancellationToken::new(),
        };
        machine.set(devices);
        machine
    }

    fn set(&self, devices: Vec<Device>) {
        self.inventory.send_modify(|inventory| {
            *inventory = inventory.with("test", BackendState::Running, devices).0;
        });
    }

    /// Starts the plugins, as an agent does. They end when `stop` is cancelled, and at the latest with the future.
    fn plugins(&self) -> impl Future<Output = ()> {
        let folder = KubeletFolder::open(self.folder.path()).unwrap();
        plugins::run(
            folder,
            Shared {
                inventory: self.inventory.subscribe(),
                before_start: Vec::new(),
                configs: watch::channel(Arc::default()).1,
                metrics: Metrics::default(),
            },
            self.neighbours.subscribe(),
            self.registrations.clone(),
            self.stop.clone(),
        )
    }

    fn kubelet(&self) -> StandinKubelet {
        StandinKubelet::start(self.folder.path())
    }

    fn sockets(&self) -> BTreeSet<String> {
        std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("spillway-"))
            .collect()
    }

    /// Runs `scenario` beside the plugins; both must end.
    async fn run(&self, scenario: impl Future<Output = ()>) {
        let scenario = async {
            scenario.await;
            self.stop.cancel();
        };
        tokio::join!(self.plugins(), scenario);
        assert_eq!(self.sockets(), BTreeSet::new(), "a stopped agent leaves no socket");
    }
}

fn asking(ids: &[&str]) -> AllocateRequest {
    let device_ids = ids.iter().map(|id| (*id).to_owned()).collect();
    AllocateRequest { container_requests: vec![ContainerAllocateRequest { device_ids }] }
}

#[tokio::test]
async fn every_resource_is_registered_and_streamed() {
    let machine = Machine::with(vec![device(GPU, "GPU-0"), sick(GPU, "GPU-1"), device(FPGA, "port0")]);
    let kubelet = machine.kubelet();
    machine
        .run(async {
            let seen = kubelet.until("both resources", |seen| seen.lists.len() == 2).await;
            assert_eq!(seen.devices(GPU).unwrap(), [("GPU-0", "Healthy"), ("GPU-1", "Unhealthy")]);
            assert_eq!(seen.devices(FPGA).unwrap(), [("port0", "Healthy")]);
            let topology = seen.lists[GPU][0].topology.as_ref().unwrap();
            assert_eq!(topology.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [1]);
            let mut registrations = machine.registrations.subscribe();
            registrations.wait_for(|all| all.len() == 2 && all.values().all(Result::is_ok)).await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn health_and_hot_plug_reach_the_kubelet_on_the_same_stream() {
    let machine = Machine::with(vec![device(GPU, "GPU-0")]);
    let kubelet = machine.kubelet();
    machine
        .run(async {
            kubelet.until("the GPU", |seen| seen.devices(GPU).is_some()).await;
            machine.set(vec![sick(GPU, "GPU-0")]);
            kubelet.until("Unhealthy", |seen| seen.devices(GPU).unwrap() == [("GPU-0", "Unhealthy")]).await;
            machine.set(vec![device(GPU, "GPU-0"), device(GPU, "GPU-1")]);
            let both = [("GPU-0", "Healthy"), ("GPU-1", "Healthy")];
            kubelet.until("a second GPU", |seen| seen.devices(GPU).unwrap() == both).await;

            // What the kubelet can't see is not sent to it.
            let mut warmer = device(GPU, "GPU-0");
            Arc::make_mut(&mut warmer.accelerator).readings =
                Readings { temperature_celsius: Some(60), ..Readings::default() };
            machine.set(vec![warmer, device(GPU, "GPU-1")]);
            machine.set(vec![device(GPU, "GPU-1")]);
            let seen =
                kubelet.until("one gone", |seen| seen.devices(GPU).unwrap() == [("GPU-1", "Healthy")]).await;
            assert_eq!((seen.registrations[GPU], seen.received[GPU]), (1, 4));
        })
        .await;
}

#[tokio::test]
async fn a_resource_appears_and_vanishes_with_its_devices() {
    let machine = Machine::with(Vec::new());
    let kubelet = machine.kubelet();
    machine
        .run(async {
            machine.set(vec![device(FPGA, "port0")]);
            kubelet.until("the FPGA", |seen| seen.devices(FPGA).is_some()).await;
            machine.set(Vec::new());
            // The last list is empty, so that the node's capacity is zero at once; then the stream ends.
            kubelet.until("the end", |seen| seen.devices(FPGA).is_none() && seen.received[FPGA] == 2).await;
            machine.set(vec![device(FPGA, "port0")]);
            let seen = kubelet.until("the FPGA again", |seen| seen.devices(FPGA).is_some()).await;
            assert_eq!(seen.registrations[FPGA], 2);
        })
        .await;
}

#[tokio::test]
async fn the_kubelet_may_come_later_and_come_again() {
    let machine = Machine::with(vec![device(GPU, "GPU-0")]);
    machine
        .run(async {
            let mut registrations = machine.registrations.subscribe();
            let waits = |all: &Registrations| {
                all.values()
                    .any(|state| state.as_ref().is_err_and(|why| why.contains("the kubelet has not started")))
            };
            registrations.wait_for(waits).await.unwrap();
            let first = machine.kubelet();
            first.until("the GPU", |seen| seen.devices(GPU).is_some()).await;
            drop(first);
            // Killed: its socket is still there, but nobody listens.
            let refused = |all: &Registrations| {
                all.values().any(|state| state.as_ref().is_err_and(|why| why.contains("can't connect")))
            };
            registrations.wait_for(refused).await.unwrap();
            let second = machine.kubelet();
            second.until("the GPU again", |seen| seen.devices(GPU).is_some()).await;
        })
        .await;
}

#[tokio::test]
async fn a_new_kubelet_socket_is_registered_with() {
    let machine = Machine::with(vec![device(GPU, "GPU-0")]);
    let mut kubelet = machine.kubelet();
    machine
        .run(async {
            kubelet.until("the GPU", |seen| seen.devices(GPU).is_some()).await;
            // Without a socket, a kubelet still has the stream: health goes on reaching it.
            std::fs::remove_file(machine.folder.path().join("kubelet.sock")).unwrap();
            machine.set(vec![sick(GPU, "GPU-0")]);
            kubelet.until("Unhealthy", |seen| seen.devices(GPU).unwrap() == [("GPU-0", "Unhealthy")]).await;
            kubelet.recreate_socket();
            let again =
                |seen: &standin_kubelet::Seen| seen.registrations[GPU] == 2 && seen.devices(GPU).is_some();
            kubelet.until("a second registration", again).await;
        })
        .await;
}

#[tokio::test]
async fn a_deleted_socket_of_our_own_is_made_again() {
    let machine = Machine::with(vec![device(GPU, "GPU-0")]);
    let kubelet = machine.kubelet();
    machine
        .run(async {
            kubelet.until("the GPU", |seen| seen.devices(GPU).is_some()).await;
            let sockets = machine.sockets();
            assert_eq!(sockets.len(), 1);
            std::fs::remove_file(machine.folder.path().join(sockets.first().unwrap())).unwrap();
            let again =
                |seen: &standin_kubelet::Seen| seen.registrations[GPU] == 2 && seen.devices(GPU).is_some();
            kubelet.until("a second registration", again).await;
            assert_eq!(machine.sockets(), sockets);
        })
        .await;
}

#[tokio::test]
async fn a_dropped_stream_is_registered_again() {
    let machine = Machine::with(vec![device(GPU, "GPU-0"), device(FPGA, "port0")]);
    let kubelet = machine.kubelet();
    machine
        .run(async {
            kubelet.until("both", |seen| seen.lists.len() == 2).await;
            for round in 2..5 {
                kubelet.drop_stream(GPU);
                let again = |seen: &standin_kubelet::Seen| {
                    seen.registrations[GPU] == round && seen.devices(GPU).is_some()
                };
                kubelet.until("another registration", again).await;
            }
            let seen = kubelet.until("the other one", |seen| seen.devices(FPGA).is_some()).await;
            assert_eq!(seen.registrations[FPGA], 1, "one plugin's trouble is its own");
        })
        .await;
}

#[tokio::test]
async fn what_a_killed_agent_left_is_cleaned_and_two_never_serve() {
    let machine = Machine::with(vec![device(GPU, "GPU-0")]);
    let kubelet = machine.kubelet();
    // An agent that is killed: its future is dropped, so its socket stays.
    {
        let killed = machine.plugins();
        tokio::select! {
            () = killed => unreachable!("nothing stops it"),
            _ = kubelet.until("the GPU", |seen| seen.devices(GPU).is_some()) => {}
        }
    }
    kubelet.until("the end of its stream", |seen| seen.devices(GPU).is_none()).await;
    assert_eq!(machine.sockets().len(), 1);
    std::fs::write(machine.folder.path().join("spillway-old.example_device.sock"), "").unwrap();
    machine
        .run(async {
            kubelet.until("the GPU again", |seen| seen.devices(GPU).is_some()).await;
            assert_eq!(machine.sockets().len(), 1);
            let second = KubeletFolder::open(machine.folder.path()).unwrap_err();
            assert!(matches!(second, FolderError::Held(_)), "{second}");
            assert_eq!(machine.sockets().len(), 1, "the second agent has touched nothing");
        })
        .await;
}

#[tokio::test]
async fn allocation_grants_or_names_the_id() {
    let machine = Machine::with(vec![device(GPU, "GPU-0"), sick(GPU, "GPU-1"), device(FPGA, "port0")]);
    let kubelet = machine.kubelet();
    machine
        .run(async {
            kubelet.until("both", |seen| seen.lists.len() == 2).await;
            let mut gpus = kubelet.plugin(GPU);
            let granted = gpus.allocate(asking(&["GPU-0"])).await.unwrap().into_inner();
            let [container] = granted.container_responses.as_slice() else { panic!("{granted:?}") };
            assert_eq!(container.envs["NVIDIA_VISIBLE_DEVICES"], "GPU-0");
            assert_eq!(container.devices[0].host_path, "/dev/GPU-0");

            for (ids, code, named) in [
                (&["GPU-9"][..], Code::InvalidArgument, "GPU-9"),
                (&["port0"], Code::InvalidArgument, "port0"),
                (&["GPU-0", "GPU-0"], Code::InvalidArgument, "GPU-0"),
                (&["GPU-0", "GPU-1"], Code::FailedPrecondition, "GPU-1"),
                (&[], Code::InvalidArgument, "no device"),
            ] {
                let refused = gpus.allocate(asking(ids)).await.unwrap_err();
                assert_eq!(refused.code(), code, "{ids:?}: {refused}");
                assert!(refused.message().contains(named), "{ids:?}: {refused}");
            }

            for (size, expected) in [(1, vec!["GPU-0".to_owned()]), (-1, Vec::new()), (i32::MAX, Vec::new())]
            {
                let request = PreferredAllocationRequest {
                    container_requests: vec![ContainerPreferredAllocationRequest {
                        available_device_ids: vec!["GPU-0".to_owned()],
                        must_include_device_ids: Vec::new(),
                        allocation_size: size,
                    }],
                };
                let answer = gpus.get_preferred_allocation(request).await.unwrap().into_inner();
                assert_eq!(answer.container_responses[0].device_ids, expected);
            }
        })
        .await;
}

#[test]
fn a_folder_that_is_none_is_told_apart() {
    let missing = KubeletFolder::open("/nonexistent/device-plugins".as_ref()).unwrap_err();
    assert!(matches!(missing, FolderError::Missing(_)) && missing.to_string().contains("/nonexistent"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = KubeletFolder::open(file.path()).unwrap_err();
    assert!(matches!(file, FolderError::Unwritable { .. }), "{file}");
}

#[tokio::test]
async fn what_somebody_else_serves_is_left_alone_until_it_is_gone() {
    let machine = Machine::with(vec![device(GPU, "GPU-0"), device(FPGA, "port0")]);
    let theirs = Neighbour {
        name: "NVIDIA's device plugin (nvidia-gpu.sock)".to_owned(),
        offers: Offers::ListedIn("NVIDIA_VISIBLE_DEVICES"),
    };
    machine.neighbours.send_replace(vec![theirs.clone()]);
    let kubelet = machine.kubelet();
    machine
        .run(async {
            let gpu = ResourceName::new(GPU).unwrap();
            let mut registrations = machine.registrations.subscribe();
            let refused = |all: &Registrations| {
                all.get(&gpu).is_some_and(
                    |state| matches!(state, Err(why) if why.contains("NVIDIA's device plugin (nvidia-gpu.sock)")),
                )
            };
            registrations.wait_for(refused).await.unwrap();
            let seen = kubelet.until("the FPGA", |seen| seen.lists.contains_key(FPGA)).await;
            assert!(!seen.registrations.contains_key(GPU), "nobody is put out of the kubelet");

            machine.neighbours.send_replace(Vec::new());
            kubelet.until("the GPU", |seen| seen.lists.contains_key(GPU)).await;
            registrations.wait_for(|all| all.get(&gpu) == Some(&Ok(()))).await.unwrap();

            // It comes back, and gets the devices back.
            machine.neighbours.send_replace(vec![theirs.clone()]);
            registrations.wait_for(refused).await.unwrap();
            assert!(machine.sockets().iter().all(|name| !name.contains("nvidia")));
        })
        .await;
}
