//! What the Kubernetes API tells of a live cluster, and what may not be asked. Reads only.

mod exposition;
mod follow;
pub mod objects;
pub mod rights;
mod usage;

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, Client, Config,
    api::{ListParams, ObjectList},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::Status,
};
use serde::de::DeserializeOwned;

pub use self::follow::follow;
use self::rights::{Missing, Right};
use crate::{args::Global, report::snapshot::Snapshot, terminal};

/// Objects of one answer.
const PAGE: u32 = 500;
/// How often a list that takes too long goes on.
const AGAIN: u32 = 20;
/// Finding nobody at the other end.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A refusal by the API server older than this was overcome, or nobody tries any more: controllers try again at least every 16 minutes.
const REFUSED_WITHIN_S: f64 = 1000.0;

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
    Client::try_from(config).map_err(Error::Client)
}

/// What is read beside nodes and pods.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Whether to ask who uses what.
    pub usage: bool,
}

/// Checks the rights, then reads everything.
///
/// # Errors
/// When nodes or pods can't be listed.
pub async fn read(client: &Client, reading: &Reading) -> Result<Snapshot, Error> {
    let may = rights::check(client, &Right::of_report()).await?;
    let mut sources = usage::Sources::default();
    let mut snapshot = listed(client, |pod| sources.notice(pod)).await?;
    refusals(client, &mut snapshot, &may).await;
    if reading.usage {
        usage::read(client, &mut snapshot, &sources, &may).await;
    }
    Ok(snapshot)
}

/// Reads nodes and pods, and nothing else.
///
/// # Errors
/// When they can't be listed.
pub async fn list(client: &Client) -> Result<Snapshot, Error> {
    listed(client, |_| {}).await
}

async fn listed(client: &Client, mut notice: impl FnMut(&objects::Pod)) -> Result<Snapshot, Error> {
    let mut snapshot = Snapshot { at: Timestamp::now(), ..Snapshot::default() };
    each::<objects::Node>(&Api::all(client.clone()), "nodes", |node| {
        let node = node.shown(&mut snapshot.names);
        snapshot.nodes.push(node);
    })
    .await?;
    each::<objects::Pod>(&Api::all(client.clone()), "pods", |pod| {
        notice(&pod);
        let pod = pod.shown(&mut snapshot.names);
        if pod.phase != crate::report::snapshot::Phase::Ended {
            snapshot.pods.push(pod);
        }
    })
    .await?;
    snapshot.at = Timestamp::now();
    Ok(snapshot)
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

/// Pods that quotas, or others who have a say in it, kept from being made.
async fn refusals(client: &Client, snapshot: &mut Snapshot, may: &rights::Granted) {
    if !may.has(&Right::EVENTS) {
        snapshot
            .not_seen
            .push(format!("pods that a quota keeps from being made: {}", Right::EVENTS.lacking()));
        return;
    }
    let parameters = ListParams::default().fields("reason=FailedCreate").limit(PAGE);
    let events: ObjectList<objects::Event> = match Api::all(client.clone()).list(&parameters).await {
        Ok(events) => events,
        Err(error) => {
            snapshot
                .not_seen
                .push(format!("pods that a quota keeps from being made: events can't be listed: {error}"));
            return;
        }
    };
    let mut refusals: Vec<_> = events
        .items
        .into_iter()
        .map(objects::Event::refusal)
        .filter(|refusal| {
            refusal.at.is_some_and(|at| snapshot.at.duration_since(at).as_secs_f64() < REFUSED_WITHIN_S)
        })
        .collect();
    // Of each who tries again and again, the last word.
    refusals.sort_by(|one, other| {
        (&one.namespace, &one.owner, other.at).cmp(&(&other.namespace, &other.owner, one.at))
    });
    refusals.dedup_by(|later, first| later.namespace == first.namespace && later.owner == first.owner);
    snapshot.refusals = refusals;
}
