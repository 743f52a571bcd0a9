//! A way to Prometheus: the flags that all commands share which ask it.

use std::path::PathBuf;

use crate::{
    args::Global,
    cluster,
    history::prometheus::transport::{Credentials, Transport, is_service},
};

/// Where Prometheus is, and who asks.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Prometheus, or what answers like it: http://HOST:PORT/PREFIX, https://…, or `svc://NAMESPACE/SERVICE:PORT` through the Kubernetes API.
    #[arg(long, value_name = "URL")]
    pub prometheus: Option<String>,
    /// A file with a bearer token for Prometheus.
    #[arg(long, value_name = "FILE", requires = "prometheus", conflicts_with = "prometheus_auth_file")]
    pub prometheus_token_file: Option<PathBuf>,
    /// A file with USER:PASSWORD for Prometheus.
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    pub prometheus_auth_file: Option<PathBuf>,
    /// A file with the authorities that Prometheus' certificate may be of, in PEM. Without it: this machine's.
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    pub prometheus_ca_file: Option<PathBuf>,
}

impl Args {
    /// The way there; `None` where no address is given.
    ///
    /// # Errors
    /// When the address is none, or a file of credentials can't be used.
    pub(super) async fn transport(&self, global: &Global) -> anyhow::Result<Option<Transport>> {
        let Some(address) = &self.prometheus else { return Ok(None) };
        let _ = rustls::crypto::ring::default_provider().install_default();
        if is_service(address) {
            let client = cluster::connect_without_retries(global).await?;
            return Ok(Some(Transport::service(address, client)?));
        }
        let credentials = Credentials {
            token_file: self.prometheus_token_file.as_deref(),
            auth_file: self.prometheus_auth_file.as_deref(),
            ca_file: self.prometheus_ca_file.as_deref(),
        };
        Ok(Some(Transport::http(address, &credentials)?))
    }
}
