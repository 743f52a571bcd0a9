//! Quality of service and the numbers of cgroups: of one container, and of the pod around them.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Amounts, Unit, amount, limits, milli, requests, whole};
use crate::{
    pod::probe::is_sidecar,
    provider::runtime::{CPU_PERIOD_US, PodCgroup, QosClass, Resources},
};

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA_US: i64 = 1000;
/// Pods of this class are killed last, whatever they ask for.
const NODE_CRITICAL: &str = "system-node-critical";
/// What classes are decided by.
const COMPUTE: [(&str, Unit); 2] = [("cpu", milli), ("memory", whole)];

/// One side of what a container or a pod asks for.
type Side = fn(Option<&ResourceRequirements>) -> Option<&Amounts>;

/// Class by what the pod asks for, or else its containers, as `ComputePodQOS` decides.
pub(crate) fn qos(spec: &PodSpec) -> QosClass {
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let sum = |side: Side, name: &str, unit: Unit| match &spec.resources {
        Some(whole_pod) => amount(side(Some(whole_pod)), name, unit),
        None => containers()
            .map(|container| amount(side(container.resources.as_ref()), name, unit))
            .fold(0, i64::saturating_add),
    };
    let limited = |name: &str, unit: Unit| spec.resources.is_some() || each_has_limit(spec, name, unit);
    let mut any = false;
    let mut guaranteed = true;
    for (name, unit) in COMPUTE {
        let (request, limit): (i64, i64) = (sum(requests, name, unit), sum(limits, name, unit));
        any |= request != 0 || limit != 0;
        guaranteed &= limit != 0 && (request == 0 || request == limit) && limited(name, unit);
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// Limits of one container on a machine with so much memory. Where it has no limit of its own the pod's holds.
pub(crate) fn container(spec: &PodSpec, container: &Container, machine_memory: i64) -> Resources {
    let own = container.resources.as_ref();
    let limit = |name: &str, unit: Unit| match amount(limits(own), name, unit) {
        0 => amount(limits(spec.resources.as_ref()), name, unit),
        limit => limit,
    };
    let cpu_limit = limit("cpu", milli);
    // A limit without a request is a request, too.
    let cpu_request = match requests(own).and_then(|requests| requests.get("cpu")) {
        Some(request) => milli(request).unwrap_or(0),
        None => cpu_limit,
    };
    let memory_limit = limit("memory", whole);
    Resources {
        cpu_shares: shares(cpu_request),
        cpu_quota_us: quota(cpu_limit),
        memory_bytes: (memory_limit > 0).then_some(memory_limit),
        oom_score_adj: oom_score(spec, container, machine_memory),
    }
}

/// Class and limits of the whole pod. A limit holds only where every container has one, or the pod itself has.
pub(crate) fn pod(spec: &PodSpec) -> PodCgroup {
    let limit = |name: &str, unit: Unit| {
        let declared =
            each_has_limit(spec, name, unit) || amount(limits(spec.resources.as_ref()), name, unit) != 0;
        declared.then(|| total(spec, limits, name, unit))
    };
    let qos = qos(spec);
    let cpu_request = match qos {
        QosClass::BestEffort => 0,
        QosClass::Guaranteed => total(spec, limits, "cpu", milli),
        QosClass::Burstable => total(spec, requests, "cpu", milli),
    };
    let limits = Resources {
        cpu_shares: shares(cpu_request),
        cpu_quota_us: limit("cpu", milli).and_then(quota),
        memory_bytes: limit("memory", whole).filter(|bytes| *bytes > 0),
        oom_score_adj: 0,
    };
    PodCgroup { qos, limits }
}

/// What a runtime that gives each pod a machine of its own goes by: what the containers have together, whether or not each has a limit, and
/// apart from it what the runtime itself may take (`calculateSandboxResources` and `convertOverheadToLinuxResources` in
/// `pkg/kubelet/kuberuntime/kuberuntime_sandbox_linux.go`).
pub(crate) fn sandbox(spec: &PodSpec) -> (Resources, Option<Resources>) {
    let of = |cpu_request: i64, cpu_limit: i64, memory_limit: i64| Resources {
        cpu_shares: shares(cpu_request),
        cpu_quota_us: quota(cpu_limit),
        memory_bytes: (memory_limit > 0).then_some(memory_limit),
        oom_score_adj: 0,
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut asked = containers.map(|container| container.resources.as_ref()).chain([spec.resources.as_ref()]);
    let cpu_limit = sum(spec, limits, "cpu", milli);
    let cpu_request = if asked.any(|own| requests(own).is_some_and(|own| own.contains_key("cpu"))) {
        sum(spec, requests, "cpu", milli)
    } else {
        cpu_limit
    };
    let overhead = spec.overhead.as_ref().map(|overhead| {
        let cpu = amount(Some(overhead), "cpu", milli);
        of(cpu, cpu, amount(Some(overhead), "memory", whole))
    });
    (of(cpu_request, cpu_limit, sum(spec, limits, "memory", whole)), overhead)
}

/// What the scheduler counts for the pod: the sum of its containers, or as much as the most demanding moment of its start, or what the
/// pod itself asks for; and its overhead.
pub(crate) fn request(spec: &PodSpec, name: &str) -> i64 {
    total(spec, requests, name, if name == "cpu" { milli } else { whole })
}

fn total(spec: &PodSpec, side: Side, name: &str, unit: Unit) -> i64 {
    sum(spec, side, name, unit).saturating_add(amount(spec.overhead.as_ref(), name, unit))
}

/// The same without the pod's overhead.
fn sum(spec: &PodSpec, side: Side, name: &str, unit: Unit) -> i64 {
    match side(spec.resources.as_ref()).filter(|amounts| amounts.contains_key(name)) {
        Some(amounts) => amount(Some(amounts), name, unit),
        None => aggregate(spec, side, name, unit),
    }
}

/// Sidecars count with those who run beside them, the other init containers one at a time.
fn aggregate(spec: &PodSpec, side: Side, name: &str, unit: Unit) -> i64 {
    let one = |container: &Container| amount(side(container.resources.as_ref()), name, unit);
    let (mut sidecars, mut starting) = (0_i64, 0_i64);
    for init in spec.init_containers.iter().flatten() {
        if is_sidecar(init) {
            sidecars = sidecars.saturating_add(one(init));
            starting = starting.max(sidecars);
        } else {
            starting = starting.max(sidecars.saturating_add(one(init)));
        }
    }
    let running = spec.containers.iter().map(one).fold(sidecars, i64::saturating_add);
    running.max(starting)
}

fn each_has_limit(spec: &PodSpec, name: &str, unit: Unit) -> bool {
    let has = |container: &Container| amount(limits(container.resources.as_ref()), name, unit) != 0;
    spec.containers.iter().all(has) && spec.init_containers.iter().flatten().all(has)
}

/// What the pod asks for of huge pages: bytes by the size of a page, as its resources' names have it (`hugepages-2Mi`).
pub(crate) fn huge_pages(spec: &PodSpec) -> BTreeMap<u64, u64> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let asked = containers.filter_map(|container| container.resources.as_ref()).chain(&spec.resources);
    let names = asked.filter_map(|resources| resources.requests.as_ref()).flat_map(|amounts| amounts.keys());
    names
        .filter_map(|name| {
            let page = whole(&Quantity(name.strip_prefix("hugepages-")?.to_owned()))?;
            Some((u64::try_from(page).ok()?, u64::try_from(request(spec, name)).ok()?))
        })
        .collect()
}

/// The weight of what asks for so much of the CPU.
pub(crate) fn shares(milli_cpu: i64) -> u64 {
    (milli_cpu.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES).unsigned_abs()
}

fn quota(milli_cpu: i64) -> Option<i64> {
    (milli_cpu > 0).then(|| (milli_cpu.saturating_mul(CPU_PERIOD_US) / 1000).max(MIN_QUOTA_US))
}

/// As `GetContainerOOMScoreAdjust`.
fn oom_score(spec: &PodSpec, container: &Container, machine_memory: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    if spec.priority_class_name.as_deref() == Some(NODE_CRITICAL) {
        return GUARANTEED;
    }
    match qos(spec) {
        QosClass::Guaranteed => GUARANTEED,
        QosClass::BestEffort => 1000,
        // The more of the machine's memory it asked for, the later it dies; never before Guaranteed, never after BestEffort.
        QosClass::Burstable => {
            let request =
                |container: &Container| match amount(requests(container.resources.as_ref()), "memory", whole)
                {
                    0 => amount(limits(container.resources.as_ref()), "memory", whole),
                    request => request,
                };
            // What the pod asks for beyond its containers is theirs in equal parts.
            let spare = match amount(requests(spec.resources.as_ref()), "memory", whole) {
                0 => 0,
                of_pod => {
                    let count = spec.containers.len() + spec.init_containers.iter().flatten().count();
                    let count = i64::try_from(count).unwrap_or(i64::MAX).max(1);
                    (of_pod - aggregate(spec, requests, "memory", whole)) / count
                }
            };
            let mut counted = request(container);
            if is_sidecar(container) {
                // It dies no sooner than those whom it serves.
                counted = counted.max(spec.containers.iter().map(request).min().unwrap_or(0));
            }
            let score = 1000 - counted.saturating_add(spare).saturating_mul(1000) / machine_memory.max(1);
            score.clamp(3, 999)
        }
    }
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

    fn of_pod(mut spec: PodSpec, resources: serde_json::Value) -> PodSpec {
        spec.resources = serde_json::from_value(resources).unwrap();
        spec
    }

    #[test]
    fn amounts_beyond_all_machines_are_the_biggest_and_no_overflow() {
        let huge = || json!({ "limits": { "cpu": "9999999E", "memory": "9999999E" } });
        let spec = spec(&[huge(), huge()]);
        assert_eq!(qos(&spec), QosClass::Guaranteed);
        assert_eq!(pod(&spec).limits.memory_bytes, Some(i64::MAX));
        assert_eq!(container(&spec, &spec.containers[0], 1 << 30).memory_bytes, Some(i64::MAX));
        assert_eq!(request(&spec, "cpu"), 0);
    }

    #[test]
    fn huge_pages_are_counted_by_their_size() {
        let one = || json!({ "requests": { "cpu": "1", "hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi" } });
        let two = json!({ "requests": { "hugepages-2Mi": "2Mi", "hugepages-x": "1" } });
        assert_eq!(huge_pages(&spec(&[one(), two])), [(2 << 20, 6 << 20), (1 << 30, 1 << 30)].into());
        assert!(huge_pages(&spec(&[json!({})])).is_empty());
    }

    #[test]
    fn classes_follow_what_is_asked_for() {
        let check = |resources: &[serde_json::Value], expected| assert_eq!(qos(&spec(resources)), expected);
        let both = json!({ "limits": { "cpu": "1", "memory": "1Gi" } });
        check(&[json!({})], QosClass::BestEffort);
        check(&[json!({ "limits": { "nvidia.com/gpu": "1" } })], QosClass::BestEffort);
        check(std::slice::from_ref(&both), QosClass::Guaranteed);
        check(&[both.clone(), json!({})], QosClass::Burstable);
        check(&[json!({ "limits": both["limits"], "requests": { "cpu": "500m" } })], QosClass::Burstable);
        check(&[json!({ "requests": { "memory": "1Mi" } })], QosClass::Burstable);

        let check = |containers: &serde_json::Value, resources: serde_json::Value, expected| {
            let spec = of_pod(spec(std::slice::from_ref(containers)), resources);
            assert_eq!(qos(&spec), expected);
        };
        check(&json!({}), both.clone(), QosClass::Guaranteed);
        check(&both, json!({ "requests": { "cpu": "2" } }), QosClass::Burstable);
        check(&json!({}), json!({ "limits": { "cpu": "1" } }), QosClass::Burstable);
    }

    #[test]
    fn limits_become_cgroup_numbers() {
        let spec = spec(&[
            json!({ "requests": { "cpu": "250m", "memory": "1Gi" }, "limits": { "cpu": "500m", "memory": "2Gi" } }),
            json!({ "limits": { "cpu": "1m" } }),
        ]);
        let one = container(&spec, &spec.containers[0], 4 << 30);
        let expected = Resources {
            cpu_shares: 256,
            cpu_quota_us: Some(50_000),
            memory_bytes: Some(2 << 30),
            oom_score_adj: 750,
        };
        assert_eq!(one, expected);
        let two = container(&spec, &spec.containers[1], 4 << 30);
        assert_eq!((two.cpu_shares, two.cpu_quota_us), (2, Some(1000)));
        let whole_pod = pod(&spec);
        assert_eq!(whole_pod.limits.cpu_quota_us, Some(50_100));
        assert_eq!(whole_pod.limits.memory_bytes, None, "one container has no memory limit");
    }

    #[test]
    fn what_the_pod_asks_for_holds_over_its_containers() {
        let spec = of_pod(
            spec(&[json!({ "requests": { "cpu": "100m", "memory": "1Gi" } }), json!({})]),
            json!({ "requests": { "cpu": "500m", "memory": "2Gi" }, "limits": { "cpu": "1", "memory": "3Gi" } }),
        );
        let whole_pod = pod(&spec);
        assert_eq!((whole_pod.qos, whole_pod.limits.cpu_shares), (QosClass::Burstable, 512));
        assert_eq!(whole_pod.limits.cpu_quota_us, Some(100_000));
        assert_eq!(whole_pod.limits.memory_bytes, Some(3 << 30));
        let [one, two] = [0, 1].map(|n| container(&spec, &spec.containers[n], 4 << 30));
        assert_eq!((one.cpu_shares, one.memory_bytes), (102, Some(3 << 30)));
        assert_eq!((two.cpu_shares, two.cpu_quota_us), (1024, Some(100_000)));
        // 1 GiB is left to be shared by two.
        assert_eq!((one.oom_score_adj, two.oom_score_adj), (625, 875));
        assert_eq!((request(&spec, "cpu"), request(&spec, "memory")), (500, 2 << 30));
    }

    #[test]
    fn sidecars_count_with_those_beside_them() {
        let cpu = |amount: &str| json!({ "requests": { "cpu": amount } });
        let spec: PodSpec = serde_json::from_value(json!({
            "initContainers": [
                { "name": "s", "restartPolicy": "Always", "resources": cpu("100m") },
                { "name": "i", "resources": cpu("500m") },
            ],
            "containers": [{ "name": "a", "resources": cpu("200m") }],
            "overhead": { "cpu": "10m" },
        }))
        .unwrap();
        assert_eq!(request(&spec, "cpu"), 610);
    }

    #[test]
    fn a_sandbox_is_told_what_its_containers_have_and_apart_from_it_what_it_takes_itself() {
        let mut spec = spec(&[
            json!({ "requests": { "cpu": "500m" }, "limits": { "cpu": "1", "memory": "1Gi" } }),
            json!({ "requests": { "cpu": "500m" } }),
        ]);
        let resources = |cpu_shares, cpu_quota_us, memory_bytes| Resources {
            cpu_shares,
            cpu_quota_us: Some(cpu_quota_us),
            memory_bytes: Some(memory_bytes),
            oom_score_adj: 0,
        };
        let containers = resources(1024, 100_000, 1 << 30);
        assert_eq!(sandbox(&spec), (containers, None));
        spec.overhead = serde_json::from_value(json!({ "cpu": "250m", "memory": "128Mi" })).unwrap();
        assert_eq!(sandbox(&spec), (containers, Some(resources(256, 25_000, 128 << 20))));
        assert_eq!(pod(&spec).limits, Resources { cpu_shares: 1280, ..Resources::default() });
        // Where all are limited, the pod's cgroup holds both.
        spec.containers.pop();
        let whole_pod = resources(768, 125_000, (1 << 30) + (128 << 20));
        assert_eq!(pod(&spec).limits, whole_pod);
    }

    #[test]
    fn the_last_to_be_killed_are_nodes_own() {
        let mut spec = spec(&[json!({})]);
        assert_eq!(container(&spec, &spec.containers[0], 1 << 30).oom_score_adj, 1000);
        spec.priority_class_name = Some(NODE_CRITICAL.to_owned());
        assert_eq!(container(&spec, &spec.containers[0], 1 << 30).oom_score_adj, -997);
    }
}
