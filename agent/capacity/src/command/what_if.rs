//! `kubectl spillway what-if`: before and after, side by side.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::{
    optimize::{Asked, Read, read},
    replay::Jobs,
};
use crate::{
    args::Global,
    command::Outcome,
    demand::Series,
    job::Demand,
    output,
    policy::{Burst, Policy},
    pool::{self, Pool},
    price::Rates,
    simulate::{Options, run_with},
    trace::{self, Trace},
    what_if::{Change, Lot, Replay, Side, WhatIf},
};

/// Flags of `what-if`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Jobs are replayed; demand over time is priced as if no job ever waited.

Examples:
  # Two more machines of 8 GPUs beside the six that are there, a fifth more jobs
  kubectl spillway what-if jobs.csv --gpus 48 --gpus-per-machine 8 --ratio 3 \\
      --add 2 --grow 20%

  # Dedicated machines become cheaper, from demand over time
  kubectl spillway what-if demand.csv --gpus 48 --dedicated-price 2.80 \\
      --serverless-price 6.30 --new-dedicated-price 2.10

  # One team moves to serverless machines, which become cheaper, and the others
  # get a machine more of a kind
  kubectl spillway what-if jobs.csv --pool pool.yaml --dedicated-price 2.10 \\
      --serverless-price 6.30 --move-namespace team-a=serverless \\
      --new-serverless-price 5.10 --add 1xH100 -o json")]
pub struct Args {
    /// The trace, of jobs or of demand over time.
    #[command(flatten)]
    pub trace: trace::Args,
    /// The pool as it is.
    #[command(flatten)]
    pub pool: pool::Args,
    /// The pool's machines, from the list of Alibaba's GPU cluster of 2023 (CSV, plain or compressed).
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = "Pool", conflicts_with_all = ["pool", "gpus", "gpus_per_machine"])]
    pub machines: Option<PathBuf>,
    /// Prices as they are, and the machines that can be bought.
    #[command(flatten)]
    pub asked: Asked,
    /// How jobs are queued, packed and sent to serverless machines.
    #[command(flatten)]
    pub policy: Policy,
    /// What is to be different.
    #[command(flatten)]
    pub change: Changes,
}

/// What is to be different.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "What if")]
#[group(required = true, multiple = true)]
pub struct Changes {
    /// Machines more, of a name or model of the pool: 4 or 4xH100.
    #[arg(long, value_name = "COUNT[xMODEL]", value_delimiter = ',')]
    pub add: Vec<Lot>,
    /// Machines fewer.
    #[arg(long, value_name = "COUNT[xMODEL]", value_delimiter = ',')]
    pub remove: Vec<Lot>,
    /// What a dedicated GPU costs per hour then.
    #[arg(long, value_name = "NUMBER", value_parser = price, allow_negative_numbers = true)]
    pub new_dedicated_price: Option<f64>,
    /// What a serverless GPU costs per hour then.
    #[arg(long, value_name = "NUMBER", value_parser = price, allow_negative_numbers = true)]
    pub new_serverless_price: Option<f64>,
    /// By how much demand grows, or falls: 20%, -10%. Jobs come in so much less time; demand over time is so much more at any time.
    #[arg(long, value_name = "SHARE", value_parser = growth, allow_hyphen_values = true)]
    pub grow: Option<f64>,
    /// Whose jobs go to serverless machines at once: team-a=serverless.
    #[arg(long, value_name = "NAMESPACE=serverless", value_delimiter = ',', value_parser = moved)]
    pub move_namespace: Vec<String>,
}

fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err("a number from 0 up was expected".to_owned()),
    }
}

fn growth(text: &str) -> Result<f64, String> {
    let wrong = || "a share such as 20% or -10% was expected, above -100%".to_owned();
    let percent: f64 = text.strip_suffix('%').ok_or_else(wrong)?.trim().parse().map_err(|_| wrong())?;
    if percent.is_finite() && percent > -100.0 && percent <= 100_000.0 {
        Ok(percent / 100.0)
    } else {
        Err(wrong())
    }
}

fn moved(text: &str) -> Result<String, String> {
    match text.rsplit_once('=') {
        Some((namespace, "serverless")) if !namespace.is_empty() => Ok(namespace.to_owned()),
        _ => Err("NAMESPACE=serverless was expected".to_owned()),
    }
}

/// What is to be said where new prices make renting no dearer than owning.
fn no_dearer(dedicated: f64, serverless: f64, change: &Change) -> Option<String> {
    let new = change.dedicated_per_gpu_hour.is_some() || change.serverless_per_gpu_hour.is_some();
    (new && serverless <= dedicated)
        .then(|| "then a rented GPU costs no more than an owned one: rent everything".to_owned())
}

