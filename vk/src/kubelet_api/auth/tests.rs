use super::*;

fn check(method: &str, path: &str, verbs: &[&'static str], subresources: &[&'static str]) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let expected = Needed { verbs: verbs.to_vec(), subresources: subresources.to_vec() };
    assert_eq!(needed(&method, path), expected, "{method} {path}");
}

#[test]
fn rights_are_a_kubelet_s() {
    check("GET", "/containerLogs/default/web/web", &["get"], &["proxy"]);
    check("GET", "/pods", &["get"], &["pods", "proxy"]);
    check("GET", "/runningpods/", &["get"], &["pods", "proxy"]);
    check("GET", "/healthz", &["get"], &["healthz", "proxy"]);
    check("GET", "/configz", &["get"], &["configz", "proxy"]);
    check("GET", "/stats/summary", &["get"], &["stats"]);
    check("GET", "/metrics", &["get"], &["metrics"]);
    check("GET", "/metrics/resource", &["get"], &["metrics"]);
    check("GET", "/logs/messages", &["get"], &["log"]);
    check("POST", "/checkpoint/default/web/web", &["create"], &["checkpoint"]);
    check("DELETE", "/anything", &["delete"], &["proxy"]);
    check("BREW", "/anything", &["create"], &["proxy"]);
}

#[test]
fn a_name_that_only_begins_alike_is_another() {
    check("GET", "/podsecrets", &["get"], &["proxy"]);
    check("GET", "/metricsx", &["get"], &["proxy"]);
    check("GET", "//metrics", &["get"], &["proxy"]);
}

#[test]
fn a_command_takes_the_right_to_create_whatever_the_method() {
    check("POST", "/exec/default/web/web", &["create"], &["proxy"]);
    check("GET", "/exec/default/web/web", &["get", "create"], &["proxy"]);
    check("GET", "/attach/default/web/web", &["get", "create"], &["proxy"]);
    check("GET", "/portForward/default/web", &["get", "create"], &["proxy"]);
    check("PUT", "/run/default/web/web", &["update", "create"], &["proxy"]);
}

#[tokio::test(start_paused = true)]
async fn the_cache_forgets_and_does_not_grow() {
    let cache = Cache::default();
    cache.put(1, "yes", Duration::from_mins(1));
    assert_eq!(cache.get(&1), Some("yes"));
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(cache.get(&1), None);
    for key in 0..10 * MAX_CACHED {
        cache.put(key, "flood", Duration::from_mins(1));
    }
    assert!(cache.0.lock().unwrap().len() <= MAX_CACHED);
}
