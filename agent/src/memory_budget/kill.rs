//! Ending a process without ever ending another: its ID may have passed to somebody else since the driver named it. So it is held by a
//! descriptor first, then it is checked whether it (still) is in the pod, and only what the descriptor holds is signalled.

use std::fmt;

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::usage::processes::Processes;

/// Ends processes.
pub trait Kill: Send + Sync + fmt::Debug {
    /// Ends the process, if it is in this pod.
    ///
    /// # Errors
    /// When it isn't, or may not be ended.
    fn kill(&self, pid: u32, pod_uid: &str) -> Result<(), KillError>;
}

/// Why a process was not ended.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KillError {
    /// It has ended by itself.
    #[error("process {0} has ended")]
    Gone(u32),
    /// The ID is another process's.
    #[error("process {0} is not in the pod")]
    Elsewhere(u32),
    /// No process that a pod could have.
    #[error("{0} is no process of a pod")]
    Nonsense(u32),
    /// The system refuses.
    #[error("can't end process {pid}: the agent needs the host's process IDs (hostPID) and CAP_KILL")]
    Refused {
        /// The process.
        pid: u32,
        /// What the system says.
        source: Errno,
    },
}

/// By the kernel.
#[derive(Debug, Clone)]
pub struct ProcessKiller {
    /// Where the pod of a process is looked up; of the same process IDs as this process's own.
    pub processes: Processes,
}

impl Kill for ProcessKiller {
    fn kill(&self, pid: u32, pod_uid: &str) -> Result<(), KillError> {
        let refused = |source| match source {
            Errno::SRCH => KillError::Gone(pid),
            source => KillError::Refused { pid, source },
        };
        let id =
            i32::try_from(pid).ok().filter(|id| *id > 1 && pid != std::process::id()).and_then(Pid::from_raw);
        let process =
            pidfd_open(id.ok_or(KillError::Nonsense(pid))?, PidfdFlags::empty()).map_err(refused)?;
        match self.processes.pod(pid) {
            Some(uid) if uid == pod_uid => pidfd_send_signal(&process, Signal::KILL).map_err(refused),
            // Nothing can be read of a process that is gone, and what is in no pod at all is not ours to end.
            _ => Err(KillError::Elsewhere(pid)),
        }
    }
}
