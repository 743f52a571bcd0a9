//! The words of policies: who may burst and when, how jobs are queued, how they are packed. Values only; the same words stand on the command line and in results, there with units in names, as all of a result has them. A
//! Kubernetes object writes them in camelCase and times as `5m`; none is read here.

use std::{fmt, str::FromStr};

use clap::ValueEnum;
use serde::Serialize;

/// On which machine a pod is placed, of those where it fits; and on which of its GPUs, where it asks for a share of one.
///
/// All but `first-fit` and `random` score machines in whole hundredths, as kube-scheduler's plugins do. Of machines with the same score all pods take the one that stands first in an order that the seed draws once: machines
/// with which a heuristic has no quarrel are filled one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// The first, in the order in which machines were described.
    FirstFit,
    /// Where the least is left afterwards of GPU and CPU, as shares of the largest machine, weighed alike.
    #[default]
    BestFit,
    /// Where what is asked points least along what is free (Tetris's measure, turned into the least waste).
    DotProduct,
    /// GPUs in use first, then machines in use, then idle ones (as in Alibaba's clusters, NSDI'22).
    Packing,
    /// Beside pods that ask for as much of a GPU as this one (as Gandiva, OSDI'18).
    Clustering,
    /// Where fragmentation, as the usual pods would see it, grows least (Fragmentation Gradient Descent, ATC'23).
    Fgd,
    /// Any where it fits, drawn for each pod; and any of its GPUs with enough left.
    Random,
}

/// Which job that waits is looked at first. Where jobs have priorities, higher ones come before, and the order holds among equals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// First come, first served.
    #[default]
    Fifo,
    /// The shortest job first; one has to know how long jobs run.
    ShortestFirst,
    /// The job with the fewest GPUs first.
    SmallestFirst,
    /// The job with the fewest GPU-hours first.
    LeastWorkFirst,
    /// The job with the earliest deadline first; those without one come last.
    EarliestDeadlineFirst,
}

/// Whether a job may start before another that stands before it in the queue and doesn't fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backfill {
    /// No: the first in the queue holds up all others.
    Never,
    /// Every job that fits starts, as with kube-scheduler; large jobs may starve.
    #[default]
    Greedy,
    /// Only if it doesn't delay the first in the queue, as with Slurm (EASY); one has to know how long jobs run.
    Easy,
}

/// When a job that doesn't fit on dedicated machines goes to serverless ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Burst {
    /// At once: `wait` of 0 in a `BurstPolicy`.
    #[default]
    AtOnce,
    /// After it was unschedulable for `--wait`.
    Wait,
    /// All wait for dedicated machines; only what never fits there goes to serverless ones.
    AllWait,
    /// Those whose wait is going to be longer than `--wait` go at once, the others wait; one has to know how long jobs run.
    ShortWait,
    /// Never: what never fits is rejected.
    Never,
    /// Serverless only, whatever is free: `only` in a `BurstPolicy`.
    Only,
}

/// Whether a job of higher priority takes the machines of jobs of lower priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preemption {
    /// No.
    #[default]
    Off,
    /// Yes, and what they have done is lost, as with Kubernetes.
    Restart,
    /// Yes, and they go on where they were, as with checkpoints.
    Resume,
}

/// What `--burst` is for the jobs of one namespace, and `--wait`: `team-a=never`, `team-b=wait:10m`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NamespaceBurst {
    /// Whose jobs: a namespace, or whoever else a trace tells as owner.
    pub namespace: String,
    /// When they go to serverless machines.
    pub burst: Burst,
    /// How long they wait before; as all others where it isn't said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_s: Option<f64>,
}

impl FromStr for NamespaceBurst {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, burst) = text
            .rsplit_once('=')
            .filter(|(namespace, _)| !namespace.is_empty())
            .ok_or("give a namespace and a word of --burst, such as team-a=never or team-a=wait:10m")?;
        let (burst, wait_s) = match burst.split_once(':') {
            Some((burst, time)) => (burst, Some(seconds(time)?)),
            None => (burst, None),
        };
        let burst = Burst::from_str(burst, false).map_err(|_| {
            let words = Burst::value_variants().iter().map(ToString::to_string);
            format!("{burst:?} is no word of --burst: {}", words.collect::<Vec<_>>().join(", "))
        })?;
        if wait_s.is_some() && !burst.waits() {
            return Err(format!("with {burst} no job waits for a time: say it with wait or short-wait"));
        }
        Ok(Self { namespace: namespace.to_owned(), burst, wait_s })
    }
}

impl Burst {
    /// Whether jobs wait for a time.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::Wait | Self::ShortWait)
    }
}

