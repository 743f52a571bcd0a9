//! The dedicated machines of a simulation: what is free where, and which one a pod gets. A placement costs as many steps as there are states in which machines are.

use std::{cmp::Reverse, iter::repeat_n};

use super::{
    dice::Dice,
    groups::{Group, Groups, Step, index_of},
    kinds::Kinds,
    packing::{Largest, Usual, descent_on, fragmentation, score},
    state::{Kind, State, WHOLE},
    tally::float,
};
use crate::{job::Request, policy::Packing, pool::Pool};

/// Where a pod runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) node: u32,
    /// A bit for each of its GPUs.
    gpus: u128,
}

/// One machine.
#[derive(Debug)]
struct Node {
    group: u32,
    /// What is free of each GPU.
    free: Box<[u16]>,
    /// How many pods of each tag run on it.
    tags: Vec<(u128, u32)>,
}

/// All machines.
#[derive(Debug)]
pub(super) struct Machines {
    nodes: Vec<Node>,
    groups: Groups,
    empty: Vec<(State, u64)>,
    kinds: Kinds,
    packing: Packing,
    tagged: bool,
    largest: Largest,
    dice: Dice,
    /// How much GPU there is.
    pub(super) capacity_milli: u64,
}

/// FGD remembers what it found for this many kinds of pods.
const KEPT_KINDS: u32 = 1024;

impl Machines {
    pub(super) fn new(pool: &Pool, packing: Packing, dice: Dice) -> Self {
        let shapes = &pool.machines;
        let largest = Largest {
            cpu_milli: shapes.iter().filter_map(|shape| shape.cpu_milli).max().unwrap_or(0).max(1),
            gpu_milli: u64::from(shapes.iter().map(|shape| shape.gpus).max().unwrap_or(0).max(1))
                * u64::from(WHOLE),
        };
        let mut machines = Self {
            nodes: Vec::new(),
            groups: Groups::default(),
            empty: Vec::new(),
            kinds: Kinds::new(pool),
            packing,
            tagged: matches!(packing, Packing::Clustering | Packing::Packing),
            largest,
            dice,
            capacity_milli: pool.gpu_count() * u64::from(WHOLE),
        };
        let mut order = Vec::new();
        for (index, shape) in (0..).zip(shapes) {
            let empty = State {
                shape: index,
                idle: shape.gpus,
                cpu_milli: shape.cpu_milli.unwrap_or(u64::MAX),
                memory_mib: shape.memory_mib.unwrap_or(u64::MAX),
                partial: Vec::new(),
                tags: 0,
            };
            machines.empty.push((empty, u64::from(shape.count)));
            order.extend(repeat_n(index, shape.count as usize));
        }
        // Of machines that are equally good the lowest number is taken: chance decides that once, for all pods.
        if packing != Packing::FirstFit {
            machines.dice.shuffle(&mut order);
        }
        for shape in order {
            machines.add(shape);
        }
        machines
    }

    fn add(&mut self, shape: u32) {
        let state = self.empty[shape as usize].0.clone();
        let free = vec![WHOLE; state.idle as usize].into_boxed_slice();
        let group = self.groups.add(index_of(self.nodes.len()), state);
        self.nodes.push(Node { group, free, tags: Vec::new() });
    }

    /// The number of a kind of pods; the same for equal requests.
    pub(super) fn kind(&mut self, request: &Request) -> u32 {
        self.kinds.number(request)
    }

    pub(super) fn of(&self, kind: u32) -> &Kind {
        self.kinds.of(kind)
    }

    /// Notes that `pods` of a kind came.
    pub(super) fn came(&mut self, kind: u32, pods: u32) {
        if self.kinds.came(kind, pods) {
            self.groups.forget_scores();
        }
    }

    /// Takes these kinds for what usually comes, for ever.
    pub(super) fn know(&mut self, kinds: &[u32]) {
        self.kinds.know(kinds);
        self.groups.forget_scores();
    }

