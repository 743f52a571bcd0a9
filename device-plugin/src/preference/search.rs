//! The search behind a preference: how many devices of which accelerator. Exact as long as there are not too many ways, which covers
//! 8 of 16 GPUs; beyond that the best of a few good choices, improved by exchanging one for another as long as that helps.

use std::cmp::Reverse;

/// Ways that are tried one by one; 8 of 16 are 12,870.
const EXACT_UP_TO: u64 = 20_000;
/// First choices from which the bounded search grows an answer.
const STARTS: usize = 24;
/// Rounds of exchanges, each of which looks at every pair.
const ROUNDS: usize = 4;
/// Accelerators are bits of a `u128`.
const LIMIT: usize = 128;

/// What holders on the same card, or of the same device, mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Nothing.
    Ignored,
    /// The fewer the better.
    Spread,
    /// The more the better, and the first one is worst.
    Packed,
}

/// An accelerator.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Its NUMA node, numbered from zero.
    pub(super) node: usize,
    /// Whether the container gets a device of it in any case.
    pub(super) taken: bool,
    /// Whether nobody has any device of it, nor will have one in any case.
    pub(super) untouched: bool,
    /// How many holders there are already where the first, the second, ... device of it would go: one entry for each that can be chosen.
    pub(super) loads: Vec<u32>,
}

/// How good a choice is: greater is better, the first differing field counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    nodes: Reverse<u32>,
    links: u64,
    fresh: Reverse<u32>,
    load: i64,
    groups: Option<Groups>,
}

/// What a choice does to the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Groups {
    broken: Reverse<u32>,
    largest_left: u32,
    left_squared: u32,
}

/// Which accelerators, how many of each.
#[derive(Debug, Clone)]
struct Choice {
    counts: Vec<usize>,
    touched: u128,
    nodes: u128,
    links: u64,
    fresh: u32,
    load: i64,
    missing: usize,
}

/// How many devices of which accelerator to choose.
#[derive(Debug)]
pub(super) struct Problem {
    items: Vec<Item>,
    links: Vec<Vec<u32>>,
    load: Load,
    missing: usize,
    /// Sets of untouched accelerators that belong together.
    groups: Vec<u128>,
    /// The fewest NUMA nodes that an answer can have.
    fewest_nodes: u32,
}

fn bits(mut mask: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(bit)
    })
}

impl Problem {
    /// None where it is too large to be stated.
    pub(super) fn new(items: Vec<Item>, links: Vec<Vec<u32>>, load: Load, missing: usize) -> Option<Self> {
        if items.len() > LIMIT {
            return None;
        }
        let groups = groups(&items, &links);
        let mut problem = Self { items, links, load, missing, groups, fewest_nodes: 0 };
        let start = problem.start();
        let mut capacities = problem.capacities(&start);
        let mut open = missing;
        for node in bits(start.nodes) {
            open = open.saturating_sub(std::mem::take(&mut capacities[node]));
        }
        capacities.sort_unstable_by_key(|capacity| Reverse(*capacity));
        problem.fewest_nodes = start.nodes.count_ones();
        for capacity in capacities {
            if open > 0 {
                problem.fewest_nodes += 1;
                open = open.saturating_sub(capacity);
            }
        }
        (open == 0).then_some(problem)
    }

    /// How many of each, in the order of the items.
    pub(super) fn solve(&self) -> Option<Vec<usize>> {
        let best = if self.ways() <= EXACT_UP_TO { self.exact() } else { self.bounded() };
        best.map(|choice| choice.counts)
    }

    /// Only what the container gets in any case.
    fn start(&self) -> Choice {
        let mut start = Choice {
            counts: vec![0; self.items.len()],
            touched: 0,
            nodes: 0,
            links: 0,
            fresh: 0,
            load: 0,
            missing: self.missing,
        };
        for (index, item) in self.items.iter().enumerate().filter(|(_, item)| item.taken) {
            start.touched |= 1 << index;
            start.nodes |= 1 << item.node;
        }
        start
    }

    /// How many devices can still be chosen on each NUMA node.
    fn capacities(&self, choice: &Choice) -> Vec<usize> {
        let nodes = self.items.iter().map(|item| item.node + 1).max().unwrap_or(0);
        let mut capacities = vec![0; nodes];
        for (item, count) in self.items.iter().zip(&choice.counts) {
            capacities[item.node] += item.loads.len() - count;
        }
        capacities
    }

