//! Who pays for a month: what the machines cost, divided by the GPU-hours that each held, what nobody held as a line of its own, and what was rented, by the second.
//!
//! Costs are added up as whole numbers and rounded once, to hundredths, so that the lines are exactly the total.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Pool, Recorded, What,
    view::{By, Seen, gap_table, pool_name},
};
use crate::output::{Column, Table};

/// Prices are taken to the millionth.
const PRICE_PARTS: f64 = 1e6;
/// A hundredth of the currency in thousandths of a GPU, seconds and millionths per hour.
const HUNDREDTH: i128 = 1000 * 3600 * 10_000;
/// Pods without the label that names the owner.
const NOBODY: &str = "(no label)";
/// Whoever is in other namespaces than the one that is asked for.
const OTHERS: &str = "(others)";
/// Stands for a cost that nobody knows.
const NO_PRICE: &str = "no price";

/// What a GPU of a pool costs for an hour.
pub trait Tariff {
    /// The price; `None` where none is known.
    fn per_gpu_hour(&self, pool: &Pool) -> Option<f64>;
    /// In which currency.
    fn currency(&self) -> String;
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// What the period is called: `2026-10`.
    pub name: String,
    /// Its begin, in seconds since 1970.
    pub since_s: i64,
    /// Its end.
    pub until_s: i64,
    /// Who counts as the owner.
    pub by: By,
    /// Only owners in this namespace by name, all others in one line.
    pub namespace: Option<String>,
    /// Whether what nobody held is divided among those who held something of the same pool.
    pub spread_idle: bool,
}

/// Who pays for a period.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Showback {
    /// Where it comes from: a file, or an address.
    pub source: String,
    /// What the period is called: `2026-10`.
    pub period: String,
    /// From when to when that is, and what of it was not seen: nobody pays for that here.
    #[serde(flatten)]
    pub seen: Seen,
    /// Who counts as the owner.
    pub by: By,
    /// Of all costs.
    pub currency: String,
    /// By cost, the highest first; what nobody held comes last.
    pub lines: Vec<Line>,
    /// The sum of all lines.
    pub total: Line,
    /// What should be known about it.
    pub warnings: Vec<String>,
}

/// What one owner pays.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Line {
    /// Who.
    pub owner: String,
    /// Whether it is what nobody held.
    pub idle: bool,
    /// GPU-hours of owned machines.
    pub owned_gpu_hours: f64,
    /// How much of what the owned machines cost, from 0 to 1.
    pub owned_share: f64,
    /// What that costs.
    pub owned_cost: f64,
    /// GPU-seconds of serverless pods.
    pub rented_gpu_s: f64,
    /// What they cost.
    pub rented_cost: f64,
    /// Both.
    pub cost: f64,
    /// The same by pool.
    pub parts: Vec<Part>,
}

/// What an owner pays for one pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// The pool.
    pub pool: String,
    /// Whether it is rented by the second.
    pub serverless: bool,
    /// How much of it.
    pub gpu_hours: f64,
    /// What that costs; `None` where no price is known.
    pub cost: Option<f64>,
}

/// Somebody's part of a pool, before it is rounded. `None`: nobody's.
struct Share<'a> {
    owner: Option<String>,
    pool: &'a Pool,
    milli_gpu_s: i64,
    /// In parts of [`HUNDREDTH`].
    cost: Option<i128>,
}

impl Showback {
    /// Divides what was recorded of a period.
    pub fn of(source: String, recorded: &Recorded, tariff: &impl Tariff, question: &Question) -> Self {
        let seen = Seen::of(recorded, question.since_s, question.until_s, 3600);
        let mut warnings = Vec::new();
        if !seen.gaps.is_empty() {
            warnings.push(format!(
                "{:.1} hours of {} were not recorded: what was held, rented and idle then is not in here",
                hours(seen.unseen_s() * 1000),
                question.name
            ));
        }
        let shares = shares(recorded, tariff, question, &mut warnings);
        let (lines, total) = lines(&shares);
        Self {
            source,
            period: question.name.clone(),
            seen,
            by: question.by,
            currency: tariff.currency(),
            lines,
            total,
            warnings,
        }
    }

