//! How Prometheus is reached: by HTTP, or through the Kubernetes API's proxy for services. Answers are read with a limit.

use std::{fs, path::Path, time::Duration};

use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use reqwest::Url;

use super::{
    Error,
    answer::{self, Answer, Refusal},
};

/// What is waited for and taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long one query may take; Prometheus is told, so that it gives up, too.
    pub time: Duration,
    /// How large an answer may be. What is larger is asked for in halves.
    pub bytes: usize,
    /// How long is waited before a query is asked again, doubled each time.
    pub wait: Duration,
    /// How long a question that costs nothing may take: where there is no answer by then, nobody is there.
    pub greeting: Duration,
    /// How long somebody who was there, and is gone, is waited for.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_mins(1),
            bytes: 64 << 20,
            wait: Duration::from_millis(500),
            greeting: Duration::from_secs(10),
            patience: Duration::from_mins(2),
        }
    }
}

/// A file of credentials is no longer.
const LARGEST_SECRET: u64 = 64 << 10;

/// Who asks.
#[derive(Debug, Clone, Default)]
pub struct Credentials<'a> {
    /// A file with a bearer token.
    pub token_file: Option<&'a Path>,
    /// A file with `USER:PASSWORD`.
    pub auth_file: Option<&'a Path>,
    /// A file with the authorities that the server's certificate may be of, in PEM.
    pub ca_file: Option<&'a Path>,
}

/// A way to Prometheus.
pub struct Transport {
    address: String,
    limits: Limits,
    way: Way,
}

enum Way {
    Http { client: reqwest::Client, base: Url, authorization: Authorization },
    Service { client: Box<kube::Client>, base: String },
}

/// The service that `svc://NAMESPACE/SERVICE:PORT/PREFIX` names, as the path of its proxy; `None`: it is no such address.
fn service_path(address: &str) -> Option<String> {
    let rest = address.strip_prefix("svc://")?;
    let (namespace, rest) = rest.split_once('/')?;
    let (service, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    // A port may be left out, and a scheme may stand before: https:prometheus:9090.
    let name = |text: &str| {
        !text.is_empty()
            && text.len() <= 253
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
    };
    let parts: Vec<&str> = service.split(':').collect();
    let clean = prefix.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'%'))
        && !prefix.split('/').any(|part| part == "..");
    if !name(namespace) || parts.len() > 3 || !parts.iter().all(|part| name(part)) || !clean {
        return None;
    }
    let prefix = prefix.trim_end_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
    Some(format!("/api/v1/namespaces/{namespace}/services/{service}/proxy{prefix}"))
}

/// Whether an address is of a service in the cluster.
pub fn is_service(address: &str) -> bool {
    address.starts_with("svc://")
}

