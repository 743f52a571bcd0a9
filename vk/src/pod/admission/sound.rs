//! What no API server lets in, looked at once more: names that become part of paths, and numbers that would otherwise be left out.

use std::{
    collections::BTreeSet,
    path::{Component, Path},
};

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::Refusal;
use crate::pod::resources::milli;

/// No file name may be longer.
const MAX_NAME: usize = 253;

fn unsound(field: &str, why: &str) -> Refusal {
    Refusal { reason: "UnexpectedAdmissionError".to_owned(), message: format!("{field}: {why}") }
}

/// The first thing about the pod that would lead somewhere else than it says.
pub(super) fn refuse(pod: &Pod) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    misnamed(pod)
        .or_else(|| containers(spec).find_map(|(field, container)| numbers(&field, container)))
        .or_else(|| profiles(spec))
        .or_else(|| amounts("spec.overhead", spec.overhead.iter().flatten()))
        .or_else(|| spec.resources.as_ref().and_then(|resources| requirements("spec", resources)))
        .or_else(|| aliases(spec))
}

/// The first name that would lead to another place than the pod's own. Ephemeral containers come while the pod runs.
pub(crate) fn misnamed(pod: &Pod) -> Option<Refusal> {
    let meta = &pod.metadata;
    [("metadata.namespace", &meta.namespace), ("metadata.name", &meta.name), ("metadata.uid", &meta.uid)]
        .into_iter()
        .find_map(|(field, value)| name(field, value.as_deref()?))
        .or_else(|| names(pod.spec.as_ref()?))
}

/// Files of system calls are below a folder of the machine, and nowhere else.
fn profiles(spec: &PodSpec) -> Option<Refusal> {
    let of_pod = spec.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    let of_containers = containers(spec).filter_map(|(field, container)| {
        Some((field, container.security_context.as_ref()?.seccomp_profile.as_ref()?))
    });
    let mut all = of_pod.map(|profile| ("spec".to_owned(), profile)).into_iter().chain(of_containers);
    all.find_map(|(field, profile)| {
        let path = Path::new(profile.localhost_profile.as_deref()?);
        let is_below = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        (!is_below).then(|| {
            let field = format!("{field}.securityContext.seccompProfile.localhostProfile");
            unsound(&field, "it leads out of the folder of profiles")
        })
    })
}

/// Whether it can be one part of a path.
fn name(field: &str, name: &str) -> Option<Refusal> {
    let is_sound = !name.is_empty()
        && name.len() <= MAX_NAME
        && name != "."
        && name != ".."
        && !name.contains(|character: char| character == '/' || character.is_control());
    (!is_sound).then(|| unsound(field, &format!("{name:.64?} can't be a name")))
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = (String, &Container)> {
    let inits = spec.init_containers.iter().flatten().enumerate();
    let mains = spec.containers.iter().enumerate();
    inits
        .map(|(n, container)| (format!("spec.initContainers[{n}]"), container))
        .chain(mains.map(|(n, container)| (format!("spec.containers[{n}]"), container)))
}

fn names(spec: &PodSpec) -> Option<Refusal> {
    let ephemeral = spec.ephemeral_containers.iter().flatten().enumerate();
    let all = containers(spec)
        .map(|(field, container)| (field, container.name.as_str()))
        .chain(ephemeral.map(|(n, own)| (format!("spec.ephemeralContainers[{n}]"), own.name.as_str())));
    let volumes = spec.volumes.iter().flatten().enumerate();
    let volumes = volumes.map(|(n, volume)| (format!("spec.volumes[{n}]"), volume.name.as_str()));
    unique(all).or_else(|| unique(volumes))
}

fn unique<'a>(names: impl Iterator<Item = (String, &'a str)>) -> Option<Refusal> {
    let mut seen = BTreeSet::new();
    for (field, found) in names {
        let field = format!("{field}.name");
        if let Some(refusal) = name(&field, found) {
            return Some(refusal);
        }
        if !seen.insert(found) {
            return Some(unsound(&field, &format!("{found:?} is there twice")));
        }
    }
    None
}

fn numbers(field: &str, container: &Container) -> Option<Refusal> {
    let mut ports = container.ports.iter().flatten().enumerate();
    ports
        .find_map(|(n, port)| {
            let field = format!("{field}.ports[{n}]");
            let host_port = port.host_port.unwrap_or(0);
            if u16::try_from(port.container_port).is_err() || u16::try_from(host_port).is_err() {
                return Some(unsound(&field, "there are ports up to 65535"));
            }
            if host_port != 0 && port.container_port == 0 {
                return Some(unsound(&field, "a hostPort leads to no containerPort"));
            }
            if !matches!(port.protocol.as_deref(), None | Some("" | "TCP" | "UDP" | "SCTP")) {
                return Some(unsound(&field, "the protocol is none of TCP, UDP and SCTP"));
            }
            let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty());
            ip.filter(|ip| ip.parse::<std::net::IpAddr>().is_err())
                .map(|_| unsound(&field, "the hostIP is no IP address"))
        })
        .or_else(|| requirements(field, container.resources.as_ref()?))
        .or_else(|| variables(field, container))
}

