//! Provider `none`: runs nothing and calls every pod running. For trying the node without a runtime, for scale tests, and as the
//! smallest example of a provider that is given whole pods.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, Ipv4Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};

use super::{
    ProviderError, Stats, Version,
    observed::{Container, Exit, ObservedPod, PodRef, Sandbox, State},
    service::PodService,
    usage::{ContainerUsage, Cpu, GroupUsage, MachineUsage, Memory, PodUsage, Usage},
};

/// Addresses are made up from 198.18.0.0/15, which RFC 2544 sets aside for tests: nothing answers there, and nothing else is there.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const ADDRESSES: u32 = (1 << 17) - 2;

/// Remembers what it was asked to run. After a restart it remembers nothing and is asked again.
#[derive(Debug)]
pub struct None {
    pods: Mutex<Inner>,
    /// When it began.
    since: Timestamp,
}

#[derive(Debug, Default)]
struct Inner {
    pods: HashMap<Box<str>, Remembered>,
    addresses: HashSet<IpAddr>,
}

/// What [`ObservedPod`] follows from, in a tenth of its memory.
#[derive(Debug)]
struct Remembered {
    namespace: Box<str>,
    name: Box<str>,
    address: IpAddr,
    since: Timestamp,
    containers: Box<[Claimed]>,
}

/// A container that is said to run, or to have run.
#[derive(Debug)]
struct Claimed {
    name: Box<str>,
    image: Box<str>,
    runs: bool,
}

impl Default for None {
    fn default() -> Self {
        Self { pods: Mutex::default(), since: Timestamp::now() }
    }
}

impl None {
    /// Nothing runs yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl PodService for None {
    fn name(&self) -> &'static str {
        "none"
    }

    async fn version(&self) -> Result<Version, ProviderError> {
        Ok(Version { name: "none".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
    }

    async fn ping(&self) -> Result<(), ProviderError> {
        Ok(())
    }

    fn refuses(&self, _: &Pod) -> Option<String> {
        // What asks for nothing to be done can't ask for too much.
        Option::None
    }

    async fn create(&self, pod: &Pod) -> Result<(), ProviderError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut state = self.lock();
        if !state.pods.contains_key(uid) {
            let address = address_in_status(pod).unwrap_or_else(|| state.new_address(uid));
            state.addresses.insert(address);
            state.pods.insert(uid.into(), Remembered::new(pod, address));
        }
        Ok(())
    }

    async fn delete(&self, pod: &PodRef, _: u64) -> Result<(), ProviderError> {
        let mut state = self.lock();
        if let Some(removed) = state.pods.remove(&*pod.uid) {
            state.addresses.remove(&removed.address);
        }
        Ok(())
    }

    async fn list(&self) -> Result<BTreeMap<PodRef, ObservedPod>, ProviderError> {
        Ok(self.lock().pods.iter().map(|(uid, pod)| (pod.reference(uid), pod.observed(uid))).collect())
    }

    async fn observe(&self, pod: &PodRef) -> Result<ObservedPod, ProviderError> {
        Ok(self.lock().pods.get(&*pod.uid).map(|found| found.observed(&pod.uid)).unwrap_or_default())
    }

    fn tells_everything(&self) -> bool {
        true
    }

    fn runs_processes(&self) -> bool {
        false
    }

    async fn changes(&self) -> Result<Option<BoxStream<'static, String>>, ProviderError> {
        // Nothing ever changes but by create and delete, whose caller knows.
        Ok(Some(Box::pin(futures::stream::pending())))
    }

    fn stats(&self) -> Option<&dyn Stats> {
        Some(self)
    }
}

