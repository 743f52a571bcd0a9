//! From samples to the figures that are printed: medians and ratios. Pure.

use serde_json::{Map, Value, json};

/// The middle one, or what lies between the two in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { *upper } else { f64::midpoint(sorted[middle - 1], *upper) })
}

/// The median of the ratios of what was measured in the same round.
pub(super) fn ratio(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    median(&ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
}

/// The smaller of what was measured: a claim must hold for both.
pub(super) fn least(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    figures.into_iter().reduce(f64::min)
}

/// What one run found; what was not measured is none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Figures {
    pub(super) job_rate_over_kubelet: Option<f64>,
    pub(super) job_rate_over_cri_loop: Option<f64>,
    pub(super) noop_rate_over_kwok: Option<f64>,
    pub(super) rss_over_kwok: Option<f64>,
    pub(super) api_calls_per_pod: Option<f64>,
    pub(super) rss_mib_idle: Option<f64>,
    pub(super) rss_kib_per_pod: Option<f64>,
    pub(super) adopt_real_s: Option<f64>,
    pub(super) adopt_noop_s: Option<f64>,
}

impl Figures {
    /// Name, figure, goal, meaning.
    fn rows(&self) -> [(&'static str, Option<f64>, &'static str, &'static str); 9] {
        [
            (
                "job_rate_over_kubelet",
                self.job_rate_over_kubelet,
                ">= 1.6",
                "bind -> Succeeded, the smaller of both Jobs",
            ),
            ("job_rate_over_cri_loop", self.job_rate_over_cri_loop, ">= 0.9", "the same, at the loop's best"),
            ("noop_rate_over_kwok", self.noop_rate_over_kwok, ">= 1", "bind -> Running -> gone"),
            ("rss_over_kwok", self.rss_over_kwok, "<= 0.333", "all no-op pods Running, at rest"),
            ("api_calls_per_pod", self.api_calls_per_pod, "", "of a no-op pod, from bind to gone"),
            ("rss_mib_idle", self.rss_mib_idle, "", "provider cri, no pods"),
            ("rss_kib_per_pod", self.rss_kib_per_pod, "", "the larger of real and no-op pods"),
            ("adopt_real_s", self.adopt_real_s, "<= 5", "start -> what happened meanwhile is told"),
            ("adopt_noop_s", self.adopt_noop_s, "<= 5", "the same"),
        ]
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let measured = self.rows().into_iter().filter_map(|(name, figure, ..)| Some((name, figure?)));
        let rounded = |figure: f64| json!((figure * 1000.0).round() / 1000.0);
        Value::Object(
            measured.map(|(name, figure)| (name.to_owned(), rounded(figure))).collect::<Map<_, _>>(),
        )
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let line = |(name, figure, goal, meaning): (&str, Option<f64>, &str, &str)| {
            let figure = figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"));
            format!("  {name:24}{figure:>8}  {goal:9} {meaning}\n")
        };
        self.rows().map(line).concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_counts() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[f64::NAN]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // A slow second round halves both, and so nothing.
        assert_eq!(ratio(&[6.0, 3.0, 6.0], &[4.0, 2.0, 3.0]), Some(1.5));
        assert_eq!(ratio(&[], &[]), None);
        assert_eq!(least([2.0, 1.5]), Some(1.5));
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let figures =
            Figures { job_rate_over_kubelet: Some(1.712_34), adopt_noop_s: Some(2.0), ..Figures::default() };
        assert_eq!(figures.json(), json!({ "job_rate_over_kubelet": 1.712, "adopt_noop_s": 2.0 }));
        let table = figures.table();
        assert!(table.contains("job_rate_over_kubelet       1.71  >= 1.6"), "{table}");
        assert!(table.contains("rss_mib_idle                   -"), "{table}");
        assert_eq!(table.lines().count(), 9);
    }
}
