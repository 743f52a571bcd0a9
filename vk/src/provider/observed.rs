//! What a provider says exists. Values only: no clock, no connection, no opinion about what should be.

use std::net::IpAddr;

use jiff::Timestamp;

use super::runtime::Resources;

/// Which pod something belongs to, as its ownership marks say.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    /// The pod's UID: the identity. The rest is for people and paths.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

impl PodRef {
    /// As a kubelet names a pod in statuses and events: `NAME_NAMESPACE(UID)`.
    pub fn full_name(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }
}

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All that a provider has of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedPod {
    /// Newest first. A pod service has one or none.
    pub sandboxes: Vec<Sandbox>,
    /// Newest first, the ended ones too.
    pub containers: Vec<Container>,
}

/// What a pod's containers share: an address, namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The provider's ID.
    pub id: String,
    /// Counts the pod's sandboxes from 0.
    pub attempt: u32,
    /// Whether containers can be started in it.
    pub ready: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// The pod's addresses; none on the node's network.
    pub ips: Vec<IpAddr>,
    /// The runtime handler that it was made by; empty: the default one, or not told.
    pub runtime_handler: String,
}

/// One attempt at running one container of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The provider's ID, without a scheme.
    pub id: String,
    /// The sandbox it is in.
    pub sandbox_id: String,
    /// The container's name in the pod.
    pub name: String,
    /// The restart count.
    pub attempt: u32,
    /// Where it stands.
    pub state: State,
    /// The image by the name that the provider knows it by.
    pub image: String,
    /// What it resolved to: a digest where there is one.
    pub image_id: String,
    /// The image as the pod named it when this was made; `None`: not known.
    pub asked_image: Option<String>,
    /// Who it runs as, where the provider tells.
    pub user: Option<User>,
    /// Limits in force, where the provider tells.
    pub resources: Option<Resources>,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// Running.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended, or failed to start.
    Exited(Exit),
    /// The provider does not know.
    Unknown,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 and the signal's number when killed by one.
    pub code: i32,
    /// One word: `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    /// For people.
    pub message: String,
    /// None: it never ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// User and groups of a container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: i64,
    /// Group ID.
    pub gid: i64,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
}

impl Container {
    /// How it ended, if it did.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether it runs, or the provider can't rule it out.
    pub fn may_run(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Unknown)
    }
}

impl ObservedPod {
    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// The newest attempt at a container.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// Nothing of the pod is there.
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }
}
