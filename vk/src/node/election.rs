//! Who acts for the node where several processes could. The lock is the node's own lease in kube-node-lease: it is the only one that a node's
//! identity may write, and the one that the node controller believes the node's life by. Its holder is then not the node's name but a process's.
//!
//! As in client-go: a process that sees a lease unchanged for the lease's duration, by its own clock, takes it; the holder stops acting when it
//! has not renewed it for a shorter time, or sees another holder. Every write names the version that it replaces.

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::watch;

use super::lease;
use crate::{backoff, config::LeaderElection, identity::chain, lead::Lead, metrics::Metrics};

/// What giving a lease back may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// One process's part in the election of one node's holder.
pub struct Election {
    leases: Api<Lease>,
    node: String,
    /// This process.
    identity: String,
    timing: LeaderElection,
    lead: Lead,
    /// Of the node object, which owns the lease.
    uid: watch::Receiver<Option<String>>,
    metrics: Metrics,
    seen: Option<Seen>,
    /// How long we may act, by our clock.
    valid_until: Duration,
}

/// The lease as it was last seen.
struct Seen {
    lease: Lease,
    /// Since when it is so, by our clock.
    since: Duration,
}

/// What a look at the lease shows us to do.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is ours, or may be taken.
    Write,
    /// Somebody holds it.
    Wait(String),
}

/// The outcome of one try.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Holding,
    Held(String),
}

impl Election {
    /// Nothing happens before [`Election::win`].
    pub fn new(
        client: Client,
        node: &str,
        timing: LeaderElection,
        lead: Lead,
        uid: watch::Receiver<Option<String>>,
        metrics: Metrics,
    ) -> Self {
        let host =
            nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut identity = format!("{host}_");
        for _ in 0..2 {
            // Two processes on one machine must differ, and so must two of one after the other.
            let _ = write!(identity, "{:08x}", backoff::random().to_bits() >> 20);
        }
        metrics.leads(false);
        Self {
            leases: Api::namespaced(client, lease::NAMESPACE),
            node: node.to_owned(),
            identity,
            timing,
            lead,
            uid,
            metrics,
            seen: None,
            valid_until: Duration::ZERO,
        }
    }

    /// How this process is called in the lease.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits until this process holds the lease. `standing_by` is told who does meanwhile, or why that is not known.
    pub async fn win(&mut self, standing_by: impl Fn(Result<&str, &str>)) {
        let mut told = None;
        loop {
            let asked_at = self.lead.now();
            let said = match tokio::time::timeout(self.timing.renew_deadline, self.once()).await {
                Ok(Ok(Outcome::Holding)) => {
                    self.extend(asked_at);
                    if self.lead.check().is_ok() {
                        self.metrics.leads(true);
                        tracing::info!(
                            node = self.node,
                            identity = self.identity,
                            "this process acts for the node"
                        );
                        return;
                    }
                    // The answer took too long.
                    continue;
                }
                Ok(Ok(Outcome::Held(holder))) => Ok(holder),
                Ok(Err(problem)) => Err(problem),
                Err(_) => Err("the API server gives no answer".to_owned()),
            };
            standing_by(said.as_deref().map_err(String::as_str));
            if told.as_ref() != Some(&said) {
                let (node, identity) = (&self.node, &self.identity);
                match &said {
                    Ok(holder) => tracing::info!(
                        node,
                        identity,
                        holder,
                        "standing by: another process acts for the node"
                    ),
                    Err(problem) => {
                        tracing::warn!(
                            node,
                            identity,
                            problem,
                            "the node's lease can't be got; trying again"
                        );
                    }
                }
                told = Some(said);
            }
            tokio::time::sleep(self.timing.retry_period.mul_f64(1.0 + 0.2 * backoff::random())).await;
        }
    }

    /// Renews the lease; returns why when it is lost. Nothing may be changed from then on.
    pub async fn hold(&mut self) -> String {
        let why = loop {
            let left = self.valid_until.saturating_sub(self.lead.now());
            tokio::time::sleep(self.timing.retry_period.min(left)).await;
            let asked_at = self.lead.now();
            let left = self.valid_until.saturating_sub(asked_at);
            if left.is_zero() {
                break format!("it could not be renewed for {} s", self.timing.renew_deadline.as_secs_f64());
            }
            match tokio::time::timeout(left, self.once()).await {
                Ok(Ok(Outcome::Holding)) => self.extend(asked_at),
                Ok(Ok(Outcome::Held(holder))) => break format!("it is held by {holder}"),
                Ok(Err(problem)) => {
                    self.metrics.lease_failed();
                    tracing::warn!(node = self.node, problem, "can't renew the node's lease; trying again");
                }
                Err(_) => self.metrics.lease_failed(),
            }
        };
        self.lead.give_up();
        self.metrics.leads(false);
        tracing::warn!(
            node = self.node,
            identity = self.identity,
            "the node's lease is lost: {why}; stepping down"
        );
        why
    }

