//! `kubectl spillway simulate`: jobs of a trace, or by chance, replayed against a pool.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::{
    args::Global,
    command::Outcome,
    job::{Job, Request},
    output::{self, Format},
    policy::{Policy, seconds},
    pool::{self, Pool},
    price,
    simulate::{self, Options, Poisson, Simulation},
    terminal::{printable, progress},
    trace,
};

/// Flags of `simulate`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  # Two machines of 8 GPUs; what waits for five minutes goes to serverless ones
  kubectl spillway simulate jobs.csv --gpus 16 --gpus-per-machine 8 \\
      --burst wait --wait 5m --dedicated-price 2.10 --serverless-price 6.30

  # Machines from a file; at most ten serverless pods, which start in 45 s
  kubectl spillway simulate jobs.csv --pool pool.yaml --packing fgd \\
      --cold-start 45s --max-burst-pods 10 --dedicated-price 2.10 \\
      --serverless-price 6.30 -o json

  # Jobs of team-b go to serverless machines after ten minutes, those of team-a
  # never, all others at once
  kubectl spillway simulate jobs.csv --gpus 16 --gpus-per-machine 8 \\
      --namespace-burst team-a=never,team-b=wait:10m --dedicated-price 2.10 \\
      --serverless-price 6.30 -o wide

  # A serverless H100 costs more than any other GPU
  kubectl spillway simulate jobs.csv --pool pool.yaml --dedicated-price 2.10 \\
      --serverless-price 6.30,H100=9.80

  # No trace: a job every 5 s on average, each for 500 s; those that would wait
  # longer than 300 s go to serverless machines at once
  kubectl spillway simulate --arrivals poisson --rate 0.2 \\
      --service-rate 0.002 --jobs 20000 --warm-up 14h --gpus 101 \\
      --burst short-wait --wait 300 --dedicated-price 3.84 \\
      --serverless-price 9.6

  # How full machines of 8 GPUs get when pods come that never leave
  kubectl spillway simulate jobs.csv --gpus 64 --gpus-per-machine 8 \\
      --inflate 1.3 --no-departures --packing best-fit --seeds 3")]
pub struct Args {
    /// The trace, of jobs.
    #[command(flatten)]
    pub trace: trace::Args,
    /// The pool.
    #[command(flatten)]
    pub pool: pool::Args,
    /// The pool's machines, from the list of Alibaba's GPU cluster of 2023 (CSV, plain or compressed).
    #[arg(long, value_name = "FILE", help_heading = "Pool", conflicts_with_all = ["pool", "gpus", "gpus_per_machine"])]
    pub machines: Option<PathBuf>,
    /// The policy.
    #[command(flatten)]
    pub policy: Policy,
    /// Prices.
    #[command(flatten)]
    pub prices: price::Args,
    /// Jobs by a law instead of a trace.
    #[command(flatten)]
    pub law: Law,
    /// By what chance is drawn; the same seed gives the same result on every machine.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, help_heading = "Simulation")]
    pub seed: u64,
    /// Jobs and time before this don't count, e.g. 14h.
    #[arg(long = "warm-up", value_name = "TIME", value_parser = seconds, default_value = "0", help_heading = "Simulation")]
    pub warm_up_s: f64,
    /// Shuffle and repeat the trace's jobs until they ask for so many times the pool's GPUs.
    #[arg(long, value_name = "TIMES", requires = "no_departures", help_heading = "Packing")]
    pub inflate: Option<f64>,
    /// Jobs come one by one and never end; those that fit nowhere are turned away. Times don't matter.
    #[arg(long, requires = "inflate", help_heading = "Packing")]
    pub no_departures: bool,
    /// How often that is tried, each time with the next seed.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000), requires = "inflate", help_heading = "Packing")]
    pub seeds: u64,
}

/// When jobs come by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// Independently of each other; durations are exponential (M/M/s).
    Poisson,
}

