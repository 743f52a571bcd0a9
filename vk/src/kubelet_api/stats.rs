//! `/stats/summary`, `/metrics/resource` and `/metrics/cadvisor`: what pods and machine use, and `/metrics/probes`. The provider is asked at most once a second,
//! by one request at a time; whoever else asks meanwhile gets the same answer. Nothing is looked at while nobody asks.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    extract::{Query, State},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use jiff::Timestamp;
use tokio::{sync::Mutex, time::Instant};

use super::Shared;
use crate::{
    identity::chain,
    provider::{Provider, usage::Usage},
};

mod cadvisor;
mod probes;
mod rate;
mod resource;
mod summary;
mod text;
mod volumes;

use rate::Rates;
use summary::{Summary, Volumes};

/// How old an answer may be.
const MAX_AGE: Duration = Duration::from_secs(1);
/// Volumes are counted file by file.
const VOLUMES_MAX_AGE: Duration = Duration::from_mins(1);
/// Scrapers give up earlier.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The last answers.
pub(super) struct Cache {
    node: String,
    root_dir: PathBuf,
    usage: Mutex<Option<Looked>>,
    /// Owned while it is counted, by a task that outlives the request.
    volumes: Arc<Mutex<Option<Counted>>>,
    started_at: Timestamp,
}

/// When the oldest of them was counted, and the volumes.
type Counted = (Instant, Arc<Volumes>);

struct Looked {
    at: Instant,
    usage: Arc<Usage>,
    rates: Arc<Rates>,
}

impl Cache {
    pub(super) fn new(node: &str, root_dir: PathBuf) -> Self {
        Self {
            node: node.to_owned(),
            root_dir,
            usage: Mutex::default(),
            volumes: Arc::default(),
            started_at: Timestamp::now(),
        }
    }

    /// What is used now, or was a moment ago. The lock is held while the provider is asked: others wait for the same answer.
    pub(super) async fn usage(&self, provider: &Provider) -> Result<(Arc<Usage>, Arc<Rates>), Refusal> {
        let stats = provider.stats().ok_or_else(|| {
            (
                StatusCode::NOT_IMPLEMENTED,
                format!("provider {:?} doesn't tell what pods use", provider.name()),
            )
        })?;
        let mut last = self.usage.lock().await;
        if let Some(looked) = last.as_ref().filter(|looked| looked.at.elapsed() < MAX_AGE) {
            return Ok((Arc::clone(&looked.usage), Arc::clone(&looked.rates)));
        }
        let failed = |problem: String| {
            tracing::warn!(problem, "can't tell what pods use");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Error: {problem}"))
        };
        let usage = tokio::time::timeout(TIMEOUT, stats.usage())
            .await
            .map_err(|_| failed(format!("no answer from the provider within {} s", TIMEOUT.as_secs())))?
            .map_err(|error| failed(chain(&error)))?;
        for problem in &usage.problems {
            tracing::debug!(problem, "part of what pods use can't be told");
        }
        let rates = last.take().map(|looked| looked.rates).unwrap_or_default();
        let rates = Arc::new(rates.updated(&usage));
        let looked = Looked { at: Instant::now(), usage: Arc::new(usage), rates };
        let answer = (Arc::clone(&looked.usage), Arc::clone(&looked.rates));
        *last = Some(looked);
        Ok(answer)
    }

    /// What the volumes of these pods take. A count goes on when its request is given up, so that the next request has it.
    async fn volumes(&self, shared: &Shared, usage: &Usage) -> Arc<Volumes> {
        let mut last = Arc::clone(&self.volumes).lock_owned().await;
        let known = last.as_ref().filter(|(at, _)| at.elapsed() < VOLUMES_MAX_AGE);
        if let Some((_, volumes)) = known
            && usage.pods.iter().all(|pod| volumes.contains_key(&pod.pod.uid))
        {
            return Arc::clone(volumes);
        }
        let (at, known) = known.cloned().unwrap_or_else(|| (Instant::now(), Arc::default()));
        let pods = usage
            .pods
            .iter()
            .filter_map(|used| {
                let pod = shared.pods.get(&used.pod.namespace, &used.pod.name)?;
                (pod.metadata.uid.as_deref() == Some(&used.pod.uid)).then_some(pod)
            })
            .collect();
        let root_dir = self.root_dir.clone();
        let counting = shared.tasks.spawn_blocking(move || {
            let volumes = Arc::new(volumes::count(&root_dir, pods, &known));
            *last = Some((at, Arc::clone(&volumes)));
            volumes
        });
        counting.await.unwrap_or_default()
    }
}

/// A request that gets no numbers: status and text.
pub(super) type Refusal = (StatusCode, String);

pub(super) async fn summary(
    State(shared): State<Shared>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    // As a kubelet: given once, and exactly so.
    let mut asked = query.iter().filter(|(name, _)| name == "only_cpu_and_memory");
    let only_cpu_and_memory =
        asked.next().is_some_and(|(_, value)| value == "true") && asked.next().is_none();
    let cache = &shared.stats;
    let (usage, rates) = match cache.usage(&shared.provider).await {
        Ok(answer) => answer,
        Err(refusal) => return refusal.into_response(),
    };
    let volumes = if only_cpu_and_memory { Arc::default() } else { cache.volumes(&shared, &usage).await };
    let summary = Summary::new(&cache.node, &usage, &rates, &volumes, only_cpu_and_memory);
    match serde_json::to_vec(&summary) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

pub(super) async fn resource(State(shared): State<Shared>) -> Response {
    metrics(&shared, resource::encode).await
}

pub(super) async fn cadvisor(State(shared): State<Shared>) -> Response {
    metrics(&shared, cadvisor::encode).await
}

/// An error is an answer too, as a kubelet's: scrapers see `resource_scrape_error`. Not being able to tell at all is none.
async fn metrics(shared: &Shared, encode: impl Fn(Option<&Usage>) -> String) -> Response {
    let text = match shared.stats.usage(&shared.provider).await {
        Ok((usage, _)) => encode(Some(&usage)),
        Err((StatusCode::NOT_IMPLEMENTED, message)) => {
            return (StatusCode::NOT_IMPLEMENTED, message).into_response();
        }
        Err(_) => encode(None),
    };
    ([(header::CONTENT_TYPE, TEXT)], text).into_response()
}

pub(super) async fn probes(State(shared): State<Shared>) -> Response {
    let text = probes::encode(shared.stats.started_at, &shared.pods.probed());
    ([(header::CONTENT_TYPE, TEXT)], text).into_response()
}
