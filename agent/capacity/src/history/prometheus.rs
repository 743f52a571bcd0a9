//! Usage from Prometheus, or what answers like it (Thanos, Mimir, `VictoriaMetrics`): range queries in parts, tried again where that may help. A part that can't be had is a
//! gap and told, as is a time that Prometheus has nothing of.

pub mod answer;
mod asking;
mod queries;
pub mod transport;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Cell, Key, Recorded, Step};
use answer::{Answer, Refusal};
use asking::Asking;
pub use asking::reach;
pub use queries::{Kind, detect, own};
use transport::Transport;

/// Points of a series in one query. Prometheus refuses more than 11,000; fewer keep answers small.
const MOST_POINTS: i64 = 2000;
/// More warnings are counted, not told.
const MOST_WARNINGS: usize = 20;

/// Why there is nothing from Prometheus.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It isn't an address.
    #[error(
        "{0:?} is no address of Prometheus: http://HOST:PORT/PREFIX, https://…, or svc://NAMESPACE/SERVICE:PORT through the Kubernetes API"
    )]
    Address(String),
    /// A file of credentials can't be read, or isn't as it should be.
    #[error("can't take {path} for {what}: {why}")]
    Credentials {
        /// The file.
        path: String,
        /// Which flag.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The client can't be made.
    #[error("can't make a client for Prometheus")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing answers.
    #[error("{address} does not answer: is the address right, and does it run?")]
    Away {
        /// Whom was asked.
        address: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It takes connections and says nothing.
    #[error(
        "{address} takes the connection and says nothing for {limit_s} s: it is stopped, overloaded or not reachable from where it is forwarded; look at its pod and its log"
    )]
    Silent {
        /// Who was asked.
        address: String,
        /// The limit.
        limit_s: u64,
    },
    /// A query takes too long.
    #[error("{address} took longer than {limit_s} s over a query: take less time or a longer --step")]
    Slow {
        /// Who was asked.
        address: String,
        /// The limit.
        limit_s: u64,
    },
    /// It answers with an error.
    #[error("{address} answers {status}: {message}{}", hint(.address, *.status))]
    Status {
        /// Who was asked.
        address: String,
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
        /// Whether they are Prometheus' own, and not those of something before it.
        own: bool,
        /// How long to wait, where it says so.
        after: Option<Duration>,
    },
    /// It answers with more than is taken.
    #[error("{address} answers with more than {most} bytes")]
    Large {
        /// Who was asked.
        address: String,
        /// The limit.
        most: usize,
    },
    /// It is no answer of Prometheus.
    #[error("{address} does not answer like Prometheus")]
    Garbage {
        /// Who was asked.
        address: String,
        /// What is wrong with it.
        source: Refusal,
    },
    /// Not one query was answered.
    #[error("nothing could be had of {address}")]
    Nothing {
        /// Who was asked.
        address: String,
        /// What was said last.
        source: Box<Error>,
    },
    /// It knows none of the metrics.
    #[error(
        "{address} has no metrics of accelerators in that time: neither of kube-state-metrics (kube_pod_container_resource_requests), nor of Spillway's agent \
         (spillway_container_device_held), nor of the DCGM exporter (DCGM_FI_DEV_GPU_UTIL); scrape one of them, or give your own --query"
    )]
    NoMetrics {
        /// Who was asked.
        address: String,
    },
}

fn hint(address: &str, status: u16) -> &'static str {
    match status {
        403 if transport::is_service(address) => {
            "; the Kubernetes API lets you through with the right to get services/proxy in that namespace"
        }
        503 if transport::is_service(address) => "; does a pod of that service run, and is it ready?",
        401 | 403 => {
            "; give --prometheus-token-file or --prometheus-auth-file, or take an account that may ask"
        }
        404 => "; is it the right address, with the path before /api/v1?",
        _ => "",
    }
}

