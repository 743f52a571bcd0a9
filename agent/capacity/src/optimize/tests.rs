#![expect(clippy::float_cmp, reason = "sums of whole numbers are exact")]

use proptest::prelude::*;

use super::{Error, Holes, Optimization, Question, Shape, optimize};
use crate::{demand, job::Demand};

fn series(levels: impl IntoIterator<Item = f64>) -> demand::Series {
    let samples = levels.into_iter().enumerate();
    demand::Series::collect::<demand::Error>(
        samples.map(|(index, gpus)| Ok(Demand { line: index as u64 + 2, at_s: 60.0 * index as f64, gpus })),
    )
    .unwrap()
}

fn question(r: f64) -> Question {
    Question { serverless_per_gpu_hour: r, resamples: 50, ..Question::default() }
}

fn machines_of(gpus: u32) -> Vec<Shape> {
    vec![Shape { gpus, ..Shape::default() }]
}

/// What owning so many costs, from the samples themselves.
fn brute(levels: &[f64], owned: u32, c_d: f64, c_s: f64) -> f64 {
    let beyond: f64 = levels.iter().map(|level| (level - f64::from(owned)).max(0.0)).sum();
    c_d * f64::from(owned) + c_s * beyond / levels.len() as f64
}

#[test]
fn a_gpu_is_bought_while_it_is_busy_for_more_than_one_rth_of_the_time() {
    // Demand is 1, 2, … 10 for a tenth of the time each.
    let found = optimize(series((0..1000).map(|minute| f64::from(minute % 10 + 1))), &question(4.0)).unwrap();
    assert_eq!(found.advice.gpus, 8, "P(D > 7) = 0.3 and P(D > 8) = 0.2 on both sides of 1/4");
    assert!((found.advice.per_hour - (8.0 + 4.0 * 0.3)).abs() < 1e-9);
    assert_eq!(
        (found.break_even.advice.from, found.break_even.advice.to),
        (Some(1.0 / 0.3), Some(1.0 / 0.2))
    );
    assert_eq!(found.break_even.rent_everything_up_to, Some(1.0));
    assert_eq!(found.all_owned.gpus, 10);
}

#[test]
fn nothing_is_owned_where_renting_costs_no_more() {
    let found = optimize(series((0..100).map(|minute| f64::from(minute % 7 + 3))), &question(1.0)).unwrap();
    assert_eq!((found.advice.gpus, found.interval.to_gpus), (0, 0));
    assert!(found.warnings.iter().any(|warning| warning.contains("own nothing")), "{:?}", found.warnings);
}

#[test]
fn effective_prices_are_those_of_working_gpus() {
    let priced = Question {
        dedicated_per_gpu_hour: 2.0,
        availability: 0.8,
        cold_start_s: 60.0,
        burst_s: Some(600.0),
        ..question(5.0)
    };
    let found = optimize(series([1.0, 2.0, 3.0, 4.0]), &priced).unwrap();
    assert!((found.prices.effective_dedicated_per_gpu_hour - 2.5).abs() < 1e-12);
    assert!((found.prices.effective_serverless_per_gpu_hour - 5.5).abs() < 1e-12);
    assert!((found.prices.ratio.unwrap() - 2.2).abs() < 1e-12);
}

#[test]
fn what_can_not_be_answered_is_told() {
    let told = |question: Question| optimize(series([1.0, 2.0]), &question).unwrap_err();
    assert!(matches!(told(question(f64::NAN)), Error::Price { what: "serverless", .. }));
    assert!(matches!(told(question(-1.0)), Error::Price { .. }));
    assert_eq!(told(Question { dedicated_per_gpu_hour: 0.0, ..question(0.0) }), Error::Free);
    assert_eq!(told(Question { availability: 0.0, ..question(2.0) }), Error::Availability(0.0));
    assert_eq!(told(Question { shapes: machines_of(0), ..question(2.0) }), Error::Machine(0));
    assert!(matches!(told(Question { block_s: 0.0, ..question(2.0) }), Error::Time { .. }));
}

#[test]
fn traces_that_say_little_are_answered() {
    for levels in [vec![0.0], vec![0.0; 9], vec![5.0], vec![0.25, 0.5]] {
        let found = optimize(series(levels.clone()), &question(3.0)).unwrap();
        assert!(found.advice.per_hour.is_finite(), "{levels:?}");
        assert!(!found.summary().is_empty() && !found.tables(true).is_empty());
        let free =
            optimize(series(levels), &Question { dedicated_per_gpu_hour: 0.0, ..question(3.0) }).unwrap();
        assert_eq!(free.advice.per_hour, 0.0);
    }
}

