//! Each word of a policy, by a trace so small that its result is known.

use super::{brute::single, rates, replay};
use crate::{
    job::{Job, Request},
    policy::{Backfill, Burst, NamespaceBurst, Order, Packing, Policy, Preemption},
    pool::Pool,
    simulate::{Options, Simulation},
};

fn job(line: u64, submit_s: f64, duration_s: f64, gpus: u32) -> Job {
    Job { request: Request::gpus(gpus), ..single(line, submit_s, duration_s) }
}

fn never() -> Policy {
    Policy { burst: Burst::Never, ..Policy::default() }
}

/// Lines and waits of those that waited, the worst first.
fn waits(result: &Simulation) -> Vec<(u64, f64)> {
    result.worst.iter().map(|job| (job.line, job.wait_s)).collect()
}

fn same(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

#[test]
fn backfill_decides_who_may_pass() {
    // One machine of 4. The first job leaves 1 GPU; the second wants 4; the third and fourth want 1, for long and for short.
    let jobs = [job(1, 0.0, 100.0, 3), job(2, 1.0, 50.0, 4), job(3, 2.0, 200.0, 1), job(4, 3.0, 97.0, 1)];
    let run = |backfill| waits(&replay(jobs.clone(), &Pool::of_gpus(1, 4), &Policy { backfill, ..never() }));
    assert_eq!(run(Backfill::Never), [(3, 148.0), (4, 147.0), (2, 99.0)]);
    assert_eq!(run(Backfill::Greedy), [(2, 201.0), (4, 97.0)], "the second starves");
    assert_eq!(
        run(Backfill::Easy),
        [(3, 148.0), (2, 99.0)],
        "the fourth ends just in time, the third would not"
    );
}

#[test]
fn easy_lets_long_jobs_pass_where_they_are_not_in_the_way() {
    // Two machines of 2. The second job needs a whole one, which is free at 10; the third is long, but fits beside it.
    let jobs = [job(1, 0.0, 100.0, 1), job(2, 0.0, 10.0, 2), job(3, 1.0, 50.0, 2), job(4, 2.0, 500.0, 1)];
    let result = replay(jobs, &Pool::of_gpus(2, 2), &Policy { backfill: Backfill::Easy, ..never() });
    assert_eq!(waits(&result), [(3, 9.0)]);
}

#[test]
fn orders_decide_who_is_first() {
    let jobs = [
        single(1, 0.0, 10.0),
        Job { deadline_s: Some(500.0), ..job(2, 1.0, 30.0, 2) },
        Job { deadline_s: Some(60.0), ..job(3, 2.0, 20.0, 2) },
        Job { deadline_s: None, ..job(4, 3.0, 100.0, 1) },
    ];
    let first = |order| {
        let policy = Policy { order, backfill: Backfill::Never, ..never() };
        let result = replay(jobs.clone(), &Pool::of_gpus(1, 2), &policy);
        let mut starts: Vec<(u64, u64)> =
            result.worst.iter().map(|job| ((job.submit_s + job.wait_s).to_bits(), job.line)).collect();
        starts.sort_unstable();
        starts.into_iter().map(|(_, line)| line).collect::<Vec<_>>()
    };
    assert_eq!(first(Order::Fifo), [2, 3, 4]);
    assert_eq!(first(Order::ShortestFirst), [3, 2, 4]);
    assert_eq!(first(Order::EarliestDeadlineFirst), [3, 2, 4]);
    assert_eq!(first(Order::SmallestFirst), [2, 3], "the smallest is first, and starts at once");
    assert_eq!(first(Order::LeastWorkFirst), [3, 2, 4]);
}

#[test]
fn a_gang_starts_together_or_not_at_all() {
    let pods = |gang| Job { pods: 3, gang, ..job(2, 1.0, 10.0, 1) };
    let run = |gang| replay([job(1, 0.0, 100.0, 1), pods(gang)], &Pool::of_gpus(1, 3), &never());
    let together = run(true);
    assert_eq!(waits(&together), [(2, 99.0)]);
    same(together.used.gpus * together.span_s, 130.0);
    let apart = run(false);
    assert_eq!(waits(&apart), [(2, 10.0)], "the third pod starts where the first ended");
    let spilled = replay([job(1, 0.0, 100.0, 1), pods(true)], &Pool::of_gpus(1, 3), &Policy::default());
    same(spilled.spilled.gpu_hours * 3600.0, 30.0);
    let part = replay([job(1, 0.0, 100.0, 1), pods(false)], &Pool::of_gpus(1, 3), &Policy::default());
    same(part.spilled.gpu_hours * 3600.0, 10.0);
}

#[test]
fn gangs_spread_over_machines_but_pods_do_not() {
    let pool = Pool::of_gpus(2, 4);
    let gang = Job { pods: 4, gang: true, ..job(1, 0.0, 10.0, 2) };
    assert_eq!(replay([gang], &pool, &never()).jobs.rejected, 0);
    let result = replay([job(1, 0.0, 10.0, 5)], &pool, &never());
    assert_eq!((result.jobs.rejected, result.wait.jobs), (1, 0));
    let rented =
        replay([job(1, 0.0, 10.0, 5)], &pool, &Policy { burst: Burst::AllWait, ..Policy::default() });
    assert_eq!((rented.jobs.rejected, rented.jobs.spilled), (0, 1));
}

#[test]
fn deadlines_that_are_missed_are_counted() {
    let due = |line, deadline_s| Job { deadline_s: Some(deadline_s), ..single(line, 100.0, 10.0) };
    let result = replay([due(1, 110.0), due(2, 119.0), due(3, 1000.0)], &Pool::of_gpus(1, 1), &never());
    assert_eq!((result.deadlines.jobs, result.deadlines.missed), (3, 1));
    let never_fits = Job { request: Request::gpus(2), ..due(1, 1000.0) };
    assert_eq!(replay([never_fits], &Pool::of_gpus(1, 1), &never()).deadlines.missed, 1);
}

#[test]
fn caps_hold_jobs_back() {
    let jobs: Vec<Job> = (1..=4).map(|line| single(line, 0.0, 3600.0)).collect();
    let none = Pool::of_gpus(0, 1);
    let pods = replay(jobs.clone(), &none, &Policy { max_burst_pods: Some(2), ..Policy::default() });
    assert_eq!((pods.spilled.peak_pods, pods.jobs.held_by_cap), (2, 2));
    assert_eq!(waits(&pods), [(3, 3600.0), (4, 3600.0)]);
    // A serverless GPU costs 9.6: three are 28.8 an hour.
    let money =
        replay(jobs.clone(), &none, &Policy { max_burst_cost_per_hour: Some(28.8), ..Policy::default() });
    assert_eq!((money.spilled.peak_pods, money.jobs.held_by_cap), (3, 1));
    same(money.cost.serverless, 4.0 * 9.6);
    let mut quota = none.clone();
    quota.serverless.max_gpus = Some(1);
    assert_eq!(replay(jobs.clone(), &quota, &Policy::default()).spilled.peak_pods, 1);
    let broke = replay(jobs, &none, &Policy { max_burst_cost_per_hour: Some(9.0), ..Policy::default() });
    assert_eq!(broke.jobs.rejected, 4, "not even one is affordable, ever");
}

#[test]
fn held_jobs_take_dedicated_machines_that_become_free() {
    let jobs = [single(1, 0.0, 10.0), single(2, 0.0, 100.0), single(3, 0.0, 5.0)];
    let result = replay(jobs, &Pool::of_gpus(1, 1), &Policy { max_burst_pods: Some(1), ..Policy::default() });
    assert_eq!(waits(&result), [(3, 10.0)]);
    assert_eq!(result.jobs.spilled, 1);
}

#[test]
fn who_is_held_behind_a_job_that_starts_has_its_turn() {
    let pods = |pods, job| Job { pods, ..job };
    let pair = Job { gang: true, ..pods(2, job(4, 2.0, 50.0, 1)) };
    let jobs = [
        job(1, 0.0, 10.0, 2),
        pods(2, job(2, 1.0, 100.0, 1)),
        job(3, 1.0, 4.0, 1),
        pair,
        // It fits no machine here, and behind the pair there is no serverless one left for it.
        job(5, 3.0, 1.0, 4),
    ];
    let policy = Policy { max_burst_pods: Some(3), backfill: Backfill::Never, ..Policy::default() };
    let result = replay(jobs, &Pool::of_gpus(1, 2), &policy);
    assert_eq!(waits(&result), [(4, 8.0), (5, 7.0)]);
}

#[test]
fn a_provider_that_fails_is_asked_again() {
    let jobs: Vec<Job> = (1..=200).map(|line| single(line, 0.0, 10.0)).collect();
    let policy = Policy { failure_rate: 0.5, retry_s: 30.0, ..Policy::default() };
    let result = replay(jobs.clone(), &Pool::of_gpus(0, 1), &policy);
    assert_eq!(result.jobs.spilled, 200);
    assert!((150..260).contains(&result.jobs.provider_failures), "{:?}", result.jobs);
    let retries = f64::from(u32::try_from(result.jobs.provider_failures).unwrap());
    same(result.wait.mean_s * 200.0, retries * 30.0);
    let never = replay(jobs, &Pool::of_gpus(0, 1), &Policy { failure_rate: 1.0, ..policy });
    assert_eq!(never.jobs.rejected, 200);
}

#[test]
fn cold_starts_are_waited_for_and_billed_in_steps() {
    let policy = Policy { cold_start_s: 45.0, billing_s: Some(60.0), ..Policy::default() };
    let result = replay([single(1, 0.0, 20.0)], &Pool::of_gpus(0, 1), &policy);
    assert_eq!(waits(&result), [(1, 45.0)]);
    same(result.spilled.gpu_hours * 3600.0, 20.0);
    same(result.spilled.billed_gpu_hours * 3600.0, 120.0);
    same(result.cost.serverless, 120.0 / 3600.0 * 9.6);
    same(result.span_s, 65.0);
}

#[test]
fn patience_ends_after_wait() {
    let jobs = [single(1, 0.0, 100.0), single(2, 0.0, 10.0)];
    let wait = |wait_s| Policy { burst: Burst::Wait, wait_s, ..Policy::default() };
    let spilled = replay(jobs.clone(), &Pool::of_gpus(1, 1), &wait(99.0));
    assert_eq!((waits(&spilled), spilled.jobs.spilled), (vec![(2, 99.0)], 1));
    let waited = replay(jobs.clone(), &Pool::of_gpus(1, 1), &wait(100.0));
    assert_eq!((waits(&waited), waited.jobs.spilled), (vec![(2, 100.0)], 0));
    let only = replay(jobs, &Pool::of_gpus(1, 1), &Policy { burst: Burst::Only, ..Policy::default() });
    assert_eq!(only.jobs.spilled, 2);
}

#[test]
fn namespaces_burst_each_their_own_way() {
    // One GPU, busy until 100. Those of a may not burst, those of b always do, the rest after 50 s.
    let of = |owner: &str, line, submit_s| Job { owner: owner.into(), ..single(line, submit_s, 10.0) };
    let jobs = [single(1, 0.0, 100.0), of("a", 2, 1.0), of("b", 3, 1.0), of("c", 4, 1.0), of("b", 5, 500.0)];
    let own =
        |namespace: &str, burst| NamespaceBurst { namespace: namespace.to_owned(), burst, wait_s: None };
    let policy = Policy {
        burst: Burst::Wait,
        wait_s: 50.0,
        burst_by_namespace: vec![own("a", Burst::Never), own("b", Burst::Only)],
        ..Policy::default()
    };
    let result = replay(jobs.clone(), &Pool::of_gpus(1, 1), &policy);
    assert_eq!((waits(&result), result.jobs.spilled), (vec![(2, 99.0), (4, 50.0)], 3));
    // Each namespace may wait for a time of its own.
    let wait = |namespace, wait_s| NamespaceBurst { wait_s: Some(wait_s), ..own(namespace, Burst::Wait) };
    let times = Policy { burst_by_namespace: vec![wait("a", 20.0), wait("b", 70.0)], ..policy.clone() };
    let result = replay(jobs.clone(), &Pool::of_gpus(1, 1), &times);
    assert_eq!(waits(&result), [(3, 70.0), (4, 50.0), (2, 20.0)]);
    // Those of b see that they would start at 100, those of a are before them in the queue, and c bursts at once.
    let foresees = Policy {
        burst: Burst::AtOnce,
        wait_s: 105.0,
        burst_by_namespace: vec![own("a", Burst::AllWait), own("b", Burst::ShortWait)],
        ..Policy::default()
    };
    let result = replay(jobs, &Pool::of_gpus(1, 1), &foresees);
    assert_eq!(
        (waits(&result), result.jobs.spilled),
        (vec![(2, 99.0)], 2),
        "109 s are too long for the third"
    );
}

#[test]
fn higher_priority_takes_what_lower_has() {
    let urgent = |line, submit_s, duration_s| Job { priority: 5, ..single(line, submit_s, duration_s) };
    let jobs = [single(1, 0.0, 100.0), single(2, 10.0, 100.0), urgent(3, 40.0, 10.0)];
    let run = |preemption| replay(jobs.clone(), &Pool::of_gpus(2, 1), &Policy { preemption, ..never() });
    let off = run(Preemption::Off);
    assert_eq!((waits(&off), off.jobs.preemptions), (vec![(3, 60.0)], 0));
    // The second began last, and waits for the third; its 30 s of work are lost, or not.
    let restart = run(Preemption::Restart);
    assert_eq!((waits(&restart), restart.jobs.preemptions), (vec![(2, 40.0)], 1));
    same(restart.used.lost_gpu_hours * 3600.0, 30.0);
    same(restart.span_s, 150.0);
    let resume = run(Preemption::Resume);
    assert_eq!(waits(&resume), [(2, 10.0)]);
    same(resume.used.lost_gpu_hours, 0.0);
    same(resume.span_s, 120.0);
    let spills =
        replay(jobs, &Pool::of_gpus(2, 1), &Policy { preemption: Preemption::Restart, ..Policy::default() });
    assert_eq!((spills.jobs.spilled, waits(&spills)), (1, vec![(2, 30.0)]), "what is preempted may spill");
}

#[test]
fn no_more_is_preempted_than_is_needed() {
    let low = |line, gpus, priority| Job { priority, ..job(line, 0.0, 100.0, gpus) };
    let jobs = [low(1, 2, 1), low(2, 1, 0), low(3, 1, 1), Job { priority: 9, ..job(4, 10.0, 10.0, 2) }];
    let policy = Policy { preemption: Preemption::Restart, packing: Packing::FirstFit, ..never() };
    // The first may stay: it has the same priority as the third, and came before.
    let result = replay(jobs, &Pool::of_gpus(1, 4), &policy);
    assert_eq!(result.jobs.preemptions, 2);
    assert_eq!(waits(&result), [(2, 20.0), (3, 20.0)]);
}

#[test]
fn what_is_warm_up_does_not_count() {
    let jobs = [single(1, 0.0, 100.0), single(2, 0.0, 100.0), single(3, 500.0, 100.0)];
    let options = Options { warm_up_s: 400.0, ..Options::default() };
    let jobs = jobs.into_iter().map(Ok::<_, std::convert::Infallible>);
    let Ok(result) = super::run_with(jobs, &Pool::of_gpus(1, 1), &never(), &rates(), &options);
    assert_eq!((result.jobs.submitted, result.wait.max_s.to_bits()), (1, 0.0_f64.to_bits()));
    same(result.span_s, 200.0);
    same(result.used.share, 0.5);
}

#[test]
fn models_cpu_and_memory_are_looked_at() {
    let text = "machines: [{gpus: 8, model: A100, cpu: 8, memory: 64Gi}, {gpus: 8, model: T4, cpu: 8, memory: 64Gi}]";
    let pool = Pool::parse(text.as_bytes()).unwrap();
    let ask = |models: &[&str], cpu_milli, memory_mib| Job {
        request: Request {
            cpu_milli,
            memory_mib,
            models: models.iter().map(|model| std::sync::Arc::from(*model)).collect(),
            ..Request::gpus(1)
        },
        ..single(1, 0.0, 10.0)
    };
    let waiting = |job: &Job| replay([job.clone(), job.clone(), job.clone()], &pool, &never()).waited.jobs;
    assert_eq!(waiting(&ask(&[], 8000, 1)), 1, "8 cores on each of two machines");
    assert_eq!(waiting(&ask(&["A100"], 8000, 1)), 2);
    assert_eq!(waiting(&ask(&["A100", "T4"], 1, 65_536)), 1);
    assert_eq!(replay([ask(&["H100"], 1, 1)], &pool, &never()).jobs.rejected, 1);
    let any = replay([ask(&["H100"], 1, 1)], &Pool::of_gpus(1, 8), &never());
    assert_eq!(any.jobs.rejected, 0, "machines without a model are of any");
}

#[test]
fn free_gpus_that_no_usual_job_can_use_are_fragments() {
    // Half of each of two GPUs is taken; jobs want a whole one.
    let half =
        |line| Job { request: Request { gpu_milli: 500, ..Request::gpus(1) }, ..single(line, 0.0, 1000.0) };
    let mut jobs: Vec<Job> = (1..=2).map(half).collect();
    jobs.extend((3..=60).map(|line| job(line, 1.0, 10.0, 2)));
    let policy = Policy { packing: Packing::FirstFit, burst: Burst::AtOnce, ..Policy::default() };
    let result = replay(jobs, &Pool::of_gpus(1, 2), &policy);
    // Both halves are on one GPU with first fit: a whole one is free, which jobs of two can't use.
    let last = result.over_time.last().unwrap();
    assert!(
        result.used.fragmented_gpus > 0.8 && result.used.fragmented_gpus <= 1.0,
        "{last:?} {:?}",
        result.used
    );
}

#[test]
fn fragments_are_known_from_the_first_jobs_on() {
    // Two machines of 4 have 1 GPU left each, which is of no use to jobs of 3; nor are the 2 beside the last job.
    let jobs = [job(1, 0.0, 1000.0, 3), job(2, 0.0, 1000.0, 3), job(3, 10.0, 10.0, 2)];
    let result = replay(jobs, &Pool::of_gpus(2, 4), &never());
    assert_eq!(waits(&result), [(3, 990.0)]);
    let at = |at_s: f64| result.over_time.iter().rfind(|point| point.at_s <= at_s).unwrap().fragmented_gpus;
    same(at(500.0), 2.0);
    same(at(1005.0), 2.0);
    same(result.used.fragmented_gpus, 2.0);
}

#[test]
fn hostile_traces_are_no_panic() {
    let huge = Job { pods: u32::MAX, ..job(1, 0.0, 1e300, u32::MAX) };
    let odd =
        Request { gpus: 3, gpu_milli: 1, cpu_milli: u64::MAX, memory_mib: u64::MAX, ..Request::gpus(1) };
    let jobs = [
        huge,
        Job { request: odd, ..single(2, -1e300, 0.0) },
        Job { pods: 0, ..single(3, 1e300, 1e300) },
        Job { request: Request { gpu_milli: u32::MAX, ..Request::gpus(1) }, ..single(4, 0.0, 1.0) },
        Job { priority: i32::MIN, deadline_s: Some(-1e300), ..single(5, 0.0, f64::MAX) },
        Job { pods: u32::MAX, ..single(6, 0.0, 1.0) },
        Job { pods: u32::MAX, gang: true, ..single(7, 0.0, 1.0) },
    ];
    for burst in [Burst::AtOnce, Burst::Wait, Burst::ShortWait, Burst::AllWait, Burst::Only] {
        for preemption in [Preemption::Off, Preemption::Resume] {
            let policy = Policy { burst, preemption, ..Policy::default() };
            assert_eq!(replay(jobs.clone(), &Pool::of_gpus(2, 2), &policy).jobs.submitted, 7);
        }
    }
}
