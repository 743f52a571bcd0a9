use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    sync::Mutex,
};

use tokio::task::JoinSet;

use super::*;
use crate::{
    config::Overrides,
    device::{Accelerator, Device, Health},
    inventory::{BackendState, tests::device},
    sharing::Rules,
};

/// What was set, in order.
#[derive(Debug, Default)]
struct Recorded(Mutex<Vec<(Vec<String>, bool)>>);

impl ComputeModes for Recorded {
    fn set_exclusive(&self, gpus: &[DeviceId], exclusive: bool) -> Result<(), String> {
        let gpus = gpus.iter().map(ToString::to_string).collect();
        self.0.lock().unwrap().push((gpus, exclusive));
        Ok(())
    }
}

fn gpu(number: u32) -> Device {
    let base = device("nvidia.com/gpu", &format!("GPU-{number}"), None);
    let accelerator = Accelerator { memory_mib: Some(40_960), ..(*base.accelerator).clone() };
    Device { accelerator: Arc::new(accelerator), ..base }
}

/// A driver root with the stand-in daemon, and a configuration that shares by it.
fn machine(folder: &Path) -> Arc<Config> {
    let bin = folder.join("driver/usr/bin");
    fs::create_dir_all(&bin).unwrap();
    let standin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/standin/mps/nvidia-cuda-mps-control");
    fs::set_permissions(&standin, fs::Permissions::from_mode(0o755)).unwrap();
    symlink(standin, bin.join("nvidia-cuda-mps-control")).unwrap();
    let text = format!(
        "flags: {{nvidiaDriverRoot: {}}}\nsharing: {{mps: {{resources: [{{name: gpu, replicas: 4}}]}}}}",
        folder.join("driver").display()
    );
    Arc::new(Config::load("a test", text.as_bytes(), &Overrides::default()).unwrap().config)
}

fn offered(config: &Config, devices: Vec<Device>) -> Inventory {
    let inventory = Inventory::default().ruled_by(Arc::new(Rules::of(config)));
    inventory.with("nvml", BackendState::Running, devices).0
}

/// An agent and a keeper over the same folder; ends when `scenario` does.
async fn with_both(
    folder: &Path,
    config: &Arc<Config>,
    inventory: &watch::Sender<Inventory>,
    modes: &Arc<Recorded>,
    scenario: impl Future<Output = ()>,
) {
    let (configs, stop) = (watch::Sender::new(config.clone()), CancellationToken::new());
    let agent = run(folder.join("mps"), configs.subscribe(), inventory.clone(), stop.clone());
    let scenario = async {
        scenario.await;
        stop.cancel();
    };
    tokio::join!(agent, keeper(folder, modes).run(stop.clone()), scenario);
}

fn keeper(folder: &Path, modes: &Arc<Recorded>) -> Keeper {
    Keeper::open(folder.join("mps"), folder.join("driver"), modes.clone()).unwrap()
}

fn all(health: impl Fn(&Health) -> bool) -> impl Fn(&Inventory) -> bool {
    move |now| now.devices().count() > 0 && now.devices().all(|device| health(&device.health))
}

#[test]
fn a_daemon_is_told_each_clients_part() {
    let folder = tempfile::tempdir().unwrap();
    let config = machine(folder.path());
    let silent = Device { accelerator: Arc::new(Accelerator::new(gpu(1).id)), ..gpu(1) };
    let plans = plans(&config, &offered(&config, vec![gpu(0), silent]));
    let [(resource, plan)] = plans.iter().collect::<Vec<_>>()[..] else { panic!("one daemon") };
    assert_eq!(resource.as_str(), "nvidia.com/gpu");
    assert_eq!(
        plan.commands(),
        ["set_default_device_pinned_mem_limit 0 10240M", "set_default_active_thread_percentage 25"]
    );
    let time = Config::load(
        "a test",
        b"sharing: {timeSlicing: {resources: [{name: gpu, replicas: 4}]}}",
        &Overrides::default(),
    );
    let time = time.unwrap().config;
    assert!(super::plans(&time, &offered(&time, vec![gpu(0)])).is_empty());
}

#[tokio::test]
async fn replicas_are_healthy_while_their_daemon_answers() {
    let folder = tempfile::tempdir().unwrap();
    let config = machine(folder.path());
    let mps = folder.path().join("mps");
    let inventory = watch::Sender::new(offered(&config, vec![gpu(0), gpu(1)]));
    let mut seen = inventory.subscribe();
    let modes = Arc::new(Recorded::default());
    assert!(all(|health| !health.is_healthy())(&seen.borrow()), "no daemon has started yet");

    let scenario = async {
        seen.wait_for(all(Health::is_healthy)).await.unwrap();
        let pipe = mps.join("nvidia.com/gpu/pipe");
        let said = fs::read_to_string(pipe.join("commands")).unwrap();
        let set: Vec<_> = said.lines().filter(|line| line.starts_with("set_")).collect();
        assert_eq!(
            set,
            [
                "set_default_device_pinned_mem_limit 0 10240M",
                "set_default_device_pinned_mem_limit 1 10240M",
                "set_default_active_thread_percentage 25"
            ]
        );
        assert_eq!(fs::read_to_string(pipe.join("gpus")).unwrap().trim(), "GPU-0,GPU-1");
        assert_eq!(modes.0.lock().unwrap()[0], (vec!["GPU-0".to_owned(), "GPU-1".to_owned()], true));

        // It dies: nobody is sent to it until another one is ready.
        fs::remove_file(pipe.join("control")).unwrap();
        seen.wait_for(all(|health| *health != Health::Healthy)).await.unwrap();
        seen.wait_for(all(Health::is_healthy)).await.unwrap();

        // Another layout, another daemon; none, and the GPUs take any process again.
        inventory.send_modify(|now| *now = now.with("nvml", BackendState::Running, vec![gpu(0)]).0);
        while fs::read_to_string(pipe.join("gpus")).unwrap_or_default().trim() != "GPU-0" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        seen.wait_for(all(Health::is_healthy)).await.unwrap();
    };
    with_both(folder.path(), &config, &inventory, &modes, scenario).await;
    assert_eq!(modes.0.lock().unwrap().last().unwrap(), &(vec!["GPU-0".to_owned()], false));
    assert!(!mps.join("nvidia.com/gpu/pipe/control").exists(), "it was asked to quit");
}

