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
