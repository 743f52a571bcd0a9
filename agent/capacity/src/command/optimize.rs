//! `kubectl spillway optimize`: how much to own and how much to rent.

use std::{
    cell::Cell,
    io::{self, Write},
};

use anyhow::{Context as _, anyhow, bail};

use crate::{
    args::Global,
    command::Outcome,
    demand::{Series, offered},
    job::WHOLE_GPU,
    optimize::{Holes, Optimization, Question, Shape, UNPRICED, optimize},
    output::{self, Format},
    price::{self, Rates},
    terminal::printable,
    trace::{self, Counted, Kind, Trace},
};

/// Flags of `optimize`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  # Serverless GPUs cost three times as much as dedicated ones
  kubectl spillway optimize demand.csv --ratio 3

  # Machines of 8 GPUs at the admin's own prices, beside the 48 GPUs that are owned today; and why
  kubectl spillway optimize demand.csv --prices prices.yaml --dedicated-price our-h100 --serverless-price rented-h100 --machine 8 --owned 48 --explain

  # A serverless GPU is paid for 90 s before it works, and had for ten minutes; dedicated ones work 97 % of the time
  kubectl spillway optimize demand.csv --dedicated-price 2.10 --serverless-price 6.30 --cold-start 90s --burst-length 10m --availability 0.97 -o json")]
pub struct Args {
    /// The trace, of jobs or of demand over time.
    #[command(flatten)]
    pub trace: trace::Args,
    /// What is asked about it.
    #[command(flatten)]
    pub asked: Asked,
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
    /// How long a serverless GPU is paid for before it works, e.g. 90s.
    #[arg(long = "cold-start", value_name = "TIME", default_value = "0", value_parser = trace::duration, help_heading = "Prices")]
    pub cold_start_s: f64,
    /// For how long a serverless GPU is had at a time, e.g. 10m; jobs tell it themselves.
    #[arg(long = "burst-length", value_name = "TIME", value_parser = trace::duration, help_heading = "Prices")]
    pub burst_s: Option<f64>,
    /// GPUs of each machine that can be bought; several shapes with what a GPU of each costs: 8@2.10,4@2.30.
    #[arg(long, value_name = "GPUS[@PRICE]", value_delimiter = ',', default_value = "1", value_parser = shape, help_heading = "Machines")]
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
    fn rates(&self) -> anyhow::Result<(Option<Rates>, f64, f64)> {
        if let Some(ratio) = self.ratio {
            return Ok((None, 1.0, ratio));
        }
        let rates =
            self.prices.rates(price::today()).context("no prices to reckon with; --ratio R does without")?;
        let (dedicated, serverless) = (rates.dedicated_per_gpu_hour, rates.serverless_per_gpu_hour);
        Ok((Some(rates), dedicated, serverless))
    }

    /// The question without what the trace adds to it.
    pub(super) fn question(&self) -> anyhow::Result<Question> {
        let (rates, dedicated_per_gpu_hour, serverless_per_gpu_hour) = self.rates()?;
        let (currency, notes) = match rates {
            Some(rates) => (rates.currency.to_string(), rates.warnings),
            None => (UNPRICED.to_owned(), Vec::new()),
        };
        Ok(Question {
            currency,
            dedicated_per_gpu_hour,
            serverless_per_gpu_hour,
            shapes: self.machine.clone(),
            owned_gpus: self.owned,
            availability: self.availability,
            cold_start_s: self.cold_start_s,
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

/// Reads the trace, and adds to the question what it tells.
pub(super) fn read(trace: &trace::Args, question: &mut Question) -> anyhow::Result<Series> {
    if trace.files.is_empty() {
        bail!("no trace: name CSV files with jobs or with demand over time, or - for standard input");
    }
    let (series, warnings) = match trace.open()? {
        Trace::Demand(mut samples) => {
            question.meaning = match samples.counted() {
                Some(Counted::All) => {
                    "running and pending GPUs; work that waits is counted again and again".to_owned()
                }
                Some(Counted::Running) => "running GPUs; what was never admitted is not in it".to_owned(),
                None => "GPUs as the trace counts them".to_owned(),
            };
            (gather(samples.by_ref())?, samples.warnings())
        }
        Trace::Jobs(mut jobs) => {
            "jobs, each as if it started when it was submitted".clone_into(&mut question.meaning);
            // How long a rented GPU is had, by GPU.
            let (asked, work) = (Cell::new(0.0), Cell::new(0.0));
            let counted = jobs.by_ref().inspect(|job| {
                if let Ok(job) = job {
                    #[expect(clippy::cast_precision_loss, reason = "a sum of floats")]
                    let gpus = job.request.total_milli() as f64 / f64::from(WHOLE_GPU) * f64::from(job.pods);
                    asked.set(asked.get() + gpus);
                    work.set(work.get() + gpus * job.duration_s);
                }
            });
            let series = gather(offered(counted))?;
            if work.get() > 0.0 {
                question.burst_s = question.burst_s.or(Some(work.get() / asked.get()));
            }
            (series, jobs.warnings())
        }
    };
    // Gaps are told of with what was done about them.
    let told = warnings.iter().filter(|warning| warning.kind != Kind::Gap);
    question.notes.extend(told.map(|warning| format!("trace: {warning}")));
    Ok(series)
}

fn gather(demand: impl Iterator<Item = Result<crate::job::Demand, trace::Error>>) -> anyhow::Result<Series> {
    Series::collect(demand.map(|sample| sample.map_err(|error| anyhow!(error))))
}

impl Args {
    /// Reads the trace and answers.
    pub(super) fn optimization(&self) -> anyhow::Result<Optimization> {
        let mut question = self.asked.question()?;
        let series = read(&self.trace, &mut question)?;
        Ok(optimize(series, &question)?)
    }
}

/// Answers, in a few lines or in full.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let found = args.optimization()?;
    let mut out = io::stdout().lock();
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
