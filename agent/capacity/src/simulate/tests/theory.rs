//! What queueing theory says of M/M/s: it derives the golden numbers, and the simulation must agree with it.

use std::convert::Infallible;

use crate::{
    policy::{Burst, Policy},
    pool::Pool,
    simulate::{Options, Poisson, Simulation, run_with, tests::rates},
};

const RATE: f64 = 0.2;
const SERVICE_RATE: f64 = 0.002;
const LOAD: f64 = RATE / SERVICE_RATE;

/// Erlang's B: the share of jobs that find all `servers` busy, where those don't wait.
fn erlang_b(servers: u32) -> f64 {
    (1..=servers).fold(1.0, |b, server| LOAD * b / (f64::from(server) + LOAD * b))
}

/// Erlang's C: the share of jobs that wait, where all do.
fn erlang_c(servers: u32) -> f64 {
    let b = erlang_b(servers);
    b / (1.0 - LOAD / f64::from(servers) * (1.0 - b))
}

/// The share of jobs that would wait longer than `budget_s` and are therefore sent away, and the mean wait of all, those with none included: M/M/s with jobs that know their wait.
fn with_budget(servers: u32, budget_s: f64) -> (f64, f64) {
    let spare = f64::from(servers) * SERVICE_RATE - RATE;
    let mut weight = 1.0;
    let mut free = 1.0;
    for server in 1..servers {
        weight *= LOAD / f64::from(server);
        free += weight;
    }
    let decay = (-spare * budget_s).exp();
    let waits = weight * RATE * (1.0 - decay) / spare;
    let sent_away = weight * RATE * decay / (f64::from(servers) * SERVICE_RATE);
    let all = free + waits + sent_away;
    let mean = weight * RATE * ((1.0 - decay) / spare.powi(2) - budget_s * decay / spare) / all;
    (sent_away / all, mean)
}

/// What an hour of work of one GPU costs with so many owned, if a share of all work is rented.
fn price(servers: u32, rented: f64) -> f64 {
    let rates = rates();
    (f64::from(servers) * rates.dedicated_per_gpu_hour + rates.serverless_per_gpu_hour * LOAD * rented) / LOAD
}

/// The share of work beyond `servers` where jobs can move: demand is then Poisson.
fn excess(servers: u32) -> f64 {
    let mut share = (-LOAD).exp();
    let mut excess = 0.0;
    for jobs in 1..1000 {
        share *= LOAD / f64::from(jobs);
        excess += f64::from(jobs - servers.min(jobs)) * share;
    }
    excess / LOAD
}

fn close(found: f64, golden: f64) {
    assert!((found / golden - 1.0).abs() < 1e-6, "{found} is not {golden}");
}

#[test]
fn the_waiting_games_rows_are_what_theory_says() {
    close(erlang_b(108), 0.034_944);
    close(price(108, erlang_b(108)), 4.482_662);
    let best = (80..130)
        .min_by(|one, other| price(*one, erlang_b(*one)).total_cmp(&price(*other, erlang_b(*other))));
    assert_eq!(best, Some(108));
    close(erlang_c(101) / (101.0 * SERVICE_RATE - RATE), 441.657_25);
    close(price(101, 0.0), 3.8784);
    let (spilled, wait_s) = with_budget(101, 300.0);
    close(spilled, 0.009_229_79);
    close(wait_s, 103.530_558);
    close(price(101, spilled), 3.967_006);
    close(price(102, excess(102)), 4.212_354_28);
}

/// Few jobs, for a debug build; `cargo xtask bench capacity` replays enough for one per cent.
fn simulated(gpus: u32, burst: Burst, wait_s: f64) -> Simulation {
    let policy = Policy { burst, wait_s, ..Policy::default() };
    let jobs = Poisson::new(RATE, SERVICE_RATE, 40_000, 3).map(Ok::<_, Infallible>);
    let options = Options { seed: 3, warm_up_s: 10_000.0, steady: true, ..Options::default() };
    let Ok(result) = run_with(jobs, &Pool::of_gpus(gpus, 1), &policy, &rates(), &options);
    result
}

fn within(found: f64, expected: f64, percent: f64) {
    assert!((found / expected - 1.0).abs() * 100.0 < percent, "{found} is not {expected} within {percent} %");
}

#[test]
fn without_waiting_erlangs_share_spills() {
    let result = simulated(108, Burst::AtOnce, 0.0);
    within(result.spilled.jobs_share, erlang_b(108), 10.0);
    within(result.cost.per_gpu_hour_of_work, price(108, erlang_b(108)), 2.0);
    assert_eq!(result.wait.max_s.to_bits(), 0.0_f64.to_bits());
}

