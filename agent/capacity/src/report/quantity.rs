//! Quantities, from Kubernetes and for people.

/// A quantity in `1 / parts` units, rounded up as the scheduler does. One that is too big is the biggest; `None`: it is no quantity, or negative.
pub(crate) fn parse(text: &str, parts: u16) -> Option<i64> {
    spillway_quantity::parse(text, parts).filter(|amount| *amount >= 0)
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
    use super::{bytes, cores};

    #[test]
    fn people_read_them() {
        assert_eq!([cores(16_000), cores(500), cores(0), cores(1_250)], ["16", "0.5", "0", "1.25"]);
        assert_eq!(
            [bytes(0), bytes(64 << 30), bytes(3 << 29), bytes(i64::MAX), bytes(1000)],
            ["0", "64Gi", "1.5Gi", "7.9Ei", "1000"]
        );
    }
}
