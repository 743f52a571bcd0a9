//! The recorder: every interval it looks at the cluster and stores what it saw. Whatever keeps it from one sample must not keep it from the next: an API server that is
//! away is a gap, a full disk makes it give up old detail. An error of the file itself ends it.

use std::{convert::Infallible, future::Future, time::Duration};

use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::{
    Sample,
    database::{Added, Database, Error},
    retention::Room,
    view::rfc3339,
};

/// What samples are taken of.
pub trait Source {
    /// Why there is none.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Looks once.
    fn sample(&self) -> impl Future<Output = Result<Sample, Self::Error>>;
}

/// How often, and what is kept.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The time from one sample to the next.
    pub interval: Duration,
    /// How old hours become before they are forgotten, in seconds.
    pub keep_s: i64,
}

/// What became of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Stored.
    Stored,
    /// The cluster could not be read, or there was no room; it has been told.
    Missed,
    /// The clock was put back into time that is recorded.
    Known,
}

/// A recorder with its file.
#[derive(Debug)]
pub struct Recorder<S> {
    source: S,
    database: Database,
    options: Options,
    summed_up_s: i64,
}

impl<S: Source> Recorder<S> {
    /// Records what `source` shows in `database`.
    pub fn new(source: S, database: Database, options: Options) -> Self {
        Self { source, database, options, summed_up_s: i64::MIN }
    }

    /// Records for ever.
    ///
    /// # Errors
    /// When the file is damaged or gone.
    pub async fn run(&mut self) -> Result<Infallible, Error> {
        loop {
            self.turn().await?;
            tokio::time::sleep(until_next(Timestamp::now(), self.options.interval)).await;
        }
    }

    /// One sample.
    ///
    /// # Errors
    /// When the file is damaged or gone.
    pub async fn turn(&mut self) -> Result<Turn, Error> {
        let limit = self.options.interval.max(Duration::from_secs(30));
        match tokio::time::timeout(limit, self.source.sample()).await {
            Ok(Ok(sample)) => self.store(&sample),
            Ok(Err(error)) => {
                let why = chain(&error);
                warn!(why, "the cluster can't be read: this sample is missing");
                Ok(Turn::Missed)
            }
            Err(_) => {
                warn!(limit_s = limit.as_secs(), "the cluster does not answer: this sample is missing");
                Ok(Turn::Missed)
            }
        }
    }

    /// Stores a sample, and gives up old detail where there is no room for it.
    ///
    /// # Errors
    /// When the file is damaged or gone.
    pub fn store(&mut self, sample: &Sample) -> Result<Turn, Error> {
        let interval_s = i64::try_from(self.options.interval.as_secs()).unwrap_or(i64::MAX);
        loop {
            match self.database.add(sample, interval_s) {
                Ok(Added::Stored { for_s }) => {
                    debug!(for_s, series = sample.milli_gpus.len(), "stored a sample");
                    self.sum_up(sample.at_s)?;
                    return Ok(Turn::Stored);
                }
                Ok(Added::Known) => {
                    let at = rfc3339(sample.at_s);
                    warn!(
                        at,
                        "that time is recorded already, as when the clock was put back: this sample is left out"
                    );
                    return Ok(Turn::Known);
                }
                Err(error) if error.passes() => {
                    warn!(why = chain(&error), "this sample is missing");
                    return Ok(Turn::Missed);
                }
                Err(error) if !error.full() => return Err(error),
                Err(error) => {
                    if !self.make_room(sample.at_s, &error)? {
                        return Ok(Turn::Missed);
                    }
                }
            }
        }
    }

    fn make_room(&mut self, now_s: i64, why: &Error) -> Result<bool, Error> {
        let why = chain(why);
        match self.database.make_room(now_s) {
            Ok(Room::Detail(until_s)) => {
                let until = rfc3339(until_s);
                warn!(why, until, "no room: summed up old samples sooner than usual; sums stay as they are");
            }
            Ok(Room::Oldest(until_s)) => {
                warn!(why, until = rfc3339(until_s), "no room: forgot the oldest hours");
            }
            Ok(Room::None) => {
                warn!(
                    why,
                    "no room, and nothing old to give up: this sample is missing; give the volume or --max-size more"
                );
                return Ok(false);
            }
            Err(error) if error.full() || error.passes() => {
                warn!(
                    why,
                    "no room, not even to give up old samples: this sample is missing; give the volume more"
                );
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Once an hour.
    fn sum_up(&mut self, now_s: i64) -> Result<(), Error> {
        if self.summed_up_s.saturating_add(3600) > now_s && self.summed_up_s <= now_s {
            return Ok(());
        }
        match self.database.sum_up(now_s, self.options.keep_s) {
            Ok(()) => {
                self.summed_up_s = now_s;
                Ok(())
            }
            Err(error) if error.full() || error.passes() => {
                info!(why = chain(&error), "old samples are summed up later");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Until the clock shows a multiple of the interval: samples of whole minutes fill whole hours.
fn until_next(now: Timestamp, interval: Duration) -> Duration {
    let interval = interval.as_millis().clamp(1, u128::from(u32::MAX));
    let now = now.as_millisecond().unsigned_abs();
    let interval = u64::try_from(interval).unwrap_or(u64::MAX);
    Duration::from_millis(interval - now % interval)
}

/// An error with all its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
