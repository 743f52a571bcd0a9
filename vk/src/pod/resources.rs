//! Quantities, quality of service, and what they mean for cgroups. Pure; the numbers are a kubelet's (`pkg/kubelet/cm/helpers_linux.go`,
//! `pkg/kubelet/qos/policy.go`), so that a pod weighs the same on every node of the cluster.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, ResourceFieldSelector, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::provider::runtime::{CPU_PERIOD_US, PodCgroup, QosClass, Resources};

/// Reads a quantity in some unit.
type Unit = fn(&Quantity) -> Option<i64>;

/// Amounts by resource name.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA_US: i64 = 1000;
const NANO: i128 = 1_000_000_000;

/// A quantity in thousandths, rounded up. `None`: it is none, or too big.
pub(crate) fn milli(quantity: &Quantity) -> Option<i64> {
    scaled(quantity, NANO / 1000)
}

/// A quantity in whole units, rounded up.
pub(crate) fn whole(quantity: &Quantity) -> Option<i64> {
    scaled(quantity, NANO)
}

fn scaled(quantity: &Quantity, unit: i128) -> Option<i64> {
    let nano = nano(&quantity.0)?;
    i64::try_from(nano.div_euclid(unit) + i128::from(nano.rem_euclid(unit) != 0)).ok()
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
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let exponent = 9 + ten - i32::try_from(fraction.len()).ok()?;
    let value = digits.checked_mul(multiplier)?;
    if exponent >= 0 {
        value.checked_mul(10_i128.checked_pow(exponent.unsigned_abs())?)
    } else {
        let divisor = 10_i128.checked_pow(exponent.unsigned_abs())?;
        Some(value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0))
    }
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

