//! Who has what of each pool, what is idle, what is stranded, and why a pod waits: a pure function of what was read of a cluster.
//!
//! Machines that are owned and what virtual nodes offer are never added up: a virtual node's capacity is a limit that somebody wrote down, not hardware.

pub mod condition;
mod fit;
mod holders;
mod near;
mod pools;
mod pricing;
pub(crate) mod quantity;
mod selector;
pub mod snapshot;
mod state;
mod stranded;
mod tables;
mod virtual_nodes;
mod waiting;
mod words;

use jiff::Timestamp;
use serde::Serialize;

pub use self::{
    holders::Holder,
    pools::{Gang, Largest, Machine, Pool},
    pricing::Pricing,
    stranded::Stranded,
    virtual_nodes::{Offer, VirtualNode},
    waiting::{Reason, Waiting},
};
use self::{pools::Owned, snapshot::Snapshot, state::Cluster};
use crate::price::Currency;

/// What is reported, and how it is judged.
#[derive(Debug, Clone)]
pub struct Options {
    /// Further extended resources that are accelerators.
    pub resources: Vec<String>,
    /// Only holders and waiting pods of this namespace; pools are always whole.
    pub namespace: Option<String>,
    /// Only machines with these labels, and the pods that wait for what such machines offer.
    pub selector: Selector,
    /// For how long accelerators must have been unused to be called idle, in seconds, where that is known.
    pub idle_after_s: f64,
    /// What things cost, where that is told.
    pub pricing: Option<Pricing>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            resources: Vec::new(),
            namespace: None,
            selector: Selector::default(),
            idle_after_s: 300.0,
            pricing: None,
        }
    }
}

pub(crate) use self::{
    near::names_namespaces,
    pools::{model as model_of, shares as shares_of},
    state::is_accelerator,
};
/// A selector of labels, as `kubectl -l` takes it.
pub use selector::Selector;

/// A cluster's accelerators at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// When it was looked at.
    pub at: Timestamp,
    /// Machines that are owned, by accelerator and model.
    pub dedicated: Vec<Pool>,
    /// The same machine by machine.
    pub machines: Vec<Machine>,
    /// What virtual nodes offer, each by itself.
    pub serverless: Vec<VirtualNode>,
    /// Who holds accelerators and does nothing with them.
    pub idle: Vec<Holder>,
    /// Where accelerators are free that no job can use.
    pub stranded: Vec<Stranded>,
    /// What waits, and why.
    pub waiting: Vec<Waiting>,
    /// What all costs are in, where there are any.
    pub currency: Option<Currency>,
    /// What to know of the prices.
    pub price_notes: Vec<String>,
    /// What was seen beside nodes and pods.
    pub seen: Vec<String>,
    /// What was not seen, and what would show it.
    pub not_seen: Vec<String>,
    /// What of it took how long, where that was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took: Option<Took>,
}

/// What of a report took how long.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Took {
    /// Listing nodes and pods, in seconds: the API server's time, the way, and the reading of what came.
    pub lists_s: f64,
    /// Asking for all else, in seconds.
    pub beside_s: f64,
    /// Finding out what is reported, in seconds.
    pub reckoning_s: f64,
}

/// Reports on a cluster.
pub fn of(snapshot: &Snapshot, options: &Options) -> Report {
    let cluster = Cluster::of(snapshot, &options.resources);
    let mut idle = holders::idle(&cluster, options);
    let mut waiting = waiting::waiting(&cluster, &idle);
    let shown = |machine: &state::Machine<'_>| options.selector.fits(&machine.node.labels);
    // How full machines are can't be told from the pods of one namespace.
    let whole = snapshot.pods_only_in.is_none();
    let Owned { pools: dedicated, machines, stranded } =
        if whole { pools::dedicated(&cluster, &idle, &shown) } else { Owned::default() };
    let serverless = if whole { virtual_nodes::serverless(&cluster, &shown) } else { Vec::new() };
    if !options.selector.is_empty() {
        let offered = |resource: &Option<String>| {
            dedicated.iter().any(|pool| Some(&pool.resource) == resource.as_ref())
                || serverless
                    .iter()
                    .flat_map(|node| &node.offers)
                    .any(|offer| Some(&offer.resource) == resource.as_ref())
        };
        waiting.retain(|one| offered(&one.resource));
        idle.retain(|holder| {
            cluster.machines.iter().any(|machine| *machine.node.name == *holder.node && shown(machine))
        });
    }
    if let Some(namespace) = &options.namespace {
        idle.retain(|holder| holder.namespace == *namespace);
        waiting.retain(|one| one.namespace == *namespace);
    }
    let models = dedicated.iter().filter_map(|pool| pool.model.as_deref());
    let price_notes = options.pricing.as_ref().map(|pricing| pricing.notes(models)).unwrap_or_default();
    let costs = idle.iter().any(|holder| holder.cost_per_hour.is_some());
    Report {
        at: snapshot.at,
        currency: options.pricing.as_ref().filter(|_| costs).map(Pricing::currency),
        price_notes: if costs { price_notes } else { Vec::new() },
        machines,
        dedicated,
        serverless,
        idle,
        stranded,
        waiting,
        seen: snapshot.beside.seen.clone(),
        not_seen: snapshot.beside.not_seen.clone(),
        took: None,
    }
}

/// Where accelerators are free that no job can use, as [`of`] tells it, and nothing else.
pub(crate) fn stranded(snapshot: &Snapshot) -> Vec<Stranded> {
    pools::dedicated(&Cluster::of(snapshot, &[]), &[], &|_| true).stranded
}

impl Report {
    /// Whether another one has no news: only times went on.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let timeless = |report: &Self| {
            let mut report = Self { at: Timestamp::UNIX_EPOCH, took: None, ..report.clone() };
            for one in &mut report.waiting {
                (one.waits_s, one.since) = (None, None);
            }
            for one in &mut report.idle {
                (one.idle_s, one.since) = (None, None);
            }
            report
        };
        timeless(self) == timeless(other)
    }
}

#[cfg(test)]
mod tests;
