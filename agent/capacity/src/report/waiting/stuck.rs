//! Pods that have their machine, and that it can't start: an image that can't be pulled, a Secret that is not there.

use std::collections::BTreeMap;

use super::{
    super::{
        snapshot::{Pod, Stuck},
        state::Cluster,
        words::clipped,
    },
    OTHERS_WORDS, Reason, Waiting, asks,
};

/// All of them, those of one maker that stand for the same reason together.
pub(super) fn stuck<'a>(cluster: &'a Cluster<'a>) -> impl Iterator<Item = Waiting> + 'a {
    let placed = cluster.machines.iter().flat_map(|machine| machine.pods.iter());
    let mut groups: BTreeMap<_, Vec<(&Pod, &Stuck)>> = BTreeMap::new();
    for pod in placed.chain(&cluster.elsewhere).copied().filter(|pod| !pod.ending) {
        let Some(stuck) = &pod.stuck else { continue };
        let maker = pod.owner.as_deref().unwrap_or(&pod.name);
        groups.entry((&*pod.namespace, maker, &*stuck.why)).or_default().push((pod, stuck));
    }
    groups.into_values().filter_map(|pods| {
        let (pod, stuck) = *pods.iter().min_by_key(|(pod, _)| (pod.created, &pod.name))?;
        let (asks, key) = asks(cluster, pod);
        Some(Waiting {
            namespace: pod.namespace.to_string(),
            pod: Some(pod.name.to_string()),
            owner: pod.owner.as_ref().map(ToString::to_string),
            pods: Some(pods.len()),
            asks,
            resource: key.map(|(resource, _)| cluster.snapshot.names.name(resource).to_owned()),
            amount: key.map_or(0, |(_, asked)| asked),
            since: pod.created,
            waits_s: None,
            reason: Reason::NotStarted,
            why: stuck.words(pod.node.as_deref().unwrap_or_default()),
            starts_if: vec![stuck.remedy().to_owned()],
        })
    })
}

impl Stuck {
    fn words(&self, node: &str) -> String {
        let said = self.said.iter().map(|said| format!(": {}", clipped(said, OTHERS_WORDS)));
        format!(
            "has its place on {node}, which can't start its container {}: {}{}",
            self.container,
            self.why,
            said.collect::<String>()
        )
    }

    fn remedy(&self) -> &'static str {
        match self.why.as_str() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "RegistryUnavailable" => {
                "when the machine can pull the image: its name, the registry and imagePullSecrets have a say"
            }
            "ErrImageNeverPull" => "with the image on the machine, or with another imagePullPolicy",
            "CreateContainerConfigError" => "when the ConfigMap or Secret that it names is there",
            _ => "when that is mended; `kubectl describe pod` tells more",
        }
    }
}
