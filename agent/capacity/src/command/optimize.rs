//! `kubectl spillway optimize`: how much to own and how much to rent.

use std::{
    cell::Cell,
    collections::BTreeSet,
    io::{self, Write},
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};

use super::replay::{Half, Jobs, replay};
use crate::{
    args::Global,
    command::Outcome,
    demand::{Series, Span, offered},
    job::{Demand, WHOLE_GPU},
    optimize::{
        Candidate, Class, Holes, Later, Objective, Optimization, Question, Search, Shape, Trial, UNPRICED,
        optimize, search,
    },
    output::{self, Format},
    policy::{Burst, Policy},
    pool::Pool,
    price::{self, Currency, Rates},
    terminal::{printable, progress},
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
  kubectl spillway optimize jobs.csv --ratio 3 --machine 8 --max-wait-p95 10m")]
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
    /// Do not replay jobs: what their sum would cost if they could be split and moved, in one pass.
    #[arg(long, help_heading = "Jobs that may wait", conflicts_with_all = ["max_wait_p95_s", "budget"])]
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
    /// GPUs of each machine that can be bought; several shapes with what a GPU of each costs: 8@2.10,4@2.30. Without it 1, or as many as the largest pod of a trace of jobs has.
    #[arg(long, value_name = "GPUS[@PRICE]", value_delimiter = ',', value_parser = shape, help_heading = "Machines")]
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

fn budget(text: &str) -> Result<f64, String> {
    match text.trim_end_matches("/h").trim().parse::<f64>() {
        Ok(budget) if budget.is_finite() && budget >= 0.0 => Ok(budget),
        _ => Err("money per hour was expected, such as 500/h".to_owned()),
    }
}

fn shape(text: &str) -> Result<Shape, String> {
    let (gpus, price) = match text.split_once('@') {
        Some((gpus, price)) => (gpus, Some(price)),
        None => (text, None),
    };
    let gpus =
        gpus.trim().parse().map_err(|_| "GPUS or GPUS@PRICE was expected, such as 8 or 8@2.10".to_owned())?;
    let price = price.map(|price| match price.trim().parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err(format!("{price} is no price")),
    });
    Ok(Shape { gpus, per_gpu_hour: price.transpose()? })
}