#[test]
fn demand_that_grows_is_told_and_so_is_a_ceiling() {
    let noise = |minute: i32| f64::from(minute * 7919 % 13);
    let days = |level: fn(i32) -> f64| {
        optimize(series((0..28_800).map(move |minute| level(minute) + noise(minute))), &question(3.0))
            .unwrap()
    };
    let steady = days(|_| 200.0);
    assert!(!steady.drift.drifts, "{:?}", steady.drift);
    let grown = days(|minute| 100.0 + f64::from(minute / 100));
    assert!(grown.drift.drifts && grown.warnings.iter().any(|warning| warning.contains("drifts")));
    let capped =
        optimize(series((0..28_800).map(|minute| f64::from(minute * 7919 % 300).min(200.0))), &question(3.0))
            .unwrap();
    assert!(capped.warnings.iter().any(|warning| warning.contains("sticks at 200")), "{:?}", capped.warnings);
}

fn checked(levels: &[f64], question: &Question) -> Optimization {
    let found = optimize(series(levels.iter().copied()), question).unwrap();
    assert!(found.advice.per_hour >= found.clairvoyant_per_hour * (1.0 - 1e-9));
    assert!(found.flat.from_gpus <= found.advice.gpus && found.advice.gpus <= found.flat.to_gpus);
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_number_of_machines_costs_less(
        levels in prop::collection::vec(prop_oneof![(0_u32..60).prop_map(f64::from), 0.0_f64..60.0], 1..200),
        g in 1_u32..9,
        c_d in 0.1_f64..5.0,
        r in 0.5_f64..6.0,
    ) {
        let asked = Question { dedicated_per_gpu_hour: c_d, shapes: machines_of(g), holes: Holes::Keep, ..question(c_d * r) };
        let found = checked(&levels, &asked);
        let least = (0..=60_u32.div_ceil(g)).map(|m| brute(&levels, m * g, c_d, c_d * r)).fold(f64::INFINITY, f64::min);
        prop_assert!((found.advice.per_hour - least).abs() < 1e-9 * least.max(1.0), "{} against {least}", found.advice.per_hour);
        prop_assert!((brute(&levels, found.advice.gpus, c_d, c_d * r) - least).abs() < 1e-9 * least.max(1.0));
        prop_assert_eq!(found.advice.gpus % g, 0);
        // Ten times the prices is ten times the cost of the same.
        let tenfold = Question { dedicated_per_gpu_hour: c_d * 10.0, serverless_per_gpu_hour: c_d * r * 10.0, ..asked };
        let scaled = checked(&levels, &tenfold);
        prop_assert_eq!(scaled.advice.gpus, found.advice.gpus);
        prop_assert!((scaled.advice.per_hour / 10.0 - found.advice.per_hour).abs() < 1e-9 * least.max(1.0));
        prop_assert_eq!((scaled.interval.from_gpus, scaled.interval.to_gpus), (found.interval.from_gpus, found.interval.to_gpus));
    }

    #[test]
    fn no_mix_of_two_shapes_costs_less(
        levels in prop::collection::vec((0_u32..40).prop_map(f64::from), 1..100),
        (g, other) in (1_u32..9, 1_u32..9),
        (c_d, c_other) in (0.5_f64..2.0, 0.5_f64..2.0),
        r in 1.1_f64..6.0,
    ) {
        let shapes = vec![
            Shape { gpus: g, per_gpu_hour: Some(c_d), ..Shape::default() },
            Shape { gpus: other, per_gpu_hour: Some(c_other), ..Shape::default() },
        ];
        let found = optimize(series(levels.iter().copied()), &Question { shapes, holes: Holes::Keep, ..question(r) }).unwrap();
        let mut least = f64::INFINITY;
        for m in 0..=40 / g + 1 {
            for k in 0..=40 / other + 1 {
                let owned = c_d * f64::from(m * g) + c_other * f64::from(k * other);
                least = least.min(owned + brute(&levels, m * g + k * other, 0.0, r));
            }
        }
        prop_assert!((found.advice.per_hour - least).abs() < 1e-9 * least.max(1.0), "{} against {least}", found.advice.per_hour);
        let bought: u32 = found.machines.iter().map(|kind| kind.count * kind.gpus_each).sum();
        prop_assert_eq!(bought, found.advice.gpus);
    }
}
