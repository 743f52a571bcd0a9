//! What a recorded history tells: sums by step, whatever became of the samples.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{OptionalExtension as _, params};

use super::{
    Cell, Key, Recorded, Step,
    database::{Database, Error, failed},
};

impl Database {
    /// What was recorded after `since_s` and until `until_s`, by steps of `step_s`; where only longer ones are left, by those.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn recorded(&self, since_s: i64, until_s: i64, step_s: i64) -> Result<Recorded, Error> {
        self.recorded_with(since_s, until_s, step_s.max(1)).map_err(failed(self.path(), "read"))
    }

    fn recorded_with(&self, since_s: i64, until_s: i64, step_s: i64) -> rusqlite::Result<Recorded> {
        // One transaction: a recorder may sum up old samples in between.
        let reading = self.connection.unchecked_transaction()?;
        let series: HashMap<i64, Key> = self.read_series()?.into_iter().collect();
        // A level's own length where the step is shorter.
        let step = "max(?3, CASE level WHEN 0 THEN 1 WHEN 1 THEN 900 ELSE 3600 END)";
        let end = format!("((at_s + {step} - 1) / {step}) * {step}");
        let mut found: BTreeMap<i64, (Step, i64)> = BTreeMap::new();
        let mut statement = reading.prepare(&format!(
            "SELECT {end}, {step}, sum(for_s), sum(samples) FROM span WHERE level IN (0, 1, 2) AND at_s > ?1 AND at_s <= ?2 GROUP BY 1, 2"
        ))?;
        let mut rows = statement.query(params![since_s, until_s, step_s])?;
        while let Some(row) = rows.next()? {
            let (end_s, len_s, seen_s, samples): (i64, i64, i64, i64) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            let (step, all) = found.entry(end_s).or_insert((Step { end_s, len_s, seen_s: 0 }, 0));
            step.len_s = step.len_s.max(len_s);
            step.seen_s += seen_s;
            *all += samples;
        }
        let mut cells: HashMap<i64, BTreeMap<i64, (Cell, i64)>> = HashMap::new();
        let mut statement = reading.prepare(&format!(
            "SELECT series, {end}, sum(milli_gpu_s), min(least), max(most), sum(samples) \
             FROM point WHERE level IN (0, 1, 2) AND at_s > ?1 AND at_s <= ?2 GROUP BY 1, 2"
        ))?;
        let mut rows = statement.query(params![since_s, until_s, step_s])?;
        while let Some(row) = rows.next()? {
            let (end_s, milli_gpu_s, least, most, samples): (i64, i64, i64, i64, i64) =
                (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?);
            let seen = found.get(&end_s).map_or(0, |(_, all)| *all);
            let least = if samples < seen { 0 } else { least };
            let cell = Cell { end_s, milli_gpu_s, least, most };
            cells.entry(row.get(0)?).or_default().insert(end_s, (cell, samples));
        }
        let mut recorded =
            Recorded { steps: found.into_values().map(|(step, _)| step).collect(), series: BTreeMap::new() };
        for (id, cells) in cells {
            if let Some(key) = series.get(&id) {
                recorded.series.insert(key.clone(), cells.into_values().map(|(cell, _)| cell).collect());
            }
        }
        Ok(recorded)
    }

    /// The first and the last time that there is something of.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn extent(&self) -> Result<Option<(i64, i64)>, Error> {
        let extent = self.connection.query_row("SELECT min(at_s - for_s), max(at_s) FROM span", [], |row| {
            Ok(row.get::<_, Option<i64>>(0)?.zip(row.get(1)?))
        });
        extent.map_err(failed(self.path(), "read"))
    }

    /// Since when what is stranded is recorded, in seconds since 1970; `None`: an older version wrote the file.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn stranded_since(&self) -> Result<Option<i64>, Error> {
        Ok(self.setting("stranded-since")?.and_then(|since| since.parse().ok()))
    }

    /// Something that the recorder has noted, such as which label it went by.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn setting(&self, key: &str) -> Result<Option<String>, Error> {
        let value =
            self.connection.query_row("SELECT value FROM setting WHERE key = ?1", [key], |row| row.get(0));
        value.optional().map_err(failed(self.path(), "read"))
    }
}
