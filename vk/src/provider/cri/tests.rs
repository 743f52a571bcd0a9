use super::*;

#[tokio::test]
async fn without_the_lease_only_reading_calls_are_made() {
    let lead = Lead::elected("vk");
    let config = CriConfig { endpoint: "unix:///nonexistent/x.sock".to_owned(), ..CriConfig::default() };
    let cri = Cri::new("vk", &config).unwrap().guarded_by(lead.clone());
    for made in
        [cri.start_container("c").await, cri.stop_container("c", 1).await, cri.remove_sandbox("s").await]
    {
        let error = made.unwrap_err().to_string();
        assert!(error.contains("does not hold the lease of node vk"), "{error}");
    }
    assert!(cri.remove_pod("u").await.unwrap_err().to_string().contains("lease"));
    assert!(cri.version().await.unwrap_err().to_string().contains("x.sock"), "it was asked");
    lead.hold_until(lead.now() + Duration::from_hours(1));
    assert!(cri.start_container("c").await.unwrap_err().to_string().contains("x.sock"), "it was asked");
}

#[tokio::test]
async fn an_endpoint_that_is_no_socket_is_refused_by_name() {
    for endpoint in ["/run/containerd.sock", "tcp://127.0.0.1:1", "unix://run/x.sock", ""] {
        let config = CriConfig { endpoint: endpoint.to_owned(), ..CriConfig::default() };
        let error = Cri::new("vk", &config).err().expect("it is refused").to_string();
        assert!(error.contains(&format!("{endpoint:?}")), "{error}");
    }
}

#[tokio::test]
async fn logs_of_running_containers_are_linked_for_collectors() {
    use crate::provider::observed::{Container, State};

    let root = tempfile::tempdir().unwrap();
    let config = CriConfig {
        endpoint: "unix:///nonexistent/x.sock".to_owned(),
        log_root: root.path().join("pods"),
        ..CriConfig::default()
    };
    let pod = PodRef { uid: "u".into(), namespace: "ns".into(), name: "web".into() };
    let container = |name: &str, state: State| Container {
        id: format!("id-{name}"),
        sandbox_id: "s".into(),
        name: name.into(),
        attempt: 2,
        state,
        image: String::new(),
        image_id: String::new(),
        asked_image: None,
        user: None,
        resources: None,
    };
    let running = State::Running { started_at: jiff::Timestamp::UNIX_EPOCH };
    let containers = vec![container("main", running), container("waits", State::Created)];
    for container in &containers {
        let log = config.log_root.join("ns_web_u").join(&container.name).join("2.log");
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::write(log, &container.name).unwrap();
    }
    let pods = BTreeMap::from([(pod, ObservedPod { sandboxes: Vec::new(), containers })]);
    let links = root.path().join("containers");
    let lead = Lead::elected("vk");
    let cri = Cri::new("vk", &config).unwrap().guarded_by(lead.clone());
    cri.tend(&pods).await.unwrap();
    assert!(!links.exists(), "somebody else acts for the node");
    lead.hold_until(lead.now() + Duration::from_hours(1));
    cri.tend(&pods).await.unwrap();
    let names: Vec<_> = std::fs::read_dir(&links).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["web_ns_main-id-main.log"]);
    assert_eq!(std::fs::read_to_string(links.join(&names[0])).unwrap(), "main");
    std::fs::remove_dir_all(&config.log_root).unwrap();
    cri.tend(&BTreeMap::new()).await.unwrap();
    assert_eq!(std::fs::read_dir(&links).unwrap().count(), 0);
}
