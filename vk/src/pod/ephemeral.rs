//! Ephemeral containers, which join a pod that runs already (`kubectl debug`): started once, never again, and nothing about the pod
//! depends on them. Pure.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// As a container like the others. What the API allows no ephemeral container to have is left out.
pub(crate) fn container(own: &EphemeralContainer) -> Container {
    let own = own.clone();
    Container {
        name: own.name,
        image: own.image,
        command: own.command,
        args: own.args,
        working_dir: own.working_dir,
        env: own.env,
        env_from: own.env_from,
        image_pull_policy: own.image_pull_policy,
        resources: own.resources,
        security_context: own.security_context,
        stdin: own.stdin,
        stdin_once: own.stdin_once,
        tty: own.tty,
        termination_message_path: own.termination_message_path,
        termination_message_policy: own.termination_message_policy,
        volume_devices: own.volume_devices,
        volume_mounts: own.volume_mounts,
        ..Container::default()
    }
}

/// The pod's ephemeral containers, in the order in which they came.
pub(crate) fn all(spec: &PodSpec) -> Vec<Container> {
    spec.ephemeral_containers.iter().flatten().map(container).collect()
}

/// The same of each container, of whatever kind.
pub(crate) fn each<'a, T>(
    spec: &'a PodSpec,
    own: impl Fn(&'a Container) -> T,
    ephemeral: impl Fn(&'a EphemeralContainer) -> T,
) -> impl Iterator<Item = T> {
    let plain = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    plain.map(own).chain(spec.ephemeral_containers.iter().flatten().map(ephemeral))
}

/// The pod's container of this name, of whatever kind.
pub(crate) fn named<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    let spec = pod.spec.as_ref()?;
    match own(spec, name) {
        Some(container) => Some(Cow::Borrowed(container)),
        None => find(spec, name).map(|own| Cow::Owned(container(own))),
    }
}

/// The pod's container of this name, of those that it was made with.
pub(crate) fn own<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a Container> {
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.find(|container| container.name == name)
}

/// The container whose processes this one shall see, if it is one that asks for that.
pub(crate) fn target<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a str> {
    find(spec, name)?.target_container_name.as_deref().filter(|target| !target.is_empty())
}

/// Where the pod's spec has this container, as events name it.
pub(crate) fn field_path(pod: &Pod, name: &str) -> String {
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let list = if inits.iter().any(|container| container.name == name) {
        "initContainers"
    } else if spec.is_some_and(|spec| find(spec, name).is_some()) {
        "ephemeralContainers"
    } else {
        "containers"
    };
    format!("spec.{list}{{{name}}}")
}

fn find<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a EphemeralContainer> {
    spec.ephemeral_containers.iter().flatten().find(|container| container.name == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_of_every_kind_are_found_by_name() {
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "initContainers": [{ "name": "i" }],
            "containers": [{ "name": "c" }],
            "ephemeralContainers": [{ "name": "e", "image": "x", "stdin": true, "targetContainerName": "c" }],
        } }))
        .unwrap();
        let image = |name: &str| named(&pod, name).and_then(|container| container.image.clone());
        assert_eq!((named(&pod, "i").is_some(), image("e")), (true, Some("x".to_owned())));
        assert!(named(&pod, "nobody").is_none());
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((target(spec, "e"), target(spec, "c")), (Some("c"), None));
        assert_eq!(all(spec)[0].stdin, Some(true));
        let check = |name: &str, expected: &str| assert_eq!(field_path(&pod, name), expected);
        check("i", "spec.initContainers{i}");
        check("c", "spec.containers{c}");
        check("e", "spec.ephemeralContainers{e}");
    }
}
