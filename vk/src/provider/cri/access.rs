//! What is reached inside a container: its log, its processes, its ports, be it by a user through the kubelet API or by the pod's own
//! probes and hooks. Where things are is asked of the runtime; reading and streaming is done elsewhere.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use spillway_proto::cri as wire;

use super::{CALL_TIMEOUT, Cri, errors::failure, logs};
use crate::provider::{
    Attach, AttachRequest, Exec, ExecError, ExecRequest, LogError, LogOptions, Logs, PortForward,
    ProviderError, StreamError, runtime::CommandEnd,
};

/// A kubelet looks at its containers once a second and tells of a start only then, so that who asks for the log of a container as soon as
/// it is told to run finds what it said first. Here it is told at once.
const UNTOLD: Duration = Duration::from_secs(1);

/// See [`crate::provider::ContainerRuntime::exec_sync`].
pub(super) async fn exec_sync(
    cri: &Cri,
    id: &str,
    command: &[String],
    limit: Option<Duration>,
) -> Result<CommandEnd, ProviderError> {
    let operation = "ExecSync";
    let timeout = limit.map_or(0, |limit| i64::try_from(limit.as_secs()).unwrap_or(i64::MAX));
    let request = wire::ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout };
    // The runtime's own clock ends it; ours is for a runtime that hangs.
    let patience = limit.map_or(Duration::MAX, |limit| limit.saturating_add(CALL_TIMEOUT));
    cri.may(operation)?;
    match tokio::time::timeout(patience, cri.runtime().exec_sync(request)).await {
        Ok(Ok(answer)) => {
            let wire::ExecSyncResponse { stdout, stderr, exit_code } = answer.into_inner();
            Ok(CommandEnd::Exited { code: exit_code, stdout, stderr })
        }
        Ok(Err(status)) if status.code() == tonic::Code::DeadlineExceeded => Ok(CommandEnd::TimedOut),
        Ok(Err(status)) => Err(match failure(operation, &cri.endpoint, &status) {
            // As it stands in a kubelet's events.
            ProviderError::Failed { message, .. } => ProviderError::Failed {
                operation,
                message: format!("rpc error: code = {:?} desc = {message}", status.code()),
            },
            error => error,
        }),
        Err(_) => Err(ProviderError::Unavailable {
            operation,
            message: format!("{}: no answer within {} s", cri.endpoint, patience.as_secs()),
        }),
    }
}

#[async_trait]
impl Logs for Cri {
    async fn logs(
        &self,
        container_id: &str,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, LogError> {
        let failed = |source| LogError::Failed { id: container_id.to_owned(), source };
        let status = self
            .container_status(container_id)
            .await
            .map_err(|error| failed(error.into()))?
            .ok_or_else(|| LogError::NotFound(container_id.to_owned()))?;
        if status.log_path.is_empty() {
            return Err(failed("the runtime keeps no log file for it".into()));
        }
        let path = PathBuf::from(&status.log_path);
        if !options.follow && status.state() == wire::ContainerState::ContainerRunning {
            let started = Duration::from_nanos(u64::try_from(status.started_at).unwrap_or(0));
            let runs_for = (SystemTime::UNIX_EPOCH + started).elapsed().unwrap_or_default();
            logs::first_words(&path, UNTOLD.saturating_sub(runs_for)).await;
        }
        let client = self.runtime();
        let id = container_id.to_owned();
        // Asked while following: whether anything can still be written.
        let running = move || {
            let mut client = client.clone();
            let request = wire::ContainerStatusRequest { container_id: id.clone(), verbose: false };
            let answer = async move { client.container_status(request).await };
            async move {
                match answer.await {
                    Ok(answer) => answer.into_inner().status.is_some_and(|status| {
                        matches!(
                            status.state(),
                            wire::ContainerState::ContainerCreated | wire::ContainerState::ContainerRunning
                        )
                    }),
                    Err(status) => status.code() != tonic::Code::NotFound,
                }
            }
        };
        logs::open(path, options, running).await.map_err(|error| failed(error.into()))
    }
}

#[async_trait]
impl Exec for Cri {
    async fn exec(&self, container_id: &str, request: &ExecRequest) -> Result<http::Uri, ExecError> {
        let failed = |source| ExecError::Failed { id: container_id.to_owned(), source };
        let status = self.container_status(container_id).await.map_err(|error| failed(error.into()))?;
        if status.is_none_or(|status| status.state() != wire::ContainerState::ContainerRunning) {
            return Err(ExecError::NotRunning(container_id.to_owned()));
        }
        let request = wire::ExecRequest {
            container_id: container_id.to_owned(),
            cmd: request.command.clone(),
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let answer = self
            .call("Exec", CALL_TIMEOUT, self.runtime().exec(request))
            .await
            .map_err(|error| failed(error.into()))?;
        answer.url.parse().map_err(|error: http::uri::InvalidUri| failed(error.into()))
    }
}

#[async_trait]
impl Attach for Cri {
    async fn attach(&self, container_id: &str, request: AttachRequest) -> Result<http::Uri, StreamError> {
        let what = format!("container {container_id}");
        let failed = |source| StreamError::Failed { what: what.clone(), source };
        let status = self.container_status(container_id).await.map_err(|error| failed(error.into()))?;
        if status.is_none_or(|status| status.state() != wire::ContainerState::ContainerRunning) {
            return Err(StreamError::NotRunning(what));
        }
        let request = wire::AttachRequest {
            container_id: container_id.to_owned(),
            stdin: request.stdin,
            tty: request.tty,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let answer = self
            .call("Attach", CALL_TIMEOUT, self.runtime().attach(request))
            .await
            .map_err(|error| failed(error.into()))?;
        answer.url.parse().map_err(|error: http::uri::InvalidUri| failed(error.into()))
    }
}

#[async_trait]
impl PortForward for Cri {
    async fn port_forward(&self, pod_uid: &str, ports: &[u16]) -> Result<http::Uri, StreamError> {
        let what = format!("pod {pod_uid}");
        let failed = |source| StreamError::Failed { what: what.clone(), source };
        let sandboxes = self.sandboxes(Some(pod_uid)).await.map_err(|error| failed(error.into()))?;
        let ready = sandboxes
            .into_iter()
            .filter(|sandbox| sandbox.state() == wire::PodSandboxState::SandboxReady)
            .max_by_key(|sandbox| sandbox.created_at);
        let Some(sandbox) = ready else { return Err(StreamError::NotRunning(what)) };
        let request = wire::PortForwardRequest {
            pod_sandbox_id: sandbox.id,
            port: ports.iter().copied().map(i32::from).collect(),
        };
        let answer = self
            .call("PortForward", CALL_TIMEOUT, self.runtime().port_forward(request))
            .await
            .map_err(|error| failed(error.into()))?;
        answer.url.parse().map_err(|error: http::uri::InvalidUri| failed(error.into()))
    }
}
