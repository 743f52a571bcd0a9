//! What `spillway-agent` and `spillway-vk` share, in the order a daemon lives through it: arguments, telemetry, listening, the admin
//! endpoint, supervised tasks, exit. It knows nothing of Kubernetes or devices.

pub mod admin;
pub mod exit;
pub mod listener;
pub mod supervisor;
pub mod telemetry;

use std::net::SocketAddr;

/// Flags that both daemons take; flatten them into the daemon's own.
#[derive(Debug, Clone, clap::Args)]
pub struct DaemonArgs {
    /// Format of the log lines on standard error.
    #[arg(long, value_enum, default_value_t, env = "SPILLWAY_LOG_FORMAT", help_heading = "Telemetry")]
    pub log_format: telemetry::LogFormat,

    /// What to log: a level (error, warn, info, debug, trace) or a filter such as `info,spillway_vk::pod=debug`.
    #[arg(long, default_value = "info", env = "SPILLWAY_LOG_LEVEL", help_heading = "Telemetry")]
    pub log_level: String,

    /// Where to serve /metrics, /healthz and /readyz over plain HTTP; `0.0.0.0` and `::` are both every address, of IPv4 and IPv6. Keep it
    /// on loopback unless a network policy guards it; `off` serves nothing.
    #[arg(
        long, default_value = "127.0.0.1:9400", env = "SPILLWAY_ADMIN_ADDRESS", value_parser = admin_address,
        help_heading = "Telemetry"
    )]
    pub admin_address: AdminAddress,
}

/// `None`: serve nothing. A type of its own, because clap reads `Option` as "the flag may be absent".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminAddress(pub Option<SocketAddr>);

fn admin_address(text: &str) -> Result<AdminAddress, String> {
    if text == "off" {
        return Ok(AdminAddress(None));
    }
    text.parse()
        .map(|address| AdminAddress(Some(address)))
        .map_err(|_| "expected ADDRESS:PORT such as 127.0.0.1:9400 or [::1]:9400, or `off`".to_owned())
}
