//! Cells: numbers, times, durations, quantities, what Slurm calls TRES. Borrowed bytes in, values out.

use std::cell::Cell;

use jiff::{
    civil,
    tz::{AmbiguousOffset, Offset, TimeZone},
};

use crate::job::WHOLE_GPU;

/// More than this is no time: the year 9999, in seconds. Also the longest duration and the most GPUs.
const MOST: f64 = 253_402_300_800.0;

/// From here on a plain number is milliseconds, microseconds, nanoseconds since 1970, not seconds.
const MILLIS: f64 = 1e11;
const MICROS: f64 = 1e14;
const NANOS: f64 = 1e17;

/// No time is written with more letters.
const LONGEST: usize = 64;

/// The unit of times that are plain numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TimeUnit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
    /// Minutes.
    Min,
    /// Hours.
    H,
}

impl TimeUnit {
    /// Its word, as on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::S => "s",
            Self::Ms => "ms",
            Self::Us => "us",
            Self::Ns => "ns",
            Self::Min => "min",
            Self::H => "h",
        }
    }

    fn seconds(self) -> f64 {
        match self {
            Self::S => 1.0,
            Self::Ms => 1e-3,
            Self::Us => 1e-6,
            Self::Ns => 1e-9,
            Self::Min => 60.0,
            Self::H => 3600.0,
        }
    }
}

/// How times are read.
#[derive(Debug, Clone)]
pub(super) struct Times {
    /// The unit of plain numbers, where it was said.
    pub(super) unit: Option<TimeUnit>,
    /// The zone of times that name none.
    pub(super) zone: TimeZone,
}

impl Default for Times {
    fn default() -> Self {
        Self { unit: None, zone: TimeZone::UTC }
    }
}

/// The units that plain numbers of one file had by their size.
#[derive(Debug, Clone, Default)]
pub(super) struct Sizes {
    first: Cell<Option<TimeUnit>>,
    other: Cell<Option<TimeUnit>>,
}

impl Sizes {
    /// The unit of a number by its size, which numbers of one file can't tell differently: see [`Sizes::mixed`].
    fn unit(&self, number: f64) -> TimeUnit {
        let unit = match number.abs() {
            size if size >= NANOS => TimeUnit::Ns,
            size if size >= MICROS => TimeUnit::Us,
            size if size >= MILLIS => TimeUnit::Ms,
            _ => TimeUnit::S,
        };
        // 0 and -1 stand for no time, whatever the unit, and what no unit makes a time is none.
        if number > 0.0
            && number * unit.seconds() < MOST
            && self.first.get().is_none_or(|first| first != unit)
        {
            let seen = if self.first.get().is_none() { &self.first } else { &self.other };
            seen.set(Some(unit));
        }
        unit
    }

    /// Two units that times of the file would have by their size: that of the first, and another.
    pub(super) fn mixed(&self) -> Option<(TimeUnit, TimeUnit)> {
        self.first.get().zip(self.other.get())
    }
}

/// Why a cell has no value. The words follow "KEY is ".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Empty, or a word for nothing: `Unknown`, `None`, `null`, `-`.
    Missing,
    /// Not what it should be.
    Not(&'static str),
}

const NO_TIME: Unusable = Unusable::Not("not a time: seconds, 2020-05-01 00:00:00 or 2020-05-01T00:00:00Z");
const NO_DAY: Unusable =
    Unusable::Not("not a time: the day or the month may come first; write 2020-05-01 00:00:00");
const NO_DURATION: Unusable = Unusable::Not("not a duration: seconds, [days-]hh:mm:ss or 1h30m");

const NO_NUMBER: Unusable = Unusable::Not("not a number");

impl Unusable {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Missing => "empty",
            Self::Not(what) => what,
        }
    }
}

impl Times {
    /// Whether a cell is a plain number whose size alone tells that it is not in seconds. `column` is the unit that a column's name tells, here and below.
    pub(super) fn is_guessed(&self, column: Option<TimeUnit>, cell: &[u8]) -> bool {
        self.bare(column, cell).is_some_and(|number| number.abs() >= MILLIS)
    }

    /// A plain number of a unit that nothing tells.
    pub(super) fn bare(&self, column: Option<TimeUnit>, cell: &[u8]) -> Option<f64> {
        if self.unit.or(column).is_some() { None } else { filled(cell).ok().and_then(plain) }
    }

