//! Quantities, quality of service, and what they mean for cgroups. Pure; the numbers are a kubelet's (`pkg/kubelet/cm/helpers_linux.go`,
//! `pkg/kubelet/qos/policy.go`), so that a pod weighs the same on every node of the cluster.

mod limits;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, ResourceFieldSelector, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

pub(crate) use limits::{container, huge_pages, pod, qos, request, sandbox, shares};

use super::ephemeral;

/// Reads a quantity in some unit.
type Unit = fn(&Quantity) -> Option<i64>;

/// Amounts by resource name.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

const NANO: i128 = 1_000_000_000;

/// A quantity in thousandths, rounded up. One that is too big is the biggest, as Kubernetes says of its own. `None`: it is none.
pub(crate) fn milli(quantity: &Quantity) -> Option<i64> {
    scaled(quantity, NANO / 1000)
}

/// A quantity in whole units, rounded up.
pub(crate) fn whole(quantity: &Quantity) -> Option<i64> {
    scaled(quantity, NANO)
}

fn scaled(quantity: &Quantity, unit: i128) -> Option<i64> {
    let nano = nano(&quantity.0)?;
    let scaled = nano.div_euclid(unit) + i128::from(nano.rem_euclid(unit) != 0);
    // The bounds fit.
    i64::try_from(scaled.clamp(i64::MIN.into(), i64::MAX.into())).ok()
}

