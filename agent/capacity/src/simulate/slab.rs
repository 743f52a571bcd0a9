//! Values in slots that are used again.

use std::ops::{Index, IndexMut};

/// Values in slots that are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.slots[slot as usize];
            entry.0 = entry.0.wrapping_add(1);
            entry.1 = Some(value);
            return slot;
        }
        self.slots.push((0, Some(value)));
        u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 values at a time fit into memory")
    }

    /// How often the slot was used before: tells its value from those that had the slot.
    pub(super) fn number(&self, slot: u32) -> u32 {
        self.slots[slot as usize].0
    }

    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        self.slots.get(slot as usize)?.1.as_ref()
    }

    pub(super) fn remove(&mut self, slot: u32) -> T {
        self.free.push(slot);
        self.slots[slot as usize].1.take().expect("a slot that is in use")
    }

    /// Drops a value where it is.
    pub(super) fn discard(&mut self, slot: u32) {
        self.free.push(slot);
        self.slots[slot as usize].1 = None;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|(_, value)| value.as_ref())
    }

    /// Slots that are in use.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.slots).filter(|(_, (_, value))| value.is_some()).map(|(slot, _)| slot)
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        self.slots[slot as usize].1.as_ref().expect("a slot that is in use")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        self.slots[slot as usize].1.as_mut().expect("a slot that is in use")
    }
}
