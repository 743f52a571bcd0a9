//! Switching isolation off on all machines at once, for the chart's hook: afterwards there would be nobody to remove the pins.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::kinds::DaemonSet;

/// The variable that says what isolation does.
const MODE: &str = "SPILLWAY_ISOLATION";
/// Who changes the `DaemonSet`.
const MANAGER: &str = "spillway-agent-uninstall";
/// How long the agents may take. Helm itself gives up after 5 minutes, unless it is told otherwise.
const WITHIN: Duration = Duration::from_mins(4);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Tells all agents of a `DaemonSet`, `NAMESPACE/NAME`, that isolation is off, and waits until they have removed what is in their kernels: an
/// agent is not ready before.
pub(super) async fn run(set: &str) -> anyhow::Result<()> {
    let (namespace, name) = set.split_once('/').with_context(|| format!("{set:?} is not NAMESPACE/NAME"))?;
    let config = Config::incluster().context("there is no service account to reach the API server with")?;
    let sets: Api<DaemonSet> = Api::namespaced(Client::try_from(config)?, namespace);
    let Some(found) = sets.get_opt(name).await.with_context(|| format!("can't read DaemonSet {set}"))? else {
        tracing::info!("there is no DaemonSet {set}: nothing to do");
        return Ok(());
    };
    if is_off(&found) {
        tracing::info!("isolation is off already");
        return Ok(());
    }
    change(&sets, name).await.with_context(|| format!("can't change DaemonSet {set}"))?;
    let begin = Instant::now();
    loop {
        let now = sets.get(name).await.with_context(|| format!("can't read DaemonSet {set}"))?;
        if is_done(&now) {
            tracing::info!("isolation is off on all machines");
            return Ok(());
        }
        if begin.elapsed() >= WITHIN {
            bail!(
                "agents of DaemonSet {set} are not ready: isolation may be in force there. Look at their logs"
            );
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Switches it off, and leaves what was changed to whoever applies it next: Helm, too, refuses to set what another manager has set.
async fn change(sets: &Api<DaemonSet>, name: &str) -> kube::Result<()> {
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let mut set = sets.patch(name, &params, &Patch::Strategic(switched_off())).await?;
    while let Some(patch) = release(&set) {
        match sets.patch(name, &params, &Patch::Merge(patch)).await {
            Ok(now) => set = now,
            // Somebody else has written meanwhile.
            Err(kube::Error::Api(status)) if status.code == 409 => set = sets.get(name).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes this manager out of those that have a say, if it is among them. Only what was read is replaced.
fn release(set: &DaemonSet) -> Option<Value> {
    let managers = set.metadata.managed_fields.as_ref()?;
    let ours = |one: &ManagedFieldsEntry| one.manager.as_deref() == Some(MANAGER);
    managers.iter().any(ours).then(|| {
        let others: Vec<_> = managers.iter().filter(|one| !ours(one)).collect();
        json!({ "metadata": { "resourceVersion": set.metadata.resource_version, "managedFields": others } })
    })
}

/// All at once: devices go on being used while no agent runs.
fn switched_off() -> Value {
    json!({"spec": {
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%", "maxSurge": 0}},
        "template": {"spec": {"containers": [{"name": "agent", "env": [{"name": MODE, "value": "off"}]}]}},
    }})
}

fn is_off(set: &DaemonSet) -> bool {
    let pods = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let mut variables =
        pods.into_iter().flat_map(|pod| &pod.containers).flat_map(|container| container.env.iter().flatten());
    variables.any(|variable| variable.name == MODE && variable.value.as_deref() == Some("off"))
}

/// Whether every machine has a new agent, and it is ready.
fn is_done(set: &DaemonSet) -> bool {
    let Some(status) = &set.status else { return false };
    let wanted = status.desired_number_scheduled;
    status.observed_generation.is_some_and(|seen| Some(seen) == set.metadata.generation)
        && status.updated_number_scheduled.unwrap_or(0) == wanted
        && status.number_ready == wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_left_to_others() {
        let managed = |managers: &[&str]| -> DaemonSet {
            let fields: Vec<_> = managers.iter().map(|name| json!({ "manager": name })).collect();
            serde_json::from_value(json!({ "metadata": { "resourceVersion": "7", "managedFields": fields } }))
                .unwrap()
        };
        assert_eq!(release(&managed(&[])), None);
        assert_eq!(release(&managed(&["helm", "kube-controller-manager"])), None);
        let patch = release(&managed(&["helm", MANAGER, "kube-controller-manager"])).unwrap();
        let left = json!([{ "manager": "helm" }, { "manager": "kube-controller-manager" }]);
        assert_eq!(patch, json!({ "metadata": { "resourceVersion": "7", "managedFields": left } }));
    }

    fn set(mode: &str, generation: i64, numbers: [i32; 3]) -> DaemonSet {
        let [wanted, updated, ready] = numbers;
        serde_json::from_value(json!({
            "metadata": {"generation": 2},
            "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "agent", "env": [{"name": MODE, "value": mode}]}]}}},
            "status": {
                "observedGeneration": generation, "desiredNumberScheduled": wanted, "updatedNumberScheduled": updated,
                "numberReady": ready, "currentNumberScheduled": wanted, "numberMisscheduled": 0,
            },
        }))
        .unwrap()
    }

    #[test]
    fn it_is_done_when_every_machine_has_a_new_agent_that_is_ready() {
        assert!(is_done(&set("off", 2, [3, 3, 3])));
        assert!(is_done(&set("off", 2, [0, 0, 0])), "no machine, no pins");
        for not_yet in [
            set("off", 1, [3, 3, 3]),
            set("off", 2, [3, 2, 3]),
            set("off", 2, [3, 3, 2]),
            DaemonSet::default(),
        ] {
            assert!(!is_done(&not_yet));
        }
        assert!(is_off(&set("off", 1, [1, 1, 1])) && !is_off(&set("enforce", 1, [1, 1, 1])));
        assert!(!is_off(&DaemonSet::default()));
    }
}