    /// Whether `pods` of a kind fit when nothing else runs.
    pub(super) fn ever_fit(&self, kind: u32, pods: u64) -> bool {
        let kind = self.of(kind);
        let mut room = 0_u64;
        for (state, count) in &self.empty {
            room = room.saturating_add(state.room(kind, pods).saturating_mul(*count));
        }
        room >= pods
    }

    /// Groups that have machines.
    fn active(&self) -> impl Iterator<Item = &Group> {
        self.groups.active().iter().map(|group| self.groups.of(*group))
    }

    /// How many pods of a kind fit now; at most `limit`.
    pub(super) fn room(&self, kind: u32, limit: u64) -> u64 {
        let kind = self.of(kind);
        let mut room = 0_u64;
        for group in self.active() {
            room =
                room.saturating_add(group.state.room(kind, limit).saturating_mul(group.nodes.len() as u64));
            if room >= limit {
                return limit;
            }
        }
        room
    }

    /// How many pods of a kind fit on this machine now; at most `limit`.
    pub(super) fn room_on(&self, kind: u32, node: u32, limit: u64) -> u64 {
        self.groups.of(self.nodes[node as usize].group).state.room(self.of(kind), limit)
    }

    /// Whether a pod of a kind fits on this machine now.
    pub(super) fn fits_on(&self, kind: u32, node: u32) -> bool {
        self.groups.of(self.nodes[node as usize].group).state.fits(self.of(kind))
    }

    /// Places a pod; nothing where none fits.
    pub(super) fn place(&mut self, kind: u32) -> Option<Spot> {
        let node = if self.packing == Packing::Random { self.any(kind)? } else { self.best(kind)? };
        let spot = Spot { node, gpus: self.choose(kind, node) };
        self.occupy(kind, spot);
        Some(spot)
    }

    /// One of the machines where it fits, by chance.
    fn any(&mut self, kind: u32) -> Option<u32> {
        let kind = self.kinds.of(kind);
        let groups = self.groups.active().iter().map(|group| self.groups.of(*group));
        let fitting: Vec<&Group> = groups.filter(|group| group.state.fits(kind)).collect();
        let count: usize = fitting.iter().map(|group| group.nodes.len()).sum();
        if count == 0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below a length")]
        let at = self.dice.below(count as u64) as usize;
        fitting.iter().flat_map(|group| &group.nodes).nth(at).copied()
    }

    /// The machine with the highest score; where there are several, the first, as in FGD's experiment. kube-scheduler draws one for each pod: that scatters pods that a heuristic says nothing about, such as those without GPUs.
    fn best(&mut self, kind: u32) -> Option<u32> {
        let mut best: Option<(u8, Reverse<u32>)> = None;
        for index in 0..self.groups.active().len() {
            let group = self.groups.active()[index];
            if self.groups.of(group).state.fits(self.kinds.of(kind)) {
                let score = self.score(group, kind);
                let first = self.groups.of(group).nodes.first();
                best = best.max(first.map(|node| (score, Reverse(*node))));
            }
        }
        best.map(|(_, Reverse(node))| node)
    }

    fn score(&mut self, group: u32, kind: u32) -> u8 {
        let (of, usual) = (self.kinds.of(kind), self.kinds.usual());
        if self.packing != Packing::Fgd || kind >= KEPT_KINDS {
            return score(self.packing, &self.groups.of(group).state, of, self.largest, usual);
        }
        let group = self.groups.of_mut(group);
        if group.scores.len() <= kind as usize {
            group.scores.resize(kind as usize + 1, None);
        }
        *group.scores[kind as usize]
            .get_or_insert_with(|| score(self.packing, &group.state, of, self.largest, usual))
    }

