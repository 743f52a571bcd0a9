//! Config maps, secrets, tokens and the little else that pods refer to: read one by one, only those that this node's pods name, which is
//! also all that a node may read.
//!
//! What was read once serves every pod that was bound before that moment; a pod bound later gets a fresh read. So a hundred pods of
//! a Job cost one read, and no pod starts with content from before its creation. What a running pod has in its files is watched, object by
//! object, as long as one does.
//!
//! While the API server is away what it said last serves, whatever its age: of all that the node's pods name it is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec, TokenRequestStatus},
    core::v1::{ConfigMap, Node, Pod, Secret, ServiceAccount},
    node::v1::RuntimeClass,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Notify;

use self::{
    asking::{Asking, allowed},
    cache::{Cache, Caches, Said, Slot},
    watch::Watches,
};
use super::resources::Amounts;
use crate::identity::chain;

mod asking;
mod cache;
mod watch;

pub(crate) use watch::{Following, Kind};

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

impl References {
    pub(crate) fn extend(&mut self, others: Self) {
        self.config_maps.extend(others.config_maps);
        self.secrets.extend(others.secrets);
    }
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

/// What a pod names, kept for as long as this is.
#[derive(Default)]
pub(crate) struct Held {
    config_maps: BTreeMap<String, Arc<Slot<ConfigMap>>>,
    secrets: BTreeMap<String, Arc<Slot<Secret>>>,
}

/// Reads objects for the node's pods.
pub(crate) struct Reader {
    client: Client,
    asking: Asking,
    caches: Arc<Caches>,
    watches: Watches,
    node: Mutex<Option<(Instant, Arc<Node>)>>,
    /// By `RuntimeClass`. Kubernetes lets none of them change.
    handlers: Mutex<BTreeMap<String, String>>,
}

impl Reader {
    pub(crate) fn new(client: Client) -> Self {
        let caches = Arc::<Caches>::default();
        let watches = Watches::new(client.clone(), Arc::clone(&caches));
        let (node, handlers) = (Mutex::default(), Mutex::default());
        Self { client, asking: Asking::default(), caches, watches, node, handlers }
    }

    /// Has what these lead to kept as long as `held` is, from when it is read. Which of them were not held before.
    pub(crate) fn hold(&self, namespace: &str, references: &References, held: &mut Held) -> References {
        let (config_maps, secrets) = (&references.config_maps, &references.secrets);
        References {
            config_maps: hold(&self.caches.config_maps, namespace, config_maps, &mut held.config_maps),
            secrets: hold(&self.caches.secrets, namespace, secrets, &mut held.secrets),
        }
    }

    /// Reads what the references lead to; nothing in the answer was read before `not_before`, unless the API server is away.
    pub(crate) async fn load(
        &self,
        namespace: &str,
        references: &References,
        not_before: Instant,
    ) -> Objects {
        let mut objects = Objects::default();
        for name in &references.config_maps {
            let api = Api::namespaced(self.client.clone(), namespace);
            let slot = self.caches.config_maps.slot(namespace, name);
            let object = read(&self.asking, &slot, api, "configmap", name, not_before).await;
            objects.config_maps.insert(name.clone(), object);
        }
        for name in &references.secrets {
            let api = Api::namespaced(self.client.clone(), namespace);
            let slot = self.caches.secrets.slot(namespace, name);
            let object = read(&self.asking, &slot, api, "secret", name, not_before).await;
            objects.secrets.insert(name.clone(), object);
        }
        objects
    }

    /// Wakes whoever has these objects in use when one of them has changed since.
    pub(crate) fn follow(&self, namespace: &str, objects: &Objects, wake: &Arc<Notify>) -> Following {
        self.watches.follow(namespace, objects, wake)
    }

