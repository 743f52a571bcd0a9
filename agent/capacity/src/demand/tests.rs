#![expect(clippy::float_cmp, reason = "sums of whole numbers are exact")]

use proptest::prelude::*;

use super::{Error, Series, Span, offered};
use crate::job::{Demand, Job, Request};

fn series(samples: impl IntoIterator<Item = (f64, f64)>) -> Series {
    let samples = samples.into_iter().enumerate();
    Series::collect::<Error>(
        samples.map(|(index, (at_s, gpus))| Ok(Demand { line: index as u64 + 2, at_s, gpus })),
    )
    .unwrap()
}

fn every_minute(levels: impl IntoIterator<Item = f64>) -> Series {
    series(levels.into_iter().enumerate().map(|(minute, gpus)| (60.0 * minute as f64, gpus)))
}

#[test]
fn each_sample_stands_for_the_time_until_the_next() {
    let curve = series([(0.0, 4.0), (10.0, 0.0), (70.0, 2.0), (100.0, 0.0)]).curve();
    assert_eq!(curve.observed_s(), 100.0);
    assert_eq!(curve.mean_gpus(), (40.0 + 60.0) / 100.0);
    assert_eq!(curve.busy_share(1), 0.4);
    assert_eq!(curve.busy_share(2), 0.1);
    assert_eq!((curve.quantile_gpus(0.6), curve.quantile_gpus(0.61), curve.max_gpus()), (0, 2, 4));
}

#[test]
fn fractions_of_gpus_are_exact_where_whole_ones_are_owned() {
    let curve = every_minute([0.5, 1.25, 3.75, 3.0]).curve();
    let brute =
        |owned: f64| [0.5, 1.25, 3.75, 3.0].map(|gpus| f64::max(gpus - owned, 0.0)).iter().sum::<f64>() / 4.0;
    for owned in 0..6 {
        assert!((curve.beyond_gpus(owned) - brute(f64::from(owned))).abs() < 1e-12, "{owned}");
    }
    assert_eq!(curve.max_gpus(), 4);
}

#[test]
fn missing_time_stamps_are_a_gap_and_count_for_nothing() {
    let minutes = (0..100).filter(|minute| !(40..50).contains(minute));
    let found = series(minutes.map(|minute| (60.0 * f64::from(minute), 8.0)));
    let gap = Span { from_s: 2400.0, to_s: 3000.0 };
    assert_eq!((found.gaps().count, found.gaps().total_s, found.gaps().longest), (1, 600.0, Some(gap)));
    assert_eq!(found.curve().observed_s(), 5400.0);
    let irregular = [(0.0, 1.0), (5.0, 2.0), (6.0, 3.0), (5000.0, 4.0), (5001.0, 0.0)];
    assert_eq!(series(irregular).gaps().count, 0, "who writes down changes leaves no gaps");
}

#[test]
fn coarser_steps_are_no_gaps() {
    let fine = (0..5000).map(|minute| (60.0 * f64::from(minute), 8.0));
    let coarse = (0..100).map(|step| (300_000.0 + 600.0 * f64::from(step), 8.0));
    let found = series(fine.chain(coarse));
    assert!(found.gaps().count < 3, "{:?}", found.gaps());
}

#[test]
fn demand_that_falls_to_nothing_at_once_is_a_hole() {
    let levels = |minute: i32| if (500..560).contains(&minute) { 0.0 } else { f64::from(100 + minute % 7) };
    let found = every_minute((0..1000).map(levels));
    assert_eq!(found.holes(), [Span { from_s: 30_000.0, to_s: 33_600.0 }]);
    let without = found.clone().without_holes();
    assert_eq!(found.curve().observed_s() - without.curve().observed_s(), 3600.0);
    assert_eq!(without.curve().share_between(0, 1), 0.0);
    assert!(without.over_time().iter().all(|point| point.observed_s == 0.0 || point.min_gpus >= 100.0));
    let evenings = every_minute((0..1000).map(|minute| f64::from((minute % 10) * 10)));
    assert_eq!(evenings.holes(), [], "demand that is often nothing is no hole");
}

