//! What the workers of all pods share, and what they do for all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use k8s_openapi::api::core::v1::Service;
use kube::{Client, runtime::reflector};
use tokio::sync::Semaphore;

use crate::{
    identity::chain,
    pod::{
        Settings, access::Access, devices::Devices, events::Recorder, leaving::Leaving, ledger::Ledger,
        objects::Reader, ports::Ports, probe::counts::Counts,
    },
    provider::{Provider, ProviderError},
};

/// What all workers use.
pub(in crate::pod) struct Shared {
    pub(in crate::pod) client: Client,
    pub(in crate::pod) provider: Provider,
    pub(in crate::pod) settings: Settings,
    pub(in crate::pod) reader: Reader,
    pub(in crate::pod) recorder: Recorder,
    /// What probes have found.
    pub(in crate::pod) probed: Arc<Counts>,
    pub(in crate::pod) services: reflector::Store<Service>,
    /// How many pods are being started or removed.
    pub(in crate::pod) changes: Arc<Semaphore>,
    /// How many calls that write pods are under way: each takes a connection of its own.
    pub(in crate::pod) writes: Semaphore,
    /// Who may use which image.
    pub(in crate::pod) access: Access,
    /// Who has which device.
    pub(in crate::pod) devices: Devices,
    /// Who holds how much of the node.
    pub(in crate::pod) ledger: Ledger,
    /// What the provider was last told that burstable pods weigh.
    pub(in crate::pod) weighed: tokio::sync::Mutex<Option<u64>>,
    /// Who has which port of the machine.
    pub(in crate::pod) ports: Ports,
    /// Who is about to give back what it holds of those.
    pub(in crate::pod) leaving: Leaving,
    /// One pull of an image at a time.
    pub(in crate::pod) pulls: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// `containerd` in `containerd://ID`.
    pub(in crate::pod) scheme: String,
    /// Bytes.
    pub(in crate::pod) machine_memory: i64,
}

impl Shared {
    /// The pod has ended: what it had of the node is others'.
    pub(in crate::pod) fn free(&self, uid: &str) {
        self.ledger.free(uid);
        self.ports.free(uid);
        self.devices.free(uid);
        self.leaving.settled(uid);
    }

    /// Tells the provider what burstable pods weigh together, if that has changed. No pod fails for it.
    pub(in crate::pod) async fn weigh(&self) {
        let Provider::Runtime(runtime) = &self.provider else { return };
        let mut weighed = self.weighed.lock().await;
        let shares = self.ledger.burstable_shares();
        if *weighed == Some(shares) {
            return;
        }
        match runtime.weigh(shares).await {
            Ok(()) => *weighed = Some(shares),
            // The node says so.
            Err(error @ ProviderError::Unavailable { .. }) => {
                tracing::debug!(error = chain(&error), shares, "burstable pods keep their weight");
            }
            Err(error) => tracing::warn!(error = chain(&error), shares, "burstable pods keep their weight"),
        }
    }
}
