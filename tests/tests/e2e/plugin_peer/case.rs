//! What a case of the comparison is made of.

use std::{fmt, io};

use spillway_tests::standin::{GpuStandin, MigStandin};

/// Something that happens to a machine's GPUs.
type Change = fn(&GpuStandin) -> io::Result<()>;

/// One input.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) gpus: u32,
    /// The configuration of both, as YAML.
    pub(super) config: &'static str,
    /// How GPUs are partitioned.
    pub(super) migs: fn() -> Vec<(u32, Vec<MigStandin>)>,
    /// Other drivers' device nodes.
    pub(super) nodes: &'static [&'static str],
    /// What else there is to the machine.
    pub(super) machine: Change,
    /// How many devices of which resource NVIDIA's plugin offers; what is waited for.
    pub(super) offers: &'static [(&'static str, usize)],
    /// The same of ours, where it differs; then sick ones count.
    pub(super) ours: Option<&'static [(&'static str, usize)]>,
    pub(super) asks: Vec<Ask>,
    /// What breaks after that, and what NVIDIA's plugin writes at least.
    pub(super) breaks: Option<(Change, &'static str)>,
    /// Links of NVIDIA's own, by pairs of minor numbers.
    pub(super) links: &'static [(u32, u32, u32)],
    /// Whether NVIDIA's plugin ends with an error, and ours.
    pub(super) ends: (bool, bool),
    /// Nothing but whether it starts is compared.
    pub(super) only_starts: bool,
}

/// One request for a resource's devices, which are counted in the order of their IDs.
pub(super) struct Ask {
    pub(super) resource: &'static str,
    pub(super) shape: Shape,
}

pub(super) enum Shape {
    Allocate(&'static [usize]),
    /// A device that there isn't.
    Unknown,
    Preferred {
        without: &'static [usize],
        must: &'static [usize],
        size: usize,
    },
}

impl fmt::Display for Ask {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shape {
            Shape::Allocate(places) => write!(formatter, "{} allocate {places:?}", self.resource),
            Shape::Unknown => write!(formatter, "{} allocate unknown", self.resource),
            Shape::Preferred { without, must, size } => {
                write!(formatter, "{} prefer {size} without {without:?} with {must:?}", self.resource)
            }
        }
    }
}

pub(super) const GPU: &str = "nvidia.com/gpu";

pub(super) fn allocate(resource: &'static str, places: &'static [usize]) -> Ask {
    Ask { resource, shape: Shape::Allocate(places) }
}

pub(super) fn prefer(without: &'static [usize], must: &'static [usize], size: usize) -> Ask {
    Ask { resource: GPU, shape: Shape::Preferred { without, must, size } }
}

/// Two whole GPUs, nothing configured, and nobody asks.
pub(super) const PLAIN: Case = Case {
    name: "",
    gpus: 2,
    config: "version: v1\n",
    migs: Vec::new,
    nodes: &[],
    machine: |_| Ok(()),
    offers: &[(GPU, 2)],
    ours: None,
    asks: Vec::new(),
    breaks: None,
    links: &[],
    ends: (false, false),
    only_starts: false,
};
