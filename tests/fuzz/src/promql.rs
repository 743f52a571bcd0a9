//! What Prometheus answers, and what is made of it: points, names, owners. Read a second time without any care, where it is JSON at all.

use std::collections::BTreeMap;

use kubectl_spillway::history::{
    Owner, What,
    prometheus::{
        Kind,
        answer::{self, Answer},
    },
};
use serde_json::Value;

/// As long as any foreign text is kept, with the mark that it was cut.
const LONGEST: usize = 501;

/// Takes the bytes as an answer, and as the points of one.
pub fn run(bytes: &[u8]) {
    whole(bytes);
    if let Ok(points) = std::str::from_utf8(bytes) {
        let answer = format!(
            r#"{{"status":"success","data":{{"resultType":"matrix","result":[{{"metric":{{"namespace":"a"}},"values":[{points}]}}]}}}}"#
        );
        whole(answer.as_bytes());
    }
}

fn whole(bytes: &[u8]) {
    match answer::matrix(bytes) {
        Ok(found) => {
            holds(&found, bytes.len());
            if let Some(expected) = naive(bytes) {
                let points: Vec<_> = found.series.iter().map(|series| series.points.clone()).collect();
                assert_eq!(points, expected);
            }
        }
        Err(refusal) => assert!(refusal.to_string().chars().count() < 2 * LONGEST, "{refusal}"),
    }
    for text in answer::values(bytes).into_iter().flatten().chain(answer::error(bytes)) {
        assert!(text.chars().count() <= 2 * LONGEST);
    }
}

fn holds(answer: &Answer, bytes: usize) {
    let mut values = answer.left_out;
    for series in &answer.series {
        values += series.points.len();
        assert!(series.points.is_sorted_by(|one, other| one.0 < other.0), "{:?}", series.points);
        for (_, gpus) in &series.points {
            assert!((0.0..=1e7).contains(gpus), "{gpus}");
        }
        for text in series.labels.iter().flat_map(|(name, value)| [name, value]) {
            assert!(text.chars().count() <= LONGEST);
        }
        for what in [What::Capacity, What::Allocated, What::Waiting, What::Used] {
            for serverless in [false, true] {
                let kind = Kind { what, serverless };
                let (key, unit) = (kind.key(&series.labels), kind.unit(&series.labels));
                assert!(unit > 0.0 && unit <= 1.001, "{unit} of {:?}", series.labels);
                assert_eq!(key.what, what);
                assert!(what != What::Capacity || key.owner == Owner::default());
                assert!(what == What::Waiting || !key.pool.name.is_empty());
            }
        }
    }
    assert!(values <= bytes, "{values} values of {bytes} bytes");
    assert!(answer.warnings.iter().all(|warning| warning.chars().count() <= LONGEST));
}

/// The points of each series, where all is as Prometheus writes it.
fn naive(bytes: &[u8]) -> Option<Vec<Vec<(i64, f64)>>> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let result = value.as_object()?.get("data")?.as_object()?.get("result")?.as_array()?;
    let mut all = Vec::new();
    for series in result {
        let mut points = BTreeMap::new();
        for point in series.as_object()?.get("values").and_then(Value::as_array).into_iter().flatten() {
            let [at, text] = point.as_array()?.as_slice() else { return None };
            let (at, text) = (at.as_f64()?, text.as_str()?);
            let gpus: f64 = text.parse().unwrap_or(f64::NAN);
            if at.abs() < 1e12 && (0.0..=1e7).contains(&gpus) {
                #[expect(clippy::cast_possible_truncation, reason = "it is within 10^12")]
                points.insert(at.round() as i64, gpus);
            }
        }
        all.push(points.into_iter().collect());
    }
    Some(all)
}
