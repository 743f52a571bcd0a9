//! Pods on a provider that is given whole pods.

use std::{collections::BTreeMap, sync::Mutex};

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::provider::{
    PodService, ProviderError, Version,
    none::None as Nothing,
    observed::{ObservedPod, PodRef},
};

/// Says that what it is given runs.
#[derive(Default)]
struct Cloud {
    pods: Nothing,
    /// So often it panics when it is asked about a pod.
    faults: usize,
    asked_at: Mutex<Vec<tokio::time::Instant>>,
    /// Where it tells what was deleted.
    news: Mutex<Option<mpsc::UnboundedSender<String>>>,
}

#[async_trait]
impl PodService for Cloud {
    fn name(&self) -> &'static str {
        "cloud"
    }

    async fn version(&self) -> Result<Version, ProviderError> {
        self.pods.version().await
    }

    async fn ping(&self) -> Result<(), ProviderError> {
        Ok(())
    }

    fn refuses(&self, _: &Pod) -> Option<String> {
        let asked = {
            let mut asked_at = self.asked_at.lock().unwrap();
            asked_at.push(tokio::time::Instant::now());
            asked_at.len()
        };
        assert!(asked > self.faults, "a fault of this provider");
        None
    }

    async fn create(&self, pod: &Pod) -> Result<(), ProviderError> {
        self.pods.create(pod).await
    }

    async fn delete(&self, pod: &PodRef, grace_seconds: u64) -> Result<(), ProviderError> {
        self.pods.delete(pod, grace_seconds).await?;
        let news = self.news.lock().unwrap();
        news.iter().for_each(|news| drop(news.send(pod.uid.clone())));
        Ok(())
    }

    async fn list(&self) -> Result<BTreeMap<PodRef, ObservedPod>, ProviderError> {
        self.pods.list().await
    }

    async fn changes(&self) -> Result<Option<BoxStream<'static, String>>, ProviderError> {
        let (news, told) = mpsc::unbounded_channel();
        *self.news.lock().unwrap() = Some(news);
        Ok(Some(UnboundedReceiverStream::new(told).boxed()))
    }
}

fn start_with(world: &World, service: Arc<dyn PodService>) -> Daemon {
    let settings = Settings {
        root_dir: world.folder.path().to_owned(),
        ..Settings::new("vk", vec!["10.0.0.1".parse().unwrap()])
    };
    let pods = Arc::new(Pods::new(world.api.client(), Provider::PodService(service), settings));
    let mut task = JoinSet::new();
    task.spawn(Arc::clone(&pods).run(CancellationToken::new()));
    Daemon { pods, _task: task }
}

fn finalizer(names: &'static [&'static str]) -> impl FnOnce(&mut serde_json::Value) {
    move |pod| pod["metadata"]["finalizers"] = json!(names)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_runs_a_pod_is_two_calls() {
    let world = World::new();
    let provider = Arc::new(Nothing::new());
    let daemon = start_with(&world, Arc::clone(&provider) as _);
    let uid = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    let known = || daemon.pods.get("ns", "web").map(|pod| serde_json::to_value(&pod.status).unwrap());
    wait(|| known() == Some(world.api.status(&uid))).await;

    world.api.delete(&uid, 30);
    wait(|| world.api.is_gone(&uid) && daemon.pods.list().is_empty()).await;
    assert_eq!((world.api.writes(&uid), world.api.deletions(&uid)), (1, 1));
    assert_eq!(world.api.last_status(&uid)["phase"], "Running", "nothing has ended in it");
    wait(|| provider.list().now_or_never().unwrap().unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_the_object_reads_that_the_pod_has_ended() {
    let world = World::new();
    let daemon = start_with(&world, Arc::new(Nothing::new()));
    let uid = world.api.create("web", spec("Never"));
    world.api.change(&uid, finalizer(&["example.com/a", "example.com/b"]));
    wait(|| world.api.phase(&uid) == "Running").await;
    world.api.delete(&uid, 30);
    wait(|| world.api.phase(&uid) == "Failed" && world.api.deletions(&uid) == 1).await;

    let writes = world.api.writes(&uid);
    world.api.change(&uid, finalizer(&["example.com/b"]));
    let generation = || daemon.pods.get("ns", "web").and_then(|pod| pod.metadata.generation);
    wait(|| generation() == Some(3)).await;
    world.api.vanish(&uid);
    wait(|| daemon.pods.list().is_empty()).await;
    assert_eq!(world.api.deletions(&uid), 1, "it was let go already");
    assert!(world.api.writes(&uid) <= writes + 1, "but for the generation that was seen, nothing is new");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_pod_ended_that_ran_is_told_before_its_object_goes() {
    let world = World::new();
    let daemon = start_with(&world, Arc::new(Cloud::default()));
    let uid = world.api.create("web", spec("Never"));
    wait(|| world.api.phase(&uid) == "Running").await;
    world.api.delete(&uid, 30);
    wait(|| world.api.is_gone(&uid) && daemon.pods.list().is_empty()).await;
    assert_eq!(world.api.last_status(&uid)["phase"], "Failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_woken_meanwhile_lets_the_object_go_once() {
    let world = World::new();
    let daemon = start_with(&world, Arc::new(Cloud::default()));
    for _ in 0..30 {
        let uid = world.api.create("web", spec("Never"));
        wait(|| world.api.phase(&uid) == "Running").await;
        world.api.delete(&uid, 30);
        wait(|| world.api.is_gone(&uid) && daemon.pods.list().is_empty()).await;
        assert_eq!(world.api.deletions(&uid), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_used_again_at_once_is_another_pod() {
    let world = World::new();
    let daemon = start_with(&world, Arc::new(Nothing::new()));
    for _ in 0..20 {
        let uid = world.api.create("web", spec("Always"));
        wait(|| world.api.phase(&uid) == "Running").await;
        world.api.vanish(&uid);
    }
    wait(|| daemon.pods.list().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_the_secrets_that_it_must_have_and_for_no_others() {
    let world = World::new();
    let provider = Arc::new(Nothing::new());
    let _daemon = start_with(&world, Arc::clone(&provider) as _);
    let with = |secret: &str, optional: bool| {
        let source = json!({ "secretKeyRef": { "name": secret, "key": "k", "optional": optional } });
        let mut spec = spec("Always");
        spec["containers"][0]["env"] = json!([{ "name": "X", "valueFrom": source }]);
        spec
    };
    let waits = world.api.create("waits", with("needed", false));
    let runs = world.api.create("runs", with("nice", true));
    let reason = || world.api.status(&waits)["containerStatuses"][0]["state"]["waiting"].clone();
    wait(|| reason()["reason"] == "CreateContainerConfigError" && world.api.phase(&runs) == "Running").await;
    assert_eq!(reason()["message"], "secret \"needed\" not found");
    for event in ["MandatorySecretNotFound", "OptionalSecretNotFound"] {
        wait(|| world.api.events().iter().any(|told| told == event)).await;
    }
    assert_eq!(provider.list().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_is_followed_by_another_less_and_less_often() {
    let world = World::new();
    let service = Arc::new(Cloud { faults: 4, ..Cloud::default() });
    let _daemon = start_with(&world, Arc::clone(&service) as _);
    let uid = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    let asked_at = service.asked_at.lock().unwrap();
    let waits = asked_at.windows(2).map(|pair| pair[1] - pair[0]);
    for (waited, least) in waits.zip([1, 2, 4, 8].map(Duration::from_secs)) {
        assert!(waited >= least, "{waited:?} instead of {least:?}");
    }
    assert_eq!(asked_at.len(), 5);
}