/// What runs nothing uses nothing.
#[async_trait]
impl Stats for None {
    async fn usage(&self) -> Result<Usage, ProviderError> {
        let nothing = GroupUsage {
            time: Timestamp::now(),
            cpu: Some(Cpu::default()),
            memory: Some(Memory::default()),
            ..GroupUsage::default()
        };
        let mut pods: Vec<PodUsage> =
            self.lock().pods.iter().map(|(uid, pod)| pod.usage(uid, &nothing)).collect();
        pods.sort_by(|one, other| one.pod.uid.cmp(&other.pod.uid));
        let machine = MachineUsage { booted_at: self.since, total: nothing, ..MachineUsage::default() };
        Ok(Usage { machine, pods, problems: Vec::new() })
    }
}

impl Inner {
    /// One that no other pod here has. It begins at a place of the pod's own: what pods of other nodes have, or pods that another process before
    /// this one was asked for, is not known.
    fn new_address(&self, uid: &str) -> IpAddr {
        let mut hasher = DefaultHasher::new();
        uid.hash(&mut hasher);
        let place = u32::try_from(hasher.finish() % u64::from(ADDRESSES)).unwrap_or(0);
        let at = |offset: u32| IpAddr::V4((u32::from(FIRST_ADDRESS) + offset % ADDRESSES).into());
        // With more pods than addresses, some share one.
        (place..place + ADDRESSES)
            .map(at)
            .find(|address| !self.addresses.contains(address))
            .unwrap_or(at(place))
    }
}

