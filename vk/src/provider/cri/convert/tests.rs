use super::*;

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_pods_own_labels_do_not_pass_for_ownership_marks() {
    let pod = PodRef { uid: "u1".into(), namespace: "ns".into(), name: "p".into() };
    let sandbox = SandboxSpec {
        pod,
        attempt: 0,
        labels: BTreeMap::from([
            (POD_UID_LABEL.to_owned(), "somebody-else".to_owned()),
            ("app".to_owned(), "x".to_owned()),
        ]),
        annotations: BTreeMap::new(),
        runtime_handler: String::new(),
        hostname: "p".into(),
        dns: None,
        ports: Vec::new(),
        sysctls: BTreeMap::new(),
        namespaces: Namespaces::default(),
        privileged: false,
        cgroup: crate::provider::runtime::PodCgroup {
            qos: crate::provider::runtime::QosClass::BestEffort,
            limits: Resources::default(),
        },
        resources: Resources { memory_bytes: Some(64), ..Resources::default() },
        overhead: Some(Resources { memory_bytes: Some(8), ..Resources::default() }),
        huge_pages: BTreeMap::new(),
        security: crate::provider::runtime::SandboxSecurity { strict_groups: true, ..Default::default() },
    };
    let config = sandbox_config("vk", &sandbox, Path::new("/logs"), "/parent".into());
    assert_eq!(config.labels[POD_UID_LABEL], "u1");
    assert_eq!(config.labels["app"], "x");
    assert_eq!(config.labels[NODE_LABEL], "vk");
    let linux = config.linux.expect("it is sent");
    let memory =
        |told: Option<wire::LinuxContainerResources>| told.expect("it is sent").memory_limit_in_bytes;
    assert_eq!((memory(linux.resources), memory(linux.overhead)), (64, 8));
    let security = linux.security_context.expect("it is sent");
    assert_eq!(security.supplemental_groups_policy(), wire::SupplementalGroupsPolicy::Strict);
}

#[test]
fn users_are_sent_by_number_or_by_name() {
    let sent = |user| {
        let security = ContainerSecurity {
            user,
            run_as_group: Some(7),
            supplemental_groups: Vec::new(),
            strict_groups: true,
            privileged: false,
            read_only_root: false,
            no_new_privileges: false,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            selinux: None,
            seccomp: None,
            apparmor: None,
            unmasked_proc: false,
        };
        let sent = container_security(Namespaces::default(), &security);
        assert_eq!(sent.supplemental_groups_policy(), wire::SupplementalGroupsPolicy::Strict);
        (sent.run_as_user, sent.run_as_username)
    };
    assert_eq!(sent(ImageUser::Id(0)), (Some(int(0)), String::new()));
    assert_eq!(sent(ImageUser::Name("web".into())), (None, "web".to_owned()));
}

#[test]
fn events_of_other_nodes_are_not_ours() {
    let event = |node: &str| wire::ContainerEventResponse {
        container_event_type: wire::ContainerEventType::ContainerStoppedEvent.into(),
        pod_sandbox_status: Some(wire::PodSandboxStatus {
            labels: labels(&[(NODE_LABEL, node), (POD_UID_LABEL, "u1")]),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(event_uid("vk", &event("vk")).as_deref(), Some("u1"));
    assert_eq!(event_uid("vk", &event("other")), None);
    assert_eq!(event_uid("vk", &wire::ContainerEventResponse::default()), None);
}

#[test]
fn the_newest_attempt_comes_first() {
    let status = |attempt| wire::ContainerStatus {
        id: format!("c{attempt}"),
        metadata: Some(wire::ContainerMetadata { name: "main".into(), attempt }),
        state: wire::ContainerState::ContainerExited.into(),
        exit_code: 3,
        finished_at: 1_000_000_000,
        ..Default::default()
    };
    let pod = observed(std::iter::empty(), [0, 2, 1].map(|n| ("s".to_owned(), status(n))).into_iter());
    let newest = pod.container("main").expect("it is there");
    assert_eq!((newest.id.as_str(), newest.attempt), ("c2", 2));
    let exit = newest.exit().expect("it ended");
    assert_eq!((exit.code, exit.started_at), (3, None));
    assert_eq!(exit.finished_at.map(Timestamp::as_second), Some(1));
}

#[test]
fn the_image_that_a_pod_named_is_told_as_it_named_it() {
    let status = |annotations| wire::ContainerStatus {
        image: Some(wire::ImageSpec { image: "docker.io/library/app:1".into(), ..Default::default() }),
        annotations,
        ..Default::default()
    };
    let asked = |annotations| container("s".into(), status(annotations)).asked_image;
    assert_eq!(asked(labels(&[(IMAGE_ANNOTATION, "app:1")])).as_deref(), Some("app:1"));
    assert_eq!(asked(labels(&[])), None, "an earlier version made it");
}

#[test]
fn process_namespaces_are_the_containers_own_unless_asked() {
    let pid = |shared| namespaces(shared).pid();
    assert_eq!(pid(Namespaces::default()), wire::NamespaceMode::Container);
    assert_eq!(pid(Namespaces { share_process: true, ..Default::default() }), wire::NamespaceMode::Pod);
    assert_eq!(pid(Namespaces { host_pid: true, ..Default::default() }), wire::NamespaceMode::Node);
}
