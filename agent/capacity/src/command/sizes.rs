//! How many machines to own where jobs may wait or can't be split: [`optimize::search`] tries numbers of them, each by replaying the jobs of a trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    replay::{Half, Jobs},
    waits::Waits,
};
use crate::{
    demand::{Series, Span, offered},
    job::{Demand, Job},
    optimize::{
        Candidate, Class, Kinds, Later, Objective, Optimization, Question, Search, Shape, Trial, Way,
        optimize, search,
    },
    policy::{Burst, Policy},
    pool::{Machines, Pool, Serverless},
    price::Rates,
    simulate,
    terminal::progress,
};

/// How long jobs wait before they burst where nothing says it.
const WAIT_S: f64 = 300.0;
/// So many jobs replayed, all replays together, are few enough to try every number of machines, and so many replays.
const FEW_JOBS: usize = 3_000_000;
const FEW_REPLAYS: usize = 1000;
/// With fewer jobs a half of the time says nothing of the other.
const HALF: usize = 10;
/// More sets of models than this are not told apart.
const CLASSES: usize = 32;

/// What is replayed, and with what.
pub(super) struct Sizes<'a> {
    /// Whose jobs.
    pub(super) jobs: &'a Jobs,
    /// How they are queued and packed, and when they burst.
    pub(super) policy: &'a Policy,
    /// The waits before bursting that are tried, where more than the policy's is.
    pub(super) waits: Option<&'a Waits>,
    /// What is paid; dedicated GPUs per hour in which they work.
    pub(super) rates: &'a Rates,
    /// The question of the same jobs, if they never waited.
    pub(super) question: &'a Question,
    /// By what chance is drawn.
    pub(super) seed: u64,
}