fn nano(text: &str) -> Option<i128> {
    let number_end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let (multiplier, ten): (i128, i32) = match suffix {
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
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
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let unsigned = whole.strip_prefix(['+', '-']).unwrap_or(whole);
    if unsigned.len() + fraction.len() == 0 || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let exponent =
        i32::try_from(fraction.len()).ok().and_then(|length| ten.saturating_add(9).checked_sub(length));
    // Ten to the 38th is the last that fits.
    let power = |exponent: u32| 10_i128.checked_pow(exponent).unwrap_or(i128::MAX);
    let digits: i128 = format!("0{unsigned}{fraction}").parse().unwrap_or(i128::MAX);
    let value = digits.saturating_mul(multiplier);
    let magnitude = match exponent {
        Some(exponent @ 0..) => value.saturating_mul(power(exponent.unsigned_abs())),
        exponent => {
            let divisor = power(exponent.map_or(u32::MAX, i32::unsigned_abs));
            value / divisor + i128::from(!whole.starts_with('-') && value % divisor != 0)
        }
    };
    Some(if whole.starts_with('-') { -magnitude } else { magnitude })
}

fn amount(amounts: Option<&Amounts>, name: &str, unit: Unit) -> i64 {
    amounts.and_then(|amounts| amounts.get(name)).and_then(unit).unwrap_or(0)
}

fn requests(resources: Option<&ResourceRequirements>) -> Option<&Amounts> {
    resources.and_then(|resources| resources.requests.as_ref())
}

fn limits(resources: Option<&ResourceRequirements>) -> Option<&Amounts> {
    resources.and_then(|resources| resources.limits.as_ref())
}

/// Thousandths as Kubernetes writes them.
pub(crate) fn of_milli(value: i64) -> Quantity {
    Quantity(if value % 1000 == 0 { (value / 1000).to_string() } else { format!("{value}m") })
}

/// Bytes as Kubernetes writes them: in the largest unit that divides them.
pub(crate) fn of_bytes(value: i64) -> Quantity {
    let units = [(60, "Ei"), (50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    let unit = units.into_iter().find(|(bits, _)| value != 0 && value % (1_i64 << bits) == 0);
    Quantity(match unit {
        Some((bits, suffix)) => format!("{}{suffix}", value >> bits),
        None => value.to_string(),
    })
}

/// What limits that a container does not set are for its variables: the pod's, or else the node's allocatable, as
/// `defaultPodLimitsForDownwardAPI` in `pkg/kubelet/kubelet_resources.go`. Files of downwardAPI volumes know no limits of the pod.
pub(crate) fn default_limits(spec: &PodSpec, allocatable: &Amounts) -> Amounts {
    let mut defaults = allocatable.clone();
    let limits = limits(spec.resources.as_ref());
    for (name, unit) in [("cpu", milli as Unit), ("memory", whole)] {
        let limit = limits.and_then(|limits| limits.get(name)).filter(|limit| unit(limit).unwrap_or(0) != 0);
        if let (Some(limit), Some(default)) = (limit, defaults.get_mut(name)) {
            default.clone_from(limit);
        }
    }
    defaults
}

/// What a `resourceFieldRef` reads. Limits that are not set are the `defaults`.
pub(crate) fn field(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    defaults: &Amounts,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let container = match &selector.container_name {
        Some(name) => spec
            .and_then(|spec| ephemeral::own(spec, name))
            .ok_or_else(|| format!("container {name} not found"))?,
        None => own.ok_or("a resourceFieldRef of a volume needs a containerName")?,
    };
    let (side, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource: {}", selector.resource))?;
    let unit = if name == "cpu" { milli } else { whole };
    let value = match side {
        "requests" => amount(requests(container.resources.as_ref()), name, unit),
        "limits" => match amount(limits(container.resources.as_ref()), name, unit) {
            0 => amount(Some(defaults), name, unit),
            limit => limit,
        },
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let divisor = match &selector.divisor {
        Some(quantity) if unit(quantity).unwrap_or(0) > 0 => unit(quantity).unwrap_or(1),
        _ if name == "cpu" => 1000,
        _ => 1,
    };
    Ok((value / divisor + i64::from(value % divisor != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let check = |text: &str, expected_milli: Option<i64>, expected_whole: Option<i64>| {
            let quantity = Quantity(text.to_owned());
            assert_eq!((milli(&quantity), whole(&quantity)), (expected_milli, expected_whole), "{text}");
        };
        check("100m", Some(100), Some(1));
        check("1.5", Some(1500), Some(2));
        check("64Mi", Some(67_108_864_000), Some(67_108_864));
        check("0.5Gi", Some(536_870_912_000), Some(536_870_912));
        check("1e3", Some(1_000_000), Some(1000));
        check("1n", Some(1), Some(1));
        check("-1", Some(-1000), Some(-1));
        check("", None, None);
        check("1.5.5", None, None);
        check("ten", None, None);
        check("9999999E", Some(i64::MAX), Some(i64::MAX));
        check("-9999999E", Some(i64::MIN), Some(i64::MIN));
        check("1e400", Some(i64::MAX), Some(i64::MAX));
        check(&"9".repeat(99), Some(i64::MAX), Some(i64::MAX));
        check(&format!("0.{}1", "0".repeat(60)), Some(1), Some(1));
        check("1e2147483647", Some(i64::MAX), Some(i64::MAX));
        check("1e-2147483648", Some(1), Some(1));
        check("-", None, None);
        check("1-1", None, None);
        check(".", None, None);
    }

    #[test]
    fn amounts_are_written_as_kubernetes_does() {
        let check = |quantity: Quantity, expected: &str| assert_eq!(quantity.0, expected);
        check(of_milli(1500), "1500m");
        check(of_milli(2000), "2");
        check(of_bytes(35 << 20), "35Mi");
        check(of_bytes(1025), "1025");
        check(of_bytes(0), "0");
    }

    #[test]
    fn resource_fields_round_up_and_default_to_the_node() {
        let pod: Pod = serde_json::from_value(json!({ "spec": { "containers": [
                { "name": "c0", "resources": { "limits": { "cpu": "1200m" } } },
            ] } }))
        .unwrap();
        let own = &pod.spec.as_ref().unwrap().containers[0];
        let allocatable = Amounts::from([("memory".to_owned(), Quantity("4Gi".to_owned()))]);
        let check = |selector: serde_json::Value| {
            field(&pod, Some(own), &serde_json::from_value(selector).unwrap(), &allocatable)
        };
        assert_eq!(check(json!({ "resource": "limits.cpu" })), Ok("2".to_owned()));
        assert_eq!(check(json!({ "resource": "limits.cpu", "divisor": "1m" })), Ok("1200".to_owned()));
        assert_eq!(check(json!({ "resource": "limits.memory", "divisor": "1Mi" })), Ok("4096".to_owned()));
        assert_eq!(check(json!({ "resource": "requests.cpu" })), Ok("0".to_owned()));
        assert!(check(json!({ "resource": "bogus" })).is_err());
        assert!(check(json!({ "resource": "limits.cpu", "containerName": "none" })).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[-+.0-9eEKMGTPi nmuk]{0,24}") {
            let quantity = Quantity(text);
            let _ = (milli(&quantity), whole(&quantity));
        }
    }
}
