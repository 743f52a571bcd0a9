//! What Prometheus answers (`/api/v1/query_range`, `/api/v1/label/…/values`). Every byte is foreign: what is no number of GPUs becomes a missing point, and nothing is
//! taken that would not fit.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, SeqAccess, Visitor},
};

/// More is no number of GPUs.
const MOST_GPUS: f64 = 1e7;
/// As long as a message or a label is shown.
const LONGEST: usize = 500;
/// More series are no answer to a question about namespaces.
const MOST_SERIES: usize = 50_000;
/// More warnings are not kept.
const MOST_WARNINGS: usize = 50;

/// Why an answer is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The answer ends too early.
    #[error("the answer was cut short")]
    Cut,
    /// It isn't what Prometheus says.
    #[error("the answer isn't understood: {0}")]
    Shape(String),
    /// It says that it failed.
    #[error("{0}")]
    Failed(String),
    /// A range was asked for.
    #[error("the answer is a {0}, and a matrix was asked for")]
    Type(String),
    /// Too many series.
    #[error("the answer has more than {MOST_SERIES} series: sum by (namespace) in the query")]
    Series,
}

/// Series of one query, and what was said about them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// As they came.
    pub series: Vec<Series>,
    /// Of Prometheus' own.
    pub warnings: Vec<String>,
    /// Values that are no numbers of GPUs: infinite, negative, too large. NaN is how Prometheus says that there is none, and isn't counted.
    pub left_out: usize,
}

/// One series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Times in seconds since 1970 in ascending order, and GPUs.
    pub points: Vec<(i64, f64)>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Envelope<'a, T> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    data: Option<T>,
    #[serde(borrow, rename = "errorType", default)]
    error_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    error: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    warnings: Option<Vec<Cow<'a, str>>>,
}

/// Of other types than a matrix the result looks otherwise.
#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(borrow, rename = "resultType")]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Matrix<'a> {
    #[serde(borrow)]
    result: Vec<Raw<'a>>,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, default)]
    metric: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(borrow, default)]
    values: Vec<Pair<'a>>,
    /// Native histograms are no numbers.
    #[serde(default)]
    histograms: Option<Vec<IgnoredAny>>,
}

/// `[1700000000.123, "4"]`.
struct Pair<'a>(f64, Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Pair<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfTwo;
        impl<'de> Visitor<'de> for OfTwo {
            type Value = Pair<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a time and a value")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
                #[derive(Deserialize)]
                #[serde(transparent)]
                struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
                let missing = || de::Error::custom("a point has a time and a value");
                let at = pair.next_element()?.ok_or_else(missing)?;
                let Text(value) = pair.next_element()?.ok_or_else(missing)?;
                if pair.next_element::<IgnoredAny>()?.is_some() {
                    return Err(missing());
                }
                Ok(Pair(at, value))
            }
        }
        deserializer.deserialize_seq(OfTwo)
    }
}

fn refused(error: &serde_json::Error) -> Refusal {
    if error.is_eof() { Refusal::Cut } else { Refusal::Shape(short(&error.to_string())) }
}

/// As much of a foreign text as is shown.
pub(super) fn short(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn open<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, Vec<String>), Refusal> {
    let envelope: Envelope<'a, T> = serde_json::from_slice(bytes).map_err(|error| refused(&error))?;
    if envelope.status != "success" {
        return Err(Refusal::Failed(failure(envelope.error_type.as_deref(), envelope.error.as_deref())));
    }
    let warnings = envelope.warnings.unwrap_or_default();
    let warnings = warnings.iter().take(MOST_WARNINGS).map(|warning| short(warning)).collect();
    let data = envelope.data.ok_or_else(|| Refusal::Shape("it has no data".to_owned()))?;
    Ok((data, warnings))
}

fn failure(kind: Option<&str>, message: Option<&str>) -> String {
    let words: Vec<&str> = [kind, message].into_iter().flatten().filter(|words| !words.is_empty()).collect();
    if words.is_empty() { "it failed and does not say why".to_owned() } else { short(&words.join(": ")) }
}

/// What an answer with an error says; nothing where it isn't Prometheus' own: the API server's have a status, too.
pub fn error(bytes: &[u8]) -> Option<String> {
    let envelope: Envelope<'_, IgnoredAny> = serde_json::from_slice(bytes).ok()?;
    let failed = envelope.status == "error";
    failed.then(|| failure(envelope.error_type.as_deref(), envelope.error.as_deref()))
}

/// The series of an answer.
///
/// # Errors
/// When it is none, tells of an error, or has too much.
pub fn matrix(bytes: &[u8]) -> Result<Answer, Refusal> {
    let (Typed { kind }, _) = open(bytes)?;
    if kind != "matrix" {
        return Err(Refusal::Type(short(&kind)));
    }
    let (Matrix { result }, warnings) = open(bytes)?;
    if result.len() > MOST_SERIES {
        return Err(Refusal::Series);
    }
    let mut answer = Answer { warnings, ..Answer::default() };
    for raw in result {
        answer.left_out += raw.histograms.map_or(0, |histograms| histograms.len());
        let mut points: BTreeMap<i64, f64> = BTreeMap::new();
        for Pair(at, value) in raw.values {
            match (time(at), gpus(&value)) {
                (Some(at_s), Some(gpus)) => {
                    points.insert(at_s, gpus);
                }
                (Some(_), None) if value == "NaN" => {}
                _ => answer.left_out += 1,
            }
        }
        let labels = raw.metric.into_iter().map(|(name, value)| (short(&name), short(&value))).collect();
        answer.series.push(Series { labels, points: points.into_iter().collect() });
    }
    Ok(answer)
}

/// The values of a label.
///
/// # Errors
/// As [`matrix`].
pub fn values(bytes: &[u8]) -> Result<Vec<String>, Refusal> {
    let (values, _): (Vec<String>, _) = open(bytes)?;
    Ok(values.iter().map(|value| short(value)).collect())
}

fn time(at: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "it is within 10^12")]
    (at.abs() < 1e12).then(|| at.round() as i64)
}

/// A number of GPUs; `None` where it can't be one.
fn gpus(text: &str) -> Option<f64> {
    text.parse().ok().filter(|gpus| (0.0..=MOST_GPUS).contains(gpus))
}
