//! What a pod asks for against what it was given, and what was given against what is in force: containers are resized in place.
//!
//! Both are on record in the pod's folder, because nobody else knows them: the API server has what is asked for, the runtime only
//! knows cgroups. Pure but for that file.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use serde::{Deserialize, Serialize};

use super::{
    devices::Assigned,
    probe::lasting,
    resources::{Amounts, milli, whole},
};
use crate::provider::observed::ObservedPod;

const FILE: &str = "allocation.json";

/// Resources by container: of those that can be resized, which are all but plain init containers.
type ByContainer = BTreeMap<String, ResourceRequirements>;

/// On record about a pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Allocation {
    /// What it was given.
    given: ByContainer,
    /// What its running containers have.
    in_force: ByContainer,
    /// What its cgroup was made or changed for.
    #[serde(default)]
    cgroup: ByContainer,
    /// Devices, which never change.
    #[serde(default)]
    pub(crate) devices: Assigned,
}

/// The file can't be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write {}", path.display())]
pub(crate) struct RecordError {
    path: PathBuf,
    source: io::Error,
}

/// A running container that does not have what it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Its name in the pod.
    pub(crate) name: String,
    /// The provider's ID.
    pub(crate) id: String,
    /// By its policy it is started anew.
    pub(crate) restart: bool,
}

impl Allocation {
    /// All that is asked for is given, and containers will be made with it.
    pub(crate) fn of(spec: &PodSpec) -> Self {
        let given: ByContainer = lasting(spec)
            .map(|container| (container.name.clone(), container.resources.clone().unwrap_or_default()))
            .collect();
        Self { in_force: given.clone(), cgroup: given.clone(), given, devices: Assigned::new() }
    }

    /// What is on record in a pod's folder. What can't be read is as good as none.
    pub(crate) fn load(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// Puts it on record: after a crash either this is read or what was there before. Nothing waits for the disk: after a power failure
    /// no container runs, and a pod without a record is given what it asks for.
    pub(crate) fn save(&self, folder: &Path) -> Result<(), RecordError> {
        let path = folder.join(FILE);
        let failed = |source| RecordError { path: path.clone(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let fresh = folder.join(format!(".{FILE}"));
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path)).map_err(failed)
    }

    /// Whether the spec asks for something else than was given.
    pub(crate) fn is_resize(&self, spec: &PodSpec) -> bool {
        lasting(spec).any(|container| !same(self.given.get(&container.name), container.resources.as_ref()))
    }

    /// Gives what the spec asks for.
    pub(crate) fn give(&mut self, spec: &PodSpec) {
        self.given = Self::of(spec).given;
    }

    /// The pod as if it asked for what it was given.
    pub(crate) fn given(&self, pod: &Pod) -> Pod {
        with(pod, &self.given)
    }

    /// The pod as if it asked for what its containers have.
    pub(crate) fn in_force(&self, pod: &Pod) -> Pod {
        with(pod, &self.in_force)
    }

    /// The memory that its containers were made to ask for.
    pub(crate) fn memory_requests(&self) -> BTreeMap<String, Quantity> {
        let memory = |(name, resources): (&String, &ResourceRequirements)| {
            let memory = resources.requests.as_ref()?.get("memory")?;
            Some((name.clone(), memory.clone()))
        };
        self.in_force.iter().filter_map(memory).collect()
    }

    /// A container has been made, or changed, so that it has what it was given. Whether that is news.
    pub(crate) fn enforced(&mut self, name: &str) -> bool {
        let Some(given) = self.given.get(name) else { return false };
        if self.in_force.get(name) == Some(given) {
            return false;
        }
        self.in_force.insert(name.to_owned(), given.clone());
        true
    }

    /// Whether the pod's cgroup is that of what was given.
    pub(crate) fn is_cgroup_in_force(&self) -> bool {
        self.given.iter().all(|(name, given)| same(Some(given), self.cgroup.get(name)))
    }

    /// The pod's cgroup is that of what was given.
    pub(crate) fn cgroup_enforced(&mut self) {
        self.cgroup.clone_from(&self.given);
    }

    /// What is to be done so that all running containers have what they were given; those that shrink come first.
    pub(crate) fn changes(&self, spec: &PodSpec, seen: &ObservedPod) -> Vec<Change> {
        let mut changes: Vec<(bool, Change)> = lasting(spec)
            .filter_map(|container| {
                let run = seen.container(&container.name).filter(|seen| seen.is_running())?;
                let (given, now) = (self.given.get(&container.name), self.in_force.get(&container.name));
                if same(given, now) {
                    return None;
                }
                let name = container.name.clone();
                let restart = differing(given, now).any(|resource| restarts_for(container, resource));
                let grows = memory_limit(given) > memory_limit(now);
                Some((grows, Change { name, id: run.id.clone(), restart }))
            })
            .collect();
        changes.sort_by_key(|(grows, _)| *grows);
        changes.into_iter().map(|(_, change)| change).collect()
    }
}

fn with(pod: &Pod, resources: &ByContainer) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        let all = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        for container in all {
            if let Some(resources) = resources.get(&container.name) {
                container.resources = Some(resources.clone());
            }
        }
    }
    pod
}

