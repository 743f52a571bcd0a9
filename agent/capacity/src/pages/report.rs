//! A report as a page: each pool of machines that are owned, each virtual node by itself, who holds and does nothing, where accelerators are stranded, and why pods wait.

use std::{collections::BTreeMap, fmt::Write as _};

use super::model::{Axis, Bars, Drawing, Fact, Heat, Page, Part, Plot, Role, Section, Unit};
use crate::{
    fragmentation::Cause,
    optimize::words::number,
    output::{Column, Table},
    report::{Pool, Report},
};

/// Resources of every machine; all others are accelerators here.
const USUAL: [&str; 4] = ["cpu", "memory", "pods", "ephemeral-storage"];

/// The page on `subject`, which is the cluster.
pub fn page(report: &Report, subject: &str) -> Page {
    let mut tables = report.tables();
    let mut take = |title: &str| {
        let at = tables.iter().position(|table| table.title.starts_with(title));
        // The heading says it.
        at.map(|at| Table { title: String::new(), ..tables.swap_remove(at) }).unwrap_or_default()
    };
    let mut sections = vec![waiting(report, take("WAITING"))];
    sections.push(dedicated(report, take("DEDICATED")));
    sections.extend(serverless(report, take("SERVERLESS")));
    sections.push(idle(report, take("IDLE")));
    sections.push(stranded(report, take("STRANDED")));
    if !report.seen.is_empty() {
        sections.push(Section {
            heading: "What was looked at".to_owned(),
            text: report.seen.clone(),
            ..Section::default()
        });
    }
    Page {
        title: "Who has what".to_owned(),
        subtitle: subject.to_owned(),
        generated_at: report.at,
        facts: facts(report),
        warnings: report.not_seen.iter().chain(&report.price_notes).cloned().collect(),
        sections,
    }
}

fn accelerators(report: &Report) -> impl Iterator<Item = &Pool> {
    report.dedicated.iter().filter(|pool| !USUAL.contains(&pool.resource.as_str()))
}

