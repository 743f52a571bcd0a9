//! What makes an offer of devices complete besides the plugins: CDI specifications, the MPS daemons that are wanted, a configuration file that is followed, and
//! a driver that has to work.

use spillway_daemon::supervisor::Supervisor;
use spillway_device_plugin::{
    cdi,
    config::store::Store,
    discovery::nvml,
    inventory::{BackendState, Inventory},
    mps,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::args::Args;

/// Starts all of it that is asked for, or may be later.
pub(crate) fn start(
    supervisor: &mut Supervisor,
    args: &Args,
    configuration: &Store,
    inventory: &watch::Sender<Inventory>,
    mut serving: watch::Receiver<bool>,
) {
    let stop = supervisor.stop();
    if configuration.current().flags.fail_on_init_error {
        let (inventory, stop) = (inventory.subscribe(), stop.clone());
        supervisor.start("driver", async move { first_look(inventory, stop).await });
    }
    supervisor.start("cdi", {
        let (configs, inventory) = (configuration.subscribe(), inventory.subscribe());
        let running = cdi::run(args.cdi_dir.clone(), args.dev_root.clone(), configs, inventory, stop.clone());
        async move {
            running.await;
            Ok(())
        }
    });
    supervisor.start("mps", {
        let (inventory, stop) = (inventory.clone(), stop.clone());
        let (folder, configs) = (args.mps_dir.clone(), configuration.subscribe());
        async move {
            // Of two agents only the one that serves says which daemons there are to be.
            let serves = stop.run_until_cancelled(serving.wait_for(|serving| *serving)).await;
            if serves.is_some_and(|serves| serves.is_ok()) {
                mps::run(folder, configs, inventory, stop.clone()).await;
            }
            stop.cancelled().await;
            Ok(())
        }
    });
    if let Some(path) = args.config_file() {
        let following = configuration.clone().follow(path.to_owned(), stop.clone());
        supervisor.start("configuration", async move {
            following.await;
            Ok(())
        });
    }
}

/// Fails when the first look at the GPUs finds that the driver does not work; what happens to it later is the back end's to mend.
async fn first_look(
    mut inventory: watch::Receiver<Inventory>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let state = |now: &Inventory| {
        now.backends().find(|(name, _)| *name == nvml::KIND.name).map(|(_, state)| state.clone())
    };
    let looked = inventory.wait_for(|now| state(now) != Some(BackendState::Starting));
    if let Some(Ok(now)) = stop.run_until_cancelled(looked).await
        && let Some(BackendState::Unavailable(why)) = state(&now)
    {
        anyhow::bail!("{why} (flags.failOnInitError is set)");
    }
    stop.cancelled().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_driver_that_does_not_work_ends_the_agent_where_that_is_asked_for() {
        let starting = Inventory::starting([nvml::KIND.name]);
        let failed = BackendState::Unavailable("no NVML library".to_owned());
        let inventory = watch::Sender::new(starting.clone());
        let stop = CancellationToken::new();
        let looking = first_look(inventory.subscribe(), stop.clone());
        let failing =
            async { inventory.send_replace(starting.with(nvml::KIND.name, failed.clone(), Vec::new()).0) };
        let (result, _) = tokio::join!(looking, failing);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("no NVML library") && error.contains("failOnInitError"), "{error}");

        inventory.send_replace(starting.with(nvml::KIND.name, BackendState::Running, Vec::new()).0);
        let looking = first_look(inventory.subscribe(), stop.clone());
        let later = async {
            inventory.send_replace(starting.with(nvml::KIND.name, failed, Vec::new()).0);
            tokio::task::yield_now().await;
            stop.cancel();
        };
        let (result, ()) = tokio::join!(looking, later);
        result.unwrap();
    }
}