    /// Takes what a pod asks for at a spot where it is free.
    pub(super) fn occupy(&mut self, kind: u32, spot: Spot) {
        let tag = self.tag(kind);
        let node = &mut self.nodes[spot.node as usize];
        if tag != 0 {
            match node.tags.iter_mut().find(|(other, _)| *other == tag) {
                Some((_, count)) => *count += 1,
                None => node.tags.push((tag, 1)),
            }
        }
        let of = self.kinds.of(kind);
        let step = step(kind, of, node, spot, true, false);
        node.group = self.groups.shift(spot.node, node.group, step, |state| {
            for gpu in bits(spot.gpus) {
                state.take_share(node.free[gpu], of.milli);
            }
            if state.cpu_milli != u64::MAX {
                state.cpu_milli -= of.request.cpu_milli;
            }
            if state.memory_mib != u64::MAX {
                state.memory_mib -= of.request.memory_mib;
            }
            state.tags |= tag;
        });
        for gpu in bits(spot.gpus) {
            node.free[gpu] -= of.milli;
        }
    }

    /// Gives back what a pod had.
    pub(super) fn release(&mut self, kind: u32, spot: Spot) {
        let tag = self.tag(kind);
        let node = &mut self.nodes[spot.node as usize];
        let mut is_last = false;
        if tag != 0
            && let Some(at) = node.tags.iter().position(|(other, _)| *other == tag)
        {
            node.tags[at].1 -= 1;
            is_last = node.tags[at].1 == 0;
            if is_last {
                node.tags.remove(at);
            }
        }
        let of = self.kinds.of(kind);
        let step = step(kind, of, node, spot, false, is_last);
        node.group = self.groups.shift(spot.node, node.group, step, |state| {
            for gpu in bits(spot.gpus) {
                state.give_share(node.free[gpu], of.milli);
            }
            if state.cpu_milli != u64::MAX {
                state.cpu_milli += of.request.cpu_milli;
            }
            if state.memory_mib != u64::MAX {
                state.memory_mib += of.request.memory_mib;
            }
            if is_last {
                state.tags &= !tag;
            }
        });
        for gpu in bits(spot.gpus) {
            node.free[gpu] += of.milli;
        }
    }

    /// What packing tells pods apart by; 0 where it doesn't.
    fn tag(&self, kind: u32) -> u128 {
        if self.tagged { self.of(kind).tag } else { 0 }
    }

    /// Which GPUs of a machine where it fits a pod gets.
    fn choose(&mut self, kind: u32, node: u32) -> u128 {
        let kind = self.kinds.of(kind);
        let node = &self.nodes[node as usize];
        let enough = |(_, free): &(usize, &u16)| **free >= kind.milli;
        let mut gpus = node.free.iter().enumerate().filter(enough);
        if !kind.shares() {
            return gpus.take(kind.gpus as usize).map(|(gpu, _)| 1 << gpu).sum();
        }
        if kind.gpus > 1 {
            let mut gpus: Vec<(usize, &u16)> = gpus.collect();
            gpus.sort_by_key(|(_, free)| Reverse(**free));
            return gpus.iter().take(kind.gpus as usize).map(|(gpu, _)| 1 << gpu).sum();
        }
        let chosen = match self.packing {
            Packing::FirstFit => gpus.next(),
            Packing::Random => {
                let gpus: Vec<_> = gpus.collect();
                #[expect(clippy::cast_possible_truncation, reason = "below a length")]
                gpus.get(self.dice.below(gpus.len().max(1) as u64) as usize).copied()
            }
            Packing::Fgd => {
                let state = &self.groups.of(node.group).state;
                // The first of those that are equally good.
                gpus.rev().max_by_key(|(_, free)| descent_on(state, kind, **free, self.kinds.usual()))
            }
            Packing::BestFit | Packing::DotProduct | Packing::Packing | Packing::Clustering => {
                gpus.min_by_key(|(_, free)| **free)
            }
        };
        chosen.map_or(0, |(gpu, _)| 1 << gpu)
    }