    /// How many ways there are, without regard to NUMA nodes; saturates.
    fn ways(&self) -> u64 {
        let mut ways = vec![0_u64; self.missing + 1];
        ways[0] = 1;
        for item in &self.items {
            for total in (0..=self.missing).rev() {
                let fewer = total.saturating_sub(item.loads.len())..total;
                ways[total] = ways[fewer].iter().fold(ways[total], |sum, ways| sum.saturating_add(*ways));
            }
        }
        ways[self.missing]
    }

    /// One more device of an accelerator that has one left.
    fn add(&self, choice: &mut Choice, index: usize) {
        let item = &self.items[index];
        let load = item.loads[choice.counts[index]];
        if choice.touched >> index & 1 == 0 {
            choice.links +=
                bits(choice.touched).map(|other| u64::from(self.links[index][other])).sum::<u64>();
        }
        choice.counts[index] += 1;
        choice.touched |= 1 << index;
        choice.nodes |= 1 << item.node;
        choice.missing -= 1;
        // What one more does to the sum of the squares.
        let weight = 2 * i64::from(load) + 1;
        match self.load {
            Load::Ignored => {}
            Load::Spread => choice.load -= weight,
            Load::Packed => {
                choice.load += weight;
                choice.fresh += u32::from(load == 0);
            }
        }
    }

    /// Takes one back. Only a card's last one takes its links with it.
    fn remove(&self, choice: &mut Choice, index: usize) {
        let item = &self.items[index];
        choice.counts[index] -= 1;
        choice.missing += 1;
        let load = item.loads[choice.counts[index]];
        let weight = 2 * i64::from(load) + 1;
        match self.load {
            Load::Ignored => {}
            Load::Spread => choice.load += weight,
            Load::Packed => {
                choice.load -= weight;
                choice.fresh -= u32::from(load == 0);
            }
        }
        if choice.counts[index] == 0 && !item.taken {
            choice.touched &= !(1 << index);
            choice.links -=
                bits(choice.touched).map(|other| u64::from(self.links[index][other])).sum::<u64>();
            choice.nodes = bits(choice.touched).fold(0, |nodes, other| nodes | 1 << self.items[other].node);
        }
    }

    fn score(&self, choice: &Choice, groups: bool) -> Score {
        Score {
            nodes: Reverse(choice.nodes.count_ones()),
            links: choice.links,
            fresh: Reverse(choice.fresh),
            load: choice.load,
            groups: groups.then(|| self.groups(choice.touched)),
        }
    }

    fn groups(&self, touched: u128) -> Groups {
        let mut result = Groups { broken: Reverse(0), largest_left: 0, left_squared: 0 };
        for group in &self.groups {
            let left = (group & !touched).count_ones();
            result.broken.0 += u32::from(left > 0 && group & touched != 0);
            result.largest_left = result.largest_left.max(left);
            result.left_squared += left * left;
        }
        result
    }

    /// Keeps the better one. What happens to the groups is looked at only where all else is equal.
    fn keep(&self, best: &mut Option<(Score, Choice)>, choice: &Choice) -> bool {
        let mut score = self.score(choice, false);
        if let Some((top, _)) = best {
            if score < (Score { groups: None, ..*top }) {
                return false;
            }
            score = self.score(choice, true);
            if score <= *top {
                return false;
            }
        } else {
            score = self.score(choice, true);
        }
        *best = Some((score, choice.clone()));
        true
    }

    fn exact(&self) -> Option<Choice> {
        let mut left: Vec<usize> = self.items.iter().map(|item| item.loads.len()).collect();
        for index in (1..left.len()).rev() {
            left[index - 1] += left[index];
        }
        left.push(0);
        let mut best = None;
        self.descend(&mut self.start(), 0, &left, &mut best);
        best.map(|(_, choice)| choice)
    }

    /// All ways to choose from the items from `index` on; `left` is how many those have.
    fn descend(&self, choice: &mut Choice, index: usize, left: &[usize], best: &mut Option<(Score, Choice)>) {
        if choice.missing == 0 {
            self.keep(best, choice);
            return;
        }
        if choice.missing > left[index] {
            return;
        }
        let most = self.items[index].loads.len().min(choice.missing);
        for _ in 0..most {
            self.add(choice, index);
        }
        // The first ones first: of equals they stay.
        loop {
            if choice.nodes.count_ones() <= self.fewest_nodes {
                self.descend(choice, index + 1, left, best);
            }
            if choice.counts[index] == 0 {
                break;
            }
            self.remove(choice, index);
        }
    }