impl Transport {
    /// By HTTP or HTTPS.
    ///
    /// # Errors
    /// When it is no address, or a file of credentials can't be used.
    pub fn http(address: &str, credentials: &Credentials<'_>) -> Result<Self, Error> {
        let no_address = || Error::Address(answer::short(&without_password(address)));
        let mut base: Url = address.parse().map_err(|_| no_address())?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none_or(str::is_empty) {
            return Err(no_address());
        }
        if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
            // On a command line everybody on the machine reads it.
            return Err(no_address());
        }
        base.set_fragment(None);
        let authorization = authorization(credentials)?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            // A redirect elsewhere would take the credentials along.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = credentials.ca_file {
            let wrong = |why: String| Error::Credentials {
                path: path.display().to_string(),
                what: "--prometheus-ca-file",
                why,
            };
            let pem = read(path).map_err(wrong)?;
            let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
                .map_err(|error| wrong(error.to_string()))?;
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|error| Error::Client(error.into()))?;
        let address = base.as_str().trim_end_matches('/').to_owned();
        Ok(Self { address, limits: Limits::default(), way: Way::Http { client, base, authorization } })
    }

    /// Through the Kubernetes API, which takes the right to `get` `services/proxy`.
    ///
    /// # Errors
    /// When it is no address of a service.
    pub fn service(address: &str, client: kube::Client) -> Result<Self, Error> {
        let base = service_path(address).ok_or_else(|| Error::Address(answer::short(address)))?;
        Ok(Self {
            address: address.to_owned(),
            limits: Limits::default(),
            way: Way::Service { client: Box::new(client), base },
        })
    }

    /// What is asked, for people.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same with other limits.
    #[must_use]
    pub fn within(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The series of a query at each step from `first_s` to `last_s`.
    pub(super) async fn range(
        &self,
        promql: &str,
        first_s: i64,
        last_s: i64,
        step_s: i64,
    ) -> Result<Answer, Error> {
        let parameters = [
            ("query", promql.to_owned()),
            ("start", first_s.to_string()),
            ("end", last_s.to_string()),
            ("step", step_s.to_string()),
            ("timeout", format!("{}s", self.limits.time.as_secs().max(1))),
        ];
        let body = self.get("/api/v1/query_range", &parameters).await?;
        answer::matrix(&body).map_err(|source| self.refused(source))
    }

    /// The names of metrics that `selector` has in a period.
    pub(super) async fn names(
        &self,
        selector: &str,
        since_s: i64,
        until_s: i64,
    ) -> Result<Vec<String>, Error> {
        let parameters =
            [("match[]", selector.to_owned()), ("start", since_s.to_string()), ("end", until_s.to_string())];
        let body = self.get("/api/v1/label/__name__/values", &parameters).await?;
        answer::values(&body).map_err(|source| self.refused(source))
    }

    /// Asks something that costs nothing and that whatever speaks `PromQL` knows.
    pub(super) async fn greet(&self) -> Result<(), Error> {
        let limit = self.limits.greeting;
        match tokio::time::timeout(limit, self.ask("/api/v1/query", &[("query", "1".to_owned())])).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(Error::Silent { address: self.address.clone(), limit_s: limit.as_secs() }),
        }
    }

    fn refused(&self, source: Refusal) -> Error {
        Error::Garbage { address: self.address.clone(), source }
    }

    async fn get(&self, path: &str, parameters: &[(&str, String)]) -> Result<Vec<u8>, Error> {
        match tokio::time::timeout(self.limits.time, self.ask(path, parameters)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Slow { address: self.address.clone(), limit_s: self.limits.time.as_secs() }),
        }
    }

    async fn ask(&self, path: &str, parameters: &[(&str, String)]) -> Result<Vec<u8>, Error> {
        let away = |error: Box<dyn std::error::Error + Send + Sync>| Error::Away {
            address: self.address.clone(),
            source: error,
        };
        let (status, after, body) = match &self.way {
            Way::Http { client, base, authorization } => {
                let mut url = base.clone();
                url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
                url.query_pairs_mut().extend_pairs(parameters);
                let mut request = client.get(url);
                match authorization {
                    Authorization::None => {}
                    Authorization::Bearer(token) => request = request.bearer_auth(token),
                    Authorization::Basic(user, password) => {
                        request = request.basic_auth(user, Some(password));
                    }
                }
                let mut answer = request.send().await.map_err(|error| away(error.without_url().into()))?;
                let (status, after) = (answer.status(), after(answer.headers()));
                let mut body = Vec::new();
                while let Some(chunk) =
                    answer.chunk().await.map_err(|error| away(error.without_url().into()))?
                {
                    self.more(&mut body, &chunk)?;
                }
                (status, after, body)
            }
            Way::Service { client, base } => {
                // Only for its encoding.
                let mut url = Url::parse("http://cluster").map_err(|error| away(error.into()))?;
                url.query_pairs_mut().extend_pairs(parameters);
                let path = format!("{base}{path}?{}", url.query().unwrap_or_default());
                let request = Request::get(path)
                    .body(kube::client::Body::empty())
                    .map_err(|error| away(error.into()))?;
                let answer = client.send(request).await.map_err(|error| away(error.into()))?;
                let (status, after) = (answer.status(), after(answer.headers()));
                let (mut body, mut stream) = (Vec::new(), answer.into_body());
                while let Some(frame) = stream.frame().await {
                    if let Ok(chunk) = frame.map_err(|error| away(error.into()))?.into_data() {
                        self.more(&mut body, &chunk)?;
                    }
                }
                (status, after, body)
            }
        };
        if status.is_success() {
            return Ok(body);
        }
        let own = answer::error(&body);
        Err(Error::Status {
            address: self.address.clone(),
            status: status.as_u16(),
            own: own.is_some(),
            message: own.unwrap_or_else(|| message(status, &body)),
            after,
        })
    }

    fn more(&self, body: &mut Vec<u8>, chunk: &[u8]) -> Result<(), Error> {
        if body.len() + chunk.len() > self.limits.bytes {
            return Err(Error::Large { address: self.address.clone(), most: self.limits.bytes });
        }
        body.extend_from_slice(chunk);
        Ok(())
    }
}

/// The words of whoever stands before Prometheus: the API server's, else the first line.
fn message(status: StatusCode, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct OfKubernetes {
        message: String,
    }
    if let Ok(status) = serde_json::from_slice::<OfKubernetes>(body) {
        return answer::short(&status.message);
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(1000)]);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('<'));
    line.map_or_else(|| status.canonical_reason().unwrap_or("no reason is told").to_owned(), answer::short)
}

fn after(headers: &header::HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn without_password(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}…{}", &address[..scheme + 3], &address[at..]),
        _ => address.to_owned(),
    }
}

fn read(path: &Path) -> Result<String, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > LARGEST_SECRET {
        return Err("it is larger than 64 KiB".to_owned());
    }
    fs::read_to_string(path).map_err(|error| error.to_string())
}

/// What is said about who asks.
enum Authorization {
    None,
    Bearer(String),
    Basic(String, String),
}

fn authorization(credentials: &Credentials<'_>) -> Result<Authorization, Error> {
    let wrong = |path: &Path, what, why| Error::Credentials { path: path.display().to_string(), what, why };
    if let Some(path) = credentials.token_file {
        let wrong = |why| wrong(path, "--prometheus-token-file", why);
        let token = read(path).map_err(wrong)?.trim().to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("a token is one word of visible ASCII".to_owned()));
        }
        return Ok(Authorization::Bearer(token));
    }
    if let Some(path) = credentials.auth_file {
        let wrong = |why| wrong(path, "--prometheus-auth-file", why);
        let text = read(path).map_err(wrong)?;
        return match text.trim_end_matches(['\r', '\n']).split_once(':') {
            Some((user, password)) if !text.trim_end().contains('\n') => {
                Ok(Authorization::Basic(user.to_owned(), password.to_owned()))
            }
            _ => Err(wrong("it has to be one line, USER:PASSWORD".to_owned())),
        };
    }
    Ok(Authorization::None)
}
