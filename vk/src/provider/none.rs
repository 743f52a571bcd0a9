//! Provider `none`: runs nothing and calls every pod running. For trying the node without a runtime, for scale tests, and as the
//! smallest example of a provider that is given whole pods.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, Ipv4Addr},
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};

use super::{
    ProviderError, Version,
    observed::{Container, Exit, ObservedPod, PodRef, Sandbox, State},
    service::PodService,
};

/// Addresses are made up from 198.18.0.0/15, which RFC 2544 sets aside for tests: nothing answers there, and nothing else is there.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const ADDRESSES: u32 = (1 << 17) - 2;

/// Remembers what it was asked to run. After a restart it remembers nothing and is asked again.
#[derive(Debug, Default)]
pub struct None(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pods: BTreeMap<PodRef, ObservedPod>,
    addresses: HashSet<IpAddr>,
}

impl None {
    /// Nothing runs yet.
    pub fn new() -> Self {
        Self::default()
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
        let reference = reference(pod);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.pods.contains_key(&reference) {
            let address = address_in_status(pod).unwrap_or_else(|| state.new_address(&reference.uid));
            state.addresses.insert(address);
            let observed = observed(pod, &reference, address);
            state.pods.insert(reference, observed);
        }
        Ok(())
    }

    async fn delete(&self, pod: &PodRef, _: u64) -> Result<(), ProviderError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = state.pods.remove(pod);
        for address in removed.iter().flat_map(|removed| &removed.sandboxes).flat_map(|sandbox| &sandbox.ips)
        {
            state.addresses.remove(address);
        }
        Ok(())
    }

    async fn list(&self) -> Result<BTreeMap<PodRef, ObservedPod>, ProviderError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).pods.clone())
    }

    async fn observe(&self, pod: &PodRef) -> Result<ObservedPod, ProviderError> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(state.pods.get(pod).cloned().unwrap_or_default())
    }

    async fn changes(&self) -> Result<Option<BoxStream<'static, String>>, ProviderError> {
        // Nothing ever changes but by create and delete, whose caller knows.
        Ok(Some(Box::pin(futures::stream::pending())))
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

fn reference(pod: &Pod) -> PodRef {
    let metadata = &pod.metadata;
    PodRef {
        uid: metadata.uid.clone().unwrap_or_default(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// From before a restart of ours: an address that clients have seen doesn't change.
fn address_in_status(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

fn observed(pod: &Pod, reference: &PodRef, address: IpAddr) -> ObservedPod {
    let started_at = pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref())
        .map_or_else(Timestamp::now, |time| time.0);
    let sandbox = Sandbox {
        id: reference.uid.clone(),
        attempt: 0,
        ready: true,
        created_at: started_at,
        ips: vec![address],
    };
    let container = |spec: &ContainerSpec, state| Container {
        id: format!("{}-{}", reference.uid, spec.name),
        sandbox_id: reference.uid.clone(),
        name: spec.name.clone(),
        attempt: 0,
        state,
        image: spec.image.clone().unwrap_or_default(),
        image_id: String::new(),
        user: Option::None,
        resources: Option::None,
    };
    let running = || State::Running { started_at };
    let ended = || {
        State::Exited(Exit {
            code: 0,
            reason: "Completed".to_owned(),
            message: String::new(),
            started_at: Some(started_at),
            finished_at: Some(started_at),
        })
    };
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let init = init.map(|spec| {
        let is_sidecar = spec.restart_policy.as_deref() == Some("Always");
        container(spec, if is_sidecar { running() } else { ended() })
    });
    let main = pod.spec.iter().flat_map(|spec| &spec.containers).map(|spec| container(spec, running()));
    ObservedPod { sandboxes: vec![sandbox], containers: init.chain(main).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        assert!(next.0.lock().unwrap().addresses.is_empty());
    }
}
