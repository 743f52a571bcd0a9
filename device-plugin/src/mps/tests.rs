use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    sync::Mutex,
};

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
    let configs = watch::Sender::new(config.clone());
    let inventory = watch::Sender::new(offered(&config, vec![gpu(0), gpu(1)]));
    let mut seen = inventory.subscribe();
    let (modes, stop) = (Arc::new(Recorded::default()), CancellationToken::new());
    assert!(all(|health| !health.is_healthy())(&seen.borrow()), "no daemon has started yet");

    let running = run(mps.clone(), modes.clone(), configs.subscribe(), inventory.clone(), stop.clone());
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
        stop.cancel();
    };
    tokio::join!(running, scenario);
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
    let stop = CancellationToken::new();
    let configs = watch::Sender::new(config);
    let running = run(
        folder.path().join("mps"),
        Arc::new(Recorded::default()),
        configs.subscribe(),
        inventory.clone(),
        stop.clone(),
    );
    let scenario = async {
        let told = |health: &Health| matches!(health, Health::Unhealthy(why) if why.contains("can't start nvidia-cuda-mps-control"));
        seen.wait_for(all(told)).await.unwrap();
        stop.cancel();
    };
    tokio::join!(running, scenario);
}
