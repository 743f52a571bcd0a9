//! Wiring of what keeps accounts: who holds what, who uses what of it, and who uses too much.

use std::path::Path;

use spillway_daemon::supervisor::Supervisor;
use spillway_device_plugin::{config::store::Store, inventory::Inventory};
use tokio::sync::watch;

use crate::{
    args::Args,
    holders::{self, Following, HoldersReader},
    memory_budget::{BudgetMetrics, MemoryBudgets, ProcessKiller},
    node::EventSink,
    usage::{self, Usage, processes::Processes},
};

/// Where processes are: those of this process's PID namespace, which is the one that the driver and signals go by, too.
const PROC: &str = "/proc";

/// What others look at.
#[derive(Debug, Clone, Default)]
pub(super) struct Accounts {
    /// Who holds what.
    pub(super) following: Following,
    /// Who uses what of it.
    pub(super) usage: watch::Sender<Usage>,
    /// What was done about who used too much.
    pub(super) budgets: BudgetMetrics,
}

impl Accounts {
    /// Starts keeping them.
    pub(super) fn start(
        &self,
        args: &Args,
        supervisor: &mut Supervisor,
        reader: HoldersReader,
        configuration: &Store,
        inventory: &watch::Sender<Inventory>,
        events: EventSink,
    ) {
        let stop = supervisor.stop();
        let following = self.following.clone();
        supervisor.start("holders", {
            let (following, stop) = (following.clone(), stop.clone());
            async move {
                holders::run(reader, following, stop).await;
                Ok(())
            }
        });
        supervisor.start("held", {
            let telling = self.following.clone().tell(inventory.clone(), stop.clone());
            async move {
                telling.await;
                Ok(())
            }
        });
        let processes = Processes::at(Path::new(PROC));
        let sources = usage::Sources {
            inventory: inventory.subscribe(),
            following,
            processes: processes.clone(),
            // With the host's process IDs this process isn't the first.
            sees_processes: std::process::id() != 1,
        };
        supervisor.start("usage", {
            let (usage, every, stop) = (self.usage.clone(), args.refresh(), stop.clone());
            async move {
                usage::run(sources, usage, every, stop).await;
                Ok(())
            }
        });
        let budgets = MemoryBudgets {
            usage: self.usage.subscribe(),
            configs: configuration.subscribe(),
            killer: ProcessKiller { processes },
            metrics: self.budgets.clone(),
            events,
        };
        supervisor.start("memory-budget", async move {
            budgets.watch_over(stop).await;
            Ok(())
        });
    }
}
