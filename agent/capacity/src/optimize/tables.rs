//! The answer as text: a few lines first, and tables behind them.

use std::fmt::Write as _;

use clap::ValueEnum as _;

use super::{
    Cost, Later, Objective, Optimization, Search, Trial,
    words::{gpus, machines, money, number, percent, ratio, ratios, time, when},
};
use crate::{
    output::{Column, Table},
    policy::Burst,
};

/// The currency where only the ratio of prices is known.
pub(crate) const UNPRICED: &str = "c_d";
/// Rows of the curve that are printed.
const ROWS: usize = 24;

impl Optimization {
    /// The short answer: what it is about, and what is to be said about it.
    pub fn summary(&self) -> Vec<(&'static str, String)> {
        let paid = |cost: &Cost| money(cost.per_hour, &self.currency);
        let mut lines = Vec::new();
        if let Some(search) = &self.search {
            lines.extend(self.search_in_words(search));
        }
        let mut say = |about, text| lines.push((about, text));
        let interval = format!(
            "{:.0} % interval {} to {}",
            self.interval.confidence * 100.0,
            number(f64::from(self.interval.from_gpus), 0),
            number(f64::from(self.interval.to_gpus), 0)
        );
        let made_of = if self.machines.iter().all(|kind| kind.gpus_each == 1) {
            String::new()
        } else {
            format!(" ({})", machines(self))
        };
        // No placement of whole jobs costs less where none waits.
        let own = if self.search.is_some() { "Bound" } else { "Own" };
        if self.advice.gpus == 0 {
            say(own, format!("nothing, rent everything; {interval}"));
        } else {
            say(own, format!("{}{made_of}, {interval}", gpus(self.advice.gpus)));
        }
        say(
            "Cost",
            format!(
                "{}: {} owned, {} rented ({} of GPU-hours); interval {} to {}",
                paid(&self.advice),
                money(self.advice.owned_per_hour, &self.currency),
                money(self.advice.rented_per_hour, &self.currency),
                percent(self.advice.rented_share),
                money(self.interval.from_per_hour, &self.currency),
                money(self.interval.to_per_hour, &self.currency)
            ),
        );
        if let Some(today) = &self.today {
            let saved = today.per_hour - self.advice.per_hour;
            let share = if today.per_hour > 0.0 { saved / today.per_hour } else { 0.0 };
            say(
                "Today",
                format!(
                    "{} cost {}; the advice saves {} ({})",
                    gpus(today.gpus),
                    paid(today),
                    money(saved, &self.currency),
                    percent(share)
                ),
            );
        }
        say(
            "Otherwise",
            format!(
                "all rented {}; never renting ({}) {}",
                paid(&self.all_rented),
                gpus(self.all_owned.gpus),
                paid(&self.all_owned)
            ),
        );
        say(
            "Flat",
            format!(
                "{} to {} cost within {} of the least",
                number(f64::from(self.flat.from_gpus), 0),
                gpus(self.flat.to_gpus),
                percent(self.flat.within)
            ),
        );
        say("Regret", self.regret_in_words());
        let mut even = format!("the advice is right for {}", ratios(self.break_even.advice));
        if let (Some(today), Some(range)) = (&self.today, self.break_even.today) {
            let _ = write!(even, "; today's {} for {}", number(f64::from(today.gpus), 0), ratios(range));
        }
        if let Some(rent) = self.break_even.rent_everything_up_to {
            let _ = write!(even, "; renting everything up to {}", ratio(rent));
        }
        say("Break-even", even);
        say("Prices", self.prices_in_words());
        let demand = &self.demand;
        say(
            "Demand",
            format!(
                "{}; mean {}, p50 {}, p95 {}, p99 {}, max {} over {} ({} samples) from {}",
                demand.meaning,
                number(demand.mean_gpus, 1),
                number(f64::from(demand.p50_gpus), 0),
                number(f64::from(demand.p95_gpus), 0),
                number(f64::from(demand.p99_gpus), 0),
                number(f64::from(demand.max_gpus), 0),
                time(demand.observed_s),
                number(demand.samples as f64, 0),
                when(demand.span.from_s)
            ),
        );
        for warning in &self.warnings {
            say("Warning", warning.clone());
        }
        lines
    }