impl Sizes<'_> {
    /// Whether machines differ in their models, so that it counts which a job asks for.
    fn typed(&self) -> bool {
        self.question.shapes.iter().any(|shape| !shape.model.is_empty())
    }

    /// Tries numbers of machines and ways of bursting; `bound` is the answer if no job ever waited.
    pub(super) fn search(&self, objective: Objective, bound: &Optimization) -> anyhow::Result<Search> {
        let ways = self.ways(objective, bound.demand.span.seconds());
        let kinds = self.kinds(bound, ways.iter().map(|way| way.waits_s.len()).sum());
        let bar = progress(None, "replays");
        let attempt = |half: Half, candidate: &Candidate| {
            bar.inc(1);
            self.attempt(half, candidate)
        };
        let mut found = search(objective, &ways, &kinds, |candidate| attempt(Half::Both, candidate))?;
        found.draw(self.question.block_s, self.question.resamples, self.seed);
        let halves =
            [Half::First, Half::Second].map(|half| self.jobs.half(half).map(|jobs| jobs.take(HALF).count()));
        let [first, second] = halves;
        if first? == HALF && second? == HALF {
            // Walking forward once: what is best on the first half, tried on the second.
            let first = search(objective, &ways, &kinds, |candidate| attempt(Half::First, candidate))?.best;
            let second = search(objective, &ways, &kinds, |candidate| attempt(Half::Second, candidate))?.best;
            if let (Some(advised), Some(best)) = (first, second) {
                let turned_out = attempt(Half::Second, &candidate(&advised))?;
                let regret =
                    if best.per_hour > 0.0 { turned_out.per_hour / best.per_hour - 1.0 } else { 0.0 };
                found.later = Some(Later { advised, turned_out, best, regret });
            }
        }
        if let (Some(owned), Some(best), [shape]) =
            (self.question.owned_gpus, &found.best, &self.question.shapes[..])
            && owned.is_multiple_of(shape.gpus)
        {
            let counts = vec![owned / shape.gpus];
            found.today = Some(attempt(Half::Both, &Candidate { counts, ..candidate(best) })?);
        }
        bar.finish_and_clear();
        Ok(found)
    }

    /// The ways of bursting that are tried, for jobs that come within so many seconds.
    fn ways(&self, objective: Objective, span_s: f64) -> Vec<Way> {
        let waits_s = match (self.waits, objective) {
            (Some(waits), _) => waits.within(span_s),
            _ if self.policy.wait_s > 0.0 => vec![self.policy.wait_s],
            (None, Objective::CostWithinWait { wait_p95_s }) if wait_p95_s > 0.0 => vec![wait_p95_s],
            _ => vec![WAIT_S],
        };
        let waits = |burst| Way { burst, waits_s: waits_s.clone() };
        // Jobs of some namespaces may wait where the others don't.
        let other = |burst| Way::one(burst, self.policy.wait_s);
        match self.policy.burst {
            Burst::AtOnce if objective != Objective::Cost || self.waits.is_some() => {
                vec![other(Burst::AtOnce), waits(Burst::Wait), waits(Burst::ShortWait), other(Burst::AllWait)]
            }
            burst @ (Burst::Wait | Burst::ShortWait) => vec![waits(burst)],
            burst => vec![other(burst)],
        }
    }

    /// Numbers of machines that may be of use: half as many again as hold all that is ever demanded at one time, since whole jobs leave gaps.
    fn kinds(&self, bound: &Optimization, ways: usize) -> Kinds {
        let shapes = &self.question.shapes;
        let demanded = |shape: &Shape| -> u32 {
            if !self.typed() || bound.by_model.is_empty() {
                return bound.demand.max_gpus;
            }
            let classes = bound.by_model.iter().filter(|class| fits(shape, &class.models));
            classes.map(|class| class.max_gpus).sum::<u32>().min(bound.demand.max_gpus)
        };
        let most = shapes
            .iter()
            .map(|shape| demanded(shape).saturating_mul(3).div_ceil(2 * shape.gpus).saturating_add(1))
            .collect();
        let mut start = vec![0; shapes.len()];
        if self.typed() {
            // Each set of models has what it needs by itself, of the cheapest machines that will do.
            for class in &bound.by_model {
                let price =
                    |shape: &Shape| shape.per_gpu_hour.unwrap_or(self.question.dedicated_per_gpu_hour);
                let cheapest = (0..shapes.len())
                    .filter(|index| fits(&shapes[*index], &class.models))
                    .min_by(|one, other| price(&shapes[*one]).total_cmp(&price(&shapes[*other])));
                if let Some(index) = cheapest {
                    start[index] += class.advice.gpus / shapes[index].gpus;
                }
            }
        } else {
            for machines in &bound.machines {
                if let Some(index) = shapes.iter().position(|shape| shape.gpus == machines.gpus_each) {
                    start[index] = machines.count;
                }
            }
        }
        let few = (FEW_JOBS / self.jobs.count().max(1)).min(FEW_REPLAYS).max(ways);
        Kinds { gpus: shapes.iter().map(|shape| shape.gpus).collect(), most, start, few }
    }

    /// Replays the jobs on so many machines.
    fn attempt(&self, half: Half, candidate: &Candidate) -> anyhow::Result<Trial> {
        let policy = Policy { burst: candidate.burst, wait_s: candidate.wait_s, ..self.policy.clone() };
        let machines = |(shape, count): (&Shape, &u32)| Machines {
            name: Arc::from(if shape.model.is_empty() { "machine" } else { &*shape.model }),
            count: *count,
            model: lower(&shape.model),
            gpus: shape.gpus,
            cpu_milli: None,
            memory_mib: None,
            price_per_hour: shape
                .per_gpu_hour
                .map(|price| price * f64::from(shape.gpus) / self.question.availability),
        };
        let machines = self.question.shapes.iter().zip(&candidate.counts).map(machines).collect();
        let pool = Pool { machines, serverless: Serverless::default() };
        pool.check()?;
        let mut models = Models::default();
        let typed = self.typed() || !self.rates.serverless_by_model.is_empty();
        let jobs = self.jobs.half(half)?.map(|job| {
            job.map(|mut job| {
                job.request.models = if typed { models.lower(&job) } else { models.any.clone() };
                job
            })
        });
        let options =
            simulate::Options { seed: self.seed, bound: false, each: true, ..simulate::Options::default() };
        let found = simulate::run_with(jobs, &pool, &policy, self.rates, &options)?;
        Ok(Trial::of(candidate, &self.question.shapes, &found))
    }
}

