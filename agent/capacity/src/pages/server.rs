//! Pages that are made anew while somebody looks at them, for the browsers of this machine alone.
//!
//! It changes nothing and takes no input but a path. A page elsewhere on the web can't read from it: browsers that came by another name (DNS rebinding), or in the name of another site, are turned away.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{RawQuery, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse as _, Redirect, Response},
    routing::get,
};
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::{
    model::{Page, Section},
    render::{self, Live},
};
use crate::output::{Column, Table};

/// Makes a page, or says why it can't.
pub type Make = Box<dyn Fn() -> Result<Page, String> + Send + Sync>;

/// A page, and where it is.
pub struct Entry {
    /// Its path, from the slash on.
    pub path: String,
    /// Its name, where it is linked.
    pub name: String,
    /// How it is made. It may take long and block.
    pub make: Make,
}

impl fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Entry").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What one page's handler knows. A page is made once for all who ask within the time between refreshes.
struct Served {
    entry: Entry,
    live: Live,
    latest: Mutex<Option<(Instant, StatusCode, Arc<Page>)>>,
}

/// The pages, each at its path. The root tells what each has found; of one alone it leads there.
pub fn router(entries: Vec<Entry>, refresh_s: u32) -> Router {
    let mut links: Vec<_> = entries.iter().map(|entry| (entry.path.clone(), entry.name.clone())).collect();
    if links.len() > 1 {
        links.insert(0, ("/".to_owned(), "Overview".to_owned()));
    }
    let live = Live { refresh_s, links };
    let all: Vec<Arc<Served>> = entries
        .into_iter()
        .map(|entry| Arc::new(Served { entry, live: live.clone(), latest: Mutex::new(None) }))
        .collect();
    let mut router = Router::new();
    for served in &all {
        router = router.route(&served.entry.path, get(page).with_state(Arc::clone(served)));
    }
    match all.as_slice() {
        [only] => {
            let to = only.entry.path.clone();
            router = router.route("/", get(|| async move { Redirect::to(&to) }));
        }
        _ => router = router.route("/", get(overview).with_state(Arc::new(Overview { all, live }))),
    }
    router
        .fallback(|| async {
            (StatusCode::NOT_FOUND, "There is no such page; / leads to those there are.\n")
        })
        .layer(middleware::from_fn(guard))
}

/// All pages, and the one that leads to them.
struct Overview {
    all: Vec<Arc<Served>>,
    live: Live,
}

async fn overview(State(overview): State<Arc<Overview>>, RawQuery(query): RawQuery) -> Response {
    let mut page = Page {
        title: "Overview".to_owned(),
        subtitle: "What is known of this cluster".to_owned(),
        generated_at: Timestamp::now(),
        facts: Vec::new(),
        warnings: Vec::new(),
        sections: Vec::new(),
    };
    for served in &overview.all {
        let (_, found) = served.latest().await;
        page.sections.push(summary(&served.entry, &found));
    }
    answer(StatusCode::OK, &page, &overview.live, query.as_deref())
}

/// A page in short: what it found, and its numbers.
fn summary(entry: &Entry, page: &Page) -> Section {
    let rows = page.facts.iter().map(|fact| {
        let mark = if fact.alarming { "▲ " } else { "" };
        vec![format!("{mark}{}", fact.label), fact.value.clone(), fact.detail.clone()]
    });
    let columns = vec![Column::text("WHAT"), Column::number("HOW MUCH"), Column::text("WHICH IS")];
    let rows: Vec<_> = rows.collect();
    Section {
        name: entry.name.clone(),
        heading: format!("{}: {}", entry.name, page.title),
        text: if rows.is_empty() { page.warnings.clone() } else { vec![page.subtitle.clone()] },
        link: Some((entry.path.clone(), format!("All of {}", entry.name.to_lowercase()))),
        plot: None,
        table: if rows.is_empty() { Table::default() } else { Table { title: String::new(), columns, rows } },
    }
}

async fn page(State(served): State<Arc<Served>>, RawQuery(query): RawQuery) -> Response {
    let (status, page) = served.latest().await;
    answer(status, &page, &served.live, query.as_deref())
}

fn answer(status: StatusCode, page: &Page, live: &Live, query: Option<&str>) -> Response {
    let html = if query == Some("part=main") { render::part(page) } else { render::live(page, live) };
    (status, Html(html)).into_response()
}

impl Served {
    async fn latest(self: &Arc<Self>) -> (StatusCode, Arc<Page>) {
        let mut latest = self.latest.lock().await;
        // A little earlier than asked for again: a browser's clock isn't ours.
        let fresh = Duration::from_secs(u64::from(self.live.refresh_s)).mul_f64(0.8);
        if let Some((made, status, page)) = &*latest
            && made.elapsed() < fresh
        {
            return (*status, Arc::clone(page));
        }
        let maker = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || (maker.entry.make)()).await;
        let made = made.unwrap_or_else(|_| Err("making the page panicked: this is a defect".to_owned()));
        let (status, page) = match made {
            Ok(page) => (StatusCode::OK, page),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, failed(&self.entry.name, error)),
        };
        let page = Arc::new(page);
        *latest = Some((Instant::now(), status, Arc::clone(&page)));
        (status, page)
    }
}

