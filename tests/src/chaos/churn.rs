//! Pods come and go as planned, whatever the API server answers: each request is made until its effect is certain.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions, PropagationPolicy},
};
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    history::History,
    plan::{self, Fate, Life, PodPlan, Random},
};

/// An answer that takes longer is none.
const ANSWER: Duration = Duration::from_secs(10);
/// Between tries.
const AGAIN: Duration = Duration::from_millis(300);

/// Who makes the pods, and where.
#[derive(Clone)]
pub struct Churn {
    /// The administrator.
    pub client: Client,
    /// Where all pods are.
    pub namespace: String,
    /// The virtual node.
    pub node: String,
    /// The folder of its machine that containers write to.
    pub folder: String,
    /// Where deletions by force are told.
    pub history: Arc<History>,
}

/// One try: `None`: no answer worth anything.
async fn ask<T>(request: impl Future<Output = kube::Result<T>>) -> Option<Result<T, u16>> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(Ok(answer)) => Some(Ok(answer)),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Some(Err(status.code)),
        _ => {
            tokio::time::sleep(AGAIN).await;
            None
        }
    }
}

impl Churn {
    /// The pods.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The Jobs.
    pub fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Makes pods, so many at a time, until `enough`; how many there were.
    pub async fn run(
        self,
        random: &mut Random,
        from: usize,
        at_a_time: usize,
        enough: Arc<AtomicBool>,
    ) -> usize {
        let slots = Arc::new(Semaphore::new(at_a_time));
        let mut tasks = JoinSet::new();
        let mut number = from;
        while !enough.load(Ordering::Relaxed) {
            let plan = plan::pod(random, number);
            number += 1;
            let pause = Duration::from_millis(plan.pause_ms);
            // Never closed.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
            let (own, enough) = (self.clone(), Arc::clone(&enough));
            tasks.spawn(async move {
                own.live(&plan).await;
                // What stays takes a place for as long as it takes others to come and go.
                for _ in 0..80 {
                    if plan.fate != Fate::Stay || enough.load(Ordering::Relaxed) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                drop(slot);
            });
            tokio::time::sleep(pause).await;
        }
        while tasks.join_next().await.is_some() {}
        number
    }

    async fn live(&self, plan: &PodPlan) {
        if let Life::Job(completions, _, limit) = plan.life {
            let job = json!({
                "metadata": { "name": plan.name, "namespace": self.namespace },
                "spec": { "completions": completions, "parallelism": 2, "backoffLimit": limit,
                    "template": { "spec": plan.spec(&self.node, &self.folder) } },
            });
            // What is written here is a Job.
            let Ok(job) = serde_json::from_value::<Job>(job) else { return };
            while ask(self.jobs().create(&PostParams::default(), &job)).await.is_none() {}
            if let Fate::Delete(after) = plan.fate {
                tokio::time::sleep(Duration::from_millis(after)).await;
                self.delete_job(&plan.name).await;
            }
            return;
        }
        let uid = self.create(plan, None).await;
        let (after, force, again) = match plan.fate {
            Fate::Stay => return,
            Fate::Delete(after) => (after, false, false),
            Fate::Force(after) => (after, true, false),
            Fate::Replace(force, after) => (after, force, true),
        };
        tokio::time::sleep(Duration::from_millis(after)).await;
        self.delete(&plan.name, &uid, force).await;
        if again {
            self.create(plan, Some(&uid)).await;
        }
    }

    /// Makes the pod; its UID. A pod of that name that is `not` this one has to go first.
    async fn create(&self, plan: &PodPlan, not: Option<&str>) -> String {
        let pod = json!({
            "metadata": { "name": plan.name, "namespace": self.namespace },
            "spec": plan.spec(&self.node, &self.folder),
        });
        let Ok(pod) = serde_json::from_value::<Pod>(pod) else { return String::new() };
        loop {
            match ask(self.pods().create(&PostParams::default(), &pod)).await {
                Some(Ok(made)) => return made.metadata.uid.unwrap_or_default(),
                // An earlier try's, unheard, or the one before.
                Some(Err(409)) => {
                    let found = ask(self.pods().get(&plan.name)).await;
                    let uid = found.and_then(Result::ok).and_then(|found| found.metadata.uid);
                    match uid {
                        Some(uid) if Some(uid.as_str()) != not => return uid,
                        _ => tokio::time::sleep(AGAIN / 3).await,
                    }
                }
                _ => {}
            }
        }
    }

    /// Deletes this pod, and no other of its name.
    pub async fn delete(&self, name: &str, uid: &str, force: bool) {
        let own = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let mut params = DeleteParams::default().preconditions(own);
        if force {
            self.history.force(uid);
            params = params.grace_period(0);
        }
        while ask(self.pods().delete(name, &params)).await.is_none() {}
    }

    /// Deletes a Job with its pods.
    pub async fn delete_job(&self, name: &str) {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        while ask(self.jobs().delete(name, &params)).await.is_none() {}
    }
}
