//! The dedicated machines of a simulation: what is free where, and which one a pod gets. Machines in the same state are kept together, so that a placement costs as many steps as there are states.

use std::collections::HashMap;

use super::{
    dice::Dice,
    packing::{Largest, Usual, descent, fragmentation, score},
    state::{Kind, QuickHash, State, WHOLE},
};
use crate::{
    job::Request,
    policy::Packing,
    pool::{Machines as Shape, Pool},
};

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
    /// Where it stands in its group.
    slot: u32,
    /// What is free of each GPU.
    free: Box<[u16]>,
    /// How many pods of each tag run on it.
    tags: Vec<(u128, u32)>,
}

/// Machines in the same state.
#[derive(Debug)]
struct Group {
    state: State,
    nodes: Vec<u32>,
    /// Where it stands among those that have machines.
    active: u32,
    /// What [`score`] told of each kind, where it is worth keeping.
    scores: Vec<Option<i128>>,
}

/// All machines.
#[derive(Debug)]
pub(super) struct Machines {
    nodes: Vec<Node>,
    groups: Vec<Group>,
    by_state: HashMap<State, u32, QuickHash>,
    /// Groups that have machines.
    active: Vec<u32>,
    /// Groups that may be used again.
    unused: Vec<u32>,
    empty: Vec<(State, u64)>,
    kinds: Vec<Kind>,
    by_request: HashMap<Request, u32>,
    /// The kind that was asked for last: most often the next asks for the same.
    last: u32,
    models: Vec<std::sync::Arc<str>>,
    packing: Packing,
    tagged: bool,
    largest: Largest,
    dice: Dice,
    usual: Usual,
    seen: u64,
    relearn_at: u64,
    /// How much GPU there is.
    pub(super) capacity_milli: u64,
}

/// FGD remembers what it found for this many kinds of pods.
const KEPT_KINDS: u32 = 1024;

/// Usual pods are so many kinds that they make up this share of all pods.
const USUAL_PERCENT: u64 = 95;

