//! What the Kubernetes API tells of a live cluster, and what may not be asked. Reads only.

mod causes;
mod exposition;
mod follow;
mod gangs;
mod kubelets;
pub mod objects;
mod prometheus;
pub mod rights;
mod usage;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    api::{ListParams, ObjectList},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::Status,
};
use serde::de::DeserializeOwned;

pub use self::follow::follow;
use self::rights::{Granted, Missing, Right};
use crate::{
    args::Global,
    history::prometheus::transport::Transport,
    report::snapshot::{Phase, Snapshot},
    terminal,
};

/// Objects of one answer.
const PAGE: u32 = 500;
/// How often a list that takes too long goes on.
const AGAIN: u32 = 20;
/// Finding nobody at the other end.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Why a cluster can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig can't be used.
    #[error("can't use the kubeconfig{}", .path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Kubeconfig {
        /// The file, where one was named.
        path: Option<PathBuf>,
        /// What is wrong.
        source: KubeconfigError,
    },
    /// There is no cluster.
    #[error("no cluster: give --kubeconfig, set $KUBECONFIG, or run in a pod with a service account")]
    Nowhere(#[source] kube::config::InferConfigError),
    /// The client can't be made.
    #[error("can't make a client of the Kubernetes API")]
    Client(#[source] kube::Error),
    /// A request failed.
    #[error("can't {what}")]
    Request {
        /// What was asked for.
        what: String,
        /// What the API server, or the way there, says.
        source: Box<kube::Error>,
    },
    /// Rights that nothing works without are missing.
    #[error("{0}")]
    Rights(Missing),
}

impl Error {
    fn request(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Request { what, source: Box::new(source) }
    }

    fn status(&self) -> Option<&Status> {
        match self {
            Self::Request { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A client for the cluster that the command line means.
///
/// # Errors
/// When there is none, or no way to it.
pub async fn connect(global: &Global) -> Result<Client, Error> {
    Client::try_from(config(global).await?).map_err(Error::Client)
}

/// The same for whoever decides by itself what to ask again: by default the client repeats what is refused with 429, 503 or 504 fifteen times, for minutes, and says nothing.
///
/// # Errors
/// As [`connect`].
pub async fn connect_without_retries(global: &Global) -> Result<Client, Error> {
    let mut config = config(global).await?;
    config.default_retry = false;
    Client::try_from(config).map_err(Error::Client)
}

async fn config(global: &Global) -> Result<Config, Error> {
    // A second one is none: whoever came first has installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let wrong = |source| Error::Kubeconfig { path: global.kubeconfig.clone(), source };
    let mut config = match &global.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(wrong)?
        }
        None if global.context.is_some() => Config::from_kubeconfig(&options).await.map_err(wrong)?,
        None => Config::infer().await.map_err(Error::Nowhere)?,
    };
    config.connect_timeout = Some(CONNECT_WITHIN);
    Ok(config)
}

/// The namespaces that there are, for completion; none where they can't be had `within` that time.
pub fn namespaces(global: Global, within: Duration) -> Vec<String> {
    let (tell, told) = std::sync::mpsc::channel();
    let ask = move || -> Option<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let found = runtime.block_on(async {
            let client = connect(&global).await.ok()?;
            let api: Api<Namespace> = Api::all(client);
            api.list_metadata(&ListParams::default().limit(PAGE)).await.ok()
        })?;
        tell.send(found.items.into_iter().filter_map(|one| one.metadata.name).collect()).ok()
    };
    // On a thread, for a program that the kubeconfig names for credentials is waited for without end. It goes with this process.
    std::thread::spawn(ask);
    told.recv_timeout(within).unwrap_or_default()
}

/// What is read.
#[derive(Default)]
pub struct Reading {
    /// Where to ask who uses what, if at all: [without retries](connect_without_retries), for a report can do without those who tell.
    pub usage: Option<Client>,
    /// The namespace that matters, where one does: all are read where that is allowed, for the others hold machines, too.
    pub namespace: Option<String>,
    /// Who else is asked for use.
    pub prometheus: Option<Transport>,
}

/// Checks the rights, then reads everything.
///
/// # Errors
/// When nodes or pods can't be listed; of one namespace, when its pods can't.
pub async fn read(client: &Client, reading: &Reading) -> Result<Snapshot, Error> {
    let may = rights::check(client, &Right::of_report(), reading.namespace.as_deref()).await?;
    let mut sources = usage::Sources::default();
    let begun = Instant::now();
    let mut snapshot = listed(client, &may, |pod| sources.notice(pod)).await?;
    snapshot.lists_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    causes::read(client, &mut snapshot, &may).await;
    if let Some(client) = &reading.usage {
        usage::read(client, &mut snapshot, &sources, &may, reading.prometheus.as_ref()).await;
    }
    snapshot.beside_s = begun.elapsed().as_secs_f64();
    Ok(snapshot)
}

/// Reads nodes and pods, and nothing else.
///
/// # Errors
/// When they can't be listed.
pub async fn list(client: &Client) -> Result<Snapshot, Error> {
    listed(client, &Granted::to(&[Right::NODES, Right::PODS]), |_| {}).await
}

async fn listed(
    client: &Client,
    may: &Granted,
    mut notice: impl FnMut(&objects::Pod),
) -> Result<Snapshot, Error> {
    let mut snapshot = Snapshot { at: Timestamp::now(), ..Snapshot::default() };
    unseen(&mut snapshot, may);
    if snapshot.machines_seen {
        each::<objects::Node>(&Api::all(client.clone()), "nodes", |node| {
            let node = node.shown(&mut snapshot.names);
            snapshot.nodes.push(node);
        })
        .await?;
    }
    if let Some(pods) = may.api(client, &Right::PODS) {
        each::<objects::Pod>(&pods, "pods", |pod| {
            notice(&pod);
            if let Some(node) = pod.refused_for_numa() {
                snapshot.numa_refused.insert(snapshot.names.word(node));
            }
            let pod = pod.shown(&mut snapshot.names);
            if pod.phase != Phase::Ended {
                snapshot.pods.push(pod);
            }
        })
        .await?;
    }
    snapshot.at = Timestamp::now();
    Ok(snapshot)
}

/// Says what the rights to nodes and pods leave out.
fn unseen(snapshot: &mut Snapshot, may: &Granted) {
    snapshot.machines_seen = may.place(&Right::NODES).is_some();
    if !snapshot.machines_seen {
        snapshot.beside.not_seen.push(format!(
            "machines, and with them what is free and whether a pod fits: {}",
            may.lacking(&Right::NODES)
        ));
    }
    snapshot.pods_only_in = may.only_in(&Right::PODS).map(str::to_owned);
    if let Some(namespace) = &snapshot.pods_only_in {
        snapshot.beside.not_seen.push(format!(
            "pods of other namespaces than {namespace}, and with them what is free: {}",
            may.lacking(&Right::PODS)
        ));
    }
}

/// All objects of a kind, page by page.
async fn each<K>(api: &Api<K>, what: &str, mut take: impl FnMut(K)) -> Result<(), Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let progress = terminal::progress(None, what);
    let mut parameters = ListParams::default().limit(PAGE);
    let mut again = 0;
    loop {
        let page: ObjectList<K> =
            match api.list(&parameters).await.map_err(Error::request(format!("list {what}"))) {
                Ok(page) => page,
                // It took longer than the API server remembers the beginning. It says where to go on, as things are now.
                Err(error) => {
                    let gone = error
                        .status()
                        .filter(|status| status.code == 410 && parameters.continue_token.is_some());
                    let token = gone.and_then(|status| status.metadata.as_ref()?.continue_.clone());
                    let Some(token) = token.filter(|_| again < AGAIN) else { return Err(error) };
                    again += 1;
                    parameters.continue_token = Some(token);
                    continue;
                }
            };
        progress.inc(u64::try_from(page.items.len()).unwrap_or(u64::MAX));
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        page.items.into_iter().for_each(&mut take);
        let Some(token) = next else { break };
        parameters.continue_token = Some(token);
    }
    progress.finish_and_clear();
    Ok(())
}