/// The kernel ends names at the first `=`, and everything at a zero byte.
fn variables(field: &str, container: &Container) -> Option<Refusal> {
    let mut variables = container.env.iter().flatten().enumerate();
    variables.find_map(|(n, variable)| {
        let zero = variable.value.as_deref().is_some_and(|value| value.contains('\0'));
        let is_name = !variable.name.is_empty() && !variable.name.contains(['=', '\0']);
        (zero || !is_name).then(|| unsound(&format!("{field}.env[{n}]"), "no process can have it"))
    })
}

fn requirements(field: &str, resources: &ResourceRequirements) -> Option<Refusal> {
    amounts(&format!("{field}.resources.limits"), resources.limits.iter().flatten())
        .or_else(|| amounts(&format!("{field}.resources.requests"), resources.requests.iter().flatten()))
}

fn amounts<'a>(
    field: &str,
    mut amounts: impl Iterator<Item = (&'a String, &'a Quantity)>,
) -> Option<Refusal> {
    amounts.find_map(|(name, amount)| match milli(amount) {
        Some(0..) => None,
        _ => Some(unsound(&format!("{field}.{name:.64}"), &format!("{:.64?} is no amount", amount.0))),
    })
}

/// A line of `/etc/hosts` each, and no more.
fn aliases(spec: &PodSpec) -> Option<Refusal> {
    spec.host_aliases.iter().flatten().enumerate().find_map(|(n, alias)| {
        let mut words = alias.hostnames.iter().flatten().chain([&alias.ip]);
        let is_word =
            |word: &String| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c == '\0');
        (!words.all(is_word))
            .then(|| unsound(&format!("spec.hostAliases[{n}]"), "it has no words for /etc/hosts"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_lead_elsewhere_is_refused_by_its_field() {
        let check = |field: &str, pod: serde_json::Value| {
            let refusal = refuse(&serde_json::from_value(pod.clone()).unwrap());
            let message = refusal.map(|refusal| refusal.message).unwrap_or_default();
            assert!(message.starts_with(&format!("{field}: ")), "{pod}: {message:?}");
        };
        let with = |key: &str, value: serde_json::Value| json!({ "spec": { "containers": [{ "name": "c", key: value }] } });
        for name in ["", ".", "..", "../x", "a/b", "a\0b", "a\nb", &"x".repeat(300)] {
            check("metadata.uid", json!({ "metadata": { "uid": name }, "spec": { "containers": [] } }));
            check(
                "metadata.namespace",
                json!({ "metadata": { "namespace": name }, "spec": { "containers": [] } }),
            );
            check("spec.containers[0].name", json!({ "spec": { "containers": [{ "name": name }] } }));
            check(
                "spec.volumes[0].name",
                json!({ "spec": { "containers": [], "volumes": [{ "name": name }] } }),
            );
        }
        let twice =
            json!({ "spec": { "initContainers": [{ "name": "c" }], "containers": [{ "name": "c" }] } });
        check("spec.containers[0].name", twice);
        for port in [
            json!({ "containerPort": 80, "hostPort": 70000 }),
            json!({ "containerPort": -1 }),
            json!({ "containerPort": 0, "hostPort": 80 }),
            json!({ "containerPort": 80, "hostIP": "everywhere" }),
            json!({ "containerPort": 80, "protocol": "ICMP" }),
        ] {
            check("spec.containers[0].ports[0]", with("ports", json!([port])));
        }
        for amount in ["-1", "", "much", "1.2.3"] {
            let limits = json!({ "limits": { "memory": amount } });
            check("spec.containers[0].resources.limits.memory", with("resources", limits));
        }
        let profile =
            |path: &str| json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": path } });
        for path in ["../x", "a/../../x", "/etc/x"] {
            check(
                "spec.containers[0].securityContext.seccompProfile.localhostProfile",
                with("securityContext", profile(path)),
            );
            check(
                "spec.securityContext.seccompProfile.localhostProfile",
                json!({ "spec": { "containers": [], "securityContext": profile(path) } }),
            );
        }
        check("spec.containers[0].env[0]", with("env", json!([{ "name": "A=B" }])));
        check("spec.containers[0].env[0]", with("env", json!([{ "name": "A", "value": "\0" }])));
        let alias = json!([{ "ip": "1.2.3.4", "hostnames": ["a\n6.6.6.6 bank"] }]);
        check("spec.hostAliases[0]", json!({ "spec": { "containers": [], "hostAliases": alias } }));
    }

    #[test]
    fn what_an_api_server_lets_in_is_sound() {
        let pod = json!({
            "metadata": { "name": "web-0", "namespace": "default", "uid": "9c5b1a9e-0000-4000-8000-000000000000" },
            "spec": {
                "initContainers": [{ "name": "i" }],
                "containers": [{
                    "name": "c", "ports": [{ "containerPort": 80, "hostPort": 8080, "hostIP": "::1" }],
                    "env": [{ "name": "my.odd-name", "value": "a\nb=c" }],
                    "resources": { "limits": { "cpu": "100m", "memory": "9999999E" } },
                }],
                "volumes": [{ "name": "c", "emptyDir": {} }],
                "hostAliases": [{ "ip": "1.2.3.4", "hostnames": ["a", "b.c"] }],
            },
        });
        assert_eq!(refuse(&serde_json::from_value(pod).unwrap()), None);
    }
}
