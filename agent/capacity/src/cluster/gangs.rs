//! Pods that start together or not at all, as those who schedule them see it: `PodGroup`s of Volcano and of the coscheduling plugin, `Workload`s of Kueue. Most clusters
//! have none of them.

use std::sync::Arc;

use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::Value;

use super::{
    each,
    rights::{Granted, Right, Where},
};
use crate::report::snapshot::{Gang, Member, Snapshot};

/// Kueue's gate and label.
const KUEUE: &str = "kueue.x-k8s.io/";

/// Reads those that pods that wait belong to, and all of Kueue's that wait; what can't be seen is said.
pub(super) async fn read(client: &Client, snapshot: &mut Snapshot, may: &Granted) {
    let wishes = || snapshot.pods.iter().filter_map(|pod| pod.wish.as_deref());
    let grouped = wishes().any(|wish| wish.group.is_some());
    let gated = wishes().any(|wish| wish.gates.iter().any(|gate| gate.starts_with(KUEUE)));
    if grouped {
        for (right, versions) in
            [(&Right::VOLCANO_GROUPS, ["v1beta1"].as_slice()), (&Right::POD_GROUPS, &["v1alpha1"])]
        {
            list(client, snapshot, may, right, "PodGroup", versions, true).await;
        }
    }
    // Jobs that wait in a queue of Kueue's have no pods: they are looked for, but that they can't be seen is news only where a pod waits for Kueue.
    list(client, snapshot, may, &Right::WORKLOADS, "Workload", &["v1beta2", "v1beta1"], gated).await;
}

async fn list(
    client: &Client,
    snapshot: &mut Snapshot,
    may: &Granted,
    right: &Right,
    kind: &str,
    versions: &[&str],
    missed: bool,
) {
    let Some(place) = may.place(right) else {
        if missed {
            snapshot.beside.not_seen.push(format!("{}: {}", right.purpose, may.lacking(right)));
        }
        return;
    };
    for version in versions {
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk(right.group, version, kind),
            right.resource,
        );
        let api: Api<DynamicObject> = match (place, may.only_in(right)) {
            (Where::Namespace, Some(namespace)) => Api::namespaced_with(client.clone(), namespace, &resource),
            _ => Api::all_with(client.clone(), &resource),
        };
        let mut found = Vec::new();
        match each(&api, right.resource, |object| found.extend(gangs(kind, &object))).await {
            Ok(()) => {
                snapshot.beside.gangs.extend(found);
                return;
            }
            // There are no such objects in this cluster, or none of this version.
            Err(error) if error.status().is_some_and(|status| status.code == 404) => {}
            Err(error) => {
                snapshot.beside.not_seen.push(format!("{}: {error}", right.purpose));
                return;
            }
        }
    }
}

/// The gang that an object is, by all that its pods are known by.
fn gangs(kind: &str, object: &DynamicObject) -> Vec<((Arc<str>, Member), Gang)> {
    let (Some(namespace), Some(name)) = (&object.metadata.namespace, &object.metadata.name) else {
        return Vec::new();
    };
    let namespace: Arc<str> = namespace.as_str().into();
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let condition = |kinds: &[&str], is: &str| {
        let mut all = status["conditions"].as_array().into_iter().flatten();
        all.find(|one| one["type"].as_str().is_some_and(|kind| kinds.contains(&kind)) && one["status"] == is)
    };
    let since = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    if kind == "PodGroup" {
        let gang = Gang {
            name: format!("PodGroup {name}"),
            pods: spec["minMember"].as_i64(),
            running: status["running"].as_i64().unwrap_or(0),
            said: condition(&["Unschedulable"], "True").and_then(|one| text(&one["message"])),
            queue: text(&spec["queue"]),
            since,
        };
        return vec![((namespace, Member::Group(name.as_str().into())), gang)];
    }
    // What is admitted waits for machines, as its pods say.
    if condition(&["Admitted", "Finished"], "True").is_some() {
        return Vec::new();
    }
    let pods = spec["podSets"].as_array().into_iter().flatten().map(|set| set["count"].as_i64().unwrap_or(1));
    let waits = condition(&["QuotaReserved", "Admitted"], "False");
    let gang = Gang {
        name: format!("Workload {name}"),
        pods: Some(pods.fold(0, i64::saturating_add)),
        running: 0,
        said: waits.and_then(|one| text(&one["message"])),
        queue: text(&spec["queueName"]),
        since,
    };
    let owners = object.metadata.owner_references.iter().flatten();
    let owners = owners.map(|owner| Member::Owner(format!("{}/{}", owner.kind, owner.name).into()));
    owners.map(|owner| ((namespace.clone(), owner), gang.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, yaml: &str) -> Vec<((Arc<str>, Member), Gang)> {
        gangs(kind, &serde_saphyr::from_str(yaml).unwrap())
    }

    #[test]
    fn a_pod_group_says_how_many_start_together() {
        let found = read(
            "PodGroup",
            "apiVersion: scheduling.volcano.sh/v1beta1
kind: PodGroup
metadata: {name: train, namespace: a, creationTimestamp: '2026-11-22T11:00:00Z'}
spec: {minMember: 4, queue: default}
status: {phase: Pending, running: 1, conditions: [{type: Unschedulable, status: 'True', message: 3/4 tasks in gang unschedulable}]}
",
        );
        let gang = Gang {
            name: "PodGroup train".to_owned(),
            pods: Some(4),
            running: 1,
            said: Some("3/4 tasks in gang unschedulable".to_owned()),
            queue: Some("default".to_owned()),
            since: Some("2026-11-22T11:00:00Z".parse().unwrap()),
        };
        assert_eq!(found, [(("a".into(), Member::Group("train".into())), gang)]);
    }

    #[test]
    fn a_workload_waits_until_it_is_admitted() {
        let workload = |conditions: &str| {
            format!(
                "apiVersion: kueue.x-k8s.io/v1beta2
kind: Workload
metadata: {{name: w, namespace: a, ownerReferences: [{{apiVersion: batch/v1, kind: Job, name: sweep, uid: u}}]}}
spec: {{queueName: q, podSets: [{{name: main, count: 3}}, {{name: more}}]}}
status: {{conditions: [{conditions}]}}
"
            )
        };
        let waits = read("Workload", &workload("{type: QuotaReserved, status: 'False', message: no quota}"));
        let [((_, member), gang)] = &waits[..] else { panic!("{waits:?}") };
        assert_eq!(*member, Member::Owner("Job/sweep".into()));
        assert_eq!(
            (gang.pods, gang.said.as_deref(), gang.queue.as_deref()),
            (Some(4), Some("no quota"), Some("q"))
        );
        for done in ["Admitted", "Finished"] {
            assert_eq!(read("Workload", &workload(&format!("{{type: {done}, status: 'True'}}"))), []);
        }
        // Nobody's words are taken on trust.
        assert_eq!(
            read(
                "Workload",
                "{apiVersion: a/v1, kind: Workload, metadata: {name: w, namespace: a}, spec: 7, status: [x]}"
            ),
            []
        );
    }
}