#[tokio::test]
async fn what_keeps_a_daemon_from_starting_is_why_the_replicas_are_unhealthy() {
    let folder = tempfile::tempdir().unwrap();
    let config = machine(folder.path());
    fs::remove_file(folder.path().join("driver/usr/bin/nvidia-cuda-mps-control")).unwrap();
    let inventory = watch::Sender::new(offered(&config, vec![gpu(0)]));
    let mut seen = inventory.subscribe();
    let scenario = async {
        let told = |health: &Health| matches!(health, Health::Unhealthy(why) if why.contains("can't start nvidia-cuda-mps-control"));
        seen.wait_for(all(told)).await.unwrap();
    };
    with_both(folder.path(), &config, &inventory, &Arc::default(), scenario).await;
}

#[tokio::test]
async fn a_daemon_outlives_the_agent_and_not_its_keeper() {
    let folder = tempfile::tempdir().unwrap();
    let config = machine(folder.path());
    let mps = folder.path().join("mps");
    let configs = watch::Sender::new(config.clone());
    let modes = Arc::new(Recorded::default());
    let begun = || fs::metadata(mps.join("nvidia.com/gpu/pipe/gpus")).unwrap().modified().unwrap();
    let told = |part: &'static str| {
        all(move |health| matches!(health, Health::Unhealthy(why) if why.contains(part)))
    };

    // Without a keeper that is what is wrong.
    let inventory = watch::Sender::new(offered(&config, vec![gpu(0)]));
    let agent_stop = CancellationToken::new();
    let agent = run(mps.clone(), configs.subscribe(), inventory.clone(), agent_stop.clone());
    let (keeper_stop, mut seen) = (CancellationToken::new(), inventory.subscribe());
    let mut keepers = JoinSet::new();
    let scenario = async {
        seen.wait_for(told("no keeper of MPS daemons: can't connect")).await.unwrap();
        let keeper = keeper(folder.path(), &modes);
        let error = Keeper::open(mps.clone(), folder.path().join("driver"), modes.clone()).unwrap_err();
        assert!(matches!(error, KeeperError::Held(_)), "{error}");
        keepers.spawn(keeper.run(keeper_stop.clone()));
        seen.wait_for(all(Health::is_healthy)).await.unwrap();
        agent_stop.cancel();
    };
    tokio::join!(agent, scenario);
    let before = begun();

    // The next agent begins with no device, and says nothing until it knows; then it finds what it wants.
    let nothing = Inventory::starting(["nvml"]).ruled_by(Arc::new(Rules::of(&config)));
    let inventory = watch::Sender::new(nothing.clone());
    let agent_stop = CancellationToken::new();
    let agent = run(mps.clone(), configs.subscribe(), inventory.clone(), agent_stop.clone());
    let mut seen = inventory.subscribe();
    let scenario = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        inventory
            .send_replace(nothing.with("nvml", BackendState::Unavailable("no driver".into()), Vec::new()).0);
        tokio::time::sleep(Duration::from_millis(200)).await;
        inventory.send_modify(|now| *now = now.with("nvml", BackendState::Running, vec![gpu(0)]).0);
        seen.wait_for(all(Health::is_healthy)).await.unwrap();
        assert_eq!(begun(), before, "the daemon was started anew");

        // The keeper's end is the daemon's.
        keeper_stop.cancel();
        keepers.join_next().await.unwrap().unwrap();
        seen.wait_for(told("no keeper of MPS daemons")).await.unwrap();
        assert!(!mps.join("nvidia.com/gpu/pipe/control").exists());
        let keeper_stop = CancellationToken::new();
        keepers.spawn(keeper(folder.path(), &modes).run(keeper_stop.clone()));
        seen.wait_for(all(Health::is_healthy)).await.unwrap();

        // Nobody shares any more.
        let plain = Config::load("a test", b"", &Overrides::default()).unwrap().config;
        inventory.send_modify(|now| *now = now.ruled_by(Arc::new(Rules::of(&plain))));
        configs.send_replace(Arc::new(plain));
        while mps.join("nvidia.com/gpu/pipe/control").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        agent_stop.cancel();
        keeper_stop.cancel();
        keepers.join_next().await.unwrap().unwrap();
    };
    tokio::join!(agent, scenario);
    assert!(!modes.0.lock().unwrap().last().unwrap().1, "the GPUs stay in exclusive mode");
}