/// A page that tells why there is none; it refreshes, too.
fn failed(name: &str, error: String) -> Page {
    Page {
        title: "There is nothing to show".to_owned(),
        subtitle: format!("{name}: it is tried again and again."),
        generated_at: Timestamp::now(),
        facts: Vec::new(),
        warnings: vec![error],
        sections: Vec::new(),
    }
}

async fn guard(request: Request, next: Next) -> Response {
    let mut response = match refusal(request.method(), request.headers()) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    let policy = format!("{}; frame-ancestors 'none'", render::policy(true));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn refusal(method: &Method, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    if method != Method::GET && method != Method::HEAD {
        return Some((StatusCode::METHOD_NOT_ALLOWED, "Pages can only be read.\n"));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !own_name(host) {
        return Some((
            StatusCode::MISDIRECTED_REQUEST,
            "Only localhost is served here: ask for http://localhost.\n",
        ));
    }
    let is = |name: &str, value: &str| headers.get(name).is_some_and(|found| found == value);
    // Following a link from elsewhere is fine; having a page elsewhere load this one is not.
    if (is("sec-fetch-site", "cross-site") || is("sec-fetch-site", "same-site"))
        && !is("sec-fetch-mode", "navigate")
    {
        return Some((StatusCode::FORBIDDEN, "Not for other sites.\n"));
    }
    None
}

/// Whether a Host header names this machine as only itself does. The port may be that of a tunnel.
fn own_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]"
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::{Entry, Request, Response, Router, failed, own_name, router};

    fn site() -> Router {
        let count = AtomicU32::new(0);
        let make = move || match count.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(failed("Report", "first".to_owned())),
            1 => Err("the API server <img> is away".to_owned()),
            _ => panic!("asked too often"),
        };
        let entry =
            |path: &str, make: super::Make| Entry { path: path.to_owned(), name: "Report".to_owned(), make };
        router(
            vec![entry("/report", Box::new(make)), entry("/broken", Box::new(|| panic!("a defect")))],
            3600,
        )
    }

    async fn asked(
        site: &Router,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (Response<()>, String) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = site.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (Response::from_parts(parts, ()), String::from_utf8(body.to_vec()).unwrap())
    }

    const HOST: (&str, &str) = ("host", "localhost:8001");

    #[tokio::test]
    async fn a_page_is_made_once_for_all_who_ask() {
        let site = site();
        let (response, html) = asked(&site, "GET", "/report", &[HOST]).await;
        assert_eq!(response.status(), 200);
        assert!(html.contains("<!doctype html>") && html.contains("<li>First</li>"));
        let (_, part) = asked(&site, "GET", "/report?part=main", &[HOST]).await;
        assert!(part.starts_with("<main") && part.contains("<li>First</li>"));
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        assert!(response.headers().get("access-control-allow-origin").is_none());
    }

    #[tokio::test]
    async fn the_root_tells_of_all_pages_and_leads_to_a_single_one() {
        let (response, html) = asked(&site(), "GET", "/", &[HOST]).await;
        assert_eq!(response.status(), 200);
        for part in [
            "<a href=\"/report\">All of report</a>",
            "<a href=\"/broken\">",
            "<a href=\"/\">Overview</a>",
            "panicked",
        ] {
            assert!(html.contains(part), "no {part} in {html}");
        }
        let only = Entry {
            path: "/report".to_owned(),
            name: "Report".to_owned(),
            make: Box::new(|| Err("nothing".to_owned())),
        };
        let (response, _) = asked(&router(vec![only], 15), "GET", "/", &[HOST]).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["location"]),
            (303, &"/report".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn a_failure_is_told_and_nothing_ends() {
        let (response, html) = asked(&site(), "GET", "/broken", &[HOST]).await;
        assert_eq!(response.status(), 503);
        assert!(html.contains("panicked"));
        assert_eq!(asked(&site(), "GET", "/elsewhere", &[HOST]).await.0.status(), 404);
    }

    #[tokio::test]
    async fn others_are_turned_away() {
        let site = site();
        for (headers, status) in [
            (&[][..], 421),
            (&[("host", "evil.example:8001")], 421),
            (&[("host", "localhost.evil.example")], 421),
            (&[HOST, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
            (&[HOST, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 200),
            (&[("host", "[::1]:8001")], 200),
        ] {
            assert_eq!(asked(&site, "GET", "/report", headers).await.0.status(), status, "{headers:?}");
        }
        assert_eq!(asked(&site, "POST", "/report", &[HOST]).await.0.status(), 405);
    }

    #[test]
    fn only_this_machine_s_own_names_are_served() {
        for name in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8001", "[::1]:8001", "[::1]"] {
            assert!(own_name(name), "{name}");
        }
        for name in [
            "",
            ":80",
            "127.0.0.1.nip.io",
            "10.0.0.1:8001",
            "localhost:",
            "localhost:8001x",
            "::1",
            "user@localhost",
        ] {
            assert!(!own_name(name), "{name}");
        }
    }
}
