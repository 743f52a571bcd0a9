//! The answer in a few lines.

use std::fmt::Write as _;

use super::{
    Cost, Flat, FlatWaits, Interval, Later, Objective, Optimization, RatioRange, Search, Trial,
    words::{count, gpus, kinds, machines, money, number, percent, ratio, ratios, time, when},
};
use crate::policy::Burst;

/// The currency where only the ratio of prices is known.
pub(crate) const UNPRICED: &str = "c_d";

impl Optimization {
    /// The short answer: what it is about, and what is to be said about it.
    pub fn summary(&self) -> Vec<(&'static str, String)> {
        let paid = |cost: &Cost| money(cost.per_hour, &self.currency);
        let mut lines = Vec::new();
        if let Some(search) = &self.search {
            lines.extend(self.search_in_words(search));
        }
        let mut say = |about, text| lines.push((about, text));
        let made_of = if self.machines.iter().all(|kind| kind.gpus_each == 1) {
            String::new()
        } else {
            format!(" ({})", machines(self))
        };
        let own = if self.advice.gpus == 0 {
            "nothing, rent everything".to_owned()
        } else {
            format!("{}{made_of}", gpus(self.advice.gpus))
        };
        let rented = percent(self.advice.rented_share);
        if self.search.is_some() {
            // No placement of whole jobs costs less where none waits.
            say(
                "Bound",
                format!(
                    "if jobs could be split and moved, and none waited: {own}, {}, {rented} of GPU-hours rented",
                    paid(&self.advice)
                ),
            );
        } else {
            say("Own", format!("{own}, {}", self.interval.in_words()));
            say(
                "Cost",
                format!(
                    "{}: {} owned, {} rented ({rented} of GPU-hours); {}",
                    paid(&self.advice),
                    money(self.advice.owned_per_hour, &self.currency),
                    money(self.advice.rented_per_hour, &self.currency),
                    self.interval.cost_in_words(&self.currency)
                ),
            );
        }
        if let (Some(today), None) = (&self.today, &self.search) {
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
        if self.search.is_none() {
            say("Flat", self.flat.in_words());
            say("Regret", self.regret_in_words());
        }
        say("Break-even", self.break_even_in_words());
        say("Prices", self.prices_in_words());
        let demand = &self.demand;
        say(
            "Demand",
            format!(
                "{}; mean {}, p50 {}, p95 {}, p99 {}, max {} over {} ({}) from {}",
                demand.meaning,
                number(demand.mean_gpus, 1),
                number(f64::from(demand.p50_gpus), 0),
                number(f64::from(demand.p95_gpus), 0),
                number(f64::from(demand.p99_gpus), 0),
                number(f64::from(demand.max_gpus), 0),
                time(demand.observed_s),
                count(demand.samples, "sample"),
                when(demand.span.from_s)
            ),
        );
        for warning in &self.warnings {
            say("Warning", warning.clone());
        }
        lines
    }

    fn search_in_words(&self, search: &Search) -> Vec<(&'static str, String)> {
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
        let replays = count(search.trials.len() as u64, "replay");
        let how = match (search.exact, &search.flat_waits) {
            (true, Some(_)) => "every number of machines was tried with every wait",
            (true, None) => "every number of machines was tried",
            (false, _) => "found by search",
        };
        let mut lines = vec![("Wanted", format!("{wanted}; {how}, in {replays}"))];
        let Some(best) = &search.best else {
            let cheapest = search.trials.iter().min_by(|one, other| one.per_hour.total_cmp(&other.per_hour));
            let least = cheapest.map(|trial| {
                format!(": the cheapest is {} for {}", owning(trial), money(trial.per_hour, &self.currency))
            });
            lines.push(("Own", format!("nothing that was tried is allowed{}", least.unwrap_or_default())));
            return lines;
        };
        let interval = search.interval.as_ref();
        let sure = |words: Option<String>| words.map(|words| format!("; {words}")).unwrap_or_default();
        lines.push((
            "Own",
            format!("{}{}; {}", owning(best), sure(interval.map(Interval::in_words)), way(best)),
        ));
        lines.push((
            "Cost",
            format!(
                "{}: {} owned, {} rented ({} of GPU-hours){}",
                money(best.per_hour, &self.currency),
                money(best.owned_per_hour, &self.currency),
                money(best.per_hour - best.owned_per_hour, &self.currency),
                percent(best.rented_share),
                sure(interval.map(|interval| interval.cost_in_words(&self.currency)))
            ),
        ));
        lines.push(("Waits", waits(best)));
        lines.extend(search.flat.map(|flat| ("Flat", flat.in_words())));
        lines.extend(search.flat_waits.map(|flat| ("Flat waits", flat.in_words())));
        if let Some(today) = &search.today {
            let saved = today.per_hour - best.per_hour;
            let share = if today.per_hour > 0.0 { saved / today.per_hour } else { 0.0 };
            lines.push((
                "Today",
                format!(
                    "{} cost {}, and jobs wait {}; the advice saves {} ({})",
                    gpus(today.gpus),
                    money(today.per_hour, &self.currency),
                    waits(today),
                    money(saved, &self.currency),
                    percent(share)
                ),
            ));
        }
        if let Some(Later { advised, turned_out, best, regret }) = &search.later {
            let dearer = if *regret >= 0.0 { "more" } else { "less" };
            lines.push((
                "Regret",
                format!(
                    "the advice on jobs of the first half ({}; {}) costs {} on those of the second, {} {dearer} than the best there ({}, {}), and they wait {}",
                    owning(advised),
                    way(advised),
                    money(turned_out.per_hour, &self.currency),
                    percent(regret.abs()),
                    owning(best),
                    money(best.per_hour, &self.currency),
                    waits(turned_out)
                ),
            ));
        }
        lines
    }

    /// Adds to the reasons why the replays say what they say.
    pub(crate) fn explain_search(&mut self) {
        let Some(search) = &self.search else { return };
        let Some(best) = &search.best else {
            self.reasons.push("Of all that was replayed nothing keeps to what was asked.".to_owned());
            return;
        };
        let mut reasons = Vec::new();
        let with =
            |trial: &Trial| (trial.burst, trial.wait_s.to_bits()) == (best.burst, best.wait_s.to_bits());
        let near = search.trials.iter().filter(|trial| with(trial) && trial.gpus != best.gpus);
        let fewer = near.clone().filter(|trial| trial.gpus < best.gpus).max_by_key(|trial| trial.gpus);
        let more = near.filter(|trial| trial.gpus > best.gpus).min_by_key(|trial| trial.gpus);
        let at = |trial: &Trial| {
            format!(
                "{} cost {} and jobs wait {}",
                gpus(trial.gpus),
                money(trial.per_hour, &self.currency),
                waits(trial)
            )
        };
        let neighbours: Vec<String> = fewer.into_iter().chain(more).map(at).collect();
        if !neighbours.is_empty() {
            reasons.push(format!("Replayed with the same way of bursting, {}.", neighbours.join("; ")));
        }
        if search.objective == Objective::Cost && self.advice.per_hour > 0.0 {
            reasons.push(format!(
                "Whole jobs on whole machines cost {} more than the bound, for which jobs are split and moved at will.",
                percent((best.per_hour / self.advice.per_hour - 1.0).max(0.0))
            ));
        }
        if best.per_hour < self.advice.per_hour {
            reasons.push(
                "Waiting makes it cheaper than any answer without: jobs that wait fill machines that would stand idle."
                    .to_owned(),
            );
        }
        if let Some(interval) = &search.interval {
            reasons.push(format!(
                "The interval of the replays: stretches of time were drawn again {} times in blocks of {} (seed {}), and what was tried was compared anew.",
                number(f64::from(interval.resamples), 0),
                time(interval.block_s),
                interval.seed
            ));
        }
        self.reasons.extend(reasons);
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

    fn break_even_in_words(&self) -> String {
        let replayed = self.search.as_ref().and_then(|search| search.stays_best).zip(self.prices.ratio);
        let mut even = match (replayed, &self.search) {
            (Some((range, r)), _) => {
                let times = |factor: Option<f64>| factor.map(|factor| factor * r);
                let range = RatioRange { from: times(range.from), to: times(range.to) };
                format!("the advice is right, of what was tried, for {}", ratios(range))
            }
            (None, Some(_)) => format!(
                "without waiting, {} are right for {}",
                gpus(self.advice.gpus),
                ratios(self.break_even.advice)
            ),
            (None, None) => format!("the advice is right for {}", ratios(self.break_even.advice)),
        };
        if let (Some(today), Some(range), None) = (&self.today, self.break_even.today, &self.search) {
            let _ = write!(even, "; today's {} for {}", number(f64::from(today.gpus), 0), ratios(range));
        }
        if let Some(rent) = self.break_even.rent_everything_up_to {
            let _ = write!(even, "; renting everything up to {}", ratio(rent));
        }
        even
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
}

impl Interval {
    fn in_words(&self) -> String {
        format!(
            "{:.0} % interval {} to {}",
            self.confidence * 100.0,
            number(f64::from(self.from_gpus), 0),
            number(f64::from(self.to_gpus), 0)
        )
    }

    fn cost_in_words(&self, currency: &str) -> String {
        format!("interval {} to {}", money(self.from_per_hour, currency), money(self.to_per_hour, currency))
    }
}

impl Flat {
    fn in_words(self) -> String {
        format!(
            "{} to {} cost within {} of the least",
            number(f64::from(self.from_gpus), 0),
            gpus(self.to_gpus),
            percent(self.within)
        )
    }
}

impl FlatWaits {
    /// Behind what it is called.
    pub(crate) fn in_words(self) -> String {
        let (tried, within) = (self.tried, percent(self.within));
        let (from, to) = (time(self.from_s), time(self.to_s));
        if from == to {
            return format!(
                "of {tried} waits tried, no other than {from} costs within {within} of the least"
            );
        }
        format!(
            "of {tried} waits tried, {from} to {to}, each with its own best machines, cost within {within} of the least"
        )
    }
}

fn way(trial: &Trial) -> String {
    match trial.burst {
        Burst::AtOnce => "the rest bursts at once".to_owned(),
        Burst::Wait => format!("the rest bursts after {}", time(trial.wait_s)),
        Burst::ShortWait => format!("what would wait longer than {} bursts at once", time(trial.wait_s)),
        Burst::AllWait => "the rest waits".to_owned(),
        Burst::Never => "nothing bursts".to_owned(),
        Burst::Only => "everything bursts".to_owned(),
    }
}

fn waits(trial: &Trial) -> String {
    format!("{} on average, p95 {}", time(trial.wait_mean_s), time(trial.wait_p95_s))
}

/// `32 GPUs (4 machines of 8)`.
fn owning(trial: &Trial) -> String {
    match kinds(&trial.kinds) {
        _ if trial.gpus == 0 => "nothing".to_owned(),
        _ if trial.kinds.iter().all(|kind| kind.gpus_each == 1 && kind.model.is_empty()) => gpus(trial.gpus),
        machines => format!("{} ({machines})", gpus(trial.gpus)),
    }
}