    fn search_in_words(&self, search: &Search) -> Vec<(&'static str, String)> {
        let way = |trial: &Trial| match trial.burst {
            Burst::AtOnce => "the rest bursts at once".to_owned(),
            Burst::Wait => format!("the rest bursts after {}", time(trial.wait_s)),
            Burst::ShortWait => format!("what would wait longer than {} bursts at once", time(trial.wait_s)),
            Burst::AllWait => "the rest waits".to_owned(),
            Burst::Never => "nothing bursts".to_owned(),
            Burst::Only => "everything bursts".to_owned(),
        };
        let found = |trial: &Trial| {
            format!(
                "{}: {}; waits {} on average, p95 {}; {} of GPU-hours rented",
                gpus(trial.gpus),
                money(trial.per_hour, &self.currency),
                time(trial.wait_mean_s),
                time(trial.wait_p95_s),
                percent(trial.rented_share)
            )
        };
        let wanted = match search.objective {
            Objective::Cost => {
                "the least cost, by replaying the jobs, which can't be split or moved".to_owned()
            }
            Objective::CostWithinWait { wait_p95_s } => {
                format!("the least cost at which 95 % of jobs wait no longer than {}", time(wait_p95_s))
            }
            Objective::WaitWithinCost { per_hour } => {
                format!("the least wait that costs no more than {}", money(per_hour, &self.currency))
            }
        };
        let mut lines = vec![("Wanted", format!("{wanted}; {} replays of the jobs", search.trials.len()))];
        match &search.best {
            Some(best) => lines.push(("Own", format!("{}; {}", found(best), way(best)))),
            None => lines.push(("Own", "nothing that was tried is allowed: ask for less".to_owned())),
        }
        if let Some(Later { advised, turned_out, best }) = &search.later {
            lines.push((
                "Later",
                format!(
                    "on jobs of the first half {} ({}); on those of the second that comes to {}; best there {}",
                    gpus(advised.gpus),
                    way(advised),
                    found(turned_out),
                    found(best)
                ),
            ));
        }
        lines
    }

    fn regret_in_words(&self) -> String {
        let Some((half, walks)) = self.regret.split_first() else {
            return "the trace is too short to try the advice on later time".to_owned();
        };
        let mut words = format!(
            "the advice on the first half ({}) costs {} more on the second than the best there ({})",
            half.gpus,
            percent(half.regret),
            half.best_gpus
        );
        if !walks.is_empty() {
            let worst = walks.iter().map(|fold| fold.regret).fold(0.0, f64::max);
            let mean = walks.iter().map(|fold| fold.regret).sum::<f64>() / walks.len() as f64;
            let _ = write!(
                words,
                "; walking forward in {} steps, {} on average, {} at worst",
                walks.len(),
                percent(mean),
                percent(worst)
            );
        }
        words
    }

    fn prices_in_words(&self) -> String {
        let prices = &self.prices;
        let each = |given: f64, effective: f64| {
            let given_text = number(given, 4);
            let given_text = given_text.trim_end_matches('0').trim_end_matches('.');
            if (effective - given).abs() > 1e-12 {
                format!("{given_text} (effectively {})", number(effective, 4))
            } else {
                given_text.to_owned()
            }
        };
        let r = prices.ratio.map(|r| format!(", r = {}", ratio(r))).unwrap_or_default();
        let currency = match &*self.currency {
            "" => String::new(),
            // Without prices there is one unit left.
            UNPRICED => format!(" {UNPRICED}, which is what a dedicated GPU costs for an hour,"),
            currency => format!(" {currency}"),
        };
        format!(
            "dedicated {}, serverless {}{currency} per GPU-hour{r}",
            each(prices.dedicated_per_gpu_hour, prices.effective_dedicated_per_gpu_hour),
            each(prices.serverless_per_gpu_hour, prices.effective_serverless_per_gpu_hour)
        )
    }

    /// The short answer as a table, and with `explain` the curve and what walking forward costs.
    pub fn tables(&self, explain: bool) -> Vec<Table> {
        let mut tables = vec![self.answer()];
        if !self.by_model.is_empty() {
            tables.push(self.classes());
        }
        if explain {
            tables.extend(self.search.as_ref().map(tried));
            tables.extend([self.cost_curve(), self.walks()]);
        }
        tables
    }