impl fmt::Display for Burst {
    /// As on the command line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |word| formatter.write_str(word.get_name()))
    }
}

/// How jobs are queued, packed, and sent to serverless machines.
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize)]
#[command(next_help_heading = "Policy")]
pub struct Policy {
    /// On which machine a pod is placed.
    #[arg(long, value_enum, default_value_t, value_name = "PACKING")]
    pub packing: Packing,
    /// Which job that waits is looked at first.
    #[arg(long, value_enum, default_value_t, value_name = "ORDER")]
    pub order: Order,
    /// Whether a job may start before another that stands before it and doesn't fit.
    #[arg(long, value_enum, default_value_t, value_name = "BACKFILL")]
    pub backfill: Backfill,
    /// When a job that doesn't fit goes to serverless machines.
    #[arg(long, value_enum, default_value_t, value_name = "BURST")]
    pub burst: Burst,
    /// The same for the jobs of one namespace (of one owner in the trace), with how long they wait where they do, e.g. team-a=never,team-b=wait:10m.
    #[arg(long = "namespace-burst", value_name = "NAMESPACE=BURST[:TIME]", value_delimiter = ',')]
    pub burst_by_namespace: Vec<NamespaceBurst>,
    /// How long jobs wait for dedicated machines with `--burst wait` and `--burst short-wait`, e.g. 300, 5m.
    #[arg(long = "wait", value_parser = seconds, default_value = "0", value_name = "TIME")]
    pub wait_s: f64,
    /// The most pods on serverless machines at a time.
    #[arg(long, value_name = "PODS")]
    pub max_burst_pods: Option<u32>,
    /// The most money for serverless machines an hour, at any time.
    #[arg(long = "max-burst-cost", value_parser = not_negative, value_name = "MONEY")]
    pub max_burst_cost_per_hour: Option<f64>,
    /// How long a serverless pod starts, e.g. 45s: paid for, and added to how long the job takes.
    #[arg(long = "cold-start", value_parser = seconds, default_value = "0", value_name = "TIME")]
    pub cold_start_s: f64,
    /// Serverless time is billed in steps of this, e.g. 1m; as the price says where it isn't given.
    #[arg(long = "billing", value_parser = seconds, value_name = "TIME")]
    pub billing_s: Option<f64>,
    /// How often the provider has no machine when asked for one: 0 never, 1 always.
    #[arg(long = "burst-failure", value_parser = share, default_value = "0", value_name = "SHARE")]
    pub failure_rate: f64,
    /// After how long a provider that had no machine is asked again, e.g. 1m.
    #[arg(long = "burst-retry", value_parser = seconds, default_value = "60", value_name = "TIME")]
    pub retry_s: f64,
    /// Whether a job of higher priority takes the machines of jobs of lower priority.
    #[arg(long, value_enum, default_value_t, value_name = "PREEMPTION")]
    pub preemption: Preemption,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            packing: Packing::default(),
            order: Order::default(),
            backfill: Backfill::default(),
            burst: Burst::default(),
            burst_by_namespace: Vec::new(),
            wait_s: 0.0,
            max_burst_pods: None,
            max_burst_cost_per_hour: None,
            cold_start_s: 0.0,
            billing_s: None,
            failure_rate: 0.0,
            retry_s: 60.0,
            preemption: Preemption::default(),
        }
    }
}

/// What no policy can be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number that is NaN, infinite or negative.
    #[error("{what} is {value}: give a number of at least 0")]
    Negative {
        /// The flag.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// A share that is no share.
    #[error("{what} is {value}: give a share between 0 and 1")]
    NoShare {
        /// The flag.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// A provider that never has a machine is asked again and again at the same moment.
    #[error(
        "--burst-retry is 0 with --burst-failure above 0: say after how long the provider is asked again, e.g. 1m"
    )]
    NoRetry,
    /// `--wait` without a policy that waits.
    #[error("--wait {0} has no meaning with this --burst: say --burst wait or --burst short-wait")]
    NoWait(f64),
    /// Two policies for one namespace.
    #[error("--namespace-burst says twice when jobs of {0:?} burst: say it once")]
    Twice(String),
}

