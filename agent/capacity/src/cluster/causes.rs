//! What keeps pods waiting beside machines: quotas, volumes, claims of devices; and what their rules about each other mean.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    sync::Arc,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, ResourceQuota},
    resource::v1::{DeviceClass, ResourceClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, ObjectList},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;

use super::{
    PAGE, each, gangs, kubelets, objects,
    rights::{Granted, Right},
};
use crate::report::{
    names_namespaces, quantity,
    snapshot::{ClaimName, ClaimOf, ClaimState, Quota, Refusal, Snapshot},
};

/// A refusal by the API server older than this was overcome, or nobody tries any more: controllers try again at least every 16 minutes.
const REFUSED_WITHIN_S: f64 = 1000.0;
/// Volumes that are asked for at a time, and at most.
const AT_ONCE: usize = 16;
const MOST_VOLUMES: usize = 1000;
/// The class that takes claims which name none.
const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// A class of volumes that somebody makes by hand.
const BY_HAND: &str = "kubernetes.io/no-provisioner";

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);
type Names = BTreeSet<Name>;

/// Reads what pods that wait may wait for; what can't be seen is said.
pub(super) async fn read(client: &Client, snapshot: &mut Snapshot, may: &Granted) {
    refusals(client, snapshot, may).await;
    namespaces(client, snapshot, may).await;
    gangs::read(client, snapshot, may).await;
    kubelets::read(client, snapshot, may).await;
    let mut named: HashMap<ClaimOf, Names> = HashMap::new();
    for pod in &snapshot.pods {
        for claim in pod.wish.iter().flat_map(|wish| &wish.claims) {
            let Some(name) = &claim.name else { continue };
            named.entry(claim.of).or_default().insert((pod.namespace.clone(), name.clone()));
        }
    }
    if let Some(names) = named.get(&ClaimOf::Volume) {
        volumes(client, snapshot, may, names).await;
    }
    if let Some(names) = named.get(&ClaimOf::Devices) {
        devices(client, snapshot, may, names).await;
    }
}

/// Labels of namespaces, where pods name others by such.
async fn namespaces(client: &Client, snapshot: &mut Snapshot, may: &Granted) {
    const WHAT: &str = "which namespaces pods' affinities mean";
    if !snapshot.pods.iter().any(names_namespaces) {
        return;
    }
    if may.place(&Right::NAMESPACES).is_none() {
        snapshot.beside.not_seen.push(format!("{WHAT}: {}", may.lacking(&Right::NAMESPACES)));
        return;
    }
    let mut found = HashMap::new();
    let api = Api::<Namespace>::all(client.clone());
    let listed = each(&api, "namespaces", |namespace: Namespace| {
        let labels = namespace.metadata.labels.unwrap_or_default();
        let labels = labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        found.insert(namespace.metadata.name.unwrap_or_default().into(), labels);
    });
    match listed.await {
        Ok(()) => snapshot.beside.namespaces = Some(found),
        Err(error) => snapshot.beside.not_seen.push(format!("{WHAT}: {error}")),
    }
}

/// Pods that quotas, or others who have a say in it, kept from being made.
async fn refusals(client: &Client, snapshot: &mut Snapshot, may: &Granted) {
    const WHAT: &str = "pods that a quota keeps from being made";
    let Some(api) = may.api::<objects::Event>(client, &Right::EVENTS) else {
        snapshot.beside.not_seen.push(format!("{WHAT}: {}", may.lacking(&Right::EVENTS)));
        return;
    };
    let parameters = ListParams::default().fields("reason=FailedCreate").limit(PAGE);
    let events: ObjectList<objects::Event> = match api.list(&parameters).await {
        Ok(events) => events,
        Err(error) => {
            snapshot.beside.not_seen.push(format!("{WHAT}: events can't be listed: {error}"));
            return;
        }
    };
    let mut refusals: Vec<_> = events
        .items
        .into_iter()
        .map(objects::Event::refusal)
        .filter(|refusal| {
            refusal.at.is_some_and(|at| snapshot.at.duration_since(at).as_secs_f64() < REFUSED_WITHIN_S)
        })
        .collect();
    // Of each who tries again and again, the last word.
    refusals.sort_by(|one, other| {
        (&one.namespace, &one.owner, other.at).cmp(&(&other.namespace, &other.owner, one.at))
    });
    refusals.dedup_by(|later, first| later.namespace == first.namespace && later.owner == first.owner);
    if !refusals.is_empty() {
        quotas(client, snapshot, may, &refusals).await;
    }
    snapshot.beside.refusals = refusals;
}