#[test]
fn what_no_demand_can_be_is_told_with_its_line() {
    let told = |samples: &[(f64, f64)]| {
        let rows = samples.iter().enumerate();
        Series::collect::<Error>(
            rows.map(|(row, &(at_s, gpus))| Ok(Demand { line: row as u64 + 2, at_s, gpus })),
        )
        .unwrap_err()
        .to_string()
    };
    assert!(told(&[]).contains("no demand"));
    assert!(told(&[(0.0, 1.0), (1.0, f64::NAN)]).starts_with("line 3: NaN GPUs"));
    assert!(told(&[(0.0, -1.0)]).starts_with("line 2: -1 GPUs"));
    assert!(told(&[(0.0, 1e9)]).starts_with("line 2: 1000000000 GPUs"));
    assert!(told(&[(f64::INFINITY, 1.0)]).contains("no time"));
    assert!(told(&[(5.0, 1.0), (0.0, 1.0)]).starts_with("line 3: its time is 5 s before"));
}

#[test]
fn jobs_demand_what_they_would_run_on_if_there_were_room() {
    let job = |line, submit_s, duration_s, gpus| Job {
        line,
        submit_s,
        duration_s,
        pods: 2,
        gang: true,
        request: Request::gpus(gpus),
        deadline_s: None,
        priority: 0,
        owner: "".into(),
    };
    let jobs = [job(2, 0.0, 10.0, 1), job(3, 5.0, 5.0, 2), job(4, 5.0, 0.0, 9), job(5, 20.0, 1.0, 1)];
    let demand: Vec<(f64, f64)> = offered(jobs.into_iter().map(Ok::<_, Error>))
        .map(Result::unwrap)
        .map(|sample| (sample.at_s, sample.gpus))
        .collect();
    assert_eq!(demand, [(0.0, 2.0), (5.0, 6.0), (10.0, 0.0), (20.0, 2.0), (21.0, 0.0)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn blocks_lose_nothing(steps in prop::collection::vec((0.001_f64..1e5, 0.0_f64..50.0), 1..300)) {
        let mut at_s = 0.0;
        let mut samples = Vec::new();
        let (mut gpu_s, mut observed_s) = (0.0, 0.0);
        for (lasted_s, gpus) in steps {
            samples.push((at_s, gpus));
            at_s += lasted_s;
            gpu_s += gpus * lasted_s;
            observed_s += lasted_s;
        }
        samples.push((at_s, 0.0));
        let found = series(samples.clone());
        prop_assume!(found.step_s().is_none());
        let curve = found.curve();
        prop_assert!(found.blocks() <= 2001);
        prop_assert!((curve.observed_s() - observed_s).abs() < 1e-6 * observed_s);
        prop_assert!((curve.mean_gpus() * curve.observed_s() - gpu_s).abs() < 1e-6 * gpu_s.max(1.0));
        let sizes = [0, 3, 10, 49, 60];
        let mut sums = [0.0; 5];
        for index in 0..found.blocks() {
            let mut beyond = [0.0; 5];
            found.beyond_gpu_s(index, &sizes, &mut beyond);
            sums.iter_mut().zip(beyond).for_each(|(sum, beyond)| *sum += beyond);
        }
        for (size, sum) in sizes.into_iter().zip(sums) {
            prop_assert!((sum - curve.beyond_gpu_s(size)).abs() < 1e-6 * gpu_s.max(1.0), "{size}");
        }
    }
}

#[test]
fn a_long_hole_is_told_from_the_short_pauses_of_a_pool_that_is_often_idle() {
    // Every few hours nobody wants anything for a minute; once the data is missing for five hours.
    let level = |minute: usize| match minute {
        3000..3300 => 0.0,
        _ if minute.is_multiple_of(700) => 0.0,
        _ => 40.0 + (minute % 13) as f64,
    };
    let series = every_minute((0..10_000).map(level));
    assert_eq!(series.holes(), [Span { from_s: 180_000.0, to_s: 198_000.0 }]);
}