fn candidate(trial: &Trial) -> Candidate {
    Candidate {
        counts: trial.kinds.iter().map(|kind| kind.count).collect(),
        burst: trial.burst,
        wait_s: trial.wait_s,
    }
}

/// Whether a machine will do for who asks for one of `models`.
fn fits(shape: &Shape, models: &[String]) -> bool {
    models.is_empty() || models.iter().any(|model| shape.model.eq_ignore_ascii_case(model))
}

/// Models are the same in small letters: Slurm writes `a100`, Kubernetes' labels `A100`.
fn lower(model: &str) -> Arc<str> {
    Arc::from(model.to_ascii_lowercase())
}

/// The models that will do for a job.
type Wanted = Arc<[Arc<str>]>;

/// Sets of models in small letters, each made once.
struct Models {
    any: Wanted,
    known: BTreeMap<Wanted, Wanted>,
}

impl Default for Models {
    fn default() -> Self {
        Self { any: Arc::from([]), known: BTreeMap::new() }
    }
}

impl Models {
    fn lower(&mut self, job: &Job) -> Wanted {
        let models = &job.request.models;
        if models.is_empty() {
            return self.any.clone();
        }
        let made = || models.iter().map(|model| lower(model)).collect();
        self.known.entry(models.clone()).or_insert_with(made).clone()
    }
}