/// From before a restart of ours: an address that clients have seen doesn't change.
fn address_in_status(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

impl Remembered {
    fn new(pod: &Pod, address: IpAddr) -> Self {
        let boxed = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        let claimed = |spec: &ContainerSpec, runs| Claimed {
            name: spec.name.as_str().into(),
            image: boxed(&spec.image),
            runs,
        };
        let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let init = init.map(|spec| claimed(spec, spec.restart_policy.as_deref() == Some("Always")));
        let main = pod.spec.iter().flat_map(|spec| &spec.containers).map(|spec| claimed(spec, true));
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        Self {
            namespace: boxed(&pod.metadata.namespace),
            name: boxed(&pod.metadata.name),
            address,
            since: started.map_or_else(Timestamp::now, |time| time.0),
            containers: init.chain(main).collect(),
        }
    }

    fn reference(&self, uid: &str) -> PodRef {
        PodRef { uid: uid.to_owned(), namespace: self.namespace.to_string(), name: self.name.to_string() }
    }

    fn observed(&self, uid: &str) -> ObservedPod {
        let sandbox = Sandbox {
            id: uid.to_owned(),
            attempt: 0,
            ready: true,
            created_at: self.since,
            ips: vec![self.address],
            runtime_handler: String::new(),
        };
        let container = |claimed: &Claimed| Container {
            id: format!("{uid}-{}", claimed.name),
            sandbox_id: uid.to_owned(),
            name: claimed.name.to_string(),
            attempt: 0,
            state: if claimed.runs { State::Running { started_at: self.since } } else { self.ended() },
            image: claimed.image.to_string(),
            image_id: String::new(),
            asked_image: None,
            user: Option::None,
            resources: Option::None,
        };
        ObservedPod { sandboxes: vec![sandbox], containers: self.containers.iter().map(container).collect() }
    }

    fn usage(&self, uid: &str, nothing: &GroupUsage) -> PodUsage {
        let container = |claimed: &Claimed| ContainerUsage {
            id: format!("{uid}-{}", claimed.name),
            name: claimed.name.to_string(),
            image: claimed.image.to_string(),
            created_at: self.since,
            total: nothing.clone(),
            ..ContainerUsage::default()
        };
        PodUsage {
            pod: self.reference(uid),
            sandbox_id: uid.to_owned(),
            created_at: self.since,
            total: nothing.clone(),
            containers: self.containers.iter().filter(|claimed| claimed.runs).map(container).collect(),
            ..PodUsage::default()
        }
    }

    fn ended(&self) -> State {
        State::Exited(Exit {
            code: 0,
            reason: "Completed".to_owned(),
            message: String::new(),
            started_at: Some(self.since),
            finished_at: Some(self.since),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reference(pod: &Pod) -> PodRef {
        let text = |field: &Option<String>| field.clone().unwrap();
        let metadata = &pod.metadata;
        PodRef { uid: text(&metadata.uid), namespace: text(&metadata.namespace), name: text(&metadata.name) }
    }

    #[tokio::test]
    async fn a_pod_runs_from_create_to_delete_and_keeps_its_address_over_a_restart() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": { "uid": "u1", "namespace": "default", "name": "web" },
            "spec": {
                "initContainers": [{ "name": "setup" }, { "name": "proxy", "restartPolicy": "Always" }],
                "containers": [{ "name": "web", "image": "nginx" }],
            },
        }))
        .unwrap();
        let provider = None::new();
        provider.create(&pod).await.unwrap();
        provider.create(&pod).await.unwrap();
        let listed = provider.list().await.unwrap();
        let observed = &listed[&reference(&pod)];
        assert_eq!(listed.len(), 1, "creating again is no second pod");
        assert_eq!(provider.observe(&reference(&pod)).await.unwrap(), *observed);
        assert_eq!(observed.container("setup").unwrap().exit().unwrap().code, 0);
        assert!(observed.container("proxy").unwrap().is_running());
        assert!(observed.container("web").unwrap().is_running());
        let usage = provider.stats().unwrap().usage().await.unwrap();
        let names: Vec<_> = usage.pods[0].containers.iter().map(|container| &*container.name).collect();
        assert_eq!((usage.pods.len(), names), (1, vec!["proxy", "web"]), "what runs, and no more");
        let first = observed.sandbox().unwrap().ips[0];
        assert!(first.to_string().starts_with("198.1"), "{first}");

        pod.status = serde_json::from_value(json!({ "podIP": "198.18.0.7" })).unwrap();
        let restarted = None::new();
        restarted.create(&pod).await.unwrap();
        let observed = &restarted.list().await.unwrap()[&reference(&pod)];
        assert_eq!(observed.sandbox().unwrap().ips, ["198.18.0.7".parse::<IpAddr>().unwrap()]);

        restarted.delete(&reference(&pod), 30).await.unwrap();
        assert!(restarted.list().await.unwrap().is_empty());
        assert!(restarted.observe(&reference(&pod)).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn no_two_pods_have_one_address_also_after_another_process_took_over() {
        let pods: Vec<Pod> = (0..3000)
            .map(|n| {
                let metadata =
                    json!({ "uid": format!("u{n}"), "namespace": "default", "name": format!("p{n}") });
                serde_json::from_value(
                    json!({ "metadata": metadata, "spec": { "containers": [{ "name": "main" }] } }),
                )
                .unwrap()
            })
            .collect();
        let provider = None::new();
        let address =
            |listed: &BTreeMap<PodRef, ObservedPod>, pod| listed[&reference(pod)].sandbox().unwrap().ips[0];
        for pod in &pods {
            provider.create(pod).await.unwrap();
        }
        let listed = provider.list().await.unwrap();
        let distinct: HashSet<_> = pods.iter().map(|pod| address(&listed, pod)).collect();
        assert_eq!(distinct.len(), pods.len());

        // The next process is asked for a new pod before those that have an address.
        let next = None::new();
        let (new, old) = (&pods[0], &pods[1]);
        next.create(new).await.unwrap();
        let mut adopted = old.clone();
        adopted.status =
            serde_json::from_value(json!({ "podIP": address(&listed, old).to_string() })).unwrap();
        next.create(&adopted).await.unwrap();
        let taken_over = next.list().await.unwrap();
        assert_ne!(address(&taken_over, new), address(&taken_over, old));
        for pod in [new, old] {
            next.delete(&reference(pod), 0).await.unwrap();
        }
        assert!(next.lock().addresses.is_empty());
    }
}
