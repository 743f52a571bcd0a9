//! Which machine is best for a pod, by each of the heuristics, as a whole number: the same on every machine. Higher is better.

use super::state::{Kind, State, WHOLE};
use crate::policy::Packing;

/// What heuristics weigh one amount against another with: the most that any machine of the pool has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Largest {
    pub(super) cpu_milli: u64,
    pub(super) gpu_milli: u64,
}

/// The kinds of pods that usually come, with how many of each came.
pub(super) type Usual = Vec<(u64, Kind)>;

/// How good a machine in `state` is for a pod of `kind`, which fits.
pub(super) fn score(packing: Packing, state: &State, kind: &Kind, largest: Largest, usual: &Usual) -> i128 {
    match packing {
        Packing::FirstFit | Packing::Random => 0,
        Packing::BestFit => best_fit(state, kind, largest),
        Packing::DotProduct => dot_product(state, kind, largest),
        Packing::Packing => pack(state, kind),
        Packing::Clustering => cluster(state, kind),
        Packing::Fgd => descent(state, kind, usual).0,
    }
}

/// CPU where it is looked at, 0 where it isn't: there it can't tell machines apart.
fn cpu(state: &State) -> u64 {
    if state.cpu_milli == u64::MAX { 0 } else { state.cpu_milli }
}

/// What is left afterwards, as shares of the largest machine's CPU and GPUs.
fn best_fit(state: &State, kind: &Kind, largest: Largest) -> i128 {
    let gpu = i128::from(state.free_milli()) - i128::from(kind.total_milli());
    let cpu = i128::from(cpu(state)) - i128::from(kind.request.cpu_milli);
    -(gpu * i128::from(largest.cpu_milli) + cpu * i128::from(largest.gpu_milli))
}

fn dot_product(state: &State, kind: &Kind, largest: Largest) -> i128 {
    let gpu = i128::from(state.free_milli()) * i128::from(kind.total_milli());
    let cpu = i128::from(cpu(state)) * i128::from(kind.request.cpu_milli);
    -(gpu * i128::from(largest.cpu_milli).pow(2) + cpu * i128::from(largest.gpu_milli).pow(2))
}

/// GPUs that are shared already, with little left; then idle GPUs of a machine in use, few; then an idle machine.
fn pack(state: &State, kind: &Kind) -> i128 {
    const CASE: i128 = 1 << 32;
    if kind.gpus == 0 {
        return 0;
    }
    if state.tags == 0 {
        return -i128::from(state.idle);
    }
    let mut missing = kind.gpus;
    let mut left = 0;
    if kind.shares() {
        for free in state.partial.iter().filter(|free| **free >= kind.milli).take(missing as usize) {
            left += i128::from(*free);
            missing -= 1;
        }
    }
    if missing > 0 { CASE - i128::from(missing) } else { 2 * CASE - left }
}

/// A machine where only pods like this run, then where such run too, then an idle one, then others; of each the fullest.
fn cluster(state: &State, kind: &Kind) -> i128 {
    const CASE: i128 = 1 << 32;
    if kind.gpus == 0 {
        return 0;
    }
    let case = if state.tags == kind.tag {
        3
    } else if state.tags & kind.tag != 0 {
        2
    } else {
        i128::from(state.tags == 0)
    };
    case * CASE - i128::from(state.free_milli())
}

/// How much less fragmented the machine is with the pod than without it, as the usual pods see it; and of which GPU to take a share, told by how much of it is free.
pub(super) fn descent(state: &State, kind: &Kind, usual: &Usual) -> (i128, Option<u16>) {
    let before = fragmentation(state, usual);
    let mut after = state.clone();
    if after.cpu_milli != u64::MAX {
        after.cpu_milli -= kind.request.cpu_milli;
    }
    if after.memory_mib != u64::MAX {
        after.memory_mib -= kind.request.memory_mib;
    }
    if !kind.shares() {
        after.idle -= kind.gpus;
        return (before - fragmentation(&after, usual), None);
    }
    let mut best = None;
    let mut last = 0;
    for free in candidates(state, kind) {
        if free == last {
            continue;
        }
        last = free;
        let mut taken = after.clone();
        // Where a pod wants shares of several GPUs, one of them stands for all.
        taken.take_share(free, kind.milli);
        let score = before - fragmentation(&taken, usual);
        if best.is_none_or(|(other, _)| score > other) {
            best = Some((score, Some(free)));
        }
    }
    best.unwrap_or((i128::MIN, None))
}

/// GPUs of which a share can be had, by how much of them is free, fullest first.
fn candidates<'a>(state: &'a State, kind: &Kind) -> impl Iterator<Item = u16> + use<'a> {
    let milli = kind.milli;
    let idle = (state.idle > 0).then_some(WHOLE);
    state.partial.iter().copied().filter(move |free| *free >= milli).chain(idle)
}

/// How much free GPU the usual pods could not use, summed over as many as came, in thousandths.
pub(super) fn fragmentation(state: &State, usual: &Usual) -> i128 {
    usual.iter().map(|(count, kind)| i128::from(*count) * i128::from(state.unusable_milli(kind))).sum()
}
