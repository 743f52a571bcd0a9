//! Who this process is: a node, `system:node:NAME` in `system:nodes`, so that the API server's own authorizers keep it to what its
//! pods need.
//!
//! Beside a runtime the identity is a client certificate, got by TLS bootstrap and rotated here. In a cluster it is a service account
//! that impersonates the node. With a kubeconfig of the admin's it is whatever that says. Everyone else is handed one
//! [`kube::Client`] at the start; requests made before there is a certificate wait for it, and a rotation is not noticed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use spillway_daemon::admin::Readiness;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, config::IdentityConfig, metrics::Metrics};

mod client;
pub mod csr;
pub mod serving;
pub mod store;

use csr::{CsrError, Request, Signer};
use store::{Credential, Store, StoreError};

/// File name, without extension, of the client certificate in the certificate folder.
const CLIENT: &str = "spillway-vk-client";
/// How often the clock is looked at while a certificate is good.
const CLOCK_LOOK: Duration = Duration::from_mins(1);
/// How long the API server may say nothing on a connection that an answer is waited for on. A watch hears from it once a minute (bookmarks), unless
/// the way there is cut or the server was replaced behind it: without this, a watch would go on waiting for minutes after the way is open again.
const SILENCE: Duration = Duration::from_secs(100);
/// The readiness condition that this module sets.
const CONDITION: &str = "identity";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Neither a kubeconfig nor a service account.
    #[error(
        "no way to the API server: give --kubeconfig, or --bootstrap-kubeconfig for a first certificate, or run in a pod with a \
         service account"
    )]
    Nothing,
    /// A kubeconfig can't be used.
    #[error("can't use kubeconfig {}: {problem}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its causes.
        problem: String,
    },
    /// The service account can't be used.
    #[error("can't use this pod's service account")]
    InCluster(#[source] kube::config::InClusterError),
    /// No client can be made of what the kubeconfig says.
    #[error("can't set up a client for the API server {server}")]
    Client {
        /// The server's URL.
        server: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// The kubeconfig can't be written.
    #[error("can't turn the new kubeconfig into YAML: {0}")]
    Render(String),
    /// The certificate folder fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate was not to be had.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The certificate has run out, or never was, and nothing can get another.
    #[error(
        "there is no valid certificate for node {node} in {}, and no --bootstrap-kubeconfig to get one with", folder.display()
    )]
    NoBootstrap {
        /// The node.
        node: String,
        /// The certificate folder.
        folder: PathBuf,
    },
}

/// The identity, and the task that keeps it.
pub struct Identity {
    node: String,
    mode: Mode,
    current: watch::Sender<Option<Client>>,
    readiness: Readiness,
    metrics: Metrics,
}

enum Mode {
    /// Given; nothing to keep.
    Fixed,
    Certificate {
        store: Store,
        /// Where the API server is: the bootstrap kubeconfig, or what an earlier bootstrap wrote.
        bootstrap: Option<PathBuf>,
        kubeconfig: PathBuf,
    },
}