/// What is left of the quotas now.
async fn quotas(client: &Client, snapshot: &mut Snapshot, may: &Granted, refusals: &[Refusal]) {
    const WHAT: &str = "what is left of quotas";
    let Some(api) = may.api::<ResourceQuota>(client, &Right::QUOTAS) else {
        snapshot.beside.not_seen.push(format!("{WHAT}: {}", may.lacking(&Right::QUOTAS)));
        return;
    };
    let refused = |namespace: &str| refusals.iter().any(|refusal| refusal.namespace == namespace);
    let listed = each::<ResourceQuota>(&api, "quotas", |quota| {
        let namespace = quota.metadata.namespace.unwrap_or_default();
        let Some(status) = quota.status.filter(|_| refused(&namespace)) else { return };
        let used = status.used.unwrap_or_default();
        let milli = |text: &str| quantity::parse(text, 1000);
        let amounts = status.hard.into_iter().flatten().filter_map(|(resource, hard)| {
            let used = used.get(&resource).and_then(|used| milli(&used.0)).unwrap_or(0);
            Some((resource, (used, milli(&hard.0)?)))
        });
        let name = quota.metadata.name.unwrap_or_default();
        snapshot.beside.quotas.push(Quota { namespace, name, milli: amounts.collect() });
    });
    if let Err(error) = listed.await {
        snapshot.beside.not_seen.push(format!("{WHAT}: {error}"));
    }
}

/// The claims that are named, by namespace and name; or why they can't be seen.
async fn listed<K>(
    client: &Client,
    may: &Granted,
    names: &Names,
    right: &Right,
    plural: &'static str,
) -> Result<BTreeMap<Name, K>, String>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api = may.api::<K>(client, right).ok_or_else(|| may.lacking(right))?;
    let mut found = BTreeMap::new();
    let all = each::<K>(&api, plural, |claim| {
        let meta = claim.meta();
        let (Some(namespace), Some(name)) = (meta.namespace.as_deref(), meta.name.as_deref()) else { return };
        let key = (Arc::from(namespace), Arc::from(name));
        if names.contains(&key) {
            found.insert(key, claim);
        }
    });
    all.await.map_err(|error| error.to_string())?;
    Ok(found)
}

async fn volumes(client: &Client, snapshot: &mut Snapshot, may: &Granted, names: &Names) {
    const WHAT: &str = "volumes of pods that wait";
    let listed =
        listed::<PersistentVolumeClaim>(client, may, names, &Right::VOLUME_CLAIMS, "volume claims").await;
    let found = match listed {
        Ok(found) => found,
        Err(why) => return snapshot.beside.not_seen.push(format!("{WHAT}: {why}")),
    };
    let classes = storage_classes(client, snapshot, may).await;
    let volume_of = |claim: &PersistentVolumeClaim| {
        claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty())
    };
    let bound: BTreeSet<String> = found.values().filter_map(volume_of).take(MOST_VOLUMES).collect();
    let reached = reached(client, snapshot, may, bound).await;
    for key in names {
        let state = match found.get(key) {
            None => ClaimState::Missing,
            Some(claim) => match volume_of(claim) {
                Some(volume) => reached.get(&volume).cloned().unwrap_or(ClaimState::Well),
                None => unbound(claim, classes.as_deref()),
            },
        };
        let (namespace, name) = key.clone();
        snapshot
            .beside
            .claims
            .insert((namespace, ClaimName { of: ClaimOf::Volume, name: Some(name) }), state);
    }
}

/// `None`: they can't be seen.
async fn storage_classes(
    client: &Client,
    snapshot: &mut Snapshot,
    may: &Granted,
) -> Option<Vec<StorageClass>> {
    const WHAT: &str = "who makes the volumes that pods wait for";
    if may.place(&Right::STORAGE_CLASSES).is_none() {
        snapshot.beside.not_seen.push(format!("{WHAT}: {}", may.lacking(&Right::STORAGE_CLASSES)));
        return None;
    }
    let mut classes = Vec::new();
    let api = Api::<StorageClass>::all(client.clone());
    match each(&api, "storage classes", |class| classes.push(class)).await {
        Ok(()) => Some(classes),
        Err(error) => {
            snapshot.beside.not_seen.push(format!("{WHAT}: {error}"));
            None
        }
    }
}

