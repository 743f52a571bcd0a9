//! Metrics in the text format that scrapers of a kubelet get (version 0.0.4): a family's samples together, values as Go writes them
//! closely enough for every parser.

use std::{collections::BTreeMap, fmt::Write as _};

use jiff::Timestamp;

/// What kind of number it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by class.
    Histogram,
}

/// Families by name.
#[derive(Debug, Default)]
pub(super) struct Families(BTreeMap<&'static str, Family>);

#[derive(Debug)]
struct Family {
    help: &'static str,
    kind: Kind,
    samples: String,
}

impl Families {
    /// A family, even if it stays without samples: then it is not written either, as a kubelet's.
    pub(super) fn add(
        &mut self,
        (name, kind, help): (&'static str, Kind, &'static str),
        labels: &[(&str, &str)],
        value: f64,
        time: Option<Timestamp>,
    ) {
        let family = self.0.entry(name).or_insert_with(|| Family { help, kind, samples: String::new() });
        sample(&mut family.samples, (name, ""), labels, value, time);
    }

    /// A distribution: how many were in each class and in none below it, how many there were, and their sum.
    pub(super) fn add_histogram(
        &mut self,
        (name, kind, help): (&'static str, Kind, &'static str),
        labels: &[(&str, &str)],
        bounds: &[f64],
        within: &[u64],
        total: u64,
        sum: f64,
    ) {
        let family = self.0.entry(name).or_insert_with(|| Family { help, kind, samples: String::new() });
        let mut class = |bound: &str, value| {
            let labels = [labels, &[("le", bound)]].concat();
            sample(&mut family.samples, (name, "_bucket"), &labels, count(value), None);
        };
        let mut so_far = 0;
        for (bound, value) in bounds.iter().zip(within) {
            so_far += value;
            class(&bound.to_string(), so_far);
        }
        class("+Inf", total);
        sample(&mut family.samples, (name, "_sum"), labels, sum, None);
        sample(&mut family.samples, (name, "_count"), labels, count(total), None);
    }

    /// All of them.
    pub(super) fn text(self) -> String {
        let mut text = String::new();
        for (name, family) in self.0 {
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let _ = write!(text, "# HELP {name} {}\n# TYPE {name} {kind}\n{}", family.help, family.samples);
        }
        text
    }
}

fn sample(
    samples: &mut String,
    (name, suffix): (&str, &str),
    labels: &[(&str, &str)],
    value: f64,
    time: Option<Timestamp>,
) {
    samples.push_str(name);
    samples.push_str(suffix);
    for (index, (label, value)) in labels.iter().enumerate() {
        samples.push(if index == 0 { '{' } else { ',' });
        samples.push_str(label);
        samples.push_str("=\"");
        escape(value, samples);
        samples.push('"');
    }
    if !labels.is_empty() {
        samples.push('}');
    }
    // Writing to a string can't fail.
    let _ = write!(samples, " {value}");
    if let Some(time) = time {
        let _ = write!(samples, " {}", time.as_millisecond());
    }
    samples.push('\n');
}

fn escape(value: &str, to: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => to.push_str("\\\\"),
            '"' => to.push_str("\\\""),
            '\n' => to.push_str("\\n"),
            other => to.push(other),
        }
    }
}

/// Seconds of nanoseconds.
#[allow(clippy::cast_precision_loss)] // Metrics are floats.
pub(super) fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// A count, as metrics have it.
#[allow(clippy::cast_precision_loss)] // Metrics are floats.
pub(super) fn count(value: u64) -> f64 {
    value as f64
}

/// A time, in seconds since 1970.
#[allow(clippy::cast_precision_loss)] // Metrics are floats.
pub(super) fn unix(time: Timestamp) -> f64 {
    time.as_nanosecond() as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_family_are_together_and_labels_escaped() {
        let mut families = Families::default();
        families.add(("b_total", Kind::Counter, "Help."), &[("pod", "a\"\\\n")], 1.5, None);
        families.add(("a", Kind::Gauge, "Of a."), &[], 7.0, Some(Timestamp::from_second(2).unwrap()));
        families.add(("b_total", Kind::Counter, "Help."), &[("pod", "b"), ("x", "")], 2e12, None);
        assert_eq!(
            families.text(),
            "# HELP a Of a.\n# TYPE a gauge\na 7 2000\n\
             # HELP b_total Help.\n# TYPE b_total counter\nb_total{pod=\"a\\\"\\\\\\n\"} 1.5\n\
             b_total{pod=\"b\",x=\"\"} 2000000000000\n"
        );
    }
}
