//! A report as a page: each pool of machines that are owned, each virtual node by itself, who holds and does nothing, where accelerators are stranded, and why pods wait.

use std::collections::BTreeMap;

use super::model::{Axis, Bars, Drawing, Fact, Page, Part, Plot, Role, Section, Unit};
use crate::{
    fragmentation::Cause,
    optimize::words::number,
    output::{Column, Table},
    report::{Pool, Report, Stranded},
};

/// Resources of every machine; all others are accelerators here.
const USUAL: [&str; 4] = ["cpu", "memory", "pods", "ephemeral-storage"];

/// More machines are counted, not shown one by one.
const EACH: usize = 30;

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
            heading: "What was looked at beside nodes and pods".to_owned(),
            text: report.seen.clone(),
            ..Section::default()
        });
    }
    Page {
        title: title(report),
        subtitle: subject.to_owned(),
        generated_at: report.at,
        facts: facts(report),
        warnings: report.not_seen.iter().chain(&report.price_notes).cloned().collect(),
        sections,
    }
}

/// What asks for attention first.
fn title(report: &Report) -> String {
    let many = |count: i64, one: &str, more: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        _ => Some(format!("{} {more}", count_of(count))),
    };
    let found: Vec<String> = [
        many(waiting_pods(report), "pod waits", "pods wait"),
        many(idle_devices(report), "accelerator is held but idle", "accelerators are held but idle"),
        many(
            stranded_devices(report),
            "accelerator is free but of no use",
            "accelerators are free but of no use",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    match found.as_slice() {
        [] if watched(report) => "No pod waits, and no accelerator is idle or stranded".to_owned(),
        [] => "No pod waits, and no accelerator is stranded".to_owned(),
        [one] => one.clone(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}

fn waiting_pods(report: &Report) -> i64 {
    let pods: usize = report.waiting.iter().map(|one| one.pods.unwrap_or(1)).sum();
    i64::try_from(pods).unwrap_or(i64::MAX)
}

fn idle_devices(report: &Report) -> i64 {
    report.idle.iter().map(|holder| holder.devices).sum()
}

fn stranded_devices(report: &Report) -> i64 {
    report.stranded.iter().map(|one| one.devices).sum()
}

/// Whether it is known of any accelerator that is held what it does.
fn watched(report: &Report) -> bool {
    accelerators(report).all(|pool| pool.allocated == 0) || accelerators(report).any(|pool| pool.watched > 0)
}

fn accelerators(report: &Report) -> impl Iterator<Item = &Pool> {
    report.dedicated.iter().filter(|pool| !USUAL.contains(&pool.resource.as_str()))
}

/// By its model; with the resource where the same model is offered as several.
fn name(report: &Report, pool: &Pool) -> String {
    let Some(model) = &pool.model else { return pool.resource.clone() };
    let alike = accelerators(report).filter(|other| other.model == pool.model).count();
    if alike > 1 { format!("{model} ({})", pool.resource) } else { model.clone() }
}

#[expect(clippy::cast_precision_loss, reason = "devices")]
fn float(count: i64) -> f64 {
    count as f64
}

fn count_of(value: i64) -> String {
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
            name(report, pool),
            format!("{} of {}", count_of(pool.allocated), count_of(pool.allocatable)),
            format!("held ({}); {} free", share(pool.allocated, pool.allocatable), count_of(pool.free)),
        ));
    }
    let idle = idle_devices(report);
    let cost: f64 = report.idle.iter().filter_map(|holder| holder.cost_per_hour).sum();
    let currency = report.currency.map(|currency| format!(" {currency}")).unwrap_or_default();
    let price = if cost > 0.0 { format!(", {}{currency} per hour", number(cost, 2)) } else { String::new() };
    facts.push(if idle > 0 || watched(report) {
        Fact::new("Held, but idle", count_of(idle), format!("by {} pods{price}", report.idle.len()))
            .alarming(idle > 0)
    } else {
        Fact::new("Held, but idle", "unknown", "nothing here tells what they do")
    });
    let stranded = stranded_devices(report);
    facts.push(
        Fact::new(
            "Stranded",
            count_of(stranded),
            if stranded > 0 {
                format!("free on {} machines, and of no use", count_of(machines(report)))
            } else {
                "all that is free can be used".to_owned()
            },
        )
        .alarming(stranded > 0),
    );
    let waiting = waiting_pods(report);
    let kinds = match report.waiting.len() {
        0 => String::new(),
        1 => "all alike".to_owned(),
        groups => format!("of {groups} kinds"),
    };
    facts.push(Fact::new("Pods that wait", count_of(waiting), kinds).alarming(waiting > 0));
    facts
}

