//! `/containerLogs`: which container, which attempt, which lines; a kubelet's rules and words (`validateContainerLogStatus` in
//! `pkg/kubelet/kubelet_pods.go`, `ValidatePodLogOptions` in pkg/apis/core/validation). Reading is the provider's.

use std::time::{Duration, SystemTime};

use axum::{
    body::Body,
    extract::{Path, Query, State},
    response::{IntoResponse as _, Response},
};
use futures::StreamExt as _;
use http::StatusCode;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::Shared;
use crate::{
    identity::chain,
    pod::ephemeral,
    provider::{LogError, LogOptions, LogSource},
};

/// A request that gets no log: status and text.
type Refusal = (StatusCode, String);

pub(super) async fn container_logs(
    State(shared): State<Shared>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    match open(&shared, &namespace, &name, &container, &query).await {
        Ok(body) => body.into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn open(
    shared: &Shared,
    namespace: &str,
    name: &str,
    container: &str,
    query: &[(String, String)],
) -> Result<Body, Refusal> {
    let (options, previous) = parse(query, SystemTime::now())?;
    let pod = shared
        .pods
        .get(namespace, name)
        .ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod {name:?} does not exist")))?;
    let id = container_id(&pod, container, previous)?;
    let logs = shared.provider.logs().ok_or_else(|| {
        (StatusCode::NOT_IMPLEMENTED, format!("provider {:?} keeps no logs", shared.provider.name()))
    })?;
    let lines = logs.logs(&id, &options).await.map_err(|error| {
        let status = match error {
            LogError::NotFound(_) => StatusCode::NOT_FOUND,
            LogError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, chain(&error))
    })?;
    let stop = shared.stop.clone();
    // A shutdown ends what is followed, as a kubelet's does; kubectl says so.
    Ok(Body::from_stream(lines.take_until(stop.cancelled_owned())))
}

/// The container's ID at the provider: of the attempt that is meant.
fn container_id(pod: &Pod, container: &str, previous: bool) -> Result<String, Refusal> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if ephemeral::named(pod, container).is_none() {
        return Err((StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {name:?}")));
    }
    let which = format!("container {container:?} in pod {name:?}");
    let bad = |message: String| Err((StatusCode::BAD_REQUEST, message));
    let Some(status) = container_status(pod, container) else {
        return bad(format!("{which} is not available"));
    };
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let last_id = last.and_then(|last| last.container_id.as_deref()).filter(|id| !id.is_empty());
    let id = if previous {
        match last_id {
            Some(id) => id,
            None => return bad(format!("previous terminated {which} not found")),
        }
    } else if state.running.is_some() {
        status.container_id.as_deref().unwrap_or_default()
    } else if let Some(terminated) = &state.terminated {
        // A container that never started has no log; the attempt before it may have one.
        match terminated.container_id.as_deref().filter(|id| !id.is_empty()).or(last_id) {
            Some(id) => id,
            None => return bad(format!("{which} is terminated")),
        }
    } else if last.is_some() {
        match last_id {
            Some(id) => id,
            None => return bad(format!("{which} is terminated")),
        }
    } else if let Some(waiting) = state.waiting {
        let why = match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" => "image can't be pulled",
            "ImagePullBackOff" => "trying and failing to pull image",
            reason => reason,
        };
        return bad(format!("{which} is waiting to start: {why}"));
    } else {
        return bad(format!("{which} is waiting to start - no logs yet"));
    };
    Ok(without_scheme(id).to_owned())
}

/// Its status, of whatever kind it is.
pub(super) fn container_status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == container)
}

/// `containerd://abc` is known to the runtime as `abc`.
pub(super) fn without_scheme(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, id)| id)
}

/// The query, checked; and whether the previous attempt is meant.
fn parse(query: &[(String, String)], now: SystemTime) -> Result<(LogOptions, bool), Refusal> {
    let value = |key: &str| query.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let flag = |key: &str| value(key).is_some_and(|value| !matches!(value, "false" | "0"));
    let number = |key: &str, least: i64| match value(key) {
        None => Ok(None),
        Some(text) => match text.parse::<i64>() {
            Ok(number) if number >= least => Ok(Some(number.cast_unsigned())),
            Ok(_) => Err((StatusCode::UNPROCESSABLE_ENTITY, format!("{key} must be {least} or more"))),
            Err(_) => Err((StatusCode::BAD_REQUEST, format!("{key}={text:?} is no whole number"))),
        },
    };
    let tail_lines = match value("tail") {
        // The kubelet's old name for it; `all` is the same as leaving it out.
        Some("all") => None,
        Some(_) => number("tail", 0)?,
        None => number("tailLines", 0)?,
    };
    let since = match (number("sinceSeconds", 1)?, value("sinceTime")) {
        (None, None) => None,
        (Some(seconds), None) => {
            Some(now.checked_sub(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH))
        }
        (None, Some(text)) => match text.parse::<jiff::Timestamp>() {
            Ok(time) => Some(time.into()),
            Err(_) => {
                return Err((StatusCode::BAD_REQUEST, format!("sinceTime={text:?} is no RFC 3339 time")));
            }
        },
        (Some(_), Some(_)) => {
            let message = "at most one of sinceTime or sinceSeconds may be specified";
            return Err((StatusCode::UNPROCESSABLE_ENTITY, message.to_owned()));
        }
    };
    let stream = match value("stream") {
        None | Some("All") => None,
        Some("Stdout") => Some(LogSource::Stdout),
        Some("Stderr") => Some(LogSource::Stderr),
        Some(other) => {
            let message = format!("stream={other:?}: choose All, Stdout or Stderr");
            return Err((StatusCode::UNPROCESSABLE_ENTITY, message));
        }
    };
    if stream.is_some() && tail_lines.is_some() {
        let message = "tailLines and a single stream exclude each other";
        return Err((StatusCode::UNPROCESSABLE_ENTITY, message.to_owned()));
    }
    let options = LogOptions {
        follow: flag("follow"),
        tail_lines,
        limit_bytes: number("limitBytes", 1)?,
        timestamps: flag("timestamps"),
        since,
        stream,
    };
    Ok((options, flag("previous")))
}

#[cfg(test)]
mod tests;
