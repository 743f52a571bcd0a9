//! The kernel's own way to program a port of a DFL card: one ioctl on the management engine's node. The only `unsafe` of this crate.
//!
//! Source: `include/uapi/linux/fpga-dfl.h`, `drivers/fpga/dfl-fme-pr.c`. The kernel holds the port in reset meanwhile, and copies the image
//! before it writes it.
#![allow(unsafe_code, reason = "an ioctl that is given a pointer")]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::libc::O_EXCL;

use super::{Programmer, ProgrammingError};
use crate::discovery::dfl::Place;

/// `struct dfl_fpga_fme_port_pr`.
#[repr(C)]
struct PortReconfiguration {
    size: u32,
    flags: u32,
    port: u32,
    image_size: u32,
    image_address: u64,
}

/// `DFL_FPGA_MAGIC`, and `DFL_FME_BASE + 0`. It takes a pointer although its number says that it takes nothing.
const PORT_PR: nix::sys::ioctl::ioctl_num_type = nix::request_code_none!(0xB6, 0x80);

nix::ioctl_write_ptr_bad!(dfl_fpga_fme_port_pr, PORT_PR, PortReconfiguration);

/// Programs ports by the DFL driver's management engine.
#[derive(Debug)]
pub struct DflProgrammer {
    dev: PathBuf,
}

impl DflProgrammer {
    /// By the nodes in the folder `dev`.
    pub fn new(dev: PathBuf) -> Self {
        Self { dev }
    }
}

impl Programmer for DflProgrammer {
    fn program(&self, place: &Place, image: &[u8]) -> Result<(), ProgrammingError> {
        // The driver lets nobody else in while somebody has it exclusively (`dfl_feature_dev_use_begin`), and resets the port at the end.
        let port = self.dev.join(&place.port);
        let _exclusive = open(&port, O_EXCL).map_err(|error| match error {
            ProgrammingError::Open { path, source } if source.kind() == io::ErrorKind::ResourceBusy => {
                ProgrammingError::InUse(path)
            }
            other => other,
        })?;
        let path = self.dev.join(&place.engine);
        let engine = open(&path, 0)?;
        reconfigure(&engine, place.number, image).map_err(|source| ProgrammingError::Refused { path, source })
    }
}

fn open(path: &Path, flags: i32) -> Result<File, ProgrammingError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|source| ProgrammingError::Open { path: path.to_owned(), source })
}

fn reconfigure(engine: &File, port: u32, image: &[u8]) -> io::Result<()> {
    let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let order = PortReconfiguration {
        size: u32::try_from(size_of::<PortReconfiguration>()).map_err(too_large)?,
        flags: 0,
        port,
        image_size: u32::try_from(image.len()).map_err(too_large)?,
        image_address: image.as_ptr().expose_provenance() as u64,
    };
    // SAFETY: `order` and the `image_size` bytes at `image_address` are borrowed until the call returns; the kernel reads both and writes neither.
    unsafe { dfl_fpga_fme_port_pr(engine.as_raw_fd(), &raw const order) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            port: "null".to_owned(),
            engine: "zero".to_owned(),
            number: 0,
            interface: String::new(),
            function: None,
        }
    }

    #[test]
    fn the_order_is_what_the_kernel_expects() {
        assert_eq!(size_of::<PortReconfiguration>(), 24);
        assert_eq!(std::mem::offset_of!(PortReconfiguration, image_address), 16);
        assert_eq!(PORT_PR, 0xB680);
    }

    #[test]
    fn a_driver_that_knows_no_ports_refuses() {
        let error = DflProgrammer::new(PathBuf::from("/dev")).program(&place(), b"image").unwrap_err();
        let ProgrammingError::Refused { path, source } = error else { panic!("{error:?}") };
        assert_eq!(
            (path.as_path(), source.raw_os_error()),
            (Path::new("/dev/zero"), Some(nix::libc::ENOTTY))
        );
    }

    #[test]
    fn a_missing_node_is_named() {
        let error =
            DflProgrammer::new(PathBuf::from("/nonexistent")).program(&place(), b"image").unwrap_err();
        assert_eq!(error.to_string(), "can't open /nonexistent/null to program it");
    }
}