/// Prints both sides.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let found = args.what_if()?;
    output::print(&mut output::stdout(), global.output, &found, &found.tables())
        .context("can't print the comparison")?;
    if matches!(global.output, output::Format::Table | output::Format::Wide) {
        for warning in &found.warnings {
            eprintln!("warning: {}", crate::terminal::printable(warning));
        }
    }
    Ok(Outcome::Done)
}

impl Args {
    /// Computes both sides.
    pub(super) fn what_if(&self) -> anyhow::Result<WhatIf> {
        self.policy.check()?;
        if self.trace.files.is_empty() {
            bail!("no trace: name CSV files with jobs or with demand over time");
        }
        if self.trace.files.iter().any(|file| file.as_os_str() == "-") {
            bail!("the trace is read more than once, which standard input can't be: name a file");
        }
        let before = match (&self.machines, self.pool.pool()?, self.asked.owned) {
            (Some(list), ..) => trace::lists::openb_machines(list)?,
            (None, Some(pool), _) => pool,
            (None, None, Some(gpus)) => Pool::of_gpus(gpus, 1),
            (None, None, None) => {
                bail!("no pool: describe it with --pool FILE, or --gpus and --gpus-per-machine")
            }
        };
        let change = Change {
            add: self.change.add.clone(),
            remove: self.change.remove.clone(),
            dedicated_per_gpu_hour: self.change.new_dedicated_price,
            serverless_per_gpu_hour: self.change.new_serverless_price,
            growth: self.change.grow.unwrap_or(0.0),
            to_serverless: self.change.move_namespace.iter().cloned().collect(),
        };
        let after = change.pool(&before)?;
        match self.trace.open()? {
            Trace::Jobs(_) => self.with_jobs(&change, &before, &after),
            Trace::Demand(_) if !change.to_serverless.is_empty() => {
                bail!("--move-namespace needs a trace of jobs: demand over time doesn't tell whose it is")
            }
            Trace::Demand(_) => self.with_demand(&change, &before, &after),
        }
    }

    fn with_jobs(&self, change: &Change, before: &Pool, after: &Pool) -> anyhow::Result<WhatIf> {
        let jobs = Jobs::read(&self.trace)?;
        let rates = self.asked.rates()?;
        let (was, _) = self.side(&jobs, &Change::default(), before, &rates)?;
        let (is, moved) = self.side(&jobs, change, after, &change.rates(&rates))?;
        let mut warnings = rates.warnings.clone();
        warnings.extend(jobs.warnings().iter().map(|warning| format!("trace: {warning}")));
        let then = change.rates(&rates);
        warnings.extend(no_dearer(then.dedicated_per_gpu_hour, then.serverless_per_gpu_hour, change));
        if !change.to_serverless.is_empty() && !moved {
            warnings.push("no job is of a namespace that moves: nothing moves".to_owned());
        }
        Ok(WhatIf {
            currency: self.asked.currency(&rates),
            changes: change.words(),
            before: was,
            after: is,
            warnings,
        })
    }

    /// One side, and whether any job moved.
    fn side(&self, jobs: &Jobs, change: &Change, pool: &Pool, rates: &Rates) -> anyhow::Result<(Side, bool)> {
        let rented = Pool { machines: Vec::new(), ..pool.clone() };
        let on_pool = self.part(jobs, change, false, pool, &self.policy, rates)?;
        if change.to_serverless.is_empty() {
            return Ok((Side::of_jobs(&on_pool, None), false));
        }
        let policy = Policy { burst: Burst::Only, ..self.policy.clone() };
        let moved = self.part(jobs, change, true, &rented, &policy, rates)?;
        let any = moved.found.jobs.submitted > 0;
        Ok((Side::of_jobs(&on_pool, any.then_some(&moved)), any))
    }

    /// Replays the jobs that move, or those that stay.
    fn part(
        &self,
        jobs: &Jobs,
        change: &Change,
        moved: bool,
        pool: &Pool,
        policy: &Policy,
        rates: &Rates,
    ) -> anyhow::Result<Replay> {
        // Growth counts from the first job of all.
        let (mut first_of_all_s, mut first_submit_s) = (None, None);
        let part = jobs.all()?.filter_map(|job| {
            let job = match job {
                Ok(job) => job,
                Err(error) => return Some(Err(error)),
            };
            let first_s = *first_of_all_s.get_or_insert(job.submit_s);
            let job = change.job(job, first_s);
            if change.is_moved(&job) != moved {
                return None;
            }
            first_submit_s.get_or_insert(job.submit_s);
            Some(Ok(job))
        });
        let options = Options { seed: self.asked.seed, bound: false, each: true, ..Options::default() };
        let found = run_with(part, pool, policy, rates, &options)?;
        Ok(Replay { first_submit_s: first_submit_s.or(first_of_all_s).unwrap_or_default(), found })
    }

