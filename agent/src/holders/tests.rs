use std::fs;

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use proptest::prelude::*;
use spillway_device_plugin::{
    device::{Accelerator, Device, Health},
    inventory::BackendState,
};
use spillway_proto::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
    PodResources,
    pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer},
};
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinSet};
use tonic::{Request, Response, Status};

use super::*;

/// Recorded on the test cluster from a kubelet of Kubernetes 1.35.4: a pod with an init container, a static pod, a pod with an FPGA.
const RECORDED: &[u8] = include_bytes!("tests/kubelet_internal_checkpoint-1.35.json");

fn holding(pod: (&str, Option<(&str, &str)>), container: &str, resource: &str, devices: &[&str]) -> Holding {
    Holding {
        pod: PodRef {
            uid: pod.0.to_owned(),
            namespace: pod.1.map(|(namespace, _)| namespace.to_owned()),
            name: pod.1.map(|(_, name)| name.to_owned()),
        },
        container: container.to_owned(),
        resource: ResourceName::new(resource).unwrap(),
        devices: devices.iter().map(|id| DeviceId::new(*id).unwrap()).collect(),
    }
}

/// A checkpoint with these entries, as Go would write it.
fn checkpoint(entries: &[(&str, &str, &str, &[&str])]) -> String {
    let entries: Vec<_> = entries
        .iter()
        .map(|(uid, container, resource, ids)| {
            serde_json::json!({
                "PodUID": uid, "ContainerName": container, "ResourceName": resource,
                "DeviceIDs": {"0": ids}, "AllocResp": "CgA=",
            })
        })
        .collect();
    serde_json::json!({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 1})
        .to_string()
}

/// A kubelet's files, and its pod resources API with these pods.
struct Machine {
    folder: TempDir,
    api: JoinSet<()>,
    pods: watch::Sender<Vec<PodResources>>,
}

#[derive(Clone)]
struct Api(watch::Sender<Vec<PodResources>>);

