//! Quantities as Kubernetes writes them (`apimachinery/pkg/api/resource/quantity.go`): `500m`, `64Gi`, `1e3`. Whole numbers only, so that nothing is lost; it knows no resource and no file.

/// More digits after the point don't fit beside `Ei`; they only round up.
const FRACTION: usize = 17;

/// A quantity in `1 / parts` units (`parts` of at most 1000), rounded up as Kubernetes does. One that is too big is the biggest, as Kubernetes says of its own. `None`: it is no quantity.
pub fn parse(text: &str, parts: u16) -> Option<i64> {
    let negative = text.starts_with('-');
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (factor, ten) = unit(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return None;
    }
    let (fraction, beyond) = fraction.split_at(fraction.len().min(FRACTION));
    let digits = whole.bytes().chain(fraction.bytes()).map(|digit| u128::from(digit - b'0'));
    let digits = digits.fold(0_u128, |number, digit| number.saturating_mul(10).saturating_add(digit));
    // Of as many tenths of tenths … as the fraction has digits.
    let exponent = ten.saturating_sub(fraction.len().try_into().unwrap_or(0));
    let power = 10_u128.checked_pow(exponent.unsigned_abs()).unwrap_or(u128::MAX);
    let times = |number: u128| number.saturating_mul(factor).saturating_mul(parts.into());
    let (amount, rest) = if exponent >= 0 {
        (times(digits).saturating_mul(power), false)
    } else {
        let part = times(digits % power);
        (times(digits / power).saturating_add(part / power), part % power != 0)
    };
    let rest = rest || beyond.bytes().any(|digit| digit != b'0');
    Some(if negative {
        i64::try_from(amount).map_or(i64::MIN, |amount| -amount)
    } else {
        i64::try_from(amount.saturating_add(rest.into())).unwrap_or(i64::MAX)
    })
}

/// What a suffix multiplies by, and by what power of ten besides.
fn unit(suffix: &str) -> Option<(u128, i32)> {
    Some(match suffix {
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
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let check = |text: &str, milli: Option<i64>, whole: Option<i64>| {
            assert_eq!((parse(text, 1000), parse(text, 1)), (milli, whole), "{text}");
        };
        check("2", Some(2000), Some(2));
        check("100m", Some(100), Some(1));
        check("1.5", Some(1500), Some(2));
        check(".5", Some(500), Some(1));
        check("5.", Some(5000), Some(5));
        check("+1", Some(1000), Some(1));
        check("0", Some(0), Some(0));
        check("64Mi", Some(67_108_864_000), Some(67_108_864));
        check("0.5Gi", Some(536_870_912_000), Some(536_870_912));
        check("1e3", Some(1_000_000), Some(1000));
        check("1E-3", Some(1), Some(1));
        check("1n", Some(1), Some(1));
        check("1u", Some(1), Some(1));
        check("-1", Some(-1000), Some(-1));
        check("-1.5", Some(-1500), Some(-1));
        check("-1n", Some(0), Some(0));
        check("128974848", Some(128_974_848_000), Some(128_974_848));
        check("9223372036854775807", Some(i64::MAX), Some(i64::MAX));
        check("9223372036854775806.5n", Some(9_223_372_036_855), Some(9_223_372_037));
        check("1.00000000000000000001Ei", Some(i64::MAX), Some((1 << 60) + 1));
        check("1.00000000000000000000Ei", Some(i64::MAX), Some(1 << 60));
        check("12E", Some(i64::MAX), Some(i64::MAX));
        check("-9999999E", Some(i64::MIN), Some(i64::MIN));
        check("1e400", Some(i64::MAX), Some(i64::MAX));
        check("1e2147483647", Some(i64::MAX), Some(i64::MAX));
        check("1e-2147483648", Some(1), Some(1));
        check(&"9".repeat(99), Some(i64::MAX), Some(i64::MAX));
        check(&format!("0.{}1", "0".repeat(60)), Some(1), Some(1));
    }

    #[test]
    fn what_is_none_is_refused() {
        let none =
            ["", "-", ".", "1.5.5", "ten", "1-1", "1+1", "1Zi", "1 Gi", "1e", "1e-99999999999", "--1", "NaN"];
        assert_eq!(none.map(|text| parse(text, 1)), [None; 13]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-+.0-9eEKMGTPi nmuk]{0,24}") {
            let _ = (parse(&text, 1000), parse(&text, 1));
        }

        #[test]
        fn whole_numbers_of_small_units_are_exact(number in 0_i64..1 << 40, bits in 0_usize..3) {
            let text = format!("{number}{}", ["", "Ki", "Mi"][bits]);
            proptest::prop_assert_eq!(parse(&text, 1), Some(number << (10 * bits)));
            proptest::prop_assert_eq!(parse(&format!("{number}m"), 1), Some((number + 999) / 1000));
        }
    }
}
