//! Pages of real results: every number drawn is one, and every row has its columns. With `SPILLWAY_PAGES=FOLDER` they are left there to be looked at.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    model::{Drawing, Page},
    optimize, render, simulate,
};
use crate::{
    demand,
    job::{Demand, Job, Request},
    optimize::{Question, Shape},
    policy::{Burst, Policy},
    pool::Pool,
    price::{Currency, Rates},
    simulate::{Options, Simulation, run_with},
};

mod usage;
mod what_if;

fn at() -> Timestamp {
    "2026-11-22T08:00:00Z".parse().unwrap()
}

/// Whether there is anything but numbers where numbers belong: JSON has null for what is none.
fn whole(value: &Value, inside: &str) {
    match value {
        Value::Null => assert!(["points", "cells"].contains(&inside), "no number in {inside}"),
        Value::Array(values) => values.iter().for_each(|value| whole(value, inside)),
        Value::Object(fields) => {
            fields.iter().filter(|(_, value)| !value.is_null()).for_each(|(name, value)| whole(value, name));
        }
        _ => {}
    }
}

fn checked(name: &str, page: &Page) -> String {
    for section in &page.sections {
        if let Some(plot) = &section.plot {
            whole(&serde_json::to_value(plot).unwrap(), "");
            assert!(!section.table.rows.is_empty(), "{}: a plot without its numbers", section.heading);
        }
        for row in &section.table.rows {
            assert_eq!(row.len(), section.table.columns.len(), "{}", section.heading);
            assert!(row.iter().all(|cell| !cell.contains("NaN") && !cell.contains("inf")), "{row:?}");
        }
    }
    let html = render::file(page);
    if let Some(folder) = std::env::var_os("SPILLWAY_PAGES") {
        std::fs::write(std::path::Path::new(&folder).join(name).with_extension("html"), &html).unwrap();
    }
    html
}

#[test]
fn an_optimisation() {
    let month = (0..28 * 144_u32).map(|sample| {
        let at_s = 1_588_291_200.0 + 600.0 * f64::from(sample);
        let day = (f64::from(sample) / 144.0 * std::f64::consts::TAU).sin();
        let gpus = if (1300..1450).contains(&sample) {
            0.0
        } else {
            (600.0 + 120.0 * day + f64::from(sample) / 40.0 + f64::from(sample * 7919 % 61)).round()
        };
        Ok(Demand { line: u64::from(sample) + 2, at_s, gpus })
    });
    let series = demand::Series::collect::<demand::Error>(month).unwrap();
    let question = Question {
        currency: "USD".to_owned(),
        dedicated_per_gpu_hour: 1.2,
        serverless_per_gpu_hour: 3.6,
        shapes: vec![Shape { gpus: 8, ..Shape::default() }],
        owned_gpus: Some(856),
        resamples: 200,
        ..Question::default()
    };
    let found = crate::optimize::optimize(series, &question).unwrap();
    let page = optimize::page(&found, "demand.csv", at());
    let html = checked("optimize", &page);
    assert!(page.title.starts_with("Own ") && html.contains("looks like missing data"), "{}", page.title);
    assert_eq!(page.sections.iter().filter(|section| section.plot.is_some()).count(), 4);
    // The band is around the cost, from the first number of GPUs to the last.
    let Some(Drawing::Curve(curve)) = page.sections[0].plot.as_ref().map(|plot| &plot.drawing) else {
        panic!("no cost curve");
    };
    let (all, band) = (&curve.series[0].points, &curve.series[0].band);
    assert!(band.len() > 50 && band.iter().all(|&(_, low, high)| low <= high));
    assert_eq!(
        (band[0].0, band[band.len() - 1].0),
        (0.0, all[all.len() - 1].0),
        "today is more than ever needed"
    );
    let is_advised = |gpus: f64| (gpus - f64::from(found.advice.gpus)).abs() < 0.5;
    let advised = all.iter().find(|point| is_advised(point.0)).unwrap().1.unwrap();
    let around = band.iter().find(|point| is_advised(point.0)).unwrap();
    assert!(around.1 < advised && advised < around.2, "{around:?} around {advised}");
    assert_eq!((around.1, around.2), (found.interval.from_per_hour, found.interval.to_per_hour));
    let flat = curve.flat.as_ref().unwrap();
    assert!(flat.from < f64::from(found.advice.gpus) && f64::from(found.advice.gpus) < flat.to);
}

#[test]
fn an_optimisation_of_next_to_nothing() {
    for levels in [vec![0.0], vec![0.0; 9], vec![5.0], vec![0.25, 0.5]] {
        let samples = levels
            .iter()
            .zip(2_u32..)
            .map(|(&gpus, line)| Ok(Demand { line: u64::from(line), at_s: 60.0 * f64::from(line), gpus }));
        let series = demand::Series::collect::<demand::Error>(samples).unwrap();
        for serverless_per_gpu_hour in [0.0, 1.0, 3.0] {
            let question = Question { serverless_per_gpu_hour, resamples: 20, ..Question::default() };
            let found = crate::optimize::optimize(series.clone(), &question).unwrap();
            checked("optimize-nothing", &optimize::page(&found, "demand.csv", at()));
        }
    }
}

fn replayed(jobs: u32, gpus: u32, burst: Burst) -> Simulation {
    let jobs = (0..jobs).map(|job| {
        let day = (f64::from(job) / 200.0).sin();
        Ok::<_, std::convert::Infallible>(Job {
            line: u64::from(job) + 2,
            submit_s: f64::from(job) * 400.0,
            duration_s: 3600.0 * (1.5 + day) * f64::from(job % 5 + 1),
            pods: 1,
            gang: false,
            request: Request::gpus([1, 1, 2, 4, 8][job as usize % 5]),
            priority: 0,
            deadline_s: (job % 50 == 0).then(|| f64::from(job) * 400.0 + 20_000.0),
            owner: ["vision", "nlp", "</script><img src=x onerror=alert(1)>"][job as usize % 3].into(),
        })
    });
    let policy = Policy { burst, wait_s: 1800.0, ..Policy::default() };
    let rates = Rates::new(Currency::USD, 2.0, 6.0).unwrap();
    let options = Options { seed: 7, each: true, ..Options::default() };
    let Ok(found) = run_with(jobs, &Pool::of_gpus(gpus / 8, 8), &policy, &rates, &options);
    found
}

#[test]
fn a_simulation() {
    let page = simulate::page(
        &replayed(2400, 112, Burst::Wait),
        "jobs.csv",
        &["3 rows were left out".to_owned()],
        at(),
    );
    let html = checked("simulate", &page);
    assert_eq!(page.sections.iter().filter(|section| section.plot.is_some()).count(), 4);
    assert!(html.contains("&lt;/script&gt;&lt;img") && html.contains("are free, but of no use"));
    assert!(html.contains("3 rows were left out"));
}

#[test]
fn a_simulation_of_next_to_nothing() {
    for (jobs, gpus) in [(0, 8), (1, 8), (1, 0), (3, 0)] {
        for burst in [Burst::Never, Burst::AtOnce] {
            checked("simulate-nothing", &simulate::page(&replayed(jobs, gpus, burst), "jobs.csv", &[], at()));
        }
    }
}
