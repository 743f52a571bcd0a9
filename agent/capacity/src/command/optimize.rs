//! `kubectl spillway optimize`: how much to own and how much to rent.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    io::{self, Write},
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};

use super::{
    replay::Jobs,
    sizes::{Sizes, by_model},
    waits::Waits,
};
use crate::{
    args::Global,
    command::Outcome,
    demand::{Series, offered},
    job::{Demand, WHOLE_GPU},
    optimize::{Holes, Objective, Optimization, Question, Shape, UNPRICED, optimize, words::number},
    output::{self, Format},
    policy::{Burst, Policy},
    price::{self, Currency, ModelPrice, Rates},
    terminal::printable,
    trace::{self, Counted, Kind, Trace},
};

/// Flags of `optimize`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  # Serverless GPUs cost three times as much as dedicated ones
  kubectl spillway optimize demand.csv --ratio 3

  # Machines of 8 GPUs at the admin's own prices, beside the 48 GPUs that are
  # owned today; and why
  kubectl spillway optimize demand.csv --prices prices.yaml \\
      --dedicated-price our-h100 --serverless-price rented-h100 --machine 8 \\
      --owned 48 --explain

  # A serverless GPU is paid for 90 s before it works, and had for ten minutes;
  # dedicated ones work 97 % of the time
  kubectl spillway optimize demand.csv --dedicated-price 2.10 \\
      --serverless-price 6.30 --cold-start 90s --burst-length 10m \\
      --availability 0.97 -o json

  # The least cost at which 95 % of jobs wait no longer than ten minutes
  kubectl spillway optimize jobs.csv --ratio 3 --machine 8 --max-wait-p95 10m

  # The same, and how long a job waits at most before it bursts
  kubectl spillway optimize jobs.csv --ratio 3 --machine 8 \\
      --max-wait-p95 10m --burst short-wait --waits auto

  # Two kinds of machines, for jobs that ask for models
  kubectl spillway optimize jobs.csv --dedicated-price 2.10 \\
      --serverless-price 6.30,H100=9.80 --machine 8xA100@2.10,8xH100@4.20")]
pub struct Args {
    /// The trace, of jobs or of demand over time.
    #[command(flatten)]
    pub trace: trace::Args,
    /// What is asked about it.
    #[command(flatten)]
    pub asked: Asked,
    /// How jobs are queued, packed and sent to serverless machines, where they are replayed; `--cold-start` counts always.
    #[command(flatten)]
    pub policy: Policy,
    /// The least cost at which 95 % of jobs wait no longer than this, e.g. 10m: jobs are replayed.
    #[arg(long = "max-wait-p95", value_name = "TIME", value_parser = trace::duration, help_heading = "Jobs that may wait", conflicts_with = "budget")]
    pub max_wait_p95_s: Option<f64>,
    /// The least wait that costs no more than this per hour, e.g. 500/h: jobs are replayed.
    #[arg(long, value_name = "MONEY/h", value_parser = budget, help_heading = "Jobs that may wait")]
    pub budget: Option<f64>,
    /// Look for the best wait before bursting, too, together with the number of machines: auto, or the waits to try, e.g. 1m,5m,20m. With --burst wait or short-wait; of both where neither is said.
    #[arg(long, value_name = "auto|TIMES", help_heading = "Jobs that may wait", conflicts_with = "wait_s")]
    pub waits: Option<Waits>,
    /// Do not replay jobs: what their sum would cost if they could be split and moved, in one pass.
    #[arg(long, help_heading = "Jobs that may wait", conflicts_with_all = ["max_wait_p95_s", "budget", "waits"])]
    pub no_replay: bool,
    /// Show the cost by number of GPUs, what walking forward costs, and the reasons.
    #[arg(long)]
    pub explain: bool,
}

