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

/// A quantity in thousandths, rounded up. One that is too big is the biggest, as Kubernetes says of its own. `None`: it is none.
pub(crate) fn milli(quantity: &Quantity) -> Option<i64> {
    spillway_quantity::parse(&quantity.0, 1000)
}

/// A quantity in whole units, rounded up.
pub(crate) fn whole(quantity: &Quantity) -> Option<i64> {
    spillway_quantity::parse(&quantity.0, 1)
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
}
