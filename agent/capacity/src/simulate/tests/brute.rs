//! Small random traces against a simulator of single-GPU jobs that knows nothing of events: exact equality.

use proptest::prelude::*;

use crate::{
    job::{Job, Request},
    policy::{Backfill, Burst, NamespaceBurst, Order, Packing, Policy, Preemption},
    pool::Pool,
    simulate::tests::{rates, replay},
};

/// Times in quarters of a second, so that sums are exact and ties are frequent.
fn trace() -> impl Strategy<Value = Vec<Job>> {
    prop::collection::vec((0_u32..40, 1_u32..80), 1..60).prop_map(|jobs| {
        let mut now = 0;
        (1..)
            .zip(jobs)
            .map(|(line, (gap, duration))| {
                now += gap;
                single(line, f64::from(now) / 4.0, f64::from(duration) / 4.0)
            })
            .collect()
    })
}

pub(super) fn single(line: u64, submit_s: f64, duration_s: f64) -> Job {
    Job {
        line,
        submit_s,
        duration_s,
        pods: 1,
        gang: false,
        request: Request::gpus(1),
        deadline_s: None,
        priority: 0,
        owner: "".into(),
    }
}

/// When each job begins on which kind of machine, one after the other: each takes the GPU that is free first.
fn plainly(jobs: &[Job], gpus: usize, burst: Burst, budget_s: f64) -> (Vec<f64>, f64) {
    let mut free = vec![f64::NEG_INFINITY; gpus];
    let mut waits = Vec::new();
    let mut rented_s = 0.0;
    for job in jobs {
        free.sort_by(f64::total_cmp);
        let start_s = free.first().map_or(f64::INFINITY, |free| free.max(job.submit_s));
        let due_s = start_s - job.submit_s;
        let patience_s = match burst {
            Burst::AtOnce => 0.0,
            Burst::Wait | Burst::ShortWait => budget_s,
            _ => f64::INFINITY,
        };
        if due_s <= patience_s && gpus > 0 {
            waits.push(due_s);
            free[0] = start_s + job.duration_s;
        } else {
            waits.push(if burst == Burst::Wait { budget_s } else { 0.0 });
            rented_s += job.duration_s;
        }
    }
    (waits, rented_s)
}

