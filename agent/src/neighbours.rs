//! Others on the machine who offer its devices to the kubelet, too: the vendors' own device plugins and DRA drivers. They are known by
//! the names of their sockets, and by an answer on them: a socket that a dead plugin left says nothing.
//!
//! Nobody is asked what they serve: NVIDIA's plugin, for one, gives each health event to only one of its listeners, and a second one would
//! take it from the kubelet. A plugin whose socket has an unknown name is therefore not noticed.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use spillway_device_plugin::{
    inventory::Inventory,
    plugins::{Neighbour, Offers, objection},
};
use tokio::{
    net::UnixStream,
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::node::events::{EventSink, Kind};

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a socket may take to let us in; one that takes longer belongs to somebody who is alive but busy.
const DIAL_WITHIN: Duration = Duration::from_secs(1);
/// NVIDIA's devices, by what lists them.
const NVIDIA: Offers = Offers::ListedIn("NVIDIA_VISIBLE_DEVICES");

/// Where others' sockets are.
#[derive(Debug, Clone)]
pub struct Folders {
    /// The kubelet's device plugin folder.
    pub device_plugins: PathBuf,
    /// The kubelet's folder for DRA drivers and CSI, `plugins_registry`.
    pub plugins_registry: PathBuf,
}

/// Whose socket in the device plugin folder it is, by its name.
fn plugin(name: &str) -> Option<(&'static str, Offers)> {
    let stem = name.strip_suffix(".sock")?;
    // `nvidia-gpu`, `nvidia-mig-1g.5gb`; `nvidia` until 2019; `nvidiagpushare` and the like of its forks.
    if stem.starts_with("nvidia") {
        Some(("NVIDIA's device plugin", NVIDIA))
    } else if stem.starts_with("fpga.intel.com-") {
        Some(("Intel's FPGA plugin", Offers::Domain("fpga.intel.com")))
    } else if stem.starts_with("xilinx") && stem.ends_with("-fpga") {
        Some(("Xilinx' FPGA plugin", Offers::Domain("amd.com")))
    } else {
        None
    }
}

/// Whose socket in the plugin registry it is, by its name: `DRIVER-reg.sock`, or with a pod's UID before `-reg`.
fn driver(name: &str) -> Option<(&'static str, Offers)> {
    let driver = name.strip_suffix("-reg.sock")?;
    let rest = driver.strip_prefix("gpu.nvidia.com")?;
    (rest.is_empty() || rest.starts_with('-')).then_some(("NVIDIA's DRA driver", NVIDIA))
}

/// Who is there now.
pub async fn look(folders: &Folders) -> Vec<Neighbour> {
    let mut found = Vec::new();
    for (folder, known) in [
        (&folders.device_plugins, plugin as fn(&str) -> Option<(&'static str, Offers)>),
        (&folders.plugins_registry, driver),
    ] {
        for name in names(folder) {
            if let Some((who, offers)) = known(&name)
                && alive(&folder.join(&name)).await
            {
                found.push(Neighbour { name: format!("{who} ({name})"), offers });
            }
        }
    }
    found.sort();
    found
}

/// The names in a folder; none where it can't be read, such as where the kubelet has no such folder.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

async fn alive(socket: &Path) -> bool {
    match timeout(DIAL_WITHIN, UnixStream::connect(socket)).await {
        Ok(Err(error)) => !matches!(
            error.kind(),
            // Nobody listens; it is gone; it is no socket.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        ),
        Ok(Ok(_)) | Err(_) => true,
    }
}

/// Keeps looking until `stop`.
pub async fn run(
    folders: Folders,
    neighbours: watch::Sender<Vec<Neighbour>>,
    inventory: watch::Receiver<Inventory>,
    events: EventSink,
    stop: CancellationToken,
) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Vec::new();
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let now = look(&folders).await;
        neighbours.send_if_modified(|before| {
            let news = *before != now;
            before.clone_from(&now);
            news
        });
        let refused = refusals(&now, &inventory.borrow());
        for note in refused.iter().filter(|note| !told.contains(*note)) {
            events.node(Kind::Warning, "DevicesServedByAnother", note);
        }
        if refused.is_empty() && !told.is_empty() {
            events.node(
                Kind::Normal,
                "DevicesTakenOver",
                "nobody else serves this machine's devices any more",
            );
        }
        told = refused;
    }
}

fn refusals(neighbours: &[Neighbour], inventory: &Inventory) -> Vec<String> {
    let resources = inventory.resources();
    let refused = resources.iter().filter_map(|resource| {
        Some(format!("{resource} is not served: {}", objection(neighbours, inventory, resource)?))
    });
    refused.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn others_are_known_by_the_names_of_their_sockets() {
        let check = |name: &str, expected: Option<Offers>| {
            assert_eq!(plugin(name).map(|(_, offers)| offers), expected, "{name}");
        };
        for name in ["nvidia.sock", "nvidia-gpu.sock", "nvidia-mig-1g.5gb.sock", "nvidiagpushare.sock"] {
            check(name, Some(NVIDIA));
        }
        check("fpga.intel.com-af-abc.sock", Some(Offers::Domain("fpga.intel.com")));
        check("xilinx_u50_gen3x16_xdma_201920_3-0-fpga.sock", Some(Offers::Domain("amd.com")));
        for name in ["kubelet.sock", "spillway-nvidia.com_gpu.sock", "nvidia-gpu", "rdma.sock", "xilinx.sock"]
        {
            check(name, None);
        }
        for name in ["gpu.nvidia.com-reg.sock", "gpu.nvidia.com-0f8fad5b-reg.sock"] {
            assert!(driver(name).is_some(), "{name}");
        }
        for name in
            ["compute-domain.nvidia.com-reg.sock", "gpu.nvidia.community-reg.sock", "gpu.nvidia.com.sock"]
        {
            assert!(driver(name).is_none(), "{name}");
        }
    }

    #[tokio::test]
    async fn only_a_socket_that_somebody_listens_on_counts() {
        let root = tempfile::tempdir().unwrap();
        let folders = Folders {
            device_plugins: root.path().join("device-plugins"),
            plugins_registry: root.path().join("plugins_registry"),
        };
        assert_eq!(look(&folders).await, [], "without the folders");
        for folder in [&folders.device_plugins, &folders.plugins_registry] {
            std::fs::create_dir(folder).unwrap();
        }
        let plugin = UnixListener::bind(folders.device_plugins.join("nvidia-gpu.sock")).unwrap();
        let driver = UnixListener::bind(folders.plugins_registry.join("gpu.nvidia.com-reg.sock")).unwrap();
        drop(UnixListener::bind(folders.device_plugins.join("fpga.intel.com-af-x.sock")).unwrap());
        let who = async || look(&folders).await.into_iter().map(|one| one.name).collect::<Vec<_>>();
        assert_eq!(
            who().await,
            ["NVIDIA's DRA driver (gpu.nvidia.com-reg.sock)", "NVIDIA's device plugin (nvidia-gpu.sock)"]
        );
        drop(driver);
        assert_eq!(who().await, ["NVIDIA's device plugin (nvidia-gpu.sock)"]);
        drop(plugin);
        assert_eq!(who().await, [""; 0], "the file alone says nothing");
    }
}
