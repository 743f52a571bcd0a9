//! Who gets an answer.

use super::*;

#[tokio::test]
async fn who_may_what() {
    let served = serve().await;
    let with = |token: &str, head: &str| format!("{head}\r\nAuthorization: Bearer {token}");

    assert_eq!(served.status(None, PODS).await, 401, "nobody");
    assert_eq!(served.status(None, "GET /nothing-here HTTP/1.1").await, 401, "nobody learns no routes");
    assert_eq!(served.status(None, &with("bad", PODS)).await, 401, "a bad token");
    assert_eq!(served.status(None, &format!("{PODS}\r\nAuthorization: Basic YTpi")).await, 401, "no bearer");
    assert_eq!(served.status(None, &with("good", PODS)).await, 200, "a good token");

    assert_eq!(served.status(served.user("stranger"), PODS).await, 403, "no rights");
    assert_eq!(served.status(served.user("stranger"), "GET /nothing-here HTTP/1.1").await, 403);
    assert_eq!(served.status(served.user("stats"), PODS).await, 403, "other rights");
    assert_eq!(served.status(served.user("stats"), "GET /stats/nothing HTTP/1.1").await, 404);
    assert_eq!(served.status(served.user("reader"), PODS).await, 200);
    assert_eq!(served.status(served.user("admin"), "GET /nothing-here HTTP/1.1").await, 404);
    assert_eq!(served.status(served.user("confused"), PODS).await, 500, "no review, no answer");

    for method in ["GET", "POST"] {
        let exec = format!("{method} {EXEC}");
        assert_eq!(
            served.status(served.user("reader"), &exec).await,
            403,
            "{method}: get is not enough for a command"
        );
        assert_eq!(served.status(None, &with("good", &exec)).await, 403, "{method}");
    }
}

#[tokio::test]
async fn reviews_are_remembered() {
    let served = serve().await;
    for _ in 0..3 {
        assert_eq!(served.status(None, &format!("{LOGS}\r\nAuthorization: Bearer good")).await, 200);
    }
    assert_eq!(served.calls.count("POST /apis/authentication.k8s.io/v1/tokenreviews"), 1);
    assert_eq!(served.calls.count("POST /apis/authorization.k8s.io/v1/subjectaccessreviews"), 1);
}