fn machines(report: &Report) -> i64 {
    let mut nodes: Vec<&str> = report.stranded.iter().map(|one| one.node.as_str()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    i64::try_from(nodes.len()).unwrap_or(i64::MAX)
}

/// A word of the JSON as people read it: `too_large`.
fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|word| Some(word.as_str()?.replace('_', " ")))
        .unwrap_or_default()
}

fn waiting(report: &Report, table: Table) -> Section {
    let mut by_reason: BTreeMap<String, f64> = BTreeMap::new();
    for one in &report.waiting {
        let pods = i64::try_from(one.pods.unwrap_or(1)).unwrap_or(i64::MAX);
        *by_reason.entry(word(one.reason)).or_default() += float(pods);
    }
    let mut bars = Bars {
        value: Axis::new("Pods", Unit::Number),
        names: by_reason.keys().cloned().collect(),
        parts: vec![Part {
            name: "waiting".to_owned(),
            role: Role::Waiting,
            values: by_reason.values().copied().collect(),
        }],
    };
    bars.greatest_first();
    let pods = match waiting_pods(report) {
        1 => "1 pod waits".to_owned(),
        more => format!("{} pods wait", count_of(more)),
    };
    Section {
        name: "Why pods wait".to_owned(),
        heading: match (report.waiting.as_slice(), bars.names.as_slice()) {
            ([], _) | (_, []) => "No pod waits".to_owned(),
            ([one], _) => format!("{pods}: {}", one.why),
            (_, [only]) => format!("{pods}, all for one reason: {only}"),
            (_, [first, ..]) => format!("{pods}, most often: {first}"),
        },
        plot: (bars.names.len() > 1)
            .then(|| Plot { caption: "Pods that wait, by reason.".to_owned(), drawing: Drawing::Bars(bars) }),
        table,
        ..Section::default()
    }
}

fn dedicated(report: &Report, table: Table) -> Section {
    let pools: Vec<&Pool> = accelerators(report).collect();
    let part = |name: &str, role, of: fn(&Pool) -> i64| Part {
        name: name.to_owned(),
        role,
        values: pools.iter().map(|pool| float(of(pool).max(0))).collect(),
    };
    let held = if watched(report) { "held, not seen idle" } else { "held" };
    let mut bars = Bars {
        value: Axis::new("Accelerators", Unit::Number),
        names: pools.iter().map(|pool| name(report, pool)).collect(),
        parts: vec![
            part(held, Role::Used, |pool| pool.allocated - pool.idle),
            part("held, but idle", Role::Idle, |pool| pool.idle),
            part("free", Role::Free, |pool| pool.free - pool.stranded),
            part("stranded", Role::Stranded, |pool| pool.stranded),
            part("out of service", Role::Waiting, |pool| pool.capacity - pool.allocatable),
        ],
    };
    // What nobody has needs no place in the legend.
    bars.parts.retain(|part| part.values.iter().any(|&value| value > 0.0));
    Section {
        name: "Machines that you own".to_owned(),
        heading: owned_heading(report, &pools),
        text: if pools.is_empty() { vec!["No machine here offers accelerators.".to_owned()] } else { Vec::new() },
        plot: (!pools.is_empty()).then(|| Plot {
            caption: "Accelerators of each pool by what becomes of them. Stranded ones are free, but no pod that waits or runs here could use them.".to_owned(),
            drawing: Drawing::Bars(bars),
        }),
        table,
        ..Section::default()
    }
}

fn owned_heading(report: &Report, pools: &[&Pool]) -> String {
    let room = |pool: &&&Pool| pool.largest_pod.as_ref().map_or(0, |largest| largest.devices);
    match pools.iter().max_by_key(room) {
        Some(pool) if room(&pool) > 0 => {
            format!(
                "Machines that you own: the largest pod that fits now has {} ({})",
                count_of(room(&pool)),
                name(report, pool)
            )
        }
        Some(_) => "Machines that you own: no pod fits that asks for one".to_owned(),
        None => "Machines that you own".to_owned(),
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
        ..Section::default()
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
        name: "Held, but idle".to_owned(),
        heading: match bars.names.first() {
            Some(first) => format!("Held, but idle: most of it by {first}"),
            None => "Held, but idle".to_owned(),
        },
        text: match (report.idle.is_empty(), watched(report)) {
            (false, _) => Vec::new(),
            (true, true) => vec!["Nobody is seen to hold accelerators and do nothing.".to_owned()],
            (true, false) => {
                vec!["Nobody can tell: nothing in this cluster says what accelerators do.".to_owned()]
            }
        },
        plot: (!report.idle.is_empty()).then(|| Plot {
            caption: "Accelerators that pods hold and do nothing with, by namespace.".to_owned(),
            drawing: Drawing::Bars(bars),
        }),
        table,
        ..Section::default()
    }
}