/// More kinds than this are not usual.
const USUAL_KINDS: usize = 64;

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
            groups: Vec::new(),
            by_state: HashMap::default(),
            active: Vec::new(),
            unused: Vec::new(),
            empty: Vec::new(),
            kinds: Vec::new(),
            by_request: HashMap::new(),
            last: 0,
            models: shapes.iter().map(|shape| shape.model.clone()).collect(),
            packing,
            tagged: matches!(packing, Packing::Clustering | Packing::Packing),
            largest,
            dice,
            usual: Vec::new(),
            seen: 0,
            relearn_at: 16,
            capacity_milli: pool.gpu_count() * u64::from(WHOLE),
        };
        for (index, shape) in (0..).zip(shapes) {
            machines.add(index, shape);
        }
        machines
    }

    fn add(&mut self, index: u32, shape: &Shape) {
        let state = State {
            shape: index,
            idle: shape.gpus,
            cpu_milli: shape.cpu_milli.unwrap_or(u64::MAX),
            memory_mib: shape.memory_mib.unwrap_or(u64::MAX),
            partial: Vec::new(),
            tags: 0,
        };
        self.empty.push((state.clone(), u64::from(shape.count)));
        for _ in 0..shape.count {
            let node = index_of(self.nodes.len());
            let free = vec![WHOLE; shape.gpus as usize].into_boxed_slice();
            self.nodes.push(Node { group: 0, slot: 0, free, tags: Vec::new() });
            self.join(node, state.clone());
        }
    }

    /// The number of a kind of pods; the same for equal requests.
    pub(super) fn kind(&mut self, request: &Request) -> u32 {
        if let Some(kind) = self.kinds.get(self.last as usize)
            && kind.request == *request
        {
            return self.last;
        }
        self.last = match self.by_request.get(request) {
            Some(kind) => *kind,
            None => self.learn(request),
        };
        self.last
    }

    fn learn(&mut self, request: &Request) -> u32 {
        let gpus = if request.gpu_milli == 0 { 0 } else { request.gpus };
        let kind = Kind {
            gpus,
            // More than a whole GPU of each fits nowhere.
            milli: u16::try_from(request.gpu_milli).unwrap_or(u16::MAX),
            models: self
                .models
                .iter()
                .map(|model| {
                    request.gpu_milli <= u32::from(WHOLE)
                        && (request.models.is_empty() || request.models.iter().any(|wanted| wanted == model))
                })
                .collect(),
            tag: if gpus == 0 {
                0
            } else if request.gpu_milli < u32::from(WHOLE) {
                1
            } else {
                1 << gpus.min(127)
            },
            request: request.clone(),
            seen: 0,
        };
        let number = index_of(self.kinds.len());
        self.kinds.push(kind);
        self.by_request.insert(request.clone(), number);
        number
    }

    pub(super) fn of(&self, kind: u32) -> &Kind {
        &self.kinds[kind as usize]
    }

    /// Notes that `pods` of a kind came, and now and then learns anew which are usual.
    pub(super) fn came(&mut self, kind: u32, pods: u32) {
        self.kinds[kind as usize].seen += u64::from(pods);
        self.seen += 1;
        if self.seen < self.relearn_at {
            return;
        }
        self.relearn_at = self.seen * 2;
        self.relearn();
    }

    /// Takes these kinds for what usually comes, for ever.
    pub(super) fn know(&mut self, kinds: &[u32]) {
        for kind in kinds {
            self.kinds[*kind as usize].seen += 1;
        }
        self.relearn_at = u64::MAX;
        self.relearn();
    }

    fn relearn(&mut self) {
        let total: u64 = self.kinds.iter().map(|kind| kind.seen).sum();
        let mut kinds: Vec<&Kind> = self.kinds.iter().collect();
        // Kinds stand in the order in which they came, and equals stay in it.
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.seen));
        self.usual.clear();
        let mut sum = 0;
        for kind in kinds.into_iter().take(USUAL_KINDS) {
            self.usual.push((kind.seen, kind.clone()));
            sum += kind.seen;
            if u128::from(sum) * 100 >= u128::from(total) * u128::from(USUAL_PERCENT) {
                break;
            }
        }
        for group in &mut self.groups {
            group.scores.clear();
        }
    }

    /// Whether `pods` of a kind fit when nothing else runs.
    pub(super) fn ever_fit(&self, kind: u32, pods: u64) -> bool {
        let kind = &self.kinds[kind as usize];
        let mut room = 0_u64;
        for (state, count) in &self.empty {
            room = room.saturating_add(state.room(kind, pods).saturating_mul(*count));
        }
        room >= pods
    }

    /// How many pods of a kind fit now; at most `limit`.
    pub(super) fn room(&self, kind: u32, limit: u64) -> u64 {
        let kind = &self.kinds[kind as usize];
        let mut room = 0_u64;
        for group in &self.active {
            let group = &self.groups[*group as usize];
            room =
                room.saturating_add(group.state.room(kind, limit).saturating_mul(group.nodes.len() as u64));
            if room >= limit {
                return limit;
            }
        }
        room
    }

    /// Whether a pod of a kind fits on this machine now.
    pub(super) fn fits_on(&self, kind: u32, node: u32) -> bool {
        let group = &self.groups[self.nodes[node as usize].group as usize];
        group.state.fits(&self.kinds[kind as usize])
    }

    /// Places a pod; nothing where none fits.
    pub(super) fn place(&mut self, kind: u32) -> Option<Spot> {
        let node = if self.packing == Packing::FirstFit { self.first(kind)? } else { self.best(kind)? };
        Some(self.place_on(kind, node))
    }

    fn first(&self, kind: u32) -> Option<u32> {
        let kind = &self.kinds[kind as usize];
        let groups = self.active.iter().map(|group| &self.groups[*group as usize]);
        groups
            .filter(|group| group.state.fits(kind))
            .filter_map(|group| group.nodes.iter().min().copied())
            .min()
    }

    /// A machine with the highest score; by chance one of them where there are several, as kube-scheduler does it.
    fn best(&mut self, kind: u32) -> Option<u32> {
        let mut best: Option<(i128, u32)> = None;
        let mut equals = 0;
        for index in 0..self.active.len() {
            let group = self.active[index];
            if !self.groups[group as usize].state.fits(&self.kinds[kind as usize]) {
                continue;
            }
            let score = self.score(group, kind);
            let count = self.groups[group as usize].nodes.len() as u64;
            match best {
                Some((other, _)) if score < other => {}
                Some((other, _)) if score == other => {
                    equals += count;
                    if self.dice.below(equals) < count {
                        best = Some((score, group));
                    }
                }
                _ => {
                    best = Some((score, group));
                    equals = count;
                }
            }
        }
        let nodes = &self.groups[best?.1 as usize].nodes;
        let slot = if nodes.len() == 1 { 0 } else { self.dice.below(nodes.len() as u64) };
        #[expect(clippy::cast_possible_truncation, reason = "below a length")]
        Some(nodes[slot as usize])
    }

    fn score(&mut self, group: u32, kind: u32) -> i128 {
        let group = &mut self.groups[group as usize];
        let of = &self.kinds[kind as usize];
        if self.packing != Packing::Fgd || kind >= KEPT_KINDS {
            return score(self.packing, &group.state, of, self.largest, &self.usual);
        }
        if group.scores.len() <= kind as usize {
            group.scores.resize(kind as usize + 1, None);
        }
        *group.scores[kind as usize]
            .get_or_insert_with(|| score(self.packing, &group.state, of, self.largest, &self.usual))
    }

    /// Places a pod on a machine where it fits.
    fn place_on(&mut self, kind: u32, number: u32) -> Spot {
        let gpus = self.choose(kind, number);
        let spot = Spot { node: number, gpus };
        self.occupy(kind, spot);
        spot
    }

    /// Takes what a pod asks for at a spot where it is free.
    pub(super) fn occupy(&mut self, kind: u32, spot: Spot) {
        let kind = &self.kinds[kind as usize];
        let node = &mut self.nodes[spot.node as usize];
        let mut state = self.groups[node.group as usize].state.clone();
        for gpu in bits(spot.gpus) {
            let free = node.free[gpu];
            node.free[gpu] = free - kind.milli;
            state.take_share(free, kind.milli);
        }
        if state.cpu_milli != u64::MAX {
            state.cpu_milli -= kind.request.cpu_milli;
        }
        if state.memory_mib != u64::MAX {
            state.memory_mib -= kind.request.memory_mib;
        }
        if self.tagged && kind.tag != 0 {
            state.tags |= kind.tag;
            match node.tags.iter_mut().find(|(tag, _)| *tag == kind.tag) {
                Some((_, count)) => *count += 1,
                None => node.tags.push((kind.tag, 1)),
            }
        }
        self.shift(spot.node, state);
    }

    /// Gives back what a pod had.
    pub(super) fn release(&mut self, kind: u32, spot: Spot) {
        let kind = &self.kinds[kind as usize];
        let node = &mut self.nodes[spot.node as usize];
        let mut state = self.groups[node.group as usize].state.clone();
        for gpu in bits(spot.gpus) {
            let free = node.free[gpu];
            node.free[gpu] = free + kind.milli;
            state.give_share(free, kind.milli);
        }
        if state.cpu_milli != u64::MAX {
            state.cpu_milli += kind.request.cpu_milli;
        }
        if state.memory_mib != u64::MAX {
            state.memory_mib += kind.request.memory_mib;
        }
        if self.tagged
            && kind.tag != 0
            && let Some(at) = node.tags.iter().position(|(tag, _)| *tag == kind.tag)
        {
            node.tags[at].1 -= 1;
            if node.tags[at].1 == 0 {
                node.tags.remove(at);
                state.tags &= !kind.tag;
            }
        }
        self.shift(spot.node, state);
    }

    /// Which GPUs of a machine where it fits a pod gets.
    fn choose(&mut self, kind: u32, node: u32) -> u128 {
        let kind = &self.kinds[kind as usize];
        let node = &self.nodes[node as usize];
        let enough = |(_, free): &(usize, &u16)| **free >= kind.milli;
        let mut gpus = node.free.iter().enumerate().filter(enough);
        if !kind.shares() {
            return gpus.take(kind.gpus as usize).map(|(gpu, _)| 1 << gpu).sum();
        }
        if kind.gpus > 1 {
            let mut gpus: Vec<(usize, &u16)> = gpus.collect();
            gpus.sort_by_key(|(_, free)| std::cmp::Reverse(**free));
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
                let state = &self.groups[node.group as usize].state;
                let wanted = descent(state, kind, &self.usual).1;
                gpus.find(|(_, free)| Some(**free) == wanted)
            }
            Packing::BestFit | Packing::DotProduct | Packing::Packing | Packing::Clustering => {
                gpus.min_by_key(|(_, free)| **free)
            }
        };
        chosen.map_or(0, |(gpu, _)| 1 << gpu)
    }

    /// Moves a machine to the group of its new state.
    fn shift(&mut self, number: u32, state: State) {
        let Node { group: old, slot, .. } = self.nodes[number as usize];
        let group = &mut self.groups[old as usize];
        group.nodes.swap_remove(slot as usize);
        if let Some(moved) = group.nodes.get(slot as usize) {
            self.nodes[*moved as usize].slot = slot;
        }
        if group.nodes.is_empty() {
            let at = group.active;
            self.active.swap_remove(at as usize);
            if let Some(moved) = self.active.get(at as usize) {
                self.groups[*moved as usize].active = at;
            }
        }
        self.join(number, state);
    }

    fn join(&mut self, number: u32, state: State) {
        let id = match self.by_state.get(&state) {
            Some(id) => *id,
            None => self.open(state),
        };
        let group = &mut self.groups[id as usize];
        if group.nodes.is_empty() {
            group.active = index_of(self.active.len());
            self.active.push(id);
        }
        let node = &mut self.nodes[number as usize];
        node.group = id;
        node.slot = index_of(group.nodes.len());
        group.nodes.push(number);
    }

    fn open(&mut self, state: State) -> u32 {
        if self.by_state.len() > 4 * self.nodes.len() + 1024 {
            self.sweep();
        }
        let group = Group { state: state.clone(), nodes: Vec::new(), active: 0, scores: Vec::new() };
        let id = if let Some(id) = self.unused.pop() {
            self.groups[id as usize] = group;
            id
        } else {
            self.groups.push(group);
            index_of(self.groups.len() - 1)
        };
        self.by_state.insert(state, id);
        id
    }

    /// Forgets states in which no machine is.
    fn sweep(&mut self) {
        for (id, group) in (0..).zip(&self.groups) {
            if group.nodes.is_empty() && self.by_state.get(&group.state) == Some(&id) {
                self.by_state.remove(&group.state);
                self.unused.push(id);
            }
        }
    }

    /// Free GPU that the usual pods can't use, on average over them, in thousandths.
    pub(super) fn fragmented_milli(&self) -> f64 {
        let pods: u64 = self.usual.iter().filter(|(_, kind)| kind.gpus > 0).map(|(count, _)| count).sum();
        if pods == 0 {
            return 0.0;
        }
        let usual: Usual = self.usual.iter().filter(|(_, kind)| kind.gpus > 0).cloned().collect();
        let sum: i128 = self
            .active
            .iter()
            .map(|group| &self.groups[*group as usize])
            .map(|group| fragmentation(&group.state, &usual) * i128::from(index_of(group.nodes.len())))
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "a mean, far below 2^53")]
        {
            sum as f64 / pods as f64
        }
    }
}

/// Numbers of machines, groups and kinds: pools are limited to far fewer than 2^32.
#[expect(clippy::cast_possible_truncation, reason = "as said")]
fn index_of(index: usize) -> u32 {
    index as u32
}

fn bits(mut mask: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(next)
    })
}
