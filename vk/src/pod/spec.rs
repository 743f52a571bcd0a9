//! From a pod's spec to what a container runtime is given. Pure: everything that had to be looked up is an argument.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSpec, SELinuxOptions, SeccompProfile, VolumeMount,
};

use super::{admission::sysctl_name, env, resources, volumes};
use crate::provider::{
    observed::PodRef,
    runtime::{
        ContainerSecurity, ContainerSpec, Dns, HostPort, Image, ImageUser, Mount, Namespaces, Profile,
        Propagation, Protocol, Puller, SandboxSecurity, SandboxSpec, Selinux,
    },
};

/// Where a container leaves its last words unless it says otherwise.
pub(crate) const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";
const HOSTS: &str = "/etc/hosts";

/// The pod's identity.
pub(crate) fn pod_ref(pod: &Pod) -> PodRef {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    PodRef {
        uid: text(&pod.metadata.uid),
        namespace: text(&pod.metadata.namespace),
        name: text(&pod.metadata.name),
    }
}

/// Whom the pod's images are fetched for.
pub(crate) fn puller(pod: &Pod) -> Puller {
    Puller {
        pod: pod_ref(pod),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
    }
}

/// The sandbox of a pod.
pub(crate) fn sandbox(
    pod: &Pod,
    attempt: u32,
    runtime_handler: String,
    hostname: String,
    dns: Dns,
) -> SandboxSpec {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let namespaces = Namespaces {
        host_network: spec.host_network.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_process: spec.share_process_namespace.unwrap_or(false),
    };
    let context = spec.security_context.clone().unwrap_or_default();
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let (of_containers, overhead) = resources::sandbox(spec);
    SandboxSpec {
        pod: pod_ref(pod),
        attempt,
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        runtime_handler,
        // A pod on the machine's network has the machine's name.
        hostname: if namespaces.host_network { String::new() } else { hostname },
        dns: Some(dns),
        ports: if namespaces.host_network {
            Vec::new()
        } else {
            spec.containers.iter().flat_map(host_ports).collect()
        },
        sysctls: context.sysctls.iter().flatten().map(|s| (sysctl_name(&s.name), s.value.clone())).collect(),
        namespaces,
        privileged: containers().any(is_privileged),
        cgroup: resources::pod(spec),
        resources: of_containers,
        overhead,
        huge_pages: resources::huge_pages(spec),
        security: SandboxSecurity {
            run_as_user: context.run_as_user,
            run_as_group: context.run_as_group,
            supplemental_groups: groups(spec),
            strict_groups: wants_strict_groups(spec),
            selinux: context.se_linux_options.as_ref().map(selinux),
            // The pause process needs no more.
            seccomp: Some(Profile::RuntimeDefault),
            apparmor: context.app_armor_profile.as_ref().map(apparmor),
        },
    }
}

/// Ports of the machine that lead to the container.
pub(super) fn host_ports(container: &Container) -> impl Iterator<Item = HostPort> {
    container.ports.iter().flatten().filter_map(|port| {
        let host_port = u16::try_from(port.host_port?).ok().filter(|port| *port != 0)?;
        Some(HostPort {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
            container_port: u16::try_from(port.container_port).ok()?,
            host_port,
            host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
        })
    })
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false)
}

/// Groups of every process of the pod: its own, and the one that owns its volumes.
fn groups(spec: &PodSpec) -> Vec<i64> {
    let context = spec.security_context.as_ref();
    let own = context.and_then(|context| context.supplemental_groups.clone()).unwrap_or_default();
    own.into_iter().chain(context.and_then(|context| context.fs_group)).collect()
}

/// Whether processes have no groups but those that the pod names.
pub(super) fn wants_strict_groups(spec: &PodSpec) -> bool {
    let context = spec.security_context.as_ref();
    context.and_then(|context| context.supplemental_groups_policy.as_deref()) == Some("Strict")
}

fn selinux(options: &SELinuxOptions) -> Selinux {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Selinux {
        user: text(&options.user),
        role: text(&options.role),
        kind: text(&options.type_),
        level: text(&options.level),
    }
}

fn apparmor(profile: &AppArmorProfile) -> Profile {
    match profile.type_.as_str() {
        "Localhost" => Profile::Localhost(profile.localhost_profile.clone().unwrap_or_default()),
        "Unconfined" => Profile::Unconfined,
        _ => Profile::RuntimeDefault,
    }
}

