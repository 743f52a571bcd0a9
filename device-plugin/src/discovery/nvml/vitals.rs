//! What a GPU's health is judged by. It is asked at every pulse, so it is as few questions as can be: one for all that NVML tells by
//! number, two about heat. Nothing is judged here but what the numbers mean.

use std::collections::BTreeMap;

use nvml_wrapper::{
    Device,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor},
    enums::device::SampleValue,
    error::NvmlError,
    sys_exports::field_id::{
        NVML_FI_DEV_ECC_DBE_VOL_TOTAL, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_NVLINK_GET_STATE,
        NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL, NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
        NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_UNC,
        NVML_FI_DEV_RETIRED_PENDING,
    },
};

use super::{look::Fixed, raw};

/// No GPU works above this; what NVML says beyond it is a placeholder for "not available".
pub(super) const HOTTEST_CELSIUS: u32 = 200;

/// A GPU's vital signs at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// What the driver wants done: `nvmlDeviceGpuRecoveryAction_t`.
    pub recovery: Option<u64>,
    /// Whether a row of its memory could not be replaced.
    pub remap_failure: Option<u64>,
    /// Whether a row is to be replaced at the next reset.
    pub remap_pending: Option<u64>,
    /// Rows that were replaced for uncorrected errors.
    pub remapped_uncorrected: Option<u64>,
    /// Whether pages are to be retired at the next reset.
    pub retirement_pending: Option<u64>,
    /// Errors of its links that were mended by sending again.
    pub nvlink_replay: Option<u64>,
    /// Errors of its links that were mended by training them anew.
    pub nvlink_recovery: Option<u64>,
    /// Uncorrected errors of its memory since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// Links that were up at the first look and aren't now.
    pub links_down: Vec<u32>,
    /// Its temperature.
    pub celsius: Option<u32>,
    /// The hardware halves its clocks because something of it is too hot.
    pub slowed_by_heat: bool,
}

impl Vitals {
    /// Asks a GPU.
    ///
    /// # Errors
    /// When it can't be asked: it is lost.
    pub(super) fn of(device: &Device<'_>, fixed: &Fixed) -> Result<Self, NvmlError> {
        let temperature = device.temperature(TemperatureSensor::Gpu);
        if let Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Unknown)) = temperature
        {
            return Err(error);
        }
        let single = [
            NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
            NVML_FI_DEV_REMAPPED_FAILURE,
            NVML_FI_DEV_REMAPPED_PENDING,
            NVML_FI_DEV_REMAPPED_UNC,
            NVML_FI_DEV_RETIRED_PENDING,
            NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
            NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
            NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
        ];
        let links = fixed.nvlinks.keys();
        let asked: Vec<_> = single
            .map(|id| (id, 0))
            .into_iter()
            .chain(links.clone().map(|link| (NVML_FI_DEV_NVLINK_GET_STATE, *link)))
            .collect();
        let mut values = raw::fields(device, &asked).into_iter().map(|value| number(&value?));
        let mut next = || values.next().flatten();
        Ok(Self {
            recovery: next(),
            remap_failure: next(),
            remap_pending: next(),
            remapped_uncorrected: next(),
            retirement_pending: next(),
            nvlink_replay: next(),
            nvlink_recovery: next(),
            // Which of the two questions a driver answers depends on its release.
            ecc_uncorrected: next().or_else(|| {
                let counted = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
                counted.ok().filter(|count| *count != u64::MAX)
            }),
            links_down: links.copied().filter(|link| is_down(next(), device, *link)).collect(),
            celsius: temperature.ok().filter(|celsius| *celsius <= HOTTEST_CELSIUS),
            slowed_by_heat: device
                .current_throttle_reasons()
                .is_ok_and(|reasons| reasons.contains(ThrottleReasons::HW_THERMAL_SLOWDOWN)),
        })
    }

    /// What is wrong with the GPU now, and stays so until somebody mends it.
    pub(super) fn conditions(&self, fixed: &Fixed) -> Vec<String> {
        let set = |value: Option<u64>| value.is_some_and(|value| value != 0);
        let mut conditions = Vec::new();
        if let Some(action) = self.recovery.and_then(recovery_action) {
            conditions.push(format!("the driver asks for {action}"));
        }
        if set(self.remap_failure) {
            conditions
                .push("a broken row of its memory can't be replaced: it has no spare rows left".to_owned());
        }
        if set(self.remap_pending) {
            conditions.push("a broken row of its memory is replaced at the next reset".to_owned());
        }
        if set(self.retirement_pending) {
            conditions.push("a broken page of its memory is retired at the next reset".to_owned());
        }
        if let (Some(now), Some(limit)) = (self.celsius, fixed.slowdown_celsius)
            && now >= limit
        {
            conditions.push(format!("it is so hot that it slows down (from {limit} °C on)"));
        } else if self.slowed_by_heat {
            conditions.push("it is so hot that the hardware slows it down".to_owned());
        }
        conditions.extend(self.links_down.iter().map(|link| format!("NVLink {link} is down")));
        conditions
    }

    /// Counters of errors, by name.
    pub(super) fn counters(&self) -> BTreeMap<&'static str, u64> {
        [
            ("ecc_uncorrected", self.ecc_uncorrected),
            ("remapped_rows_uncorrected", self.remapped_uncorrected),
            ("nvlink_replay", self.nvlink_replay),
            ("nvlink_recovery", self.nvlink_recovery),
        ]
        .into_iter()
        .filter_map(|(name, count)| Some((name, count?)))
        .collect()
    }

    /// Whether nothing has happened to the GPU's health between these two.
    pub(super) fn is_as_well_as(&self, before: &Self, fixed: &Fixed) -> bool {
        self.counters() == before.counters() && self.conditions(fixed) == before.conditions(fixed)
    }
}

