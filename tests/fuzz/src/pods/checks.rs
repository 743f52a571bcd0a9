//! What must hold of a pod's life.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use prost::Message as _;
use serde_json::Value;
use spillway_proto::cri as wire;
use spillway_vk::provider::cri::convert;

use super::{
    Life, NODE, ROOT, SECRET,
    runtime::{Made, Shown},
};

/// A runtime receives no more in one message.
const MESSAGE_LIMIT: usize = 32 << 20;

/// Everything. `is_named`: the API server could have such a pod.
pub(super) fn all(life: &Life, is_named: bool) {
    secret(life);
    life.runtime.each_made(|made| {
        assert!(is_named, "a container of a pod that is none");
        confined(&life.pod, made);
        sent(&life.pod, made);
    });
    let mut attempts = Vec::new();
    life.runtime.each_made(|made| attempts.push((made.container.name.clone(), made.container.attempt)));
    assert_eq!(attempts.iter().collect::<BTreeSet<_>>().len(), attempts.len(), "each once: {attempts:?}");
    if is_named {
        told(life);
    }
}

/// Whether the API server could have a pod of this name.
pub(super) fn is_named(pod: &Pod) -> bool {
    let is_name = |name: Option<&str>| {
        let name = name.unwrap_or_default();
        let is_sound =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        (1..=253).contains(&name.len())
            && name.bytes().all(is_sound)
            && name.starts_with(char::is_alphanumeric)
    };
    let meta = &pod.metadata;
    [&meta.name, &meta.namespace, &meta.uid].into_iter().all(|name| is_name(name.as_deref()))
}

/// Whether a folder of the pod's name would be elsewhere, or nowhere.
pub(super) fn leads_away(pod: &Pod) -> bool {
    let meta = &pod.metadata;
    [&meta.name, &meta.namespace, &meta.uid].into_iter().flatten().any(|name| {
        name.is_empty()
            || name.len() > 253
            || matches!(name.as_str(), "." | "..")
            || name.contains(|letter: char| letter == '/' || letter.is_control())
    })
}

/// Whether the pod asks for something on the machine outside of its own folder.
pub(super) fn may_make(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.host_path.is_some())
}

/// What is told is no secret.
fn secret(life: &Life) {
    for event in &life.events {
        assert!(!event[2].contains(SECRET), "an event tells a secret: {event:?}");
    }
    for status in &life.statuses {
        assert!(!status.to_string().contains(SECRET), "a status tells a secret: {status}");
    }
}

/// Whatever is not done is said.
fn told(life: &Life) {
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
    for status in &life.statuses {
        let phase = status["phase"].as_str().unwrap_or_default();
        assert!(["Pending", "Running", "Succeeded", "Failed"].contains(&phase), "{phase:?}");
    }
    let before = serde_json::to_value(life.pod.status.clone().unwrap_or_default()).expect("a status is JSON");
    let last = life.statuses.last().unwrap_or(&before);
    let has_ended = |status: &Value| ["Succeeded", "Failed"].iter().any(|phase| status["phase"] == **phase);
    if has_ended(&before) || life.pod.metadata.deletion_timestamp.is_some() {
        return assert!(life.runtime.sandboxes().is_empty(), "it had ended, and was started");
    }
    let is_warned = life.events.iter().any(|event| event[0] == "Warning" && !event[2].trim().is_empty());
    let has_history =
        ["containerStatuses", "initContainerStatuses"].iter().any(|key| !before[*key].is_null());
    if life.runtime.sandboxes().is_empty() {
        let is_refused = last["phase"] == "Failed" && text(&last["reason"]) && text(&last["message"]);
        assert!(
            is_refused || is_warned || (has_history && has_ended(last)),
            "nothing is done, and nothing said: {last} {:?}",
            life.pod
        );
        return;
    }
    let mut made = BTreeSet::new();
    life.runtime.each_made(|container| {
        made.insert(container.container.name.clone());
    });
    let spec = life.pod.spec.clone().unwrap_or_default();
    for container in &spec.containers {
        let statuses = last["containerStatuses"].as_array().cloned().unwrap_or_default();
        let status = statuses.iter().find(|status| status["name"] == container.name.as_str());
        let Some(status) = status else {
            panic!("nothing is said of container {:?}: {last}", container.name)
        };
        if !made.contains(&container.name) {
            let state = &status["state"];
            let is_said = text(&state["waiting"]["reason"]) || !state["terminated"].is_null();
            assert!(is_said, "container {:?} was not made, and nothing said: {status}", container.name);
        }
    }
}