/// What is best for the jobs of each set of models by themselves, over the time of all.
pub(super) fn by_model(
    jobs: &Jobs,
    span: Span,
    question: &Question,
    rates: &Rates,
) -> anyhow::Result<Vec<Class>> {
    let mut sets = BTreeSet::new();
    for job in jobs.half(Half::Both)? {
        sets.insert(job?.request.models);
        if sets.len() > CLASSES {
            return Ok(Vec::new());
        }
    }
    let class = |wanted: Wanted| {
        let edge = |at_s| std::iter::once(Ok(Demand { line: 0, at_s, gpus: 0.0 }));
        let own = jobs
            .half(Half::Both)?
            .filter(|job| job.as_ref().map_or(true, |job| job.request.models == wanted));
        let series: anyhow::Result<Series> =
            Series::collect(edge(span.from_s).chain(offered(own)).chain(edge(span.to_s)));
        let models: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let mut question = Question { resamples: 1, ..question.clone() };
        let typed = question.shapes.iter().any(|shape| !shape.model.is_empty());
        let fit: Vec<Shape> =
            question.shapes.iter().filter(|shape| !typed || fits(shape, &models)).cloned().collect();
        // What no machine will do for is rented, whatever it costs to own.
        let none = fit.is_empty();
        if !none {
            question.shapes = fit;
        }
        let price = rates.serverless_of(&wanted);
        if let Some(of) = price {
            let own = of.map(|at| rates.serverless_by_model[at].per_gpu_hour);
            question.serverless_per_gpu_hour = own.unwrap_or(rates.serverless_per_gpu_hour);
        }
        let found = optimize(series?, &question)?;
        Ok(Class {
            models,
            mean_gpus: found.demand.mean_gpus,
            max_gpus: found.demand.max_gpus,
            advice: match (none, price) {
                (true, _) => found.all_rented,
                (false, None) => found.all_owned,
                (false, Some(_)) => found.advice,
            },
        })
    };
    sets.into_iter().map(class).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::{Kinds, Sizes, candidate};
    use crate::{
        command::{replay::Jobs, waits::Waits},
        optimize::{
            Candidate, Objective, Optimization, Question, Search, Shape, Trial, Way, optimize, search,
        },
        policy::{Burst, Policy},
        price::{Currency, Rates},
        trace,
    };

    /// Jobs of 1 to 8 GPUs, half of them for each of two models.
    fn jobs(folder: &tempfile::TempDir) -> trace::Args {
        let mut text = "submit,duration,gpus,models\n".to_owned();
        for job in 0..240_u32 {
            let (submit, duration) = (job * 173, 200 + job * 7919 % 2900);
            let (gpus, model) =
                ([1, 1, 2, 4, 8][(job * 31 % 17 % 5) as usize], ["A100", "h100"][(job % 2) as usize]);
            let _ = writeln!(text, "{submit},{duration},{gpus},{model}");
        }
        let path = folder.path().join("jobs.csv");
        std::fs::write(&path, text).unwrap();
        trace::Args { files: vec![path], ..trace::Args::default() }
    }

    fn shape(gpus: u32, model: &str, price: f64) -> Shape {
        Shape { gpus, per_gpu_hour: Some(price), model: model.into() }
    }

    struct Asking {
        trace: trace::Args,
        question: Question,
        serverless: f64,
        policy: Policy,
        waits: Option<Waits>,
    }

    impl Asking {
        fn bound(&self) -> Optimization {
            let mut question = self.question.clone();
            let read = crate::command::optimize::read(&self.trace, &mut question, false).unwrap();
            let mut bound = optimize(read.series, &question).unwrap();
            let jobs = Jobs::read(&self.trace).unwrap();
            bound.by_model = super::by_model(&jobs, bound.demand.span, &question, &self.rates()).unwrap();
            bound
        }

        fn rates(&self) -> Rates {
            Rates::new(Currency::USD, 1.0, self.serverless).unwrap()
        }

        fn with<T>(&self, then: impl FnOnce(&Sizes) -> T) -> T {
            let jobs = Jobs::read(&self.trace).unwrap();
            let rates = self.rates();
            let policy = self.policy.clone();
            let waits = self.waits.as_ref();
            then(&Sizes {
                jobs: &jobs,
                policy: &policy,
                waits,
                rates: &rates,
                question: &self.question,
                seed: 1,
            })
        }

        fn search(&self, objective: Objective) -> Search {
            self.with(|sizes| sizes.search(objective, &self.bound()).unwrap())
        }
    }

    fn asking(folder: &tempfile::TempDir, serverless: f64, shapes: Vec<Shape>) -> Asking {
        let question =
            Question { serverless_per_gpu_hour: serverless, shapes, resamples: 60, ..Question::default() };
        Asking { trace: jobs(folder), question, serverless, policy: Policy::default(), waits: None }
    }

    fn counts(trial: &Trial) -> Vec<u32> {
        candidate(trial).counts
    }

    #[test]
    fn nothing_near_or_far_costs_less_than_the_best() {
        let folder = tempfile::tempdir().unwrap();
        let asked = asking(&folder, 3.0, vec![shape(8, "", 1.0)]);
        let found = asked.search(Objective::Cost);
        let best = found.best.clone().unwrap();
        assert!(found.exact && found.trials.len() > 5);
        let again = |machines: u32| {
            let candidate = Candidate { counts: vec![machines], burst: Burst::AtOnce, wait_s: 0.0 };
            asked.with(|sizes| sizes.attempt(super::Half::Both, &candidate).unwrap().per_hour)
        };
        let costs: Vec<f64> = (0..12).map(again).collect();
        assert!(costs.iter().all(|cost| *cost >= best.per_hour), "{costs:?} against {}", best.per_hour);
        assert!(costs.contains(&best.per_hour));
        let (interval, flat, later) = (found.interval.unwrap(), found.flat.unwrap(), found.later.unwrap());
        assert!((interval.from_gpus..=interval.to_gpus).contains(&best.gpus), "{interval:?}");
        assert!(
            interval.from_per_hour < best.per_hour && best.per_hour < interval.to_per_hour,
            "{interval:?}"
        );
        assert!((flat.from_gpus..=flat.to_gpus).contains(&best.gpus) && later.regret >= 0.0);
        // It stays the best for prices within the range told, and not for those beyond.
        let range = found.stays_best.unwrap();
        let (from, to) = (range.from.unwrap(), range.to.unwrap());
        for (factor, same) in
            [(from * 0.999, false), (from * 1.001, true), (to * 0.999, true), (to * 1.001, false)]
        {
            let then = asking(&folder, 3.0 * factor, vec![shape(8, "", 1.0)]).search(Objective::Cost);
            assert_eq!(then.best.unwrap().gpus == best.gpus, same, "at {factor} of the price");
        }
    }

    #[test]
    fn shapes_and_models_are_searched_together() {
        let folder = tempfile::tempdir().unwrap();
        let shapes = vec![shape(8, "a100", 1.0), shape(4, "A100", 0.9), shape(8, "H100", 1.4)];
        let asked = asking(&folder, 4.0, shapes);
        let bound = asked.bound();
        assert_eq!(bound.by_model.len(), 2);
        asked.with(|sizes| {
            let ways = [Way::one(Burst::AtOnce, 0.0)];
            let all = Kinds { most: vec![3, 4, 3], few: 1000, ..sizes.kinds(&bound, 1) };
            let attempt = |candidate: &Candidate| sizes.attempt(super::Half::Both, candidate);
            let exact = search(Objective::Cost, &ways, &all, attempt).unwrap();
            let climbed = search(Objective::Cost, &ways, &Kinds { few: 1, ..all }, attempt).unwrap();
            assert!(exact.exact && !climbed.exact && climbed.trials.len() < exact.trials.len());
            let (exact, climbed) = (exact.best.unwrap(), climbed.best.unwrap());
            assert_eq!(counts(&climbed), counts(&exact));
            assert!(exact.rented_share < 0.9, "models are found in whatever letters: {exact:?}");
        });
    }

    #[test]
    fn a_limit_on_waits_is_kept_to_the_second() {
        let folder = tempfile::tempdir().unwrap();
        let asked = asking(&folder, 3.0, vec![shape(8, "", 1.0)]);
        let found = asked.search(Objective::CostWithinWait { wait_p95_s: 600.0 });
        let best = found.best.unwrap();
        assert!(best.wait_p95_s <= 600.0);
        assert!(found.trials.iter().all(|trial| trial.wait_p95_s > 600.0 || trial.per_hour >= best.per_hour));
        let dearest = best.per_hour;
        let within = asked.search(Objective::WaitWithinCost { per_hour: dearest }).best.unwrap();
        assert!(within.per_hour <= dearest && within.wait_p95_s <= best.wait_p95_s);
        assert!(asked.search(Objective::WaitWithinCost { per_hour: 0.01 }).interval.is_none());
    }

    #[test]
    fn the_best_wait_is_the_one_that_trying_all_finds() {
        let folder = tempfile::tempdir().unwrap();
        let objective = Objective::CostWithinWait { wait_p95_s: 900.0 };
        for burst in [Burst::ShortWait, Burst::Wait] {
            let mut asked = asking(&folder, 3.0, vec![shape(8, "", 1.0)]);
            asked.policy.burst = burst;
            asked.waits = Some("5m, 20m,90s,2h".parse().unwrap());
            let found = asked.search(objective);
            let best = found.best.unwrap();
            let most = found.trials.iter().map(|trial| trial.machines).max().unwrap();
            let tried: Vec<Trial> = asked.with(|sizes| {
                let of = |wait_s| (0..=most).map(move |machines| (wait_s, machines));
                let all = [90.0, 300.0, 1200.0, 7200.0].into_iter().flat_map(of);
                let candidate = |(wait_s, machines)| Candidate { counts: vec![machines], burst, wait_s };
                all.map(|at| sizes.attempt(super::Half::Both, &candidate(at)).unwrap()).collect()
            });
            let count = tried.len();
            let allowed = tried.iter().filter(|trial| trial.wait_p95_s <= 900.0);
            let least = allowed.map(|trial| trial.per_hour).fold(f64::INFINITY, f64::min);
            assert!(found.exact && found.trials.len() == count);
            assert_eq!(best.per_hour.to_bits(), least.to_bits(), "{burst}");
            assert!(found.flat_waits.unwrap().from_s <= best.wait_s);
        }
    }

    #[test]
    fn machines_are_said_with_their_models_and_prices() {
        let read = |text: &str| crate::command::optimize::shape(text);
        assert_eq!(read("8xA100@2.10").unwrap(), shape(8, "A100", 2.1));
        assert_eq!(read("4").unwrap(), Shape { gpus: 4, ..Shape::default() });
        for text in ["", "x", "8xA100@", "8@-1", "A100", "8@nan"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
