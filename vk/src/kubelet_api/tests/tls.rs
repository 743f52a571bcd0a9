//! Clients that are not who they should be, or behave badly, and CAs.

use super::*;

#[tokio::test]
async fn a_certificate_that_is_not_a_client_s_of_this_cluster_is_refused() {
    let served = serve().await;
    let other = Ca::new("clients");
    let stranger = other.issue("admin", "system:masters", ExtendedKeyUsagePurpose::ClientAuth);
    assert!(served.request(stranger, PODS).await.is_err(), "another CA of the same name");
    let wrong_usage = served.client_ca.issue("admin", "system:masters", ExtendedKeyUsagePurpose::ServerAuth);
    assert!(served.request(wrong_usage, PODS).await.is_err(), "a server's certificate");
    assert_eq!(served.calls.count("POST /apis/authorization.k8s.io/v1/subjectaccessreviews"), 0);
}

#[tokio::test]
async fn garbage_and_endless_heads_cost_a_connection_and_no_more() {
    let served = serve().await;
    let mut raw = tokio::net::TcpStream::connect(served.address).await.unwrap();
    raw.write_all(&[0x55; 4096]).await.unwrap();
    let mut answer = Vec::new();
    let _ = raw.read_to_end(&mut answer).await;

    let mut socket = served.connect(None).await.unwrap();
    let flood = async {
        socket.write_all(b"GET /pods HTTP/1.1\r\n").await?;
        let line = format!("X: {}\r\n", "x".repeat(60_000));
        for _ in 0..100 {
            socket.write_all(line.as_bytes()).await?;
        }
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    if let Ok(answer) = flood.await {
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    assert_eq!(served.status(served.user("reader"), PODS).await, 200, "others are served");
    assert!(served.readiness.report().0);
}

#[tokio::test]
async fn without_a_ca_nothing_listens() {
    let (client, _) = fake_api::client(|_| Answer::status(403, "Forbidden"));
    let ca = Ca::new("server");
    let (chain, key) = ca.issue("system:node:vk1", "system:nodes", ExtendedKeyUsagePurpose::ServerAuth);
    let key =
        rustls::sign::CertifiedKey::from_der(vec![chain], key, &rustls::crypto::ring::default_provider())
            .unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let readiness = Readiness::default();
    let api = |client_ca_file, client: &Client, key: &rustls::sign::CertifiedKey| KubeletApi {
        config: KubeletApiConfig { address, client_ca_file, serving: ServingSource::Csr },
        node: "vk1".to_owned(),
        client: client.clone(),
        certificate: Resolver::fixed(key.clone()),
        pods: Arc::new(OnePod),
        provider: Provider::PodService(Arc::new(Fake::default())),
        readiness: readiness.clone(),
        metrics: Metrics::default(),
        root_dir: "/nonexistent".into(),
        configz: json!({}),
        registry: Arc::default(),
    };
    let running = api(None, &client, &key).run(CancellationToken::new());
    assert!(tokio::time::timeout(Duration::from_millis(500), running).await.is_err(), "goes on trying");
    let (ready, report) = readiness.report();
    assert!(!ready && report.contains("extension-apiserver-authentication-reader"), "{report}");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());

    let error = api(Some("/nonexistent/ca.crt".into()), &client, &key).run(CancellationToken::new()).await;
    assert_eq!(error.unwrap_err().to_string(), "can't read --client-ca-file /nonexistent/ca.crt");
}

#[tokio::test(start_paused = true)]
async fn certificates_outdate_with_their_ca_and_with_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, Ca::new("one").0.pem()).unwrap();
    let (client, _) = fake_api::client(|call| panic!("unexpected request: {}", call.name()));
    let (chain, key) = Ca::new("server").issue("vk1", "nodes", ExtendedKeyUsagePurpose::ServerAuth);
    let key =
        rustls::sign::CertifiedKey::from_der(vec![chain], key, &rustls::crypto::ring::default_provider())
            .unwrap();
    let (mut tls, keep_fresh) =
        super::super::tls::Tls::new(Resolver::fixed(key), Some(file.clone()), client, Readiness::default());
    let test = async {
        tls.ready().await;
        tls.current();
        let day = Duration::from_hours(24);
        let (later, past) = (jiff::Timestamp::now() + day, jiff::Timestamp::now() - day);
        tls.outdates(Some(past)).await;
        let long = Duration::from_mins(10);
        assert!(tokio::time::timeout(long, tls.outdates(Some(later))).await.is_err(), "the CA is the same");
        std::fs::write(&file, Ca::new("other").0.pem()).unwrap();
        assert!(tokio::time::timeout(long, tls.outdates(None)).await.is_err(), "there is nothing to outdate");
        tokio::time::timeout(long, tls.outdates(Some(later))).await.expect("another CA");
        tls.current();
        assert!(tokio::time::timeout(long, tls.outdates(Some(later))).await.is_err(), "verified by it");
    };
    tokio::select! {
        () = test => {}
        error = keep_fresh => panic!("{error}"),
    }
}