impl Error {
    /// Whether the same may succeed a little later.
    fn passes(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Silent { .. } | Self::Slow { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            // A body that was cut.
            Self::Garbage { source, .. } => matches!(source, Refusal::Cut),
            _ => false,
        }
    }

    /// Whether there is no Prometheus at the other end, as while its pod is replaced.
    fn nobody(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Silent { .. } => true,
            Self::Status { status, own, .. } => !own && matches!(status, 502..=504),
            _ => false,
        }
    }

    /// Whether half of it may succeed.
    fn too_much(&self) -> bool {
        match self {
            Self::Large { .. } | Self::Slow { .. } => true,
            // "query processing would load too many samples into memory", "exceeded maximum resolution".
            Self::Status { status: 400 | 413 | 422, message, .. } => {
                message.contains("too many samples")
                    || message.contains("maximum resolution")
                    || message.contains("too large")
            }
            // "query timed out in expression evaluation".
            Self::Status { status: 503 | 504, message, own: true, .. } => message.contains("timed out"),
            _ => false,
        }
    }
}

/// A period, in seconds since 1970; the points of a step are its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// After this time; a multiple of the step.
    pub since_s: i64,
    /// Until this time; a multiple of the step.
    pub until_s: i64,
    /// Seconds between points.
    pub step_s: i64,
}

impl Range {
    /// The whole steps within a period.
    pub fn of(since_s: i64, until_s: i64, step_s: i64) -> Self {
        let step_s = step_s.max(1);
        let floor = |at_s: i64| at_s.div_euclid(step_s) * step_s;
        Self { since_s: floor(since_s), until_s: floor(until_s), step_s }
    }

    fn points(self) -> i64 {
        (self.until_s - self.since_s) / self.step_s
    }

    /// Parts of at most so many points, in order.
    fn parts(self, most: i64) -> impl Iterator<Item = Self> {
        let length = most * self.step_s;
        let count = self.points().div_euclid(most) + i64::from(self.points() % most != 0);
        (0..count).map(move |index| {
            let since_s = self.since_s + index * length;
            Self { since_s, until_s: (since_s + length).min(self.until_s), ..self }
        })
    }
}

/// What one query asks for, and what its series are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// In `PromQL`.
    pub promql: String,
    /// What its series count; `None` where it only tells when there was something to see.
    pub counts: Option<Kind>,
}

/// What Prometheus tells, and what should be known about it.
#[derive(Debug, Default)]
pub struct Told {
    /// By step and series.
    pub recorded: Recorded,
    /// Warnings of Prometheus' own and of ours.
    pub warnings: Vec<String>,
}