/// Drivers before Hopper's know no field for it.
fn is_down(state: Option<u64>, device: &Device<'_>, link: u32) -> bool {
    match state {
        Some(state) => state == 0,
        None => matches!(device.link_wrapper_for(link).is_active(), Ok(false)),
    }
}

/// NVML's placeholder for "not available" is all ones.
fn number(value: &SampleValue) -> Option<u64> {
    match value {
        SampleValue::U32(value) => (*value != u32::MAX).then_some(u64::from(*value)),
        SampleValue::U64(value) => (*value != u64::MAX).then_some(*value),
        SampleValue::I64(value) => u64::try_from(*value).ok(),
        SampleValue::F64(_) => None,
    }
}

/// `nvmlDeviceGpuRecoveryAction_t`.
fn recovery_action(action: u64) -> Option<&'static str> {
    match action {
        1 => Some("a reset of the GPU"),
        2 => Some("a reboot of the machine"),
        3 => Some("peer-to-peer traffic to be drained"),
        4 => Some("the GPU to be drained and reset"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nvml_does_not_know_is_absent() {
        assert_eq!(number(&SampleValue::U32(3)), Some(3));
        for nothing in [
            SampleValue::U32(u32::MAX),
            SampleValue::U64(u64::MAX),
            SampleValue::I64(-1),
            SampleValue::F64(1.0),
        ] {
            assert_eq!(number(&nothing), None, "{nothing:?}");
        }
        assert_eq!(recovery_action(0), None);
        assert_eq!(recovery_action(u64::MAX), None);
        let nothing = Vitals::default();
        assert_eq!(nothing.conditions(&Fixed::default()), Vec::<String>::new());
        assert!(nothing.counters().is_empty());
    }

    #[test]
    fn only_what_concerns_health_makes_a_difference() {
        let fixed = Fixed { slowdown_celsius: Some(90), ..Fixed::default() };
        let well = Vitals { celsius: Some(60), nvlink_replay: Some(1), ..Vitals::default() };
        let check =
            |other: &Vitals, alike: bool| assert_eq!(other.is_as_well_as(&well, &fixed), alike, "{other:?}");
        check(&Vitals { celsius: Some(89), ..well.clone() }, true);
        check(&Vitals { celsius: None, recovery: Some(0), ..well.clone() }, true);
        check(&Vitals { celsius: Some(90), ..well.clone() }, false);
        check(&Vitals { nvlink_replay: Some(2), ..well.clone() }, false);
        check(&Vitals { links_down: vec![3], ..well.clone() }, false);
        check(&Vitals { slowed_by_heat: true, ..well.clone() }, false);
        // Where the threshold says it already, it is said once.
        let hot = Vitals { celsius: Some(91), slowed_by_heat: true, ..well.clone() };
        assert_eq!(hot.conditions(&fixed).len(), 1);
        assert!(hot.is_as_well_as(&Vitals { celsius: Some(95), ..hot.clone() }, &fixed));
    }
}