/// Prices, machines, and how sure the answer shall be.
#[derive(Debug, Clone, clap::Args)]
pub struct Asked {
    /// Prices.
    #[command(flatten)]
    pub prices: price::Args,
    /// How many times a dedicated GPU a serverless one costs, instead of prices; costs are then in dedicated GPU-hours.
    #[arg(
        long,
        value_name = "R",
        value_parser = ratio,
        allow_negative_numbers = true,
        help_heading = "Prices",
        conflicts_with_all = ["prices", "dedicated_price", "serverless_price", "accelerator", "currency"]
    )]
    pub ratio: Option<f64>,
    /// How much of the time a dedicated machine works, such as 0.98: its price counts for that time only.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, help_heading = "Prices")]
    pub availability: f64,
    /// For how long a serverless GPU is had at a time, e.g. 10m; jobs tell it themselves.
    #[arg(long = "burst-length", value_name = "TIME", value_parser = trace::duration, help_heading = "Prices")]
    pub burst_s: Option<f64>,
    /// GPUs of each machine that can be bought; several shapes with what a GPU of each costs, and with their models where jobs ask for some: 8@2.10,4@2.30 or 8xA100@2.10,8xH100@4.20. Without it 1, or as many as the largest pod of a trace of jobs has.
    #[arg(long, value_name = "GPUS[xMODEL][@PRICE]", value_delimiter = ',', value_parser = shape, help_heading = "Machines")]
    pub machine: Vec<Shape>,
    /// How many GPUs are owned today, to compare with.
    #[arg(long, value_name = "GPUS", help_heading = "Machines")]
    pub owned: Option<u32>,
    /// What to do with stretches without demand that look like missing data.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t, help_heading = "How sure")]
    pub holes: Holes,
    /// How long the blocks are of which demand is drawn again for the interval: as long as demand remembers.
    #[arg(long = "block", value_name = "TIME", default_value = "7d", value_parser = trace::duration, help_heading = "How sure")]
    pub block_s: f64,
    /// How often it is drawn.
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "How sure")]
    pub resamples: u32,
    /// What it is drawn with: the same seed gives the same interval.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, help_heading = "How sure")]
    pub seed: u64,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if ratio.is_finite() && ratio > 0.0 => Ok(ratio),
        _ => Err("a number above 0 was expected, such as 3".to_owned()),
    }
}

fn budget(text: &str) -> Result<f64, String> {
    match text.trim_end_matches("/h").trim().parse::<f64>() {
        Ok(budget) if budget.is_finite() && budget >= 0.0 => Ok(budget),
        _ => Err("money per hour was expected, such as 500/h".to_owned()),
    }
}

pub(super) fn shape(text: &str) -> Result<Shape, String> {
    let (machine, price) = match text.split_once('@') {
        Some((machine, price)) => (machine, Some(price)),
        None => (text, None),
    };
    let (gpus, model) = machine.split_once(['x', '×']).unwrap_or((machine, ""));
    let gpus = gpus.trim().parse().map_err(|_| {
        "GPUS, GPUSxMODEL or either with @PRICE was expected, such as 8, 8@2.10 or 8xA100@2.10".to_owned()
    })?;
    let price = price.map(|price| match price.trim().parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err(format!("{price} is no price")),
    });
    Ok(Shape { gpus, per_gpu_hour: price.transpose()?, model: model.trim().into() })
}

impl Asked {
    /// The prices; of a ratio, in dedicated GPU-hours. Serverless ones may differ by model.
    pub(super) fn rates(&self) -> anyhow::Result<Rates> {
        match self.ratio {
            Some(ratio) => {
                let mut rates = Rates::new(Currency::USD, 1.0, ratio)?;
                // They speak of a currency that isn't meant.
                rates.warnings.clear();
                Ok(rates)
            }
            None => match self.prices.rates_by_model(price::today()) {
                Err(error @ price::Error::None { .. }) => {
                    Err(error).context("no prices to reckon with; --ratio R does without")
                }
                rates => Ok(rates?),
            },
        }
    }

    /// What costs are in.
    pub(super) fn currency(&self, rates: &Rates) -> String {
        if self.ratio.is_some() { UNPRICED.to_owned() } else { rates.currency.to_string() }
    }

    /// The question without what the trace adds to it.
    pub(super) fn question(&self) -> anyhow::Result<Question> {
        let rates = self.rates()?;
        let (dedicated_per_gpu_hour, serverless_per_gpu_hour) =
            (rates.dedicated_per_gpu_hour, rates.least_serverless_per_gpu_hour());
        let (currency, notes) = (self.currency(&rates), rates.warnings);
        Ok(Question {
            currency,
            dedicated_per_gpu_hour,
            serverless_per_gpu_hour,
            shapes: self.machine.clone(),
            owned_gpus: self.owned,
            availability: self.availability,
            cold_start_s: 0.0,
            burst_s: self.burst_s,
            holes: self.holes,
            block_s: self.block_s,
            resamples: self.resamples,
            seed: self.seed,
            meaning: String::new(),
            notes,
        })
    }
}

/// Demand over time, and what is known of the jobs that it was made of.
pub(super) struct Read {
    pub(super) series: Series,
    jobs: Option<(Largest, Option<Jobs>)>,
}

/// What jobs ask of machines.
#[derive(Debug, Clone, Copy, Default)]
struct Largest {
    /// GPUs of the largest pod.
    pod_gpus: u32,
    /// Whether any asks for a model.
    models: bool,
}

