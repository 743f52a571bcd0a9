//! `/configz`: how this node is set up, in the words of a kubelet's configuration (kubelet.config.k8s.io/v1beta1). Only what is so here is
//! said; what a kubelet could be told and we can't is left out.

use serde_json::{Value, json};

use crate::config::{Config, ProviderConfig, ServingSource};

/// Of the whole configuration. Secrets are not part of it: files are named, not read.
pub fn configz(config: &Config) -> Value {
    let mut kubelet = json!({
        "syncFrequency": "1m0s",
        "clusterDomain": config.cluster_domain,
        "resolvConf": config.resolv_conf,
        "authentication": {
            "x509": {},
            "webhook": { "enabled": true, "cacheTTL": "1m0s" },
            "anonymous": { "enabled": false },
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": { "cacheAuthorizedTTL": "1m0s", "cacheUnauthorizedTTL": "5s" },
        },
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "5m0s",
        "nodeLeaseDurationSeconds": 40,
        "enableServer": config.kubelet_api.is_some(),
        "enableDebuggingHandlers": true,
    });
    if !config.cluster_dns.is_empty() {
        kubelet["clusterDNS"] = json!(config.cluster_dns);
    }
    if let Some(pods) = config.node.capacity.get("pods").and_then(|pods| pods.0.parse::<u64>().ok()) {
        kubelet["maxPods"] = json!(pods);
    }
    if !config.node.taints.is_empty() {
        kubelet["registerWithTaints"] = json!(config.node.taints);
    }
    if let Some(api) = &config.kubelet_api {
        kubelet["address"] = json!(api.address.ip());
        kubelet["port"] = json!(api.address.port());
        kubelet["authentication"]["x509"] = json!({ "clientCAFile": api.client_ca_file });
        match &api.serving {
            ServingSource::Csr => {
                kubelet["serverTLSBootstrap"] = json!(true);
                kubelet["rotateCertificates"] = json!(true);
            }
            ServingSource::Files { certificate, key } => {
                kubelet["tlsCertFile"] = json!(certificate);
                kubelet["tlsPrivateKeyFile"] = json!(key);
            }
            ServingSource::SelfSigned => {}
        }
    }
    if let ProviderConfig::Cri(cri) = &config.provider {
        kubelet["containerRuntimeEndpoint"] = json!(cri.endpoint);
        kubelet["cgroupRoot"] = json!(cri.cgroup_root);
        kubelet["podLogsDir"] = json!(cri.log_root);
    }
    json!({ "kubeletconfig": kubelet })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Args;

    #[test]
    fn the_example_in_deploy_is_told_in_a_kubelet_s_words() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd/vk.yaml");
        let args = Args::parse_from(["spillway-vk", "--nodename", "vk1", "--config", file]);
        let answer = configz(&Config::load(&args).unwrap()[0]);
        let kubelet = &answer["kubeletconfig"];
        assert_eq!((&kubelet["maxPods"], &kubelet["port"]), (&json!(200), &json!(10250)));
        assert_eq!(kubelet["clusterDNS"], json!(["10.96.0.10"]));
        assert_eq!(kubelet["containerRuntimeEndpoint"], "unix:///run/containerd/containerd.sock");
        assert_eq!(kubelet["authentication"]["anonymous"]["enabled"], false);
        assert_eq!(kubelet["registerWithTaints"][0]["key"], "virtual-kubelet.io/provider");
    }
}
