//! Who has which port of the machine. A scheduler keeps two pods from one port; who names the node in the pod's spec has asked no
//! scheduler, and the second pod is refused as a kubelet refuses it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::PodSpec;

use super::{probe::lasting, spec};
use crate::provider::runtime::{HostPort, Protocol};

/// By pod UID.
#[derive(Default)]
pub(crate) struct Ports(Mutex<BTreeMap<String, Vec<HostPort>>>);

/// Another pod has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken;

impl Ports {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Vec<HostPort>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod has its ports already.
    pub(crate) fn hold(&self, uid: &str, spec: &PodSpec) {
        let ports = of(spec);
        if !ports.is_empty() {
            self.pods().insert(uid.to_owned(), ports);
        }
    }

    /// Takes a pod's ports, all or none.
    pub(crate) fn claim(&self, uid: &str, spec: &PodSpec) -> Result<(), Taken> {
        let ports = of(spec);
        if ports.is_empty() {
            return Ok(());
        }
        let mut pods = self.pods();
        let others = pods.iter().filter(|(other, _)| *other != uid).flat_map(|(_, ports)| ports);
        if others.into_iter().any(|other| ports.iter().any(|port| conflict(port, other))) {
            return Err(Taken);
        }
        pods.insert(uid.to_owned(), ports);
        Ok(())
    }

    /// The pod has ended.
    pub(crate) fn free(&self, uid: &str) {
        self.pods().remove(uid);
    }
}

/// Those of containers that run beside each other.
fn of(spec: &PodSpec) -> Vec<HostPort> {
    lasting(spec).flat_map(spec::host_ports).collect()
}

fn conflict(one: &HostPort, other: &HostPort) -> bool {
    let any = |ip: Option<IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
    let key = |port: &HostPort| -> (Protocol, u16) { (port.protocol, port.host_port) };
    key(one) == key(other) && (any(one.host_ip) || any(other.host_ip) || one.host_ip == other.host_ip)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(port: u16, ip: &str, protocol: &str) -> PodSpec {
        let port = json!({ "containerPort": 1, "hostPort": port, "hostIP": ip, "protocol": protocol });
        serde_json::from_value(json!({ "containers": [{ "name": "c", "ports": [port] }] })).unwrap()
    }

    #[test]
    fn a_port_has_one_pod_an_address_and_a_protocol() {
        let ports = Ports::default();
        assert_eq!(ports.claim("a", &spec(80, "10.0.0.1", "TCP")), Ok(()));
        // The same pod again is no other; another address, protocol or port is no conflict.
        assert_eq!(ports.claim("a", &spec(80, "10.0.0.1", "TCP")), Ok(()));
        assert_eq!(ports.claim("b", &spec(80, "10.0.0.2", "TCP")), Ok(()));
        assert_eq!(ports.claim("c", &spec(80, "10.0.0.1", "UDP")), Ok(()));
        assert_eq!(ports.claim("d", &spec(81, "10.0.0.1", "TCP")), Ok(()));
        assert_eq!(ports.claim("e", &spec(80, "10.0.0.1", "TCP")), Err(Taken));
        assert_eq!(ports.claim("e", &spec(81, "", "TCP")), Err(Taken));
        assert_eq!(ports.claim("e", &spec(81, "0.0.0.0", "TCP")), Err(Taken));
        ports.free("d");
        assert_eq!(ports.claim("e", &spec(81, "", "TCP")), Ok(()));
    }

    #[test]
    fn init_containers_that_end_need_no_port_of_their_own() {
        let ports = Ports::default();
        let init = |policy: Option<&str>| {
            let container = json!({ "name": "i", "restartPolicy": policy, "ports": [{ "containerPort": 1, "hostPort": 7 }] });
            serde_json::from_value(json!({ "containers": [], "initContainers": [container] })).unwrap()
        };
        ports.hold("a", &init(None));
        assert_eq!(ports.claim("b", &init(Some("Always"))), Ok(()));
        assert_eq!(ports.claim("c", &init(Some("Always"))), Err(Taken));
    }
}
