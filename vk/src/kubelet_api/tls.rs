//! TLS towards the kubelet API's clients: the serving certificate of the moment, and clients' certificates checked against the CA of
//! the moment. Clients without a certificate pass: they may have a token.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use spillway_daemon::admin::Readiness;
use tokio::sync::watch;

use crate::{
    backoff::Backoff,
    identity::{chain, serving::Resolver, sleep_until},
};

use super::CONDITION;

/// How often the CA is looked at again.
const REFRESH: Duration = Duration::from_mins(1);
/// Where the API server publishes the CA of clients' certificates.
const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "extension-apiserver-authentication";
const KEY: &str = "client-ca-file";

/// Why there is no CA to check clients' certificates with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file can't be read.
    #[error("can't read --client-ca-file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The cluster doesn't give it.
    #[error(
        "can't read the clients' CA from configmap {NAMESPACE}/{CONFIG_MAP}: let user system:node:NAME read it (role \
         extension-apiserver-authentication-reader), or give --client-ca-file"
    )]
    ConfigMap(#[source] Box<kube::Error>),
    /// What is there is no CA.
    #[error("no usable certificate in {origin}: {problem}")]
    Invalid {
        /// Where it came from.
        origin: String,
        /// What is wrong.
        problem: String,
    },
}

/// The configuration for new connections.
#[derive(Clone)]
pub(super) struct Tls(watch::Receiver<Option<Arc<ServerConfig>>>);

impl Tls {
    /// Returns the task that keeps the CA fresh too. It ends only when a given file is of no use at the start; a CA that can't be had
    /// from the cluster is asked for again.
    pub(super) fn new(
        certificate: Resolver,
        file: Option<PathBuf>,
        client: Client,
        readiness: Readiness,
    ) -> (Self, impl Future<Output = TlsError>) {
        let (current, receiver) = watch::channel(None);
        let certificate = Arc::new(certificate);
        let keep_fresh = async move {
            let mut backoff = Backoff::new(Duration::from_secs(1), REFRESH);
            let mut last = String::new();
            loop {
                let loaded = match load(file.as_ref(), &client).await {
                    Ok(pem) if pem == last => Ok(None),
                    Ok(pem) => {
                        server_config(&pem, Arc::clone(&certificate)).map(|config| Some((pem, config)))
                    }
                    Err(error) => Err(error),
                };
                match loaded {
                    Ok(found) => {
                        if let Some((pem, config)) = found {
                            tracing::info!("clients' CA of the kubelet API is loaded");
                            last = pem;
                            current.send_replace(Some(Arc::new(config)));
                        }
                        backoff.reset();
                        tokio::time::sleep(REFRESH).await;
                    }
                    Err(error) if last.is_empty() && file.is_some() => return error,
                    Err(error) => {
                        let error = chain(&error);
                        if last.is_empty() {
                            tracing::warn!(
                                error,
                                "the kubelet API is not served: it can't check its clients"
                            );
                            readiness.set(CONDITION, Err(error));
                        } else {
                            tracing::warn!(error, "keeping the clients' CA that was loaded before");
                        }
                        backoff.sleep().await;
                    }
                }
            }
        };
        (Self(receiver), keep_fresh)
    }

    /// Waits for the first CA.
    pub(super) async fn ready(&mut self) {
        if self.0.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The newest configuration.
    ///
    /// # Panics
    /// Before [`Tls::ready`].
    pub(super) fn current(&mut self) -> Arc<ServerConfig> {
        self.0.borrow_and_update().clone().expect("waited for by ready()")
    }

    /// Waits until a client's certificate, checked with what [`Tls::current`] gave, proves nothing any more: it has ended, or the CA is
    /// another. For ever where the client had none.
    pub(super) async fn outdates(&mut self, valid_until: Option<Timestamp>) {
        let Some(valid_until) = valid_until else { return std::future::pending().await };
        let changed = async {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = sleep_until(valid_until) => {}
            () = changed => {}
        }
    }
}

async fn load(file: Option<&PathBuf>, client: &Client) -> Result<String, TlsError> {
    if let Some(path) = file {
        return tokio::fs::read_to_string(path)
            .await
            .map_err(|source| TlsError::File { path: path.clone(), source });
    }
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let found = api.get(CONFIG_MAP).await.map_err(|source| TlsError::ConfigMap(Box::new(source)))?;
    found.data.and_then(|mut data| data.remove(KEY)).ok_or_else(|| TlsError::Invalid {
        origin: format!("configmap {NAMESPACE}/{CONFIG_MAP}"),
        problem: format!("there is no key {KEY}: the API server runs without --client-ca-file"),
    })
}

fn server_config(ca: &str, certificate: Arc<Resolver>) -> Result<ServerConfig, TlsError> {
    let invalid = |problem: String| TlsError::Invalid { origin: "the clients' CA".to_owned(), problem };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
        roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(invalid("no PEM block CERTIFICATE".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| invalid(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    // Exec upgrades its connection, which HTTP/2 can't.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // In a resumed session the certificate would not be checked again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
