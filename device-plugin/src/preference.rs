//! Which of the devices that are free suit a container best, as a pure function: the answer to `GetPreferredAllocation`. In this order:
//!
//! 1. what the kubelet insists on, which is also what its topology manager aligned;
//! 2. shares of as many different devices as possible: a second share of the same one gives a container nothing;
//! 3. the fewest NUMA nodes (devices whose node is unknown count as one node of their own);
//! 4. whole accelerators: the closest to each other, by the sum of their links;
//! 5. parts and shares: the policy, packed together or spread;
//! 6. the fewest groups broken (a NUMA node, an island of linked accelerators, an island within it), and then the largest group left for
//!    the next pod;
//! 7. the first in the inventory's order, so that equal questions have equal answers.
//!
//! It is a hint: where the request makes no sense the answer is empty, and the kubelet chooses.

mod search;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use crate::device::{Device, DeviceId, Partition};

use self::search::{Item, Load, Problem};

/// How shares of a device are handed out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replicas {
    /// Those of the device that has the fewest holders.
    #[default]
    Distributed,
    /// Those of a device that has holders already.
    Packed,
}

/// How devices that lie on one card are handed out, such as the ports of an FPGA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cards {
    /// It does not matter which card they are on.
    #[default]
    None,
    /// On the card that has the fewest holders.
    Balanced,
    /// On a card that has holders already.
    Packed,
}

/// What a machine's admin wants. Partitions of GPUs have no setting: they are packed, so that whole GPUs stay free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Shares of a device.
    pub replicas: Replicas,
    /// Devices of one card.
    pub cards: Cards,
}

/// Which `size` of the `available` devices suit a container best, `must_include` among them. Empty where there is no such choice.
pub fn prefer<'a>(
    slice: impl IntoIterator<Item = &'a Device>,
    available: &[String],
    must_include: &[String],
    size: usize,
    policy: Policy,
) -> Vec<String> {
    let free: HashSet<&str> = available.iter().map(String::as_str).collect();
    let must: BTreeSet<&str> = must_include.iter().map(String::as_str).collect();
    if size == 0 || size > free.len() || must.len() > size || !must.iter().all(|id| free.contains(id)) {
        return Vec::new();
    }
    Pool::new(slice, &free, &must, policy)
        .and_then(|pool| pool.choose(size - must.len()))
        .map(|chosen| chosen.into_iter().chain(must.iter().copied()).collect::<BTreeSet<_>>())
        .map(|ids| ids.into_iter().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// What can be told apart in hardware, and how many of its devices are where.
#[derive(Debug, Default)]
struct Unit<'a> {
    /// Those that may be chosen.
    free: Vec<&'a str>,
    /// Devices that others hold.
    held: u32,
    /// Devices that must be in the answer.
    must: u32,
}

impl Unit<'_> {
    /// Another part of the same.
    fn join(&mut self, other: Self) {
        self.free.extend(other.free);
        self.held += other.held;
        self.must += other.must;
    }

    fn load(&self) -> u32 {
        self.held + self.must
    }

    /// Whether the container may get a device of it that is of use: of one that it has already, another share would not be.
    fn offers(&self) -> bool {
        self.must == 0 && !self.free.is_empty()
    }
}

/// Where a device is: its accelerator, and what of it.
fn place(device: &Device) -> (&DeviceId, &DeviceId) {
    (&device.accelerator.id, device.unit())
}

/// Whether a device plainly is of the same unit as the one before, which needs no look at names: shares come one after the other. If it
/// isn't plain, names tell later.
fn follows(before: &Device, device: &Device) -> bool {
    let same_part = match (&before.partition, &device.partition) {
        (None, None) => true,
        (Some(before), Some(part)) => Arc::ptr_eq(before, part),
        _ => false,
    };
    same_part && Arc::ptr_eq(&before.accelerator, &device.accelerator)
}

/// An accelerator with at least one device that may be chosen or must be.
#[derive(Debug)]
struct Card<'a> {
    any: &'a Device,
    units: Vec<Unit<'a>>,
}

#[derive(Debug)]
struct Pool<'a> {
    cards: Vec<Card<'a>>,
    load: Load,
    /// Whether its devices are shares of something.
    replicated: bool,
}

