//! What a file is and where in its rows what is, by its header, a preset and `--columns`.

use std::cell::Cell;

use csv::ByteRecord;

use super::{
    error::Error,
    key::{Key, Mapping},
    lists,
    preset::Preset,
    reports::Skipped,
    rows::Rows,
    value::{Sizes, TimeUnit},
    warnings::Kind,
};

/// Which GPUs are demanded, where a trace tells running from pending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Counted {
    /// Those of running and of pending jobs; work that waits is counted again at each sample.
    #[default]
    #[value(name = "running+pending")]
    All,
    /// Those of running jobs; what was never admitted isn't seen.
    Running,
}

/// What a file is, and where in its rows what is.
#[derive(Debug)]
pub(super) enum Layout {
    Jobs(Columns),
    Demand(Columns),
    /// Helios' list of what was owned each day.
    Owned,
    /// A list of machines.
    Machines,
}

/// Where in a row what is.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    pub(super) preset: Preset,
    at: [Option<usize>; Key::ALL.len()],
    /// The unit of its numbers, where the column's name tells it.
    units: [Option<TimeUnit>; Key::ALL.len()],
    /// Each row of one time counts.
    pub(super) labelled: bool,
    /// Each column but the time is a series, of which the sum counts.
    pub(super) wide: bool,
    /// Nobody said so.
    pub(super) wide_assumed: bool,
    /// Pending GPUs count.
    pub(super) counted: Counted,
    /// The last column that a row must have.
    last: usize,
    /// How many columns there are.
    width: usize,
    /// What the size of times tells of their unit.
    pub(super) sizes: Sizes,
    /// The time of the row that was read last.
    pub(super) last_s: Cell<f64>,
}

impl Columns {
    /// Whether there is a column of GPUs.
    pub(super) fn tells_gpus(&self) -> bool {
        [Key::Gpus, Key::TotalGpus, Key::GpuMilli, Key::GpuPercent, Key::Tres, Key::AskedTres]
            .into_iter()
            .any(|key| self.of(key).is_some())
    }

    /// Whether a row has a cell for each column that matters, and no other.
    pub(super) fn fits(&self, row: &ByteRecord) -> Result<(), Skipped> {
        if row.len() <= self.last {
            return Err(Skipped { kind: Kind::ShortRow, key: None, what: "the row has cells missing" });
        }
        // A separator at the end is harmless.
        if row.len() > self.width && row.iter().skip(self.width).any(|cell| !cell.is_empty()) {
            return Err(Skipped {
                kind: Kind::LongRow,
                key: None,
                what: "the row has more cells than columns",
            });
        }
        Ok(())
    }

    /// The unit of plain numbers in the column of `key`, where its name tells it, as `runtime_ms` does.
    pub(super) fn unit(&self, key: Key) -> Option<TimeUnit> {
        self.units[key as usize]
    }

    /// Refuses times of which the size tells different units: one of them is wrong.
    pub(super) fn check_units(&self, file: &str, line: u64) -> Result<(), Error> {
        match self.sizes.mixed() {
            Some((first, now)) => {
                Err(Error::Units { file: file.to_owned(), line, first: first.name(), now: now.name() })
            }
            None => Ok(()),
        }
    }

    /// The column of `key`.
    pub(super) fn of(&self, key: Key) -> Option<usize> {
        self.at[key as usize]
    }
}

impl Layout {
    /// What the header of `rows` says.
    pub(super) fn of(
        rows: &Rows,
        preset: Option<Preset>,
        mapping: &Mapping,
        counted: Counted,
        asks_only: bool,
    ) -> Result<Self, Error> {
        let header = lower(rows);
        let has = |names: &[&str]| names.iter().all(|name| header.iter().any(|column| column == name));
        if has(&lists::MACHINES) {
            return Ok(Self::Machines);
        }
        let clusters = header.len().saturating_sub(2);
        if clusters > 0
            && header.first().is_some_and(|first| first == "date")
            && header.last().is_some_and(|last| last == "total")
            && header[1..=clusters].iter().all(|name| name.starts_with("vc"))
        {
            return Ok(Self::Owned);
        }
        let header = Header::new(rows, mapping, asks_only);
        let chosen = preset;
        let preset = match preset {
            Some(preset) => preset,
            None => header.recognise()?,
        };
        let mut columns = header.columns_of(preset, counted)?;
        columns.wide_assumed = columns.wide && chosen.is_none();
        if preset == Preset::Jobs && chosen.is_none() && !columns.tells_gpus() {
            header.check_gpus(&columns)?;
        }
        Ok(if preset.jobs() { Self::Jobs(columns) } else { Self::Demand(columns) })
    }
}