    /// A point in time, in seconds since 1970, or since whenever a trace counts from. Of two that a clock shows when it is set back, the first that is not before `not_before_s`.
    pub(super) fn at(
        &self,
        column: Option<TimeUnit>,
        sizes: &Sizes,
        not_before_s: f64,
        cell: &[u8],
    ) -> Result<f64, Unusable> {
        let cell = filled(cell)?;
        if let Some(number) = plain(cell) {
            let unit = self.unit.or(column).unwrap_or_else(|| sizes.unit(number));
            return time(number * unit.seconds());
        }
        let text = str::from_utf8(cell).ok().filter(|text| text.len() <= LONGEST).ok_or(NO_TIME)?;
        if let Ok(local) = text.parse::<civil::DateTime>() {
            // The parser takes a zone and forgets it.
            if !zoned(text) {
                let of = |offset: Offset| match offset.to_timestamp(local) {
                    Ok(at) => time(at.as_duration().as_secs_f64()),
                    Err(_) => Err(NO_TIME),
                };
                return match self.zone.to_ambiguous_timestamp(local).offset() {
                    AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Gap { before: offset, .. } => {
                        of(offset)
                    }
                    AmbiguousOffset::Fold { before, after } => match of(before)? {
                        first_s if first_s >= not_before_s => Ok(first_s),
                        _ => of(after),
                    },
                };
            }
        }
        if let Ok(at) = text.parse::<jiff::Timestamp>() {
            return time(at.as_duration().as_secs_f64());
        }
        let again = respelled(text).ok_or(if text.get(2..3) == Some("/") { NO_DAY } else { NO_TIME })?;
        self.at(column, sizes, not_before_s, again.as_bytes())
    }

    /// How long, in seconds: a number in the unit of times, `[days-]hh:mm:ss`, `mm:ss`, or as in Go, `1h30m`. May be negative.
    pub(super) fn long(&self, column: Option<TimeUnit>, cell: &[u8]) -> Result<f64, Unusable> {
        let cell = filled(cell)?;
        if let Some(number) = plain(cell) {
            return time(number * self.unit.or(column).map_or(1.0, TimeUnit::seconds));
        }
        let text = str::from_utf8(cell).map_err(|_| NO_DURATION)?;
        let long = clock(text).or_else(|| units(text)).ok_or(NO_DURATION)?;
        time(long)
    }
}

/// A date that can only mean one day, as the parser knows it: `2020/05/01`, `01.05.2020`, ` UTC` or ` +0200` at the end.
fn respelled(text: &str) -> Option<String> {
    if text.get(4..5) == Some("/") {
        return Some(text.replacen('/', "-", 2));
    }
    if let (Some("."), Some("."), Some(day), Some(month), Some(year), Some(clock)) =
        (text.get(2..3), text.get(5..6), text.get(..2), text.get(3..5), text.get(6..10), text.get(10..))
    {
        return Some(format!("{year}-{month}-{day}{clock}"));
    }
    if let Some(at) = text.strip_suffix("UTC").or_else(|| text.strip_suffix("GMT")) {
        return Some(format!("{}Z", at.trim_end()));
    }
    let (at, offset) = text.rsplit_once(' ')?;
    (offset.starts_with(['+', '-']) && at.len() >= 10).then(|| format!("{at}{offset}"))
}

/// `Z`, `+08:00` or `[Europe/Paris]` at its end.
fn zoned(text: &str) -> bool {
    let after_date = text.get(10..).unwrap_or_default();
    after_date.contains(['Z', 'z', '+', '-', '['])
}

fn time(seconds: f64) -> Result<f64, Unusable> {
    // 0 has one sign, so that times compare as numbers do.
    if seconds.abs() < MOST { Ok(seconds + 0.0) } else { Err(Unusable::Not("beyond the year 9999")) }
}

/// `[days-]hh:mm:ss[.fraction]` and `mm:ss`, as Slurm writes them.
fn clock(text: &str) -> Option<f64> {
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (days.parse::<u32>().ok()?, clock),
        None => (0, text),
    };
    let mut seconds = 0.0;
    let mut parts = 0;
    for part in clock.split(':') {
        if !part.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        seconds = seconds * 60.0 + plain(part.as_bytes())?;
        parts += 1;
    }
    (parts == 2 || parts == 3).then_some(f64::from(days) * 86_400.0 + seconds)
}

/// `1d2h30m5s`, `90 min`, and `513 second(s)` as LSF writes it.
fn units(text: &str) -> Option<f64> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let number = plain(&rest.as_bytes()[..digits])?;
        rest = &rest[digits..];
        let letters = rest.find(|character: char| character.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match rest[..letters].trim() {
            "ms" => 0.001,
            "s" | "sec" | "secs" | "second" | "seconds" | "second(s)" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hour" | "hours" => 3600.0,
            "d" | "day" | "days" => 86_400.0,
            "w" => 604_800.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[letters..];
    }
    Some(seconds)
}