    fn extend(&mut self, asked_at: Duration) {
        self.valid_until = asked_at + self.timing.renew_deadline;
        self.lead.hold_until(self.valid_until);
    }

    /// Lets others take the lease at once. Only after everything that acts has ended.
    pub async fn release(&mut self) {
        self.lead.give_up();
        self.metrics.leads(false);
        let Some(seen) = self.seen.take().filter(|seen| holder(&seen.lease) == self.identity) else { return };
        let lease = released(seen.lease, Timestamp::now());
        let parameters = PostParams::default();
        let request = self.leases.replace(&self.node, &parameters, &lease);
        match tokio::time::timeout(RELEASE_TIMEOUT, request).await {
            Ok(Ok(_)) => tracing::info!(node = self.node, "the node's lease is given back"),
            Ok(Err(error)) => {
                tracing::debug!(node = self.node, error = chain(&error), "the lease can't be given back");
            }
            Err(_) => tracing::debug!(node = self.node, "the lease can't be given back in time"),
        }
    }

    /// One look, and one write if it may be.
    async fn once(&mut self) -> Result<Outcome, String> {
        // While it is ours, what we wrote last is what is there, or the write fails.
        if self.seen.as_ref().is_none_or(|seen| holder(&seen.lease) != self.identity) {
            self.look().await?;
        }
        let step = match &self.seen {
            None => Step::Write,
            Some(seen) => decide(seen, &self.identity, self.timing.lease_duration, self.lead.now()),
        };
        if let Step::Wait(holder) = step {
            return Ok(Outcome::Held(holder));
        }
        let owner = self.uid.borrow().clone();
        let seen = self.seen.as_ref().map(|seen| seen.lease.clone());
        let wanted = taken(
            &self.node,
            &self.identity,
            self.timing.lease_duration,
            owner.as_deref(),
            seen,
            Timestamp::now(),
        );
        match lease::write(&self.leases, &self.node, &wanted).await {
            Ok(lease) => {
                self.see(Some(lease));
                Ok(Outcome::Holding)
            }
            Err(error) => {
                // Somebody was faster, or it is gone: look before the next write.
                let conflict = matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409));
                if conflict {
                    self.look().await?;
                    let other = self
                        .seen
                        .as_ref()
                        .map(|seen| holder(&seen.lease))
                        .filter(|holder| !holder.is_empty() && *holder != self.identity);
                    if let Some(other) = other {
                        return Ok(Outcome::Held(other.to_owned()));
                    }
                }
                Err(chain(&error))
            }
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let found = self.leases.get_opt(&self.node).await.map_err(|error| chain(&error))?;
        self.see(found);
        Ok(())
    }

    fn see(&mut self, found: Option<Lease>) {
        let same = match (&self.seen, &found) {
            (Some(seen), Some(found)) => {
                seen.lease.metadata.resource_version == found.metadata.resource_version
            }
            _ => false,
        };
        if !same {
            let since = self.lead.now();
            self.seen = found.map(|lease| Seen { lease, since });
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn decide(seen: &Seen, identity: &str, duration: Duration, now: Duration) -> Step {
    let holder = holder(&seen.lease);
    if holder.is_empty() || holder == identity {
        return Step::Write;
    }
    // A process that is not elected holds it for longer than we would.
    let said = seen.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    let said = Duration::from_secs(u64::try_from(said).unwrap_or(0));
    if now.saturating_sub(seen.since) >= duration.max(said) {
        Step::Write
    } else {
        Step::Wait(holder.to_owned())
    }
}

fn taken(
    node: &str,
    identity: &str,
    duration: Duration,
    owner: Option<&str>,
    seen: Option<Lease>,
    now: Timestamp,
) -> Lease {
    let mut lease = lease::of(node, owner, seen);
    let before = lease.spec.take().unwrap_or_default();
    let is_new = before.holder_identity.as_deref() != Some(identity);
    let transitions = before.lease_transitions.unwrap_or(0);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)),
        renew_time: Some(MicroTime(now)),
        acquire_time: if is_new { Some(MicroTime(now)) } else { before.acquire_time },
        lease_transitions: Some(transitions.saturating_add(i32::from(is_new && before.renew_time.is_some()))),
        ..before
    });
    lease
}

/// Nobody's; but the node lives on until the next holder renews it.
fn released(mut lease: Lease, now: Timestamp) -> Lease {
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(String::new());
    spec.renew_time = Some(MicroTime(now));
    lease
}

#[cfg(test)]
mod tests;
