//! Logs, through the whole server.

use super::*;

#[tokio::test]
async fn logs_reach_the_caller() {
    let served = serve().await;
    let (status, body) = served.request(served.user("reader"), LOGS).await.unwrap();
    assert_eq!(status, 200);
    assert!(body.contains("logs of c1, tail Some(3)\n"), "{body}");
    let (status, body) =
        served.request(served.user("reader"), "GET /containerLogs/default/none/main HTTP/1.1").await.unwrap();
    assert_eq!(status, 404);
    assert!(body.contains("pod \"none\" does not exist"), "{body}");
}

#[tokio::test]
async fn what_is_followed_is_sent_at_once_and_ends_with_us() {
    let served = serve().await;
    let mut socket = served.connect(served.user("reader")).await.unwrap();
    socket
        .write_all(b"GET /containerLogs/default/web/main?follow=true HTTP/1.1\r\nHost: vk1\r\n\r\n")
        .await
        .unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains("logs of c1") {
        let length = socket.read(&mut buffer).await.unwrap();
        assert!(length > 0, "ended early: {seen}");
        seen.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    served.stop.cancel();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "a shutdown ends the connection");
}
