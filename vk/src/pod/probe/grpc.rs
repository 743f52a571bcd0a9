//! One health check over gRPC (`grpc.health.v1`), without TLS, as a kubelet makes it.

use std::time::Duration;

use super::url::bracketed;
use spillway_proto::health::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic::{Code, transport::Endpoint};

/// The answer is one number.
const MAX_ANSWER: usize = 4 << 10;
const MAX_HEADERS: u32 = 16 << 10;
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(200);

/// Whether a service says that it serves; the error is a kubelet's text.
pub(super) async fn check(
    host: &str,
    port: u16,
    service: &str,
    agent: &str,
    limit: Duration,
) -> Result<(), String> {
    let address = format!("{}:{port}", bracketed(host));
    let no_connection = |why: String| format!("error: failed to connect service at {address:?}: {why}");
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent(agent))
        .map_err(|error| no_connection(error.to_string()))?
        .http2_max_header_list_size(MAX_HEADERS);
    let until = tokio::time::Instant::now() + limit;
    // As gRPC's own clients: again and again, as long as there is time.
    let connected = async {
        loop {
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    };
    let Ok(channel) = tokio::time::timeout_at(until, connected).await else {
        let limit = limit.as_secs();
        return Err(format!(
            "timeout: failed to connect service {address:?} within {limit}s: context deadline exceeded"
        ));
    };
    let mut client = HealthClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let request = HealthCheckRequest { service: service.to_owned() };
    let too_late = || format!("timeout: health rpc did not complete within {}s", limit.as_secs());
    let Ok(answer) = tokio::time::timeout_at(until, client.check(request)).await else {
        return Err(too_late());
    };
    match answer {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("service unhealthy (responded with {:?})", other.as_str_name())),
        },
        Err(status) if status.code() == Code::Unimplemented => Err(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) if status.code() == Code::DeadlineExceeded => Err(too_late()),
        Err(status) => Err(format!(
            "error: health rpc probe failed: rpc error: code = {:?} desc = {}",
            status.code(),
            status.message()
        )),
    }
}
