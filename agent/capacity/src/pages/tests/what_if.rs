//! The page of a comparison.

use super::{at, checked, replayed};
use crate::{
    demand::{self, Series},
    job::Demand,
    optimize::Question,
    pages::{model::Drawing, what_if},
    policy::Burst,
    pool::Pool,
    what_if::{Replay, Side, WhatIf},
};

fn compared(before: Side, after: Side) -> WhatIf {
    WhatIf {
        currency: "USD".to_owned(),
        changes: vec!["2 machines more".to_owned(), "<b>team-a</b> is on serverless machines".to_owned()],
        before,
        after,
        warnings: Vec::new(),
    }
}

#[test]
fn of_jobs() {
    let side = |gpus| {
        let found = replayed(1200, gpus, Burst::Wait);
        Side::of_jobs(&Replay { first_submit_s: 0.0, found }, None)
    };
    let found = compared(side(64), side(80));
    let page = what_if::page(&found, "jobs.csv", at());
    let html = checked("what-if", &page);
    assert!(
        page.title.contains(" than now; jobs wait ") && page.title.contains(" instead of "),
        "{}",
        page.title
    );
    assert!(html.contains("&lt;b&gt;team-a"));
    let kinds: Vec<_> =
        page.sections.iter().filter_map(|section| section.plot.as_ref().map(|plot| &plot.drawing)).collect();
    let [Drawing::Bars(costs), Drawing::Distribution(waits)] = kinds.as_slice() else {
        panic!("{kinds:?}");
    };
    assert_eq!(costs.names, ["before", "after"]);
    assert_eq!(costs.parts[0].values, [found.before.owned_per_hour, found.after.owned_per_hour]);
    assert_eq!(waits.series.len(), 2);
}

#[test]
fn of_demand() {
    let side = |machines| {
        let samples = (0..200_u32)
            .map(|at| Ok(Demand { line: 2, at_s: 3600.0 * f64::from(at), gpus: f64::from(at % 50) }));
        let series = Series::collect::<demand::Error>(samples).unwrap();
        let question = Question { currency: "USD".to_owned(), resamples: 1, ..Question::default() };
        Side::of_demand(series, &Pool::of_gpus(machines, 8), &question).unwrap().0
    };
    let same = what_if::page(&compared(side(5), side(5)), "demand.csv", at());
    checked("what-if-same", &same);
    assert!(same.title.contains("as much as now"), "{}", same.title);
    let page = what_if::page(&compared(side(5), side(2)), "demand.csv", at());
    checked("what-if-demand", &page);
    assert!(
        matches!(&page.sections[1].plot.as_ref().unwrap().drawing, Drawing::Curve(curve) if curve.series.len() == 2)
    );
    let nothing = what_if::page(&compared(Side::default(), Side::default()), "nothing", at());
    checked("what-if-nothing", &nothing);
}
