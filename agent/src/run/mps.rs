//! `spillway-agent mps`: the keeper of MPS' daemons, in a pod of its own.

use std::sync::Arc;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use spillway_daemon::{
    admin::{self, Readiness},
    supervisor::Supervisor,
};
use spillway_device_plugin::{
    config::{Config, Overrides},
    mps::{Keeper, NvmlModes},
};

use crate::args::Args;

/// Keeps the daemons that the agent on this machine asks for, until a signal.
pub(super) fn run(args: &Args, overrides: &Overrides) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the async runtime")?;
    // Of the configuration only this matters, and it is the pod's own: the agent may see the driver elsewhere.
    let config = Config::load("of the command line", b"", overrides)?.config;
    let driver_root = config.flags.driver_root_here().to_owned();
    runtime.block_on(async {
        let mut supervisor = Supervisor::new();
        let stop = supervisor.stop();
        let modes = Arc::new(NvmlModes { driver_root: driver_root.clone() });
        let keeper = Keeper::open(args.mps_dir.clone(), driver_root, modes)?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), folder = %args.mps_dir.display(), "the keeper of MPS daemons starts");
        if let Some(address) = args.daemon.admin_address.0 {
            let registry = Arc::new(Registry::default());
            supervisor.start("admin", admin::serve(address, registry, Readiness::default(), stop.clone()));
        }
        supervisor.start("mps", async move {
            keeper.run(stop).await;
            Ok(())
        });
        supervisor.run(args.grace()).await
    })
}
