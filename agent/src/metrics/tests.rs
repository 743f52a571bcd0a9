use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use spillway_device_plugin::device::{
    Accelerator, Device, DeviceId, Health, Partition, Readings, ResourceName,
};

use super::*;
use crate::{
    holders::PodRef,
    usage::{Key, Use},
};

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn gpu(name: &str, health: Health, readings: Readings) -> Device {
    Device {
        id: id(name),
        resource: ResourceName::new("nvidia.com/gpu").unwrap(),
        health,
        nodes: [].into(),
        listed_in: None,
        accelerator: Arc::new(Accelerator {
            product: Some("NVIDIA \"Stand-in\"\n80GB".to_owned()),
            memory_mib: Some(2),
            readings,
            ..Accelerator::new(id(name))
        }),
        partition: None,
        replica: None,
    }
}

/// Every metric that there is, with values.
fn everything() -> (Now, BudgetMetrics) {
    let readings = Readings {
        temperature_celsius: Some(41),
        power_milliwatts: Some(71_500),
        utilization_percent: Some(25),
        memory_used_mib: Some(1),
        process_utilization_percent: None,
        partition_utilization_percent: BTreeMap::new(),
        errors: BTreeMap::from([("ecc_uncorrected", 3)]),
        xids: BTreeMap::from([(79, 2)]),
        processes: Vec::new(),
    };
    let whole = gpu("GPU-0", Health::Healthy, readings);
    let measured = Readings {
        partition_utilization_percent: BTreeMap::from([(id("MIG-1"), 50)]),
        ..Readings::default()
    };
    let part = Device {
        id: id("MIG-1"),
        partition: Some(Arc::new(Partition {
            id: id("MIG-1"),
            profile: "1g.5gb".to_owned(),
            memory_mib: Some(1),
            instance: None,
            index: None,
        })),
        ..gpu("GPU-1", Health::Unhealthy("XID 79".to_owned()), measured)
    };
    let (inventory, _) = Inventory::starting(["dfl"]).with("nvml", BackendState::Running, vec![whole, part]);
    let resource = ResourceName::new("nvidia.com/gpu").unwrap();
    let registrations = Registrations::from([(resource.clone(), Err("no kubelet".to_owned()))]);
    let train = Use {
        key: Key {
            pod: PodRef {
                uid: "uid-1".to_owned(),
                namespace: Some("default".to_owned()),
                name: Some("train".to_owned()),
            },
            accelerator: id("GPU-0"),
            partition: None,
        },
        containers: BTreeMap::from([(("main".to_owned(), resource.clone()), 2)]),
        product: Some("NVIDIA".to_owned()),
        memory_limit: Some(2048),
        memory_used: Some(1024),
        utilization: Some(0.25),
        is_idle: Some(false),
        idle_for: Duration::from_millis(1_500),
        unused_for: Duration::from_millis(500),
        processes: BTreeMap::from([(10, Some(1024))]),
    };
    let unknown = Use {
        key: Key {
            pod: PodRef { uid: "uid-2".to_owned(), namespace: None, name: None },
            accelerator: id("GPU-1"),
            partition: Some(id("MIG-1")),
        },
        containers: BTreeMap::from([
            (("a".to_owned(), resource.clone()), 1),
            (("b".to_owned(), resource), 1),
        ]),
        product: None,
        memory_limit: None,
        memory_used: None,
        utilization: None,
        is_idle: None,
        processes: BTreeMap::new(),
        idle_for: Duration::ZERO,
        unused_for: Duration::ZERO,
    };
    let usage =
        Usage { uses: vec![train, unknown], left_out: 3, strangers: BTreeMap::from([(id("GPU-0"), 1)]) };
    let now = Now {
        inventory: watch::channel(inventory).1,
        registrations: watch::channel(registrations).1,
        configuration: watch::channel(Ok(())).1,
        usage: watch::channel(usage).1,
    };
    (now, BudgetMetrics::default())
}

