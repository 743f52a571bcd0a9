//! What the runtime's refusals mean, and what else can fail on the way to it.

use std::path::Path;

use crate::{identity::chain, provider::ProviderError};

/// What a refusal of the runtime means.
pub(super) fn failure(operation: &'static str, endpoint: &str, status: &tonic::Status) -> ProviderError {
    let message = status.message().to_owned();
    if no_answer(status) {
        return ProviderError::Unavailable {
            operation,
            message: format!("{endpoint}: {}", with_causes(status)),
        };
    }
    match status.code() {
        tonic::Code::NotFound => ProviderError::NotFound { operation, what: message },
        tonic::Code::AlreadyExists => ProviderError::Exists { operation, message },
        // containerd says so with code Unknown: `failed to reserve … name "…": name "…" is reserved for "…"`.
        _ if message.contains("is reserved for") => ProviderError::Exists { operation, message },
        _ => ProviderError::Failed { operation, message },
    }
}

/// Whether the runtime said nothing. What comes from it has no cause: with one, the connection broke under the call.
fn no_answer(status: &tonic::Status) -> bool {
    use tonic::Code::{Cancelled, DeadlineExceeded, Unavailable};
    matches!(status.code(), Unavailable | DeadlineExceeded | Cancelled)
        || std::error::Error::source(status).is_some()
}

/// tonic says only "transport error"; the socket's own complaint is further down.
fn with_causes(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let error_text = error.to_string();
        if !text.contains(&error_text) {
            text = format!("{text}: {error_text}");
        }
        cause = error.source();
    }
    text
}

/// A registry's refusal, as it stands in a kubelet's statuses and events. It says nothing about what the runtime has.
pub(super) fn as_told(status: tonic::Status) -> tonic::Status {
    // Unknown tells nothing, and what is in the runtime's own words is recognised by them.
    if no_answer(&status) || status.code() == tonic::Code::Unknown {
        return status;
    }
    tonic::Status::unknown(format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))
}

pub(super) fn absent_is_done<T>(answer: Result<T, ProviderError>) -> Result<(), ProviderError> {
    match answer {
        Ok(_) | Err(ProviderError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn failed(operation: &'static str, error: &(dyn std::error::Error + 'static)) -> ProviderError {
    ProviderError::Failed { operation, message: chain(error) }
}

pub(super) fn io_failed(operation: &'static str, path: &Path, error: &std::io::Error) -> ProviderError {
    ProviderError::Failed { operation, message: format!("{}: {error}", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let reserved = tonic::Status::unknown(
            "failed to reserve sandbox name \"a_b_c_0\": name \"a_b_c_0\" is reserved for \"1234\"",
        );
        assert!(matches!(failure("RunPodSandbox", "e", &reserved), ProviderError::Exists { .. }));
        let refused = failure("PullImage", "e", &as_told(tonic::Status::not_found("no such image")));
        assert_eq!(refused.message(), "rpc error: code = NotFound desc = no such image");
        let unknown = failure("PullImage", "e", &as_told(tonic::Status::unknown("RegistryUnavailable: x")));
        assert_eq!(unknown.message(), "RegistryUnavailable: x");
        let gone = tonic::Status::not_found("no such container");
        assert!(matches!(failure("StopContainer", "e", &gone), ProviderError::NotFound { .. }));
        assert!(absent_is_done::<()>(Err(failure("StopContainer", "e", &gone))).is_ok());
        let broken = || tonic::Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        assert!(matches!(failure("StartContainer", "e", &broken()), ProviderError::Unavailable { .. }));
        assert!(matches!(failure("PullImage", "e", &as_told(broken())), ProviderError::Unavailable { .. }));
        let refused = tonic::Status::unknown("no such image");
        assert!(matches!(failure("CreateContainer", "e", &refused), ProviderError::Failed { .. }));
        let away = tonic::Status::unavailable("connection refused");
        let error = failure("Version", "unix:///x.sock", &away);
        assert_eq!(
            error.to_string(),
            "Version: the provider does not answer: unix:///x.sock: connection refused"
        );
    }
}