    /// By owner, by owner and pool, and what was not recorded.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = vec![self.by_owner(), self.by_pool()];
        if !self.seen.gaps.is_empty() {
            tables.push(gap_table(&self.seen.gaps));
        }
        tables
    }

    fn by_owner(&self) -> Table {
        let row = |line: &Line| {
            let priced = |serverless| {
                let mut parts = line.parts.iter().filter(|part| part.serverless == serverless).peekable();
                parts.peek().is_none() || parts.any(|part| part.cost.is_some())
            };
            let cost = |priced, cost: f64| if priced { format!("{cost:.2}") } else { NO_PRICE.to_owned() };
            vec![
                line.owner.clone(),
                format!("{:.2}", line.owned_gpu_hours),
                format!("{:.2}", line.owned_share * 100.0),
                cost(priced(false), line.owned_cost),
                format!("{:.0}", line.rented_gpu_s),
                cost(priced(true), line.rented_cost),
                format!("{:.2}", line.cost),
            ]
        };
        Table {
            title: format!(
                "{} by {}, {:.1} % of it recorded, costs in {}:",
                self.period,
                self.by.word(),
                self.seen.seen_share * 100.0,
                self.currency
            ),
            columns: vec![
                Column::text("OWNER"),
                Column::number("OWNED GPU HOURS"),
                Column::number("OWNED SHARE %"),
                Column::number("OWNED COST"),
                Column::number("RENTED GPU SECONDS"),
                Column::number("RENTED COST"),
                Column::number("COST"),
            ],
            rows: self.lines.iter().chain([&self.total]).map(row).collect(),
        }
    }

    /// The same by pool.
    pub fn by_pool(&self) -> Table {
        let mut rows = Vec::new();
        for line in &self.lines {
            for part in &line.parts {
                let cost = part.cost.map_or(NO_PRICE.to_owned(), |cost| format!("{cost:.2}"));
                let pool = pool_name(&part.pool, part.serverless);
                rows.push(vec![line.owner.clone(), pool, format!("{:.2}", part.gpu_hours), cost]);
            }
        }
        Table {
            title: "By pool:".to_owned(),
            columns: vec![
                Column::text("OWNER"),
                Column::text("POOL"),
                Column::number("GPU HOURS"),
                Column::number("COST"),
            ],
            rows,
        }
    }
}

fn shares<'a>(
    recorded: &'a Recorded,
    tariff: &impl Tariff,
    question: &Question,
    warnings: &mut Vec<String>,
) -> Vec<Share<'a>> {
    // By pool: what there was, and who held how much.
    let mut pools: BTreeMap<&Pool, (i64, BTreeMap<String, i64>)> = BTreeMap::new();
    for (key, cells) in
        recorded.series.iter().filter(|(key, _)| matches!(key.what, What::Capacity | What::Allocated))
    {
        let sum = cells.iter().fold(0_i64, |sum, cell| sum.saturating_add(cell.milli_gpu_s.max(0)));
        let (capacity, held) = pools.entry(&key.pool).or_default();
        if key.what == What::Capacity {
            *capacity = capacity.saturating_add(sum);
            continue;
        }
        let elsewhere =
            question.namespace.as_ref().is_some_and(|namespace| *namespace != key.owner.namespace);
        let owner = match question.by.name(&key.owner) {
            _ if elsewhere => OTHERS,
            "" => NOBODY,
            name => name,
        };
        let of_owner = held.entry(owner.to_owned()).or_default();
        *of_owner = of_owner.saturating_add(sum);
    }
    let mut shares = Vec::new();
    for (pool, (capacity, held)) in pools {
        let price = tariff.per_gpu_hour(pool);
        let price = price.filter(|price| (0.0..1e9).contains(price));
        #[expect(clippy::cast_possible_truncation, reason = "it is below 10^15")]
        let price = price.map(|price| (price * PRICE_PARTS).round() as i128);
        let all: i64 = held.values().fold(0, |sum: i64, held| sum.saturating_add(*held));
        let idle = if pool.serverless { 0 } else { capacity.saturating_sub(all).max(0) };
        if price.is_none() && (all > 0 || idle > 0) {
            warnings.push(format!(
                "no price is known for {}: its cost is missing",
                pool_name(&pool.name, pool.serverless)
            ));
        }
        if !pool.serverless && all > capacity {
            warnings.push(format!(
                "{}: more was held than there was, as when machines went while their pods were still there",
                pool.name
            ));
        }
        let spread = question.spread_idle && all > 0;
        let mut paid: Vec<i64> = held.values().copied().collect();
        if spread {
            let parts = divided(idle, &paid);
            paid.iter_mut().zip(parts).for_each(|(paid, part)| *paid = paid.saturating_add(part));
        }
        for ((owner, milli_gpu_s), paid) in held.into_iter().zip(paid).filter(|((_, held), _)| *held > 0) {
            let cost = price.map(|price| i128::from(paid) * price);
            shares.push(Share { owner: Some(owner), pool, milli_gpu_s, cost });
        }
        if idle > 0 && !spread {
            let cost = price.map(|price| i128::from(idle) * price);
            shares.push(Share { owner: None, pool, milli_gpu_s: idle, cost });
        }
    }
    shares
}

