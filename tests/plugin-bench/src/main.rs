//! Measures an agent's device plugins from the kubelet's side, in one run with a bare tonic server that answers with as many bytes. A
//! program of its own, so that it is built like the agent, with optimisation; `cargo xtask bench device-plugin` prepares what it needs
//! and prints what it finds.
//!
//! It is the kubelet, a stand-in: agent and echo server are processes of their own.

mod agent;
mod echo;
mod opens;
#[allow(clippy::unwrap_used, dead_code, reason = "the tests' own, which use more of it")]
#[path = "../../../device-plugin/tests/standin_kubelet/mod.rs"]
mod standin_kubelet;
mod wire;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;

/// What to measure.
#[derive(Debug, Clone, Parser)]
enum Arguments {
    /// Answer Allocate and `GetPreferredAllocation` on a socket with fixed messages; for this program's own use.
    #[command(hide = true)]
    Echo {
        /// The socket.
        socket: PathBuf,
    },
    /// What the device program of isolation costs each open, in the real kernel.
    Opens {
        /// Turns with and without.
        #[arg(long, default_value_t = 200)]
        rounds: usize,
        /// Opens of each node in a turn.
        #[arg(long, default_value_t = 500)]
        opens: u32,
    },
    /// Start the agent with this command line, and measure.
    Measure(Measure),
}

/// Everything that is said of the agent.
#[derive(Debug, Clone, clap::Args)]
struct Measure {
    /// The kubelet's device plugin folder, which the agent is told by its command line.
    #[arg(long)]
    folder: PathBuf,
    /// Where the stand-in of NVML adds up its CPU time.
    #[arg(long)]
    spent: PathBuf,
    /// The resource that is asked for.
    #[arg(long)]
    resource: String,
    /// How many devices it has.
    #[arg(long)]
    devices: usize,
    /// How many devices a container asks for.
    #[arg(long, default_value_t = 8)]
    size: usize,
    /// Calls of each kind.
    #[arg(long, default_value_t = 5000)]
    calls: usize,
    /// How long to look at the idle agent, in seconds.
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
    /// A line appended to a file that makes a device sick: FILE=LINE, as often as that is to be measured.
    #[arg(long)]
    sicken: Vec<String>,
    /// The agent and its arguments.
    #[arg(last = true, required = true)]
    agent: Vec<String>,
}

fn main() -> ExitCode {
    let done = run(Arguments::parse());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Arguments::Opens { rounds, opens } = arguments {
        println!("{}", opens::measure(rounds, opens)?);
        return Ok(());
    }
    // Of one thread, as the agent answers on one; and the agent is built as it is shipped, without a scheduler for several.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("can't start the async runtime")?.block_on(async {
        match arguments {
            Arguments::Echo { socket } => echo::serve(&socket).await?,
            Arguments::Measure(measure) => println!("{}", measure.run().await?),
            Arguments::Opens { .. } => {}
        }
        Ok(())
    })
}

impl Measure {
    /// All of it, as one JSON object.
    async fn run(&self) -> anyhow::Result<serde_json::Value> {
        let kubelet = standin_kubelet::StandinKubelet::start(&self.folder);
        let (agent, registered) = agent::Agent::start(&self.agent, &kubelet, self).await?;
        let unhealthy = agent::sicken(&kubelet, self).await?;
        let latencies = wire::measure(&kubelet, self).await?;
        let memory = agent.memory()?;
        drop(kubelet);
        let kubelet = standin_kubelet::StandinKubelet::start(&self.folder);
        let reregistered = agent::listed(&kubelet, self).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let idle = agent.idle(Duration::from_secs(self.idle_seconds), &self.spent).await?;
        Ok(serde_json::json!({
            "registered_s": registered.as_secs_f64(),
            "reregistered_s": reregistered.as_secs_f64(),
            "unhealthy_s": unhealthy.map(|unhealthy| unhealthy.as_secs_f64()),
            "rss_mib": memory.resident,
            "anonymous_mib": memory.anonymous,
            "program_mib": memory.program,
            "libraries_mib": memory.libraries,
            "idle_cpu_percent": idle.percent,
            "standin_cpu_percent": idle.standin_percent,
            "allocate": latencies.allocate.json(),
            "allocate_echo": latencies.allocate_echo.json(),
            "preferred": latencies.preferred.json(),
            "preferred_echo": latencies.preferred_echo.json(),
        }))
    }
}
