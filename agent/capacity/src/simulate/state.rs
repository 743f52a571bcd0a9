//! What is free on one machine, without saying which: machines in the same state are interchangeable.

use std::hash::{BuildHasherDefault, Hasher};

use crate::job::Request;

/// What is free on a machine. Two machines in the same state serve the same jobs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// Which kind of machine it is.
    pub(super) shape: u32,
    /// How many of its GPUs are free, whole.
    pub(super) idle: u32,
    /// CPU that is free, in thousandths of a core; [`u64::MAX`] where it isn't looked at.
    pub(super) cpu_milli: u64,
    /// Memory that is free; [`u64::MAX`] where it isn't looked at.
    pub(super) memory_mib: u64,
    /// What is free of GPUs that are shared, smallest first; those with nothing left are not told.
    pub(super) partial: Vec<u16>,
    /// Which kinds of pods run on it, one bit for each [`Kind::tag`]; told only where packing looks at it.
    pub(super) tags: u128,
}

/// A request, and where it can ever be.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) request: Request,
    /// GPUs of each pod; 0 where it asks for none.
    pub(super) gpus: u32,
    /// Of each GPU, in thousandths.
    pub(super) milli: u16,
    /// Of each shape: whether its model will do.
    pub(super) models: Vec<bool>,
    /// Bit 0 for a share of a GPU, bit n for n GPUs, none for none.
    pub(super) tag: u128,
    /// How many pods that ask for this came so far.
    pub(super) seen: u64,
}

/// Thousandths of a whole GPU: [`crate::job::WHOLE_GPU`].
pub(super) const WHOLE: u16 = 1000;

impl Kind {
    /// Whether it asks for GPUs that are shared with others.
    pub(super) fn shares(&self) -> bool {
        self.gpus > 0 && self.milli < WHOLE
    }

    /// How much of GPUs each pod asks for, in thousandths.
    pub(super) fn total_milli(&self) -> u64 {
        u64::from(self.gpus) * u64::from(self.milli)
    }
}

impl State {
    /// How much of its GPUs is free, in thousandths.
    pub(super) fn free_milli(&self) -> u64 {
        u64::from(self.idle) * u64::from(WHOLE)
            + self.partial.iter().map(|free| u64::from(*free)).sum::<u64>()
    }

    /// Whether a pod fits.
    pub(super) fn fits(&self, kind: &Kind) -> bool {
        self.cpu_milli >= kind.request.cpu_milli
            && self.memory_mib >= kind.request.memory_mib
            && kind.models[self.shape as usize]
            && self.has_gpus(kind)
    }

    fn has_gpus(&self, kind: &Kind) -> bool {
        if self.idle >= kind.gpus {
            return true;
        }
        if !kind.shares() {
            return false;
        }
        // Smallest first, so those that will do stand at the end.
        let enough = self.partial.iter().rev().take_while(|free| **free >= kind.milli).count();
        enough + self.idle as usize >= kind.gpus as usize
    }

    /// How many such pods fit, one beside the other; at most `limit`.
    pub(super) fn room(&self, kind: &Kind, limit: u64) -> u64 {
        if !self.fits(kind) {
            return 0;
        }
        let by = |free: u64, each: u64| free.checked_div(each).unwrap_or(limit);
        let amounts = by(self.cpu_milli, kind.request.cpu_milli)
            .min(by(self.memory_mib, kind.request.memory_mib))
            .min(limit);
        let gpus = if kind.gpus == 0 {
            limit
        } else if !kind.shares() {
            u64::from(self.idle / kind.gpus)
        } else {
            self.shares(kind, amounts)
        };
        amounts.min(gpus)
    }

    /// As [`Self::room`], of GPUs that are shared. Each pod takes another GPU for each of its shares.
    fn shares(&self, kind: &Kind, limit: u64) -> u64 {
        let each = u64::from(WHOLE / kind.milli);
        let shares = |pods: u64| {
            u64::from(self.idle) * each.min(pods)
                + self.partial.iter().map(|free| u64::from(free / kind.milli).min(pods)).sum::<u64>()
        };
        let most = shares(u64::MAX) / u64::from(kind.gpus);
        if kind.gpus == 1 {
            return most;
        }
        let mut pods = most.min(limit);
        while pods > 0 && shares(pods) < pods * u64::from(kind.gpus) {
            pods -= 1;
        }
        pods
    }

    /// How much free GPU a pod of this kind could not use, in thousandths: all of it where the pod doesn't fit, else what is left of GPUs that have too little for it.
    pub(super) fn unusable_milli(&self, kind: &Kind) -> u64 {
        if kind.gpus == 0 || !self.fits(kind) {
            return self.free_milli();
        }
        self.partial.iter().take_while(|free| **free < kind.milli).map(|free| u64::from(*free)).sum()
    }

    /// Takes a share of a GPU of which `free` was free.
    pub(super) fn take_share(&mut self, free: u16, milli: u16) {
        if free == WHOLE {
            self.idle -= 1;
        } else if let Ok(at) = self.partial.binary_search(&free) {
            self.partial.remove(at);
        }
        self.give_part(free - milli);
    }

    /// Gives a share back to a GPU of which `free` is free.
    pub(super) fn give_share(&mut self, free: u16, milli: u16) {
        if free > 0
            && let Ok(at) = self.partial.binary_search(&free)
        {
            self.partial.remove(at);
        }
        if free + milli == WHOLE {
            self.idle += 1;
        } else {
            self.give_part(free + milli);
        }
    }

    fn give_part(&mut self, free: u16) {
        if free > 0 {
            let at = self.partial.partition_point(|other| *other < free);
            self.partial.insert(at, free);
        }
    }
}

/// Multiplies and rotates, as rustc does. Keys are a simulation's own: nobody gains by making it slow.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Quick(u64);

pub(super) type QuickHash = BuildHasherDefault<Quick>;

impl Quick {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x51_7c_c1_b7_27_22_0a_95);
    }
}

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        // The map looks at the upper and the lower bits.
        self.0 ^ (self.0 >> 32)
    }
}
