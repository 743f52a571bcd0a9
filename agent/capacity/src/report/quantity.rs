//! Quantities as Kubernetes writes them (`apimachinery/pkg/api/resource/quantity.go`).

/// A quantity in `1 / parts` units, rounded up as the scheduler does. One that is too big is the biggest; `None`: it is no quantity, or negative.
pub(crate) fn parse(text: &str, parts: i64) -> Option<i64> {
    let end =
        text.find(|char: char| !char.is_ascii_digit() && char != '.' && char != '+').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let (factor, ten): (i128, i32) = match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        exponent => (1, exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let exponent = ten.saturating_sub(i32::try_from(fraction.len()).unwrap_or(i32::MAX));
    let digits: i128 = format!("0{whole}{fraction}").parse().unwrap_or(i128::MAX);
    let value = digits.saturating_mul(factor).saturating_mul(parts.into());
    let power = 10_i128.checked_pow(exponent.unsigned_abs()).unwrap_or(i128::MAX);
    let scaled = if exponent >= 0 {
        value.saturating_mul(power)
    } else {
        value / power + i128::from(value % power != 0)
    };
    Some(i64::try_from(scaled).unwrap_or(i64::MAX))
}

/// Thousandths of a core, as people say it: `16`, `0.5`.
pub(crate) fn cores(milli: i64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli.abs() % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes, as people say it: with no more digits than tell something.
pub(crate) fn bytes(count: i64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let bits = 63 - count.max(1).leading_zeros();
    let unit = usize::try_from(bits / 10).unwrap_or(0).min(UNITS.len() - 1);
    let size = 1_i64 << (10 * unit);
    // In tenths.
    let tenths = i128::from(count) * 10 / i128::from(size);
    if unit == 0 || tenths >= 100 || tenths % 10 == 0 {
        format!("{}{}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::{bytes, cores, parse};

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, parts, value) in [
            ("2", 1, Some(2)),
            ("100m", 1000, Some(100)),
            ("100m", 1, Some(1)),
            ("1.5", 1000, Some(1500)),
            (".5", 1000, Some(500)),
            ("1e3", 1, Some(1000)),
            ("12E", 1, Some(i64::MAX)),
            ("3Ki", 1, Some(3072)),
            ("+1", 1, Some(1)),
            ("128974848", 1, Some(128_974_848)),
            ("99999999999999999999999999999999999999999999", 1, Some(i64::MAX)),
            ("1e-99999999999", 1, None),
            ("1e2147483647", 1, Some(i64::MAX)),
            ("0.000000000000000000000000000000000000000001", 1, Some(1)),
            ("-1", 1, None),
            ("", 1, None),
            (".", 1, None),
            ("1.2.3", 1, None),
            ("1Zi", 1, None),
            ("1+1", 1, None),
        ] {
            assert_eq!(parse(text, parts), value, "{text}");
        }
    }

    #[test]
    fn people_read_them() {
        assert_eq!([cores(16_000), cores(500), cores(0), cores(1_250)], ["16", "0.5", "0", "1.25"]);
        assert_eq!(
            [bytes(0), bytes(64 << 30), bytes(3 << 29), bytes(i64::MAX), bytes(1000)],
            ["0", "64Gi", "1.5Gi", "7.9Ei", "1000"]
        );
    }
}