fn seccomp(profile: Option<&SeccompProfile>) -> Profile {
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.clone())) {
        Some(("RuntimeDefault", _)) => Profile::RuntimeDefault,
        // A kubelet looks for it in its own folder.
        Some(("Localhost", name)) => {
            Profile::Localhost(format!("/var/lib/kubelet/seccomp/{}", name.unwrap_or_default()))
        }
        _ => Profile::Unconfined,
    }
}

/// Who the container is and what it may: its own settings over the pod's, and the image's user if neither names one.
fn security(spec: &PodSpec, container: &Container, image: &Image) -> ContainerSecurity {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.unwrap_or_default();
    ContainerSecurity {
        user: own.run_as_user.or(pod.run_as_user).map_or_else(|| image.user.clone(), ImageUser::Id),
        run_as_group: own.run_as_group.or(pod.run_as_group),
        supplemental_groups: groups(spec),
        strict_groups: wants_strict_groups(spec),
        privileged,
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        selinux: own.se_linux_options.as_ref().or(pod.se_linux_options.as_ref()).map(selinux),
        seccomp: Some(if privileged {
            Profile::Unconfined
        } else {
            seccomp(own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()))
        }),
        apparmor: own.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref()).map(apparmor),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    }
}

/// Whether `runAsNonRoot` forbids this container with this image; the text is what its status says.
pub(crate) fn refuses_root(spec: &PodSpec, container: &Container, image: &Image) -> Option<String> {
    let own = container.security_context.as_ref();
    let pod = spec.security_context.as_ref();
    let non_root =
        own.and_then(|own| own.run_as_non_root).or(pod.and_then(|pod| pod.run_as_non_root)).unwrap_or(false);
    if !non_root {
        return None;
    }
    let user = own.and_then(|own| own.run_as_user).or(pod.and_then(|pod| pod.run_as_user));
    match (user, &image.user) {
        (Some(0), _) => Some("container's runAsUser breaks non-root policy".to_owned()),
        (None, ImageUser::Id(0)) => Some("container has runAsNonRoot and image will run as root".to_owned()),
        (Some(_), _) | (None, ImageUser::Id(_)) => None,
        (None, ImageUser::Name(name)) => Some(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        )),
    }
}

/// Which volume a mount shows, and what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeUse {
    pub(crate) volume: String,
    /// Below the volume; `subPathExpr` is expanded.
    pub(crate) sub_path: Option<String>,
    pub(crate) mount: Mount,
}

/// The container's volume mounts; their `host_path` is filled in by whoever knows where volumes are. `deep_read_only`: the runtime can make
/// what is mounted in a mount read-only too. Errors are a kubelet's.
pub(crate) fn volume_uses(
    spec: &PodSpec,
    container: &Container,
    env: &[(String, String)],
    deep_read_only: bool,
) -> Result<Vec<VolumeUse>, String> {
    let env: BTreeMap<&str, &str> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mounts = container.volume_mounts.iter().flatten();
    mounts
        .map(|mount| {
            let of_spec = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
            let volume = of_spec.ok_or_else(|| {
                format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name)
            })?;
            let mut used = volume_use(mount, &env)?;
            // Nobody but the node writes there.
            used.mount.read_only |= volumes::is_live(volume) || volume.image.is_some();
            used.mount.relabel = volumes::is_live(volume) || volume.empty_dir.is_some();
            used.mount.recursive_read_only = recursive_read_only(mount, deep_read_only)?;
            Ok(used)
        })
        .collect()
}