fn lower(rows: &Rows) -> Vec<String> {
    rows.header.iter().map(|name| name.to_ascii_lowercase()).collect()
}

/// A name's letters and digits: `Submit Time`, `SubmitTime` and `submit_time` are one.
fn bare(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Units at the end of a column's name; longer ones first.
const UNITS: [(&str, TimeUnit); 18] = [
    ("milliseconds", TimeUnit::Ms),
    ("millis", TimeUnit::Ms),
    ("msec", TimeUnit::Ms),
    ("ms", TimeUnit::Ms),
    ("microseconds", TimeUnit::Us),
    ("micros", TimeUnit::Us),
    ("us", TimeUnit::Us),
    ("nanoseconds", TimeUnit::Ns),
    ("nanos", TimeUnit::Ns),
    ("ns", TimeUnit::Ns),
    ("seconds", TimeUnit::S),
    ("secs", TimeUnit::S),
    ("sec", TimeUnit::S),
    ("minutes", TimeUnit::Min),
    ("mins", TimeUnit::Min),
    ("min", TimeUnit::Min),
    ("hours", TimeUnit::H),
    ("s", TimeUnit::S),
];

struct Header<'a> {
    rows: &'a Rows,
    /// In small letters.
    lower: Vec<String>,
    /// As [`bare`] makes them.
    bare: Vec<String>,
    mapping: &'a Mapping,
    /// Columns with times may be missing where jobs are listed.
    asks_only: bool,
}

impl<'a> Header<'a> {
    fn new(rows: &'a Rows, mapping: &'a Mapping, asks_only: bool) -> Self {
        let bare = rows.header.iter().map(|name| bare(name)).collect();
        Self { rows, lower: lower(rows), bare, mapping, asks_only }
    }

    fn recognise(&self) -> Result<Preset, Error> {
        // A name that is there twice is told when its column is looked for.
        let there =
            |key, preset| self.mapping.0.contains_key(&key) || !matches!(self.known(key, preset), Ok(None));
        let fits = |preset: &Preset, needs: Vec<&[Key]>| {
            !needs.is_empty() && needs.iter().all(|any| any.iter().any(|key| there(*key, *preset)))
        };
        let with_times = Preset::ALL.into_iter().find(|preset| fits(preset, preset.needs().to_vec()));
        let found =
            with_times.or_else(|| Preset::ALL.into_iter().find(|preset| fits(preset, self.needs(*preset))));
        if let Some(preset) = found {
            return Ok(preset);
        }
        let mapped = |key| self.mapping.0.contains_key(&key);
        if mapped(Key::Submit) || mapped(Key::Duration) {
            return Ok(Preset::Jobs);
        }
        if mapped(Key::At) {
            return Ok(Preset::Demand);
        }
        let data = |name: &String| name.starts_with(|first: char| first.is_ascii_digit());
        if self.lower.iter().any(data) {
            return Err(Error::NoHeader {
                file: self.rows.file.to_string(),
                line: self.rows.header_line(),
                example: "submit=1,duration=2,gpus=3",
            });
        }
        Err(Error::Unrecognised {
            file: self.rows.file.to_string(),
            header: self.listed(),
            presets: Preset::ALL.map(Preset::name).join(", "),
        })
    }