/// Jobs of all kinds: shares, several GPUs, gangs, deadlines, priorities, two owners.
fn mixed() -> impl Strategy<Value = Vec<Job>> {
    let asks = (prop::sample::select(vec![250_u32, 400, 1000, 1000]), 0_u32..5, 1_u32..4, any::<bool>());
    let rest = (0_i32..3, prop::option::of(0_u32..200), prop::sample::select(vec!["a", "b"]));
    prop::collection::vec((asks, rest), 1..40).prop_flat_map(|jobs| {
        let count = jobs.len();
        (Just(jobs), prop::collection::vec((0_u32..40, 0_u32..200), count)).prop_map(|(jobs, times)| {
            let mut now = 0;
            let all = (1..).zip(jobs).zip(times);
            all.map(
                |((line, ((gpu_milli, gpus, pods, gang), (priority, deadline, owner))), (gap, duration))| {
                    now += gap;
                    let submit_s = f64::from(now) / 4.0;
                    let gpus = if gpu_milli < 1000 { 1 } else { gpus };
                    Job {
                        request: Request { gpu_milli, ..Request::gpus(gpus) },
                        pods,
                        gang,
                        priority,
                        deadline_s: deadline.map(|after| submit_s + f64::from(after)),
                        owner: owner.into(),
                        ..single(line, submit_s, f64::from(duration) / 4.0)
                    }
                },
            )
            .collect()
        })
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    use prop::sample::select;
    const BURSTS: [Burst; 6] =
        [Burst::AtOnce, Burst::Wait, Burst::ShortWait, Burst::AllWait, Burst::Only, Burst::Never];
    let packings = [
        Packing::FirstFit,
        Packing::BestFit,
        Packing::Packing,
        Packing::Clustering,
        Packing::Fgd,
        Packing::Random,
    ];
    let words = (
        select(packings.to_vec()),
        select(vec![Order::Fifo, Order::ShortestFirst, Order::EarliestDeadlineFirst]),
        select(vec![Backfill::Never, Backfill::Greedy, Backfill::Easy]),
        select(vec![Preemption::Off, Preemption::Restart, Preemption::Resume]),
        select(BURSTS.to_vec()),
        prop::option::of(select(BURSTS.to_vec())),
    );
    let numbers = (0_u32..40, prop::option::of(1_u32..8), 0_u32..20, prop::option::of(1_u32..60), 0_u32..2);
    (words, numbers).prop_map(|((packing, order, backfill, preemption, burst, own), numbers)| {
        let (wait, max_burst_pods, cold_start, billing, fails) = numbers;
        let own = own.map(|burst| NamespaceBurst { namespace: "a".to_owned(), burst, wait_s: None });
        Policy {
            packing,
            order,
            backfill,
            preemption,
            burst,
            burst_by_namespace: own.into_iter().collect(),
            wait_s: f64::from(wait),
            max_burst_pods,
            cold_start_s: f64::from(cold_start),
            billing_s: billing.map(f64::from),
            failure_rate: f64::from(fails) * 0.3,
            ..Policy::default()
        }
    })
}

fn policy(burst: Burst, wait_s: f64) -> Policy {
    let wait_s = if matches!(burst, Burst::Wait | Burst::ShortWait) { wait_s } else { 0.0 };
    Policy { burst, wait_s, ..Policy::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn single_gpu_jobs_are_replayed_exactly(
        jobs in trace(),
        gpus in 0_u32..6,
        burst in prop::sample::select(vec![Burst::AtOnce, Burst::Wait, Burst::ShortWait, Burst::AllWait]),
        budget in 0_u32..60,
    ) {
        let budget_s = f64::from(budget) / 4.0;
        let (waits, rented_s) = plainly(&jobs, gpus as usize, burst, budget_s);
        let result = replay(jobs.clone(), &Pool::of_gpus(gpus, 1), &policy(burst, budget_s));
        let mut sorted = waits.clone();
        sorted.sort_by(f64::total_cmp);
        prop_assert_eq!(result.wait.jobs, jobs.len() as u64);
        prop_assert_eq!(result.wait.max_s.to_bits(), sorted[sorted.len() - 1].to_bits());
        prop_assert!((result.wait.mean_s - waits.iter().sum::<f64>() / f64::from(u32::try_from(waits.len()).unwrap())).abs() < 1e-9);
        prop_assert!((result.spilled.gpu_hours * 3600.0 - rented_s).abs() < 1e-9);
        for (percent, found) in [(50, result.wait.p50_s), (90, result.wait.p90_s), (99, result.wait.p99_s)] {
            let exact = sorted[(sorted.len() * percent).div_ceil(100) - 1];
            prop_assert!((found - exact).abs() <= exact * result.wait_relative_error, "{} for {}", found, exact);
        }
        let worst = result.worst.first().map_or(0.0, |job| job.wait_s);
        prop_assert_eq!(worst.to_bits(), sorted[sorted.len() - 1].to_bits());
    }

    #[test]
    fn no_policy_costs_less_than_the_clairvoyant(jobs in trace(), gpus in 0_u32..6, wait in 0_u32..60) {
        for burst in [Burst::AtOnce, Burst::Wait, Burst::ShortWait, Burst::AllWait, Burst::Only] {
            let result = replay(jobs.clone(), &Pool::of_gpus(gpus, 1), &policy(burst, f64::from(wait)));
            let slack = 1e-9 * (1.0 + result.cost.total);
            prop_assert!(result.cost.total + slack >= result.cost.least, "{:?}: {:?}", burst, result.cost);
            if matches!(burst, Burst::AtOnce | Burst::Only) {
                let least = result.cost.least_without_waiting.unwrap();
                prop_assert!(result.cost.total + slack >= least, "{:?}: {:?}", burst, result.cost);
            }
        }
    }

    #[test]
    fn whatever_the_policy_no_job_is_lost_and_none_is_free(jobs in mixed(), machines in 0_u32..4, policy in any_policy()) {
        let result = replay(jobs.clone(), &Pool::of_gpus(machines, 4), &policy);
        let slack = 1e-9 * (1.0 + result.cost.total);
        prop_assert!(result.cost.total + slack >= result.cost.least, "{:?}", result.cost);
        prop_assert_eq!(result.jobs.submitted, jobs.len() as u64);
        prop_assert_eq!(result.wait.jobs + result.jobs.rejected + result.jobs.unfinished, jobs.len() as u64);
        prop_assert_eq!(result.jobs.unfinished, 0, "every job ends, and so do those that wait for it");
        prop_assert!(result.used.peak_gpus <= f64::from(machines * 4));
        prop_assert!(result.spilled.billed_gpu_hours + 1e-9 >= result.spilled.gpu_hours);
        prop_assert!(policy.max_burst_pods.is_none_or(|most| result.spilled.peak_pods <= u64::from(most)));
        prop_assert!(result.worst.iter().all(|job| job.wait_s >= 0.0 && job.wait_s <= result.wait.max_s));
        // What runs on dedicated machines and is not lost is what did not spill.
        let work: f64 = jobs.iter().map(|job| f64::from(job.pods) * job.duration_s / 3600.0 * f64::from(u32::try_from(job.request.total_milli()).unwrap()) / 1000.0).sum();
        let dedicated = result.used.gpus * result.span_s / 3600.0 - result.used.lost_gpu_hours;
        if result.jobs.rejected == 0 && policy.preemption != Preemption::Resume {
            prop_assert!((dedicated + result.spilled.gpu_hours - work).abs() < 1e-9, "{} and {} of {}", dedicated, result.spilled.gpu_hours, work);
        }
        prop_assert_eq!(&replay(jobs, &Pool::of_gpus(machines, 4), &policy), &result, "the same again");
    }

    #[test]
    fn more_capacity_never_raises_waiting(jobs in trace(), gpus in 1_u32..6) {
        let wait = |gpus| replay(jobs.clone(), &Pool::of_gpus(gpus, 1), &policy(Burst::Never, 0.0)).wait;
        let (fewer, more) = (wait(gpus), wait(gpus + 1));
        for (fewer, more) in [
            (fewer.mean_s, more.mean_s),
            (fewer.p50_s, more.p50_s),
            (fewer.p90_s, more.p90_s),
            (fewer.p99_s, more.p99_s),
            (fewer.max_s, more.max_s),
        ] {
            prop_assert!(more <= fewer + 1e-9, "{} becomes {}", fewer, more);
        }
    }

    #[test]
    fn scaling_all_prices_scales_the_cost(jobs in trace(), gpus in 0_u32..6, factor in 0.01_f64..100.0) {
        let pool = Pool::of_gpus(gpus, 1);
        let policy = Policy { cold_start_s: 3.0, billing_s: Some(7.0), ..Policy::default() };
        let mut scaled = rates();
        scaled.dedicated_per_gpu_hour *= factor;
        scaled.serverless_per_gpu_hour *= factor;
        let run = |rates| {
            let jobs = jobs.iter().cloned().map(Ok::<_, std::convert::Infallible>);
            let Ok(result) = crate::simulate::run(jobs, &pool, &policy, rates, 0);
            result.cost
        };
        let (plain, scaled) = (run(&rates()), run(&scaled));
        for (plain, scaled) in [
            (plain.dedicated, scaled.dedicated),
            (plain.serverless, scaled.serverless),
            (plain.total, scaled.total),
            (plain.per_gpu_hour_of_work, scaled.per_gpu_hour_of_work),
            (plain.least, scaled.least),
        ] {
            prop_assert!((plain * factor - scaled).abs() <= 1e-9 * scaled.abs(), "{} times {} is not {}", plain, factor, scaled);
        }
    }
}