impl Policy {
    /// Checks what the types allow and no policy can be.
    pub fn check(&self) -> Result<(), Error> {
        let numbers = [
            ("--wait", self.wait_s),
            ("--max-burst-cost", self.max_burst_cost_per_hour.unwrap_or(0.0)),
            ("--cold-start", self.cold_start_s),
            ("--billing", self.billing_s.unwrap_or(0.0)),
            ("--burst-retry", self.retry_s),
        ];
        for (what, value) in numbers {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Negative { what, value });
            }
        }
        if !(0.0..=1.0).contains(&self.failure_rate) {
            return Err(Error::NoShare { what: "--burst-failure", value: self.failure_rate });
        }
        if self.failure_rate > 0.0 && self.retry_s <= 0.0 {
            return Err(Error::NoRetry);
        }
        let own = |of: &NamespaceBurst| of.burst.waits() && of.wait_s.is_none();
        if self.wait_s > 0.0 && !self.burst.waits() && !self.burst_by_namespace.iter().any(own) {
            return Err(Error::NoWait(self.wait_s));
        }
        let mut namespaces: Vec<&str> = self.burst_by_namespace.iter().map(|of| &*of.namespace).collect();
        namespaces.sort_unstable();
        match namespaces.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::Twice(pair[0].to_owned())),
            None => Ok(()),
        }
    }

    /// When jobs of a namespace go to serverless machines, and after how long where they wait.
    pub fn burst_of(&self, namespace: &str) -> (Burst, f64) {
        let own = self.burst_by_namespace.iter().find(|of| of.namespace == namespace);
        own.map_or((self.burst, self.wait_s), |of| (of.burst, of.wait_s.unwrap_or(self.wait_s)))
    }

    /// Whether it holds of when any job goes to serverless machines.
    pub(crate) fn any_burst(&self, holds: impl Fn(Burst) -> bool) -> bool {
        holds(self.burst) || self.burst_by_namespace.iter().any(|of| holds(of.burst))
    }
}

/// Reads a time as people write it: `300`, `300s`, `5m`, `1.5h`, `2d`; in seconds.
///
/// # Errors
/// In words, for clap.
pub fn seconds(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let (number, unit) =
        [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0), ("w", 604_800.0)]
            .into_iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number, unit)))
            .unwrap_or((text, 1.0));
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value * unit),
        _ => Err("give a time such as 300, 90s, 5m, 1.5h or 2d".to_owned()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("give a number of at least 0".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("give a share between 0 and 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Burst, Error, NamespaceBurst, Policy, seconds};

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, expected) in
            [("300", 300.0), ("5m", 300.0), ("1.5h", 5400.0), ("250ms", 0.25), ("2d", 172_800.0)]
        {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for text in ["", "m", "-1", "NaN", "inf", "5 minutes", "1e999"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_no_policy_can_be_is_told() {
        let wait = Policy { burst: Burst::Wait, wait_s: 300.0, ..Policy::default() };
        assert_eq!(wait.check(), Ok(()));
        assert_eq!(Policy { burst: Burst::AtOnce, ..wait.clone() }.check(), Err(Error::NoWait(300.0)));
        assert!(Policy { cold_start_s: f64::NAN, ..Policy::default() }.check().is_err());
        assert!(Policy { failure_rate: 1.5, ..Policy::default() }.check().is_err());
        let hopeless = Policy { failure_rate: 0.5, retry_s: 0.0, ..Policy::default() };
        assert_eq!(hopeless.check(), Err(Error::NoRetry));
    }
    #[test]
    fn a_namespace_may_burst_otherwise() {
        let of = |text: &str| text.parse::<NamespaceBurst>();
        let waits = of("team-a=wait").unwrap();
        let policy = Policy { burst_by_namespace: vec![waits.clone()], wait_s: 60.0, ..Policy::default() };
        assert_eq!(policy.check(), Ok(()), "there is someone who waits");
        assert_eq!((policy.burst_of("team-a").0, policy.burst_of("team-b").0), (Burst::Wait, Burst::AtOnce));
        let longer =
            Policy { burst_by_namespace: vec![of("team-a=short-wait:10m").unwrap()], ..policy.clone() };
        assert_eq!(longer.burst_of("team-a"), (Burst::ShortWait, 600.0));
        assert_eq!(longer.check(), Err(Error::NoWait(60.0)), "who waits has a time of their own");
        let twice = Policy { burst_by_namespace: vec![waits.clone(), waits], ..Policy::default() };
        assert_eq!(twice.check(), Err(Error::Twice("team-a".to_owned())));
        for text in ["team-a", "=never", "team-a=sometimes", "", "team-a=wait:soon", "team-a=never:10m"] {
            assert!(of(text).is_err(), "{text}");
        }
        assert!(of("a=b").unwrap_err().contains("short-wait"));
    }

    #[test]
    fn results_tell_units_in_names() {
        let policy = serde_json::to_value(Policy::default()).unwrap();
        assert_eq!(policy["wait_s"], 0.0);
        assert_eq!(policy["burst"], "at-once");
    }
}
