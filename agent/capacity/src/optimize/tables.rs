//! The answer as tables.

use clap::ValueEnum as _;

use super::{
    Cost, Optimization, Search, Trial,
    words::{number, percent, time, when},
};
use crate::output::{Column, Table};

/// Rows of the curve that are printed.
const ROWS: usize = 24;

impl Optimization {
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
            rows.push(cells(what.to_owned(), cost));
        };
        if let Some(search) = &self.search {
            for (what, trial) in [("advice", &search.best), ("today", &search.today)] {
                if let Some(trial) = trial {
                    row(what, &Cost::of(trial));
                }
            }
            row("bound", &self.advice);
        } else {
            row("advice", &self.advice);
            if let Some(today) = &self.today {
                row("today", today);
            }
        }
        row("all rented", &self.all_rented);
        row("never renting", &self.all_owned);
        Table { title: String::new(), columns: columns("WHAT"), rows }
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
            columns: numbers("MODELS", &["MEAN", "MAX", "OWN", "COST/H", "RENTED"]),
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
                cells(mark, cost)
            })
            .collect();
        Table { title: "Cost by number of GPUs owned".to_owned(), columns: columns("ABOVE LEAST"), rows }
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
            columns: numbers(
                "ADVISED AT",
                &["PAID UNTIL", "ADVICE", "COST/H", "BEST", "BEST COST/H", "REGRET"],
            ),
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
            trial.kinds.iter().map(|kind| kind.count.to_string()).collect::<Vec<_>>().join("+"),
            trial.gpus.to_string(),
            format!("{:.2}", trial.per_hour),
            time(trial.wait_mean_s),
            time(trial.wait_p95_s),
            percent(trial.rented_share),
        ]
    });
    Table {
        title: "What was tried".to_owned(),
        columns: numbers(
            "BURST",
            &["AFTER", "MACHINES", "GPUS", "COST/H", "WAIT MEAN", "WAIT P95", "RENTED"],
        ),
        rows: rows.collect(),
    }
}

impl Cost {
    /// What a replay cost.
    fn of(trial: &Trial) -> Self {
        Self {
            gpus: trial.gpus,
            per_hour: trial.per_hour,
            owned_per_hour: trial.owned_per_hour,
            rented_per_hour: trial.per_hour - trial.owned_per_hour,
            rented_share: trial.rented_share,
            utilisation: trial.utilisation,
        }
    }
}

/// A row of costs.
fn cells(what: String, cost: &Cost) -> Vec<String> {
    vec![
        what,
        cost.gpus.to_string(),
        format!("{:.2}", cost.per_hour),
        format!("{:.2}", cost.owned_per_hour),
        format!("{:.2}", cost.rented_per_hour),
        percent(cost.rented_share),
        percent(cost.utilisation),
    ]
}

/// The columns of costs.
fn columns(first: &'static str) -> Vec<Column> {
    numbers(first, &["GPUS", "COST/H", "OWNED/H", "RENTED/H", "RENTED", "USED"])
}

/// A column of words, and numbers.
fn numbers(first: &'static str, numbers: &[&'static str]) -> Vec<Column> {
    std::iter::once(Column::text(first)).chain(numbers.iter().map(|name| Column::number(name))).collect()
}
