//! One plugin per resource that the inventory has. Plugins come and go with their resources; none outlives this.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    device::ResourceName,
    registration::{KubeletFolder, Registration, Registrations},
    server::Shared,
};

/// Serves every resource of `inventory` to the kubelet until `stop`, then ends all streams and removes all sockets.
pub async fn run(
    folder: KubeletFolder,
    shared: Shared,
    registrations: watch::Sender<Registrations>,
    stop: CancellationToken,
) {
    let folder = Arc::new(folder);
    let mut inventory = shared.inventory.clone();
    let mut plugins: JoinSet<ResourceName> = JoinSet::new();
    let mut running: BTreeMap<ResourceName, CancellationToken> = BTreeMap::new();
    loop {
        let wanted = inventory.borrow_and_update().resources();
        for (resource, plugin_stop) in &running {
            if !wanted.contains(resource) && !plugin_stop.is_cancelled() {
                tracing::info!(%resource, "no device left: the plugin ends");
                plugin_stop.cancel();
            }
        }
        for resource in wanted {
            // One that is still ending is started again when it has ended.
            if !running.contains_key(&resource) {
                let plugin_stop = stop.child_token();
                running.insert(resource.clone(), plugin_stop.clone());
                let (folder, shared, registrations) = (folder.clone(), shared.clone(), registrations.clone());
                plugins.spawn(async move {
                    let name = resource.clone();
                    Registration { folder: &folder, resource, shared, registrations }.run(plugin_stop).await;
                    name
                });
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = inventory.changed() => if changed.is_err() { break },
            Some(ended) = plugins.join_next() => match ended {
                Ok(resource) => { running.remove(&resource); }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
        }
    }
    stop.cancel();
    while plugins.join_next().await.is_some() {}
}
