//! What a probe or a hook does: from the pod's fields to an [`Action`], purely; and doing it once.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use k8s_openapi::{
    api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    grpc,
    http::{Get, HttpError, dial, dial_name, get},
    url::Url,
};
use crate::{
    pod::env,
    provider::{
        ProviderError,
        runtime::{CommandEnd, ContainerRuntime},
    },
};

/// As much of a command's output as is kept.
const MAX_OUTPUT: usize = 10 << 10;
/// Kubernetes' version, as servers see it.
const PROBE_AGENT: &str = "kube-probe/1.35";
const HOOK_AGENT: &str = "kube-lifecycle/1.35";

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// A command in the container.
    Exec(Vec<String>),
    /// A request.
    Http(Get),
    /// A connection.
    Tcp {
        /// Where to.
        host: String,
        /// Where to.
        port: u16,
    },
    /// A health check.
    Grpc {
        /// Where to.
        host: String,
        /// Where to.
        port: u16,
        /// Empty: the server as a whole.
        service: String,
    },
    /// Waiting.
    Sleep(Duration),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Well.
    Good,
    /// Well, but for something that the user should know.
    Warning(String),
    /// Badly.
    Bad(String),
}

/// An attempt that says nothing about the container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct NoOutcome {
    /// `failure` or `unknown`, as a kubelet's event has it.
    pub(crate) state: &'static str,
    text: String,
}

fn unknown(text: String) -> NoOutcome {
    NoOutcome { state: "unknown", text }
}

/// What a probe asks.
pub(crate) fn of_probe(probe: &Probe, container: &Container, pod_ip: &str) -> Result<Action, String> {
    if let Some(exec) = &probe.exec {
        // Only what stands in the spec itself can be referred to.
        let value = |name: &str| {
            let mut variables = container.env.iter().flatten();
            variables.find(|variable| variable.name == name).map(|v| v.value.as_deref().unwrap_or_default())
        };
        return env::expand_words(&command(exec), value).map(Action::Exec).map_err(|error| error.to_string());
    }
    if let Some(http) = &probe.http_get {
        return request(http, container, pod_ip, PROBE_AGENT).map(Action::Http);
    }
    if let Some(tcp) = &probe.tcp_socket {
        let host = host_or(tcp.host.as_deref(), pod_ip);
        return Ok(Action::Tcp { host, port: port(&tcp.port, container)? });
    }
    if let Some(grpc) = &probe.grpc {
        let port = port(&IntOrString::Int(grpc.port), container)?;
        let service = grpc.service.clone().unwrap_or_default();
        return Ok(Action::Grpc { host: pod_ip.to_owned(), port, service });
    }
    Err(format!("missing probe handler for container {}", container.name))
}

/// What a hook does.
pub(crate) fn of_hook(
    hook: &LifecycleHandler,
    container: &Container,
    pod_ip: &str,
) -> Result<Action, String> {
    if let Some(exec) = &hook.exec {
        return Ok(Action::Exec(command(exec)));
    }
    if let Some(http) = &hook.http_get {
        return request(http, container, pod_ip, HOOK_AGENT).map(Action::Http);
    }
    if let Some(sleep) = &hook.sleep {
        return Ok(Action::Sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())));
    }
    // `tcpSocket` too: Kubernetes lets it in and no kubelet does it.
    Err("invalid handler: it is no exec, httpGet or sleep".to_owned())
}

fn command(exec: &ExecAction) -> Vec<String> {
    exec.command.clone().unwrap_or_default()
}

fn host_or(host: Option<&str>, pod_ip: &str) -> String {
    host.filter(|host| !host.is_empty()).unwrap_or(pod_ip).to_owned()
}

/// A port by number, by the name it has in the container, or by a number written as text.
fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port);
            match named {
                Some(number) => number,
                None => name.parse().map_err(|_| {
                    format!("strconv.Atoi: parsing {name:?}: invalid syntax (no port has that name)")
                })?,
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

fn request(action: &HTTPGetAction, container: &Container, pod_ip: &str, agent: &str) -> Result<Get, String> {
    let https = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let host = host_or(action.host.as_deref(), pod_ip);
    let port = port(&action.port, container)?;
    let path = action.path.as_deref().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for header in action.http_headers.iter().flatten() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| error.to_string())?;
        let value = HeaderValue::from_str(&header.value).map_err(|error| error.to_string())?;
        headers.append(name, value);
    }
    let host_header = headers.remove(header::HOST).filter(|value| !value.is_empty());
    for (name, default) in [(header::USER_AGENT, agent), (header::ACCEPT, "*/*")] {
        match headers.get(&name) {
            None => drop(headers.insert(name, HeaderValue::from_str(default).map_err(|e| e.to_string())?)),
            // Set to nothing is not to be sent.
            Some(value) if value.is_empty() => drop(headers.remove(name)),
            Some(_) => {}
        }
    }
    Ok(Get { url: Url::new(https, &host, port, path), headers, host: host_header })
}