/// A duration given on a command line: seconds, `[days-]hh:mm:ss` or `1h30m`.
pub fn duration(text: &str) -> Result<f64, String> {
    match Times::default().long(None, text.as_bytes()) {
        Ok(long) if long >= 0.0 => Ok(long),
        Ok(_) => Err("negative".to_owned()),
        Err(Unusable::Missing) => Err("empty".to_owned()),
        Err(Unusable::Not(what)) => Err(what.to_owned()),
    }
}

/// `+08:00`, in seconds.
fn offset(text: &str) -> Result<i32, String> {
    let wrong = || "an offset such as +08:00 or -05:30".to_owned();
    let (sign, rest) = match text.as_bytes() {
        [b'+', ..] => (1, &text[1..]),
        [b'-', ..] => (-1, &text[1..]),
        _ if text == "Z" || text == "0" => return Ok(0),
        _ => return Err(wrong()),
    };
    let (hours, minutes) = rest.split_once(':').unwrap_or((rest, "0"));
    let hours: i32 = hours.parse().map_err(|_| wrong())?;
    let minutes: i32 = minutes.parse().map_err(|_| wrong())?;
    if !(0..=25).contains(&hours) || !(0..60).contains(&minutes) {
        return Err(wrong());
    }
    Ok(sign * (hours * 3600 + minutes * 60))
}

/// A zone by an offset such as `+08:00`, or by its name, `Europe/Berlin`, with the hours at which its clocks are set.
pub(super) fn zone(text: &str) -> Result<TimeZone, String> {
    let fixed = |offset_s| Offset::from_seconds(offset_s).map(TimeZone::fixed).map_err(|why| why.to_string());
    if !text.starts_with(|first: char| first.is_ascii_alphabetic()) || text == "Z" {
        return offset(text).and_then(fixed);
    }
    if text.contains("..") {
        return Err("a zone such as Europe/Berlin".to_owned());
    }
    let folder = std::env::var_os("TZDIR").unwrap_or_else(|| "/usr/share/zoneinfo".into());
    let path = std::path::Path::new(&folder).join(text);
    let rules = std::fs::read(&path).map_err(|why| {
        format!("no such zone in {}: {why}; an offset such as +08:00 does, too", folder.display())
    })?;
    TimeZone::tzif(text, &rules).map_err(|why| format!("{}: {why}", path.display()))
}

/// A cell without the blanks around it.
fn filled(cell: &[u8]) -> Result<&[u8], Unusable> {
    let cell = cell.trim_ascii();
    let nothing: [&[u8]; 9] = [b"", b"-", b"unknown", b"none", b"null", b"(null)", b"<none>", b"n/a", b"nil"];
    if cell.len() < 8 && nothing.iter().any(|word| cell.eq_ignore_ascii_case(word)) {
        return Err(Unusable::Missing);
    }
    Ok(cell)
}

/// A finite decimal number, without words such as `inf`.
fn plain(cell: &[u8]) -> Option<f64> {
    if let Some(whole) = whole(cell) {
        #[expect(clippy::cast_precision_loss, reason = "at most fifteen digits")]
        return Some(whole as f64);
    }
    let first = *cell.iter().find(|byte| !matches!(byte, b'+' | b'-'))?;
    if !first.is_ascii_digit() && first != b'.' {
        return None;
    }
    str::from_utf8(cell).ok()?.parse::<f64>().ok().filter(|number| number.is_finite())
}

/// Up to fifteen digits: most numbers of most traces.
fn whole(cell: &[u8]) -> Option<u64> {
    if cell.is_empty() || cell.len() > 15 {
        return None;
    }
    cell.iter()
        .try_fold(0_u64, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0')))
}

/// A number that isn't negative.
pub(super) fn number(cell: &[u8]) -> Result<f64, Unusable> {
    let cell = filled(cell)?;
    let number = plain(cell).ok_or(NO_NUMBER)?;
    if number < 0.0 {
        return Err(Unusable::Not("negative"));
    }
    if number >= MOST {
        return Err(Unusable::Not("too large"));
    }
    Ok(number)
}

/// GPUs, and how much of each in thousandths: a whole number, or a share of one such as `0.25`.
pub(super) fn gpus(cell: &[u8]) -> Result<(u32, u32), Unusable> {
    whole_or_share(number(cell)?)
}

/// The same in hundredths of a GPU, as in Alibaba's traces: `400` is four of them, `25` a quarter of one.
pub(super) fn gpu_percent(cell: &[u8]) -> Result<(u32, u32), Unusable> {
    whole_or_share(number(cell)? / 100.0)
}

fn whole_or_share(gpus: f64) -> Result<(u32, u32), Unusable> {
    if gpus > 0.0 && gpus < 1.0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 1000")]
        return Ok((1, ((gpus * f64::from(WHOLE_GPU)).round() as u32).clamp(1, WHOLE_GPU)));
    }
    if gpus.fract() != 0.0 {
        return Err(Unusable::Not("neither a whole number nor a share of one GPU"));
    }
    Ok((fits(gpus)?, WHOLE_GPU))
}

