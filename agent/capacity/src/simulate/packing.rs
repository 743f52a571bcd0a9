//! Which machine is best for a pod, by each of the heuristics of FGD (ATC'23), as its simulator scores them.
//!
//! Scores are whole numbers from 0 to 100, higher is better, as in kube-scheduler. They are coarse: many machines score the same.

use super::{
    state::{Kind, State, WHOLE},
    tally::float,
};
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
pub(super) fn score(packing: Packing, state: &State, kind: &Kind, largest: Largest, usual: &Usual) -> u8 {
    match packing {
        Packing::FirstFit | Packing::Random => 0,
        Packing::BestFit => best_fit(state, kind, largest),
        Packing::DotProduct => dot_product(state, kind, largest),
        Packing::Packing => pack(state, kind),
        Packing::Clustering => cluster(state, kind, largest),
        Packing::Fgd => descent(state, kind, usual),
    }
}

/// A share between 0 and 1 as a score. Rounded down.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn scaled(share: f64) -> u8 {
    (share * 100.0) as u8
}

/// CPU where it is looked at, 0 where it isn't: there it can't tell machines apart.
fn cpu(state: &State) -> u64 {
    if state.cpu_milli == u64::MAX { 0 } else { state.cpu_milli }
}

/// How little is left afterwards, as shares of the largest machine's CPU and GPUs.
fn best_fit(state: &State, kind: &Kind, largest: Largest) -> u8 {
    let gpu = float(state.free_milli() - kind.total_milli()) / float(largest.gpu_milli);
    let cpu = float(cpu(state).saturating_sub(kind.request.cpu_milli)) / float(largest.cpu_milli);
    scaled(1.0 - f64::midpoint(gpu, cpu))
}

/// How little of what the pod asks for much of is free.
fn dot_product(state: &State, kind: &Kind, largest: Largest) -> u8 {
    let product = |free: u64, asked: u64, most: u64| float(free) / float(most) * (float(asked) / float(most));
    let gpu = product(state.free_milli(), kind.total_milli(), largest.gpu_milli);
    let cpu = product(cpu(state), kind.request.cpu_milli, largest.cpu_milli);
    scaled(1.0 - f64::midpoint(gpu, cpu))
}

/// GPUs that are shared already, with little left; then idle GPUs of a machine in use, few; then an idle machine, a small one.
fn pack(state: &State, kind: &Kind) -> u8 {
    if kind.gpus == 0 {
        return 0;
    }
    let less = |score: u8, by: u32| score.saturating_sub(u8::try_from(by).unwrap_or(u8::MAX));
    if state.tags == 0 {
        return less(33, state.idle);
    }
    let shared: Vec<u16> = if kind.shares() {
        let enough = state.partial.iter().copied().filter(|free| *free >= kind.milli);
        enough.take(kind.gpus as usize).collect()
    } else {
        Vec::new()
    };
    let idle = kind.gpus.saturating_sub(shared.len().try_into().unwrap_or(u32::MAX));
    if idle > 0 {
        less(50, idle).max(33)
    } else {
        less(100, shared.iter().map(|free| u32::from(*free) / 10).sum::<u32>() / 10).max(50)
    }
}

/// A machine where only pods like this run, then where such run too, then an idle one, then others; of each one with little GPU free.
fn cluster(state: &State, kind: &Kind, largest: Largest) -> u8 {
    if kind.gpus == 0 {
        return 0;
    }
    let case = if state.tags == kind.tag {
        75
    } else if state.tags & kind.tag != 0 {
        50
    } else if state.tags == 0 {
        25
    } else {
        0
    };
    case + scaled((1.0 - float(state.free_milli()) / float(largest.gpu_milli)) / 4.0)
}

/// How much less fragmented the machine is with the pod than without it, on the GPU where that is best.
fn descent(state: &State, kind: &Kind, usual: &Usual) -> u8 {
    if !kind.shares() {
        return descent_on(state, kind, WHOLE, usual);
    }
    // Smallest first, equals side by side.
    let mut free: Vec<u16> = state.partial.iter().copied().filter(|free| *free >= kind.milli).collect();
    free.extend((state.idle > 0).then_some(WHOLE));
    free.dedup();
    free.into_iter().map(|free| descent_on(state, kind, free, usual)).max().unwrap_or(0)
}

/// How much less fragmented the machine is with the pod than without it, as the usual pods see it, where the pod takes its share of a GPU of which `free` is free. Where it takes shares of several, one of them stands for all.
pub(super) fn descent_on(state: &State, kind: &Kind, free: u16, usual: &Usual) -> u8 {
    let mut after = state.clone();
    if after.cpu_milli != u64::MAX {
        after.cpu_milli -= kind.request.cpu_milli;
    }
    if after.memory_mib != u64::MAX {
        after.memory_mib -= kind.request.memory_mib;
    }
    if kind.shares() {
        after.take_share(free, kind.milli);
    } else {
        after.idle -= kind.gpus;
    }
    let pods = float(usual.iter().map(|(count, _)| count).sum::<u64>().max(1));
    let gpus = |state: &State| float(fragmentation(state, usual)) / pods / f64::from(WHOLE);
    scaled(sigmoid(gpus(state) - gpus(&after)))
}

/// From 0 for much below nothing to 1 for much above it. Its exponential is made of multiplications: libraries round theirs each their own way.
fn sigmoid(x: f64) -> f64 {
    const HALVINGS: i32 = 20;
    let mut exp = 1.0 - x / f64::from(1 << HALVINGS);
    for _ in 0..HALVINGS {
        exp *= exp;
    }
    1.0 / (1.0 + exp)
}

/// How much free GPU the usual pods could not use, summed over as many as came, in thousandths.
pub(super) fn fragmentation(state: &State, usual: &Usual) -> u64 {
    usual
        .iter()
        .map(|(count, kind)| count.saturating_mul(state.unusable_milli(kind)))
        .fold(0, u64::saturating_add)
}
