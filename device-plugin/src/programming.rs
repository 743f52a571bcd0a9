//! Putting an accelerator function into a port before the container starts that asked for it.
//!
//! Intel's plugin is told by annotations and variables of the pod which function is wanted, and programs in a hook of the container runtime. Here
//! the resource says it: the configuration reserves ports for functions (`fpga.functions`), these are offered as `fpga.intel.com/af-…`, and when
//! the kubelet asks before it starts a container (PreStartContainer), the port gets the function unless it has it.
//!
//! Before anything is written: the bitstream is there, can be read whole, and is made for this port's interface and of this function. Afterwards:
//! the port says that it has the function. A container never starts on anything else, and its state says why.
//!
//! This was tried with ports and programmers that are stand-ins, and with a kernel that has no such card. It never ran on a board.

mod kernel;

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{sync::watch, task::spawn_blocking};

pub use kernel::DflProgrammer;

use crate::{
    bitstream::{self, Bitstream, BitstreamError},
    causes::one_line,
    config::{Config, FpgaFunction, FpgaMode},
    device::{DeviceId, ResourceName},
    discovery::{
        Roots,
        dfl::{self, Place},
        intel::function_resource,
    },
    server::PreStart,
};

/// The largest bitstreams of the largest cards have about 100 MiB.
const FILE_LIMIT: u64 = 512 << 20;