/// Asks all queries for a period. `progress` is told how many parts there are, then each that is done.
///
/// # Errors
/// When nothing is answered, or something that trying again doesn't mend: credentials, a query that is none.
pub async fn ask(
    transport: &Transport,
    queries: &[Query],
    range: Range,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Told, Error> {
    let parts: Vec<Range> = range.parts(MOST_POINTS).collect();
    progress(Progress::Parts(parts.len() * queries.len()));
    let mut asking = Asking::new(transport, progress);
    let mut gathered = Gathered::new(range);
    let mut answered = false;
    let mut last = None;
    'all: for part in parts {
        for query in queries {
            // Halves of halves wait here, the earliest on top.
            let mut asked = vec![part];
            while let Some(piece) = asked.pop() {
                match asking.range(query, piece).await {
                    Ok(answer) => {
                        answered = true;
                        gathered.take(query, piece, answer);
                    }
                    Err(error) if asking.given_up() => {
                        // Of this part not all queries were asked.
                        gathered.miss(Range { since_s: part.since_s, ..range }, &error);
                        last = Some(error);
                        break 'all;
                    }
                    Err(error) if error.too_much() && piece.points() > 1 => {
                        let middle_s = piece.since_s + piece.points() / 2 * piece.step_s;
                        asked.push(Range { since_s: middle_s, ..piece });
                        asked.push(Range { until_s: middle_s, ..piece });
                    }
                    Err(error) if error.passes() || error.too_much() => {
                        gathered.miss(piece, &error);
                        last = Some(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            progress(Progress::Done);
        }
    }
    match last {
        Some(source) if !answered => {
            Err(Error::Nothing { address: transport.address().to_owned(), source: Box::new(source) })
        }
        _ => Ok(gathered.finish()),
    }
}

/// How far the queries are.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// There are so many parts.
    Parts(usize),
    /// One of them is done.
    Done,
    /// It is waited for Prometheus to come back.
    Waits(&'a Error),
}

/// Answers put together.
struct Gathered {
    range: Range,
    /// Ends of steps that something was seen in.
    seen: BTreeSet<i64>,
    /// Ends of steps of which a query failed.
    missed: BTreeSet<i64>,
    series: BTreeMap<Key, BTreeMap<i64, i64>>,
    warnings: BTreeSet<String>,
    further: usize,
}

impl Gathered {
    fn new(range: Range) -> Self {
        Self {
            range,
            seen: BTreeSet::new(),
            missed: BTreeSet::new(),
            series: BTreeMap::new(),
            warnings: BTreeSet::new(),
            further: 0,
        }
    }

    fn warn(&mut self, warning: String) {
        if self.warnings.len() < MOST_WARNINGS || self.warnings.contains(&warning) {
            self.warnings.insert(warning);
        } else {
            self.further += 1;
        }
    }

    fn take(&mut self, query: &Query, part: Range, answer: Answer) {
        for warning in answer.warnings {
            self.warn(format!("Prometheus: {warning}"));
        }
        if answer.left_out > 0 {
            self.warn(format!("{} values are no numbers of GPUs and were left out", answer.left_out));
        }
        for series in answer.series {
            let key = query.counts.as_ref().map(|kind| kind.key(&series.labels));
            let unit = query.counts.as_ref().map_or(1.0, |kind| kind.unit(&series.labels));
            for (at_s, gpus) in series.points {
                // Only what was asked for: a server that answers more would count twice.
                if at_s <= part.since_s || at_s > part.until_s || (at_s - part.since_s) % part.step_s != 0 {
                    continue;
                }
                self.seen.insert(at_s);
                if let Some(key) = &key {
                    #[expect(
                        clippy::cast_possible_truncation,
                        reason = "the parser takes no more than 10^7 GPUs"
                    )]
                    let milli = (gpus * unit * 1000.0).round() as i64;
                    *self.series.entry(key.clone()).or_default().entry(at_s).or_default() += milli;
                }
            }
        }
    }

    fn miss(&mut self, part: Range, error: &Error) {
        let since = super::view::rfc3339(part.since_s);
        let until = super::view::rfc3339(part.until_s);
        self.warn(format!("{since} to {until} is missing: {}", super::recorder::chain(error)));
        let mut at_s = part.since_s + part.step_s;
        while at_s <= part.until_s {
            self.missed.insert(at_s);
            at_s += part.step_s;
        }
    }

    fn finish(self) -> Told {
        let step_s = self.range.step_s;
        let known: BTreeSet<i64> = self.seen.difference(&self.missed).copied().collect();
        let seen = known.iter().map(|end_s| Step { end_s: *end_s, len_s: step_s, seen_s: step_s }).collect();
        let cell = |(end_s, milli): (i64, i64)| Cell {
            end_s,
            milli_gpu_s: milli.saturating_mul(step_s),
            least: milli,
            most: milli,
        };
        let series = self.series.into_iter().map(|(key, points)| {
            let cells = points.into_iter().filter(|(end_s, milli)| known.contains(end_s) && *milli > 0);
            (key, cells.map(cell).collect())
        });
        let mut warnings: Vec<String> = self.warnings.into_iter().collect();
        if self.further > 0 {
            warnings.push(format!("and {} more warnings", self.further));
        }
        Told { recorded: Recorded { steps: seen, series: series.collect() }, warnings }
    }
}

#[cfg(test)]
mod tests;