/// Whether all that is mounted in a mount is read-only too.
pub(crate) fn recursive_read_only(mount: &VolumeMount, supported: bool) -> Result<bool, String> {
    let asked = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    let requested = format!("volume {:?} requested recursive read-only mode, but it is not", mount.name);
    let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
    match asked {
        "Disabled" => Ok(false),
        _ if mount.read_only != Some(true) => Err(format!("{requested} read-only")),
        _ if propagation != "None" => Err(format!("{requested} compatible with propagation {propagation:?}")),
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => Err(format!("{requested} supported by the runtime")),
        other => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

fn volume_use(mount: &VolumeMount, env: &BTreeMap<&str, &str>) -> Result<VolumeUse, String> {
    let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let sub_path = match (text(&mount.sub_path_expr), text(&mount.sub_path)) {
        (Some(expression), _) => Some(expanded_sub_path(&expression, env)?),
        (None, path) => path,
    };
    if let Some(path) = &sub_path {
        // What the pod has written, and not what its variables hold: one may hold a secret.
        let written = text(&mount.sub_path_expr).unwrap_or_else(|| path.clone());
        if path.starts_with('/') {
            return Err(format!("error SubPath `{written}` must not be an absolute path"));
        }
        if path.split('/').any(|part| part == "..") {
            return Err(format!("unable to provision SubPath `{written}`: must not contain '..'"));
        }
    }
    let container_path = if mount.mount_path.starts_with('/') {
        mount.mount_path.clone()
    } else {
        format!("/{}", mount.mount_path)
    };
    Ok(VolumeUse {
        volume: mount.name.clone(),
        sub_path,
        mount: Mount {
            host_path: PathBuf::new(),
            image: None,
            container_path,
            read_only: mount.read_only.unwrap_or(false),
            recursive_read_only: false,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::None,
            },
            relabel: false,
        },
    })
}

/// A variable without a value would lead to another folder than is meant.
fn expanded_sub_path(expression: &str, env: &BTreeMap<&str, &str>) -> Result<String, String> {
    let missing = RefCell::new(BTreeSet::new());
    let path = env::expand(expression, |name| {
        let value = env.get(name).copied().filter(|value| !value.is_empty());
        if value.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    })
    .map_err(|error| format!("subPathExpr: {error}"))?;
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() { Ok(path) } else { Err(format!("missing value for {}", missing.join(", "))) }
}

/// The pod's own files that a container sees beside its volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnFiles {
    pub(crate) hosts: PathBuf,
    pub(crate) termination_log: PathBuf,
}

