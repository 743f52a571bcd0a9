//! Looks at the configuration file again and again, as a `ConfigMap`'s is replaced without a word, and puts in force what can be.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    args::Args,
    config::{Config, NodeConfig, reload::changes},
    identity::chain,
};

/// How often.
const POLL: Duration = Duration::from_secs(5);

/// `running`: what the process was started with. `live`: where each node's changes go, by its name.
pub(super) async fn follow(
    args: Args,
    mut running: Vec<Config>,
    live: BTreeMap<String, watch::Sender<NodeConfig>>,
    stop: CancellationToken,
) {
    let mut last = Ok(running.clone());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL) => {}
        }
        let found = Config::load(&args).map_err(|error| chain(&error));
        if found == last {
            continue;
        }
        match &found {
            Ok(wanted) => {
                let changes = changes(&running, wanted);
                for what in changes.refused {
                    tracing::warn!("the configuration file changed, and this can't be put in force: {what}");
                }
                for node in changes.nodes {
                    if let Some(live) = live.get(&node.name) {
                        live.send_replace(node.clone());
                    }
                    if let Some(config) = running.iter_mut().find(|config| config.node.name == node.name) {
                        config.node = node;
                    }
                }
            }
            Err(problem) => {
                tracing::error!(
                    problem,
                    "the configuration file is not sound any more; what was in force stays"
                );
            }
        }
        last = found;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_swapped_link_is_noticed_and_nonsense_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("vk.yaml");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            let new = folder.path().join("new");
            std::os::unix::fs::symlink(name, &new).unwrap();
            std::fs::rename(new, &link).unwrap();
        };
        write("1", "nodeName: vk1\ncapacity: {cpu: 4}\n");
        let args = Args::parse_from(["spillway-vk", "--config", link.to_str().unwrap()]);
        let running = Config::load(&args).unwrap();
        let live = watch::Sender::new(running[0].node.clone());
        let mut seen = live.subscribe();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(follow(args, running, [("vk1".to_owned(), live)].into(), CancellationToken::new()));

        for nonsense in
            ["nodeName: [vk1\n", "nodeName: vk1\nlabels: {kubernetes.io/role: x}\ncapacity: {cpu: 8}\n"]
        {
            write("2", nonsense);
            tokio::time::sleep(3 * POLL).await;
            assert!(!seen.has_changed().unwrap());
        }
        write("3", "nodeName: vk1\ncapacity: {cpu: 8}\n");
        tokio::time::timeout(3 * POLL, seen.changed()).await.unwrap().unwrap();
        assert_eq!(seen.borrow_and_update().capacity["cpu"].0, "8");
        write("4", "nodeName: vk1\ncapacity: {cpu: 4}\n");
        tokio::time::timeout(3 * POLL, seen.changed()).await.unwrap().unwrap();
        assert_eq!(seen.borrow_and_update().capacity["cpu"].0, "4", "back to the first");
        std::fs::remove_file(&link).unwrap();
        tokio::time::sleep(3 * POLL).await;
        assert!(!seen.has_changed().unwrap());
    }
}