/// From which machines volumes are reached, of those that not all machines reach.
async fn reached(
    client: &Client,
    snapshot: &mut Snapshot,
    may: &Granted,
    volumes: BTreeSet<String>,
) -> HashMap<String, ClaimState> {
    const WHAT: &str = "machines that volumes can't be reached from";
    if volumes.is_empty() {
        return HashMap::new();
    }
    if may.place(&Right::VOLUMES).is_none() {
        snapshot.beside.not_seen.push(format!("{WHAT}: {}", may.lacking(&Right::VOLUMES)));
        return HashMap::new();
    }
    let api = Api::<PersistentVolume>::all(client.clone());
    let asked = stream::iter(volumes).map(|name| {
        let api = api.clone();
        async move { (api.get_opt(&name).await, name) }
    });
    let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
    let mut reached = HashMap::new();
    let mut failed = None;
    for (answer, name) in answers {
        match answer {
            Ok(None) => drop(reached.insert(name, ClaimState::Lost)),
            Ok(Some(volume)) => {
                let affinity = volume.spec.and_then(|spec| spec.node_affinity?.required);
                reached.extend(affinity.map(|required| (name, ClaimState::Within(required))));
            }
            Err(error) => failed = Some(error),
        }
    }
    snapshot.beside.not_seen.extend(failed.map(|error| format!("{WHAT}: {error}")));
    reached
}

/// Why a claim has no volume.
fn unbound(claim: &PersistentVolumeClaim, classes: Option<&[StorageClass]>) -> ClaimState {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase == Some("Lost") {
        return ClaimState::Lost;
    }
    let Some(classes) = classes else { return ClaimState::Well };
    let named = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    let class = match named {
        // Said to be none: only a volume that is there will do.
        Some("") => return ClaimState::Classless,
        Some(named) => match classes.iter().find(|class| class.metadata.name.as_deref() == Some(named)) {
            Some(class) => class,
            None => return ClaimState::NoClass(named.to_owned()),
        },
        None => {
            let is_default = |class: &&StorageClass| {
                let annotations = class.metadata.annotations.as_ref();
                annotations.and_then(|all| all.get(IS_DEFAULT)).is_some_and(|value| value == "true")
            };
            match classes.iter().find(is_default) {
                Some(class) => class,
                None => return ClaimState::Classless,
            }
        }
    };
    let name = class.metadata.name.clone().unwrap_or_default();
    if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") {
        return ClaimState::WaitsForMachine { class: name };
    }
    let by = if class.provisioner == BY_HAND { "an admin".to_owned() } else { class.provisioner.clone() };
    ClaimState::Unbound { class: name, by }
}

async fn devices(client: &Client, snapshot: &mut Snapshot, may: &Granted, names: &Names) {
    const WHAT: &str = "claims of devices of pods that wait";
    let listed = listed::<ResourceClaim>(client, may, names, &Right::DEVICE_CLAIMS, "device claims").await;
    let found = match listed {
        Ok(found) => found,
        Err(why) => return snapshot.beside.not_seen.push(format!("{WHAT}: {why}")),
    };
    let mut classes: Option<BTreeSet<String>> = None;
    if may.place(&Right::DEVICE_CLASSES).is_some() {
        let mut known = BTreeSet::new();
        let api = Api::<DeviceClass>::all(client.clone());
        match each(&api, "device classes", |class: DeviceClass| known.extend(class.metadata.name)).await {
            Ok(()) => classes = Some(known),
            Err(error) => snapshot.beside.not_seen.push(format!("{WHAT}: {error}")),
        }
    } else {
        snapshot.beside.not_seen.push(format!("{WHAT}: {}", may.lacking(&Right::DEVICE_CLASSES)));
    }
    for key in names {
        let state = match found.get(key) {
            None => ClaimState::Missing,
            Some(claim) => unallocated(claim, classes.as_ref()),
        };
        let (namespace, name) = key.clone();
        snapshot
            .beside
            .claims
            .insert((namespace, ClaimName { of: ClaimOf::Devices, name: Some(name) }), state);
    }
}

/// Why a claim has no devices, or which machines have those that it has.
fn unallocated(claim: &ResourceClaim, classes: Option<&BTreeSet<String>>) -> ClaimState {
    if let Some(allocation) = claim.status.as_ref().and_then(|status| status.allocation.as_ref()) {
        return allocation.node_selector.clone().map_or(ClaimState::Well, ClaimState::Within);
    }
    let requests = claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten());
    // Of several alternatives one is enough; they are not looked at.
    let mut named = requests.filter_map(|request| request.exactly.as_ref()).map(|one| &one.device_class_name);
    let missing = classes.and_then(|classes| named.clone().find(|name| !classes.contains(*name)));
    match (missing, named.next()) {
        (Some(name), _) => ClaimState::NoClass(name.clone()),
        (None, Some(class)) => ClaimState::WaitsForMachine { class: class.clone() },
        (None, None) => ClaimState::Well,
    }
}
