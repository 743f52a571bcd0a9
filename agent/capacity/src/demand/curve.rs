//! The load-duration curve: how long each of so many GPUs would have been busy. Costs, quantiles and break-even prices are read off it.

use super::Level;

/// For every number of GPUs, how long there was demand beyond it. Exact, for fractions of GPUs too, wherever a whole number of GPUs is owned.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadCurve {
    observed_s: f64,
    /// By whole GPUs of demand: how long.
    seconds: Vec<f64>,
    /// By GPU, from the first: how long it would have been busy.
    busy_s: Vec<f64>,
    /// By number of GPUs owned: GPU-seconds of demand beyond them. One longer than `busy_s`.
    beyond_gpu_s: Vec<f64>,
}

impl LoadCurve {
    pub(super) fn of<'a>(levels: impl Iterator<Item = &'a Level>) -> Self {
        let (mut seconds, mut parts): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
        for level in levels {
            let at = level.gpus as usize;
            if at >= seconds.len() {
                seconds.resize(at + 1, 0.0);
                parts.resize(at + 1, 0.0);
            }
            seconds[at] += level.seconds;
            parts[at] += level.part_gpu_s;
        }
        let observed_s = seconds.iter().sum();
        let (mut above, mut busy_s) = (0.0, vec![0.0; seconds.len()]);
        for at in (0..seconds.len()).rev() {
            busy_s[at] = above + parts[at];
            above += seconds[at];
        }
        while busy_s.last() == Some(&0.0) {
            busy_s.pop();
        }
        let mut beyond_gpu_s = vec![0.0; busy_s.len() + 1];
        for at in (0..busy_s.len()).rev() {
            beyond_gpu_s[at] = beyond_gpu_s[at + 1] + busy_s[at];
        }
        Self { observed_s, seconds, busy_s, beyond_gpu_s }
    }

    /// How much time it is made of, in seconds.
    pub fn observed_s(&self) -> f64 {
        self.observed_s
    }

    /// The least number of GPUs that is never exceeded.
    pub fn max_gpus(&self) -> u32 {
        u32::try_from(self.busy_s.len()).unwrap_or(u32::MAX)
    }

    /// Mean demand.
    pub fn mean_gpus(&self) -> f64 {
        self.beyond_gpus(0)
    }

    /// What share of the time the GPU after `gpus` others would be busy: P(D > `gpus`) for demand of whole GPUs.
    pub fn busy_share(&self, gpus: u32) -> f64 {
        self.busy_s.get(gpus as usize).map_or(0.0, |busy_s| busy_s / self.observed_s)
    }

    /// Demand beyond `gpus`, on average: E[(D − `gpus`)⁺].
    pub fn beyond_gpus(&self, gpus: u32) -> f64 {
        self.beyond_gpu_s.get(gpus as usize).map_or(0.0, |beyond| beyond / self.observed_s)
    }

    /// GPU-seconds of demand beyond `gpus`.
    pub fn beyond_gpu_s(&self, gpus: u32) -> f64 {
        self.beyond_gpu_s.get(gpus as usize).copied().unwrap_or(0.0)
    }

    /// The least whole number of GPUs that demand, rounded down, does not exceed in `share` of the time.
    pub fn quantile_gpus(&self, share: f64) -> u32 {
        let mut passed = 0.0;
        for (gpus, seconds) in self.seconds.iter().enumerate() {
            passed += seconds;
            if *seconds > 0.0 && passed >= share * self.observed_s * (1.0 - 1e-12) {
                return u32::try_from(gpus).unwrap_or(u32::MAX);
            }
        }
        self.max_gpus()
    }

    /// What share of the time demand was from `from` up to, but not including, `to` GPUs.
    pub fn share_between(&self, from: u32, to: u32) -> f64 {
        let end = (to as usize).min(self.seconds.len());
        self.seconds.get((from as usize).min(end)..end).map_or(0.0, |part| part.iter().sum::<f64>())
            / self.observed_s
    }
}