/// Does it once. Everything but a command is bounded here; a command's time is the runtime's to keep.
pub(crate) async fn attempt(
    action: &Action,
    runtime: &dyn ContainerRuntime,
    container_id: &str,
    limit: Duration,
) -> Result<Outcome, NoOutcome> {
    match action {
        Action::Exec(command) => match runtime.exec_sync(container_id, command, Some(limit)).await {
            Ok(CommandEnd::Exited { code: 0, .. }) => Ok(Outcome::Good),
            Ok(CommandEnd::Exited { stdout, stderr, .. }) => Ok(Outcome::Bad(output(&stdout, &stderr))),
            Ok(CommandEnd::TimedOut) => Ok(Outcome::Bad(format!(
                "command timed out: {:?} timed out after {}s",
                command.join(" "),
                limit.as_secs()
            ))),
            Err(error) => Err(unknown(error.message())),
        },
        Action::Http(request) => match tokio::time::timeout(limit, get(request)).await {
            Ok(Ok(answer)) => Ok(judge(answer.status.as_u16(), &answer.body)),
            Ok(Err(HttpError::Body(text))) => Err(NoOutcome { state: "failure", text }),
            Ok(Err(error)) => Ok(Outcome::Bad(error.to_string())),
            Err(_) => Ok(Outcome::Bad(format!(
                "Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                request.url
            ))),
        },
        Action::Tcp { host, port } => match tokio::time::timeout(limit, dial(host, *port)).await {
            Ok(Ok(_)) => Ok(Outcome::Good),
            Ok(Err(problem)) => Ok(Outcome::Bad(problem)),
            Err(_) => Ok(Outcome::Bad(format!("{}: i/o timeout", dial_name(host, *port)))),
        },
        Action::Grpc { host, port, service } => {
            let checked = grpc::check(host, *port, service, PROBE_AGENT, limit).await;
            Ok(checked.map_or_else(Outcome::Bad, |()| Outcome::Good))
        }
        Action::Sleep(_) => Err(unknown("a probe doesn't sleep".to_owned())),
    }
}

/// A body never gets into an event of a failure: it may hold what only the container's own users should see.
fn judge(status: u16, body: &str) -> Outcome {
    match status {
        200..300 => Outcome::Good,
        300..400 => Outcome::Warning(format!("Probe terminated redirects, Response body: {body}")),
        _ => Outcome::Bad(format!("HTTP probe failed with statuscode: {status}")),
    }
}

fn output(stdout: &[u8], stderr: &[u8]) -> String {
    let all: Vec<u8> = stdout.iter().chain(stderr).take(MAX_OUTPUT).copied().collect();
    String::from_utf8_lossy(&all).into_owned()
}

/// What a hook's failure says; for the pod's status, not for events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HookError {
    /// `error: …`, and the command's output where there is one.
    pub(crate) text: String,
}

/// Runs a hook to its end, however long that takes. `Ok(true)`: it asked for HTTPS and was answered in HTTP.
pub(crate) async fn run_hook(
    action: &Action,
    runtime: &dyn ContainerRuntime,
    container_id: &str,
) -> Result<bool, HookError> {
    let failed = |text: String| HookError { text: format!("error: {text}") };
    match action {
        Action::Exec(command) => match runtime.exec_sync(container_id, command, None).await {
            Ok(CommandEnd::Exited { code: 0, .. }) => Ok(false),
            Ok(CommandEnd::Exited { code, stdout, stderr }) => Err(failed(format!(
                "command '{}' exited with {code}: {}, message: {:?}",
                command.join(" "),
                output(&[], &stderr),
                output(&stdout, &stderr)
            ))),
            Ok(CommandEnd::TimedOut) => Err(failed("the runtime gave up on it".to_owned())),
            Err(error @ ProviderError::Unavailable { .. }) => Err(failed(error.to_string())),
            Err(error) => Err(failed(error.message())),
        },
        // Whatever the status: it was told.
        Action::Http(request) => match get(request).await {
            Ok(_) | Err(HttpError::Body(_)) => Ok(false),
            Err(HttpError::PlainText { .. }) => {
                let mut plain = request.clone();
                plain.url.https = false;
                plain.headers.remove(header::AUTHORIZATION);
                get(&plain).await.map(|_| true).map_err(|error| failed(error.to_string()))
            }
            Err(error) => Err(failed(error.to_string())),
        },
        Action::Sleep(time) => {
            tokio::time::sleep(*time).await;
            Ok(false)
        }
        Action::Tcp { .. } | Action::Grpc { .. } => Err(failed("invalid handler".to_owned())),
    }
}
