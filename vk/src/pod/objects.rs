//! Config maps, secrets, tokens and the little else that pods refer to: read one by one, only those that this node's pods name, which is
//! also all that a node may read.
//!
//! What was read once serves every pod that was bound before that moment; a pod bound later gets a fresh read. So a hundred pods of
//! a Job cost one read, and no pod starts with content from before its creation. What a running pod has in its files is watched, object by
//! object, as long as one does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Node, Pod, Secret, ServiceAccount},
    node::v1::RuntimeClass,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Notify;

use self::watch::{Caches, Watches};
use super::resources::Amounts;
use crate::identity::chain;

mod watch;

pub(crate) use watch::Following;

/// Why an object is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    #[error("{kind} {name:?} not found")]
    NotFound { kind: &'static str, name: String },
    #[error("can't read {kind} {name:?}: {message}")]
    Unreadable { kind: &'static str, name: String, message: String },
}

/// Which objects a pod names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct References {
    pub(crate) config_maps: BTreeSet<String>,
    pub(crate) secrets: BTreeSet<String>,
}

/// All that a pod's volumes name.
pub(crate) fn of_volumes(pod: &Pod) -> References {
    let mut found = References::default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    for volume in volumes {
        found.config_maps.extend(volume.config_map.as_ref().map(|source| source.name.clone()));
        found.secrets.extend(volume.secret.as_ref().and_then(|source| source.secret_name.clone()));
        let projected = volume.projected.as_ref().and_then(|source| source.sources.as_deref());
        for source in projected.unwrap_or_default() {
            found.config_maps.extend(source.config_map.as_ref().map(|source| source.name.clone()));
            found.secrets.extend(source.secret.as_ref().map(|source| source.name.clone()));
        }
    }
    found
}

/// What the references led to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects {
    config_maps: BTreeMap<String, Result<Arc<ConfigMap>, Missing>>,
    secrets: BTreeMap<String, Result<Arc<Secret>, Missing>>,
}

impl Objects {
    /// `None`: optional and not there.
    pub(crate) fn config_map(&self, name: &str, optional: bool) -> Result<Option<&ConfigMap>, Missing> {
        find(&self.config_maps, "configmap", name, optional)
    }

    /// `None`: optional and not there.
    pub(crate) fn secret(&self, name: &str, optional: bool) -> Result<Option<&Secret>, Missing> {
        find(&self.secrets, "secret", name, optional)
    }
}

fn find<'a, T>(
    objects: &'a BTreeMap<String, Result<Arc<T>, Missing>>,
    kind: &'static str,
    name: &str,
    optional: bool,
) -> Result<Option<&'a T>, Missing> {
    match objects.get(name) {
        Some(Ok(object)) => Ok(Some(object)),
        Some(Err(Missing::NotFound { .. })) | None if optional => Ok(None),
        Some(Err(missing)) => Err(missing.clone()),
        None => Err(Missing::NotFound { kind, name: name.to_owned() }),
    }
}

/// A service account's token for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) requested_at: Timestamp,
    pub(crate) expires_at: Timestamp,
}

impl Token {
    /// A kubelet's rule: after 80 % of its life, or a day.
    pub(crate) fn renew_at(&self) -> Timestamp {
        let life = self.expires_at.as_second() - self.requested_at.as_second();
        let after = (life / 5 * 4).min(24 * 3600);
        Timestamp::from_second(self.requested_at.as_second() + after).unwrap_or(self.expires_at)
    }
}

/// Reads objects for the node's pods.
pub(crate) struct Reader {
    client: Client,
    caches: Arc<Caches>,
    watches: Watches,
    node: Mutex<Option<(Instant, Arc<Node>)>>,
}

impl Reader {
    pub(crate) fn new(client: Client) -> Self {
        let caches = Arc::<Caches>::default();
        let watches = Watches::new(client.clone(), Arc::clone(&caches));
        Self { client, caches, watches, node: Mutex::default() }
    }

    /// Reads what the references lead to; nothing in the answer was read before `not_before`.
    pub(crate) async fn load(
        &self,
        namespace: &str,
        references: &References,
        not_before: Instant,
    ) -> Objects {
        let mut objects = Objects::default();
        for name in &references.config_maps {
            let api = Api::namespaced(self.client.clone(), namespace);
            let object = read(&self.caches.config_maps, api, "configmap", namespace, name, not_before).await;
            objects.config_maps.insert(name.clone(), object);
        }
        for name in &references.secrets {
            let api = Api::namespaced(self.client.clone(), namespace);
            let object = read(&self.caches.secrets, api, "secret", namespace, name, not_before).await;
            objects.secrets.insert(name.clone(), object);
        }
        objects
    }

    /// Wakes whoever has these objects in use when one of them has changed since.
    pub(crate) fn follow(&self, namespace: &str, objects: &Objects, wake: &Arc<Notify>) -> Following {
        self.watches.follow(namespace, objects, wake)
    }

