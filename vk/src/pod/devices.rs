//! Devices that the node offers as extended resources: which container has which, each by one pod at a time. What was given is on record
//! in the pods' folders and read from there when the process starts.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::{admission::Refusal, allocation::Allocation, files, probe::is_sidecar, resources::whole};

/// CDI names of what each container has.
pub(crate) type Assigned = BTreeMap<String, Vec<String>>;

/// All of the node's.
#[derive(Default)]
pub(crate) struct Devices {
    /// CDI names by resource.
    offered: BTreeMap<String, Vec<String>>,
    /// Who has them, by pod UID.
    held: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl Devices {
    /// What is on record below `root` stays with whom it was given to.
    pub(crate) fn new(offered: BTreeMap<String, Vec<String>>, root: &Path) -> Self {
        let mut held = BTreeMap::new();
        if !offered.is_empty() {
            for uid in files::pod_uids(root) {
                let folder = files::PodFolder::new(root, &uid);
                let devices = Allocation::load(folder.path()).map(|record| record.devices);
                held.insert(uid, devices.into_iter().flatten().flat_map(|(_, names)| names).collect());
            }
        }
        Self { offered, held: Mutex::new(held) }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<String>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives every container of a new pod what it asks for, or the pod nothing.
    pub(crate) fn assign(&self, uid: &str, spec: &PodSpec) -> Result<Assigned, Refusal> {
        if self.offered.is_empty() {
            return Ok(Assigned::new());
        }
        let mut held = self.held();
        let others = held.iter().filter(|(other, _)| *other != uid).flat_map(|(_, devices)| devices);
        let mut taken: BTreeSet<&str> = others.map(String::as_str).collect();
        let mut assigned = Assigned::new();
        // Of init containers that are done before the next container begins.
        let mut again: BTreeSet<&str> = BTreeSet::new();
        let inits =
            spec.init_containers.iter().flatten().map(|container| (container, !is_sidecar(container)));
        for (container, gives_back) in inits.chain(spec.containers.iter().map(|container| (container, false)))
        {
            let mut own = Vec::new();
            for (resource, names) in &self.offered {
                let wanted = wanted(container, resource);
                let names = || names.iter().map(String::as_str);
                let used = names().filter(|name| again.contains(name));
                let free = names().filter(|name| !taken.contains(name));
                let chosen: Vec<&str> = used.chain(free).take(wanted).collect();
                if chosen.len() < wanted {
                    return Err(unavailable(resource, wanted, chosen.len()));
                }
                own.extend(chosen);
            }
            for name in &own {
                taken.insert(name);
                if gives_back {
                    again.insert(name);
                } else {
                    again.remove(name);
                }
            }
            if !own.is_empty() {
                assigned.insert(container.name.clone(), own.into_iter().map(str::to_owned).collect());
            }
        }
        let all = assigned.values().flatten().cloned().collect();
        drop(taken);
        held.insert(uid.to_owned(), all);
        Ok(assigned)
    }

    /// The pod has ended.
    pub(crate) fn free(&self, uid: &str) {
        self.held().remove(uid);
    }
}

fn wanted(container: &Container, resource: &str) -> usize {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let wanted = limits.and_then(|limits| limits.get(resource)).and_then(whole).unwrap_or(0);
    usize::try_from(wanted).unwrap_or(0)
}

/// As a kubelet's device manager says it.
fn unavailable(resource: &str, wanted: usize, available: usize) -> Refusal {
    Refusal {
        reason: "UnexpectedAdmissionError".to_owned(),
        message: format!(
            "Allocate failed due to requested number of devices unavailable for {resource}. Requested: {wanted}, Available: {available}, \
             which is unexpected"
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn offered() -> BTreeMap<String, Vec<String>> {
        [("x.y/gpu".to_owned(), ["a", "b", "c"].map(|name| format!("x.y/gpu={name}")).to_vec())].into()
    }

    fn spec(inits: &[(u32, bool)], mains: &[u32]) -> PodSpec {
        let gpus = |count: &u32| json!({ "limits": { "x.y/gpu": count.to_string() } });
        let inits: Vec<_> = inits
            .iter()
            .enumerate()
            .map(|(n, (count, sidecar))| {
                let policy = sidecar.then_some("Always");
                json!({ "name": format!("i{n}"), "resources": gpus(count), "restartPolicy": policy })
            })
            .collect();
        let mains: Vec<_> = mains
            .iter()
            .enumerate()
            .map(|(n, count)| json!({ "name": format!("c{n}"), "resources": gpus(count) }))
            .collect();
        serde_json::from_value(json!({ "initContainers": inits, "containers": mains })).unwrap()
    }

    fn letters(assigned: &Assigned) -> String {
        let one = |(container, names): (&String, &Vec<String>)| {
            let names: String = names.iter().map(|name| name.trim_start_matches("x.y/gpu=")).collect();
            format!("{container}:{names}")
        };
        assigned.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_device_is_one_pods() {
        let folder = tempfile::tempdir().unwrap();
        let devices = Devices::new(offered(), folder.path());
        assert_eq!(letters(&devices.assign("1", &spec(&[], &[2])).unwrap()), "c0:ab");
        let refusal = devices.assign("2", &spec(&[], &[1, 1])).unwrap_err();
        assert_eq!(refusal.reason, "UnexpectedAdmissionError");
        assert!(refusal.message.ends_with("x.y/gpu. Requested: 1, Available: 0, which is unexpected"));
        assert_eq!(letters(&devices.assign("3", &spec(&[], &[1])).unwrap()), "c0:c", "the refused has none");
        devices.free("1");
        assert_eq!(letters(&devices.assign("2", &spec(&[], &[1, 1])).unwrap()), "c0:a c1:b");
        assert_eq!(letters(&devices.assign("4", &spec(&[], &[0])).unwrap()), "");
    }

    #[test]
    fn what_an_init_container_had_serves_again_and_a_sidecars_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let devices = Devices::new(offered(), folder.path());
        let assigned = devices.assign("1", &spec(&[(2, false), (1, true)], &[1, 1])).unwrap();
        assert_eq!(letters(&assigned), "c0:b c1:c i0:ab i1:a");
    }

    #[test]
    fn records_outlive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let first = Devices::new(offered(), folder.path());
        let mut record = Allocation::of(&PodSpec::default());
        record.devices = first.assign("1", &spec(&[], &[2])).unwrap();
        record.save(files::PodFolder::new(folder.path(), "1").path()).unwrap();
        let second = Devices::new(offered(), folder.path());
        assert_eq!(letters(&second.assign("2", &spec(&[], &[1])).unwrap()), "c0:c");
        assert!(second.assign("3", &spec(&[], &[1])).is_err());
    }
}
