//! Metrics as exporters show them: Prometheus' text format and `OpenMetrics`. Every byte is somebody else's: a line that is none is passed over.

use std::borrow::Cow;

/// One value.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    labels: Vec<(&'a str, Cow<'a, str>)>,
    pub(super) value: f64,
}

impl Sample<'_> {
    /// A label's value; empty where there is none.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }
}

/// All values of a text.
pub(super) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(|char: char| char == '{' || char.is_whitespace())?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((label.trim(), value));
            rest = after;
        }
    }
    // After it there may be a time, and in OpenMetrics an exemplar.
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    (!name.is_empty() && value.is_finite()).then_some(Sample { name, labels, value })
}

/// A value up to the quotation mark that ends it, and what follows.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut escaped = false;
    let end = text.char_indices().find(|(_, char)| {
        let ends = *char == '"' && !escaped;
        escaped = *char == '\\' && !escaped;
        ends
    })?;
    let (value, rest) = (&text[..end.0], &text[end.0 + 1..]);
    if !value.contains('\\') {
        return Some((Cow::Borrowed(value), rest));
    }
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => plain.push(chars.next().map_or('\\', |next| if next == 'n' { '\n' } else { next })),
            _ => plain.push(char),
        }
    }
    Some((Cow::Owned(plain), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_and_labels_are_read() {
        let text = "# HELP a b\n# TYPE a gauge\na{pod=\"x\",model=\"NVIDIA \\\"T4\\\"\\n\\\\\"} 0.5 1700000000\nb 3\nc{} 1 # {id=\"}\"} 1\n\
                    d{a=\"1\n{x=\"1\"} 2\ne{a=\"1\"} NaN\n f 1\ng{a=\"}\", b=\"2\",} 7\n# EOF";
        let found: Vec<_> = samples(text).map(|sample| (sample.name, sample.value)).collect();
        assert_eq!(found, [("a", 0.5), ("b", 3.0), ("c", 1.0), ("g", 7.0)]);
        let first = samples(text).next().unwrap();
        assert_eq!(
            (first.label("pod"), first.label("model"), first.label("none")),
            ("x", "NVIDIA \"T4\"\n\\", "")
        );
        let last = samples(text).last().unwrap();
        assert_eq!((last.label("a"), last.label("b")), ("}", "2"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in any::<String>(), mixed in "[a{}=\",\\\\ 1\n#]{0,60}") {
            samples(&text).for_each(drop);
            samples(&mixed).for_each(drop);
        }

        #[test]
        fn what_is_written_is_read(value in any::<String>()) {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // A carriage return ends a line for `lines` only together with what follows.
            prop_assume!(!value.contains('\r'));
            let line = format!("m{{l=\"{escaped}\"}} 1");
            let found: Vec<_> = samples(&line).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].label("l"), value);
        }
    }
}
