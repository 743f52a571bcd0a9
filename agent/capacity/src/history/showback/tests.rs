//! What a month costs whom.

use proptest::prelude::*;

use super::{HUNDREDTH, Question, Showback, Tariff, divided, rounded};
use crate::{
    history::{Cell, Key, Owner, Pool, Recorded, Step, What, view::By},
    output::{Format, print},
};

struct Prices;

impl Tariff for Prices {
    fn per_gpu_hour(&self, pool: &Pool) -> Option<f64> {
        match (pool.serverless, pool.name.as_str()) {
            (true, _) => Some(9.6),
            (false, "T4") => Some(3.84),
            (false, "free") => Some(0.0),
            _ => None,
        }
    }

    fn currency(&self) -> String {
        "USD".to_owned()
    }
}

const MONTH_S: i64 = 30 * 86_400;

/// Recorded hours of a month, without the first of them: by what, pool, and owner, mean GPUs in thousandths.
fn recorded(values: &[(What, &str, &str, i64)], missing_hours: i64) -> Recorded {
    let steps: Vec<Step> = (missing_hours..720)
        .map(|hour| Step { end_s: (hour + 1) * 3600, len_s: 3600, seen_s: 3600 })
        .collect();
    let mut recorded = Recorded { steps, ..Recorded::default() };
    for (what, pool, namespace, milli) in values {
        let pool = Pool { name: (*pool).to_owned(), serverless: *pool == "cloud", ..Pool::default() };
        let owner = Owner { namespace: (*namespace).to_owned(), ..Owner::default() };
        let cells = recorded.steps.iter().map(|step| Cell {
            end_s: step.end_s,
            milli_gpu_s: milli * 3600,
            least: *milli,
            most: *milli,
        });
        recorded.series.insert(Key { what: *what, pool, owner }, cells.collect());
    }
    recorded
}

fn question() -> Question {
    Question { name: "2026-11".to_owned(), until_s: MONTH_S, ..Question::default() }
}

fn showback(values: &[(What, &str, &str, i64)], missing_hours: i64, question: &Question) -> Showback {
    Showback::of("a file".to_owned(), &recorded(values, missing_hours), &Prices, question)
}

const MIXED: &[(What, &str, &str, i64)] = &[
    (What::Capacity, "T4", "", 10_000),
    (What::Allocated, "T4", "vision", 2000),
    (What::Allocated, "T4", "=cmd|' /C calc'!A0", 1000),
    (What::Capacity, "cloud", "", 1_000_000),
    (What::Allocated, "cloud", "vision", 500),
    (What::Waiting, "nvidia.com/gpu", "vision", 9000),
];

#[test]
fn what_nobody_held_is_a_line_of_its_own() {
    let told = showback(MIXED, 0, &question());
    insta::assert_snapshot!(printed(&told, Format::Table));
    let sum: f64 = told.lines.iter().map(|line| line.cost).sum();
    assert!((sum - (10.0 * 720.0 * 3.84 + 0.5 * 720.0 * 9.6)).abs() < 1e-6);
    assert!(told.warnings.is_empty() && told.seen.gaps.is_empty());
}

#[test]
fn or_it_is_divided() {
    let told = showback(MIXED, 0, &Question { spread_idle: true, ..question() });
    let costs: Vec<_> = told.lines.iter().map(|line| (line.idle, hundredths(line.owned_cost))).collect();
    assert_eq!(costs, [(false, 1_843_200), (false, 921_600)]);
    assert_eq!(hundredths(told.total.owned_cost), 2_764_800);
}

#[test]
fn what_was_not_recorded_is_told_and_nobody_pays_for_it() {
    let told = showback(MIXED, 72, &question());
    assert!((told.seen.seen_share - 0.9).abs() < 1e-9);
    assert_eq!(told.seen.gaps[0].unseen_s, 72 * 3600);
    assert!(told.warnings[0].contains("72.0 hours of 2026-11 were not recorded"), "{:?}", told.warnings);
    assert_eq!(hundredths(told.total.owned_cost), 2_488_320);
}

#[test]
fn a_spreadsheet_finds_no_formula_in_a_name() {
    let told = showback(MIXED, 0, &question());
    let csv = printed(&told, Format::Csv);
    assert!(csv.contains("\n'=cmd|' /C calc'!A0,"), "{csv}");
    assert!(!csv.contains("\n=cmd"), "{csv}");
}