impl Asked {
    /// The prices; of a ratio, in dedicated GPU-hours.
    pub(super) fn rates(&self) -> anyhow::Result<Rates> {
        match self.ratio {
            Some(ratio) => {
                let mut rates = Rates::new(Currency::USD, 1.0, ratio)?;
                // They speak of a currency that isn't meant.
                rates.warnings.clear();
                Ok(rates)
            }
            None => {
                self.prices.rates(price::today()).context("no prices to reckon with; --ratio R does without")
            }
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
            (rates.dedicated_per_gpu_hour, rates.serverless_per_gpu_hour);
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
    pub(super) jobs: Option<Largest>,
}

/// What jobs ask of machines.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Largest {
    /// GPUs of the largest pod.
    pub(super) pod_gpus: u32,
    /// Whether any asks for a model.
    pub(super) models: bool,
}

/// Reads the trace, and adds to the question what it tells.
pub(super) fn read(trace: &trace::Args, question: &mut Question) -> anyhow::Result<Read> {
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
            (gather(samples.by_ref())?, None, samples.warnings())
        }
        Trace::Jobs(mut jobs) => {
            "jobs, each as if it started when it was submitted".clone_into(&mut question.meaning);
            // How long a rented GPU is had, by GPU.
            let (asked, work) = (Cell::new(0.0), Cell::new(0.0));
            let largest = Cell::new(Largest::default());
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
                }
            });
            let series = gather(offered(counted))?;
            if work.get() > 0.0 {
                question.burst_s = question.burst_s.or(Some(work.get() / asked.get()));
            }
            (series, Some(largest.get()), jobs.warnings())
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
        let mut question = self.asked.question()?;
        question.cold_start_s = self.policy.cold_start_s;
        let objective = match (self.max_wait_p95_s, self.budget) {
            (Some(wait_p95_s), _) => Objective::CostWithinWait { wait_p95_s },
            (None, Some(per_hour)) => Objective::WaitWithinCost { per_hour },
            (None, None) => Objective::Cost,
        };
        let Read { series, jobs: largest } = read(&self.trace, &mut question)?;
        if let (true, Some(largest)) = (question.shapes.is_empty(), largest) {
            question.shapes.push(Shape { gpus: largest.pod_gpus.clamp(1, 128), per_gpu_hour: None });
        }
        let mut found = optimize(series, &question)?;
        let Some(largest) = largest else {
            if objective != Objective::Cost {
                bail!(
                    "demand over time tells nothing of waiting: --max-wait-p95 and --budget need a trace of jobs"
                );
            }
            return Ok(found);
        };
        let once = self.trace.files.iter().any(|file| file.as_os_str() == "-");
        let several = self.asked.machine.len() > 1;
        if objective == Objective::Cost && (once || several || self.no_replay) {
            found.warnings.push("jobs were taken as if they could be split and moved, which costs the least: whole jobs on machines need more".to_owned());
            return Ok(found);
        }
        if once {
            bail!("jobs are replayed again and again, and standard input can be read but once: name a file");
        }
        let [Shape { gpus, per_gpu_hour }] = question.shapes[..] else {
            bail!("jobs are replayed on machines of one shape: give one --machine");
        };
        if gpus < largest.pod_gpus {
            found.warnings.push(format!(
                "pods of up to {} GPUs never fit machines of {gpus}: they are always rented; --machine says how large machines are",
                largest.pod_gpus
            ));
        }
        let jobs = Jobs::read(&self.trace)?;
        if largest.models {
            found.warnings.push("jobs ask for models of GPUs: they were replayed as if every machine had all of them; what each model needs by itself stands in a table of its own".to_owned());
            found.by_model = by_model(&jobs, found.demand.span, &question)?;
        }
        let mut rates = self.asked.rates()?;
        rates.dedicated_per_gpu_hour =
            per_gpu_hour.unwrap_or(rates.dedicated_per_gpu_hour) / self.asked.availability;
        found.search =
            Some(self.search(objective, &jobs, &rates, gpus, found.all_owned.gpus.div_ceil(gpus))?);
        Ok(found)
    }

    /// Tries sizes and ways of bursting.
    fn search(
        &self,
        objective: Objective,
        jobs: &Jobs,
        rates: &Rates,
        gpus_each: u32,
        most: u32,
    ) -> anyhow::Result<Search> {
        let wait_s = match objective {
            _ if self.policy.wait_s > 0.0 => self.policy.wait_s,
            Objective::CostWithinWait { wait_p95_s } if wait_p95_s > 0.0 => wait_p95_s,
            _ => WAIT_S,
        };
        let ways = match self.policy.burst {
            Burst::AtOnce if objective != Objective::Cost => {
                vec![
                    (Burst::AtOnce, 0.0),
                    (Burst::Wait, wait_s),
                    (Burst::ShortWait, wait_s),
                    (Burst::AllWait, 0.0),
                ]
            }
            burst @ (Burst::Wait | Burst::ShortWait) => vec![(burst, wait_s)],
            burst => vec![(burst, 0.0)],
        };
        let bar = progress(None, "replays");
        let attempt = |half: Half, candidate: Candidate| -> anyhow::Result<Trial> {
            let Candidate { machines, burst, wait_s } = candidate;
            let policy = Policy { burst, wait_s, ..self.policy.clone() };
            let pool = Pool::of_gpus(machines, gpus_each);
            pool.check()?;
            let any: Arc<[Arc<str>]> = Arc::from([]);
            let counted = jobs.half(half)?.map(|job| {
                job.map(|mut job| {
                    job.request.models = any.clone();
                    job
                })
            });
            let found = replay(counted, &pool, &policy, rates, self.asked.seed)?;
            bar.inc(1);
            Ok(Trial {
                machines,
                gpus: machines * gpus_each,
                burst,
                wait_s,
                per_hour: found.cost.total_per_hour,
                wait_mean_s: found.wait.mean_s,
                wait_p95_s: found.wait.p95_s,
                rented_share: found.spilled.gpu_hours_share,
                #[expect(clippy::cast_precision_loss, reason = "a share of counts")]
                not_run_share: (found.jobs.rejected + found.jobs.unfinished) as f64
                    / found.jobs.submitted.max(1) as f64,
            })
        };
        let mut found = search(objective, &ways, most, |candidate| attempt(Half::Both, candidate))?;
        // Walking forward once: what is best on the first half, tried on the second.
        let first = search(objective, &ways, most, |candidate| attempt(Half::First, candidate))?.best;
        let second = search(objective, &ways, most, |candidate| attempt(Half::Second, candidate))?.best;
        if let (Some(first), Some(second)) = (first, second) {
            let Trial { machines, burst, wait_s, .. } = first;
            let later = attempt(Half::Second, Candidate { machines, burst, wait_s })?;
            found.later = Some(Later { advised: first, turned_out: later, best: second });
        }
        bar.finish_and_clear();
        Ok(found)
    }
}

/// More sets of models than this are not told apart.
const CLASSES: usize = 32;

/// What is best for the jobs of each set of models by themselves, over the time of all.
fn by_model(jobs: &Jobs, span: Span, question: &Question) -> anyhow::Result<Vec<Class>> {
    let mut sets = BTreeSet::new();
    for job in jobs.half(Half::Both)? {
        sets.insert(job?.request.models);
        if sets.len() > CLASSES {
            return Ok(Vec::new());
        }
    }
    let question = Question { resamples: 1, ..question.clone() };
    let class = |models: Arc<[Arc<str>]>| {
        let edge = |at_s| std::iter::once(Ok(Demand { line: 0, at_s, gpus: 0.0 }));
        let own = jobs
            .half(Half::Both)?
            .filter(|job| job.as_ref().map_or(true, |job| job.request.models == models));
        let series: anyhow::Result<Series> =
            Series::collect(edge(span.from_s).chain(offered(own)).chain(edge(span.to_s)));
        let found = optimize(series?, &question)?;
        Ok(Class {
            models: models.iter().map(ToString::to_string).collect(),
            mean_gpus: found.demand.mean_gpus,
            max_gpus: found.demand.max_gpus,
            advice: found.advice,
        })
    };
    sets.into_iter().map(class).collect()
}

/// How long jobs wait before they burst where nothing says it.
const WAIT_S: f64 = 300.0;

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
