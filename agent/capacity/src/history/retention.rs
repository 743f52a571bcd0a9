//! What becomes of old samples: minutes become quarters of an hour, those become hours, and when there is no room, sooner.
//!
//! Nothing but detail is lost: sums stay the same to the thousandth of a GPU-second.

use rusqlite::{OptionalExtension as _, params};

use super::{
    database::{Database, Error, MOST_SERIES, failed},
    end_of_step,
};

/// For how long samples are kept as they are.
const SAMPLES_S: i64 = 14 * 86_400;
/// For how long quarters of an hour are.
const QUARTERS_S: i64 = 100 * 86_400;
/// How long the steps of level 1 are.
const QUARTER_S: i64 = 900;
/// And those of level 2.
const HOUR_S: i64 = 3600;
/// As much is summed up in one transaction: the journal holds what a transaction changes.
const AT_ONCE_S: i64 = 6 * 3600;

/// What was given up to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Detail until this time, in seconds since 1970.
    Detail(i64),
    /// All that was known until this time.
    Oldest(i64),
    /// There is nothing that could be given up.
    None,
}

impl Database {
    /// Sums up what is old enough, and forgets what is older than `keep_s`.
    ///
    /// # Errors
    /// When it can't be written; what was done until then stays done.
    pub fn sum_up(&mut self, now_s: i64, keep_s: i64) -> Result<(), Error> {
        for (level, age_s) in [(0, SAMPLES_S), (1, QUARTERS_S)] {
            // Of whole steps only: the next samples must not come into one that is summed up.
            let until = (now_s - age_s).div_euclid(3600) * 3600;
            while let Some(first) = self.first(level)?.filter(|first| *first <= until) {
                self.raise(level, end_of_step(first, AT_ONCE_S).min(until))?;
            }
        }
        let until = now_s.saturating_sub(keep_s.max(QUARTERS_S)).div_euclid(3600) * 3600;
        let mut forgotten = false;
        while let Some(first) = self.first(2)?.filter(|first| *first <= until) {
            self.forget(end_of_step(first, 30 * 86_400).min(until))?;
            forgotten = true;
        }
        // It reads all points.
        if forgotten || self.names() > MOST_SERIES / 2 { self.forget_names() } else { Ok(()) }
    }

    /// Gives up the oldest detail, or the oldest hours where there is none; the newest hour is left as it is.
    ///
    /// # Errors
    /// When not even that can be written.
    pub fn make_room(&mut self, now_s: i64) -> Result<Room, Error> {
        for level in [0, 1] {
            let until = (now_s - 3600).div_euclid(3600) * 3600;
            if let Some(first) = self.first(level)?.filter(|first| *first <= until) {
                let until = end_of_step(first, 3600).min(until);
                self.raise(level, until)?;
                return Ok(Room::Detail(until));
            }
        }
        let newest = now_s - 86_400;
        match self.first(2)?.filter(|first| *first <= newest) {
            Some(first) => {
                let until = end_of_step(first, 86_400).min(newest);
                self.forget(until)?;
                self.forget_names()?;
                Ok(Room::Oldest(until))
            }
            None => Ok(Room::None),
        }
    }

    fn first(&self, level: i64) -> Result<Option<i64>, Error> {
        let first = self
            .connection
            .query_row("SELECT min(at_s) FROM span WHERE level = ?1", [level], |row| row.get(0))
            .optional();
        first.map(Option::flatten).map_err(failed(self.path(), "read"))
    }

    /// Sums up what is on a level, until a time, to the next one. Deletes before it inserts: a full file has no other room.
    fn raise(&mut self, level: i64, until_s: i64) -> Result<(), Error> {
        let path = self.path().to_owned();
        let length = if level == 0 { QUARTER_S } else { HOUR_S };
        let mut raise = || {
            let transaction =
                self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            transaction.execute_batch(
                "DROP TABLE IF EXISTS temp.points; DROP TABLE IF EXISTS temp.spans;
                 CREATE TEMP TABLE points (at_s, series, milli_gpu_s, least, most, samples);
                 CREATE TEMP TABLE spans (at_s, for_s, samples);",
            )?;
            let at = "((at_s + ?3 - 1) / ?3) * ?3";
            let these = params![level, until_s, length];
            transaction.execute(
                &format!(
                    "INSERT INTO temp.points SELECT {at}, series, sum(milli_gpu_s), min(least), max(most), sum(samples) \
                     FROM point WHERE level = ?1 AND at_s <= ?2 GROUP BY 1, 2"
                ),
                these,
            )?;
            transaction.execute(
                &format!(
                    "INSERT INTO temp.spans SELECT {at}, sum(for_s), sum(samples) FROM span WHERE level = ?1 AND at_s <= ?2 GROUP BY 1"
                ),
                these,
            )?;
            for table in ["point", "span"] {
                let delete = format!("DELETE FROM {table} WHERE level = ?1 AND at_s <= ?2");
                transaction.execute(&delete, params![level, until_s])?;
            }
            // Some of a step may have been summed up before, when there was no room.
            transaction.execute(
                "INSERT INTO point SELECT ?1, at_s, series, milli_gpu_s, least, most, samples FROM temp.points WHERE true \
                 ON CONFLICT DO UPDATE SET milli_gpu_s = milli_gpu_s + excluded.milli_gpu_s, least = min(least, excluded.least), \
                 most = max(most, excluded.most), samples = samples + excluded.samples",
                [level + 1],
            )?;
            transaction.execute(
                "INSERT INTO span SELECT ?1, at_s, for_s, samples FROM temp.spans WHERE true \
                 ON CONFLICT DO UPDATE SET for_s = for_s + excluded.for_s, samples = samples + excluded.samples",
                [level + 1],
            )?;
            transaction.execute_batch("DROP TABLE temp.points; DROP TABLE temp.spans;")?;
            transaction.commit()
        };
        raise().map_err(failed(&path, "sum up"))
    }

    /// Forgets the hours until a time.
    fn forget(&mut self, until_s: i64) -> Result<(), Error> {
        let path = self.path().to_owned();
        let mut forget = || {
            let transaction =
                self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            for table in ["point", "span"] {
                transaction
                    .execute(&format!("DELETE FROM {table} WHERE level = 2 AND at_s <= ?1"), [until_s])?;
            }
            transaction.commit()
        };
        forget().map_err(failed(&path, "clear up"))
    }
}
