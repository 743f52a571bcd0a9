//! Free but not usable: what no job can have because of how it is scattered, and the largest job that fits.
//!
//! Usable is what pods of known shapes could still take: the shapes of those that wait, or, where none waits, of those that run. What is left over
//! then is stranded, and for each part of it there is one cause.

use serde::Serialize;

/// What one pod takes of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// Devices of the pool's resource; at least 1.
    pub devices: i64,
    /// CPU, in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory, in bytes.
    pub memory_bytes: i64,
}

/// What is free on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Devices of the pool's resource.
    pub devices: i64,
    /// CPU, in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory, in bytes.
    pub memory_bytes: i64,
    /// Pods that it still takes.
    pub pods: i64,
}

/// Why free devices of a machine can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// No pod may come: not Ready, cordoned, about to go.
    Closed,
    /// Fewer are free than one pod asks for.
    TooFew,
    /// No CPU is left beside them.
    Cpu,
    /// No memory is left beside them.
    Memory,
    /// The machine takes no more pods.
    Pods,
    /// CPU and memory together.
    CpuAndMemory,
    /// Partitions of a size that nobody asks for while pods wait for another one.
    Profile,
    /// They are on several NUMA nodes, and the machine's kubelet refuses pods that would be, too.
    Numa,
    /// They are not connected by `NVLink`, which the pods' sizes allow. No pod is refused for want of it: it would run, at the speed of the bus.
    Nvlink,
}

/// Steps that looking for the best mix of shapes may take; beyond, the best that was found counts.
const STEPS: u32 = 5_000;

impl Room {
    /// How many pods of one shape it takes.
    pub fn fits(&self, shape: &Shape) -> i64 {
        let times = |has: i64, one: i64| if one <= 0 { i64::MAX } else { has.max(0) / one };
        times(self.devices, shape.devices.max(1))
            .min(times(self.cpu_milli, shape.cpu_milli))
            .min(times(self.memory_bytes, shape.memory_bytes))
            .min(self.pods.max(0))
    }

    /// Whether it takes a pod of this shape.
    fn takes(&self, shape: &Shape) -> bool {
        let enough = |has: i64, one: i64| one <= 0 || has >= one;
        self.pods > 0
            && self.devices >= shape.devices.max(1)
            && enough(self.cpu_milli, shape.cpu_milli)
            && enough(self.memory_bytes, shape.memory_bytes)
    }

    fn without(&self, shape: &Shape, times: i64) -> Self {
        let less = |has: i64, one: i64| has.saturating_sub(one.saturating_mul(times));
        Self {
            devices: less(self.devices, shape.devices.max(1)),
            cpu_milli: less(self.cpu_milli, shape.cpu_milli),
            memory_bytes: less(self.memory_bytes, shape.memory_bytes),
            pods: less(self.pods, 1),
        }
    }

    /// The most devices that pods of these shapes can take together.
    pub fn usable(&self, shapes: &[Shape]) -> i64 {
        let mut best = 0;
        self.mix(shapes, 0, self.devices.max(0), &mut best, &mut 0);
        best
    }

    fn mix(&self, shapes: &[Shape], taken: i64, all: i64, best: &mut i64, steps: &mut u32) {
        *best = taken.max(*best);
        *steps += 1;
        let Some((first, rest)) = shapes.split_first() else { return };
        if self.devices <= 0 {
            return;
        }
        for times in (0..=self.fits(first)).rev() {
            if *best >= all || *steps > STEPS {
                return;
            }
            let taken = taken + times.saturating_mul(first.devices.max(1));
            self.without(first, times).mix(rest, taken, all, best, steps);
        }
    }

    /// How many of its free devices can't be used by pods of these shapes, by cause.
    pub fn stranded(&self, shapes: &[Shape]) -> Vec<(Cause, i64)> {
        let lost = self.devices.max(0) - self.usable(shapes);
        if lost <= 0 {
            return Vec::new();
        }
        let much = i64::MAX / 2;
        let bare = Self { cpu_milli: much, memory_bytes: much, pods: much, ..*self };
        let too_few = self.devices.max(0) - bare.usable(shapes);
        let beside = lost - too_few;
        let more = |room: Self| room.usable(shapes) > self.usable(shapes);
        let cause = if more(Self { cpu_milli: much, ..*self }) {
            Cause::Cpu
        } else if more(Self { memory_bytes: much, ..*self }) {
            Cause::Memory
        } else if more(Self { pods: much, ..*self }) {
            Cause::Pods
        } else {
            Cause::CpuAndMemory
        };
        [(Cause::TooFew, too_few), (cause, beside)].into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// The most devices that a single pod can have, which takes `beside` of CPU and memory for each.
    pub fn largest(&self, beside: &Shape) -> i64 {
        if self.pods <= 0 {
            return 0;
        }
        let each = Shape { devices: 1, ..*beside };
        Self { pods: i64::MAX, ..*self }.fits(&each)
    }
}

/// Shapes without those that can't make more usable: one with as many devices that takes no less of anything. The largest come first.
pub fn distinct(mut shapes: Vec<Shape>) -> Vec<Shape> {
    shapes.sort_unstable();
    shapes.dedup();
    let mut kept: Vec<Shape> = Vec::new();
    for shape in shapes {
        let beaten = kept.iter().any(|other| {
            other.devices == shape.devices
                && other.cpu_milli <= shape.cpu_milli
                && other.memory_bytes <= shape.memory_bytes
        });
        if !beaten {
            kept.push(shape);
        }
    }
    kept.reverse();
    kept
}

/// What the least demanding of the shapes takes for each device.
pub fn least_beside(shapes: &[Shape]) -> Shape {
    let each = |amount: fn(&Shape) -> i64| {
        shapes.iter().map(|shape| amount(shape) / shape.devices.max(1)).min().unwrap_or(0)
    };
    Shape {
        devices: 1,
        cpu_milli: each(|shape| shape.cpu_milli),
        memory_bytes: each(|shape| shape.memory_bytes),
    }
}

/// Of the free devices, the share that a pod drawn at random from `shapes`, each with how many there are, can't use where it is: the measure of
/// "Beware of Fragmentation" (ATC'23) for whole devices. `None`: nothing is free, or no shapes.
pub fn expected(rooms: &[Room], shapes: &[(Shape, usize)]) -> Option<f64> {
    let free: i64 = rooms.iter().map(|room| room.devices.max(0)).sum();
    let pods: usize = shapes.iter().map(|(_, count)| count).sum();
    if free == 0 || pods == 0 {
        return None;
    }
    let lost: f64 = shapes
        .iter()
        .map(|(shape, count)| {
            let lost: i64 =
                rooms.iter().filter(|room| !room.takes(shape)).map(|room| room.devices.max(0)).sum();
            float(lost) * counted(*count)
        })
        .sum();
    Some(lost / float(free) / counted(pods))
}

#[allow(clippy::cast_precision_loss)]
fn float(count: i64) -> f64 {
    count as f64
}

#[allow(clippy::cast_precision_loss)]
fn counted(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
