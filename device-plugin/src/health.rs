//! When a device counts as broken, and when as sane again. Pure: the clock is an argument.
//!
//! The rule: a device is Unhealthy from its last fault until `quiet` has passed without another. A back end records a fault at every
//! critical XID *and* at every look at the device that shows something wrong (it can't be read, the driver asks for a reset), so a
//! device that stays broken never gets old enough to recover, and one that was reset comes back by itself.
//!
//! The clock is the machine's monotonic one, which no change of the time of day touches.

pub mod memo;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::device::{DeviceId, Health};
use memo::{Memos, Standing};

/// XIDs that an application causes and that say nothing about the GPU: the list of NVIDIA's own device plugin.
pub const APPLICATION_XIDS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// Far more devices and partitions than a machine has: a driver can name what is not there.
const MOST: usize = 4096;

#[derive(Debug, Clone)]
struct Fault {
    why: String,
    at: Instant,
}

/// The last fault of each device.
#[derive(Debug, Clone)]
pub struct Faults {
    quiet: Duration,
    last: BTreeMap<DeviceId, Fault>,
    memo: Option<memo::Memo>,
}

impl Faults {
    /// No faults yet; a device recovers `quiet` after its last one.
    pub fn new(quiet: Duration) -> Self {
        Self { quiet, last: BTreeMap::new(), memo: None }
    }

    /// The same, with what an earlier process knew: a device that it left sick has to be quiet from `now` on. What is known is kept under
    /// `name` from now on, whenever [`Faults::keep`] is called.
    #[must_use]
    pub fn remembering(mut self, memos: &Memos, name: &str, now: Instant) -> Self {
        let (memo, standing) = memos.open(name);
        self.last = standing.into_iter().map(|(device, why)| (device, Fault { why, at: now })).collect();
        self.memo = Some(memo);
        self
    }

    /// Writes down what is wrong now, for the next process.
    pub fn keep(&mut self) {
        if let Some(memo) = &mut self.memo {
            let standing = self.last.iter().map(|(device, fault)| (device.clone(), fault.why.clone()));
            memo.keep(&standing.collect::<Standing>());
        }
    }

    /// From now on a device recovers this long after its last fault.
    pub fn set_quiet(&mut self, quiet: Duration) {
        self.quiet = quiet;
    }

    /// Something is wrong with `device` at `now`.
    pub fn record(&mut self, device: &DeviceId, why: impl Into<String>, now: Instant) {
        if self.last.len() < MOST || self.last.contains_key(device) {
            self.last.insert(device.clone(), Fault { why: why.into(), at: now });
        }
    }

    /// The device is still in the state that its last fault put it in: its time to recover starts anew, its reason stays.
    pub fn prolong(&mut self, device: &DeviceId, why: impl Into<String>, now: Instant) {
        self.last
            .entry(device.clone())
            .and_modify(|fault| fault.at = now)
            .or_insert_with(|| Fault { why: why.into(), at: now });
    }

    /// The same for every device of these that is known to be faulty.
    pub fn prolong_known(&mut self, which: impl Fn(&DeviceId) -> bool, now: Instant) {
        for (_, fault) in self.last.iter_mut().filter(|(device, _)| which(device)) {
            fault.at = now;
        }
    }

    /// The device's health at `now`. A fault that is over is forgotten.
    pub fn health(&mut self, device: &DeviceId, now: Instant) -> Health {
        match self.last.get(device) {
            Some(fault) if now.duration_since(fault.at) < self.quiet => Health::Unhealthy(fault.why.clone()),
            Some(_) => {
                self.last.remove(device);
                Health::Healthy
            }
            None => Health::Healthy,
        }
    }

    /// Forgets devices that are gone: one that is put back starts afresh.
    pub fn retain(&mut self, still_there: impl Fn(&DeviceId) -> bool) {
        self.last.retain(|device, _| still_there(device));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_mins(5);

    #[test]
    fn a_device_recovers_when_it_has_been_quiet_long_enough() {
        let gpu = DeviceId::new("GPU-1").unwrap();
        let start = Instant::now();
        let mut faults = Faults::new(QUIET);
        assert_eq!(faults.health(&gpu, start), Health::Healthy);
        faults.record(&gpu, "XID 48", start);
        assert_eq!(faults.health(&gpu, start), Health::Unhealthy("XID 48".to_owned()));
        assert!(!faults.health(&gpu, start + QUIET / 2).is_healthy());
        faults.record(&gpu, "XID 79", start + QUIET / 2);
        assert_eq!(faults.health(&gpu, start + QUIET), Health::Unhealthy("XID 79".to_owned()));
        assert!(faults.health(&gpu, start + QUIET / 2 + QUIET).is_healthy());
    }

    #[test]
    fn a_driver_that_makes_up_devices_fills_no_memory() {
        let start = Instant::now();
        let mut faults = Faults::new(QUIET);
        let made_up = |number: usize| DeviceId::new(format!("GPU-{number}")).unwrap();
        for number in 0..2 * MOST {
            faults.record(&made_up(number), "XID 79", start);
        }
        assert_eq!(faults.last.len(), MOST);
        faults.record(&made_up(0), "XID 48", start);
        assert_eq!(faults.health(&made_up(0), start), Health::Unhealthy("XID 48".to_owned()));
    }

    #[test]
    fn a_lasting_condition_keeps_the_first_reason_and_never_ages() {
        let gpu = DeviceId::new("GPU-1").unwrap();
        let start = Instant::now();
        let mut faults = Faults::new(QUIET);
        faults.record(&gpu, "XID 79", start);
        faults.prolong(&gpu, "can't be read", start + QUIET / 2);
        assert_eq!(faults.health(&gpu, start + QUIET), Health::Unhealthy("XID 79".to_owned()));
        faults.retain(|_| false);
        assert!(faults.health(&gpu, start + QUIET).is_healthy());
        faults.prolong(&gpu, "can't be read", start);
        assert_eq!(faults.health(&gpu, start), Health::Unhealthy("can't be read".to_owned()));
    }
}
