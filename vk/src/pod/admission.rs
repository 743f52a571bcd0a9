//! What the virtual node does not do, said before anything is started. A pod that asks for it is refused as a kubelet refuses: phase
//! Failed, a reason, a message that names the field, an event. Nothing that a pod asks for is silently left out.

mod apparmor;
mod sound;

pub(crate) use sound::misnamed;

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume, VolumeProjection};

/// Why a pod can't be here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// A kubelet's word for it.
    pub(crate) reason: String,
    /// Names the field.
    pub(crate) message: String,
}

/// Kernel settings that concern the pod's own namespaces only, as in `pkg/kubelet/sysctl/safe_sysctls.go`.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn unsupported(field: &str) -> Refusal {
    Refusal {
        reason: "PodFeatureUnsupported".to_owned(),
        message: format!("{field} is not supported by this virtual node"),
    }
}

/// The first thing that the pod asks for and a container runtime here can't do. `apparmor`: the file of [`Settings`](super::Settings).
pub(crate) fn refuse(pod: &Pod, apparmor: &Path) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    let mut volumes = spec.volumes.iter().flatten().enumerate();
    let mut inits = spec.init_containers.iter().flatten().enumerate();
    let mut containers = spec.containers.iter().enumerate();
    sound::refuse(pod)
        .or_else(|| system(spec))
        .or_else(|| pod_fields(spec))
        .or_else(|| volumes.find_map(|(n, v)| volume(&format!("spec.volumes[{n}]"), v)))
        .or_else(|| inits.find_map(|(n, c)| container(&format!("spec.initContainers[{n}]"), c)))
        .or_else(|| containers.find_map(|(n, c)| container(&format!("spec.containers[{n}]"), c)))
        .or_else(|| apparmor::refuse(spec, apparmor))
}

/// Limits of the pod itself can't be given, for this reason.
pub(crate) fn pod_limits(why: &str) -> Refusal {
    let Refusal { reason, message } = unsupported("spec.resources.limits");
    Refusal { reason, message: format!("{message}: {why}; limit its containers instead") }
}

/// Whether the pod has limits beside its containers'.
pub(crate) fn has_limits(pod: &Pod) -> bool {
    let resources = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    resources.and_then(|resources| resources.limits.as_ref()).is_some_and(|limits| !limits.is_empty())
}

fn system(spec: &PodSpec) -> Option<Refusal> {
    if let Some(os) = spec.os.as_ref().filter(|os| os.name != "linux") {
        return Some(Refusal {
            reason: "PodOSNotSupported".to_owned(),
            message: format!("spec.os.name is {}, and this node runs linux", os.name),
        });
    }
    let context = spec.security_context.as_ref()?;
    let forbidden = context.sysctls.iter().flatten().find_map(|sysctl| forbidden(spec, &sysctl.name))?;
    Some(Refusal {
        reason: "SysctlForbidden".to_owned(),
        message: format!("forbidden sysctl: {forbidden} (spec.securityContext.sysctls)"),
    })
}

/// Why a pod may not change this setting: it concerns more than the pod's own namespaces.
fn forbidden(spec: &PodSpec, name: &str) -> Option<String> {
    let name = sysctl_name(name);
    if !SAFE_SYSCTLS.contains(&name.as_str()) {
        return Some(format!("{name:?} not allowlisted"));
    }
    let of_network = name.starts_with("net.");
    if of_network && spec.host_network == Some(true) {
        return Some(format!("{name:?} not allowed with host net enabled"));
    }
    (!of_network && spec.host_ipc == Some(true))
        .then(|| format!("{name:?} not allowed with host ipc enabled"))
}

