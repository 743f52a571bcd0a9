//! The device program, and what holds it to a cgroup.

use std::{fs::File, os::fd::OwnedFd, path::Path};

use super::{
    KernelError,
    call::{self, ATTACH_CGROUP_DEVICE},
    name, pin, pinned,
};
use crate::isolation::program::Instruction;

const LINK_TYPE_CGROUP: u32 = 3;
/// Room for what the verifier has to say.
const LOG_SIZE: usize = 64 << 10;

/// A loaded device program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    /// The kernel's number for it.
    pub id: u32,
}

impl Program {
    /// Loads it.
    ///
    /// # Errors
    /// With the verifier's words, when it refuses.
    pub fn load(code: &[Instruction], program_name: &str) -> Result<Self, KernelError> {
        let name = name(program_name);
        // Once more, with a buffer for the reasons: without need they cost memory and may be cut off, which is an error again.
        let fd = call::load(code, name, None).or_else(|source| {
            let mut log = vec![0; LOG_SIZE];
            call::load(code, name, Some(&mut log)).map_err(|_| {
                let length = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                let log = String::from_utf8_lossy(&log[..length]);
                let lines: Vec<_> = log.trim().lines().collect();
                let last = lines[lines.len().saturating_sub(4)..].join("; ");
                KernelError::Refused { log: last, source }
            })
        })?;
        // struct bpf_prog_info: type, id, ...
        let [_, id] =
            call::info(&fd).map_err(|source| KernelError::Call { what: "describe a BPF program", source })?;
        Ok(Self { fd, id })
    }
}

/// What holds a program to a cgroup.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

/// How a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// The kernel's number for it.
    pub id: u32,
    /// The program that it holds.
    pub program: u32,
    /// The cgroup's ID; 0 once it was detached, or the cgroup is gone.
    pub cgroup: u64,
}

impl Link {
    /// Attaches a program to a cgroup, beside all that are there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(program: &Program, cgroup: &File) -> Result<Self, KernelError> {
        let fd = call::attach(&program.fd, cgroup).map_err(|source| KernelError::Call {
            what: "attach the device program to the cgroup",
            source,
        })?;
        Ok(Self { fd })
    }

    /// Opens a pinned one; none if what is pinned there holds no device program to a cgroup.
    ///
    /// # Errors
    /// When nothing is pinned there, or it can't be opened.
    pub fn open(path: &Path) -> Result<Option<Self>, KernelError> {
        let link = Self { fd: pinned(path)? };
        let [kind, _, _, _, _, _, attach_type] = link.info()?;
        Ok((kind == LINK_TYPE_CGROUP && attach_type == ATTACH_CGROUP_DEVICE).then_some(link))
    }

    /// struct `bpf_link_info`: type, id, `prog_id`, padding, then for a cgroup: `cgroup_id` in two words, `attach_type`.
    fn info(&self) -> Result<[u32; 7], KernelError> {
        call::info(&self.fd).map_err(|source| KernelError::Call { what: "describe a BPF link", source })
    }

    /// Puts another program in the place of the one it holds, in one step: no open is ever unguarded.
    ///
    /// # Errors
    /// When it was detached.
    pub fn replace(&self, program: &Program) -> Result<(), KernelError> {
        call::replace(&self.fd, &program.fd)
            .map_err(|source| KernelError::Call { what: "replace the device program", source })
    }

    /// Takes the program off the cgroup, whoever else holds the link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&self) -> Result<(), KernelError> {
        call::detach(&self.fd)
            .map_err(|source| KernelError::Call { what: "detach the device program", source })
    }

    /// How it stands.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn state(&self) -> Result<LinkState, KernelError> {
        let [_, id, program, _, low, high, _] = self.info()?;
        let mut cgroup = [0; 8];
        cgroup[..4].copy_from_slice(&low.to_ne_bytes());
        cgroup[4..].copy_from_slice(&high.to_ne_bytes());
        Ok(LinkState { id, program, cgroup: u64::from_ne_bytes(cgroup) })
    }

    /// Keeps it at `path`: the program stays when this process ends.
    ///
    /// # Errors
    /// When something is there, or it isn't in a bpffs.
    pub fn pin(&self, path: &Path) -> Result<(), KernelError> {
        pin(&self.fd, path)
    }
}