/// What is served, without comments.
fn served() -> Vec<String> {
    let (now, budgets) = everything();
    let registry = registry(now, &PluginMetrics::default(), &budgets);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn metrics_tell_devices_registrations_and_who_uses_what() {
    let model = r#"model="NVIDIA \"Stand-in\"80GB""#;
    let train = r#"{namespace="default",pod="train",container="main",resource="nvidia.com/gpu",device="GPU-0",partition="",model="NVIDIA"}"#;
    let held = |container: &str| {
        format!(
            r#"spillway_container_device_held{{namespace="",pod="uid-2",container="{container}",resource="nvidia.com/gpu",device="GPU-1",partition="MIG-1",model=""}} 1"#
        )
    };
    assert_eq!(
        served(),
        [
            r#"spillway_devices{resource="nvidia.com/gpu",health="healthy"} 1"#.to_owned(),
            r#"spillway_devices{resource="nvidia.com/gpu",health="unhealthy"} 1"#.to_owned(),
            r#"spillway_plugin_registered{resource="nvidia.com/gpu"} 0"#.to_owned(),
            "spillway_config_valid 1".to_owned(),
            r#"spillway_discovery_up{backend="dfl"} 0"#.to_owned(),
            r#"spillway_discovery_up{backend="nvml"} 1"#.to_owned(),
            format!(
                r#"spillway_device_healthy{{device="GPU-0",{model},partition="",resource="nvidia.com/gpu"}} 1"#
            ),
            format!(
                r#"spillway_device_healthy{{device="GPU-1",{model},partition="MIG-1",resource="nvidia.com/gpu"}} 0"#
            ),
            format!(
                r#"spillway_partition_memory_total_bytes{{device="GPU-1",{model},partition="MIG-1",resource="nvidia.com/gpu"}} 1048576"#
            ),
            format!(
                r#"spillway_partition_utilization_ratio{{device="GPU-1",{model},partition="MIG-1",resource="nvidia.com/gpu"}} 0.5"#
            ),
            format!(r#"spillway_device_utilization_ratio{{device="GPU-0",{model}}} 0.25"#),
            format!(r#"spillway_device_memory_used_bytes{{device="GPU-0",{model}}} 1048576"#),
            format!(r#"spillway_device_memory_total_bytes{{device="GPU-0",{model}}} 2097152"#),
            format!(r#"spillway_device_memory_total_bytes{{device="GPU-1",{model}}} 2097152"#),
            format!(r#"spillway_device_power_watts{{device="GPU-0",{model}}} 71.5"#),
            format!(r#"spillway_device_temperature_celsius{{device="GPU-0",{model}}} 41"#),
            format!(r#"spillway_device_processes{{device="GPU-0",{model}}} 0"#),
            format!(r#"spillway_device_errors_total{{device="GPU-0",{model},error="ecc_uncorrected"}} 3"#),
            format!(r#"spillway_device_xids_total{{device="GPU-0",{model},xid="79"}} 2"#),
            format!("spillway_container_device_held{train} 2"),
            held("a"),
            held("b"),
            format!("spillway_container_device_memory_used_bytes{train} 1024"),
            format!("spillway_container_device_memory_budget_bytes{train} 2048"),
            format!("spillway_container_device_utilization_ratio{train} 0.25"),
            format!("spillway_container_device_processes{train} 1"),
            format!("spillway_container_device_held_idle_seconds_total{train} 1.5"),
            format!("spillway_container_device_unused_seconds{train} 0.5"),
            r#"spillway_device_stranger_processes{device="GPU-0"} 1"#.to_owned(),
            "spillway_usage_left_out 3".to_owned(),
        ]
    );
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let part = |char: char| char.is_ascii_alphanumeric() || char == '_';
    text.split(|char| !part(char)).filter(|word| word.starts_with("spillway_")).collect()
}

#[test]
fn dashboard_and_alerts_ask_only_for_what_is_served() {
    let (now, budgets) = everything();
    let train = now.usage.borrow().uses[0].clone();
    budgets.exceeded(&train, "killed");
    budgets.neared(&train);
    let registry = registry(now, &PluginMetrics::default(), &budgets);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let served: BTreeSet<_> = described
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .collect();
    for file in [
        include_str!("../../../deploy/dashboards/accelerators.json"),
        include_str!("../../../deploy/alerts/spillway.rules.yaml"),
        include_str!("../../../deploy/alerts/spillway.rules_test.yaml"),
    ] {
        let asked = named(file);
        assert!(!asked.is_empty());
        let unknown: Vec<_> = asked.into_iter().filter(|name| !served.contains(*name)).collect();
        assert!(unknown.is_empty(), "{unknown:?} are not among {served:#?}");
    }
}

/// The queries of all panels.
fn queries(panels: &serde_json::Value) -> Vec<&str> {
    let targets = panels.as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
    targets.flatten().map(|target| target["expr"].as_str().unwrap()).collect()
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../deploy/dashboards/accelerators.json")).unwrap();
    let panels = &dashboard["panels"];
    let ids: BTreeSet<_> =
        panels.as_array().unwrap().iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.as_array().unwrap().len(), "two panels have the same ID");
    for query in queries(panels) {
        let balanced = |open, close| query.matches(open).count() == query.matches(close).count();
        assert!(balanced('(', ')') && balanced('{', '}') && balanced('[', ']'), "{query}");
    }
}
