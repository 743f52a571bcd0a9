//! Ctrl-C and SIGTERM end the clusters of this process before it goes.

use super::{machine::ProcessId, registry};

/// Listens from now on, on a thread of its own.
///
/// # Errors
/// When signals can't be listened for.
pub fn end_clusters_on_signal() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        let signal = runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return std::future::pending().await;
            };
            tokio::select! {
                _ = interrupt.recv() => 2,
                _ = terminate.recv() => 15,
            }
        });
        let own = i32::try_from(std::process::id()).ok().and_then(ProcessId::of);
        for record in registry::all().unwrap_or_default() {
            if Some(record.owner) == own && !record.keep {
                eprintln!("\ninterrupted: ending cluster {}", record.id);
                if let Err(error) = registry::end(&record) {
                    eprintln!("it did not end cleanly, the next run sweeps it: {error:#}");
                }
            }
        }
        std::process::exit(128 + signal);
    });
    Ok(())
}
