//! Requests that nobody honest sends.

use super::*;

#[tokio::test]
async fn no_way_of_writing_a_path_opens_another_route() {
    let served = serve().await;
    // May get `/stats` and nothing else.
    for (target, status) in [
        ("/stats/../pods", 404),
        ("/stats/%2e%2e/pods", 404),
        ("/stats/..%2fpods", 404),
        ("/stats/summary%00", 404),
        ("/stats%2fsummary", 403),
        ("/pods/../stats/summary", 403),
        ("//stats/summary", 403),
        ("/STATS/summary", 403),
        ("/./stats/summary", 403),
        ("http://elsewhere/pods", 403),
        ("http://elsewhere/stats/summary", 500),
    ] {
        let head = format!("GET {target} HTTP/1.1");
        assert_eq!(served.status(served.user("stats"), &head).await, status, "{target}");
    }
    for target in ["//pods", "/%70ods", "/pods/../pods", "/containerLogs/default/web/main/..", "/pods/%00"] {
        let head = format!("GET {target} HTTP/1.1");
        assert_eq!(served.status(served.user("admin"), &head).await, 404, "{target}");
    }
    for (target, status) in [("main%00", 404), ("%2e%2e", 404), ("%ff", 400)] {
        let head = format!("GET /containerLogs/default/web/{target} HTTP/1.1");
        assert_eq!(served.status(served.user("admin"), &head).await, status, "{target}");
    }
}

#[tokio::test]
async fn what_is_too_long_or_never_ends_is_answered_and_hung_up_on() {
    let served = serve().await;
    let long = format!("GET /pods?{} HTTP/1.1", "x".repeat(70_000));
    assert_eq!(served.status(served.user("admin"), &long).await, 414);
    for body in ["Transfer-Encoding: chunked\r\n\r\n5\r\nhel", "Content-Length: 1000000\r\n\r\nhel"] {
        let mut socket = served.connect(served.user("admin")).await.unwrap();
        let request = format!("POST /stats/summary HTTP/1.1\r\nHost: vk1\r\n{body}");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok() && answer.starts_with(b"HTTP/1.1 500 "), "{body}");
    }
}

#[tokio::test]
async fn an_upgrade_without_the_right_asks_nothing_of_the_runtime() {
    let served = serve().await;
    for target in ["/attach/default/web/main?output=1", "/portForward/default/web"] {
        for method in ["GET", "POST", "HEAD", "BREW"] {
            let head = format!("{method} {target} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1");
            let (status, _) = served.request_as_is(served.user("reader"), &head).await.unwrap();
            assert_eq!(status, 403, "{method} {target}");
        }
    }
    assert!(served.provider.asked().is_empty());
}
