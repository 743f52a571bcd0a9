//! Where usage comes from: the cluster itself, as the recorder looks at it.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, Config, api::ListParams, config::KubeConfigOptions};

use crate::{
    args::Global,
    history::{
        Sample,
        recorder::Source,
        sampling::{Labels, Sampler},
    },
};

/// A live cluster.
pub(super) struct Cluster {
    client: Client,
    labels: Labels,
}

impl Cluster {
    pub(super) async fn connect(global: &Global, labels: Labels) -> anyhow::Result<Self> {
        Ok(Self { client: client(global).await?, labels })
    }
}

/// A client of the Kubernetes API, as kubectl would have it.
pub(super) async fn client(global: &Global) -> anyhow::Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let config = match &global.kubeconfig {
        Some(path) => {
            Config::from_custom_kubeconfig(kube::config::Kubeconfig::read_from(path)?, &options).await?
        }
        None if global.context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer().await?,
    };
    Ok(Client::try_from(config)?)
}

fn accelerators(
    all: Option<&std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
) -> impl Iterator<Item = (&str, u64)> {
    all.into_iter()
        .flatten()
        .filter(|(name, _)| name.contains('/') && name.contains("gpu"))
        .map(|(name, amount)| (name.as_str(), amount.0.parse().unwrap_or(0)))
}

impl Source for Cluster {
    type Error = kube::Error;

    async fn sample(&self) -> Result<Sample, kube::Error> {
        let nodes = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await?;
        let pods = Api::<Pod>::all(self.client.clone())
            .list(&ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed"))
            .await?;
        let mut sampler = Sampler::new(jiff::Timestamp::now().as_second(), &self.labels);
        for node in &nodes {
            let label = |key: &str| node.metadata.labels.as_ref()?.get(key).map(String::as_str);
            let serverless = label("type") == Some("virtual-kubelet");
            let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
            sampler.node(
                node.metadata.name.as_deref().unwrap_or_default(),
                serverless,
                label,
                accelerators(capacity),
            );
        }
        for pod in &pods {
            let label = |key: &str| pod.metadata.labels.as_ref()?.get(key).map(String::as_str);
            let Some(spec) = &pod.spec else { continue };
            let requests =
                spec.containers.iter().filter_map(|container| container.resources.as_ref()?.limits.as_ref());
            sampler.pod(
                pod.metadata.namespace.as_deref().unwrap_or_default(),
                spec.node_name.as_deref(),
                label,
                requests.flat_map(|limits| accelerators(Some(limits))),
            );
        }
        Ok(sampler.finish())
    }
}
