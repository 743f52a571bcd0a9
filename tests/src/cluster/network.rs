//! The cluster's network: a bridge in the control plane's network namespace, to which every machine has a cable. Addresses are the
//! same in every cluster; clusters don't see each other.

use std::process::Command;

use anyhow::{Context as _, bail};

use super::machine::Machine;

/// The control plane's address.
pub const CONTROL_PLANE: &str = "10.201.0.1";
/// What services get addresses from.
pub const SERVICES: &str = "10.96.0.0/16";
/// Cluster DNS.
pub const DNS: &str = "10.96.0.10";
/// What all pods get addresses from.
pub const PODS: &str = "10.244.0.0/16";
/// The DNS domain.
pub const DOMAIN: &str = "cluster.local";

/// The address of the machine with this index.
pub fn address(index: usize) -> String {
    format!("10.201.0.{}", 11 + index)
}

/// What the pods on the machine with this index get addresses from: 1,022 of them.
pub fn pods(index: usize) -> String {
    format!("10.244.{}.0/22", 4 * index)
}

/// Makes the bridge.
///
/// # Errors
/// When a command fails.
pub fn make_bridge(control_plane: &Machine) -> anyhow::Result<()> {
    control_plane
        .shell(&format!(
            "ip link add br0 type bridge; ip addr add {CONTROL_PLANE}/24 dev br0; ip link set br0 up"
        ))
        .map(drop)
}

/// Lays a cable from the bridge to a machine, and routes its pods.
///
/// # Errors
/// When a command fails.
pub fn connect(control_plane: &Machine, machine: &Machine, index: usize) -> anyhow::Result<()> {
    let port = format!("port{index}");
    let output = Command::new("ip")
        .args(["link", "add", &port, "netns", &control_plane.first.pid.to_string(), "type", "veth"])
        .args(["peer", "name", "eth0", "netns", &machine.first.pid.to_string()])
        .output()
        .context("can't run ip")?;
    if !output.status.success() {
        bail!("can't connect machine {}: {}", machine.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    let (address, pods) = (address(index), pods(index));
    machine.shell(&format!(
        "ip addr add {address}/24 dev eth0; ip link set eth0 up; ip route add default via {CONTROL_PLANE}"
    ))?;
    control_plane.shell(&format!("ip link set {port} master br0 up; ip route add {pods} via {address}"))?;
    Ok(())
}

/// The CNI configuration of a machine.
pub fn cni(index: usize) -> String {
    let pods = pods(index);
    format!(
        r#"{{
  "cniVersion": "1.0.0", "name": "spillway",
  "plugins": [
    {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{pods}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#
    )
}