/// Class by what containers ask for, as `GetPodQOS` decides.
pub(crate) fn qos(spec: &PodSpec) -> QosClass {
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let kinds: [(&str, Unit); 2] = [("cpu", milli), ("memory", whole)];
    let mut any = false;
    let mut guaranteed = true;
    for container in containers() {
        for (name, unit) in kinds {
            let request = amount(requests(container.resources.as_ref()), name, unit);
            let limit = amount(limits(container.resources.as_ref()), name, unit);
            any |= request != 0 || limit != 0;
            guaranteed &= limit != 0 && (request == 0 || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// Limits of one container on a machine with so much memory.
pub(crate) fn container(spec: &PodSpec, container: &Container, machine_memory: i64) -> Resources {
    let requests = requests(container.resources.as_ref());
    let limits = limits(container.resources.as_ref());
    let cpu_limit = amount(limits, "cpu", milli);
    // A limit without a request is a request, too.
    let cpu_request = match amount(requests, "cpu", milli) {
        0 => cpu_limit,
        request => request,
    };
    let memory_limit = amount(limits, "memory", whole);
    let memory_request = match amount(requests, "memory", whole) {
        0 => memory_limit,
        request => request,
    };
    Resources {
        cpu_shares: shares(cpu_request),
        cpu_quota_us: quota(cpu_limit),
        memory_bytes: (memory_limit > 0).then_some(memory_limit),
        oom_score_adj: oom_score(qos(spec), memory_request, machine_memory),
    }
}

/// Class and limits of the whole pod. A limit holds only where every container has one.
pub(crate) fn pod(spec: &PodSpec) -> PodCgroup {
    let sum = |of: fn(Option<&ResourceRequirements>) -> Option<&Amounts>, name: &str, unit: Unit| {
        let one = |container: &Container| amount(of(container.resources.as_ref()), name, unit);
        let running: i64 = spec.containers.iter().map(one).sum();
        // Init containers run one at a time, before the others.
        let initial = spec.init_containers.iter().flatten().map(one).max().unwrap_or(0);
        running.max(initial) + amount(spec.overhead.as_ref(), name, unit)
    };
    let all_have = |name: &str| {
        spec.containers
            .iter()
            .all(|container| limits(container.resources.as_ref()).is_some_and(|l| l.contains_key(name)))
    };
    let qos = qos(spec);
    let cpu_request = match qos {
        QosClass::BestEffort => 0,
        QosClass::Guaranteed => sum(limits, "cpu", milli),
        QosClass::Burstable => sum(requests, "cpu", milli),
    };
    let limits = Resources {
        cpu_shares: shares(cpu_request),
        cpu_quota_us: all_have("cpu").then(|| quota(sum(limits, "cpu", milli))).flatten(),
        memory_bytes: all_have("memory").then(|| sum(limits, "memory", whole)).filter(|bytes| *bytes > 0),
        oom_score_adj: 0,
    };
    PodCgroup { qos, limits }
}

fn shares(milli_cpu: i64) -> u64 {
    (milli_cpu.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES).unsigned_abs()
}

fn quota(milli_cpu: i64) -> Option<i64> {
    (milli_cpu > 0).then(|| (milli_cpu.saturating_mul(CPU_PERIOD_US) / 1000).max(MIN_QUOTA_US))
}

fn oom_score(qos: QosClass, memory_request: i64, machine_memory: i64) -> i64 {
    match qos {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        // The more of the machine's memory it asked for, the later it dies; never before Guaranteed, never after BestEffort.
        QosClass::Burstable => {
            (1000 - memory_request.saturating_mul(1000) / machine_memory.max(1)).clamp(3, 999)
        }
    }
}

/// What a `resourceFieldRef` reads. Limits that are not set are the node's allocatable.
pub(crate) fn field(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    allocatable: &Amounts,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let container = match &selector.container_name {
        Some(name) => spec
            .and_then(|spec| {
                spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| &c.name == name)
            })
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
            0 => amount(Some(allocatable), name, unit),
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

    fn spec(resources: &[serde_json::Value]) -> PodSpec {
        let containers: Vec<_> = resources
            .iter()
            .enumerate()
            .map(|(n, resources)| json!({ "name": format!("c{n}"), "resources": resources }))
            .collect();
        serde_json::from_value(json!({ "containers": containers })).unwrap()
    }

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
        check("9999999E", None, None);
    }

    #[test]
    fn classes_follow_what_containers_ask_for() {
        let check = |resources: &[serde_json::Value], expected| assert_eq!(qos(&spec(resources)), expected);
        let both = json!({ "limits": { "cpu": "1", "memory": "1Gi" } });
        check(&[json!({})], QosClass::BestEffort);
        check(&[json!({ "limits": { "nvidia.com/gpu": "1" } })], QosClass::BestEffort);
        check(std::slice::from_ref(&both), QosClass::Guaranteed);
        check(&[both.clone(), json!({})], QosClass::Burstable);
        check(&[json!({ "limits": both["limits"], "requests": { "cpu": "500m" } })], QosClass::Burstable);
        check(&[json!({ "requests": { "memory": "1Mi" } })], QosClass::Burstable);
    }

    #[test]
    fn limits_become_cgroup_numbers() {
        let spec = spec(&[
            json!({ "requests": { "cpu": "250m", "memory": "1Gi" }, "limits": { "cpu": "500m", "memory": "2Gi" } }),
            json!({ "limits": { "cpu": "1m" } }),
        ]);
        let one = container(&spec, &spec.containers[0], 4 << 30);
        assert_eq!(
            one,
            Resources {
                cpu_shares: 256,
                cpu_quota_us: Some(50_000),
                memory_bytes: Some(2 << 30),
                oom_score_adj: 750
            }
        );
        let two = container(&spec, &spec.containers[1], 4 << 30);
        assert_eq!((two.cpu_shares, two.cpu_quota_us), (2, Some(1000)));
        let whole_pod = pod(&spec);
        assert_eq!(whole_pod.limits.cpu_quota_us, Some(50_100));
        assert_eq!(whole_pod.limits.memory_bytes, None, "one container has no memory limit");
    }

    #[test]
    fn resource_fields_round_up_and_default_to_the_node() {
        let pod: Pod =
            serde_json::from_value(json!({ "spec": spec(&[json!({ "limits": { "cpu": "1200m" } })]) }))
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
