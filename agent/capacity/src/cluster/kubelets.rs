//! What kubelets do with pods whose devices are on several NUMA nodes: their configuration, which they tell through the API server's proxy.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use http::Request;
use kube::Client;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::rights::{Granted, Right};
use crate::report::snapshot::{Node, NumaPolicy, Snapshot};

/// Kubelets that are asked at a time.
const AT_ONCE: usize = 32;
/// What all of them together may take.
const ALL_WITHIN: Duration = Duration::from_secs(15);

/// `/configz`, as much of it as is read.
#[derive(Debug, Deserialize)]
struct Configuration {
    kubeletconfig: Kubelet,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kubelet {
    topology_manager_policy: Option<String>,
}

impl Configuration {
    fn policy(&self) -> NumaPolicy {
        match self.kubeletconfig.topology_manager_policy.as_deref() {
            Some("single-numa-node") => NumaPolicy::SingleNode,
            Some("restricted") => NumaPolicy::Restricted,
            _ => NumaPolicy::Lenient,
        }
    }
}

/// Asks the kubelets of machines where it matters now; what can't be seen is said.
pub(super) async fn read(client: &Client, snapshot: &mut Snapshot, may: &Granted) {
    const WHAT: &str = "whether kubelets refuse pods whose devices are on several NUMA nodes";
    let torn = snapshot.nodes.iter().filter(|node| is_torn(node));
    let machines: Vec<Arc<str>> = torn.map(|node| node.name.clone()).collect();
    if machines.is_empty() {
        return;
    }
    if may.place(&Right::KUBELETS).is_none() {
        snapshot.beside.not_seen.push(format!(
            "{WHAT}, unless one has refused a pod: {} (--show-rbac says what else that right opens)",
            may.lacking_alone(&Right::KUBELETS)
        ));
        return;
    }
    let deadline = Instant::now() + ALL_WITHIN;
    let mut answers = stream::iter(machines)
        .map(|machine| async move {
            let answer = timeout_at(deadline, ask(client, &machine)).await;
            (machine, answer.unwrap_or_else(|_| Err("there was no time left for it".to_owned())))
        })
        .buffer_unordered(AT_ONCE);
    let mut silent: BTreeMap<Arc<str>, String> = BTreeMap::new();
    while let Some((machine, answer)) = answers.next().await {
        match answer {
            Ok(policy) => drop(snapshot.beside.numa_policies.insert(machine, policy)),
            Err(why) => drop(silent.insert(machine, why)),
        }
    }
    if let Some((machine, why)) = silent.first_key_value() {
        snapshot.beside.not_seen.push(format!("{WHAT}: {} do not tell ({machine}: {why})", silent.len()));
    }
}

/// Whether its free devices of some resource are on several NUMA nodes.
fn is_torn(node: &Node) -> bool {
    node.groups.values().any(|group| group.numa.zip(group.node).is_some_and(|(numa, all)| numa < all))
}

async fn ask(client: &Client, machine: &str) -> Result<NumaPolicy, String> {
    let path = format!("/api/v1/nodes/{machine}/proxy/configz");
    let request = Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
    let told: Configuration = client.request(request).await.map_err(|error| error.to_string())?;
    Ok(told.policy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_policy_is_read_of_its_configuration() {
        let policy = |text: &str| serde_json::from_str::<Configuration>(text).unwrap().policy();
        assert_eq!(
            policy(r#"{"kubeletconfig":{"topologyManagerPolicy":"single-numa-node","port":10250}}"#),
            NumaPolicy::SingleNode
        );
        assert_eq!(
            policy(r#"{"kubeletconfig":{"topologyManagerPolicy":"restricted"}}"#),
            NumaPolicy::Restricted
        );
        assert_eq!(policy(r#"{"kubeletconfig":{}}"#), NumaPolicy::Lenient);
        assert_eq!(
            policy(r#"{"kubeletconfig":{"topologyManagerPolicy":"best-effort"}}"#),
            NumaPolicy::Lenient
        );
    }
}
