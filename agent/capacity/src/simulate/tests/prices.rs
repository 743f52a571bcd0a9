//! Serverless prices that differ by model.

use std::{convert::Infallible, sync::Arc};

use super::{brute::single, rates};
use crate::{
    job::{Job, Request},
    policy::Policy,
    pool::Pool,
    price::{ModelPrice, Rates},
    simulate::{Options, Simulation, run_with},
};

fn job(line: u64, models: &[&str]) -> Job {
    let models = models.iter().map(|model| Arc::from(*model)).collect();
    Job { request: Request { models, ..Request::gpus(1) }, ..single(line, 0.0, 3600.0) }
}

fn by_model(of_others: bool) -> Rates {
    let price = |model: &str, per_gpu_hour| ModelPrice {
        model: model.to_owned(),
        per_gpu_hour,
        billed_s: 0.0,
        from: "test".to_owned(),
    };
    let prices = vec![price("A100", 5.0), price("H100", 10.0)];
    Rates {
        serverless_per_gpu_hour: if of_others { 7.0 } else { 5.0 },
        serverless_by_model: prices,
        serverless_of_others: of_others,
        ..rates()
    }
}

fn rented(rates: &Rates, policy: &Policy, pool: &Pool) -> Simulation {
    let wanted: [&[&str]; 5] = [&["A100"], &["H100"], &["A100", "H100"], &[], &["V100"]];
    let jobs = (1..).zip(wanted).map(|(line, models)| Ok::<_, Infallible>(job(line, models)));
    let Ok(found) = run_with(jobs, pool, policy, rates, &Options::default());
    found
}

#[test]
fn each_job_pays_for_the_cheapest_model_that_will_do() {
    let none = Pool::of_gpus(0, 1);
    let found = rented(&by_model(false), &Policy::default(), &none);
    assert!((found.cost.serverless - (5.0 + 10.0 + 5.0 + 5.0)).abs() < 1e-9);
    assert_eq!(found.jobs.rejected, 1, "nobody knows what a V100 costs");
    assert!(found.warnings[0].contains("V100"), "{:?}", found.warnings);
    let hours: Vec<f64> = found.cost.rented_by_model.iter().map(|of| of.billed_gpu_hours).collect();
    assert_eq!(hours, [3.0, 1.0]);
    let found = rented(&by_model(true), &Policy::default(), &none);
    assert!((found.cost.serverless - (5.0 + 10.0 + 5.0 + 5.0 + 7.0)).abs() < 1e-9);
    assert_eq!(found.jobs.rejected, 0);
    assert_eq!(found.cost.rented_by_model.len(), 3);
}

#[test]
fn the_cap_on_money_counts_each_at_its_price() {
    let none = Pool::of_gpus(0, 1);
    let cap = |most| Policy { max_burst_cost_per_hour: Some(most), ..Policy::default() };
    let found = rented(&by_model(false), &cap(15.0), &none);
    assert_eq!((found.spilled.peak_pods, found.jobs.held_by_cap), (2, 2), "an A100 and an H100");
    let found = rented(&by_model(false), &cap(9.0), &none);
    assert_eq!((found.spilled.peak_pods, found.jobs.rejected), (1, 2), "an H100 is never affordable");
    assert!((found.cost.serverless - 15.0).abs() < 1e-9);
}

#[test]
fn models_that_the_provider_lacks_are_not_rented_at_their_price() {
    let mut pool = Pool::of_gpus(0, 1);
    pool.serverless.models = vec![Arc::from("H100")];
    let found = rented(&by_model(false), &Policy::default(), &pool);
    // All but the first and the last take an H100.
    assert!((found.cost.serverless - 30.0).abs() < 1e-9);
    assert_eq!(found.jobs.rejected, 2);
}

#[test]
fn one_price_for_different_models_is_told() {
    let found = rented(&rates(), &Policy::default(), &Pool::of_gpus(0, 1));
    assert!(found.warnings[0].contains("one price, 9.6"), "{:?}", found.warnings);
}