/// What a container is shown is in the pod's own folder, or a place of the machine that the pod names.
fn confined(pod: &Pod, made: &Made) {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let folder = Path::new(ROOT).join("pods").join(uid);
    let volumes = || pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let hosts: Vec<PathBuf> =
        volumes().filter_map(|volume| Some(volume.host_path.as_ref()?.path.clone().into())).collect();
    for (mount, shown) in made.container.mounts.iter().zip(&made.shown) {
        assert!(mount.container_path.starts_with('/'), "{mount:?}");
        if mount.image.is_some() {
            assert!(mount.host_path.as_os_str().is_empty(), "{mount:?}");
            continue;
        }
        if hosts.contains(&mount.host_path) {
            continue;
        }
        let is_plain = mount
            .host_path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        assert!(mount.host_path.starts_with(&folder) && is_plain && mount.host_path != folder, "{mount:?}");
        assert!(shown.is_there, "{mount:?} shows nothing");
        if mount.host_path.starts_with(folder.join("subpaths")) {
            part(&folder, &hosts, mount.host_path.as_path(), shown);
        }
    }
}

/// A part of a volume is below it.
fn part(folder: &Path, hosts: &[PathBuf], path: &Path, shown: &Shown) {
    let (device, root) = shown.mount.as_ref().unwrap_or_else(|| panic!("{} shows no part", path.display()));
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the cell has its own");
    let own = table.lines().rfind(|line| line.split(' ').nth(4) == Some("/"));
    // A volume in memory is a file system of its own, and all of it is the volume.
    if own.and_then(|line| line.split(' ').nth(2)) != Some(device) {
        return;
    }
    let is_below =
        root.starts_with(folder.join("volumes")) || hosts.iter().any(|host| root.starts_with(host));
    assert!(is_below, "{} shows {}", path.display(), root.display());
}

/// The messages are well formed, and nothing of the spec is left out of them.
fn sent(pod: &Pod, made: &Made) {
    let name = made.container.name.as_str();
    let sandbox =
        convert::sandbox_config(NODE, &made.sandbox, Path::new("/var/log/pods/x"), "/spillway/x".to_owned());
    let message = convert::container_config(NODE, &made.sandbox, &made.container);
    assert!(sandbox.encoded_len() + message.encoded_len() < MESSAGE_LIMIT);
    let is_name = |text: &str| !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '\0']);
    let identity = sandbox.metadata.clone().unwrap_or_default();
    assert!(
        [&identity.name, &identity.namespace, &identity.uid].into_iter().all(|text| is_name(text)),
        "{identity:?}"
    );
    assert_eq!(Some(&identity.uid), pod.metadata.uid.as_ref());
    for labels in [&sandbox.labels, &message.labels] {
        assert_eq!(labels["spillway.dev/node"], NODE);
        assert_eq!(Some(&labels["io.kubernetes.pod.uid"]), pod.metadata.uid.as_ref());
    }
    assert_eq!(message.log_path, format!("{name}/{}.log", made.container.attempt));
    assert!(is_name(name), "{name:?}");
    let spec = pod.spec.clone().unwrap_or_default();
    kept_of_pod(pod, &spec, &sandbox);
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    if let Some(container) = all.find(|container| container.name == name) {
        kept(container, &message);
        kept_rights(&spec, container, &message);
    }
}

fn kept_of_pod(pod: &Pod, spec: &PodSpec, sandbox: &wire::PodSandboxConfig) {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let ports = ports.filter(|port| port.host_port.is_some_and(|port| port != 0)).count();
    let is_of_node = spec.host_network == Some(true);
    assert_eq!(sandbox.port_mappings.len(), if is_of_node { 0 } else { ports }, "host ports");
    // What had begun was admitted then.
    let history = pod.status.as_ref().map(|status| {
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses]
    });
    let is_new = history.into_iter().flatten().all(Option::is_none);
    for mapping in sandbox.port_mappings.iter().filter(|_| is_new) {
        assert!(
            (1..=65535).contains(&mapping.host_port) && (1..=65535).contains(&mapping.container_port),
            "{mapping:?}"
        );
    }
    for (key, value) in pod.metadata.annotations.iter().flatten() {
        assert_eq!(sandbox.annotations.get(key), Some(value), "annotation {key:?}");
    }
    // A name that Linux takes.
    let is_hostname =
        (1..=64).contains(&sandbox.hostname.len()) && !sandbox.hostname.contains(['/', '\0', '\n']);
    assert!(
        is_of_node == sandbox.hostname.is_empty() && (is_of_node || is_hostname),
        "{:?}",
        sandbox.hostname
    );
    let lines =
        sandbox.dns_config.iter().flat_map(|dns| dns.servers.iter().chain(&dns.searches).chain(&dns.options));
    for line in lines {
        assert!(!line.contains(['\n', '\0']), "{line:?} is no word of resolv.conf");
    }
    let linux = sandbox.linux.clone().unwrap_or_default();
    let context = spec.security_context.clone().unwrap_or_default();
    assert_eq!(
        linux.sysctls.len(),
        context.sysctls.iter().flatten().map(|own| &own.name).collect::<BTreeSet<_>>().len()
    );
}

