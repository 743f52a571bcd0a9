//! Whether demand changes over time: a rank-sum test on daily means, and what the change costs.

use serde::Serialize;

use super::Fold;
use crate::demand::Series;

/// Whether the second half of a trace is like the first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Drift {
    /// Whether one of the thresholds is passed.
    pub drifts: bool,
    /// Mean demand of the first half.
    pub first_gpus: f64,
    /// Mean demand of the second half.
    pub second_gpus: f64,
    /// How long the stretches are whose means were compared.
    pub stretch_s: f64,
    /// How many there are.
    pub stretches: usize,
    /// How alike neighbouring stretches are: their correlation, by which the test is weakened.
    pub autocorrelation: f64,
    /// How likely means as different as these are if nothing changes (Mann-Whitney, two-sided); none with too few of them.
    pub p_value: Option<f64>,
    /// It is drift where that is less than this.
    pub p_threshold: f64,
    /// What the advice on the first half costs more on the second than the best there, as a share.
    pub half_regret: Option<f64>,
    /// It is drift where that is more than this.
    pub regret_threshold: f64,
}

const P_THRESHOLD: f64 = 0.05;
const REGRET_THRESHOLD: f64 = 0.03;
/// Days are compared, or shorter stretches where there are fewer days than this.
const STRETCHES: f64 = 24.0;
/// With fewer on a side, ranks say nothing.
const LEAST: usize = 4;

pub(super) fn test(series: &Series, half: Option<&Fold>) -> Drift {
    let middle = series.after_share(0.5);
    let mean = |range: std::ops::Range<usize>| {
        let curve = series.curve_of(range);
        if curve.observed_s() > 0.0 { curve.mean_gpus() } else { 0.0 }
    };
    let stretch_s = f64::min(86_400.0, series.span().seconds() / STRETCHES).max(series.width_s());
    let means = series.means(stretch_s);
    let autocorrelation = autocorrelation(&means);
    let p_value = rank_sum(&means, autocorrelation);
    let half_regret = half.map(|fold| fold.regret);
    Drift {
        drifts: p_value.is_some_and(|p| p < P_THRESHOLD)
            || half_regret.is_some_and(|regret| regret > REGRET_THRESHOLD),
        first_gpus: mean(0..middle),
        second_gpus: mean(middle..series.blocks()),
        stretch_s: (stretch_s / series.width_s()).round().max(1.0) * series.width_s(),
        stretches: means.len(),
        autocorrelation,
        p_value,
        p_threshold: P_THRESHOLD,
        half_regret,
        regret_threshold: REGRET_THRESHOLD,
    }
}

fn autocorrelation(means: &[f64]) -> f64 {
    let average = means.iter().sum::<f64>() / means.len().max(1) as f64;
    let variance: f64 = means.iter().map(|mean| (mean - average).powi(2)).sum();
    let together: f64 = means.windows(2).map(|pair| (pair[0] - average) * (pair[1] - average)).sum();
    if variance > 0.0 { together / variance } else { 0.0 }
}

/// The p-value of Mann and Whitney's test that the first half of `means` is like the second, by the normal approximation. Neighbours that are alike count for fewer: n·(1 − ρ)/(1 + ρ).
fn rank_sum(means: &[f64], autocorrelation: f64) -> Option<f64> {
    let (first, second) = means.split_at(means.len() / 2);
    if first.len() < LEAST {
        return None;
    }
    let wins: f64 = first
        .iter()
        .flat_map(|one| second.iter().map(move |other| one.total_cmp(other)))
        .map(|order| match order {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        })
        .sum();
    let (one, other) = (first.len() as f64, second.len() as f64);
    let spread = (one * other * (one + other + 1.0) / 12.0).sqrt();
    let alike = autocorrelation.clamp(0.0, 0.99);
    let z = (wins - one * other / 2.0) / spread * ((1.0 - alike) / (1.0 + alike)).sqrt();
    Some(erfc(z.abs() / std::f64::consts::SQRT_2))
}

/// The complementary error function for `x` from 0 up, to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    series.iter().fold(0.0, |sum, factor| (sum + factor) * t) * (-x * x).exp()
}

#[cfg(test)]
mod tests {
    use super::{autocorrelation, erfc, rank_sum};

    #[test]
    fn halves_that_differ_are_told_from_those_that_do_not() {
        let steady: Vec<f64> = (0..40).map(|day| f64::from(day * 7 % 11)).collect();
        let p = |means: &[f64]| rank_sum(means, autocorrelation(means)).unwrap();
        assert!(p(&steady) > 0.5, "{}", p(&steady));
        let grown: Vec<f64> =
            steady.iter().enumerate().map(|(day, mean)| if day < 20 { *mean } else { mean + 20.0 }).collect();
        assert!(rank_sum(&grown, 0.0).unwrap() < 1e-6);
        assert_eq!(rank_sum(&[1.0; 7], 0.0), None);
        assert!((p(&[1.0; 8]) - 1.0).abs() < 1e-6, "nothing changes at all");
    }

    #[test]
    fn the_error_function_is_that_of_tables() {
        for (x, expected) in [(0.0, 1.0), (0.5, 0.479_500_1), (1.0, 0.157_299_2), (2.0, 0.004_677_7)] {
            assert!((erfc(x) - expected).abs() < 2e-7, "{x}");
        }
    }
}
