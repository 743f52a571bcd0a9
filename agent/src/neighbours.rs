//! Others on the machine who offer its devices to the kubelet, too: the vendors' own device plugins and DRA drivers. They are known by
//! the names of their sockets, and by an answer on them (a socket that a dead plugin left says nothing); and, whatever they are called,
//! by what the kubelet has from them ([`listed`]).
//!
//! They themselves are not asked what they serve: NVIDIA's plugin, for one, gives each health event to only one of its listeners, and a
//! second one would take it from the kubelet.

mod listed;

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use spillway_device_plugin::{
    inventory::Inventory,
    plugins::{Neighbour, Offers, objection},
    registration::KubeletFolder,
};
use tokio::{
    net::UnixStream,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use listed::{Listing, Sight, Suspects};

use crate::node::events::{EventSink, Kind};

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How soon to look again, a few times, at what the kubelet had when this agent started: it may be an earlier agent's.
const LOOK_AGAIN: (Duration, u32) = (Duration::from_millis(200), 5);
/// How often to ask the kubelet what it has, and how long at every look: a plugin needs a moment from its socket to its registration.
const ASK_EVERY: Duration = Duration::from_secs(30);
const ASK_ON: Duration = Duration::from_secs(10);
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
    /// The socket of the kubelet's pod resources API.
    pub pod_resources: PathBuf,
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

/// Keeps an eye on who else is there.
#[derive(Debug)]
pub struct Lookout {
    folders: Folders,
    suspects: Suspects,
    /// What the sockets of the device plugin folder were, to tell new ones.
    sockets: BTreeSet<Socket>,
    /// When the kubelet is asked again though nothing seems new, and until when it is asked each time.
    ask: (Instant, Instant),
    looks: u32,
}

/// A socket's name, and what tells it from an earlier one of that name.
type Socket = (String, u64, i64, i64);

impl Lookout {
    /// One that has not looked yet.
    pub fn new(folders: Folders) -> Self {
        let now = Instant::now();
        Self { folders, suspects: Suspects::default(), sockets: BTreeSet::new(), ask: (now, now), looks: 0 }
    }

    /// Who is there now. `inventory`: what this agent offers.
    pub async fn look(&mut self, inventory: &watch::Receiver<Inventory>) -> Vec<Neighbour> {
        let mut found = known(&self.folders).await;
        self.looks = self.looks.saturating_add(1);
        let (now, sockets) = (Instant::now(), sockets(&self.folders.device_plugins));
        if sockets != self.sockets {
            self.sockets = sockets;
            self.ask.1 = now + ASK_ON;
        }
        let hurried = self.hurries() || self.suspects.concern(&inventory.borrow());
        if now >= self.ask.0 || now < self.ask.1 || hurried {
            match listed::ask(&self.folders.pod_resources).await {
                Ok(listing) => {
                    self.ask.0 = now + ASK_EVERY;
                    let sight = self.sight(listing, inventory).await;
                    self.suspects.see(&sight);
                }
                // It tells nothing of anybody: what was found stands.
                Err(why) => tracing::debug!(why, "the kubelet does not say which devices it has"),
            }
        }
        found.extend(self.suspects.neighbours());
        found.sort();
        found
    }

    async fn sight(&self, listing: Listing, inventory: &watch::Receiver<Inventory>) -> Sight {
        let folder = &self.folders.device_plugins;
        let (mut ours, mut strangers) = (Listing::new(), BTreeSet::new());
        for resource in listing.keys() {
            if alive(&folder.join(KubeletFolder::endpoint(resource))).await {
                let devices = inventory.borrow().slice(resource).map(|device| device.id.clone()).collect();
                ours.insert(resource.clone(), devices);
            }
        }
        for (name, ..) in &self.sockets {
            if plugin(name).is_none() && alive(&folder.join(name)).await {
                strangers.insert(name.clone());
            }
        }
        Sight { listing, ours, strangers }
    }

    /// How long to wait before the next look.
    fn pause(&self) -> Duration {
        if self.hurries() { LOOK_AGAIN.0 } else { LOOK_EVERY }
    }

    fn hurries(&self) -> bool {
        self.suspects.any() && self.looks <= LOOK_AGAIN.1
    }
}

/// Waits until the kubelet has noticed that the agent before this one has ended; for a moment at most. It goes by the resource's name: a
/// successor that registers in the very moment in which the end is read is taken for the one that ended, and its own end is never
/// noticed then (seen with Kubernetes 1.35).
pub async fn settled(folders: &Folders) {
    let (pause, looks) = LOOK_AGAIN;
    for _ in 0..looks {
        let Ok(listing) = listed::ask(&folders.pod_resources).await else { return };
        let mut left_over = false;
        for resource in listing.keys() {
            left_over |= !alive(&folders.device_plugins.join(KubeletFolder::endpoint(resource))).await;
        }
        if !left_over {
            return;
        }
        sleep(pause).await;
    }
}

/// Who is there by the names of their sockets.
async fn known(folders: &Folders) -> Vec<Neighbour> {
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
    found
}

/// The sockets of the device plugin folder but for the kubelet's and this program's.
fn sockets(folder: &Path) -> BTreeSet<Socket> {
    let foreign = |name: &String| name != KubeletFolder::KUBELET && !KubeletFolder::is_endpoint(name);
    let socket = |name: String| {
        let meta = std::fs::symlink_metadata(folder.join(&name)).ok()?;
        meta.file_type().is_socket().then(|| (name, meta.ino(), meta.ctime(), meta.ctime_nsec()))
    };
    names(folder).into_iter().filter(foreign).filter_map(socket).collect()
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
    mut lookout: Lookout,
    neighbours: watch::Sender<Vec<Neighbour>>,
    inventory: watch::Receiver<Inventory>,
    events: EventSink,
    stop: CancellationToken,
) {
    let mut told = Vec::new();
    while stop.run_until_cancelled(sleep(lookout.pause())).await.is_some() {
        let now = lookout.look(&inventory).await;
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
            pod_resources: root.path().join("kubelet.sock"),
        };
        let mut lookout = Lookout::new(folders.clone());
        let inventory = watch::Sender::new(Inventory::default()).subscribe();
        assert_eq!(lookout.look(&inventory).await, [], "without the folders");
        for folder in [&folders.device_plugins, &folders.plugins_registry] {
            std::fs::create_dir(folder).unwrap();
        }
        let plugin = UnixListener::bind(folders.device_plugins.join("nvidia-gpu.sock")).unwrap();
        let driver = UnixListener::bind(folders.plugins_registry.join("gpu.nvidia.com-reg.sock")).unwrap();
        drop(UnixListener::bind(folders.device_plugins.join("fpga.intel.com-af-x.sock")).unwrap());
        let mut who =
            async || lookout.look(&inventory).await.into_iter().map(|one| one.name).collect::<Vec<_>>();
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
