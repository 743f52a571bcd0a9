//! Who may do what: a client certificate or a bearer token says who calls (`TokenReview`), the API server says whether they may
//! (`SubjectAccessReview`, with the attributes that a kubelet asks with). Answers are kept for a short while.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, Method, StatusCode, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    caller::Caller,
    connections::{Connection, MAX_KNOWN},
};
use crate::identity::chain;

/// How long a token is believed.
const TOKEN_TTL: Duration = Duration::from_mins(1);
/// How long a right is believed. Short enough that a right taken away is gone soon.
const ALLOWED_TTL: Duration = Duration::from_mins(1);
/// How long a refusal is believed. Shorter: an admin who just granted a right tries again at once.
const DENIED_TTL: Duration = Duration::from_secs(5);
/// What a review may take.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Entries of each cache; callers are few, and floods must not grow it.
const MAX_CACHED: usize = 1024;

/// Asks and remembers.
pub(super) struct Guard {
    client: Client,
    node: String,
    tokens: Cache<[u8; 32], Option<Caller>>,
    rights: Cache<(Caller, &'static str, &'static str), bool>,
}

/// The rights that a request takes: each of the verbs on at least one of the subresources of `nodes`.
#[derive(Debug, PartialEq, Eq)]
struct Needed {
    verbs: Vec<&'static str>,
    subresources: Vec<&'static str>,
}

/// As a kubelet maps requests (pkg/kubelet/server/auth.go), except that a command by WebSocket, which is a GET, takes the right to
/// create as well.
fn needed(method: &Method, path: &str) -> Needed {
    let below =
        |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let any_below = |prefixes: &[&str]| prefixes.iter().any(|prefix| below(prefix));
    let mut verbs = vec![match *method {
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        // Anything unheard of takes the right that an exec takes.
        _ => "create",
    }];
    if any_below(&["/exec", "/attach", "/portForward", "/run"]) && verbs != ["create"] {
        verbs.push("create");
    }
    let fine_grained = [
        (["/pods", "/runningpods"].as_slice(), "pods"),
        (&["/healthz"], "healthz"),
        (&["/configz"], "configz"),
    ];
    let mut subresources: Vec<_> =
        fine_grained.iter().filter(|(paths, _)| any_below(paths)).map(|(_, name)| *name).collect();
    let coarse = [
        ("/stats", "stats"),
        ("/metrics", "metrics"),
        ("/logs", "log"),
        ("/checkpoint", "checkpoint"),
        ("/statusz", "statusz"),
        ("/flagz", "configz"),
    ];
    subresources.push(coarse.iter().find(|(path, _)| below(path)).map_or("proxy", |(_, name)| name));
    Needed { verbs, subresources }
}

impl Guard {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned(), tokens: Cache::default(), rights: Cache::default() }
    }

    /// Who sent these headers. A failing review proves nothing, so the caller is nobody.
    async fn authenticate(&self, headers: &HeaderMap) -> Option<Caller> {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return None;
        }
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.tokens.get(&key) {
            return known;
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: None },
            ..TokenReview::default()
        };
        let status = match self.review(&review).await {
            Ok(review) => review.status.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(error, "can't review a token of a client of the kubelet API");
                return None;
            }
        };
        let caller = status
            .user
            .filter(|_| status.authenticated == Some(true) && status.error.is_none())
            .and_then(Caller::from_review);
        let ttl = if caller.is_some() { TOKEN_TTL } else { DENIED_TTL };
        self.tokens.put(key, caller.clone(), ttl);
        caller
    }

    async fn may(&self, caller: &Caller, needed: &Needed) -> Result<bool, String> {
        for verb in &needed.verbs {
            let mut allowed = false;
            for subresource in &needed.subresources {
                allowed = allowed || self.has_right(caller, verb, subresource).await?;
            }
            if !allowed {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn has_right(
        &self,
        caller: &Caller,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, String> {
        let key = (caller.clone(), verb, subresource);
        if let Some(known) = self.rights.get(&key) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(caller.user.clone()),
                uid: caller.uid.clone(),
                groups: Some(caller.groups.iter().cloned().collect()),
                extra: Some(caller.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let allowed = self.review(&review).await?.status.is_some_and(|status| status.allowed);
        self.rights.put(key, allowed, if allowed { ALLOWED_TTL } else { DENIED_TTL });
        Ok(allowed)
    }

    async fn review<T>(&self, review: &T) -> Result<T, String>
    where
        T: kube::Resource<DynamicType = ()>
            + Clone
            + serde::Serialize
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<T> = Api::all(self.client.clone());
        match tokio::time::timeout(REVIEW_TIMEOUT, api.create(&PostParams::default(), review)).await {
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("the API server gave no answer within {} s", REVIEW_TIMEOUT.as_secs())),
        }
    }
}

/// The middleware: lets pass who may, and answers everyone else. Refusals end the connection, which others may need.
pub(super) async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let caller = match request.extensions().get::<Caller>() {
        Some(caller) => Some(caller.clone()),
        None => guard.authenticate(request.headers()).await,
    };
    let Some(caller) = caller else {
        return refusal(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
    };
    let needed = needed(request.method(), request.uri().path());
    match guard.may(&caller, &needed).await {
        Ok(true) => {
            let connection = request.extensions().get::<Arc<Connection>>();
            if connection.is_some_and(|connection| !connection.admit()) {
                tracing::warn!(
                    user = caller.user,
                    "all {MAX_KNOWN} connections of the kubelet API's clients are in use"
                );
                let message = format!(
                    "all {MAX_KNOWN} connections of this node are in use: try again when a log, an exec or a \
                     port-forward of it has ended"
                );
                return refusal(StatusCode::SERVICE_UNAVAILABLE, message);
            }
            next.run(request).await
        }
        Ok(false) => {
            let message = format!(
                "Forbidden (user={}, verb={}, resource=nodes, subresource(s)={})",
                caller.user,
                needed.verbs.join("+"),
                needed.subresources.join(",")
            );
            tracing::debug!(message, "kubelet API refused a request");
            refusal(StatusCode::FORBIDDEN, message)
        }
        Err(error) => {
            tracing::warn!(
                error,
                user = caller.user,
                "can't review the rights of a client of the kubelet API"
            );
            (StatusCode::INTERNAL_SERVER_ERROR, "the caller's rights can't be reviewed now").into_response()
        }
    }
}

fn refusal(status: StatusCode, message: String) -> Response {
    (status, [(header::CONNECTION, "close")], message).into_response()
}

/// Remembers answers until they are old.
struct Cache<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, ttl: Duration) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if entries.len() >= MAX_CACHED {
            entries.retain(|_, (until, _)| now < *until);
        }
        // Still full: a flood. Asking again is cheaper than growing.
        if entries.len() >= MAX_CACHED {
            entries.clear();
        }
        entries.insert(key, (now + ttl, value));
    }
}

#[cfg(test)]
mod tests;