impl Identity {
    /// Decides how to be who, without asking the network. Returns the client for all others, and the API server's URL.
    pub async fn new(
        config: &IdentityConfig,
        node: &str,
        readiness: Readiness,
        metrics: Metrics,
    ) -> Result<(Self, Client, http::Uri), IdentityError> {
        let store = Store::new(&config.cert_dir);
        let written = config.kubeconfig.clone().unwrap_or_else(|| config.cert_dir.join("kubeconfig"));
        let (current, receiver) = watch::channel(None);
        let (mode, server) = if let Some(bootstrap) = &config.bootstrap_kubeconfig {
            // A bootstrap file may be gone once it has served.
            let source = if bootstrap.exists() || !written.exists() { bootstrap } else { &written };
            let server = load(source).await?.cluster_url;
            let mode = Mode::Certificate { store, bootstrap: Some(bootstrap.clone()), kubeconfig: written };
            (mode, server)
        } else if written.exists() && refers_to(&written, &store.path(CLIENT)) {
            let server = load_cluster(&written).await?.cluster_url;
            (Mode::Certificate { store, bootstrap: None, kubeconfig: written }, server)
        } else if let Some(path) = &config.kubeconfig {
            let config = load(path).await?;
            let server = config.cluster_url.clone();
            current.send_replace(Some(connect(config)?));
            (Mode::Fixed, server)
        } else if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            let mut config = Config::incluster().map_err(IdentityError::InCluster)?;
            config.auth_info.impersonate = Some(format!("system:node:{node}"));
            config.auth_info.impersonate_groups = Some(vec!["system:nodes".to_owned()]);
            let server = config.cluster_url.clone();
            current.send_replace(Some(connect(config)?));
            (Mode::Fixed, server)
        } else {
            return Err(IdentityError::Nothing);
        };
        readiness.set(
            CONDITION,
            match mode {
                Mode::Fixed => Ok(()),
                Mode::Certificate { .. } => Err("no client certificate yet".to_owned()),
            },
        );
        let identity = Self { node: node.to_owned(), mode, current, readiness, metrics };
        let client = client::rotating(receiver, &server);
        Ok((identity, client, server))
    }

    /// Gets the certificate, and a new one before it ends, until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), IdentityError> {
        let Mode::Certificate { store, bootstrap, kubeconfig } = &self.mode else {
            stop.cancelled().await;
            return Ok(());
        };
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            result = self.keep(store, bootstrap.as_deref(), kubeconfig) => result,
        }
    }

    async fn keep(
        &self,
        store: &Store,
        bootstrap: Option<&Path>,
        kubeconfig: &Path,
    ) -> Result<(), IdentityError> {
        let kept = store.load(CLIENT)?.filter(|found| self.fits(found) && found.is_current());
        let mut credential = match kept {
            Some(kept) => kept,
            None => self.first(store, bootstrap).await?,
        };
        loop {
            self.publish(&credential, store, bootstrap, kubeconfig).await?;
            sleep_until(credential.renewal()).await;
            credential = match self.renewed(&credential, store).await {
                Some(renewed) => renewed,
                None => self.first(store, bootstrap).await?,
            };
        }
    }

    async fn first(&self, store: &Store, bootstrap: Option<&Path>) -> Result<Credential, IdentityError> {
        let Some(bootstrap) = bootstrap else {
            return Err(IdentityError::NoBootstrap {
                node: self.node.clone(),
                folder: store.folder().to_owned(),
            });
        };
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        loop {
            match self.bootstrap(bootstrap, store).await {
                Ok(credential) => return Ok(credential),
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, "can't get a client certificate yet; trying again");
                    self.readiness.set(CONDITION, Err(error));
                    backoff.sleep().await;
                }
            }
        }
    }

    /// With the certificate that it replaces, while that is good; `None` when it no longer is.
    async fn renewed(&self, credential: &Credential, store: &Store) -> Option<Credential> {
        let client = self.current.borrow().clone()?;
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        while credential.is_current() {
            match self.request(&client, store, |_| {}).await {
                Ok(renewed) => return Some(renewed),
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, "can't renew the client certificate; trying again");
                    backoff.sleep().await;
                }
            }
        }
        None
    }

    /// The file is read each time: an admin may put a fresh token into it.
    async fn bootstrap(&self, kubeconfig: &Path, store: &Store) -> Result<Credential, IdentityError> {
        let config = load(kubeconfig).await?;
        let server = config.cluster_url.to_string();
        let client = connect(config)?;
        tracing::info!(
            server,
            node = self.node,
            "asking for a client certificate with the bootstrap kubeconfig"
        );
        self.request(&client, store, |how| self.readiness.set(CONDITION, Err(how))).await
    }

    async fn request(
        &self,
        client: &Client,
        store: &Store,
        waiting: impl Fn(String),
    ) -> Result<Credential, IdentityError> {
        let request = Request { node: &self.node, signer: Signer::KubeletClient, address: None };
        let pending = |csr: &str| {
            let how = format!("waiting for approval: kubectl certificate approve {csr}");
            tracing::info!(csr, "the client certificate is {how}");
            waiting(how);
        };
        Ok(csr::obtain(client, store, CLIENT, &request, pending).await?)
    }

    async fn publish(
        &self,
        credential: &Credential,
        store: &Store,
        bootstrap: Option<&Path>,
        kubeconfig: &Path,
    ) -> Result<(), IdentityError> {
        // The API server may have moved since the last bootstrap; the bootstrap file knows first.
        if let Some(bootstrap) = bootstrap.filter(|path| path.exists()) {
            write_kubeconfig(bootstrap, kubeconfig, &store.path(CLIENT), &self.node).await?;
        }
        let mut config = load_cluster(kubeconfig).await?;
        config.auth_info = credential.auth_info();
        self.current.send_replace(Some(connect(config)?));
        self.readiness.set(CONDITION, Ok(()));
        self.metrics.certificate_expires("client", credential.not_after);
        tracing::info!(certificate.expires = %credential.not_after, "client certificate is in use");
        Ok(())
    }

    fn fits(&self, credential: &Credential) -> bool {
        let fits = credential.common_name == format!("system:node:{}", self.node);
        if !fits {
            tracing::warn!(
                found = credential.common_name,
                node = self.node,
                "the certificate in the folder is another node's: not used"
            );
        }
        fits
    }
}