/// Reads the trace, and adds to the question what it tells. Its jobs are kept where they are to be replayed.
pub(super) fn read(trace: &trace::Args, question: &mut Question, keep: bool) -> anyhow::Result<Read> {
    if trace.files.is_empty() {
        bail!("no trace: name CSV files with jobs or with demand over time, or - for standard input");
    }
    let (series, jobs, warnings) = match trace.open()? {
        Trace::Demand(mut samples) => {
            question.meaning = match samples.counted() {
                Some(Counted::All) => {
                    "running and pending GPUs; work that waits is counted again and again".to_owned()
                }
                Some(Counted::Running) => "running GPUs; what was never admitted is not in it".to_owned(),
                None => "GPUs as the trace counts them".to_owned(),
            };
            let series = gather(samples.by_ref())?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "not negative; saturates"
            )]
            let owned = samples.owned_gpus().map(|gpus| gpus.round() as u32);
            question.owned_gpus = question.owned_gpus.or(owned);
            (series, None, samples.warnings())
        }
        Trace::Jobs(mut jobs) => {
            "jobs, each as if it started when it was submitted".clone_into(&mut question.meaning);
            // How long a rented GPU is had, by GPU.
            let (asked, work) = (Cell::new(0.0), Cell::new(0.0));
            let largest = Cell::new(Largest::default());
            let kept = RefCell::new(keep.then(|| Jobs::of(trace)));
            let counted = jobs.by_ref().inspect(|job| {
                if let Ok(job) = job {
                    #[expect(clippy::cast_precision_loss, reason = "a sum of floats")]
                    let gpus = job.request.total_milli() as f64 / f64::from(WHOLE_GPU) * f64::from(job.pods);
                    let Largest { pod_gpus, models } = largest.get();
                    largest.set(Largest {
                        pod_gpus: pod_gpus.max(job.request.gpus),
                        models: models || !job.request.models.is_empty(),
                    });
                    asked.set(asked.get() + gpus);
                    work.set(work.get() + gpus * job.duration_s);
                    if let Some(kept) = &mut *kept.borrow_mut() {
                        kept.take(job);
                    }
                }
            });
            let series = gather(offered(counted))?;
            if work.get() > 0.0 {
                question.burst_s = question.burst_s.or(Some(work.get() / asked.get()));
            }
            (series, Some((largest.get(), kept.into_inner())), jobs.warnings())
        }
    };
    // Gaps are told of with what was done about them.
    let told = warnings.iter().filter(|warning| warning.kind != Kind::Gap);
    question.notes.extend(told.map(|warning| format!("trace: {warning}")));
    Ok(Read { series, jobs })
}

fn gather(demand: impl Iterator<Item = Result<Demand, trace::Error>>) -> anyhow::Result<Series> {
    Series::collect(demand.map(|sample| sample.map_err(|error| anyhow!(error))))
}

impl Args {
    /// Reads the trace and answers.
    pub(super) fn optimization(&self) -> anyhow::Result<Optimization> {
        self.policy.check()?;
        if self.waits.is_some()
            && !matches!(self.policy.burst, Burst::AtOnce | Burst::Wait | Burst::ShortWait)
        {
            bail!(
                "--waits has no meaning with --burst {}: say --burst wait or --burst short-wait",
                self.policy.burst
            );
        }
        let mut question = self.asked.question()?;
        question.cold_start_s = self.policy.cold_start_s;
        let objective = match (self.max_wait_p95_s, self.budget) {
            (Some(wait_p95_s), _) => Objective::CostWithinWait { wait_p95_s },
            (None, Some(per_hour)) => Objective::WaitWithinCost { per_hour },
            (None, None) => Objective::Cost,
        };
        let Read { series, jobs } = read(&self.trace, &mut question, !self.no_replay)?;
        if let (true, Some((largest, _))) = (question.shapes.is_empty(), &jobs) {
            question.shapes.push(Shape { gpus: largest.pod_gpus.clamp(1, 128), ..Shape::default() });
        }
        let mut found = optimize(series, &question)?;
        let Some((largest, jobs)) = jobs else {
            self.asked.rates()?.check_single()?;
            if objective != Objective::Cost || self.waits.is_some() {
                bail!(
                    "demand over time tells nothing of waiting: --max-wait-p95, --budget and --waits need a trace of jobs"
                );
            }
            return Ok(found);
        };
        let Some(jobs) = jobs else {
            found.warnings.push("jobs were taken as if they could be split and moved, which costs the least: whole jobs on machines need more".to_owned());
            return Ok(found);
        };
        jobs.check()?;
        let most = question.shapes.iter().map(|shape| shape.gpus).max().unwrap_or(1);
        if most < largest.pod_gpus {
            found.warnings.push(format!(
                "pods of up to {} GPUs never fit machines of {most}: they are always rented; --machine says how large machines are",
                largest.pod_gpus
            ));
        }
        let mut rates = self.asked.rates()?;
        if largest.models {
            found.by_model = by_model(&jobs, found.demand.span, &question, &rates)?;
            found.warnings.extend(self.models_in_words(&found));
        }
        found.warnings.extend(prices_in_words(&found, &rates));
        if self.waits.is_some() && objective == Objective::Cost {
            found.warnings.push("nothing limits how long jobs wait, and who waits costs nothing: the longest wait is likely the cheapest; --max-wait-p95 or --budget says what waiting may cost".to_owned());
        }
        rates.dedicated_per_gpu_hour /= self.asked.availability;
        let sizes = Sizes {
            jobs: &jobs,
            policy: &self.policy,
            waits: self.waits.as_ref(),
            rates: &rates,
            question: &question,
            seed: self.asked.seed,
        };
        found.search = Some(sizes.search(objective, &found)?);
        found.explain_search();
        Ok(found)
    }

