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
    optimize::{Flat, FlatWaits, Later, Objective, Question, Search, Shape, Trial},
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

/// What was tried on machines of eight: who waits for ever, and who bursts after ten minutes.
fn tried() -> Vec<Trial> {
    let trial = |machines: u32, burst, per_hour, wait_p95_s| Trial {
        machines,
        gpus: machines * 8,
        kinds: Vec::new(),
        burst,
        wait_s: if burst == Burst::Wait { 600.0 } else { 0.0 },
        per_hour,
        owned_per_hour: f64::from(machines) * 8.0,
        wait_mean_s: wait_p95_s / 4.0,
        wait_p95_s,
        rented_share: 0.125,
        utilisation: 0.7,
        not_run_share: 0.0,
        outcomes: Vec::new(),
    };
    vec![
        trial(2, Burst::AllWait, 16.0, 90_000.0),
        trial(4, Burst::AllWait, 32.0, 1200.0),
        trial(2, Burst::Wait, 40.0, 600.0),
        trial(3, Burst::Wait, 30.0, 540.0),
        trial(4, Burst::Wait, 35.0, 300.0),
    ]
}

#[test]
fn a_search_by_replaying_jobs() {
    let samples = (2..40_u32).map(|line| {
        Ok(Demand { line: u64::from(line), at_s: 3600.0 * f64::from(line), gpus: f64::from(line % 30) })
    });
    let series = demand::Series::collect::<demand::Error>(samples).unwrap();
    let mut found = crate::optimize::optimize(series, &Question::default()).unwrap();
    let trials = tried();
    let [_, _, _, best, last] = trials.as_slice() else { panic!("five trials") };
    let search = Search {
        objective: Objective::CostWithinWait { wait_p95_s: 1200.0 },
        exact: true,
        best: Some(best.clone()),
        flat: Some(Flat { within: 0.01, from_gpus: 24, to_gpus: 32 }),
        flat_waits: Some(FlatWaits { within: 0.01, from_s: 600.0, to_s: 1800.0, tried: 4 }),
        stays_best: None,
        interval: None,
        later: Some(Later {
            advised: best.clone(),
            turned_out: best.clone(),
            best: last.clone(),
            regret: 0.07,
        }),
        today: Some(last.clone()),
        trials,
    };
    "c_d".clone_into(&mut found.currency);
    found.search = Some(search.clone());
    let page = optimize::page(&found, "jobs.csv", at());
    checked("optimize-search", &page);
    assert_eq!(page.title, "Own 24 GPUs and let jobs wait: 30.00 c_d/h, and 95 % of jobs start within 9 min");
    assert!(page.subtitle.ends_with("c_d is what a dedicated GPU costs for an hour"), "{}", page.subtitle);
    let section = &page.sections[0];
    assert_eq!(section.heading, "The least cost at which 95 % of jobs start within 20 min: 24 GPUs");
    assert_eq!(
        section.text,
        [
            "Waits before bursting: of 4 waits tried, 10 min to 30 min, each with its own best machines, cost within 1 % of the least.",
            "Advised on the first half of the time, 24 GPUs cost 30.00 c_d/h in the second: 7 % more than the best there, 32 GPUs; 95 % of its jobs started within 9 min."
        ]
    );
    let Some(Drawing::Curve(curve)) = section.plot.as_ref().map(|plot| &plot.drawing) else {
        panic!("no curve");
    };
    let lines: Vec<_> =
        curve.series.iter().map(|line| (line.name.as_str(), line.points.as_slice())).collect();
    assert_eq!(
        lines,
        [
            // Two machines don't keep to the limit: the line has a gap there.
            ("burst all-wait", &[(16.0, None), (32.0, Some(32.0))][..]),
            ("burst wait", &[(16.0, Some(40.0)), (24.0, Some(30.0)), (32.0, Some(35.0))]),
        ]
    );
    let marks: Vec<_> = curve.marks.iter().map(|mark| (mark.label.as_str(), mark.main)).collect();
    assert_eq!(marks, [("best: 24", true), ("today: 32", false)]);
    // What is cheapest of all and keeps nobody's limit comes last.
    let rows: Vec<_> =
        section.table.rows.iter().map(|row| [0, 1, 2, 3, 7].map(|at| row[at].as_str())).collect();
    assert_eq!(rows[0], ["24", "wait", "10 min", "30.00", "yes"]);
    assert_eq!(rows[4], ["16", "all-wait", "–", "16.00", "no"]);

    // Nothing that was tried keeps to the limit: there is no plot, and the page still tells what was tried.
    found.search =
        Some(Search { best: None, flat: None, flat_waits: None, today: None, later: None, ..search });
    let page = optimize::page(&found, "jobs.csv", at());
    checked("optimize-search-nothing", &page);
    assert!(page.sections[0].heading.ends_with("nothing that was tried"), "{}", page.sections[0].heading);
    assert!(page.sections[0].plot.is_none() && page.sections[0].table.rows.len() == 5);
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
    let mut found = replayed(2400, 112, Burst::Wait);
    found.wait.p95_error_s = Some(120.0);
    let page = simulate::page(&found, "jobs.csv", &["3 rows were left out".to_owned()], at());
    let html = checked("simulate", &page);
    assert_eq!(page.sections.iter().filter(|section| section.plot.is_some()).count(), 4);
    assert!(html.contains("&lt;/script&gt;&lt;img") && html.contains("are free, but of no use"));
    assert!(html.contains("3 rows were left out"));
    // How sure it is stands beside each mean, and a policy is told in words.
    assert!(page.facts[1].detail.starts_with("± "), "{}", page.facts[1].detail);
    let mean = &page.sections[1].table.rows[0];
    assert!(mean[1].contains(" ± ") && mean[2].contains(" ± "), "{mean:?}");
    let p95 = &page.sections[1].table.rows[3];
    assert_eq!((p95[0].as_str(), p95[1].as_str()), ("p95", "30 min ± 2 min"));
    assert!(page.facts[1].detail.contains("p95 30 min ± 2 min"), "{}", page.facts[1].detail);
    let policy = &page.sections.last().unwrap().table.rows;
    let of = |name: &str| policy.iter().find(|row| row[0] == name).map(|row| row[1].as_str());
    assert_eq!(
        (of("wait"), of("cold start"), of("burst by namespace")),
        (Some("30 min"), Some("0 s"), Some("none"))
    );
}

#[test]
fn a_simulation_of_next_to_nothing() {
    for (jobs, gpus) in [(0, 8), (1, 8), (1, 0), (3, 0)] {
        for burst in [Burst::Never, Burst::AtOnce] {
            checked("simulate-nothing", &simulate::page(&replayed(jobs, gpus, burst), "jobs.csv", &[], at()));
        }
    }
}
