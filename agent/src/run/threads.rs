//! Which thread does what. One is enough for all that waits for files, events and the API; another one only answers the kubelet, so that
//! nothing that takes its time on the first one delays an answer. A scheduler for several threads would be more memory than both.

use std::{future::Future, thread};

use anyhow::Context as _;
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

/// A runtime for the thread that it is started on.
pub(super) fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("can't start the async runtime")
}

/// Does `work` on a thread of its own.
pub(super) async fn on_its_own(
    name: &'static str,
    work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<()> {
    let (ended, end) = oneshot::channel();
    let run = move || {
        let result = runtime().and_then(|runtime| runtime.block_on(work));
        let _ = ended.send(result);
    };
    // Not tokio's blocking pool: the runtime would wait for it, however long the grace period is over.
    thread::Builder::new().name(name.to_owned()).spawn(run).context("can't start a thread")?;
    end.await.with_context(|| format!("the thread {name} died"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_the_work_is_told() {
        let run = |work: fn() -> anyhow::Result<()>| {
            runtime().unwrap().block_on(on_its_own("test", async move { work() }))
        };
        assert!(run(|| Ok(())).is_ok());
        assert_eq!(run(|| anyhow::bail!("no socket")).unwrap_err().to_string(), "no socket");
        assert_eq!(run(|| panic!("on purpose")).unwrap_err().to_string(), "the thread test died");
        let here = thread::current().id();
        let elsewhere = async move {
            anyhow::ensure!(thread::current().id() != here, "on the same thread");
            Ok(())
        };
        runtime().unwrap().block_on(on_its_own("test", elsewhere)).unwrap();
    }
}
