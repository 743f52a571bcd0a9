use std::{path::PathBuf, time::Duration};

use super::*;
use crate::{
    discovery::{Backend, Memory, NodeNames, Reporter, Roots},
    inventory::{BackendState, tests::device},
};

/// Lists one device, called by how often it has been made: what a driver would say anew after a restart.
struct Lister(u64);

impl Backend for Lister {
    fn name(&self) -> &'static str {
        "lister"
    }

    fn again(&self) -> Box<dyn Backend> {
        Box::new(Self(self.0))
    }

    fn run(self: Box<Self>, reporter: &Reporter) {
        reporter.devices(vec![device("nvidia.com/gpu", &format!("GPU-{}", self.0), None)]);
        reporter.pause(Duration::from_mins(10));
    }
}

const LISTER: Kind = Kind {
    name: "lister",
    make: |setting| {
        let gpu = &setting.config.gpu;
        gpu.enabled.then(|| Box::new(Lister(gpu.recovery_seconds)) as _)
    },
    same: |one, other| one.gpu == other.gpu,
    nodes: NodeNames::NONE,
};

fn config(text: &str) -> Arc<Config> {
    Arc::new(Config::load("a test", text.as_bytes(), &crate::config::Overrides::default()).unwrap().config)
}

#[tokio::test]
async fn back_ends_follow_the_configuration() {
    let nowhere = PathBuf::from("/nonexistent");
    let setting = Setting {
        roots: Roots { sys: nowhere.clone(), dev: nowhere.clone(), proc: nowhere },
        interval: Duration::from_secs(1),
        config: config("gpu: {recoverySeconds: 1}"),
        memory: Memory::default(),
    };
    let configs = watch::Sender::new(setting.config.clone());
    let inventory = watch::Sender::new(Inventory::default());
    let mut seen = inventory.subscribe();
    let stop = CancellationToken::new();
    let kinds = [LISTER];
    let running = run_kinds(&kinds, setting, configs.subscribe(), inventory, stop.clone());
    let changing = async {
        let lists = |id: &'static str| {
            move |now: &Inventory| now.devices().map(|device| device.id.as_str()).collect::<Vec<_>>() == [id]
        };
        seen.wait_for(lists("GPU-1")).await.unwrap();
        configs.send_replace(config("{gpu: {recoverySeconds: 1}, fpga: {enabled: false}}"));
        configs.send_replace(config("gpu: {recoverySeconds: 2}"));
        let replaced = seen.wait_for(|now| !lists("GPU-1")(now)).await.unwrap().clone();
        assert!(lists("GPU-2")(&replaced), "the part stays until the new one has looked: {replaced:?}");
        configs.send_replace(config("gpu: {enabled: false}"));
        let off = seen.wait_for(|now| now.devices().next().is_none()).await.unwrap().clone();
        assert_eq!(off.backends().count(), 0);
        configs.send_replace(config("gpu: {recoverySeconds: 3}"));
        let back = seen.wait_for(lists("GPU-3")).await.unwrap().clone();
        assert_eq!(back.backends().collect::<Vec<_>>(), [("lister", &BackendState::Running)]);
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(running, changing);
    ended.unwrap();
}
