//! What the driver tells by itself: critical XIDs, and what newer drivers tell besides. Which of it says what is wrong, and which only
//! that something is, which then has to be asked for.
//!
//! Changes of clocks and of performance states are no news of a GPU that works, corrected errors are counted at looks, and the source
//! of power is a laptop's matter: these are not asked for.

use nvml_wrapper::{Device, EventSet, Nvml, bitmasks::event::EventTypes, error::NvmlError};
use nvml_wrapper_sys::bindings::{
    nvmlEventMigConfigChange, nvmlEventTypeDoubleBitEccError, nvmlEventTypeDramRetirementEvent,
    nvmlEventTypeDramRetirementFailure, nvmlEventTypeFatalPoisonError, nvmlEventTypeGpuRecoveryAction,
    nvmlEventTypeGpuUnavailableError, nvmlEventTypeNonFatalPoisonError, nvmlEventTypeXidCriticalError,
};

use super::raw;

/// Kinds of events that are faults themselves: nothing else need tell of them.
const FAULTS: [(u32, &str); 3] = [
    (nvmlEventTypeDramRetirementFailure, "a broken part of its memory can't be retired"),
    (nvmlEventTypeFatalPoisonError, "an error in its memory was not contained"),
    (nvmlEventTypeGpuUnavailableError, "the driver says that it is unavailable"),
];
/// Kinds of events after which a GPU has to be asked what is wrong.
const HINTS: [u32; 4] = [
    nvmlEventTypeDoubleBitEccError,
    nvmlEventTypeDramRetirementEvent,
    nvmlEventTypeNonFatalPoisonError,
    nvmlEventTypeGpuRecoveryAction,
];

/// What is to be done about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It is an XID; its number tells.
    Xid,
    /// The GPU is broken, and why.
    Fault(&'static str),
    /// The GPU has to be asked how it is.
    Ask,
    /// It is partitioned differently.
    Partitions,
    /// Nothing.
    None,
}

/// What a kind of event means.
pub(super) fn meaning(kind: u64) -> Meaning {
    let is = |other: u32| kind == u64::from(other);
    if is(nvmlEventTypeXidCriticalError) {
        Meaning::Xid
    } else if let Some((_, why)) = FAULTS.iter().find(|(fault, _)| is(*fault)) {
        Meaning::Fault(why)
    } else if HINTS.into_iter().any(is) {
        Meaning::Ask
    } else if is(nvmlEventMigConfigChange) {
        Meaning::Partitions
    } else {
        Meaning::None
    }
}

/// All kinds that mean something.
fn wanted() -> u64 {
    let kinds = FAULTS.into_iter().map(|(kind, _)| kind).chain(HINTS);
    kinds
        .chain([nvmlEventTypeXidCriticalError, nvmlEventMigConfigChange])
        .fold(0, |all, kind| all | u64::from(kind))
}

/// Registers for the events of every GPU that has them.
pub(super) fn watch(nvml: &Nvml) -> Result<EventSet<'_>, NvmlError> {
    let mut events = nvml.create_event_set()?;
    for index in 0..nvml.device_count()? {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        match kinds(nvml, &device) {
            Ok(kinds) => {
                tracing::debug!(gpu.index = index, kinds = kinds.bits(), "events of this GPU");
                events = device.register_events(kinds, events).map_err(|failed| failed.error)?;
            }
            Err(error) => {
                tracing::warn!(gpu.index = index, %error, "no XID events for this GPU: its health is what NVML reads");
            }
        }
    }
    Ok(events)
}

/// As many of the wanted kinds as the GPU takes. A failing registration takes the whole set with it, so this is tried on sets of their own.
fn kinds(nvml: &Nvml, device: &Device<'_>) -> Result<EventTypes, NvmlError> {
    let xids = EventTypes::CRITICAL_XID_ERROR;
    let offered = raw::event_kinds(device).unwrap_or_default() & wanted();
    // The wrapper doesn't know the newer ones by name.
    let all = EventTypes::from_bits_retain(offered) | xids;
    let takes = |kinds| -> Result<EventTypes, NvmlError> {
        let probe = nvml.create_event_set()?;
        device.register_events(kinds, probe).map(|_| kinds).map_err(|failed| failed.error)
    };
    takes(all).or_else(|_| takes(xids))
}

#[cfg(test)]
mod tests {
    use nvml_wrapper_sys::bindings::{nvmlEventTypeClock, nvmlEventTypePState};

    use super::*;

    #[test]
    fn every_kind_that_is_asked_for_means_something_and_others_nothing() {
        let kinds = (0..64).map(|bit| 1_u64 << bit);
        for kind in kinds {
            assert_eq!(meaning(kind) != Meaning::None, wanted() & kind != 0, "{kind:#x}");
        }
        assert_eq!(meaning(0), Meaning::None);
        assert_eq!(meaning(u64::MAX), Meaning::None);
        assert_eq!(wanted() & u64::from(nvmlEventTypeClock | nvmlEventTypePState), 0);
    }
}
