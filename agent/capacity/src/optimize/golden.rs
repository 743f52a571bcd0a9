//! What the facts say of Helios' Earth cluster, against the whole trace where it is there, and against one row an hour of it always.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::{Holes, Optimization, Question, optimize};
use crate::{demand::Series, trace};

/// The folder of traces beside the repository, where there is one.
fn traces(name: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = std::env::var_os("SPILLWAY_TRACES").map_or(beside, PathBuf::from).join(name);
    folder.is_dir().then_some(folder)
}

fn read(args: &trace::Args) -> Series {
    let trace::Trace::Demand(samples) = args.open().unwrap() else { panic!("not demand") };
    let read: Result<Series, anyhow::Error> =
        Series::collect(samples.map(|sample| sample.map_err(Into::into)));
    read.unwrap()
}

/// Demand of all virtual clusters, as the facts count it. It is read once for all tests.
fn earth() -> Option<&'static Series> {
    static EARTH: OnceLock<Option<Series>> = OnceLock::new();
    EARTH.get_or_init(|| all_clusters(trace::Counted::All)).as_ref()
}

fn all_clusters(demand: trace::Counted) -> Option<Series> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(traces("helios-earth")?).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.display().to_string().contains("earth_vc"));
    files.sort();
    Some(read(&trace::Args { files, demand, ..trace::Args::default() }))
}

fn hourly() -> Series {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/helios-earth-hourly.csv");
    read(&trace::Args { files: vec![file], ..trace::Args::default() })
}

fn asked(series: &Series, r: f64, holes: Holes) -> Optimization {
    let question = Question {
        serverless_per_gpu_hour: r,
        owned_gpus: Some(856),
        holes,
        resamples: 500,
        ..Question::default()
    };
    optimize(series.clone(), &question).unwrap()
}

fn near(found: f64, expected: f64, within: f64) {
    assert!((found - expected).abs() <= within, "{found}, expected {expected} within {within}");
}

#[test]
fn the_whole_of_earth_gives_the_table_of_the_facts() {
    let Some(earth) = earth() else { return };
    let expected =
        [(1.5, 599, 715.5, 856.4, 948.5), (2.0, 665, 742.4, 856.5, 1264.6), (3.0, 710, 769.6, 856.8, 1897.0)];
    for (r, gpus, per_hour, owned, rented) in expected {
        let found = asked(earth, r, Holes::Keep);
        assert_eq!(found.advice.gpus, gpus);
        near(found.advice.per_hour, per_hour, 0.05);
        near(found.today.unwrap().per_hour, owned, 0.05);
        near(found.all_rented.per_hour, rented, 0.05);
        assert_eq!((found.demand.samples, found.demand.p99_gpus, found.demand.max_gpus), (44_640, 858, 933));
        near(found.demand.mean_gpus, 632.3, 0.05);
    }
}

#[test]
fn advice_on_the_first_half_of_earth_regrets_as_much_as_the_facts_say() {
    let Some(earth) = earth() else { return };
    for (r, kept, dropped) in [(1.5, 0.057, 0.046), (2.0, 0.096, 0.079), (3.0, 0.13, 0.101)] {
        near(asked(earth, r, Holes::Keep).regret[0].regret, kept, 0.000_5);
        // The half of the time that is left lies within a block.
        near(asked(earth, r, Holes::Drop).regret[0].regret, dropped, 0.001);
    }
    assert_eq!(asked(earth, 3.0, Holes::Keep).regret[0].best_gpus, 750);
}

#[test]
fn the_hole_in_earth_is_found_and_left_out() {
    let Some(earth) = earth() else { return };
    let found = asked(earth, 3.0, Holes::Drop);
    let missing: f64 = found.demand.holes.iter().map(super::Span::seconds).sum();
    near(missing, 1566.0 * 60.0, 0.0);
    assert_eq!(found.advice.gpus, 713);
    near(found.advice.per_hour, 771.7, 0.05);
    assert!(found.drift.drifts);
    let told = found.warnings.iter().find(|warning| warning.contains("missing data")).unwrap();
    assert!(
        told.contains("1,566 samples") && told.contains("2020-05-09") && told.contains("710 GPUs"),
        "{told}"
    );
}

#[test]
fn the_interval_of_earth_is_that_of_blocks_of_a_week_not_of_minutes() {
    let Some(earth) = earth() else { return };
    let interval = asked(earth, 3.0, Holes::Drop).interval;
    // The facts have [639, 757]; seeds, and how blocks are drawn, move the lower end by some twenty.
    near(f64::from(interval.from_gpus), 639.0, 20.0);
    near(f64::from(interval.to_gpus), 757.0, 5.0);
    let minutes = Question { serverless_per_gpu_hour: 3.0, block_s: 1.0, ..Question::default() };
    let plain = optimize(earth.clone(), &minutes).unwrap().interval;
    assert!(plain.to_gpus - plain.from_gpus < 20, "{plain:?}");
}

#[test]
fn running_jobs_alone_ask_for_less_than_with_those_that_wait() {
    let Some(running) = all_clusters(trace::Counted::Running) else { return };
    assert_eq!(asked(&running, 3.0, Holes::Keep).advice.gpus, 639);
}

#[test]
fn one_row_an_hour_of_earth_tells_nearly_the_same() {
    let hourly = hourly();
    for (r, gpus, per_hour) in [(1.5, 599.0, 715.5), (2.0, 665.0, 742.4), (3.0, 710.0, 769.6)] {
        let found = asked(&hourly, r, Holes::Keep);
        near(f64::from(found.advice.gpus), gpus, 6.0);
        near(found.advice.per_hour, per_hour, 2.0);
        assert_eq!(found.demand.holes.len(), 2);
    }
}

#[test]
fn a_trace_in_parts_is_answered_as_the_whole() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/helios-earth-hourly.csv"))
            .unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    let rows: Vec<&str> = rows.lines().collect();
    let whole = asked(&hourly(), 3.0, Holes::Drop);
    for cut in [1, 217, 400, rows.len() - 1] {
        let part = |rows: &[&str]| -> (String, Box<dyn std::io::Read + Send>) {
            let text = format!("{header}\n{}\n", rows.join("\n"));
            ("part".to_owned(), Box::new(std::io::Cursor::new(text)))
        };
        let files = vec![part(&rows[cut..]), part(&rows[..cut])];
        let trace::Trace::Demand(samples) = trace::Args::default().open_bytes(files).unwrap() else {
            panic!("not demand")
        };
        let parts: Result<Series, anyhow::Error> =
            Series::collect(samples.map(|sample| sample.map_err(Into::into)));
        assert_eq!(asked(&parts.unwrap(), 3.0, Holes::Drop), whole, "cut after row {cut}");
    }
}