/// A whole number that fits 32 bits; `8.0` is one.
pub(super) fn count(cell: &[u8]) -> Result<u32, Unusable> {
    let number = number(cell)?;
    if number.fract() != 0.0 {
        return Err(Unusable::Not("not a whole number"));
    }
    fits(number)
}

fn fits(number: f64) -> Result<u32, Unusable> {
    if number > f64::from(u32::MAX) {
        return Err(Unusable::Not("too large"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(number as u32)
}

/// A whole number, held within 32 bits: only the order counts.
pub(super) fn priority(cell: &[u8]) -> Result<i32, Unusable> {
    let number = plain(filled(cell)?).ok_or(NO_NUMBER)?;
    #[expect(clippy::cast_possible_truncation, reason = "saturates")]
    Ok(number as i32)
}

/// A quantity as Kubernetes writes it, in `1 / parts` units: `500m`, `64Gi`, `16G`, `2`. `K`, which Kubernetes doesn't know, is `Ki`.
pub(super) fn quantity(cell: &[u8], parts: u16) -> Result<u64, Unusable> {
    let text = str::from_utf8(filled(cell)?).map_err(|_| NO_NUMBER)?;
    let amount = match text.strip_suffix('K') {
        Some(number) => spillway_quantity::parse(&format!("{number}Ki"), parts),
        None => spillway_quantity::parse(text, parts),
    };
    match amount.ok_or(NO_NUMBER)? {
        i64::MAX => Err(Unusable::Not("too large")),
        amount => amount.try_into().map_err(|_| Unusable::Not("negative")),
    }
}

/// `yes` and `no` in their usual words.
pub(super) fn truth(cell: &[u8]) -> Result<bool, Unusable> {
    let cell = filled(cell)?;
    let is = |words: [&[u8]; 5]| words.iter().any(|word| cell.eq_ignore_ascii_case(word));
    if is([b"1", b"true", b"yes", b"t", b"y"]) {
        Ok(true)
    } else if is([b"0", b"false", b"no", b"f", b"n"]) {
        Ok(false)
    } else {
        Err(Unusable::Not("neither true nor false"))
    }
}

/// What Slurm granted or was asked for, `billing=8,cpu=8,gres/gpu=2,gres/gpu:a100=2,mem=64G,node=1`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tres<'a> {
    pub(super) gpus: u32,
    pub(super) model: Option<&'a [u8]>,
    pub(super) cpu_milli: u64,
    pub(super) memory_bytes: u64,
    pub(super) nodes: u32,
}

impl<'a> Tres<'a> {
    pub(super) fn of(cell: &'a [u8]) -> Result<Self, Unusable> {
        let mut tres = Self::default();
        let (mut named, mut total) = (0_u32, None);
        for pair in cell.split(|&byte| byte == b',').filter(|pair| !pair.trim_ascii().is_empty()) {
            let equals =
                pair.iter().position(|&byte| byte == b'=').ok_or(Unusable::Not("not name=amount,…"))?;
            let (name, amount) = (pair[..equals].trim_ascii(), &pair[equals + 1..]);
            match name {
                b"cpu" => tres.cpu_milli = quantity(amount, 1000)?,
                b"node" => tres.nodes = count(amount)?,
                b"mem" => tres.memory_bytes = slurm_memory(amount)?,
                b"gres/gpu" => total = Some(count(amount)?),
                _ => {
                    if let Some(model) = name.strip_prefix(b"gres/gpu:") {
                        let gpus = count(amount)?;
                        named = named.checked_add(gpus).ok_or(Unusable::Not("too large"))?;
                        if gpus > 0 {
                            tres.model = Some(model);
                        }
                    }
                }
            }
        }
        tres.gpus = total.unwrap_or(named);
        Ok(tres)
    }
}

/// Slurm's memory is in powers of 1024, MiB where it has no letter. In bytes.
fn slurm_memory(cell: &[u8]) -> Result<u64, Unusable> {
    let unit: &[u8] = if cell.last().is_some_and(u8::is_ascii_alphabetic) { b"i" } else { b"Mi" };
    quantity(&[cell, unit].concat(), 1)
}
