//! What the configuration says of devices that several pods hold at once.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Unexpected, Visitor},
};
use serde_saphyr::Spanned;

use super::{MigStrategy, parse, parse::Place};
use crate::device::{DeviceId, ResourceName};

/// Kubernetes takes no ID longer than 63 characters, and a GPU's UUID with `::` leaves room for many digits; but beyond this a list of
/// one device's replicas alone is more than the kubelet receives.
const MOST_REPLICAS: u32 = 50_000;
/// What is added to the name of a resource that is shared, if that is asked for.
const SHARED_SUFFIX: &str = ".shared";

/// Devices that several pods hold at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Sharing {
    /// In turns, without any limit.
    pub time_slicing: Replicated,
    /// At the same time, by NVIDIA's multi-process service, which limits memory and threads.
    pub mps: Replicated,
    /// In turns, with a memory budget each that the agent watches.
    pub memory: MemoryShares,
}

/// The resources that are shared in one way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Replicated {
    /// Whether shared resources that have no other name are called `….shared`.
    #[serde(default)]
    pub rename_by_default: bool,
    /// Whether a container that asks for more than one replica gets nothing: two are no faster than one.
    /// Without it: yes with MPS, no with time slicing, as in NVIDIA's plugin.
    #[serde(default)]
    pub fail_requests_greater_than_one: Option<bool>,
    /// The resources.
    #[serde(deserialize_with = "some_resources")]
    pub resources: Vec<Shared>,
}

/// What the agent does when a share uses more memory than its budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryMode {
    /// Nothing; budgets are a promise.
    Off,
    /// It says so.
    #[default]
    Report,
    /// It ends the process that uses most.
    Kill,
}

/// Shares with a memory budget.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MemoryShares {
    /// What happens over the budget.
    #[serde(default)]
    pub mode: MemoryMode,
    /// Percent of the budget from which on it is said that it nears.
    #[serde(default = "MemoryShares::default_percent", deserialize_with = "percent")]
    pub warn_percent: u32,
    /// Whether shared resources that have no other name are called `….shared`.
    #[serde(default)]
    pub rename_by_default: bool,
    /// Whether a container that asks for more than one share gets nothing.
    #[serde(default)]
    pub fail_requests_greater_than_one: bool,
    /// The resources.
    #[serde(deserialize_with = "some_resources")]
    pub resources: Vec<Shared>,
}

impl MemoryShares {
    fn default_percent() -> u32 {
        90
    }
}

impl Default for MemoryShares {
    fn default() -> Self {
        Self {
            mode: MemoryMode::default(),
            warn_percent: Self::default_percent(),
            rename_by_default: false,
            fail_requests_greater_than_one: false,
            resources: Vec::new(),
        }
    }
}

/// One shared resource.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "SharedEntry")]
pub struct Shared {
    /// What its devices are called without sharing.
    pub name: ResourceName,
    /// What its replicas are called instead.
    pub rename: Option<ResourceName>,
    /// Which of its devices are shared.
    pub devices: SharedDevices,
    /// How many replicas each of them has.
    pub replicas: u32,
    /// What each replica may use of its device's memory, in MiB. Only with `sharing.memory`; an equal part without it.
    pub memory_mib: Option<u64>,
    place: Place,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SharedEntry {
    name: Spanned<Name>,
    #[serde(default)]
    rename: Option<Name>,
    #[serde(default)]
    devices: SharedDevices,
    #[serde(deserialize_with = "replicas")]
    replicas: u32,
    #[serde(default, rename = "memoryMiB")]
    memory_mib: Option<u64>,
}

#[derive(Deserialize)]
struct Name(#[serde(deserialize_with = "parse::resource_name")] ResourceName);

impl From<SharedEntry> for Shared {
    fn from(entry: SharedEntry) -> Self {
        Self {
            place: entry.name.referenced.into(),
            name: entry.name.value.0,
            rename: entry.rename.map(|name| name.0),
            devices: entry.devices,
            replicas: entry.replicas,
            memory_mib: entry.memory_mib,
        }
    }
}

impl Shared {
    /// What the replicas are called.
    ///
    /// # Errors
    /// When the name is too long for the suffix.
    pub fn offered_as(&self, rename_by_default: bool) -> Result<ResourceName, crate::device::NameError> {
        match &self.rename {
            Some(name) => Ok(name.clone()),
            None if rename_by_default => ResourceName::new(format!("{}{SHARED_SUFFIX}", self.name)),
            None => Ok(self.name.clone()),
        }
    }
}

/// Which devices of a resource are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SharedDevices {
    /// All.
    #[default]
    All,
    /// The first so many.
    Count(u32),
    /// These.
    List(Vec<DeviceRef>),
}

/// How the configuration names a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceRef {
    /// An accelerator, by its index.
    Index(u32),
    /// A partition: its accelerator's index, and its own there.
    Partition(u32, u32),
    /// A UUID.
    Id(DeviceId),
}

impl DeviceRef {
    fn read(text: &str) -> Option<Self> {
        if let Ok(index) = text.parse() {
            return Some(Self::Index(index));
        }
        if let Some((index, partition)) = text.split_once(':')
            && let (Ok(index), Ok(partition)) = (index.parse(), partition.parse())
        {
            return Some(Self::Partition(index, partition));
        }
        // Anything else that can be an ID: other vendors have other forms than UUIDs.
        DeviceId::new(text).ok().map(Self::Id)
    }
}