/// Why a port was not programmed.
#[derive(Debug, thiserror::Error)]
pub enum ProgrammingError {
    /// The port can't be found, or is none that can be programmed.
    #[error("can't program {device}: {why}")]
    Place {
        /// The device.
        device: DeviceId,
        /// Why not.
        why: String,
    },
    /// The bitstream can't be read.
    #[error("can't read the bitstream {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The bitstream is larger than any card.
    #[error("the bitstream {0} is larger than that of any card: more than 512 MiB")]
    Size(PathBuf),
    /// The file is no bitstream.
    #[error("{path} is no bitstream for a port")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BitstreamError,
    },
    /// The bitstream is for other hardware, or of another function.
    #[error("{path} is for {what} {is}, expected {expected}: nothing was programmed")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Which of its ids.
        what: &'static str,
        /// The id.
        is: String,
        /// What it should be.
        expected: String,
    },
    /// Somebody has the port open.
    #[error("{0} is in use by a process: it is not programmed until that has ended")]
    InUse(PathBuf),
    /// A device node can't be opened.
    #[error("can't open {path} to program it")]
    Open {
        /// The node.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel or the card refuses.
    #[error("{path} refuses the bitstream; the card's fpga_manager in sysfs may say why")]
    Refused {
        /// The management engine's node.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It was programmed, and does not say so.
    #[error("{device} was programmed with {expected}, and now has {is}")]
    NotThere {
        /// The device.
        device: DeviceId,
        /// The function that should be in it.
        expected: String,
        /// What is in it.
        is: String,
    },
}

/// Who writes an image into a port.
pub trait Programmer: fmt::Debug + Send + Sync {
    /// Writes it. Blocks until it is there.
    ///
    /// # Errors
    /// When the port is in use, or is refused.
    fn program(&self, place: &Place, image: &[u8]) -> Result<(), ProgrammingError>;
}

/// Programs ports for containers that are about to start.
#[derive(Debug, Clone)]
pub struct Programming {
    roots: Roots,
    configs: watch::Receiver<Arc<Config>>,
    programmer: Arc<dyn Programmer>,
    /// One at a time: two ports of a card have one management engine, and the kubelet asks again when it has lost patience.
    busy: Arc<Mutex<()>>,
}

impl Programming {
    /// Programs what is found under `roots` by `programmer`, as the configuration of the moment says.
    pub fn new(roots: Roots, configs: watch::Receiver<Arc<Config>>, programmer: Arc<dyn Programmer>) -> Self {
        Self { roots, configs, programmer, busy: Arc::default() }
    }

    /// The function that ports of `resource` are to have, and where bitstreams lie.
    fn wanted(&self, resource: &ResourceName) -> Option<(FpgaFunction, PathBuf)> {
        let config = self.configs.borrow();
        let fpga = &config.fpga;
        let named = |wanted: &&FpgaFunction| {
            function_resource(&wanted.interface, &wanted.function).as_ref() == Ok(resource)
        };
        let wanted =
            fpga.functions.iter().filter(|_| fpga.enabled && fpga.mode == FpgaMode::Region).find(named)?;
        Some((wanted.clone(), fpga.bitstream_folder.clone()))
    }

    /// Puts the function into the port unless it is there.
    fn put(&self, device: &DeviceId, wanted: &FpgaFunction, folder: &Path) -> Result<(), ProgrammingError> {
        let _one_at_a_time = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let locate = || {
            let failed = |why| ProgrammingError::Place { device: device.clone(), why };
            dfl::locate(&self.roots, device).map_err(failed)
        };
        let place = locate()?;
        if place.interface != wanted.interface {
            let why = format!("its interface is {}, and not {} any more", place.interface, wanted.interface);
            return Err(ProgrammingError::Place { device: device.clone(), why });
        }
        if place.function.as_ref() == Some(&wanted.function) {
            return Ok(());
        }
        let path = folder.join(&wanted.interface).join(format!("{}.gbs", wanted.function));
        let file = read(&path)?;
        let image = matching(&path, &file, wanted)?;
        tracing::info!(device.id = %device, function = wanted.function, bitstream = %path.display(), "programming");
        self.programmer.program(&place, image)?;
        let now = locate()?;
        if now.function.as_ref() != Some(&wanted.function) {
            return Err(ProgrammingError::NotThere {
                device: device.clone(),
                expected: wanted.function.clone(),
                is: now.function.unwrap_or_else(|| "nothing that can be told".to_owned()),
            });
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl PreStart for Programming {
    fn concerns(&self, resource: &ResourceName) -> bool {
        self.wanted(resource).is_some()
    }

    async fn before_start(&self, resource: &ResourceName, devices: &[DeviceId]) -> Result<(), String> {
        let Some((wanted, folder)) = self.wanted(resource) else { return Ok(()) };
        let (programming, devices) = (self.clone(), devices.to_vec());
        let put = move || devices.iter().try_for_each(|device| programming.put(device, &wanted, &folder));
        match spawn_blocking(put).await {
            Ok(result) => result.map_err(|error| one_line(&error)),
            Err(error) => Err(format!("programming ended unexpectedly: {error}")),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ProgrammingError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > FILE_LIMIT => Err(ProgrammingError::Size(path.to_owned())),
        Ok(_) => Ok(bytes),
        Err(source) => Err(ProgrammingError::Read { path: path.to_owned(), source }),
    }
}

/// The image in the file, if it is one for this interface and of this function.
fn matching<'a>(path: &Path, file: &'a [u8], wanted: &FpgaFunction) -> Result<&'a [u8], ProgrammingError> {
    let parsed = bitstream::parse(file)
        .map_err(|source| ProgrammingError::Format { path: path.to_owned(), source })?;
    let mismatch = |what, is: String, expected: &str| ProgrammingError::Mismatch {
        path: path.to_owned(),
        what,
        is,
        expected: expected.to_owned(),
    };
    match parsed {
        Bitstream::Xclbin(xclbin) => Err(mismatch("the shell", xclbin.platform, &wanted.interface)),
        Bitstream::Green(green) if green.interface != wanted.interface => {
            Err(mismatch("interface", green.interface, &wanted.interface))
        }
        Bitstream::Green(green) if green.function != wanted.function => {
            Err(mismatch("function", green.function, &wanted.function))
        }
        Bitstream::Green(green) => Ok(green.image),
    }
}

#[cfg(test)]
mod tests;
