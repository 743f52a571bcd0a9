//! NVIDIA's own device plugin and GPU feature discovery beside ours: the same stand-in for the driver, the same configuration, the same
//! questions; answers are compared one by one. What may differ is listed below with the reason; whatever else does fails the test, and so
//! does a difference that is listed and isn't there any more.

mod allowed;
mod case;
mod cases;
mod facts;
mod machine;
#[allow(clippy::unwrap_used, dead_code, reason = "the plugins' own tests use more of it")]
#[path = "../../../device-plugin/tests/standin_kubelet/mod.rs"]
mod standin_kubelet;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, bail};
use spillway_tests::components;

use crate::Alone;

use self::{
    case::Case,
    facts::Facts,
    machine::{Machine, Plugin, Side},
};

pub(crate) const ALONE: &[Alone] =
    &[("peer::nvidias_plugin_and_ours_say_the_same", nvidias_plugin_and_ours_say_the_same)];

/// Set to a part of a case's name to look at it alone, with everything that both said.
const ONLY: &str = "SPILLWAY_PEER_CASE";

fn nvidias_plugin_and_ours_say_the_same() -> anyhow::Result<()> {
    components::ensure_peer()?;
    machine::require()?;
    let only = std::env::var(ONLY).ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let used: BTreeMap<usize, AtomicUsize> =
        (0..allowed::ALLOWED.len()).map(|place| (place, AtomicUsize::new(0))).collect();
    let (mut same, mut wrong) = (0, Vec::new());
    for case in cases::all() {
        if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
            continue;
        }
        let (theirs, ours) = match runtime.block_on(compare(&case)) {
            Ok(both) => both,
            Err(error) => {
                wrong.push(format!("{}: {error:#}", case.name));
                continue;
            }
        };
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        let mut alike = 0;
        for key in theirs.keys().chain(ours.keys().filter(|key| !theirs.contains_key(*key))) {
            let (their, our) = (theirs.get(key), ours.get(key));
            if only.is_some() {
                println!("    {key}: {} | {}", said(their), said(our));
            }
            if their == our {
                alike += 1;
                continue;
            }
            match allowed::ALLOWED.iter().position(|allowed| allowed.fits(case.name, key)) {
                Some(place) => {
                    used[&place].fetch_add(1, Ordering::Relaxed);
                    *reasons.entry(allowed::ALLOWED[place].why).or_default() += 1;
                }
                None => wrong.push(format!(
                    "{}: {key}: NVIDIA's says {}, ours {}",
                    case.name,
                    said(their),
                    said(our)
                )),
            }
        }
        same += alike;
        println!("  {:34} {alike:4} alike{}", case.name, listed(&reasons));
    }
    println!("  {same} answers alike in all");
    if only.is_none() {
        for (place, count) in used {
            if count.into_inner() == 0 && !allowed::ALLOWED[place].chance {
                let allowed = &allowed::ALLOWED[place];
                wrong.push(format!(
                    "{:?} {:?} is listed as a difference and is none: take it out of the list",
                    allowed.case, allowed.key
                ));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{} differences:\n{}", wrong.len(), wrong.join("\n"));
    }
    Ok(())
}

fn said(answer: Option<&String>) -> String {
    answer.map_or_else(|| "nothing".to_owned(), |answer| format!("{answer:?}"))
}

fn listed(reasons: &BTreeMap<&str, usize>) -> String {
    let reasons: Vec<_> = reasons.iter().map(|(why, count)| format!("; {count}: {why}")).collect();
    reasons.concat()
}

/// What each of them says: NVIDIA's, ours.
async fn compare(case: &Case) -> anyhow::Result<(Facts, Facts)> {
    let machine = Machine::new(case.gpus, case.config)?;
    let layout = (case.migs)();
    machine.partition(case.gpus, &layout, case.nodes)?;
    machine.gpus.connect_all(case.links)?;
    (case.machine)(&machine.gpus)?;

    let (mut theirs, mut ours) = (machine.start(Plugin::Nvidia)?, machine.start(Plugin::Ours)?);
    let our = ours.settle(case.ours.unwrap_or(case.offers), case.ours.is_some(), case.ends.1);
    let (their, our) = tokio::join!(theirs.settle(case.offers, false, case.ends.0), our);
    let mut both = [("NVIDIA's", theirs, their?), ("ours", ours, our?)];
    if let Some((breaks, processed)) = case.breaks {
        for (name, side, _) in &mut both {
            side.noticed(
                || breaks(&machine.gpus),
                |seen, log| {
                    let sick = seen.lists.values().flatten().any(|device| device.health == "Unhealthy");
                    // NVIDIA's misses some, but says that it has looked.
                    sick || *name == "NVIDIA's" && log.contains(processed)
                },
            )
            .await?;
        }
    }
    let mut found = Vec::new();
    for (name, side, runs) in both {
        let told = tell(case, &side, runs).await;
        let log = side.log();
        side.stop().await?;
        let told = told.with_context(|| format!("{name} wrote:\n{log}"))?;
        if std::env::var_os(ONLY).is_some() {
            println!("--- {name}\n{log}");
        }
        found.push(told);
    }
    let (mut ours, mut theirs) = (found.pop().unwrap_or_default(), found.pop().unwrap_or_default());
    if !case.only_starts {
        match machine.nvidias_labels().await? {
            Ok(labels) => {
                theirs.extend(labels.into_iter().map(|(key, value)| (format!("label {key}"), value)));
            }
            Err(why) => {
                theirs.insert("labels".to_owned(), format!("none: {why}"));
            }
        }
        ours.extend(
            machine.our_labels().await?.into_iter().map(|(key, value)| (format!("label {key}"), value)),
        );
    }
    let names = [cdi_names(&theirs), cdi_names(&ours)];
    for (facts, others) in [(&mut theirs, &names[1]), (&mut ours, &names[0])] {
        facts.retain(|key, _| {
            let name = key.strip_prefix(facts::CDI).and_then(|rest| rest.split(' ').next());
            name.is_none_or(|name| name == "device" || others.contains(name))
        });
    }
    Ok((theirs, ours))
}

/// The CDI devices that there are. What one that the other side has not consists of is no further difference.
fn cdi_names(facts: &Facts) -> BTreeSet<String> {
    let names = facts.keys().filter_map(|key| key.strip_prefix(facts::CDI)?.strip_prefix("device "));
    names.map(str::to_owned).collect()
}

/// What one of them says.
async fn tell(case: &Case, side: &Side, runs: bool) -> anyhow::Result<Facts> {
    let mut all = Facts::new();
    all.insert("process".to_owned(), if runs { "runs" } else { "ends" }.to_owned());
    if !runs {
        return Ok(all);
    }
    all.extend(facts::listed(side));
    if case.only_starts {
        return Ok(all);
    }
    let shape = |chosen: &[String]| shape(case, chosen);
    for ask in &case.asks {
        all.extend(facts::asked(side, ask, &shape).await);
    }
    all.extend(facts::specified(&side.folder.join("cdi"))?);
    Ok(all)
}

/// What a choice of devices is worth, where several are as good: how many of each GPU, how many links between them, from how many halves
/// of the machine.
fn shape(case: &Case, chosen: &[String]) -> String {
    let mut units: BTreeMap<&str, usize> = BTreeMap::new();
    for id in chosen {
        *units.entry(id.split("::").next().unwrap_or(id)).or_default() += 1;
    }
    let mut counts: Vec<_> = units.values().copied().collect();
    counts.sort_unstable();
    let minors: Vec<u32> = units.keys().filter_map(|unit| unit.rsplit('-').next()?.parse().ok()).collect();
    let links: u32 = case
        .links
        .iter()
        .filter(|(one, other, _)| minors.contains(one) && minors.contains(other))
        .map(|(.., links)| links)
        .sum();
    let mut halves: Vec<_> = minors.iter().map(|minor| minor * 2 / case.gpus.max(1)).collect();
    halves.sort_unstable();
    halves.dedup();
    format!("{counts:?} of each, {links} links between them, from {} halves", halves.len())
}
