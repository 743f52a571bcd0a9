//! Back ends that just look again and again: sysfs tells of no error register's change, so that is all one can do.

use std::time::{Duration, Instant};

use super::{Backend, Reporter};
use crate::device::Device;

/// Time between two looks: well within the second in which the kubelet is to know of a fault.
const LOOK_EVERY: Duration = Duration::from_millis(750);

/// The same while there is nothing: a device that appears is to be offered within two seconds.
const LOOK_FOR_FIRST_EVERY: Duration = Duration::from_secs(1);

/// How old a publication may get: whoever watches over the back end may have overwritten it meanwhile.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);

/// A look at some part of the machine. A copy has looked as often.
pub trait Look: Clone + Send + 'static {
    /// The back end's name.
    const NAME: &'static str;

    /// All the devices that there are at `now`.
    fn look(&mut self, now: Instant) -> Vec<Device>;
}

/// Runs a [`Look`] as a back end.
#[derive(Debug)]
pub(super) struct Polled<L>(pub(super) L);

impl<L: Look> Backend for Polled<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn again(&self) -> Box<dyn Backend> {
        Box::new(Self(self.0.clone()))
    }

    fn run(mut self: Box<Self>, reporter: &Reporter) {
        let mut published: Option<(Instant, Vec<Device>)> = None;
        while !reporter.stopping() {
            let devices = self.0.look(Instant::now());
            // Publishing copies the whole inventory; two lists are compared much faster.
            let fresh = published
                .as_ref()
                .is_some_and(|(at, before)| at.elapsed() < PUBLISH_EVERY && *before == devices);
            if !fresh {
                reporter.devices(devices.clone());
                published = Some((Instant::now(), devices));
            }
            let none = published.as_ref().is_some_and(|(_, devices)| devices.is_empty());
            reporter.pause(if none { LOOK_FOR_FIRST_EVERY } else { LOOK_EVERY });
        }
    }
}
