//! Numbers, times and reasons in plain words.

use super::{Machines, Menu, Optimization, RatioRange, Span};

/// A number with its thousands set apart: `12,345.6`.
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let (whole, rest) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let nothing = text.chars().all(|digit| matches!(digit, '0' | '.'));
    let sign = if value < 0.0 && !nothing { "-" } else { "" };
    match rest {
        Some(rest) => format!("{sign}{grouped}.{rest}"),
        None => format!("{sign}{grouped}"),
    }
}

/// Money per hour, to a cent or to a tenth where it is much.
pub fn money(per_hour: f64, currency: &str) -> String {
    let digits = if per_hour.abs() < 1000.0 { 2 } else { 0 };
    format!("{} {currency}/h", number(per_hour, digits)).replace(" /h", "/h")
}

/// What the unit of money is where prices have no currency, behind what a page is about; else nothing.
pub fn unit(currency: &str) -> &'static str {
    if currency == super::UNPRICED { "; c_d is what a dedicated GPU costs for an hour" } else { "" }
}

/// `712 GPUs`.
pub fn gpus(count: u32) -> String {
    format!("{} GPU{}", number(f64::from(count), 0), if count == 1 { "" } else { "s" })
}

/// A share in per cent.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = usize::from(percent.abs() < 9.95 && (percent - percent.round()).abs() > 0.05);
    format!("{percent:.digits$} %")
}

/// A price ratio.
pub fn ratio(value: f64) -> String {
    if value >= 100.0 { number(value, 0) } else { format!("{value:.2}") }
}

/// How long, in the largest unit that fits.
pub fn time(seconds: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")];
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| seconds >= unit * 0.9995).unwrap_or((1.0, "s"));
    let amount = seconds / unit;
    let digits = usize::from((amount - amount.round()).abs() > 0.05);
    format!("{amount:.digits$} {name}")
}

/// Times from here on are seconds since 1970; before, since the trace's start.
const DATED_S: f64 = 3e8;

/// When, as a date where the trace has dates.
pub fn when(at_s: f64) -> String {
    let date = (at_s >= DATED_S)
        .then(|| jiff::Timestamp::from_second(at_s.round() as i64).ok())
        .flatten()
        .map(|date| date.strftime("%Y-%m-%d %H:%M").to_string());
    date.unwrap_or_else(|| time(at_s.max(0.0)))
}

/// From when to when.
pub fn span(span: Span) -> String {
    format!("{} from {} to {}", time(span.seconds()), when(span.from_s), when(span.to_s))
}

/// Two ratios, with as many digits as tell them apart.
fn range_in_words(from: f64, to: f64) -> (String, String) {
    let text = |value: f64, digits| {
        if value >= 100.0 { number(value, digits - 2) } else { format!("{value:.digits$}") }
    };
    (2..7)
        .map(|digits| (text(from, digits), text(to, digits)))
        .find(|(from, to)| from != to)
        .unwrap_or_else(|| (ratio(from), ratio(to)))
}

/// `r from 2.95 to 3.10`.
pub fn ratios(range: RatioRange) -> String {
    match (range.from, range.to) {
        (None, _) => "no ratio: the last of it is never needed".to_owned(),
        (Some(from), None) => format!("r from {} up", ratio(from)),
        (Some(0.0), Some(to)) => format!("r up to {}", ratio(to)),
        (Some(from), Some(to)) => {
            let (from, to) = range_in_words(from, to);
            format!("r from {from} to {to}")
        }
    }
}

/// Machines in words: `89 machines of 8 GPUs`.
pub fn machines(found: &Optimization) -> String {
    kinds(&found.machines)
}

/// The same of any machines.
pub fn kinds(machines: &[Machines]) -> String {
    let kinds: Vec<String> = machines
        .iter()
        .filter(|kind| kind.count > 0)
        .map(|kind| {
            let plural = if kind.count == 1 { "" } else { "s" };
            let model = if kind.model.is_empty() { String::new() } else { format!(" {}", kind.model) };
            format!("{} machine{plural} of {}{model}", number(f64::from(kind.count), 0), kind.gpus_each)
        })
        .collect();
    kinds.join(" and ")
}

/// `1 sample`, `1,566 samples`.
pub fn count(many: u64, what: &str) -> String {
    format!("{} {what}{}", number(many as f64, 0), if many == 1 { "" } else { "s" })
}

/// Why the advice is what it is.
pub(super) fn reasons(found: &Optimization, menu: &Menu) -> Vec<String> {
    let mut reasons = Vec::new();
    let prices = &found.prices;
    let Some(r) = prices.ratio else {
        reasons.push(
            "Dedicated GPUs cost nothing at these prices: own as many as were ever demanded.".to_owned(),
        );
        return reasons;
    };
    let worth = 1.0 / r;
    reasons.push(format!(
        "A serverless GPU costs r = {} times a dedicated one, so a dedicated GPU pays once it is busy for more than 1/r = {} of the time.",
        ratio(r),
        percent(worth)
    ));
    if r <= 1.0 {
        reasons.push("No GPU is busy for more than all of the time: own nothing.".to_owned());
        return reasons;
    }
    let unit = menu.unit_gpus();
    let each = if unit == 1 { "GPU" } else { "machine" };
    if let Some(from) = found.break_even.advice.from.filter(|from| *from > 0.0) {
        reasons.push(format!(
            "The last {each} of the {} advised would be busy for {} of the time, which is enough.",
            found.advice.gpus,
            percent(1.0 / from)
        ));
    }
    let next = found.break_even.advice.to.map_or(0.0, |to| 1.0 / to);
    reasons.push(format!("One {each} more would be busy for {} of the time, which is not.", percent(next)));
    reasons.push(format!(
        "Beyond the advised number, {} of all GPU-hours are rented; of the dedicated ones {} are used.",
        percent(found.advice.rented_share),
        percent(found.advice.utilisation)
    ));
    reasons.push(format!(
        "One who knew the future and could own for minutes would pay {}; nobody who lets no job wait pays less.",
        money(found.clairvoyant_per_hour, &found.currency)
    ));
    reasons.push(format!(
        "The interval: demand was put together again {} times from blocks of {} drawn from itself (seed {}), and in {} of the times the best was between {} and {} GPUs.",
        number(f64::from(found.interval.resamples), 0),
        time(found.interval.block_s),
        found.interval.seed,
        percent(found.interval.confidence),
        found.interval.from_gpus,
        found.interval.to_gpus
    ));
    reasons
}