fn kept(container: &Container, message: &wire::ContainerConfig) {
    for mount in container.volume_mounts.iter().flatten() {
        let path = mount.mount_path.trim_start_matches('/');
        let is = |made: &&wire::Mount| made.container_path.trim_start_matches('/') == path;
        let Some(made) = message.mounts.iter().find(is) else {
            panic!("{} is not mounted", mount.mount_path)
        };
        let is_alone = container
            .volume_mounts
            .iter()
            .flatten()
            .filter(|other| other.mount_path == mount.mount_path)
            .count()
            == 1;
        assert!(
            !is_alone || made.readonly || mount.read_only != Some(true),
            "{} can be written",
            mount.mount_path
        );
    }
    let is_zero_ended = |text: &String| text.contains('\0');
    for variable in container.env.iter().flatten().filter(|variable| variable.value.is_some()) {
        assert!(message.envs.iter().any(|made| made.key == variable.name), "{} is not set", variable.name);
    }
    for made in &message.envs {
        let is_sound = !made.key.is_empty() && !made.key.contains(['=', '\0']) && !is_zero_ended(&made.value);
        assert!(is_sound, "no process can have the variable {:?}", made.key);
    }
    let length = |words: &Option<Vec<String>>| words.as_ref().map_or(0, Vec::len);
    assert_eq!(
        (message.command.len(), message.args.len()),
        (length(&container.command), length(&container.args))
    );
    assert!(
        !message.command.iter().chain(&message.args).any(is_zero_ended),
        "no process can have such a word"
    );
    assert_eq!(message.working_dir, container.working_dir.clone().unwrap_or_default());
    assert_eq!(message.tty, container.tty == Some(true));
    assert_eq!(message.stdin, container.stdin == Some(true));
    let resources = message.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let limits =
        container.resources.as_ref().and_then(|resources| resources.limits.clone()).unwrap_or_default();
    // An amount may round to nothing only when it is nothing.
    let is_whole = |name: &str| {
        limits.get(name).is_some_and(|amount| {
            amount.0.bytes().all(|byte| byte.is_ascii_digit()) && amount.0.bytes().any(|byte| byte != b'0')
        })
    };
    assert!(!is_whole("memory") || resources.memory_limit_in_bytes > 0, "{limits:?} is no limit");
    assert!(!is_whole("cpu") || resources.cpu_quota > 0, "{limits:?} is no limit");
    let is_sound = resources.cpu_shares >= 2 && (-1000..=1000).contains(&resources.oom_score_adj);
    assert!(is_sound && resources.memory_limit_in_bytes >= 0 && resources.cpu_quota >= 0, "{resources:?}");
}

fn kept_rights(spec: &PodSpec, container: &Container, message: &wire::ContainerConfig) {
    let made = message.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let pod = spec.security_context.clone().unwrap_or_default();
    assert_eq!(made.privileged, own.privileged == Some(true));
    assert_eq!(made.no_new_privs, own.allow_privilege_escalation == Some(false));
    assert_eq!(made.readonly_rootfs, own.read_only_root_filesystem == Some(true));
    let user = own.run_as_user.or(pod.run_as_user);
    assert!(user.is_none() || made.run_as_user.map(|user| user.value) == user, "it runs as somebody else");
    assert_eq!(made.run_as_group.map(|group| group.value), own.run_as_group.or(pod.run_as_group));
    let is_root = made.run_as_user.is_some_and(|user| user.value == 0);
    assert!(!(is_root && own.run_as_non_root.or(pod.run_as_non_root) == Some(true)), "it runs as root");
    let groups = pod.supplemental_groups.iter().flatten().chain(&pod.fs_group);
    for group in groups {
        assert!(made.supplemental_groups.contains(group), "group {group} is left out");
    }
    let capabilities = made.capabilities.unwrap_or_default();
    let asked = own.capabilities.unwrap_or_default();
    assert_eq!(capabilities.add_capabilities, asked.add.unwrap_or_default());
    assert_eq!(capabilities.drop_capabilities, asked.drop.unwrap_or_default());
    let seccomp = made.seccomp.unwrap_or_default();
    let is_inside = Path::new(&seccomp.localhost_ref).components().all(|part| part != Component::ParentDir);
    assert!(is_inside, "{seccomp:?} leads out of the folder of profiles");
    let options = made.namespace_options.unwrap_or_default();
    let is_of_node = options.network == i32::from(wire::NamespaceMode::Node);
    assert_eq!(is_of_node, spec.host_network == Some(true));
}
