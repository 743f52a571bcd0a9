//! Lifecycle hooks: postStart before a container counts as started, preStop before it is told to end.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio::sync::watch;

use super::{SyncError, Worker, ending::Ending, teardown::grace_seconds};
use crate::{
    pod::{
        events::{Kind, Recorder},
        probe::action::{self, Action},
        spec::pod_ref,
        status::{Waiting, primary_first},
    },
    provider::{observed::Sandbox, runtime::ContainerRuntime},
};

impl Worker {
    /// Runs the hook of a container that was just started. When it fails the container is ended, and why is what it waits for: `Ok`
    /// within the error.
    pub(super) async fn post_start(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        sandbox: &Sandbox,
        container: &Container,
        id: &str,
        hook: &LifecycleHandler,
    ) -> Result<(), Result<Waiting, SyncError>> {
        let host_ips = &self.shared.settings.host_ips;
        let ips = primary_first(&sandbox.ips, host_ips);
        let ip = ips.first().or(host_ips.first()).map(ToString::to_string).unwrap_or_default();
        let recorder = self.shared.recorder.clone();
        let ran = tokio::select! {
            ran = run(&recorder, pod, container, hook, &ip, runtime, id) => ran,
            // The pod ends, and the container with it.
            () = unwanted(self.latest.clone()) => Ok(()),
        };
        let Err(message) = ran else { return Ok(()) };
        // What it said may be secret; the status is for those who may read the pod, events are for more.
        recorder.container(
            pod,
            &container.name,
            Kind::Warning,
            "FailedPostStartHook",
            "PostStartHook failed",
        );
        let ending = Ending {
            name: container.name.clone(),
            id: id.to_owned(),
            message: "FailedPostStartHook".to_owned(),
            grace: grace_seconds(pod),
        };
        let unwanted = unwanted(self.latest.clone());
        self.end_containers(runtime, Some(pod), &ip, vec![ending], unwanted).await.map_err(Err)?;
        Err(Ok(Waiting { reason: "PostStartHookError".to_owned(), message }))
    }

    /// Whether the pod is to end, as far as is known now.
    pub(super) fn is_unwanted(&self) -> bool {
        ends(self.latest.borrow().as_deref())
    }
}

fn ends(pod: Option<&Pod>) -> bool {
    pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
}

/// Resolves when the pod is deleted or gone.
pub(super) async fn unwanted(mut latest: watch::Receiver<Option<Arc<Pod>>>) {
    if latest.wait_for(|pod| ends(pod.as_deref())).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Runs a hook to its end; the error is a kubelet's text.
pub(super) async fn run(
    recorder: &Recorder,
    pod: &Pod,
    container: &Container,
    hook: &LifecycleHandler,
    pod_ip: &str,
    runtime: &dyn ContainerRuntime,
    id: &str,
) -> Result<(), String> {
    let action =
        action::of_hook(hook, container, pod_ip).map_err(|why| format!("Cannot run handler: {why}"))?;
    match action::run_hook(&action, runtime, id).await {
        Ok(fell_back) => {
            if let (true, Action::Http(request)) = (fell_back, &action) {
                let message = format!(
                    "request to HTTPS lifecycle hook {} got HTTP response, retry with HTTP succeeded",
                    request.authority()
                );
                recorder.pod(pod, Kind::Warning, "LifecycleHTTPFallback", &message);
            }
            Ok(())
        }
        Err(error) => Err(failure(pod, container, hook, &error.text)),
    }
}

fn failure(pod: &Pod, container: &Container, hook: &LifecycleHandler, why: &str) -> String {
    let what = if let Some(exec) = &hook.exec {
        format!("Exec lifecycle hook ([{}])", exec.command.as_deref().unwrap_or_default().join(" "))
    } else if let Some(http) = &hook.http_get {
        format!("HTTP lifecycle hook ({})", http.path.as_deref().unwrap_or_default())
    } else {
        "Sleep lifecycle hook".to_owned()
    };
    let id = pod_ref(pod).full_name();
    format!("{what} for Container {:?} in Pod \"{id}\" failed - {why}", container.name)
}
