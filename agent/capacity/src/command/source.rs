//! What samples are taken of: the cluster that the command line means.

use kube::Client;

use crate::{
    args::Global,
    cluster,
    history::{
        Sample,
        recorder::Source,
        sampling::{self, Labels},
    },
};

/// A live cluster.
pub(super) struct Cluster {
    client: Client,
    labels: Labels,
}

impl Cluster {
    pub(super) async fn connect(global: &Global, labels: Labels) -> Result<Self, cluster::Error> {
        Ok(Self { client: cluster::connect(global).await?, labels })
    }
}

impl Source for Cluster {
    type Error = cluster::Error;

    async fn sample(&self) -> Result<Sample, cluster::Error> {
        Ok(sampling::of(&cluster::list(&self.client).await?, &self.labels))
    }
}