async fn load(path: &Path) -> Result<Config, IdentityError> {
    resolve(path, read(path).await?).await
}

/// The kubeconfig without its user, whose certificate is loaded from the store.
async fn load_cluster(path: &Path) -> Result<Config, IdentityError> {
    let mut kubeconfig = read(path).await?;
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(AuthInfo::default());
    }
    resolve(path, kubeconfig).await
}

async fn read(path: &Path) -> Result<Kubeconfig, IdentityError> {
    let unusable = |problem: String| {
        // A parser's excerpt of the file follows in further lines.
        let problem = problem.lines().next().unwrap_or_default().to_owned();
        IdentityError::Kubeconfig { path: path.to_owned(), problem }
    };
    // Tried first, because the library's own word for a missing file names it and its cause twice.
    tokio::fs::metadata(path).await.map_err(|error| unusable(error.to_string()))?;
    Kubeconfig::read_from(path).map_err(|error| unusable(chain(&error)))
}

async fn resolve(path: &Path, kubeconfig: Kubeconfig) -> Result<Config, IdentityError> {
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| IdentityError::Kubeconfig { path: path.to_owned(), problem: chain(&error) })
}

fn connect(mut config: Config) -> Result<Client, IdentityError> {
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let server = config.cluster_url.to_string();
    Client::try_from(config).map_err(|source| IdentityError::Client { server, source: Box::new(source) })
}

/// Is this the kubeconfig that an earlier bootstrap of ours wrote?
fn refers_to(kubeconfig: &Path, certificate: &Path) -> bool {
    Kubeconfig::read_from(kubeconfig).is_ok_and(|found| {
        let used = |user: &AuthInfo| user.client_certificate.as_deref().map(Path::new) == Some(certificate);
        found.auth_infos.iter().filter_map(|user| user.auth_info.as_ref()).any(used)
    })
}

/// The bootstrap kubeconfig's cluster with the certificate's user: for our next start and for whoever debugs as this node.
async fn write_kubeconfig(
    bootstrap: &Path,
    target: &Path,
    certificate: &Path,
    node: &str,
) -> Result<(), IdentityError> {
    let mut kubeconfig = read(bootstrap).await?;
    let certificate = certificate.display().to_string();
    let user = AuthInfo {
        client_certificate: Some(certificate.clone()),
        client_key: Some(certificate),
        ..AuthInfo::default()
    };
    let current = kubeconfig.current_context.clone().unwrap_or_default();
    let context = kubeconfig.contexts.iter_mut().find(|context| context.name == current);
    if let Some(context) = context.and_then(|context| context.context.as_mut()) {
        context.user = Some(format!("system:node:{node}"));
    }
    kubeconfig.auth_infos = vec![kube::config::NamedAuthInfo {
        name: format!("system:node:{node}"),
        auth_info: Some(user),
        ..Default::default()
    }];
    let text =
        serde_saphyr::to_string(&kubeconfig).map_err(|error| IdentityError::Render(error.to_string()))?;
    if tokio::fs::read_to_string(target).await.is_ok_and(|old| old == text) {
        return Ok(());
    }
    Ok(store::write_atomically(target, text.as_bytes())?)
}

/// Waits for a time of the machine's clock.
pub(crate) async fn sleep_until(time: jiff::Timestamp) {
    sleep_until_by(jiff::Timestamp::now, time).await;
}

/// The clock is looked at again and again: a machine may start with a wrong one, and a certificate may not run out because of that.
async fn sleep_until_by(now: impl Fn() -> jiff::Timestamp, time: jiff::Timestamp) {
    while let Ok(left) = Duration::try_from(time.duration_since(now()))
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(CLOCK_LOOK)).await;
    }
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let words;
        // The client library would print all fields of the API server's answer.
        (words, next) = match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => (status.message.clone(), None),
            Some(kube::Error::Service(cause)) => (cause.to_string(), cause.source()),
            _ => (error.to_string(), error.source()),
        };
        // Some libraries print their cause as well as returning it.
        if !text.ends_with(&words) {
            text = if text.is_empty() { words } else { format!("{text}: {words}") };
        }
    }
    text
}

#[cfg(test)]
mod tests;