#[test]
fn other_namespaces_are_one_line() {
    let told = showback(MIXED, 0, &Question { namespace: Some("vision".to_owned()), ..question() });
    let owners: Vec<_> = told.lines.iter().map(|line| line.owner.as_str()).collect();
    assert_eq!(owners, ["vision", "(others)", "(idle)"]);
    let told = showback(MIXED, 0, &Question { by: By::Label, ..question() });
    let owners: Vec<_> = told.lines.iter().map(|line| line.owner.as_str()).collect();
    assert_eq!(owners, ["(no label)", "(idle)"]);
}

#[test]
fn a_pool_without_a_price_is_told() {
    let values = [
        (What::Capacity, "FPGA", "", 1000),
        (What::Allocated, "FPGA", "a", 2000),
        (What::Capacity, "free", "", 1000),
    ];
    let told = showback(&values, 0, &question());
    assert_eq!(told.warnings.len(), 2, "{:?}", told.warnings);
    assert_eq!(told.lines[0].parts[0].cost, None);
    assert_eq!(hundredths(told.total.cost), 0);
    assert!(printed(&told, Format::Table).contains("no price"));
}

fn printed(told: &Showback, format: Format) -> String {
    let mut out = Vec::new();
    print(&mut out, format, told, &told.tables()).unwrap();
    String::from_utf8(out).unwrap()
}

fn hundredths(value: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "sums of money of a test")]
    let cents = (value * 100.0).round() as i64;
    assert!((value * 100.0 - (value * 100.0).round()).abs() < 1e-3, "{value} has no whole cents");
    cents
}

proptest! {
    #[test]
    fn nothing_is_left_over(whole in 0..i64::MAX, weights in prop::collection::vec(0..i64::MAX / 64, 1..30)) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let parts = divided(whole, &weights);
        prop_assert_eq!(parts.iter().copied().map(i128::from).sum::<i128>(), i128::from(whole));
        prop_assert!(parts.iter().zip(&weights).all(|(part, weight)| *part >= 0 && (*weight > 0 || *part <= 1)));
    }

    #[test]
    fn what_is_rounded_is_the_rounded_sum(costs in prop::collection::vec(0..10 * HUNDREDTH, 1..50)) {
        let sum: i128 = costs.iter().sum();
        prop_assert_eq!(rounded(&costs).iter().sum::<i128>(), (sum + HUNDREDTH / 2) / HUNDREDTH);
        prop_assert!(rounded(&costs).iter().zip(&costs).all(|(part, cost)| (part - cost / HUNDREDTH).abs() <= 1));
    }

    /// Rows and columns add up to the cent, with or without the idle rest spread, which moves costs and changes no sum.
    #[test]
    fn sums_add_up_exactly(held in prop::collection::vec((0..5000_i64, any::<bool>()), 1..8), capacity in 40_000..99_999_i64) {
        let names: Vec<String> = (0..held.len()).map(|index| format!("n{index}")).collect();
        let mut values = vec![(What::Capacity, "T4", "", capacity)];
        values.extend(names.iter().zip(&held).map(|(name, (milli, cloud))| {
            (What::Allocated, if *cloud { "cloud" } else { "T4" }, name.as_str(), *milli)
        }));
        let mut totals = Vec::new();
        for spread_idle in [false, true] {
            let told = showback(&values, 0, &Question { spread_idle, ..question() });
            let column = |of: fn(&super::Line) -> f64| told.lines.iter().map(|line| hundredths(of(line))).sum::<i64>();
            prop_assert_eq!(column(|line| line.cost), hundredths(told.total.cost));
            prop_assert_eq!(column(|line| line.owned_cost), hundredths(told.total.owned_cost));
            prop_assert_eq!(column(|line| line.rented_cost), hundredths(told.total.rented_cost));
            for line in &told.lines {
                prop_assert_eq!(hundredths(line.owned_cost) + hundredths(line.rented_cost), hundredths(line.cost));
                let parts: i64 = line.parts.iter().filter_map(|part| part.cost).map(hundredths).sum();
                prop_assert_eq!(parts, hundredths(line.cost));
            }
            totals.push(hundredths(told.total.cost));
        }
        prop_assert_eq!(totals[0], totals[1]);
    }
}