/// Jobs of one GPU each, by a law.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Jobs by chance")]
pub struct Law {
    /// Jobs come by this law instead of from a trace.
    #[arg(
        long,
        value_enum,
        value_name = "LAW",
        requires = "rate",
        requires = "service_rate",
        conflicts_with = "files"
    )]
    pub arrivals: Option<Arrivals>,
    /// Jobs per second.
    #[arg(long, value_name = "RATE", value_parser = positive, requires = "arrivals")]
    pub rate: Option<f64>,
    /// Jobs per second that one GPU would end: one divided by the mean duration.
    #[arg(long, value_name = "RATE", value_parser = positive, requires = "arrivals")]
    pub service_rate: Option<f64>,
    /// How many jobs come.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, requires = "arrivals")]
    pub jobs: u64,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("give a number above 0".to_owned()),
    }
}

/// Simulates, and prints what was found.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let mut out = output::stdout();
    if let Some(inflate) = args.inflate {
        let filling = args.fill(inflate)?;
        output::print(&mut out, global.output, &filling, &filling.tables())?;
        return Ok(Outcome::Done);
    }
    let found = args.simulation(&mut warn)?;
    let tables = match global.output {
        Format::Csv => found.plain_tables(),
        Format::Wide => found.wide_tables(),
        _ => found.tables(),
    };
    output::print(&mut out, global.output, &found, &tables).context("can't print the result")?;
    Ok(Outcome::Done)
}

impl Args {
    /// The pool that is meant.
    fn machines(&self) -> anyhow::Result<Pool> {
        if let Some(path) = &self.machines {
            return Ok(trace::lists::openb_machines(path)?);
        }
        match self.pool.pool()? {
            Some(pool) => Ok(pool),
            None => bail!("no pool: describe it with --pool FILE, or give --gpus and --gpus-per-machine"),
        }
    }

    /// Replays the trace, or jobs by chance.
    pub(super) fn simulation(&self, warn: &mut dyn FnMut(&str)) -> anyhow::Result<Simulation> {
        self.policy.check()?;
        let pool = self.machines()?;
        let rates = self.prices.rates_by_model(price::today())?;
        for warning in &rates.warnings {
            warn(warning);
        }
        let mut options = Options { seed: self.seed, warm_up_s: self.warm_up_s, ..Options::default() };
        if let (Some(Arrivals::Poisson), Some(rate), Some(service_rate)) =
            (self.law.arrivals, self.law.rate, self.law.service_rate)
        {
            options.steady = true;
            let bar = progress(Some(self.law.jobs), "jobs");
            let jobs = Poisson::new(rate, service_rate, self.law.jobs, self.seed);
            let mut count = 0_u64;
            let jobs = jobs.map(|job| {
                count += 1;
                if count.is_multiple_of(1 << 16) {
                    bar.set_position(count);
                }
                Ok::<_, trace::Error>(job)
            });
            let found = simulate::run_with(jobs, &pool, &self.policy, &rates, &options)?;
            bar.finish_and_clear();
            found.warnings.iter().for_each(|warning| warn(warning));
            return Ok(found);
        }
        if self.trace.files.is_empty() {
            bail!("no trace: name CSV files with jobs, - for standard input, or say --arrivals poisson");
        }
        let mut jobs = self.trace.open()?.jobs()?;
        let found = simulate::run_with(jobs.by_ref(), &pool, &self.policy, &rates, &options)?;
        for warning in &jobs.warnings() {
            warn(&format!("trace: {warning}"));
        }
        found.warnings.iter().for_each(|warning| warn(warning));
        Ok(found)
    }

    fn fill(&self, inflate: f64) -> anyhow::Result<simulate::Filling> {
        if !(inflate.is_finite() && inflate > 0.0 && inflate <= 100.0) {
            bail!("--inflate is {inflate}: give a number above 0, such as 1.3, and at most 100");
        }
        let pool = self.machines()?;
        let mut jobs = trace::Args { asks_only: true, ..self.trace.clone() }.open()?.jobs()?;
        let mut requests: Vec<Request> = Vec::new();
        for job in jobs.by_ref() {
            let Job { request, pods, .. } = job?;
            requests.extend((0..pods).map(|_| request.clone()));
        }
        for warning in &jobs.warnings() {
            warn(&format!("trace: {warning}"));
        }
        if requests.iter().all(|request| request.total_milli() == 0) {
            bail!("no job of the trace asks for a GPU: there is nothing to fill the pool with");
        }
        Ok(simulate::fill(&requests, &pool, self.policy.packing, inflate, self.seed, self.seeds))
    }
}

fn warn(text: &str) {
    eprintln!("warning: {}", printable(text));
}