#[tonic::async_trait]
impl PodResourcesLister for Api {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        Ok(Response::new(ListPodResourcesResponse { pod_resources: self.0.borrow().clone() }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get(
        &self,
        _: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

impl Machine {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for name in ["device-plugins", "pod-logs"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder, api: JoinSet::new(), pods: watch::Sender::new(Vec::new()) }
    }

    fn serve(&mut self) {
        let listener = UnixListener::bind(self.paths().pod_resources).unwrap();
        let service = TowerToHyperService::new(PodResourcesListerServer::new(Api(self.pods.clone())));
        self.api.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    }

    fn paths(&self) -> Paths {
        let at = |name: &str| self.folder.path().join(name);
        Paths {
            device_plugins: at("device-plugins"),
            pod_resources: at("pod-resources.sock"),
            pod_logs: at("pod-logs"),
        }
    }

    fn reader(&self) -> HoldersReader {
        HoldersReader::new(self.paths())
    }

    /// Replaces the checkpoint as the kubelet does.
    fn write(&self, text: &str) {
        let fresh = self.paths().device_plugins.join(".fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.paths().checkpoint()).unwrap();
    }

    fn log_folder(&self, name: &str) {
        fs::create_dir(self.paths().pod_logs.join(name)).unwrap();
    }

    fn list(&self, pods: &[(&str, &str, &str, &[&str])]) {
        let pods = pods.iter().map(|(name, container, resource, ids)| PodResources {
            name: (*name).to_owned(),
            namespace: "default".to_owned(),
            containers: vec![ContainerResources {
                name: (*container).to_owned(),
                // One entry for each NUMA node.
                devices: ids
                    .iter()
                    .map(|id| ContainerDevices {
                        resource_name: (*resource).to_owned(),
                        device_ids: vec![(*id).to_owned()],
                        topology: None,
                    })
                    .collect(),
                ..ContainerResources::default()
            }],
        });
        self.pods.send_replace(pods.collect());
    }
}

async fn until(
    holders: &watch::Sender<Holders>,
    what: &str,
    condition: impl FnMut(&Holders) -> bool,
) -> Holders {
    let mut seen = holders.subscribe();
    let waited = timeout(Duration::from_secs(20), seen.wait_for(condition)).await;
    waited.unwrap_or_else(|_| panic!("never saw {what}; last: {:?}", holders.borrow())).unwrap().clone()
}

#[test]
fn a_recorded_checkpoint_is_understood() {
    let gpu = |n: u32| format!("GPU-57a4d100-0000-4000-8000-{n:012}");
    let (init, fixed, port) =
        ("3cf197f2-d979-44d7-8edd-9229db5bc9af", "afc3cd3256489053d5b35fa89af7eef4", "0000:5e:00.0-port0");
    let region = "fpga.intel.com/region-57a4d100000000000000000000000001";
    // The init container's GPU is the main container's as well; the static pod has the hash.
    let expected = [
        holding((init, None), "main", "nvidia.com/gpu", &[&gpu(0)]),
        holding((init, None), "prepare", "nvidia.com/gpu", &[&gpu(0)]),
        holding(("7ceb808e-4973-4eeb-9f80-aa9fc8af4b6a", None), "main", region, &[port]),
        holding((fixed, None), "main", "nvidia.com/gpu", &[&gpu(1)]),
    ];
    assert_eq!(checkpoint::parse(RECORDED).unwrap().holdings, expected);
}

#[test]
fn what_is_no_checkpoint_is_refused_with_its_place() {
    for (text, part) in [
        ("", "EOF"),
        ("{}", "Data"),
        (r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":null}}"#, "Checksum"),
        (r#"{"Data":{"PodDeviceEntries":[{"PodUID":"a"}]},"Checksum":1}"#, "ContainerName"),
        (&checkpoint(&[("../../etc", "main", "nvidia.com/gpu", &["GPU-0"])]), "../../etc"),
        (&checkpoint(&[("a/b", "main", "nvidia.com/gpu", &["GPU-0"])]), "a/b"),
        (&checkpoint(&[("u1", "main\n", "nvidia.com/gpu", &["GPU-0"])]), "main"),
        ("[[[[", "line 1"),
    ] {
        let error = checkpoint::parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn other_plugins_ids_and_empty_entries_are_left_out() {
    let text = checkpoint(&[
        ("u1", "main", "nvidia.com/gpu", &["GPU-1", "GPU-0"]),
        ("u1", "main", "example.com/disk", &["/dev/sda", "disk-1"]),
        ("u2", "main", "example.com/disk", &["/dev/sdb"]),
        ("u3", "main", "not a resource", &["x"]),
        ("u4", "main", "nvidia.com/gpu", &[]),
    ]);
    let expected = [
        holding(("u1", None), "main", "example.com/disk", &["disk-1"]),
        holding(("u1", None), "main", "nvidia.com/gpu", &["GPU-0", "GPU-1"]),
    ];
    assert_eq!(checkpoint::parse(text.as_bytes()).unwrap().holdings, expected);
    let nothing = r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":7}"#;
    assert_eq!(checkpoint::parse(nothing.as_bytes()).unwrap(), Holders::default());
    let null = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"a.com/b","DeviceIDs":null,"AllocResp":null},
        {"PodUID":"u","ContainerName":"c","ResourceName":"a.com/b","DeviceIDs":{"-1":null},"AllocResp":null}]},"Checksum":7}"#;
    assert_eq!(checkpoint::parse(null.as_bytes()).unwrap(), Holders::default());
}

proptest! {
    #[test]
    fn no_bytes_upset_the_parser(cut in 0..RECORDED.len(), at in 0..RECORDED.len(), byte: u8) {
        let mut bytes = RECORDED.to_vec();
        bytes[at] = byte;
        bytes.truncate(cut.max(1));
        if let Ok(holders) = checkpoint::parse(&bytes) {
            prop_assert!(holders.holdings.iter().all(|holding| is_uid(&holding.pod.uid)));
        }
    }

    #[test]
    fn no_name_of_a_folder_upsets_the_parser(name in ".{0,40}", parts in proptest::array::uniform3("[a-z0-9-]{1,9}")) {
        if let Some((uid, (namespace, pod))) = pod_logs::parse(&name) {
            prop_assert_eq!(format!("{namespace}_{pod}_{uid}"), name);
        }
        let [namespace, pod, uid] = parts;
        let parsed = pod_logs::parse(&format!("{namespace}_{pod}_{uid}"));
        prop_assert_eq!(parsed, Some((uid, (namespace, pod))));
    }
}

#[tokio::test]
async fn names_come_from_log_folders() {
    let machine = Machine::new();
    machine.write(&checkpoint(&[
        ("u1", "main", "nvidia.com/gpu", &["GPU-0"]),
        ("u2", "main", "nvidia.com/gpu", &["GPU-1"]),
    ]));
    machine.log_folder("default_train_u1");
    machine.log_folder("lost+found");
    let expected = [
        holding(("u1", Some(("default", "train"))), "main", "nvidia.com/gpu", &["GPU-0"]),
        holding(("u2", None), "main", "nvidia.com/gpu", &["GPU-1"]),
    ];
    assert_eq!(machine.reader().look().await.unwrap().holdings, expected);
}

#[tokio::test]
async fn a_lost_checkpoint_is_told_from_an_unreadable_and_a_strange_one() {
    let machine = Machine::new();
    let reader = machine.reader();
    assert!(matches!(reader.look().await, Err(HoldersError::Missing(_))));
    fs::create_dir(machine.paths().checkpoint()).unwrap();
    assert!(matches!(reader.look().await, Err(HoldersError::Read { .. })));
    fs::remove_dir(machine.paths().checkpoint()).unwrap();
    machine.write("{}");
    let error = reader.look().await.unwrap_err().to_string();
    assert!(error.contains("Data") && error.contains("pod-resources.sock"), "{error}");
    let file = fs::File::create(machine.paths().checkpoint()).unwrap();
    file.set_len(CHECKPOINT_LIMIT + 1).unwrap();
    assert!(matches!(reader.look().await, Err(HoldersError::Read { .. })));
}

#[tokio::test]
async fn a_strange_checkpoint_is_replaced_by_pod_resources_without_guessing() {
    let mut machine = Machine::new();
    machine.write(r#"{"v2": true}"#);
    machine.serve();
    machine.list(&[
        ("train", "main", "nvidia.com/gpu", &["GPU-0", "GPU-1"]),
        ("db-0", "main", "nvidia.com/gpu", &["GPU-2"]),
        ("new", "main", "nvidia.com/gpu", &["GPU-3"]),
    ]);
    machine.log_folder("default_train_u1");
    machine.log_folder("default_db-0_old");
    machine.log_folder("default_db-0_new");
    let expected =
        [holding(("u1", Some(("default", "train"))), "main", "nvidia.com/gpu", &["GPU-0", "GPU-1"])];
    assert_eq!(machine.reader().look().await.unwrap().holdings, expected);
}

#[tokio::test]
async fn changes_are_followed_and_a_lost_list_takes_nothing_away() {
    let mut machine = Machine::new();
    machine.serve();
    let following = Following::default();
    let holders = following.all.clone();
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    machine.write(&checkpoint(&[("u1", "main", "nvidia.com/gpu", &["GPU-0"])]));
    machine.list(&[("train", "main", "nvidia.com/gpu", &["GPU-0"])]);
    tasks.spawn(run(machine.reader(), following.clone(), stop.clone()));

    let named = |holders: &Holders, name: &str| {
        holders.holdings.iter().any(|holding| holding.pod.to_string() == format!("default/{name}"))
    };
    until(&holders, "a name from PodResources", |holders| named(holders, "train")).await;
    machine.write(&checkpoint(&[
        ("u1", "main", "nvidia.com/gpu", &["GPU-0"]),
        ("u2", "main", "nvidia.com/gpu", &["GPU-1"]),
    ]));
    until(&holders, "the second pod", |holders| holders.holdings.len() == 2).await;
    machine.log_folder("default_next_u2");
    let both = until(&holders, "its name", |holders| named(holders, "next")).await;

    fs::remove_file(machine.paths().checkpoint()).unwrap();
    machine.log_folder("default_other_u3");
    tokio::time::sleep(SETTLE * 3).await;
    assert_eq!(*holders.borrow(), both);
    let mut active = following.active.subscribe();
    let listed = |active: &Option<Holders>| {
        active.as_ref().is_some_and(|active| active.holdings.len() == 1 && named(active, "train"))
    };
    timeout(Duration::from_secs(20), active.wait_for(listed)).await.unwrap().unwrap();
    machine.write(&checkpoint(&[]));
    until(&holders, "nothing held", |holders| holders.holdings.is_empty()).await;
    stop.cancel();
    tasks.join_all().await;
}

#[test]
fn disagreement_is_told_once_and_only_when_it_lasts() {
    let listed = |name: &str, device: &str| pod_resources::Listed {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        container: "main".to_owned(),
        resource: ResourceName::new("nvidia.com/gpu").unwrap(),
        devices: BTreeSet::from([DeviceId::new(device).unwrap()]),
    };
    let holders = Holders {
        holdings: vec![
            holding(("u1", Some(("default", "train"))), "main", "nvidia.com/gpu", &["GPU-0"]),
            holding(("u2", Some(("default", "dead"))), "main", "nvidia.com/gpu", &["GPU-1"]),
            holding(("u3", Some(("default", "train"))), "init", "nvidia.com/gpu", &["GPU-0"]),
        ],
    };
    assert_eq!(compare::missing(&holders, &[]), BTreeSet::new());
    assert_eq!(compare::missing(&holders, &[listed("train", "GPU-0")]), BTreeSet::new());
    let stranger = listed("stranger", "GPU-1");
    let missing = compare::missing(&holders, &[listed("train", "GPU-0"), stranger.clone()]);
    assert_eq!(missing, BTreeSet::from([stranger]));

    let now = Instant::now();
    let mut comparison = Comparison::default();
    assert!(comparison.is_due(now));
    assert_eq!(comparison.news(missing.clone(), now), Vec::<String>::new());
    let soon = comparison.due_in(now);
    let told = ["container main of pod default/stranger has nvidia.com/gpu GPU-1"];
    assert_eq!(comparison.news(missing.clone(), now), told);
    assert!(comparison.due_in(now) > soon);
    assert_eq!(comparison.news(missing.clone(), now), Vec::<String>::new());
    comparison.news(BTreeSet::new(), now);
    comparison.news(missing.clone(), now);
    assert_eq!(comparison.news(missing, now), told);
}

#[test]
fn what_ended_pods_have_on_record_is_not_held() {
    let pod = |name: &'static str| ("u", Some(("default", name)));
    let running = holding(pod("running"), "main", "nvidia.com/gpu", &["GPU-0"]);
    let its_init = holding(pod("running"), "prepare", "nvidia.com/gpu", &["GPU-0"]);
    let only_init = holding(pod("init"), "prepare", "nvidia.com/gpu", &["GPU-1"]);
    let ended = holding(pod("ended"), "main", "nvidia.com/gpu", &["GPU-2"]);
    let gone = holding(pod("gone"), "main", "nvidia.com/gpu", &["GPU-3"]);
    let nameless = holding(("u", None), "main", "nvidia.com/gpu", &["GPU-4"]);
    let all = [&running, &its_init, &only_init, &ended, &gone, &nameless];
    let holders = Holders { holdings: all.into_iter().cloned().collect() };
    let listed = |name: &str, devices: &[&str]| PodResources {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        containers: vec![ContainerResources {
            name: "main".to_owned(),
            devices: devices
                .iter()
                .map(|id| ContainerDevices {
                    resource_name: "nvidia.com/gpu".to_owned(),
                    device_ids: vec![(*id).to_owned()],
                    topology: None,
                })
                .collect(),
            ..ContainerResources::default()
        }],
    };
    let listing =
        pod_resources::listed(vec![listed("running", &["GPU-0"]), listed("init", &[]), listed("ended", &[])]);
    assert_eq!(compare::active(&holders, &listing).holdings, [running, only_init, nameless]);
}

#[test]
fn what_a_single_list_lacks_has_not_ended() {
    let pod = |uid: &'static str, name: &'static str, gpu: &'static str| {
        holding((uid, Some(("default", name))), "main", "nvidia.com/gpu", &[gpu])
    };
    let (steady, other) = (pod("u1", "steady", "GPU-0"), pod("u2", "other", "GPU-1"));
    let all = Holders { holdings: vec![steady.clone(), other.clone()] };
    let list = |names: &[(&str, &str)]| {
        let listed = names.iter().map(|(name, gpu)| PodResources {
            name: (*name).to_owned(),
            namespace: "default".to_owned(),
            containers: vec![ContainerResources {
                name: "main".to_owned(),
                devices: vec![ContainerDevices {
                    resource_name: "nvidia.com/gpu".to_owned(),
                    device_ids: vec![(*gpu).to_owned()],
                    topology: None,
                }],
                ..ContainerResources::default()
            }],
        });
        pod_resources::listed(listed.collect())
    };
    let now = Instant::now();
    let mut comparison = Comparison::default();
    let both = list(&[("steady", "GPU-0"), ("other", "GPU-1")]);
    assert_eq!(comparison.held(&all, &both, now), all);
    // A kubelet that has just started knows the first of its pods.
    let first = list(&[("other", "GPU-1")]);
    let doubted = comparison.held(&all, &first, now);
    assert!(doubted.holdings.contains(&steady) && doubted.holdings.len() == 2);
    assert_eq!(comparison.due_in(now), Duration::from_secs(3));
    assert_eq!(comparison.held(&all, &both, now), all);
    // One that has ended is not listed any more, nor the next time.
    comparison.held(&all, &first, now);
    assert_eq!(comparison.held(&all, &first, now).holdings, std::slice::from_ref(&other));
    // What the checkpoint has forgotten is gone at once.
    let checkpoint = Holders { holdings: vec![steady] };
    assert_eq!(comparison.held(&checkpoint, &list(&[("nobody", "GPU-7")]), now), Holders::default());
}

#[test]
fn a_pod_is_named_only_when_there_is_no_doubt() {
    let listed = pod_resources::Listed {
        namespace: "default".to_owned(),
        name: "db-0".to_owned(),
        container: "main".to_owned(),
        resource: ResourceName::new("nvidia.com/gpu").unwrap(),
        devices: BTreeSet::from([DeviceId::new("GPU-0").unwrap()]),
    };
    let one = holding(("u1", None), "main", "nvidia.com/gpu", &["GPU-0"]);
    let other = holding(("u2", None), "main", "nvidia.com/gpu", &["GPU-0"]);
    let names = |holdings: &[&Holding]| {
        let holders = Holders { holdings: holdings.iter().copied().cloned().collect() };
        compare::names(&holders, std::slice::from_ref(&listed))
    };
    let expected = BTreeMap::from([("u1".to_owned(), ("default".to_owned(), "db-0".to_owned()))]);
    assert_eq!(names(&[&one]), expected);
    assert_eq!(names(&[&one, &other]), BTreeMap::new());
    let dead = holding(("u2", Some(("default", "other"))), "main", "nvidia.com/gpu", &["GPU-0"]);
    assert_eq!(names(&[&one, &dead]), expected);
}

#[test]
fn what_somebody_has_by_another_name_is_not_free_and_who_has_no_name_has_ended() {
    let id = |id: &str| DeviceId::new(id).unwrap();
    let gpus = ["GPU-0", "GPU-1"].map(|gpu| Device {
        id: id(gpu),
        resource: ResourceName::new("nvidia.com/gpu").unwrap(),
        health: Health::Healthy,
        nodes: [].into(),
        listed_in: None,
        accelerator: Arc::new(Accelerator::new(id(gpu))),
        partition: None,
        replica: None,
    });
    let (offered, _) = Inventory::default().with("nvml", BackendState::Running, gpus.to_vec());
    let inventory = watch::Sender::new(offered);
    let seen = inventory.subscribe();
    let tell = |pod: Option<(&str, &str)>, device: Option<&str>| {
        let holdings = device.map(|device| holding(("u1", pod), "main", "nvidia.com/gpu", &[device]));
        Holders { holdings: holdings.into_iter().collect() }.tell(&inventory);
        let shape = crate::shape::annotation(&inventory.borrow(), &Holders::default());
        (seen.has_changed().unwrap(), shape)
    };
    let pod = Some(("default", "shares"));
    // As the kubelet knows it: its own accounts have it.
    assert!(!tell(pod, Some("GPU-0")).0, "a pod that makes no difference is no news");
    assert!(!tell(None, Some("GPU-0::1")).0);
    // A share, from when it was shared.
    let (news, shape) = tell(pod, Some("GPU-0::1"));
    assert!(news && shape.contains(r#""node":1"#), "{shape}");
    let (_, shape) = tell(pod, None);
    assert!(shape.contains(r#""node":2"#), "{shape}");
}