    fn answer(&self) -> Table {
        let mut rows = Vec::new();
        let mut row = |what: &str, cost: &Cost| {
            rows.push(vec![
                what.to_owned(),
                cost.gpus.to_string(),
                format!("{:.2}", cost.per_hour),
                format!("{:.2}", cost.owned_per_hour),
                format!("{:.2}", cost.rented_per_hour),
                percent(cost.rented_share),
                percent(cost.utilisation),
            ]);
        };
        row(if self.search.is_some() { "without waiting" } else { "advice" }, &self.advice);
        if let Some(today) = &self.today {
            row("today", today);
        }
        row("all rented", &self.all_rented);
        row("never renting", &self.all_owned);
        Table { title: String::new(), columns: columns(Column::text("WHAT")), rows }
    }

    fn classes(&self) -> Table {
        let rows = self.by_model.iter().map(|class| {
            vec![
                if class.models.is_empty() { "any".to_owned() } else { class.models.join("|") },
                number(class.mean_gpus, 1),
                class.max_gpus.to_string(),
                class.advice.gpus.to_string(),
                format!("{:.2}", class.advice.per_hour),
                percent(class.advice.rented_share),
            ]
        });
        Table {
            title: "By the models that jobs ask for, each by itself, without waiting".to_owned(),
            columns: vec![
                Column::text("MODELS"),
                Column::number("MEAN"),
                Column::number("MAX"),
                Column::number("OWN"),
                Column::number("COST/H"),
                Column::number("RENTED"),
            ],
            rows: rows.collect(),
        }
    }

    fn cost_curve(&self) -> Table {
        let every = self.curve.len().div_ceil(ROWS).max(1);
        let least = self.advice.per_hour;
        let rows = self
            .curve
            .iter()
            .enumerate()
            .filter(|(index, cost)| {
                index % every == 0 || cost.gpus == self.advice.gpus || index + 1 == self.curve.len()
            })
            .map(|(_, cost)| {
                let more = if least > 0.0 { cost.per_hour / least - 1.0 } else { 0.0 };
                let mark = if cost.gpus == self.advice.gpus {
                    "least".to_owned()
                } else {
                    format!("+{}", percent(more))
                };
                vec![
                    mark,
                    cost.gpus.to_string(),
                    format!("{:.2}", cost.per_hour),
                    format!("{:.2}", cost.owned_per_hour),
                    format!("{:.2}", cost.rented_per_hour),
                    percent(cost.rented_share),
                    percent(cost.utilisation),
                ]
            })
            .collect();
        Table {
            title: "Cost by number of GPUs owned".to_owned(),
            columns: columns(Column::text("ABOVE LEAST")),
            rows,
        }
    }

    fn walks(&self) -> Table {
        let rows = self.regret.iter().map(|fold| {
            vec![
                when(fold.advised_at_s),
                when(fold.paid_to_s),
                fold.gpus.to_string(),
                format!("{:.2}", fold.per_hour),
                fold.best_gpus.to_string(),
                format!("{:.2}", fold.best_per_hour),
                percent(fold.regret),
            ]
        });
        Table {
            title: "What the advice would have cost on the time that followed".to_owned(),
            columns: vec![
                Column::text("ADVISED AT"),
                Column::text("PAID UNTIL"),
                Column::number("ADVICE"),
                Column::number("COST/H"),
                Column::number("BEST"),
                Column::number("BEST COST/H"),
                Column::number("REGRET"),
            ],
            rows: rows.collect(),
        }
    }
}

/// What was tried, by way of bursting and size.
fn tried(search: &Search) -> Table {
    let rows = search.trials.iter().map(|trial| {
        vec![
            trial.burst.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default(),
            if trial.wait_s > 0.0 { time(trial.wait_s) } else { "-".to_owned() },
            trial.gpus.to_string(),
            format!("{:.2}", trial.per_hour),
            time(trial.wait_mean_s),
            time(trial.wait_p95_s),
            percent(trial.rented_share),
        ]
    });
    Table {
        title: "What was tried".to_owned(),
        columns: vec![
            Column::text("BURST"),
            Column::text("AFTER"),
            Column::number("GPUS"),
            Column::number("COST/H"),
            Column::number("WAIT MEAN"),
            Column::number("WAIT P95"),
            Column::number("RENTED"),
        ],
        rows: rows.collect(),
    }
}

fn columns(first: Column) -> Vec<Column> {
    vec![
        first,
        Column::number("GPUS"),
        Column::number("COST/H"),
        Column::number("OWNED/H"),
        Column::number("RENTED/H"),
        Column::number("RENTED"),
        Column::number("USED"),
    ]
}