#[test]
fn with_migration_less_is_rented() {
    let result = simulated(102, Burst::AtOnce, 0.0);
    let least = result.cost.least_without_waiting.unwrap();
    within(least / result.cost.total * result.cost.per_gpu_hour_of_work, price(102, excess(102)), 2.0);
    assert!(least < result.cost.total);
}

#[test]
fn jobs_that_would_wait_too_long_spill_at_once() {
    // A larger pool forgets faster: fewer jobs suffice.
    let result = simulated(104, Burst::ShortWait, 300.0);
    let (spilled, wait_s) = with_budget(104, 300.0);
    within(result.wait.mean_s, wait_s, 15.0);
    within(result.cost.per_gpu_hour_of_work, price(104, spilled), 2.0);
    assert!(result.wait.max_s <= 300.0);
}

#[test]
fn where_all_wait_erlangs_share_does() {
    let result = simulated(110, Burst::AllWait, 0.0);
    let spare = 110.0 * SERVICE_RATE - RATE;
    within(
        f64::from(u32::try_from(result.waited.jobs).unwrap())
            / f64::from(u32::try_from(result.wait.jobs).unwrap()),
        erlang_c(110),
        10.0,
    );
    within(result.waited.mean_s, 1.0 / spare, 15.0);
    within(result.wait.mean_s, erlang_c(110) / spare, 20.0);
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "a count of runs")]
fn percentiles_of_waits_are_as_sure_as_they_say() {
    // Four servers of which half are busy: what waits, waits exponentially.
    let (servers, rate, service_rate) = (4_u32, 2.0, 1.0);
    let busy = |load: f64| {
        let b = (1..=servers).fold(1.0, |b, server| load * b / (f64::from(server) + load * b));
        b / (1.0 - load / f64::from(servers) * (1.0 - b))
    };
    let waits = busy(rate / service_rate);
    let exact =
        |share: f64| (waits / (1.0 - share)).ln().max(0.0) / (f64::from(servers) * service_rate - rate);
    let policy = Policy { burst: Burst::AllWait, ..Policy::default() };
    let runs: Vec<Simulation> = (0..24)
        .map(|seed| {
            let jobs = Poisson::new(rate, service_rate, 6000, seed).map(Ok::<_, Infallible>);
            let options =
                Options { seed, warm_up_s: 100.0, steady: true, bound: false, ..Options::default() };
            let Ok(found) = run_with(jobs, &Pool::of_gpus(servers, 1), &policy, &rates(), &options);
            found
        })
        .collect();
    let percentile = |share: f64, of: fn(&Simulation) -> (f64, Option<f64>)| {
        let exact = exact(share);
        // A run in which too few waited longer says nothing.
        let told: Vec<(f64, f64)> =
            runs.iter().map(of).filter_map(|(found, error)| Some((found - exact, error?))).collect();
        assert!(told.len() >= 18, "{share}: {} of {} tell", told.len(), runs.len());
        let mean = |of: fn(&(f64, f64)) -> f64| told.iter().map(of).sum::<f64>() / told.len() as f64;
        let off = mean(|(off, _)| off * off).sqrt();
        let error = mean(|(_, error)| *error);
        assert!((error / off - 1.0).abs() < 0.4, "{share}: {error} is told, and it is off by {off}");
        mean(|(off, error)| f64::from(u8::from(off.abs() <= 2.0 * error)))
    };
    let held = [
        percentile(0.9, |found| (found.wait.p90_s, found.wait.p90_error_s)),
        percentile(0.95, |found| (found.wait.p95_s, found.wait.p95_error_s)),
        percentile(0.99, |found| (found.wait.p99_s, found.wait.p99_error_s)),
    ];
    assert!(held.iter().sum::<f64>() / 3.0 > 0.85, "{held:?}");
    // Half of the jobs don't wait at all, of which there is no doubt.
    assert!(
        runs.iter().all(|found| found.wait.p50_error_s == Some(0.0) && found.waited.p50_error_s > Some(0.0))
    );
}

#[test]
fn a_run_too_short_for_a_percentile_says_so() {
    let policy = Policy { burst: Burst::AllWait, ..Policy::default() };
    let of = |jobs| {
        let jobs = Poisson::new(2.8, 1.0, jobs, 1).map(Ok::<_, Infallible>);
        let Ok(found) = run_with(jobs, &Pool::of_gpus(4, 1), &policy, &rates(), &Options::default());
        found
    };
    let short = of(200);
    assert!(short.wait.p99_error_s.is_none() && short.wait.p50_error_s.is_some(), "{:?}", short.wait);
    assert!(
        short.warnings.iter().any(|word| word.contains("too few jobs wait longer than p99")),
        "{:?}",
        short.warnings
    );
    let few = of(20);
    assert!(few.wait.p50_error_s.is_none() && few.warnings[0].contains("percentiles"), "{:?}", few.warnings);
}