fn name(pool: &Pool) -> String {
    match &pool.model {
        Some(model) => format!("{model} ({})", pool.resource),
        None => pool.resource.clone(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "devices")]
fn float(count: i64) -> f64 {
    count as f64
}

fn count(value: i64) -> String {
    number(float(value), 0)
}

fn share(part: i64, whole: i64) -> String {
    if whole > 0 { format!("{} %", number(100.0 * float(part) / float(whole), 0)) } else { "none".to_owned() }
}

/// Of every pool by itself where there is more than one: what can't take each other's place is not added up.
fn facts(report: &Report) -> Vec<Fact> {
    let mut facts = Vec::new();
    for pool in accelerators(report).take(4) {
        facts.push(Fact::new(
            name(pool),
            format!("{} of {}", count(pool.allocated), count(pool.allocatable)),
            format!("held ({}); {} free", share(pool.allocated, pool.allocatable), count(pool.free)),
        ));
    }
    let idle: i64 = report.idle.iter().map(|holder| holder.devices).sum();
    let cost: f64 = report.idle.iter().filter_map(|holder| holder.cost_per_hour).sum();
    let currency = report.currency.map(|currency| format!(" {currency}")).unwrap_or_default();
    let price = if cost > 0.0 { format!(", {}{currency} per hour", number(cost, 2)) } else { String::new() };
    facts.push(
        Fact::new("Held, but idle", count(idle), format!("by {} pods{price}", report.idle.len()))
            .alarming(idle > 0),
    );
    let stranded: i64 = report.stranded.iter().map(|one| one.devices).sum();
    facts.push(
        Fact::new(
            "Stranded",
            count(stranded),
            format!("free on {} machines, and of no use", machines(report)),
        )
        .alarming(stranded > 0),
    );
    let waiting: usize = report.waiting.iter().map(|one| one.pods.unwrap_or(1)).sum();
    let reasons = report.waiting.len();
    let kinds = if reasons == 1 { "for one reason".to_owned() } else { format!("in {reasons} groups") };
    facts.push(
        Fact::new("Pods that wait", waiting.to_string(), if waiting == 0 { String::new() } else { kinds })
            .alarming(waiting > 0),
    );
    facts
}

fn machines(report: &Report) -> usize {
    let mut nodes: Vec<&str> = report.stranded.iter().map(|one| one.node.as_str()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.len()
}

fn waiting(report: &Report, table: Table) -> Section {
    let text = if report.waiting.is_empty() { "No pod waits." } else { "" };
    Section {
        heading: "Why pods wait".to_owned(),
        text: Some(text.to_owned()).filter(|text| !text.is_empty()).into_iter().collect(),
        plot: None,
        table,
    }
}

fn dedicated(report: &Report, table: Table) -> Section {
    let pools: Vec<&Pool> = accelerators(report).collect();
    let part = |name: &str, role, of: fn(&Pool) -> i64| Part {
        name: name.to_owned(),
        role,
        values: pools.iter().map(|pool| float(of(pool).max(0))).collect(),
    };
    let bars = Bars {
        value: Axis::new("Accelerators", Unit::Number),
        names: pools.iter().map(|pool| name(pool)).collect(),
        parts: vec![
            part("held and at work, or not watched", Role::Used, |pool| pool.allocated - pool.idle),
            part("held, but idle", Role::Idle, |pool| pool.idle),
            part("free", Role::Free, |pool| pool.free - pool.stranded),
            part("stranded", Role::Stranded, |pool| pool.stranded),
            part("out of service", Role::Waiting, |pool| pool.capacity - pool.allocatable),
        ],
    };
    Section {
        heading: "Machines that you own".to_owned(),
        text: if pools.is_empty() { vec!["No machine here offers accelerators.".to_owned()] } else { Vec::new() },
        plot: (!pools.is_empty()).then(|| Plot {
            caption: "Accelerators of each pool by what becomes of them. Stranded ones are free, but no pod that waits or runs here could use them.".to_owned(),
            drawing: Drawing::Bars(bars),
        }),
        table,
    }
}

fn serverless(report: &Report, table: Table) -> Option<Section> {
    if report.serverless.is_empty() {
        return None;
    }
    let offers: Vec<_> = report
        .serverless
        .iter()
        .flat_map(|node| node.offers.iter().map(move |offer| (node, offer)))
        .filter(|(_, offer)| !USUAL.contains(&offer.resource.as_str()))
        .collect();
    let bars = Bars {
        value: Axis::new("Accelerators", Unit::Number),
        names: offers.iter().map(|(node, offer)| format!("{}: {}", node.node, offer.resource)).collect(),
        parts: vec![
            Part {
                name: "in use".to_owned(),
                role: Role::Rented,
                values: offers.iter().map(|(_, offer)| float(offer.allocated)).collect(),
            },
            Part {
                name: "left of the limit".to_owned(),
                role: Role::Free,
                values: offers
                    .iter()
                    .map(|(_, offer)| float((offer.allocatable - offer.allocated).max(0)))
                    .collect(),
            },
        ],
    };
    Some(Section {
        heading: "Virtual nodes".to_owned(),
        text: vec![
            "Limits that somebody wrote down, not machines: never added to what you own, nor to each other."
                .to_owned(),
        ],
        plot: (!offers.is_empty()).then(|| Plot {
            caption: "Accelerators in use at each virtual node, and what is left of its limit.".to_owned(),
            drawing: Drawing::Bars(bars),
        }),
        table,
    })
}

fn idle(report: &Report, table: Table) -> Section {
    let mut by_namespace: BTreeMap<&str, i64> = BTreeMap::new();
    for holder in &report.idle {
        *by_namespace.entry(&holder.namespace).or_default() += holder.devices;
    }
    let mut bars = Bars {
        value: Axis::new("Accelerators", Unit::Number),
        names: by_namespace.keys().map(|name| (*name).to_owned()).collect(),
        parts: vec![Part {
            name: "held, but idle".to_owned(),
            role: Role::Idle,
            values: by_namespace.values().map(|&devices| float(devices)).collect(),
        }],
    };
    bars.greatest_first();
    Section {
        heading: "Held, but idle".to_owned(),
        text: if report.idle.is_empty() {
            vec!["Nobody is seen to hold accelerators and do nothing.".to_owned()]
        } else {
            Vec::new()
        },
        plot: (!report.idle.is_empty()).then(|| Plot {
            caption: "Accelerators that pods hold and do nothing with, by namespace.".to_owned(),
            drawing: Drawing::Bars(bars),
        }),
        table,
    }
}

/// In the order of columns.
const CAUSES: [(Cause, &str); 8] = [
    (Cause::TooFew, "too few together"),
    (Cause::Cpu, "no CPU"),
    (Cause::Memory, "no memory"),
    (Cause::CpuAndMemory, "CPU and memory"),
    (Cause::Numa, "NUMA"),
    (Cause::Profile, "MIG profile"),
    (Cause::Pods, "no more pods"),
    (Cause::Closed, "closed"),
];

fn stranded(report: &Report, table: Table) -> Section {
    let found: Vec<(Cause, &str)> = CAUSES
        .into_iter()
        .filter(|(cause, _)| report.stranded.iter().any(|one| one.cause == *cause))
        .collect();
    let mut nodes: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for one in &report.stranded {
        let row = nodes.entry(&one.node).or_insert_with(|| vec![0.0; found.len()]);
        if let Some(column) = found.iter().position(|(cause, _)| *cause == one.cause) {
            row[column] += float(one.devices);
        }
    }
    let mut heat = Heat {
        x: Axis::new("Cause", Unit::Number),
        columns: vec![0.0; found.len()],
        column_names: found.iter().map(|(_, name)| (*name).to_owned()).collect(),
        rows: nodes.keys().map(|node| (*node).to_owned()).collect(),
        value: Axis::new("Stranded", Unit::Number),
        cells: nodes.values().map(|row| row.iter().map(|&value| Some(value)).collect()).collect(),
    };
    let left_out = heat.worst_first();
    let mut caption =
        "Accelerators that are free and of no use, by machine and cause; dark is many.".to_owned();
    if left_out > 0 {
        let _ = write!(caption, " {left_out} machines with fewer are left out.");
    }
    Section {
        heading: "Stranded: free, but of no use".to_owned(),
        text: if nodes.is_empty() {
            vec!["Every free accelerator can be used.".to_owned()]
        } else {
            Vec::new()
        },
        plot: (!nodes.is_empty()).then_some(Plot { caption, drawing: Drawing::Heat(heat) }),
        table: if table.columns.is_empty() { table } else { narrowed(table) },
    }
}

/// Beside its plot a table has little room: the resource goes where only one is meant.
fn narrowed(mut table: Table) -> Table {
    let Some(at) = table.columns.iter().position(|column| *column == Column::text("RESOURCE")) else {
        return table;
    };
    if table.rows.iter().any(|row| row[at] != table.rows[0][at]) {
        return table;
    }
    if let Some(first) = table.rows.first() {
        table.title.clone_from(&first[at]);
    }
    table.columns.remove(at);
    for row in &mut table.rows {
        row.remove(at);
    }
    table
}
