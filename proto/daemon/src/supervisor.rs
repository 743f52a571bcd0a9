//! Supervised tasks: one cancellation token, a set of named subsystems. Any subsystem that ends early stops all the others and
//! fails the process; SIGTERM and SIGINT stop them all within the grace period.

use std::{collections::HashMap, future::Future, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// Owns the daemon's long-running tasks.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
    stop: CancellationToken,
}

impl Supervisor {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that every subsystem watches. It is cancelled once, when the daemon begins to stop.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a subsystem. It must run until [`Supervisor::stop`] is cancelled.
    pub fn start(
        &mut self,
        name: &'static str,
        subsystem: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(subsystem);
        self.names.insert(handle.id(), name);
    }

    /// Runs until a signal or the first subsystem to end, then gives the others `grace` to finish.
    ///
    /// # Errors
    /// The first failure: a subsystem's error or panic, one that ended although nobody asked, or one that outlasted the grace
    /// period.
    pub async fn run(self, grace: Duration) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("can't listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for SIGINT")?;
        let asked = async {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            }
        };
        self.run_until(asked, grace).await
    }

    /// The same for a part of a daemon, which ends when `asked` does.
    ///
    /// # Errors
    /// As [`Supervisor::run`].
    pub async fn run_until(mut self, asked: impl Future<Output = ()>, grace: Duration) -> anyhow::Result<()> {
        let first = tokio::select! {
            () = asked => Ok(()),
            ended = self.tasks.join_next_with_id() => match ended {
                Some(ended) => self.verdict(ended).and_then(|name| {
                    anyhow::bail!("subsystem {name} ended although nothing asked it to")
                }),
                None => Ok(()),
            },
        };
        self.stop.cancel();
        let drained = tokio::time::timeout(grace, self.drain()).await.unwrap_or_else(|_| {
            Err(anyhow::anyhow!("subsystems still ran after the grace period of {} s", grace.as_secs()))
        });
        first.and(drained)
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next_with_id().await {
            if let Err(error) = self.verdict(ended) {
                tracing::error!(error = format!("{error:#}"), "a subsystem failed while stopping");
                result = result.and(Err(error));
            }
        }
        result
    }

    fn verdict(
        &self,
        ended: Result<(Id, anyhow::Result<()>), tokio::task::JoinError>,
    ) -> anyhow::Result<&'static str> {
        let name = |id| self.names.get(&id).copied().unwrap_or("unnamed");
        match ended {
            Ok((id, Ok(()))) => Ok(name(id)),
            Ok((id, Err(error))) => Err(error.context(format!("subsystem {} failed", name(id)))),
            Err(error) => {
                let name = name(error.id());
                Err(anyhow::Error::new(error).context(format!("subsystem {name} panicked")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_ends_stops_the_rest_and_fails_the_process() {
        let mut supervisor = Supervisor::new();
        let stop = supervisor.stop();
        supervisor.start("patient", async move {
            stop.cancelled().await;
            Ok(())
        });
        supervisor.start("hasty", async { Ok(()) });
        let error = supervisor.run(Duration::from_mins(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "subsystem hasty ended although nothing asked it to");
    }

    #[tokio::test]
    async fn a_part_ends_when_it_is_asked_to_and_is_no_failure() {
        let mut supervisor = Supervisor::new();
        let stop = supervisor.stop();
        supervisor.start("patient", async move {
            stop.cancelled().await;
            Ok(())
        });
        supervisor.run_until(async {}, Duration::from_mins(1)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_will_not_stop_is_named_by_the_grace_period() {
        let mut supervisor = Supervisor::new();
        supervisor.start("stuck", std::future::pending());
        supervisor.start("failing", async { anyhow::bail!("no disk") });
        let error = supervisor.run(Duration::from_secs(3)).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "subsystem failing failed: no disk");
    }
}