    /// Free GPU that the usual pods can't use, on average over them, in thousandths.
    pub(super) fn fragmented_milli(&self) -> f64 {
        let with_gpus = self.kinds.usual().iter().filter(|(_, kind)| kind.gpus > 0);
        let usual: Usual = with_gpus.cloned().collect();
        let pods: u64 = usual.iter().map(|(count, _)| count).sum();
        if pods == 0 {
            return 0.0;
        }
        let sum: f64 = self
            .active()
            .map(|group| float(fragmentation(&group.state, &usual)) * float(group.nodes.len() as u64))
            .sum();
        sum / float(pods)
    }
}

/// What a pod does to a machine, if that is always the same: shares of several GPUs may be of any.
fn step(number: u32, kind: &Kind, node: &Node, spot: Spot, comes: bool, clears_tag: bool) -> Option<Step> {
    let free = match (kind.shares(), kind.gpus) {
        (false, _) => 0,
        (true, 1) => node.free[spot.gpus.trailing_zeros() as usize],
        (true, _) => return None,
    };
    Some(Step { kind: number, free, comes, clears_tag })
}

fn bits(mut mask: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(next)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Machines, Spot};
    use crate::{
        job::Request,
        policy::Packing,
        pool::Pool,
        simulate::dice::{Dice, Stream},
    };

    /// Each machine's state, worked out from what runs on it, is the one that its group tells.
    fn check(machines: &Machines, running: &[(u32, Spot)]) {
        for (number, node) in (0..).zip(&machines.nodes) {
            let found = &machines.groups.of(node.group).state;
            let mut free = vec![1000_u16; node.free.len()];
            let mut expected = machines.empty[found.shape as usize].0.clone();
            for (kind, spot) in running.iter().filter(|(_, spot)| spot.node == number) {
                let of = machines.of(*kind);
                super::bits(spot.gpus).for_each(|gpu| free[gpu] -= of.milli);
                expected.cpu_milli -= of.request.cpu_milli;
                expected.tags |= machines.tag(*kind);
            }
            expected.idle = free.iter().filter(|free| **free == 1000).map(|_| 1).sum();
            expected.partial = free.iter().copied().filter(|free| (1..1000).contains(free)).collect();
            expected.partial.sort_unstable();
            assert_eq!((&*node.free, found), (&*free, &expected), "machine {number}");
            assert!(machines.groups.of(node.group).nodes.contains(&number));
        }
        let grouped: usize = machines.active().map(|group| group.nodes.len()).sum();
        assert_eq!(grouped, machines.nodes.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_is_remembered_of_states_is_so(
            packing in prop::sample::select(vec![Packing::FirstFit, Packing::Packing, Packing::Clustering, Packing::Fgd, Packing::Random]),
            steps in prop::collection::vec((0_u32..8, 1_u32..3, 0_u64..200, any::<prop::sample::Index>()), 1..3000),
        ) {
            let mut pool = Pool::of_gpus(3, 4);
            pool.machines[0].cpu_milli = Some(1000);
            let mut machines = Machines::new(&pool, packing, Dice::new(1, Stream::Ties));
            let mut running: Vec<(u32, Spot)> = Vec::new();
            for (step, (what, gpus, cpu_milli, which)) in steps.into_iter().enumerate() {
                if what < 4 && !running.is_empty() {
                    let (kind, spot) = running.swap_remove(which.index(running.len()));
                    machines.release(kind, spot);
                } else {
                    // Most are few kinds, so that steps come again; others are of so many that states are forgotten.
                    let cpu_milli = if what < 6 { 10 } else { cpu_milli };
                    let gpu_milli = [1000, 250, 400, 1000][what as usize % 4];
                    let kind = machines.kind(&Request { gpu_milli, cpu_milli, ..Request::gpus(gpus) });
                    running.extend(machines.place(kind).map(|spot| (kind, spot)));
                }
                if step % 64 == 0 {
                    check(&machines, &running);
                }
            }
            check(&machines, &running);
        }
    }
}