/// A kernel setting's name with dots between its parts, as sysctl(8) reads it: what separates first separates, the other one is text.
pub(super) fn sysctl_name(name: &str) -> String {
    let swap = |character| match character {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

fn pod_fields(spec: &PodSpec) -> Option<Refusal> {
    let context = spec.security_context.as_ref();
    let cases = [
        (spec.host_users == Some(false), "spec.hostUsers: false"),
        (spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()), "spec.resourceClaims"),
        (
            context.is_some_and(|context| context.windows_options.is_some()),
            "spec.securityContext.windowsOptions",
        ),
    ];
    cases.into_iter().find(|(asked, _)| *asked).map(|(_, field)| unsupported(field))
}

fn volume(path: &str, volume: &Volume) -> Option<Refusal> {
    if let Some(source) = &volume.empty_dir {
        let medium = source.medium.as_deref().unwrap_or_default();
        if !matches!(medium, "" | "Memory") {
            return Some(unsupported(&format!("{path}.emptyDir.medium: {medium}")));
        }
        return None;
    }
    if let Some(source) = &volume.projected {
        let mut sources = source.sources.iter().flatten().enumerate();
        return sources.find_map(|(n, s)| projection(&format!("{path}.projected.sources[{n}]"), s));
    }
    if volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.host_path.is_some()
        || volume.image.is_some()
    {
        return None;
    }
    // Every other source of the API, by the name it has there.
    let value = serde_json::to_value(volume).unwrap_or_default();
    let kind =
        value.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).find(|key| *key != "name");
    Some(unsupported(&format!("{path}.{}", kind.unwrap_or("source"))))
}

fn projection(path: &str, source: &VolumeProjection) -> Option<Refusal> {
    let known = source.config_map.is_some()
        || source.secret.is_some()
        || source.downward_api.is_some()
        || source.service_account_token.is_some();
    if known {
        return None;
    }
    let kind = match (&source.cluster_trust_bundle, &source.pod_certificate) {
        (Some(_), _) => "clusterTrustBundle",
        (None, Some(_)) => "podCertificate",
        (None, None) => "source",
    };
    Some(unsupported(&format!("{path}.{kind}")))
}

fn container(path: &str, container: &Container) -> Option<Refusal> {
    let context = container.security_context.as_ref();
    let rules = container.restart_policy_rules.iter().flatten();
    let cases = [
        (
            container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.stop_signal.is_some()),
            "lifecycle.stopSignal",
        ),
        (container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()), "volumeDevices"),
        (context.is_some_and(|context| context.windows_options.is_some()), "securityContext.windowsOptions"),
        (
            rules.clone().any(|rule| rule.action != "Restart" || rule.exit_codes.is_none()),
            "restartPolicyRules with an action other than Restart on exit codes",
        ),
    ];
    if let Some((_, field)) = cases.into_iter().find(|(asked, _)| *asked) {
        return Some(unsupported(&format!("{path}.{field}")));
    }
    resources(path, container)
}