/// Rounds each cost so that the sum of what is rounded is what is rounded of the sum, and makes lines of them.
fn lines(shares: &[Share<'_>]) -> (Vec<Line>, Line) {
    let exact: Vec<i128> = shares.iter().map(|share| share.cost.unwrap_or(0)).collect();
    let rounded = rounded(&exact);
    let mut by_owner: BTreeMap<(bool, &str), Hundredths> = BTreeMap::new();
    let mut all = Hundredths::default();
    for (share, cost) in shares.iter().zip(rounded) {
        let owner = share.owner.as_deref().unwrap_or("(idle)");
        for line in [by_owner.entry((share.owner.is_none(), owner)).or_default(), &mut all] {
            if share.pool.serverless {
                line.rented_milli_s += share.milli_gpu_s;
                line.rented += cost;
            } else {
                line.owned_milli_s += share.milli_gpu_s;
                line.owned += cost;
            }
            line.parts.push(Part {
                pool: share.pool.name.clone(),
                serverless: share.pool.serverless,
                gpu_hours: hours(share.milli_gpu_s),
                cost: share.cost.map(|_| money(cost)),
            });
        }
    }
    all.parts.clear();
    let mut lines: Vec<Line> =
        by_owner.into_iter().map(|((idle, owner), line)| line.shown(owner.to_owned(), idle, &all)).collect();
    lines.sort_by(|one, other| {
        one.idle.cmp(&other.idle).then(other.cost.total_cmp(&one.cost)).then(one.owner.cmp(&other.owner))
    });
    let total = all.shown("total".to_owned(), false, &all);
    (lines, total)
}

/// A line while it is added up, in hundredths of the currency.
#[derive(Default)]
struct Hundredths {
    owned_milli_s: i64,
    owned: i128,
    rented_milli_s: i64,
    rented: i128,
    parts: Vec<Part>,
}

impl Hundredths {
    fn shown(&self, owner: String, idle: bool, all: &Self) -> Line {
        // By cost where there is one: a pool of dear GPUs is more of the whole.
        let share = if all.owned > 0 {
            money(self.owned) / money(all.owned)
        } else if all.owned_milli_s > 0 {
            hours(self.owned_milli_s) / hours(all.owned_milli_s)
        } else {
            0.0
        };
        Line {
            owner,
            idle,
            owned_gpu_hours: hours(self.owned_milli_s),
            owned_share: share,
            owned_cost: money(self.owned),
            rented_gpu_s: hours(self.rented_milli_s) * 3600.0,
            rented_cost: money(self.rented),
            cost: money(self.owned + self.rented),
            parts: self.parts.clone(),
        }
    }
}

/// Costs in hundredths, of which the sum is what is rounded of the sum.
fn rounded(exact: &[i128]) -> Vec<i128> {
    let sum: i128 = exact.iter().sum();
    let parts = exact.iter().map(|cost| (cost / HUNDREDTH, cost % HUNDREDTH)).collect();
    with_rest((sum + HUNDREDTH / 2) / HUNDREDTH, parts)
}

/// `whole` divided by `weights` in whole numbers, with nothing left over.
fn divided(whole: i64, weights: &[i64]) -> Vec<i64> {
    let all: i128 = weights.iter().copied().map(i128::from).sum();
    let products = weights.iter().map(|weight| i128::from(*weight) * i128::from(whole));
    let parts = products.map(|product| (product / all.max(1), product % all.max(1))).collect();
    with_rest(i128::from(whole), parts).into_iter().map(|part| i64::try_from(part).unwrap_or(whole)).collect()
}

/// Of parts and what was cut off each, those that are `whole` together: who was cut off most gets one more (the largest remainder).
fn with_rest(whole: i128, parts: Vec<(i128, i128)>) -> Vec<i128> {
    let left = whole - parts.iter().map(|(part, _)| part).sum::<i128>();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(parts[*index].1), *index));
    let mut parts: Vec<i128> = parts.into_iter().map(|(part, _)| part).collect();
    for index in order.into_iter().take(usize::try_from(left).unwrap_or(0)) {
        parts[index] += 1;
    }
    parts
}

#[expect(clippy::cast_precision_loss, reason = "sums of money are far below 2^52 hundredths")]
fn money(hundredths: i128) -> f64 {
    hundredths as f64 / 100.0
}

#[expect(clippy::cast_precision_loss, reason = "GPU-seconds are far below 2^52")]
fn hours(milli_gpu_s: i64) -> f64 {
    milli_gpu_s as f64 / 3_600_000.0
}

#[cfg(test)]
mod tests;
