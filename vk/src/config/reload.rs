//! What of a changed file can be put in force while pods run: how the node object looks and how much it offers. The rest stays as it was at the
//! start, and is said.

use super::{Config, NodeConfig};

/// The difference between what is in force and what the file says now.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// By the node's name.
    pub nodes: Vec<NodeConfig>,
    /// What stays as it was, in words for the admin.
    pub refused: Vec<String>,
}

/// Compares what runs with what a restart would run.
pub fn changes(running: &[Config], wanted: &[Config]) -> Changes {
    let mut changes = Changes::default();
    for config in running {
        let name = &config.node.name;
        let Some(wanted) = wanted.iter().find(|wanted| wanted.node.name == *name) else {
            changes.refused.push(format!("node {name} is no longer in it, and goes on"));
            continue;
        };
        let mut next = config.clone();
        next.node.labels.clone_from(&wanted.node.labels);
        next.node.annotations.clone_from(&wanted.node.annotations);
        // Part of it may follow from the provider's settings.
        if next.provider == wanted.provider {
            next.node.capacity.clone_from(&wanted.node.capacity);
        }
        next.node.quota.clone_from(&wanted.node.quota);
        if next.node != config.node {
            changes.nodes.push(next.node.clone());
        }
        if next.node.taints != wanted.node.taints {
            changes.refused.push(format!(
                "taints of node {name}: a node may set its taints only when it registers; change them with kubectl taint nodes {name}"
            ));
            next.node.taints.clone_from(&wanted.node.taints);
        }
        for (key, same) in [
            ("evictionHard", next.node.thresholds == wanted.node.thresholds),
            ("nodeIP", next.node.address == wanted.node.address),
            ("provider, or its settings,", next.provider == wanted.provider),
            ("kubelet port or address", next.kubelet_api == wanted.kubelet_api),
            ("clusterDNS", next.cluster_dns == wanted.cluster_dns),
            ("image GC", next.image_gc == wanted.image_gc),
            ("resolvConf", next.resolv_conf == wanted.resolv_conf),
            ("clusterDomain", next.cluster_domain == wanted.cluster_domain),
        ] {
            if !same {
                changes.refused.push(format!(
                    "{key} of node {name}: in force after a restart of spillway-vk, which ends no pod"
                ));
            }
        }
    }
    for wanted in wanted {
        let name = &wanted.node.name;
        if !running.iter().any(|config| config.node.name == *name) {
            changes.refused.push(format!(
                "node {name} is new: it comes with a restart of spillway-vk, which ends no pod"
            ));
        }
    }
    changes
}
