//! What a plugin says, as a flat map of texts that can be compared entry by entry. What has no order is sorted; what is random is left
//! out.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;
use serde_json::Value;
use spillway_proto::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, PreferredAllocationRequest,
};

use super::{
    case::{Ask, Shape},
    machine::Side,
};

/// What the names of CDI devices begin with.
pub(super) const CDI: &str = "CDI ";

/// By what it is about.
pub(super) type Facts = BTreeMap<String, String>;

/// Resources, their plugins' options, and their devices.
pub(super) fn listed(side: &Side) -> Facts {
    let seen = side.kubelet.seen();
    let mut facts = Facts::new();
    for (resource, devices) in &seen.lists {
        if let Some((said, answered)) = seen.options.get(resource) {
            facts.insert(
                format!("{resource} options"),
                format!(
                    "preferred allocation {}, pre-start {}{}",
                    answered.get_preferred_allocation_available,
                    answered.pre_start_required,
                    if said.as_ref() == Some(answered) { "" } else { "; others when it registers" }
                ),
            );
        }
        for device in devices {
            let nodes: Vec<_> =
                device.topology.iter().flat_map(|topology| &topology.nodes).map(|node| node.id).collect();
            facts.insert(
                format!("{resource} device {}", device.id),
                format!("{}, NUMA {nodes:?}", device.health),
            );
        }
    }
    facts
}

fn sorted(list: &str) -> String {
    let mut parts: Vec<_> = list.split(',').collect();
    parts.sort_unstable();
    parts.join(",")
}

/// What one request gets.
pub(super) async fn asked(side: &Side, ask: &Ask, shape: &dyn Fn(&[String]) -> String) -> Facts {
    let mut facts = Facts::new();
    let what = ask.to_string();
    let seen = side.kubelet.seen();
    let Some(list) = seen.devices(ask.resource) else {
        facts.insert(what, "there is no such resource".to_owned());
        return facts;
    };
    let all: Vec<String> = list.iter().map(|(id, _)| (*id).to_owned()).collect();
    let pick = |wanted: &[usize]| {
        let mut all = all.clone();
        all.sort();
        wanted.iter().filter_map(|place| all.get(*place).cloned()).collect::<Vec<_>>()
    };
    let mut plugin = side.kubelet.plugin(ask.resource);
    match &ask.shape {
        Shape::Allocate(places) => {
            let request = AllocateRequest {
                container_requests: vec![ContainerAllocateRequest { device_ids: pick(places) }],
            };
            match plugin.allocate(request).await {
                Ok(answer) => {
                    for container in answer.into_inner().container_responses {
                        granted(&what, container, &mut facts);
                    }
                }
                Err(status) => {
                    facts.insert(what, "refused".to_owned());
                    eprintln!("    {}", status.message());
                }
            }
        }
        Shape::Unknown => {
            let device_ids = vec!["GPU-00000000-0000-0000-0000-000000000000".to_owned()];
            let request =
                AllocateRequest { container_requests: vec![ContainerAllocateRequest { device_ids }] };
            let got = plugin.allocate(request).await;
            facts.insert(what, if got.is_ok() { "granted" } else { "refused" }.to_owned());
        }
        Shape::Preferred { without, must, size } => {
            let request = PreferredAllocationRequest {
                container_requests: vec![ContainerPreferredAllocationRequest {
                    available_device_ids: pick(
                        &(0..all.len()).filter(|place| !without.contains(place)).collect::<Vec<_>>(),
                    ),
                    must_include_device_ids: pick(must),
                    allocation_size: i32::try_from(*size).unwrap_or(i32::MAX),
                }],
            };
            let said = match plugin.get_preferred_allocation(request).await {
                Ok(answer) => {
                    let chosen: Vec<_> = answer
                        .into_inner()
                        .container_responses
                        .into_iter()
                        .flat_map(|one| one.device_ids)
                        .collect();
                    shape(&chosen)
                }
                Err(status) => format!("an error: {}", status.message()),
            };
            facts.insert(what, said);
        }
    }
    facts
}

fn granted(what: &str, container: ContainerAllocateResponse, facts: &mut Facts) {
    for (name, value) in container.envs {
        let value = if name == "NVIDIA_VISIBLE_DEVICES" { sorted(&value) } else { value };
        facts.insert(format!("{what}: variable {name}"), value);
    }
    for mount in container.mounts {
        let mode = if mount.read_only { "ro" } else { "rw" };
        facts
            .insert(format!("{what}: mount {}", mount.container_path), format!("{} {mode}", mount.host_path));
    }
    for device in container.devices {
        let key = format!("{what}: node {}", device.container_path);
        let value = format!("{} {}", device.host_path, device.permissions);
        if let Some(before) = facts.insert(key.clone(), value) {
            let twice = format!("{before}, twice");
            facts.insert(key, twice);
        }
    }
    for (key, value) in container.annotations {
        // What follows is random with NVIDIA's, and ours by the resource.
        let key = key.rsplit_once('_').map_or(key.as_str(), |(key, _)| key).to_owned();
        facts.insert(format!("{what}: annotation {key}_…"), sorted(&value));
    }
    if !container.cdi_devices.is_empty() {
        let names: Vec<_> = container.cdi_devices.into_iter().map(|device| device.name).collect();
        facts.insert(format!("{what}: CDI devices"), sorted(&names.join(",")));
    }
}

/// The CDI specifications: what a container with each device gets, the common part included.
pub(super) fn specified(folder: &Path) -> anyhow::Result<Facts> {
    let mut facts = Facts::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let spec: Value = serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| format!("{} is no JSON", path.display()))?;
        let kind = spec["kind"].as_str().unwrap_or_default();
        let common = &spec["containerEdits"];
        for device in spec["devices"].as_array().into_iter().flatten() {
            let name = format!("{CDI}{kind}={}", device["name"].as_str().unwrap_or_default());
            let own = &device["containerEdits"];
            let both = |field: &str| [list(&common[field]), list(&own[field])].concat();
            facts.insert(format!("{CDI}device {}", &name[CDI.len()..]), "is there".to_owned());
            for node in both("deviceNodes") {
                let (path, host) = (text(&node["path"]), text(&node["hostPath"]));
                let host = if host.is_empty() { path.clone() } else { host };
                facts.insert(format!("{name} node {path}"), host);
            }
            for mount in both("mounts") {
                facts.insert(
                    format!("{name} mount {}", text(&mount["containerPath"])),
                    text(&mount["hostPath"]),
                );
            }
            for variable in both("env") {
                let variable = text(&variable);
                let (key, value) = variable.split_once('=').unwrap_or((&variable, ""));
                facts.insert(format!("{name} variable {key}"), value.to_owned());
            }
            for hook in both("hooks") {
                let arguments: Vec<_> = list(&hook["args"]).iter().map(text).collect();
                let word = arguments.get(1).cloned().unwrap_or_default();
                facts.insert(format!("{name} hook {word}"), text(&hook["hookName"]));
            }
        }
    }
    Ok(facts)
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