fn resources(path: &str, container: &Container) -> Option<Refusal> {
    let resources = container.resources.as_ref()?;
    if resources.claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some(unsupported(&format!("{path}.resources.claims")));
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(spec: serde_json::Value) -> Option<(String, String)> {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{ "name": "c" }]);
        }
        let pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
        refuse(&pod, Path::new("")).map(|refusal| (refusal.reason, refusal.message))
    }

    #[test]
    fn each_refusal_names_its_field() {
        let check = |spec: serde_json::Value, reason: &str, field: &str| {
            let (found, message) = refused(spec.clone()).unwrap_or_else(|| panic!("{spec} is admitted"));
            assert_eq!(found, reason, "{message}");
            assert!(message.contains(field), "{message:?} does not name {field}");
        };
        let unsupported = "PodFeatureUnsupported";
        let with =
            |field: &str, value: serde_json::Value| json!({ "containers": [{ "name": "c", field: value }] });
        let volume = |source: serde_json::Value| {
            let mut volume = source;
            volume["name"] = json!("v");
            json!({ "volumes": [volume] })
        };
        check(json!({ "os": { "name": "windows" } }), "PodOSNotSupported", "spec.os.name");
        check(
            json!({ "securityContext": { "sysctls": [{ "name": "kernel.msgmax", "value": "1" }] } }),
            "SysctlForbidden",
            "spec.securityContext.sysctls",
        );
        check(json!({ "hostUsers": false }), unsupported, "spec.hostUsers");
        check(json!({ "resourceClaims": [{ "name": "x" }] }), unsupported, "spec.resourceClaims");
        check(
            with("lifecycle", json!({ "stopSignal": "SIGUSR1" })),
            unsupported,
            "spec.containers[0].lifecycle.stopSignal",
        );
        for (source, field) in [
            (json!({ "persistentVolumeClaim": { "claimName": "x" } }), "persistentVolumeClaim"),
            (json!({ "nfs": { "server": "s", "path": "/" } }), "nfs"),
            (json!({ "csi": { "driver": "d" } }), "csi"),
            (json!({ "ephemeral": {} }), "ephemeral"),
            (json!({ "emptyDir": { "medium": "HugePages" } }), "emptyDir.medium"),
            (
                json!({ "projected": { "sources": [{ "clusterTrustBundle": { "path": "p" } }] } }),
                "projected.sources[0].clusterTrustBundle",
            ),
        ] {
            check(volume(source), unsupported, &format!("spec.volumes[0].{field}"));
        }
    }

    #[test]
    fn sysctls_with_slashes_are_those_with_dots() {
        assert_eq!(sysctl_name("kernel/shm_rmid_forced"), "kernel.shm_rmid_forced");
        assert_eq!(sysctl_name("net/ipv4/conf/eno2.100/rp_filter"), "net.ipv4.conf.eno2/100.rp_filter");
        assert_eq!(sysctl_name("net.ipv4.conf.eno2/100.rp_filter"), "net.ipv4.conf.eno2/100.rp_filter");
        let sysctl =
            |name: &str| json!({ "securityContext": { "sysctls": [{ "name": name, "value": "1" }] } });
        assert_eq!(refused(sysctl("kernel/shm_rmid_forced")), None);
        for (field, name) in
            [("hostNetwork", "net.ipv4.tcp_syncookies"), ("hostIPC", "kernel.shm_rmid_forced")]
        {
            let mut spec = sysctl(name);
            spec[field] = json!(true);
            let (reason, message) = refused(spec).unwrap();
            assert!(reason == "SysctlForbidden" && message.contains("not allowed with host"), "{message}");
        }
    }

    #[test]
    fn what_works_is_admitted() {
        let spec = json!({
            "os": { "name": "linux" }, "resources": { "limits": { "cpu": "1" } }, "hostPID": true, "runtimeClassName": "gvisor",
            "securityContext": { "sysctls": [{ "name": "net.ipv4.tcp_syncookies", "value": "1" }], "fsGroup": 1 },
            "initContainers": [
                { "name": "i" },
                { "name": "s", "restartPolicy": "Always", "startupProbe": { "tcpSocket": { "port": 1 } } },
            ],
            "containers": [{
                "name": "c", "env": [{ "name": "X", "valueFrom": {
                    "fileKeyRef": { "volumeName": "e", "path": "p", "key": "k" } } }],
                "ports": [{ "containerPort": 1, "hostPort": 2 }],
                "livenessProbe": { "exec": { "command": ["true"] } },
                "readinessProbe": { "grpc": { "port": 1 } },
                "lifecycle": { "preStop": { "sleep": { "seconds": 1 } } },
                "resources": { "limits": { "cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi" }, "requests": { "ephemeral-storage": "1Gi" } },
                "volumeMounts": [{ "name": "e", "mountPath": "/e", "readOnly": true, "recursiveReadOnly": "Enabled" }],
            }],
            "volumes": [
                { "name": "e", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
                { "name": "d", "emptyDir": { "sizeLimit": "1Mi" } },
                { "name": "h", "hostPath": { "path": "/" } },
                { "name": "i", "image": { "reference": "busybox" } },
                { "name": "p", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } },
            ],
        });
        assert_eq!(refused(spec), None);
    }
}