    /// A token of the pod's service account, bound to the pod. `older`: one that still holds, for while the API server is away.
    pub(crate) async fn token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration_seconds: i64,
        older: Option<Token>,
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
        let parameters = PostParams::default();
        let ask = || async {
            let status = api.create_token_request(account, &parameters, &request).await?.status;
            let token = |status: TokenRequestStatus| Token {
                text: status.token,
                requested_at,
                expires_at: status.expiration_timestamp.0,
            };
            Ok(status.map(token))
        };
        let asked = allowed(|| self.asking.ask(older.clone().map(Some), ask())).await;
        asked.map_err(|error| chain(&error))?.ok_or_else(|| "the answer has no token".to_owned())
    }

    /// The node, as of so long ago at most; while the API server is away, as it was last, unless `age` is zero: as of now or not at all.
    pub(crate) async fn node(&self, name: &str, age: Duration) -> Result<Arc<Node>, kube::Error> {
        let last = || self.node.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last().clone();
        if let Some((at, node)) = &known
            && at.elapsed() < age
        {
            return Ok(Arc::clone(node));
        }
        let older = known.filter(|_| !age.is_zero()).map(|(_, node)| node);
        let api: Api<Node> = Api::all(self.client.clone());
        let ask = async {
            let node = Arc::new(api.get(name).await?);
            *last() = Some((Instant::now(), Arc::clone(&node)));
            Ok(node)
        };
        self.asking.ask(older, ask).await
    }

    /// The handler that a `RuntimeClass` names.
    pub(crate) async fn runtime_handler(&self, class: &str) -> Result<String, kube::Error> {
        let known = || self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let older = known().get(class).cloned();
        let api: Api<RuntimeClass> = Api::all(self.client.clone());
        let handler = self.asking.ask(older, async { Ok(api.get(class).await?.handler) }).await?;
        known().insert(class.to_owned(), handler.clone());
        Ok(handler)
    }
}

/// What a node has for pods.
pub(crate) fn allocatable(node: &Node) -> Amounts {
    node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default()
}

async fn read<T>(
    asking: &Asking,
    slot: &Slot<T>,
    api: Api<T>,
    kind: &'static str,
    name: &str,
    not_before: Instant,
) -> Result<Arc<T>, Missing>
where
    T: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    if let Some(object) = slot.get(not_before) {
        return Ok(object);
    }
    let ask = || async {
        let asked_at = Instant::now();
        let Some(object) = api.get_opt(name).await? else {
            slot.gone(asked_at);
            return Ok(Said::Gone);
        };
        Ok(Said::There(slot.put(asked_at, object)))
    };
    match allowed(|| asking.ask(slot.last(), ask())).await {
        Ok(Said::There(object)) => Ok(object),
        Ok(Said::Gone) => Err(Missing::NotFound { kind, name: name.to_owned() }),
        Err(error) => Err(Missing::Unreadable { kind, name: name.to_owned(), message: chain(&error) }),
    }
}

fn hold<T>(
    cache: &Cache<T>,
    namespace: &str,
    names: &BTreeSet<String>,
    held: &mut BTreeMap<String, Arc<Slot<T>>>,
) -> BTreeSet<String> {
    let new: BTreeSet<String> = names.iter().filter(|name| !held.contains_key(*name)).cloned().collect();
    held.extend(new.iter().map(|name| (name.clone(), cache.slot(namespace, name))));
    new
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
    use tokio::sync::watch;

    use super::*;
    use crate::fake_api::{self, Answer};

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
    async fn a_token_that_still_holds_serves_while_no_other_is_to_be_had() {
        let (_silence, until) = watch::channel(());
        let (client, _) = fake_api::client(move |_| Answer::Late(until.clone()));
        let reader = Reader::new(client);
        let token = Token {
            text: "t".to_owned(),
            requested_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
        };
        let pod = Pod::default();
        for seconds in [10, 1] {
            let began = tokio::time::Instant::now();
            assert_eq!(reader.token(&pod, None, 3600, Some(token.clone())).await, Ok(token.clone()));
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
        assert!(reader.token(&pod, None, 3600, None).await.is_err());
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