impl<'a> Pool<'a> {
    /// None where a device that must be in the answer is not known.
    fn new(
        slice: impl IntoIterator<Item = &'a Device>,
        free: &HashSet<&str>,
        must: &BTreeSet<&str>,
        policy: Policy,
    ) -> Option<Self> {
        let mut units: Vec<(&Device, Unit<'a>)> = Vec::new();
        let mut seen = 0;
        let mut replicated = false;
        for device in slice {
            if !units.last().is_some_and(|(last, _)| follows(last, device)) {
                units.push((device, Unit::default()));
            }
            let Some((_, unit)) = units.last_mut() else { continue };
            let id = device.id.as_str();
            replicated |= device.replica.is_some();
            if must.contains(id) {
                seen += 1;
                unit.must += 1;
            } else if device.health.is_healthy() {
                // A sick one may be missing among the free ones although nobody has it.
                if free.contains(id) { unit.free.push(id) } else { unit.held += 1 }
            }
        }
        if seen != must.len() {
            return None;
        }
        units.sort_by(|(one, _), (other, _)| place(one).cmp(&place(other)));
        units.dedup_by(|more, unit| {
            let same = place(more.0) == place(unit.0);
            if same {
                unit.1.join(std::mem::take(&mut more.1));
            }
            same
        });
        let mut cards: Vec<Card<'a>> = Vec::new();
        for (any, unit) in units {
            match cards.last_mut().filter(|card| card.any.accelerator.id == any.accelerator.id) {
                Some(card) => card.units.push(unit),
                None => cards.push(Card { any, units: vec![unit] }),
            }
        }
        cards.retain(|card| card.units.iter().any(|unit| unit.must > 0 || !unit.free.is_empty()));
        // Ports of an FPGA are handed out as its cards are.
        let is_part =
            |card: &Card<'_>| card.any.partition.as_ref().is_some_and(|part| part.profile != Partition::PORT);
        let partitioned = cards.iter().any(is_part);
        let load = match (replicated, partitioned) {
            (true, _) if policy.replicas == Replicas::Packed => Load::Packed,
            (true, _) => Load::Spread,
            (false, true) => Load::Packed,
            (false, false) => match policy.cards {
                Cards::None => Load::Ignored,
                Cards::Balanced => Load::Spread,
                Cards::Packed => Load::Packed,
            },
        };
        if replicated {
            // The order in which the policy takes them.
            let packed = load == Load::Packed;
            for card in &mut cards {
                card.units.sort_by_key(|unit| {
                    let holders = i64::from(unit.load());
                    if packed { -holders } else { holders }
                });
            }
        }
        Some(Self { cards, load, replicated })
    }

    /// `missing` devices besides those that must be in the answer.
    fn choose(&self, missing: usize) -> Option<Vec<&'a str>> {
        let offered = |card: &Card<'_>| card.units.iter().filter(|unit| unit.offers()).count();
        let counts: Vec<_> = if missing >= self.cards.iter().map(offered).sum() {
            self.cards.iter().map(offered).collect()
        } else {
            self.problem(missing)?.solve()?
        };
        let mut chosen = Vec::new();
        let mut left: Vec<(u32, &[&'a str])> = Vec::new();
        for (card, mut count) in self.cards.iter().zip(counts) {
            for unit in &card.units {
                let taken = usize::from(unit.offers() && count > 0);
                count -= taken;
                chosen.extend_from_slice(&unit.free[..taken]);
                left.push((unit.load() + u32::from(taken > 0), &unit.free[taken..]));
            }
        }
        // More shares than there are devices.
        while chosen.len() < missing {
            let open = left.iter_mut().filter(|(_, free)| !free.is_empty());
            let (load, free) = match self.load {
                Load::Packed => open.min_by_key(|(load, _)| Reverse(*load)),
                Load::Spread | Load::Ignored => open.min_by_key(|(load, _)| *load),
            }?;
            let (id, rest) = free.split_first()?;
            chosen.push(*id);
            (*load, *free) = (*load + 1, rest);
        }
        Some(chosen)
    }

    fn problem(&self, missing: usize) -> Option<Problem> {
        let mut nodes: Vec<Option<u32>> = Vec::new();
        let mut items = Vec::new();
        for card in &self.cards {
            let numa = card.any.accelerator.numa_node;
            let node = nodes.iter().position(|node| *node == numa).unwrap_or_else(|| {
                nodes.push(numa);
                nodes.len() - 1
            });
            let offering = card.units.iter().filter(|unit| unit.offers());
            items.push(Item {
                node,
                taken: card.units.iter().any(|unit| unit.must > 0),
                untouched: card.units.iter().all(|unit| unit.load() == 0),
                // Shares weigh on what they are a share of, parts on their card.
                loads: if self.replicated {
                    offering.map(Unit::load).collect()
                } else {
                    let load = card.units.iter().map(Unit::load).sum::<u32>();
                    (load..).take(offering.count()).collect()
                },
            });
        }
        Problem::new(items, self.links(), self.load, missing)
    }

    /// How close the cards are to each other. Partitions have no links.
    fn links(&self) -> Vec<Vec<u32>> {
        let mut links = vec![vec![0; self.cards.len()]; self.cards.len()];
        for (from, card) in self.cards.iter().enumerate().filter(|(_, card)| card.any.partition.is_none()) {
            // Both are in the order of their IDs.
            let mut peers = card.any.accelerator.links.iter().peekable();
            for (to, other) in self.cards.iter().enumerate() {
                let id = &other.any.accelerator.id;
                while peers.next_if(|(peer, _)| *peer < id).is_some() {}
                if let Some((_, weight)) = peers.next_if(|(peer, _)| *peer == id)
                    && from != to
                {
                    links[from][to] = (*weight).max(links[from][to]);
                    links[to][from] = links[from][to].max(links[to][from]);
                }
            }
        }
        links
    }
}

#[cfg(test)]
mod tests;
