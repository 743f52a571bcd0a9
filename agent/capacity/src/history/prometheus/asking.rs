//! How a query is asked until it is answered or given up: again where that may help, in halves where it was too much, and no longer than somebody at a terminal waits.
//!
//! A server that lives and refuses is told from one that is gone, as while its pod is replaced, or that takes connections and says nothing: what it is asked then costs
//! nothing, so that no answer in time means that there is nobody.

use std::time::Duration;

use tokio::time::Instant;

use super::{Error, Progress, Query, Range, answer::Answer, transport::Transport};

/// How often what Prometheus refuses is asked, where it may pass.
const TRIES: u32 = 4;
/// So many queries in a row that take too long are the server's last: their halves would, too.
const MOST_SLOW: u32 = 4;
/// As long is waited at most where the server says how long.
const LONGEST_TOLD: Duration = Duration::from_secs(30);
/// As long is waited at most between two tries otherwise.
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// At the first contact: as long is tried again. Long enough for a connection that died unnoticed, short enough for whoever mistyped the address.
const GREETING: Duration = Duration::from_secs(6);

/// Whether somebody is there who answers like Prometheus, and may be asked what takes long.
///
/// # Errors
/// When there is nobody within some 20 s at most.
pub async fn reach(transport: &Transport) -> Result<(), Error> {
    let begin = Instant::now();
    let mut wait = transport.limits().wait;
    let mut tried = 1;
    loop {
        match transport.greet().await {
            // What it refuses it will refuse in the queries' words.
            Ok(()) => return Ok(()),
            Err(error) if !error.nobody() => return Ok(()),
            // Twice at least: the first may have gone into a connection whose other end is no more.
            Err(error) if tried >= 2 && begin.elapsed() + wait > GREETING => return Err(error),
            Err(_) => tokio::time::sleep(wait).await,
        }
        wait = (wait * 2).min(LONGEST_WAIT);
        tried += 1;
    }
}

/// Who asks, and how it went so far.
pub(super) struct Asking<'a> {
    transport: &'a Transport,
    progress: &'a (dyn Fn(Progress) + Sync),
    /// Queries in a row that took too long.
    slow: u32,
    /// Whether the last query failed: the next is asked once.
    failed: bool,
    /// Why nothing more is asked.
    given_up: bool,
}

impl<'a> Asking<'a> {
    pub(super) fn new(transport: &'a Transport, progress: &'a (dyn Fn(Progress) + Sync)) -> Self {
        Self { transport, progress, slow: 0, failed: false, given_up: false }
    }

    /// Whether it is no use to ask anything more.
    pub(super) fn given_up(&self) -> bool {
        self.given_up
    }

    /// One query.
    pub(super) async fn range(&mut self, query: &Query, part: Range) -> Result<Answer, Error> {
        let begin = Instant::now();
        let limits = *self.transport.limits();
        let mut wait = limits.wait;
        let mut tried = 1;
        loop {
            let error = match self.once(query, part).await {
                Ok(answer) => {
                    (self.slow, self.failed) = (0, false);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if matches!(error, Error::Slow { .. }) {
                self.slow += 1;
                self.given_up = self.slow >= MOST_SLOW;
            }
            if self.given_up || !error.passes() || (error.too_much() && part.points() > 1) {
                return Err(error);
            }
            if error.nobody() {
                // It may be somebody else's upgrade: that is over soon, or isn't one.
                if begin.elapsed() + wait > limits.patience {
                    self.given_up = true;
                    return Err(error);
                }
                (self.progress)(Progress::Waits(&error));
            } else if tried == TRIES || self.failed {
                self.failed = true;
                return Err(error);
            }
            let told = match &error {
                Error::Status { after, .. } => after.map(|after| after.min(LONGEST_TOLD)),
                _ => None,
            };
            tokio::time::sleep(told.unwrap_or(wait)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
            tried += 1;
        }
    }

    /// One try. What takes too long where nobody is any more didn't fail for what was asked.
    async fn once(&self, query: &Query, part: Range) -> Result<Answer, Error> {
        // A point stands for the time before it, so the first is a step after the begin.
        let first_s = part.since_s + part.step_s;
        let asked = self.transport.range(&query.promql, first_s, part.until_s, part.step_s).await;
        match asked {
            Err(slow @ Error::Slow { .. }) => match self.transport.greet().await {
                Err(error) if error.nobody() => Err(error),
                _ => Err(slow),
            },
            other => other,
        }
    }
}