    /// What became of the models that jobs ask for.
    fn models_in_words(&self, found: &Optimization) -> Option<String> {
        let machines = &self.asked.machine;
        if machines.iter().all(|shape| shape.model.is_empty()) {
            return Some("jobs ask for models of GPUs: they were replayed as if every machine had all of them; say the models of machines, such as --machine 8xA100@2.10,8xH100@4.20; what each model needs by itself stands in a table of its own".to_owned());
        }
        let has = |model: &String| machines.iter().any(|shape| shape.model.eq_ignore_ascii_case(model));
        let without =
            found.by_model.iter().filter(|class| !class.models.is_empty() && !class.models.iter().any(has));
        let models: Vec<String> = without.map(|class| class.models.join("|")).collect();
        (!models.is_empty()).then(|| {
            format!("no machine has what some jobs ask for ({}): they are always rented", models.join(", "))
        })
    }
}

/// Whose serverless price was taken for whom.
fn prices_in_words(found: &Optimization, rates: &Rates) -> Option<String> {
    let asked: Vec<String> = found
        .by_model
        .iter()
        .filter(|class| !class.models.is_empty())
        .map(|class| class.models.join("|"))
        .collect();
    if rates.serverless_by_model.is_empty() {
        return (asked.len() > 1).then(|| {
            format!("all models ({}) are rented at one price: where they differ, give that of each, such as --serverless-price A100=5.10,H100=9.80", asked.join(", "))
        });
    }
    let of = |price: &ModelPrice| format!("{} {}", price.model, number(price.per_gpu_hour, 2));
    let mut prices: Vec<String> = rates.serverless_by_model.iter().map(of).collect();
    if rates.serverless_of_others {
        prices.push(format!("any other {}", number(rates.serverless_per_gpu_hour, 2)));
    }
    let mut words = format!(
        "serverless prices differ by model ({}): replays pay for each job that of the cheapest model that will do; the bound, its curve and r are reckoned with the least of them, {}",
        prices.join(", "),
        number(rates.least_serverless_per_gpu_hour(), 2)
    );
    let without = found.by_model.iter().filter(|class| {
        let models: Vec<Arc<str>> = class.models.iter().map(|model| Arc::from(model.as_str())).collect();
        rates.serverless_of(&models).is_none()
    });
    let without: Vec<String> = without.map(|class| class.models.join("|")).collect();
    if !without.is_empty() {
        let _ = write!(words, "; {} have none and are never rented", without.join(", "));
    }
    Some(words)
}

/// Answers, in a few lines or in full.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let found = args.optimization()?;
    let mut out = output::stdout();
    let print = |out: &mut dyn Write| -> io::Result<()> {
        if !matches!(global.output, Format::Table | Format::Wide) {
            return output::print(out, global.output, &found, &found.tables(args.explain));
        }
        let lines = found.summary();
        let width = lines.iter().map(|(about, _)| about.len()).max().unwrap_or(0) + 3;
        for (about, text) in lines {
            writeln!(out, "{:width$}{}", format!("{about}:"), printable(&text))?;
        }
        if args.explain {
            writeln!(out)?;
            for reason in &found.reasons {
                writeln!(out, "{}", printable(reason))?;
            }
        }
        writeln!(out)?;
        output::print(out, global.output, &found, &found.tables(args.explain))
    };
    print(&mut out).context("can't print the answer")?;
    Ok(Outcome::Done)
}