    fn with_demand(&self, change: &Change, before: &Pool, after: &Pool) -> anyhow::Result<WhatIf> {
        self.asked.rates()?.check_single()?;
        let mut question = self.asked.question()?;
        question.cold_start_s = self.policy.cold_start_s;
        let Read { series, .. } = read(&self.trace, &mut question, false)?;
        let grown = if change.growth.abs() > 0.0 { self.grown(change.growth)? } else { series.clone() };
        let mut then = question.clone();
        let price = |given: f64, new: Option<f64>| new.unwrap_or(given);
        then.dedicated_per_gpu_hour = price(then.dedicated_per_gpu_hour, change.dedicated_per_gpu_hour);
        then.serverless_per_gpu_hour = price(then.serverless_per_gpu_hour, change.serverless_per_gpu_hour);
        let (was, found) = Side::of_demand(series, before, &question)?;
        let (is, _) = Side::of_demand(grown, after, &then)?;
        let mut warnings = found.warnings;
        warnings.extend(no_dearer(then.dedicated_per_gpu_hour, then.serverless_per_gpu_hour, change));
        Ok(WhatIf { currency: question.currency, changes: change.words(), before: was, after: is, warnings })
    }

    /// Demand over time that is so much more at any time.
    fn grown(&self, growth: f64) -> anyhow::Result<Series> {
        let Trace::Demand(samples) = self.trace.open().context("can't read the trace again")? else {
            bail!("the trace has changed while it was read");
        };
        Series::collect(samples.map(|sample| {
            let sample = sample?;
            Ok(Demand { gpus: sample.gpus * (1.0 + growth), ..sample })
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::{
        args,
        command::Command,
        what_if::{Side, WhatIf},
    };

    /// What the words say of the jobs of two teams, in hours.
    fn compared(words: &str) -> WhatIf {
        let folder = tempfile::tempdir().unwrap();
        let trace = folder.path().join("jobs.csv");
        std::fs::write(&trace, "submit,duration,gpus,owner\n0,3600,1,a\n0,3600,1,b\n7200,3600,1,b\n")
            .unwrap();
        let machines = folder.path().join("machines.csv");
        std::fs::write(&machines, "sn,cpu_milli,memory_mib,gpu,model\nm1,64000,262144,1,T4\n").unwrap();
        let words = words.replace("MACHINES", &machines.display().to_string());
        let line = ["kubectl-spillway", "what-if", &trace.display().to_string()].map(str::to_owned);
        let line = line.into_iter().chain(words.split_whitespace().map(str::to_owned));
        let args::Args { command: Command::WhatIf(args), .. } = args::Args::try_parse_from(line).unwrap()
        else {
            panic!("another command");
        };
        args.what_if().unwrap()
    }

    #[test]
    fn renting_that_becomes_no_dearer_is_told() {
        let found = compared("--gpus 1 --ratio 3 --new-serverless-price 0.5");
        assert!(
            found.warnings.iter().any(|warning| warning.contains("rent everything")),
            "{:?}",
            found.warnings
        );
    }

    #[test]
    fn changes_of_all_kinds_go_together() {
        // a runs on the only machine, b beside it is rented, then the next of b runs: 3 hours, of which one is rented.
        // Then a is rented, b runs on one of two machines, and the next of b comes an hour sooner.
        let all = "--dedicated-price 1 --serverless-price 3 --add 1 --grow 100% --new-serverless-price 2 --move-namespace a=serverless";
        for pool in ["--gpus 1", "--machines MACHINES", "--owned 1"] {
            let found = compared(&format!("{pool} {all}"));
            let sides = [&found.before, &found.after];
            assert_eq!(sides.map(|side| side.gpus), [1, 2], "{pool}");
            let told = |side: &Side| {
                let percent = (side.utilisation * 100.0).round();
                format!("{} + {}, {percent} % used", side.owned_per_hour, side.rented_per_hour)
            };
            assert_eq!(sides.map(told), ["1 + 1, 67 % used", "2 + 1, 50 % used"], "{pool}");
            assert_eq!(found.changes.len(), 4);
            assert!(!found.warnings.iter().any(|warning| warning.contains("rent everything")));
        }
    }
}