/// What can be resized, in numbers: CPU and memory, requests and limits.
fn numbers(resources: Option<&ResourceRequirements>) -> [(&'static str, Option<i64>); 4] {
    let side = |amounts: Option<&Amounts>| {
        let of = |name: &str| amounts.and_then(|amounts| amounts.get(name));
        [("cpu", of("cpu").and_then(milli)), ("memory", of("memory").and_then(whole))]
    };
    let [cpu, memory] = side(resources.and_then(|resources| resources.requests.as_ref()));
    let [cpu_limit, memory_limit] = side(resources.and_then(|resources| resources.limits.as_ref()));
    [cpu, memory, cpu_limit, memory_limit]
}

fn same(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    numbers(a) == numbers(b)
}

fn differing(
    a: Option<&ResourceRequirements>,
    b: Option<&ResourceRequirements>,
) -> impl Iterator<Item = &'static str> {
    numbers(a).into_iter().zip(numbers(b)).filter(|(a, b)| a != b).map(|((name, _), _)| name)
}

fn memory_limit(resources: Option<&ResourceRequirements>) -> i64 {
    numbers(resources)[3].1.unwrap_or(i64::MAX)
}

fn restarts_for(container: &Container, resource: &str) -> bool {
    let policies = container.resize_policy.as_deref().unwrap_or_default();
    policies
        .iter()
        .any(|policy| policy.resource_name == resource && policy.restart_policy == "RestartContainer")
}

/// A kubelet's text for events about a resize: the pod's resources as JSON.
pub(crate) fn summary(prefix: &str, pod: &Pod, generation: i64, error: &str) -> String {
    #[derive(Serialize)]
    struct One<'a> {
        name: &'a str,
        resources: ResourceRequirements,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<One<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        containers: Vec<One<'a>>,
        generation: i64,
        #[serde(skip_serializing_if = "str::is_empty")]
        error: &'a str,
    }
    let one = |container: &Container| container.resources.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let mains = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let summary = Summary {
        init_containers: inits.iter().map(|c| One { name: &c.name, resources: one(c) }).collect(),
        containers: mains.iter().map(|c| One { name: &c.name, resources: one(c) }).collect(),
        generation,
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(text) => format!("{prefix}: {text}"),
        Err(_) => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::provider::observed::{self, State};

    fn pod(main: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "spec": {
            "initContainers": [{ "name": "once", "resources": { "requests": { "cpu": "1" } } }],
            "containers": [
                { "name": "main", "resources": main,
                  "resizePolicy": [{ "resourceName": "memory", "restartPolicy": "RestartContainer" }] },
                { "name": "other", "resources": { "limits": { "memory": "1Gi" } } },
            ],
        } }))
        .unwrap()
    }

    fn running(names: &[&str]) -> ObservedPod {
        let containers = names.iter().map(|name| observed::Container {
            id: format!("id of {name}"),
            sandbox_id: "s".to_owned(),
            name: (*name).to_owned(),
            attempt: 0,
            state: State::Running { started_at: jiff::Timestamp::UNIX_EPOCH },
            image: String::new(),
            image_id: String::new(),
            asked_image: None,
            user: None,
            resources: None,
        });
        ObservedPod { sandboxes: Vec::new(), containers: containers.collect() }
    }

    #[test]
    fn what_was_given_stands_until_more_is() {
        let old = pod(&json!({ "requests": { "cpu": "100m" } }));
        let mut allocation = Allocation::of(old.spec.as_ref().unwrap());
        assert!(!allocation.is_resize(pod(&json!({ "requests": { "cpu": "0.1" } })).spec.as_ref().unwrap()));
        let new = pod(&json!({ "requests": { "cpu": "200m" } }));
        let spec = new.spec.as_ref().unwrap();
        assert!(allocation.is_resize(spec));
        assert_eq!(allocation.given(&new), old);
        assert!(allocation.changes(spec, &running(&["main"])).is_empty());
        allocation.give(spec);
        assert!(!allocation.is_resize(spec));
        assert_eq!((allocation.given(&new), allocation.in_force(&new)), (new.clone(), old));
        let change = Change { name: "main".to_owned(), id: "id of main".to_owned(), restart: false };
        assert_eq!(allocation.changes(spec, &running(&["main", "other"])), [change]);
        assert!(allocation.changes(spec, &running(&["other"])).is_empty());
        assert!(allocation.enforced("main") && !allocation.enforced("main"));
        assert!(allocation.changes(spec, &running(&["main"])).is_empty());
    }

    #[test]
    fn a_policy_asks_for_a_restart() {
        let mut allocation = Allocation::of(pod(&json!({})).spec.as_ref().unwrap());
        let new = pod(&json!({ "requests": { "memory": "1Mi" } }));
        allocation.give(new.spec.as_ref().unwrap());
        assert!(allocation.changes(new.spec.as_ref().unwrap(), &running(&["main"]))[0].restart);
    }

    #[test]
    fn the_record_is_read_back_and_garbage_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod");
        assert_eq!(Allocation::load(&path), None);
        let allocation = Allocation::of(pod(&json!({ "limits": { "cpu": "1" } })).spec.as_ref().unwrap());
        allocation.save(&path).unwrap();
        assert_eq!(Allocation::load(&path), Some(allocation));
        fs::write(path.join(FILE), "{").unwrap();
        assert_eq!(Allocation::load(&path), None);
    }

    #[test]
    fn events_list_resources_as_a_kubelet_does() {
        let mut pod = pod(&json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "2" } }));
        pod.spec.as_mut().unwrap().init_containers = None;
        assert_eq!(
            summary("Pod resize Deferred", &pod, 2, "why"),
            "Pod resize Deferred: {\"containers\":[{\"name\":\"main\",\"resources\":{\"limits\":{\"cpu\":\"2\"},\"requests\":\
             {\"cpu\":\"1\"}}},{\"name\":\"other\",\"resources\":{\"limits\":{\"memory\":\"1Gi\"}}}],\"generation\":2,\"error\":\"why\"}"
        );
    }
}