impl<'de> Deserialize<'de> for DeviceRef {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        // A plain number is a text here, too.
        let text = String::deserialize(input)?;
        Self::read(&text).ok_or_else(|| {
            Error::invalid_value(Unexpected::Str(&text), &"an index such as 0 or \"0:1\", or a UUID")
        })
    }
}

impl<'de> Deserialize<'de> for SharedDevices {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Which;

        impl<'de> Visitor<'de> for Which {
            type Value = SharedDevices;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(
                    "\"all\", a number of devices greater than zero, or a list of indexes and UUIDs",
                )
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<SharedDevices, E> {
                if word == "all" {
                    Ok(SharedDevices::All)
                } else {
                    Err(E::invalid_value(Unexpected::Str(word), &self))
                }
            }

            fn visit_u64<E: Error>(self, count: u64) -> Result<SharedDevices, E> {
                match u32::try_from(count) {
                    Ok(count) if count > 0 => Ok(SharedDevices::Count(count)),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(count), &self)),
                }
            }

            fn visit_i64<E: Error>(self, count: i64) -> Result<SharedDevices, E> {
                match u64::try_from(count) {
                    Ok(count) => self.visit_u64(count),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(count), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<SharedDevices, A::Error> {
                let mut devices = Vec::new();
                while let Some(device) = list.next_element()? {
                    devices.push(device);
                }
                Ok(SharedDevices::List(devices))
            }
        }

        input.deserialize_any(Which)
    }
}

fn some_resources<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Shared>, D::Error> {
    let resources = Vec::deserialize(input)?;
    if resources.is_empty() { Err(Error::invalid_length(0, &"at least one resource")) } else { Ok(resources) }
}

fn replicas<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    let number = i64::deserialize(input)?;
    u32::try_from(number).ok().filter(|number| (2..=MOST_REPLICAS).contains(number)).ok_or_else(|| {
        Error::custom(format!("replicas: expected a number from 2 to {MOST_REPLICAS} and found {number}"))
    })
}

fn percent<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    let number = i64::deserialize(input)?;
    u32::try_from(number).ok().filter(|number| (1..=100).contains(number)).ok_or_else(|| {
        Error::custom(format!("warnPercent: expected a number from 1 to 100 and found {number}"))
    })
}

/// A way to share a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `sharing.timeSlicing`
    TimeSlicing,
    /// `sharing.mps`
    Mps,
    /// `sharing.memory`
    Memory,
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::TimeSlicing => "sharing.timeSlicing",
            Self::Mps => "sharing.mps",
            Self::Memory => "sharing.memory",
        })
    }
}

impl Sharing {
    /// Every shared resource, and how it is shared.
    pub fn all<'a>(&'a self) -> impl Iterator<Item = (Way, &'a Shared)> {
        let under = |way, resources: &'a [Shared]| resources.iter().map(move |shared| (way, shared));
        under(Way::TimeSlicing, &self.time_slicing.resources)
            .chain(under(Way::Mps, &self.mps.resources))
            .chain(under(Way::Memory, &self.memory.resources))
    }

    /// Whether replicas are renamed that have no name of their own.
    pub fn renames_by_default(&self, way: Way) -> bool {
        match way {
            Way::TimeSlicing => self.time_slicing.rename_by_default,
            Way::Mps => self.mps.rename_by_default,
            Way::Memory => self.memory.rename_by_default,
        }
    }

    /// Whether a container that asks for more than one replica gets nothing.
    pub fn refuses_several(&self, way: Way) -> bool {
        match way {
            Way::TimeSlicing => self.time_slicing.fail_requests_greater_than_one.unwrap_or(false),
            Way::Mps => self.mps.fail_requests_greater_than_one.unwrap_or(true),
            Way::Memory => self.memory.fail_requests_greater_than_one,
        }
    }

    /// What can't be, whatever devices there are.
    pub(super) fn mistakes(&self, mig: MigStrategy) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut seen: BTreeMap<&ResourceName, (Way, Place)> = BTreeMap::new();
        let mut offered: BTreeMap<ResourceName, (Way, Place)> = BTreeMap::new();
        for (way, shared) in self.all() {
            let (name, place) = (&shared.name, shared.place);
            let again = seen.insert(name, (way, place));
            if let Some((before, at)) = again {
                mistakes.push(if before == way {
                    format!("{place}: {way} names {name} again, which {at} did already")
                } else {
                    format!("{place}: {name} can't be shared by {way} and by {before} ({at}) at once")
                });
            }
            if way != Way::Memory && shared.memory_mib.is_some() {
                mistakes.push(format!("{place}: memoryMiB belongs to sharing.memory"));
            }
            if shared.memory_mib == Some(0) {
                mistakes.push(format!("{place}: a replica of {name} can't do without memory"));
            }
            match shared.offered_as(self.renames_by_default(way)) {
                // What a container is told depends on the way, and the way is known by the name that it asked for.
                Ok(name) => match offered.get(&name) {
                    Some((before, at)) if *before != way && again.is_none() => mistakes.push(format!(
                        "{place}: {name} can't be what is shared by {way}, and what is shared by {before} ({at})"
                    )),
                    _ => drop(offered.insert(name, (way, place))),
                },
                Err(error) => mistakes.push(format!("{place}: {error}")),
            }
            if way == Way::Mps && (mig != MigStrategy::None || name.as_str().contains("/mig-")) {
                mistakes.push(format!("{place}: MPS can't share partitions: {name} needs migStrategy none"));
            }
        }
        mistakes
    }
}
