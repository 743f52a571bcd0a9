//! `--fail-if`: conditions on a report, for scripts.

use std::{fmt, str::FromStr};

use super::{Pool, Report, pools::float};

/// A condition such as `stranded>20%`. Per cents are of a pool's allocatable; it holds if it does of any pool of machines that are owned.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    metric: Metric,
    relation: Relation,
    value: f64,
    percent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    Allocated,
    Requested,
    Used,
    Idle,
    Free,
    Stranded,
    Waiting,
    WaitingSeconds,
    LargestPod,
    Fragmentation,
}

/// Of a pool, but for what waits, which is of the whole cluster.
const METRICS: [(&str, Metric); 10] = [
    ("allocated", Metric::Allocated),
    ("requested", Metric::Requested),
    ("used", Metric::Used),
    ("idle", Metric::Idle),
    ("free", Metric::Free),
    ("stranded", Metric::Stranded),
    ("waiting", Metric::Waiting),
    ("waiting_s", Metric::WaitingSeconds),
    ("largest_pod", Metric::LargestPod),
    ("fragmentation", Metric::Fragmentation),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    More,
    AtLeast,
    Less,
    AtMost,
}

const RELATIONS: [(&str, Relation); 4] =
    [(">=", Relation::AtLeast), ("<=", Relation::AtMost), (">", Relation::More), ("<", Relation::Less)];

/// A text that is no condition.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotACondition {
    /// There is no `<` or `>` in it.
    #[error("{0:?} compares nothing: write it as 'stranded>20%', with one of > >= < <=")]
    Relation(String),
    /// What it compares isn't known.
    #[error("{0:?} is nothing that can be compared: it is one of {words}", words = METRICS.map(|(word, _)| word).join(", "))]
    Metric(String),
    /// It compares with no number.
    #[error("{0:?} is no number: write 20, 0.5 or 20%")]
    Value(String),
    /// Per cents of what?
    #[error("{0} is not a part of anything: compare it with a number, without %")]
    Percent(&'static str),
}

/// Something that can't be said of the cluster.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("can't tell whether {condition} holds: nothing measures what the accelerators do{unseen}")]
pub struct Unknown {
    condition: String,
    unseen: String,
}

impl FromStr for Condition {
    type Err = NotACondition;

    fn from_str(text: &str) -> Result<Self, NotACondition> {
        let found = RELATIONS.iter().find_map(|(sign, relation)| {
            let (left, right) = text.split_once(sign)?;
            Some((left.trim(), *relation, right.trim()))
        });
        let (word, relation, right) = found.ok_or_else(|| NotACondition::Relation(text.to_owned()))?;
        let metric = METRICS.iter().find(|(known, _)| *known == word);
        let (name, metric) = *metric.ok_or_else(|| NotACondition::Metric(word.to_owned()))?;
        let (number, percent) = match right.strip_suffix('%') {
            Some(number) => (number.trim(), true),
            None => (right, false),
        };
        let value: f64 = number
            .parse()
            .ok()
            .filter(|value: &f64| value.is_finite())
            .ok_or_else(|| NotACondition::Value(right.to_owned()))?;
        let whole = matches!(metric, Metric::Waiting | Metric::WaitingSeconds);
        if percent && whole {
            return Err(NotACondition::Percent(name));
        }
        Ok(Self { metric, relation, value, percent })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = METRICS.iter().find(|(_, metric)| *metric == self.metric).map_or("", |(word, _)| word);
        let sign =
            RELATIONS.iter().find(|(_, relation)| *relation == self.relation).map_or("", |(sign, _)| sign);
        write!(formatter, "{word}{sign}{}{}", self.value, if self.percent { "%" } else { "" })
    }
}

impl Condition {
    /// Where it holds, in words; nothing where it doesn't.
    pub fn holds(&self, report: &Report) -> Result<Option<String>, Unknown> {
        let value =
            match self.metric {
                Metric::Waiting => Some(float(
                    report.waiting.iter().map(|one| one.pods.unwrap_or(1)).fold(0, |sum: i64, pods| {
                        sum.saturating_add(i64::try_from(pods).unwrap_or(i64::MAX))
                    }),
                )),
                Metric::WaitingSeconds => {
                    Some(report.waiting.iter().filter_map(|one| one.waits_s).fold(0.0, f64::max))
                }
                _ => None,
            };
        if let Some(value) = value {
            return Ok(self.compares(value).then(|| format!("{self}: it is {value:.0}")));
        }
        let accelerated = report.dedicated.iter().filter(|pool| pool.resource != "cpu");
        for pool in accelerated {
            let Some(value) = self.of(pool) else {
                if pool.allocated == 0 {
                    continue;
                }
                let unseen = report.not_seen.first().map(|unseen| format!(" ({unseen})")).unwrap_or_default();
                return Err(Unknown { condition: self.to_string(), unseen });
            };
            if self.compares(value) {
                let model = pool.model.as_ref().map(|model| format!(" {model}")).unwrap_or_default();
                let unit = if self.percent { " %" } else { "" };
                return Ok(Some(format!(
                    "{self}: of {}{model} it is {}{unit}",
                    pool.resource,
                    rounded(value)
                )));
            }
        }
        Ok(None)
    }

    fn of(&self, pool: &Pool) -> Option<f64> {
        let value = match self.metric {
            Metric::Allocated => float(pool.allocated),
            Metric::Requested => float(pool.requested),
            Metric::Used => pool.used?,
            Metric::Idle => float(pool.idle),
            Metric::Free => float(pool.free),
            Metric::Stranded => float(pool.stranded),
            Metric::LargestPod => float(pool.largest_pod.as_ref().map_or(0, |largest| largest.devices)),
            Metric::Fragmentation => {
                let share = pool.fragmentation.unwrap_or(0.0);
                return Some(if self.percent { share * 100.0 } else { share });
            }
            Metric::Waiting | Metric::WaitingSeconds => return None,
        };
        Some(if !self.percent {
            value
        } else if pool.allocatable == 0 {
            0.0
        } else {
            100.0 * value / float(pool.allocatable)
        })
    }

    fn compares(&self, value: f64) -> bool {
        match self.relation {
            Relation::More => value > self.value,
            Relation::AtLeast => value >= self.value,
            Relation::Less => value < self.value,
            Relation::AtMost => value <= self.value,
        }
    }
}

fn rounded(value: f64) -> String {
    let text = format!("{value:.1}");
    text.trim_end_matches(".0").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_wrong_with_them() {
        for good in
            ["stranded>20%", " idle >= 4 ", "free<2", "waiting_s>3600", "used<=30.5%", "fragmentation>0.5"]
        {
            good.parse::<Condition>().unwrap();
        }
        let wrong = |text: &str| text.parse::<Condition>().unwrap_err().to_string();
        assert!(wrong("stranded").contains("compares nothing"));
        assert!(wrong("stranded=3").contains("compares nothing"));
        assert!(wrong("strand>3").contains("allocated, requested, used"));
        assert!(wrong("idle>many").contains("no number"));
        assert!(wrong("idle>NaN").contains("no number"));
        assert!(wrong("waiting>5%").contains("without %"));
        assert_eq!("stranded >20 %".parse::<Condition>().unwrap().to_string(), "stranded>20%");
    }
}