    /// A token of the pod's service account, bound to the pod.
    pub(crate) async fn token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration_seconds: i64,
    ) -> Result<Token, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account =
            pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.map(str::to_owned).into_iter().collect(),
                expiration_seconds: Some(expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            },
            ..Default::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let requested_at = Timestamp::now();
        let asked =
            allowed(|| async { api.create_token_request(account, &PostParams::default(), &request).await })
                .await;
        let status = asked.map_err(|error| chain(&error))?.status.ok_or("the answer has no token")?;
        Ok(Token { text: status.token, requested_at, expires_at: status.expiration_timestamp.0 })
    }

    /// The node, as of so long ago at most.
    pub(crate) async fn node(&self, name: &str, age: Duration) -> Result<Arc<Node>, kube::Error> {
        if let Some((at, node)) = &*self.node.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < age
        {
            return Ok(Arc::clone(node));
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let node = Arc::new(api.get(name).await?);
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&node)));
        Ok(node)
    }

    /// The handler that a `RuntimeClass` names.
    pub(crate) async fn runtime_handler(&self, class: &str) -> Result<String, kube::Error> {
        let api: Api<RuntimeClass> = Api::all(self.client.clone());
        Ok(api.get(class).await?.handler)
    }
}

/// What a node has for pods.
pub(crate) fn allocatable(node: &Node) -> Amounts {
    node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default()
}

/// Asks for what this node may have because of a pod. The authorizer hears that the pod is here by a watch of its own, and may hear it
/// later than we: for a moment, no is no answer.
async fn allowed<T, F>(ask: impl Fn() -> F) -> kube::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    for pause in [100, 200, 400, 800, 1500].map(Duration::from_millis) {
        match ask().await {
            Err(kube::Error::Api(status)) if status.is_forbidden() => tokio::time::sleep(pause).await,
            answer => return answer,
        }
    }
    ask().await
}

async fn read<T>(
    cache: &watch::Cache<T>,
    api: Api<T>,
    kind: &'static str,
    namespace: &str,
    name: &str,
    not_before: Instant,
) -> Result<Arc<T>, Missing>
where
    T: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    if let Some(object) = cache.get(namespace, name, not_before) {
        return Ok(object);
    }
    let asked_at = Instant::now();
    match allowed(|| api.get_opt(name)).await {
        Ok(Some(object)) => Ok(cache.put(namespace, name, asked_at, object)),
        Ok(None) => Err(Missing::NotFound { kind, name: name.to_owned() }),
        Err(error) => Err(Missing::Unreadable { kind, name: name.to_owned(), message: chain(&error) }),
    }
}

#[cfg(test)]
impl Objects {
    /// From what the API server would send.
    pub(crate) fn of(config_maps: &[serde_json::Value], secrets: &[serde_json::Value]) -> Self {
        fn map<T: serde::de::DeserializeOwned>(
            objects: &[serde_json::Value],
        ) -> BTreeMap<String, Result<Arc<T>, Missing>> {
            let named = |object: &serde_json::Value| {
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                (name, Ok(Arc::new(serde_json::from_value(object.clone()).unwrap())))
            };
            objects.iter().map(named).collect()
        }
        Self { config_maps: map(config_maps), secrets: map(secrets) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_volumes_only_named_objects_are_read() {
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "containers": [{ "name": "c", "envFrom": [{ "configMapRef": { "name": "m1" } }] }],
            "volumes": [
                { "name": "a", "secret": { "secretName": "s2" } },
                { "name": "b", "projected": { "sources": [
                    { "configMap": { "name": "m2" } }, { "serviceAccountToken": { "path": "token" } },
                ] } },
                { "name": "c", "emptyDir": {} },
            ],
        } }))
        .unwrap();
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let expected = References { config_maps: set(&["m2"]), secrets: set(&["s2"]) };
        assert_eq!(of_volumes(&pod), expected);
    }

    #[test]
    fn an_unreadable_object_is_no_missing_optional_one() {
        let unreadable =
            Missing::Unreadable { kind: "secret", name: "s".into(), message: "forbidden".into() };
        let objects = Objects {
            secrets: BTreeMap::from([("s".to_owned(), Err(unreadable.clone()))]),
            ..Default::default()
        };
        assert_eq!(objects.secret("s", true), Err(unreadable));
        assert_eq!(objects.secret("other", true), Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_allowed_yet_is_asked_for_again_and_what_never_is_is_told() {
        use std::cell::Cell;

        let no = || kube::core::Status::failure("no relationship found", "Forbidden").with_code(403).boxed();
        let asked = Cell::new(0);
        let ask = |yes_from: u32| {
            asked.set(asked.get() + 1);
            let answer = if asked.get() < yes_from { Err(kube::Error::Api(no())) } else { Ok(asked.get()) };
            std::future::ready(answer)
        };
        assert_eq!(allowed(|| ask(3)).await.unwrap(), 3);
        asked.set(0);
        let refused = allowed(|| ask(u32::MAX)).await.unwrap_err();
        assert_eq!(chain(&refused), "no relationship found");
        assert_eq!(asked.get(), 6);
    }

    #[test]
    fn tokens_are_renewed_well_before_they_expire() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let token =
            |life: i64| Token { text: String::new(), requested_at: at(1000), expires_at: at(1000 + life) };
        assert_eq!(token(3600).renew_at(), at(1000 + 2880));
        assert_eq!(token(10 * 24 * 3600).renew_at(), at(1000 + 24 * 3600));
    }
}
