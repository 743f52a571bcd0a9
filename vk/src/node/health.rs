//! Whether the provider answers, and what the Ready condition says about it.
//!
//! An outage shows only after 30 s, a kubelet's `maxWaitForContainerRuntime`: a node that is not ready has its pods marked not ready
//! at once, and a runtime that restarts is away for a few seconds.

use std::time::Duration;

use k8s_openapi::api::core::v1::NodeCondition;
use spillway_daemon::admin::Readiness;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use super::pressure::{Pressures, Thresholds, Watcher};
use crate::{
    metrics::Metrics,
    provider::{Provider, facts::Facts},
};

/// How often the provider is asked; as often as a kubelet asks its runtime.
const PING: Duration = Duration::from_secs(5);
/// An answer that takes longer is none.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an outage is kept quiet.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is asked what it has.
const FACTS: Duration = Duration::from_secs(30);
/// Before the first answer, try sooner.
const FIRST_PING: Duration = Duration::from_secs(1);
/// The readiness condition that this module sets.
const CONDITION: &str = "provider";

/// What is known of the provider.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Health {
    /// As `containerRuntimeVersion` spells it; known once it has answered.
    pub(super) version: Option<String>,
    /// Since when it doesn't answer, and how.
    pub(super) outage: Option<(Instant, String)>,
    /// What it last said of itself, but what is left.
    pub(super) facts: Facts,
    /// And what that means.
    pub(super) pressures: Pressures,
}

/// The Ready condition, without its times.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Health {
    /// Not asked yet, which counts as an outage that has just begun.
    pub(super) fn starting() -> Self {
        Self {
            version: None,
            outage: Some((Instant::now(), "it has not answered yet".to_owned())),
            facts: Facts::default(),
            pressures: Pressures::default(),
        }
    }

    /// `before`: the Ready condition that the API server has. A node that was ready stays so for the time of our patience, also
    /// across our own restart; one that was not becomes so only with an answer.
    pub(super) fn ready(&self, provider: &str, before: Option<&NodeCondition>, now: Instant) -> Ready {
        let was_ready = before.is_some_and(|before| before.status == "True");
        match &self.outage {
            Some((since, error)) if !was_ready || now.duration_since(*since) >= PATIENCE => Ready {
                status: "False",
                reason: "KubeletNotReady",
                message: format!("container runtime is down: provider {provider} does not answer: {error}"),
            },
            _ => Ready {
                status: "True",
                reason: "KubeletReady",
                message: format!("spillway-vk is posting ready status; provider {provider} answers"),
            },
        }
    }
}

/// Asks the provider again and again.
pub(super) async fn watch(
    provider: &Provider,
    health: &watch::Sender<Health>,
    readiness: &Readiness,
    metrics: &Metrics,
    thresholds: &Thresholds,
) {
    let mut watcher = Watcher::default();
    let mut asked: Option<Instant> = None;
    let mut tick = tokio::time::interval(PING);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if health.borrow().version.is_some() {
            tick.tick().await;
        }
        let answer = tokio::time::timeout(PING_TIMEOUT, async {
            provider.ping().await?;
            provider.version().await
        });
        let answer = match answer.await {
            Ok(Ok(version)) => Ok(version.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PING_TIMEOUT.as_secs())),
        };
        if answer.is_ok() && asked.is_none_or(|asked| asked.elapsed() >= FACTS) {
            asked = Some(Instant::now());
            match tokio::time::timeout(PING_TIMEOUT, provider.facts()).await {
                Ok(Ok(mut facts)) => {
                    let pressures =
                        watcher.look(&std::mem::take(&mut facts.left), thresholds, Instant::now());
                    health.send_if_modified(|health| health.learn_facts(facts, pressures));
                }
                Ok(Err(error)) => tracing::debug!(%error, "the provider says nothing of itself"),
                Err(_) => tracing::debug!("the provider takes too long to say what it has"),
            }
        }
        metrics.provider_is_up(answer.is_ok());
        readiness.set(CONDITION, answer.clone().map(drop));
        let never_answered = health.borrow().version.is_none();
        if never_answered && answer.is_err() {
            tokio::time::sleep(FIRST_PING).await;
        }
        health.send_if_modified(|health| health.learn(provider.name(), answer));
    }
}

impl Health {
    fn learn_facts(&mut self, facts: Facts, pressures: Pressures) -> bool {
        if pressures != self.pressures {
            tracing::warn!(?pressures, "what pods share is short, or no longer");
        }
        let changed = self.facts != facts || self.pressures != pressures;
        (self.facts, self.pressures) = (facts, pressures);
        changed
    }

    /// Takes in an answer; says whether that changed anything that others should look at.
    fn learn(&mut self, provider: &str, answer: Result<String, String>) -> bool {
        match answer {
            Ok(version) => {
                let new = Self { version: Some(version), outage: None, ..self.clone() };
                if self.outage.is_some() {
                    tracing::info!(provider, version = new.version, "provider answers");
                }
                std::mem::replace(self, new.clone()) != new
            }
            Err(error) => {
                let (since, known) = match &self.outage {
                    Some((since, known)) => (*since, *known == error),
                    None => (Instant::now(), false),
                };
                if !known {
                    tracing::warn!(provider, error, "provider does not answer; trying again");
                }
                self.outage = Some((since, error));
                !known || since.elapsed() >= PATIENCE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready_condition(status: &str) -> NodeCondition {
        NodeCondition { type_: "Ready".to_owned(), status: status.to_owned(), ..NodeCondition::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_shows_after_30_s_and_not_before() {
        let mut health = Health::starting();
        assert_eq!(health.ready("cri", None, Instant::now()).status, "False", "a new node is not ready yet");
        let before = ready_condition("True");
        assert_eq!(
            health.ready("cri", Some(&before), Instant::now()).status,
            "True",
            "a restart is no outage"
        );

        assert!(health.learn("cri", Ok("containerd://2.2.9".to_owned())));
        assert_eq!(health.ready("cri", None, Instant::now()).status, "True");
        assert!(!health.learn("cri", Ok("containerd://2.2.9".to_owned())), "nothing new");

        assert!(health.learn("cri", Err("connection refused".to_owned())));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(health.ready("cri", Some(&before), Instant::now()).status, "True");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(
            health.ready("cri", Some(&before), Instant::now()),
            Ready {
                status: "False",
                reason: "KubeletNotReady",
                message: "container runtime is down: provider cri does not answer: connection refused"
                    .to_owned(),
            }
        );
        health.learn("cri", Err("no such file".to_owned()));
        assert_eq!(
            health.ready("cri", Some(&before), Instant::now()).status,
            "False",
            "still the same outage"
        );
        assert!(health.learn("cri", Ok("containerd://2.2.9".to_owned())));
        assert_eq!(health.ready("cri", Some(&ready_condition("False")), Instant::now()).status, "True");
    }
}
