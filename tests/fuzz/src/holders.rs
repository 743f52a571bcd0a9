//! What the kubelet says of who holds what: up to a zero byte the text of its device checkpoint, then the bytes of a PodResources reply.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use spillway_agent::holders::{
    Holders, Name, checkpoint, compare, is_name, is_uid, pod_logs,
    pod_resources::{Listing, listed},
};
use spillway_proto::podresources::ListPodResourcesResponse;

/// Reads both, and compares them.
pub fn run(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (file, reply) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let holders = match checkpoint::parse(file) {
        Ok(holders) => holders,
        Err(why) => {
            assert!(!why.is_empty() && !why.contains(char::is_control), "{why:?}");
            Holders::default()
        }
    };
    read(&holders);
    let reply = ListPodResourcesResponse::decode(reply).unwrap_or_default();
    let listing = listed(reply.pod_resources);
    answered(&listing);
    compared(holders, &listing);
    joined(&listing, file);
}

fn read(holders: &Holders) {
    let mut seen = BTreeSet::new();
    for holding in &holders.holdings {
        assert!(is_uid(&holding.pod.uid) && is_name(&holding.container) && !holding.devices.is_empty());
        assert!(!holding.pod.uid.contains("..") || !holding.pod.uid.contains('/'));
        assert!(seen.insert((&holding.pod.uid, &holding.container, &holding.resource)), "{holding:?} twice");
    }
}

fn answered(listing: &Listing) {
    let mut seen = BTreeSet::new();
    for held in &listing.held {
        let containers = listing.pods.get(&(held.namespace.clone(), held.name.clone()));
        assert!(containers.is_some_and(|pod| pod.contains(&held.container)), "{held:?} is of no pod");
        assert!(!held.devices.is_empty());
        assert!(
            seen.insert((&held.namespace, &held.name, &held.container, &held.resource)),
            "{held:?} twice"
        );
    }
    assert!(listing.pods.keys().all(|(namespace, name)| is_name(namespace) && is_name(name)));
}

fn compared(mut holders: Holders, listing: &Listing) {
    assert!(compare::missing(&holders, &listing.held).iter().all(|missing| listing.held.contains(missing)));
    assert_eq!(compare::active(&holders, listing), holders, "nothing is known of pods without a name");
    let names = compare::names(&holders, &listing.held);
    for (uid, (namespace, name)) in &names {
        let own: Vec<_> = holders.holdings.iter().filter(|holding| holding.pod.uid == *uid).collect();
        let fits = listing.held.iter().any(|held| {
            (&held.namespace, &held.name) == (namespace, name)
                && own.iter().any(|own| (&own.resource, &own.devices) == (&held.resource, &held.devices))
        });
        assert!(fits, "{uid} is no {namespace}/{name}");
    }
    named(&mut holders, &names);
    let active = compare::active(&holders, listing);
    for holding in &holders.holdings {
        let kept = active.holdings.contains(holding);
        let known = holding.pod.name.is_some();
        let as_listed = listing.held.iter().any(|held| {
            Some(&held.name) == holding.pod.name.as_ref()
                && Some(&held.namespace) == holding.pod.namespace.as_ref()
                && (&held.container, &held.resource, &held.devices)
                    == (&holding.container, &holding.resource, &holding.devices)
        });
        assert!(kept || (known && !as_listed), "{holding:?} is held, and left out");
    }
    assert!(active.holdings.iter().all(|holding| holders.holdings.contains(holding)));
    let nobody = compare::active(&holders, &Listing::default());
    assert!(nobody.holdings.iter().all(|holding| holding.pod.name.is_none()));
}

fn named(holders: &mut Holders, names: &BTreeMap<String, Name>) {
    for holding in &mut holders.holdings {
        if let Some((namespace, name)) = names.get(&holding.pod.uid) {
            holding.pod.namespace = Some(namespace.clone());
            holding.pod.name = Some(name.clone());
        }
    }
}

/// Without the checkpoint, UIDs come from folders of logs: here one for each pod, and whatever lines the file has.
fn joined(listing: &Listing, file: &[u8]) {
    let mut folders: Vec<(String, Name)> =
        String::from_utf8_lossy(file).split(['\n', '"']).filter_map(pod_logs::parse).collect();
    for (number, (namespace, name)) in listing.pods.keys().enumerate() {
        let pod = (format!("uid-{number}"), (namespace.clone(), name.clone()));
        assert_eq!(pod_logs::parse(&format!("{namespace}_{name}_uid-{number}")).as_ref(), Some(&pod));
        folders.push(pod);
    }
    assert!(
        folders.iter().all(|(uid, (namespace, name))| is_uid(uid) && is_name(namespace) && is_name(name))
    );
    let joined = compare::join(&listing.held, &folders);
    for holding in &joined.holdings {
        let name =
            (holding.pod.namespace.clone().unwrap_or_default(), holding.pod.name.clone().unwrap_or_default());
        let uids: Vec<_> = folders.iter().filter(|(_, other)| *other == name).collect();
        assert!(uids.len() == 1 && uids[0].0 == holding.pod.uid, "which {name:?} it is can't be told");
    }
    assert!(joined.holdings.len() <= listing.held.len());
}