/// In the order of columns.
const CAUSES: [(Cause, &str); 9] = [
    (Cause::TooFew, "too few together"),
    (Cause::Cpu, "no CPU"),
    (Cause::Memory, "no memory"),
    (Cause::CpuAndMemory, "CPU and memory"),
    (Cause::Numa, "NUMA"),
    (Cause::Nvlink, "NVLink"),
    (Cause::Profile, "MIG profile"),
    (Cause::Pods, "no more pods"),
    (Cause::Closed, "closed"),
];

fn cause(cause: Cause) -> String {
    CAUSES
        .iter()
        .find(|(known, _)| *known == cause)
        .map_or_else(|| word(cause), |(_, name)| (*name).to_owned())
}

fn stranded(report: &Report, table: Table) -> Section {
    let mut nodes: BTreeMap<&str, Vec<&Stranded>> = BTreeMap::new();
    for one in &report.stranded {
        nodes.entry(&one.node).or_default().push(one);
    }
    let mut causes: Vec<Cause> = report.stranded.iter().map(|one| one.cause).collect();
    causes.sort_unstable();
    causes.dedup();
    let plot = match nodes.len() {
        0 => None,
        1..=EACH => Some(by_machine(&nodes, &causes)),
        _ => Some(by_number(&nodes, &causes)),
    };
    Section {
        name: "Stranded".to_owned(),
        heading: match plot {
            Some(_) => {
                format!("{} stranded: free, but of no use", count_of(stranded_devices(report)))
            }
            None => "Every free accelerator can be used".to_owned(),
        },
        plot,
        table: if table.columns.is_empty() { table } else { narrowed(table) },
        ..Section::default()
    }
}

fn devices(found: &[&Stranded], cause: Cause) -> f64 {
    float(found.iter().filter(|one| one.cause == cause).map(|one| one.devices).sum())
}

/// A bar for each machine.
fn by_machine(nodes: &BTreeMap<&str, Vec<&Stranded>>, causes: &[Cause]) -> Plot {
    let mut bars = Bars {
        value: Axis::new("Accelerators", Unit::Number),
        names: nodes.keys().map(|node| (*node).to_owned()).collect(),
        parts: parts(causes, |one| nodes.values().map(|found| devices(found, one)).collect()),
    };
    bars.greatest_first();
    let caption = "Accelerators that are free and of no use, by machine and cause.".to_owned();
    Plot { caption, drawing: Drawing::Bars(bars) }
}

/// A part for each cause, which looks the same wherever it stands.
fn parts(causes: &[Cause], values: impl Fn(Cause) -> Vec<f64>) -> Vec<Part> {
    let roles = [Role::Stranded, Role::Waiting, Role::Idle, Role::Rented, Role::Demand];
    let part = |(role, one): (&Role, &Cause)| Part { name: cause(*one), role: *role, values: values(*one) };
    roles.iter().cycle().zip(causes).map(part).collect()
}

/// How many machines have how many that are stranded: of thousands, one by one nobody reads them.
fn by_number(nodes: &BTreeMap<&str, Vec<&Stranded>>, causes: &[Cause]) -> Plot {
    let mut numbers: BTreeMap<i64, BTreeMap<Cause, f64>> = BTreeMap::new();
    for found in nodes.values() {
        let all: i64 = found.iter().map(|one| one.devices).sum();
        // By what most of them are stranded for.
        let main = causes.iter().rev().max_by(|a, b| devices(found, **a).total_cmp(&devices(found, **b)));
        if let Some(main) = main {
            *numbers.entry(all).or_default().entry(*main).or_default() += 1.0;
        }
    }
    let bars = Bars {
        value: Axis::new("Machines", Unit::Number),
        names: numbers.keys().map(|number| format!("{} stranded", count_of(*number))).collect(),
        parts: parts(causes, |one| {
            numbers.values().map(|counts| counts.get(&one).copied().unwrap_or_default()).collect()
        }),
    };
    let caption = format!(
        "{} machines by how many of their accelerators are free and of no use, and by why most of those are.",
        count_of(i64::try_from(nodes.len()).unwrap_or(i64::MAX))
    );
    Plot { caption, drawing: Drawing::Bars(bars) }
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
