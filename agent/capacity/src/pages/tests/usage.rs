//! Pages on what a cluster has and had: reports, history, showback.

use std::fmt::Write as _;

use serde::Deserialize;

use super::{at, checked};
use crate::{
    cluster::objects,
    history::{
        Cell, History, Key, Owner, Pool, Recorded, Showback, Step, What,
        showback::{Question, Tariff},
        view::View,
    },
    pages::{history, model::Drawing, report, showback},
    report::{Options, Report, of, snapshot::Snapshot},
};

const HOSTILE: &str = "<img src=x onerror=alert(1)>";

fn object<'de, T: Deserialize<'de>>(yaml: &'de str) -> T {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// Machines of eight GPUs of which a pod holds some, and pods that wait for `waiting` GPUs each.
fn reported(machines: usize, held: impl Fn(usize) -> usize, waiting: &[usize]) -> Report {
    let mut snapshot = Snapshot { at: at(), ..Snapshot::default() };
    let pod = |name: &str, node: &str, gpus: usize| {
        let mut yaml = format!(
            "metadata: {{name: {name}, namespace: '{HOSTILE}', creationTimestamp: '2026-11-22T07:00:00Z'}}\nspec:\n"
        );
        if !node.is_empty() {
            writeln!(yaml, "  nodeName: {node}").unwrap();
        }
        let phase = if node.is_empty() { "Pending" } else { "Running" };
        write!(
            yaml,
            "  containers: [{{name: main, resources: {{requests: {{cpu: 1, nvidia.com/gpu: {gpus}}}}}}}]\nstatus: {{phase: {phase}}}\n"
        )
        .unwrap();
        yaml
    };
    for machine in 0..machines {
        let name = format!("gpu-{machine}");
        let yaml = format!(
            "metadata: {{name: {name}, labels: {{nvidia.com/gpu.product: A100}}}}\nstatus:\n  allocatable: &has {{cpu: 64, memory: 512Gi, pods: 110, nvidia.com/gpu: 8}}\n  capacity: *has\n  conditions: [{{type: Ready, status: 'True'}}]\n"
        );
        snapshot.nodes.push(object::<objects::Node>(&yaml).shown(&mut snapshot.names));
        if held(machine) > 0 {
            let yaml = pod(&format!("holds-{machine}"), &name, held(machine));
            snapshot.pods.push(object::<objects::Pod>(&yaml).shown(&mut snapshot.names));
        }
    }
    for (number, &gpus) in waiting.iter().enumerate() {
        let yaml = pod(&format!("waits-{number}"), "", gpus);
        snapshot.pods.push(object::<objects::Pod>(&yaml).shown(&mut snapshot.names));
    }
    of(&snapshot, &Options::default())
}

#[test]
fn a_report() {
    let page = report::page(&reported(3, |machine| 5 + machine, &[4, 16]), "a cluster");
    let html = checked("report", &page);
    assert_eq!(page.title, "2 pods wait and 6 accelerators are free but of no use");
    assert!(html.contains("&lt;img src=x") && !html.contains(HOSTILE));
    // Nobody watches: that is not the same as nobody being idle.
    let idle = page.facts.iter().find(|fact| fact.label == "Held, but idle").unwrap();
    assert_eq!((idle.value.as_str(), idle.alarming), ("unknown", false));
    let kinds: Vec<_> = page.sections.iter().filter_map(|section| section.plot.as_ref()).collect();
    let [_, of_pools, stranded] = kinds.as_slice() else { panic!("{} plots", kinds.len()) };
    let Drawing::Bars(bars) = &of_pools.drawing else { panic!("no bars") };
    let amounts: Vec<_> = bars.parts.iter().map(|part| (part.name.as_str(), part.values[0])).collect();
    assert_eq!(amounts, [("held", 18.0), ("stranded", 6.0)]);
    let Drawing::Bars(bars) = &stranded.drawing else { panic!("no bars") };
    assert_eq!((bars.names[0].as_str(), bars.parts[0].values.as_slice()), ("gpu-0", &[3.0, 2.0, 1.0][..]));
}

#[test]
fn a_report_on_thousands_of_machines_counts_them() {
    let page = report::page(&reported(5000, |machine| machine % 9, &[8]), "a large cluster");
    let html = checked("report-large", &page);
    let stranded = page.sections.iter().find(|section| section.name == "Stranded").unwrap();
    let Some(Drawing::Bars(bars)) = stranded.plot.as_ref().map(|plot| &plot.drawing) else {
        panic!("no bars");
    };
    assert_eq!(bars.names.first().map(String::as_str), Some("1 stranded"));
    let machines: f64 = bars.parts.iter().flat_map(|part| &part.values).sum();
    let found = stranded.table.rows.len();
    assert!(
        found > 3000 && (machines - f64::from(u32::try_from(found).unwrap())).abs() < 1e-9,
        "{machines} of {found}"
    );
    assert!(html.contains("more rows") && html.len() < 2_000_000, "{} bytes", html.len());
}

#[test]
fn a_report_on_nothing() {
    let page = report::page(&reported(0, |_| 0, &[]), "an empty cluster");
    checked("report-nothing", &page);
    assert_eq!(page.title, "No pod waits, and no accelerator is idle or stranded");
    assert!(page.facts.iter().all(|fact| !fact.alarming));
}

const DAY_S: i64 = 86_400;

/// Three days by the hour without the second: ten T4 of which vision holds four by day, and two GPUs of a cloud for an hour.
fn recorded() -> Recorded {
    let hours = (0..72).filter(|hour| !(24..48).contains(hour));
    let steps: Vec<Step> =
        hours.map(|hour| Step { end_s: (hour + 1) * 3600, len_s: 3600, seen_s: 3600 }).collect();
    let pool = |name: &str, serverless| Pool { name: name.to_owned(), serverless, ..Pool::default() };
    let owner = Owner { namespace: "vision".to_owned(), ..Owner::default() };
    let mut recorded = Recorded { steps, ..Recorded::default() };
    let mut add = |what, pool: Pool, owner: Owner, milli: fn(i64) -> i64| {
        let cells = recorded.steps.iter().map(|step| {
            let milli = milli(step.end_s);
            Cell { end_s: step.end_s, milli_gpu_s: milli * 3600, least: milli, most: milli }
        });
        let cells = cells.filter(|cell| cell.most > 0).collect();
        recorded.series.insert(Key { what, pool, owner }, cells);
    };
    let by_day = |end_s: i64| if (9..=17).contains(&((end_s - 1) % DAY_S / 3600)) { 4000 } else { 0 };
    add(What::Capacity, pool("T4", false), Owner::default(), |_| 10_000);
    add(What::Allocated, pool("T4", false), owner.clone(), by_day);
    add(What::Allocated, pool("cloud", true), owner.clone(), |end_s| if end_s == 3600 { 2000 } else { 0 });
    add(What::Used, pool("T4", false), owner.clone(), by_day);
    add(What::Waiting, pool("nvidia.com/gpu", false), owner, |end_s| if end_s <= 7200 { 1000 } else { 0 });
    recorded
}

#[test]
fn a_history() {
    let view = View { until_s: 3 * DAY_S, step_s: 3600, ..View::default() };
    let page = history::page(&History::of("a file".to_owned(), &recorded(), &view), at());
    let html = checked("history", &page);
    // Nine hours of each of two days, of 48 hours: 4 × 18 / 48 of 10.
    assert_eq!(page.title, "15 % of T4 GPUs are held on average");
    assert_eq!(page.sections[0].heading, "T4: 1.5 of 10 GPUs held on average, never all of them");
    let Some(Drawing::Lines(lines)) = page.sections[0].plot.as_ref().map(|plot| &plot.drawing) else {
        panic!("no lines");
    };
    for series in &lines.series {
        let gaps: Vec<f64> =
            series.points.iter().filter(|point| point.1.is_none()).map(|point| point.0).collect();
        assert_eq!(gaps, [86_400.0], "{}: one gap, where the second day begins", series.name);
    }
    let demanded = lines.series.iter().find(|series| series.name.starts_with("demanded")).unwrap();
    assert_eq!(demanded.points[0], (0.0, Some(1.0)), "what waits is demand where there is one pool for it");
    let names: Vec<_> = lines.series.iter().map(|series| series.name.as_str()).collect();
    assert_eq!(names, ["held", "demanded: held and waited for", "at work, as measured", "there is"]);
    assert!(html.contains("33 % of that time was not seen") && html.contains("1970-01-02 00:00"));
}

#[test]
fn a_history_shows_when_gpus_were_of_no_use() {
    let mut recorded = recorded();
    let capacity = recorded.series.keys().find(|key| key.what == What::Capacity).unwrap().clone();
    let cells = recorded.series[&capacity].iter().filter(|cell| cell.end_s <= 6 * 3600);
    let lost = |cell: &Cell| Cell { milli_gpu_s: 2000 * 3600, least: 2000, most: 2000, ..*cell };
    let lost: Vec<Cell> = cells.map(lost).collect();
    recorded.series.insert(Key { what: What::Stranded, ..capacity }, lost);
    let view = View { until_s: 3 * DAY_S, step_s: 3600, ..View::default() };
    let page = |stranded_since_s| {
        let view = View { stranded_since_s, ..view.clone() };
        history::page(&History::of("a file".to_owned(), &recorded, &view), at())
    };
    let named = "Stranded in T4";
    assert!(page(None).sections.iter().all(|section| section.name != named), "nobody recorded it");
    let known = page(Some(0));
    checked("history-stranded", &known);
    let section = known.sections.iter().find(|section| section.name == named).unwrap();
    // Two of ten for six of 48 hours.
    assert_eq!(section.heading, "T4: 0.25 GPUs on average are free, but of no use; 20 % of all at most");
    let Some(Drawing::Heat(heat)) = section.plot.as_ref().map(|plot| &plot.drawing) else { panic!("no map") };
    assert_eq!((heat.rows.len(), heat.columns.len()), (12, 24));
    assert!(heat.cells[0].iter().all(|cell| cell.is_some_and(|percent| (percent - 20.0).abs() < 1e-9)));
    assert!(heat.cells[1].iter().all(|cell| *cell == Some(0.0)), "of no use was none");
    assert!(heat.cells[4..8].iter().flatten().all(Option::is_none), "the second day was not seen");
    // From a time on only.
    let late = page(Some(2 * DAY_S));
    let section = late.sections.iter().find(|section| section.name == named).unwrap();
    assert_eq!(section.heading, "T4: no free GPU was ever of no use");
    assert!(section.text[1].starts_with("Recorded since"), "{:?}", section.text);
}

#[test]
fn longer_steps_are_no_gaps() {
    let steps = [(3600, 3600), (3660, 60), (3720, 60)];
    let steps: Vec<Step> = steps.map(|(end_s, len_s)| Step { end_s, len_s, seen_s: len_s }).into();
    let pool = Pool { name: "T4".to_owned(), ..Pool::default() };
    let series = |what, milli: i64| {
        let cells = steps.iter().map(|step| Cell {
            end_s: step.end_s,
            milli_gpu_s: milli * step.len_s,
            least: milli,
            most: milli,
        });
        (Key { what, pool: pool.clone(), owner: Owner::default() }, cells.collect::<Vec<_>>())
    };
    let mut held = series(What::Allocated, 4000);
    held.1.truncate(1);
    let series = [series(What::Capacity, 10_000), held].into();
    let recorded = Recorded { steps, series };
    let view = View { until_s: 3720, step_s: 60, ..View::default() };
    let page = history::page(&History::of("a file".to_owned(), &recorded, &view), at());
    // For an hour of 62 minutes, and not for one of three points.
    assert_eq!(page.title, "39 % of T4 GPUs are held on average");
    let Some(Drawing::Lines(lines)) = page.sections[0].plot.as_ref().map(|plot| &plot.drawing) else {
        panic!("no lines");
    };
    assert!(lines.series.iter().flat_map(|series| &series.points).all(|point| point.1.is_some()));
}

#[test]
fn a_history_of_nothing() {
    let view = View { until_s: DAY_S, step_s: 3600, ..View::default() };
    let page = history::page(&History::of("a file".to_owned(), &Recorded::default(), &view), at());
    checked("history-nothing", &page);
    assert_eq!(page.title, "Usage over time");
    assert!(page.facts[0].alarming, "nothing was seen");
}

struct Prices;

impl Tariff for Prices {
    fn per_gpu_hour(&self, pool: &Pool) -> Option<f64> {
        Some(if pool.serverless { 6.0 } else { 2.0 })
    }

    fn currency(&self) -> String {
        "USD".to_owned()
    }
}

#[test]
fn a_month_s_costs() {
    let question = Question { name: "1970-01".to_owned(), until_s: 3 * DAY_S, ..Question::default() };
    let page = showback::page(&Showback::of("a file".to_owned(), &recorded(), &Prices, &question), at());
    let html = checked("showback", &page);
    // 48 h × 10 GPUs at 2; 72 of those 480 GPU-hours were held; 2 GPU-hours at 6.
    assert_eq!(page.title, "January 1970 cost 972.00 USD, 84 % of it for GPUs that nobody held");
    assert_eq!(page.sections[0].heading, "vision pays most: 156.00 USD");
    let of = |section: usize| page.sections[section].table.rows.clone();
    assert_eq!(of(0)[0], ["vision", "144.00", "12.00", "156.00"]);
    assert_eq!(of(0)[1], ["(idle)", "816.00", "0.00", "816.00"]);
    assert_eq!(of(0)[2], ["in all", "960.00", "12.00", "972.00"]);
    assert_eq!(of(1)[0], ["vision", "72.0", "2.0", "7,200", "15 %"]);
    assert!(html.contains("33 % of the period was not recorded"));
}

#[test]
fn a_month_of_nothing() {
    let question = Question { name: "2026-10".to_owned(), until_s: DAY_S, ..Question::default() };
    let nothing = Recorded::default();
    let page = showback::page(&Showback::of("a file".to_owned(), &nothing, &Prices, &question), at());
    checked("showback-nothing", &page);
    assert_eq!(page.title, "Nothing of October 2026 was recorded");
}
