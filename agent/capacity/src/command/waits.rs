//! How long jobs wait before they burst, where the best wait is looked for.

use std::str::FromStr;

use crate::policy::seconds;

/// Waits before bursting among which the best is looked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Waits {
    /// Times as people say them, from ten seconds to as long as the trace.
    Auto,
    /// These, in ascending order.
    These(Vec<f64>),
}

/// Times as people say them, each some 1.5 times as long as the one before.
const TIMES_S: [f64; 28] = [
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 450.0, 600.0, 900.0, 1200.0, 1800.0,
    2700.0, 3600.0, 5400.0, 7200.0, 10_800.0, 14_400.0, 21_600.0, 28_800.0, 43_200.0, 64_800.0, 86_400.0,
    172_800.0, 259_200.0,
];

impl FromStr for Waits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let wrong = |error| format!("{error}; or auto, or several of them with commas in between");
        let times: Result<Vec<f64>, String> =
            text.split(',').map(|time| seconds(time).map_err(wrong)).collect();
        let mut times = times?;
        times.sort_by(f64::total_cmp);
        times.dedup();
        Ok(Self::These(times))
    }
}

impl Waits {
    /// Those that are tried for jobs that come within so many seconds: no wait that all end before tells another apart from a longer one.
    pub(super) fn within(&self, span_s: f64) -> Vec<f64> {
        match self {
            Self::These(times) => times.clone(),
            Self::Auto => {
                let count = TIMES_S.partition_point(|time| *time <= span_s).max(1);
                TIMES_S[..count].to_vec()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Waits;

    #[test]
    fn waits_are_said_as_times() {
        assert_eq!("auto".parse(), Ok(Waits::Auto));
        assert_eq!("5m,90s,300".parse(), Ok(Waits::These(vec![90.0, 300.0])));
        assert_eq!(Waits::Auto.within(70.0), [10.0, 15.0, 20.0, 30.0, 45.0, 60.0]);
        assert_eq!(Waits::Auto.within(0.0), [10.0]);
        for text in ["", "soon", "5m,", "-1", "auto,5m"] {
            assert!(text.parse::<Waits>().is_err(), "{text}");
        }
    }
}