    fn bounded(&self) -> Option<Choice> {
        let start = self.start();
        let mut best = None;
        if start.touched != 0 {
            self.keep(&mut best, &self.grow(start)?);
        } else {
            let able = self.candidates(&start);
            for index in able.iter().step_by(able.len().div_ceil(STARTS).max(1)) {
                let mut first = start.clone();
                self.add(&mut first, *index);
                self.keep(&mut best, &self.grow(first)?);
            }
        }
        for _ in 0..ROUNDS {
            let (_, current) = best.clone()?;
            let mut better = false;
            for out in (0..self.items.len()).filter(|index| current.counts[*index] > 0) {
                let mut without = current.clone();
                self.remove(&mut without, out);
                for index in self.candidates(&without).into_iter().filter(|index| *index != out) {
                    self.add(&mut without, index);
                    better |= self.keep(&mut best, &without);
                    self.remove(&mut without, index);
                }
            }
            if !better {
                break;
            }
        }
        best.map(|(_, choice)| choice)
    }

    /// Adds one by one what is best at the moment.
    fn grow(&self, mut choice: Choice) -> Option<Choice> {
        // How much room an accelerator's groups would lose.
        let room = |index: usize| -> u32 {
            self.groups.iter().filter(|group| **group >> index & 1 == 1).map(|group| group.count_ones()).sum()
        };
        let room: Vec<_> = (0..self.items.len()).map(room).collect();
        while choice.missing > 0 {
            let next = self.candidates(&choice).into_iter().min_by_key(|index| {
                let item = &self.items[*index];
                let new = choice.touched >> index & 1 == 0;
                let peers = if new { choice.touched } else { 0 };
                let links: u64 = bits(peers).map(|other| u64::from(self.links[*index][other])).sum();
                let load = i64::from(item.loads[choice.counts[*index]]);
                let load = match self.load {
                    Load::Ignored => 0,
                    Load::Spread => load,
                    Load::Packed => -load,
                };
                (choice.nodes >> item.node & 1 == 0, Reverse(links), load, if new { room[*index] } else { 0 })
            })?;
            self.add(&mut choice, next);
        }
        Some(choice)
    }

    /// NUMA nodes of which one more device leaves a way to end on the fewest.
    fn open_nodes(&self, choice: &Choice) -> u128 {
        let capacities = self.capacities(choice);
        let mut order: Vec<_> = (0..capacities.len()).collect();
        order.sort_unstable_by_key(|node| Reverse(capacities[*node]));
        let opens = |node: &usize| {
            let nodes = choice.nodes | 1 << node;
            let Some(more) = self.fewest_nodes.checked_sub(nodes.count_ones()) else { return false };
            let entered: usize = bits(nodes).map(|node| capacities[node]).sum();
            let others = order.iter().filter(|node| nodes >> **node & 1 == 0).take(more as usize);
            entered + others.map(|node| capacities[*node]).sum::<usize>() >= choice.missing
        };
        order.iter().filter(|node| opens(node)).fold(0, |open, node| open | 1 << node)
    }

    /// The accelerators of which one more can be chosen.
    fn candidates(&self, choice: &Choice) -> Vec<usize> {
        let open = self.open_nodes(choice);
        let left = |index: &usize| choice.counts[*index] < self.items[*index].loads.len();
        (0..self.items.len()).filter(left).filter(|index| open >> self.items[*index].node & 1 == 1).collect()
    }
}

/// NUMA nodes, islands of linked accelerators, and the closer islands within those; untouched accelerators only, and none alone.
fn groups(items: &[Item], links: &[Vec<u32>]) -> Vec<u128> {
    let untouched: Vec<usize> = (0..items.len()).filter(|index| items[*index].untouched).collect();
    let mut groups: Vec<u128> = Vec::new();
    for index in &untouched {
        let node = items[*index].node;
        let group = untouched.iter().filter(|other| items[**other].node == node);
        groups.push(group.fold(0, |group, other| group | 1 << other));
    }
    let mut edges: Vec<(u32, usize, usize)> = untouched
        .iter()
        .flat_map(|a| untouched.iter().map(move |b| (*a, *b)))
        .filter(|(a, b)| a < b && links[*a][*b] > 0)
        .map(|(a, b)| (links[a][b], a, b))
        .collect();
    edges.sort_unstable_by_key(|(weight, ..)| Reverse(*weight));
    // The closest are joined first; what holds together at one weight is a group.
    let mut island: Vec<u128> = (0..items.len()).map(|index| 1 << index).collect();
    for level in edges.chunk_by(|(one, ..), (other, ..)| one == other) {
        for (_, a, b) in level {
            let joined = island[*a] | island[*b];
            if joined != island[*a] {
                for member in bits(joined) {
                    island[member] = joined;
                }
            }
        }
        groups.extend(level.iter().map(|(_, member, _)| island[*member]));
    }
    groups.sort_unstable();
    groups.dedup();
    groups.retain(|group| group.count_ones() > 1);
    groups
}
