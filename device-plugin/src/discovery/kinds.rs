//! Which back ends run: those that the configuration wants. A new configuration replaces those to which it makes a difference; their
//! devices stay listed until the successor has looked, and go when there is none.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{DiscoveryError, KINDS, Kind, Setting, log_refused, supervise};
use crate::{config::Config, inventory::Inventory, sharing::Rules};

/// Runs the back ends that the configuration wants until `stop`; `setting` says where they look.
///
/// # Errors
/// When there is no thread for one.
pub async fn run(
    setting: Setting,
    configs: watch::Receiver<Arc<Config>>,
    inventory: watch::Sender<Inventory>,
    stop: CancellationToken,
) -> Result<(), DiscoveryError> {
    run_kinds(KINDS, setting, configs, inventory, stop).await
}

struct Running {
    config: Arc<Config>,
    stop: CancellationToken,
}

async fn run_kinds(
    kinds: &[Kind],
    mut setting: Setting,
    mut configs: watch::Receiver<Arc<Config>>,
    inventory: watch::Sender<Inventory>,
    stop: CancellationToken,
) -> Result<(), DiscoveryError> {
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<&'static str, Running> = BTreeMap::new();
    loop {
        setting.config = configs.borrow_and_update().clone();
        let rules = Arc::new(Rules::of(&setting.config));
        inventory.send_if_modified(|current| {
            let next = current.ruled_by(rules);
            log_refused(current, &next);
            let modified = next != *current;
            *current = next;
            modified
        });
        for kind in kinds {
            let before = running.get(kind.name);
            if before.is_some_and(|running| (kind.same)(&running.config, &setting.config)) {
                continue;
            }
            if let Some(before) = running.remove(kind.name) {
                before.stop.cancel();
                ended(&mut tasks, kind.name).await?;
            }
            if let Some(backend) = (kind.make)(&setting) {
                inventory.send_modify(|current| *current = current.expecting(kind.name));
                let own = stop.child_token();
                running.insert(kind.name, Running { config: setting.config.clone(), stop: own.clone() });
                let (name, inventory) = (kind.name, inventory.clone());
                tasks.spawn(async move { (name, supervise(backend, inventory, own).await) });
            } else {
                inventory.send_modify(|current| *current = current.without(kind.name));
            }
        }
        tokio::select! {
            changed = configs.changed() => if changed.is_err() { break },
            Some(ended) = tasks.join_next() => {
                let (_, result) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                result?;
                // Back ends end by themselves only when it is time to.
                break;
            }
            () = stop.cancelled() => break,
        }
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).1?;
    }
    Ok(())
}

/// Waits until the task called `name` has ended.
async fn ended(
    tasks: &mut JoinSet<(&'static str, Result<(), DiscoveryError>)>,
    name: &'static str,
) -> Result<(), DiscoveryError> {
    while let Some(ended) = tasks.join_next().await {
        let (ended, result) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        result?;
        if ended == name {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