/// A container of a pod, from everything that it depends on.
#[allow(clippy::too_many_arguments)]
pub(crate) fn container(
    spec: &PodSpec,
    container: &Container,
    attempt: u32,
    image: &Image,
    env: Vec<(String, String)>,
    volumes: Vec<Mount>,
    own: &OwnFiles,
    machine_memory: i64,
) -> Result<ContainerSpec, env::TooLong> {
    let known: BTreeMap<&str, &str> =
        env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expanded = |words: &Option<Vec<String>>| {
        env::expand_words(words.as_deref().unwrap_or_default(), |name| known.get(name).copied())
    };
    let command = expanded(&container.command)?;
    let args = expanded(&container.args)?;
    let mut mounts = volumes;
    let file = |host_path: &PathBuf, container_path: &str| Mount {
        host_path: host_path.clone(),
        image: None,
        container_path: container_path.to_owned(),
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::None,
        relabel: true,
    };
    if !mounts.iter().any(|mount| mount.container_path.trim_end_matches('/') == HOSTS) {
        mounts.push(file(&own.hosts, HOSTS));
    }
    let last_words = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    mounts.push(file(&own.termination_log, last_words.unwrap_or(DEFAULT_TERMINATION_LOG)));
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        image_id: image.id.clone(),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        env,
        mounts,
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        resources: resources::container(spec, container, machine_memory),
        security: security(spec, container, image),
        joins: None,
        devices: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(pod: serde_json::Value) -> PodSpec {
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_containers_settings_win_over_the_pods() {
        let spec = spec(json!({
            "securityContext": {
                "runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [
                { "name": "a" },
                { "name": "b", "securityContext": {
                    "runAsUser": 9, "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
                    "seccompProfile": { "type": "Unconfined" },
                } },
                { "name": "c", "securityContext": { "privileged": true } },
            ],
        }));
        let image = Image { id: "i".into(), size: 0, user: ImageUser::Name("web".into()) };
        let of = |n: usize| security(&spec, &spec.containers[n], &image);
        assert_eq!((of(0).user, of(0).run_as_group), (ImageUser::Id(1), Some(2)));
        assert_eq!(of(0).supplemental_groups, [4, 3]);
        assert_eq!(of(0).seccomp, Some(Profile::RuntimeDefault));
        assert_eq!((of(1).user, of(1).no_new_privileges), (ImageUser::Id(9), true));
        assert_eq!(of(1).drop_capabilities, ["ALL"]);
        assert_eq!(of(1).seccomp, Some(Profile::Unconfined));
        assert_eq!((of(2).privileged, of(2).seccomp), (true, Some(Profile::Unconfined)));
    }

    #[test]
    fn a_group_never_comes_without_a_user() {
        let spec = spec(json!({ "containers": [{ "name": "a", "securityContext": { "runAsGroup": 7 } }] }));
        for user in [ImageUser::Id(0), ImageUser::Id(1000), ImageUser::Name("web".into())] {
            let image = Image { id: "i".into(), size: 0, user: user.clone() };
            let security = security(&spec, &spec.containers[0], &image);
            assert_eq!((security.user, security.run_as_group), (user, Some(7)));
        }
    }

    #[test]
    fn root_is_refused_where_the_pod_says_so() {
        let check = |context: serde_json::Value, user: ImageUser, refused: bool| {
            let spec = spec(json!({ "containers": [{ "name": "a", "securityContext": context }] }));
            let image = Image { id: "i".into(), size: 0, user };
            assert_eq!(refuses_root(&spec, &spec.containers[0], &image).is_some(), refused, "{context}");
        };
        check(json!({}), ImageUser::Id(0), false);
        check(json!({ "runAsNonRoot": true }), ImageUser::Id(0), true);
        check(json!({ "runAsNonRoot": true }), ImageUser::Id(5), false);
        check(json!({ "runAsNonRoot": true }), ImageUser::Name("web".into()), true);
        check(json!({ "runAsNonRoot": true, "runAsUser": 7 }), ImageUser::Name("web".into()), false);
        check(json!({ "runAsNonRoot": true, "runAsUser": 0 }), ImageUser::Id(5), true);
    }

    #[test]
    fn commands_are_expanded_and_own_files_are_mounted_once() {
        let spec = spec(json!({ "containers": [{
            "name": "a", "image": "busybox", "command": ["sh", "-c", "echo $(X) $(Y) $$(X)"],
            "terminationMessagePath": "/tmp/last",
            "volumeMounts": [{ "name": "v", "mountPath": "/etc/hosts" }],
        }], "volumes": [{ "name": "v", "emptyDir": {} }] }));
        let env = vec![("X".to_owned(), "1".to_owned())];
        let volumes: Vec<Mount> = volume_uses(&spec, &spec.containers[0], &env, false)
            .unwrap()
            .into_iter()
            .map(|used| used.mount)
            .collect();
        let own = OwnFiles { hosts: "/h".into(), termination_log: "/t".into() };
        let image = Image { id: "sha256:1".into(), size: 0, user: ImageUser::Id(0) };
        let made = container(&spec, &spec.containers[0], 2, &image, env, volumes, &own, 1 << 30).unwrap();
        assert_eq!(made.command[2], "echo 1 $(Y) $(X)");
        assert_eq!((made.attempt, made.image_id.as_str()), (2, "sha256:1"));
        let paths: Vec<_> = made.mounts.iter().map(|mount| mount.container_path.as_str()).collect();
        assert_eq!(paths, ["/etc/hosts", "/tmp/last"]);
    }

    #[allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.
    fn uses(mount: serde_json::Value, deep_read_only: bool) -> Result<VolumeUse, String> {
        let spec = spec(json!({
            "containers": [{ "name": "a", "volumeMounts": [mount] }],
            "volumes": [{ "name": "v", "emptyDir": {} }, { "name": "s", "secret": { "secretName": "s" } }],
        }));
        let variables = [("POD", "web"), ("UP", ".."), ("ROOT", "/"), ("EMPTY", "")];
        let env = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        volume_uses(&spec, &spec.containers[0], &env, deep_read_only).map(|mut uses| uses.remove(0))
    }

    #[test]
    fn sub_paths_are_expanded_or_refused_in_a_kubelets_words() {
        let check = |field: &str, text: &str| {
            uses(json!({ "name": "v", "mountPath": "/x", field: text }), false)
                .map(|used| used.sub_path.unwrap())
        };
        let expanded = |expression| check("subPathExpr", expression);
        assert_eq!(expanded("logs/$(POD)"), Ok("logs/web".to_owned()));
        assert_eq!(expanded("$(NOPE)/$(EMPTY)/$(NOPE)"), Err("missing value for EMPTY, NOPE".to_owned()));
        let refused =
            |path: &str| Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
        assert_eq!(expanded("$(UP)/x"), refused("$(UP)/x"), "a variable may hold a secret");
        assert_eq!(check("subPath", "../x"), refused("../x"));
        let refused = "error SubPath `$(ROOT)etc` must not be an absolute path".to_owned();
        assert_eq!(expanded("$(ROOT)etc"), Err(refused));
    }

    #[test]
    fn mounts_are_as_read_only_as_asked_and_as_their_volume_is() {
        let of = |mount: serde_json::Value, deep: bool| {
            uses(mount, deep).map(|used| (used.mount.read_only, used.mount.recursive_read_only))
        };
        let asked = |mode: &str| json!({ "name": "v", "mountPath": "/x", "readOnly": true, "recursiveReadOnly": mode });
        assert_eq!(of(json!({ "name": "v", "mountPath": "/x" }), true), Ok((false, false)));
        assert_eq!(of(json!({ "name": "s", "mountPath": "/x" }), true), Ok((true, false)));
        assert_eq!(of(asked("Disabled"), true), Ok((true, false)));
        assert_eq!(of(asked("IfPossible"), true), Ok((true, true)));
        assert_eq!(of(asked("IfPossible"), false), Ok((true, false)));
        assert_eq!(of(asked("Enabled"), true), Ok((true, true)));
        let refused =
            "volume \"v\" requested recursive read-only mode, but it is not supported by the runtime";
        assert_eq!(of(asked("Enabled"), false), Err(refused.to_owned()));
        let unknown = "cannot find volume \"none\" to mount into container \"a\"";
        assert_eq!(of(json!({ "name": "none", "mountPath": "/x" }), true), Err(unknown.to_owned()));
    }

    #[test]
    fn what_the_node_makes_is_given_the_containers_selinux_label() {
        let mounts = ["e", "s", "h"].map(|name| json!({ "name": name, "mountPath": format!("/{name}") }));
        let spec = spec(json!({
            "containers": [{ "name": "a", "volumeMounts": mounts }],
            "volumes": [
                { "name": "e", "emptyDir": {} },
                { "name": "s", "secret": { "secretName": "s" } },
                { "name": "h", "hostPath": { "path": "/usr" } },
            ],
        }));
        let uses = volume_uses(&spec, &spec.containers[0], &[], false).unwrap();
        let volumes = uses.into_iter().map(|used| used.mount).collect();
        let own = OwnFiles { hosts: "/h".into(), termination_log: "/t".into() };
        let image = Image { id: "i".into(), size: 0, user: ImageUser::Id(0) };
        let made =
            container(&spec, &spec.containers[0], 0, &image, Vec::new(), volumes, &own, 1 << 30).unwrap();
        let relabelled: Vec<_> =
            made.mounts.iter().filter(|mount| mount.relabel).map(|mount| &*mount.container_path).collect();
        assert_eq!(
            relabelled,
            ["/e", "/s", HOSTS, DEFAULT_TERMINATION_LOG],
            "and nothing of the machine's own"
        );
    }

    #[test]
    fn host_ports_and_namespaces_reach_the_sandbox() {
        let pod = |host_network: bool| -> Pod {
            let ports = json!([{ "containerPort": 80, "hostPort": 8080, "protocol": "UDP", "hostIP": "10.0.0.1" },
                { "containerPort": 81 }]);
            serde_json::from_value(json!({
                "metadata": { "name": "p", "namespace": "n", "uid": "u" },
                "spec": { "hostNetwork": host_network, "shareProcessNamespace": true,
                    "containers": [{ "name": "a", "ports": ports }] },
            }))
            .unwrap()
        };
        let own = sandbox(&pod(false), 1, String::new(), "p".into(), Dns::default());
        assert_eq!(own.ports.len(), 1);
        assert_eq!((own.ports[0].host_port, own.ports[0].protocol), (8080, Protocol::Udp));
        assert_eq!((own.hostname.as_str(), own.attempt), ("p", 1));
        assert!(own.namespaces.share_process && !own.namespaces.host_network);
        let shared = sandbox(&pod(true), 0, String::new(), "p".into(), Dns::default());
        assert!(shared.ports.is_empty() && shared.hostname.is_empty() && shared.namespaces.host_network);
    }
}