    /// What the preset can't do without here.
    fn needs(&self, preset: Preset) -> Vec<&'static [Key]> {
        let times = |any: &[Key]| any.iter().all(|key| key.is_time());
        let needs = preset.needs().iter().copied();
        needs.filter(|any| !(self.asks_only && preset.jobs() && times(any))).collect()
    }

    /// What columns there are, for people.
    fn listed(&self) -> String {
        const SHOWN: usize = 40;
        let mut listed: Vec<String> = self
            .rows
            .header
            .iter()
            .take(SHOWN)
            .map(|name| {
                let short: String = name.chars().take(60).collect();
                if short.len() < name.len() { format!("{short}…") } else { short }
            })
            .collect();
        if self.lower.len() > SHOWN {
            listed.push(format!("and {} more", self.lower.len() - SHOWN));
        }
        listed.join(", ")
    }

    fn columns_of(&self, preset: Preset, counted: Counted) -> Result<Columns, Error> {
        let mut at = [None; Key::ALL.len()];
        let mut units = [None; Key::ALL.len()];
        for key in Key::ALL {
            let found = match self.mapping.0.get(&key) {
                Some(name) => {
                    let column = self.mapped(key, name, preset)?;
                    Some((column, key.is_time().then(|| unit(&self.rows.header[column])).flatten()))
                }
                None => self.known(key, preset)?,
            };
            (at[key as usize], units[key as usize]) =
                found.map_or((None, None), |(column, unit)| (Some(column), unit));
        }
        let needs = self.needs(preset);
        for any in &needs {
            if any.iter().all(|key| at[*key as usize].is_none()) {
                return Err(self.missing(preset, any));
            }
        }
        let wide = preset == Preset::Grafana && at[Key::Gpus as usize].is_none();
        let width = self.lower.len();
        if wide && width < 2 {
            return Err(self.missing(preset, &[Key::Gpus]));
        }
        let last = needs.iter().flat_map(|any| any.iter().filter_map(|key| at[*key as usize])).max();
        let labelled = match preset {
            Preset::Prometheus => self.lower.len() > 2,
            _ => at[Key::Owner as usize].is_some(),
        };
        let last = if wide { width - 1 } else { last.unwrap_or(0) };
        Ok(Columns {
            preset,
            at,
            units,
            labelled,
            wide,
            wide_assumed: false,
            counted,
            last,
            width,
            sizes: Sizes::default(),
            last_s: Cell::new(f64::MIN),
        })
    }

    fn missing(&self, preset: Preset, any: &[Key]) -> Error {
        let names: Vec<&str> =
            any.iter().map(|key| preset.aliases(*key).first().copied().unwrap_or(key.name())).collect();
        Error::Missing {
            file: self.rows.file.to_string(),
            preset: preset.name(),
            missing: names.join(" or "),
            header: self.listed(),
            example: any[0].name(),
        }
    }

    /// The column that `--columns` names: by name, else by number from 1.
    fn mapped(&self, key: Key, name: &str, preset: Preset) -> Result<usize, Error> {
        let name = name.to_ascii_lowercase();
        let found = match self.only(key, &self.lower, &name)? {
            Some(column) => Some(column),
            None => self.only(key, &self.bare, &bare(&name))?.filter(|_| name.parse::<usize>().is_err()),
        };
        if let Some(column) = found {
            return Ok(column);
        }
        match name.parse::<usize>() {
            Ok(number) if (1..=self.lower.len()).contains(&number) => Ok(number - 1),
            _ => Err(Error::Missing {
                file: self.rows.file.to_string(),
                preset: preset.name(),
                missing: format!("{name} for {}", key.name()),
                header: self.listed(),
                example: key.name(),
            }),
        }
    }

    /// The column that the preset knows, and the unit that its name ends with.
    fn known(&self, key: Key, preset: Preset) -> Result<Option<(usize, Option<TimeUnit>)>, Error> {
        for alias in preset.aliases(key) {
            if let Some(column) = self.only(key, &self.bare, &bare(alias))? {
                return Ok(Some((column, unit(alias).filter(|_| key.is_time()))));
            }
        }
        if !key.is_time() {
            return Ok(None);
        }
        for (column, name) in self.bare.iter().enumerate() {
            let known = UNITS.iter().find(|(suffix, _)| {
                name.strip_suffix(suffix)
                    .is_some_and(|name| preset.aliases(key).iter().any(|alias| bare(alias) == name))
            });
            if let Some((_, unit)) = known {
                return Ok(Some((column, Some(*unit))));
            }
        }
        Ok(None)
    }

    /// Refuses to take each job for one GPU where a column that isn't known looks as if it told how many.
    fn check_gpus(&self, columns: &Columns) -> Result<(), Error> {
        let used = |column: usize| columns.at.contains(&Some(column));
        let gpu = |name: &str| name.contains("gpu") || name.contains("gres") || name.contains("accelerator");
        match self.bare.iter().enumerate().find(|(column, name)| gpu(name) && !used(*column)) {
            Some((column, _)) => Err(Error::Gpus {
                file: self.rows.file.to_string(),
                column: self.rows.header[column].chars().take(60).collect(),
            }),
            None => Ok(()),
        }
    }

    fn only(&self, key: Key, names: &[String], name: &str) -> Result<Option<usize>, Error> {
        let mut found = names.iter().enumerate().filter(|(_, column)| *column == name);
        let first = found.next();
        let more = found.count();
        if more > 0 {
            return Err(Error::Ambiguous {
                file: self.rows.file.to_string(),
                column: name.to_owned(),
                count: more + 1,
                key: key.name(),
            });
        }
        Ok(first.map(|(column, _)| column))
    }
}

/// The unit that a column's name ends with, apart from the rest of it: `runtime_ms`, and not `status`.
fn unit(name: &str) -> Option<TimeUnit> {
    let last = name.rsplit(['_', ' ', '-', '.', '(', '[']).next().unwrap_or_default();
    let last = bare(last);
    if last.len() == bare(name).len() {
        return None;
    }
    UNITS.iter().find(|(suffix, _)| *suffix == last).map(|(_, unit)| *unit)
}
