//! Times, durations and sizes as people write them on the command line.

use jiff::{Timestamp, civil};

/// A duration in seconds: `90s`, `15m`, `12h`, `30d`, `4w`, `3y`.
///
/// # Errors
/// When it is none, or longer than 100 years: says what one looks like.
pub fn seconds(text: &str) -> Result<i64, String> {
    let wrong =
        || format!("{text:?} is no duration: a whole number and one of s, m, h, d, w, y, such as 90s or 30d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        "y" => 365 * 86_400,
        _ => return Err(wrong()),
    };
    let number: i64 = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
    let seconds = number.checked_mul(unit).filter(|seconds| *seconds <= 100 * 365 * 86_400);
    seconds.ok_or_else(|| format!("{text:?} is more than 100 years"))
}

/// A size in bytes: `500Mi`, `2Gi`.
///
/// # Errors
/// When it is none, or less than a mebibyte.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no size: a whole number and Mi or Gi, such as 500Mi, and no less than 1Mi");
    let units = [("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40)];
    let (number, unit) = units
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .ok_or_else(wrong)?;
    let number: u64 = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
    number.checked_mul(unit).filter(|bytes| *bytes <= 1 << 44).ok_or_else(wrong)
}

/// A time: a duration before `now_s`, a date (its midnight, UTC), or RFC 3339. In seconds since 1970.
///
/// # Errors
/// When it is none of these.
pub fn time(text: &str, now_s: i64) -> Result<i64, String> {
    if text == "now" {
        return Ok(now_s);
    }
    if let Ok(ago) = seconds(text) {
        return Ok(now_s - ago);
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.as_second());
    }
    let date: Option<civil::Date> = text.parse().ok();
    let midnight = date.and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok());
    midnight.map(|midnight| midnight.timestamp().as_second()).ok_or_else(|| {
        format!(
            "{text:?} is no time: a duration before now such as 30d, a date such as 2026-10-01, or RFC 3339"
        )
    })
}

/// A month: its begin and its end in UTC, in seconds since 1970.
///
/// # Errors
/// When it is none.
pub fn month(text: &str) -> Result<(i64, i64), String> {
    let wrong = || format!("{text:?} is no month: YEAR-MONTH, such as 2026-10");
    let (year, month) = text.split_once('-').ok_or_else(wrong)?;
    let begin = match (year.len(), month.len(), year.parse(), month.parse()) {
        (4, 2, Ok(year), Ok(month)) => civil::Date::new(year, month, 1).map_err(|_| wrong())?,
        _ => return Err(wrong()),
    };
    let next = begin.last_of_month().tomorrow().map_err(|_| wrong())?;
    let second = |date: civil::Date| {
        date.to_zoned(jiff::tz::TimeZone::UTC).map(|zoned| zoned.timestamp().as_second()).map_err(|_| wrong())
    };
    Ok((second(begin)?, second(next)?))
}

#[cfg(test)]
mod tests {
    use super::{bytes, month, seconds, time};

    #[test]
    fn what_people_write() {
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("3y"), Ok(94_608_000));
        assert_eq!(bytes("2Gi"), Ok(2 << 30));
        assert_eq!(time("1h", 10_000), Ok(6400));
        assert_eq!(time("1970-01-02", 0), Ok(86_400));
        assert_eq!(time("1970-01-01T01:00:00+01:00", 5), Ok(0));
        assert_eq!(month("2026-02").map(|(begin, end)| end - begin), Ok(28 * 86_400));
        assert_eq!(month("2026-12"), Ok((1_796_083_200, 1_798_761_600)));
    }

    #[test]
    fn what_they_mistype() {
        for text in ["", "s", "0s", "-1h", "1.5h", "1 h", "9223372036854775807y", "é", "10é", "99999y"] {
            seconds(text).unwrap_err();
        }
        for text in ["", "Mi", "0Mi", "1M", "99999999999999999999Gi", "18014398509481984Ti"] {
            bytes(text).unwrap_err();
        }
        for text in ["", "yesterday", "2026-13-01", "2026-02-30", "99999-01-01"] {
            time(text, 0).unwrap_err();
        }
        for text in ["", "2026", "2026-00", "2026-13", "26-10", "2026-1", "2026-10-01", "-026-10"] {
            month(text).unwrap_err();
        }
    }
}
