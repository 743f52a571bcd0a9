//! Node labels with the names and values of NVIDIA's GPU feature discovery, so that node selectors written for it go on working.
//! Pure: what is known of the machine goes in. Values come from drivers and firmware, so whatever is no label is taken out of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    look::Gpu,
    mig::{GPU_RESOURCE, Instance, mistake},
    vgpu::Vgpu,
};
use crate::config::{MigStrategy, Sharing, Way};

/// The longest value of a label.
const VALUE_LIMIT: usize = 63;
/// Classes of PCI devices: a card with display outputs, and one without.
const VGA: &str = "0x030000";
const COMPUTE: &str = "0x030200";

/// What is known of the machine.
#[derive(Debug)]
pub struct Machine<'a> {
    /// As the driver spells it.
    pub driver_version: Option<&'a str>,
    /// 1000 × major + 10 × minor.
    pub cuda_version: Option<i32>,
    /// What the firmware calls the machine.
    pub product: Option<&'a str>,
    /// The PCI class that all of its GPUs have, as sysfs spells it.
    pub class: Option<&'a str>,
    /// Whether its GPUs are virtual ones, where that can be read.
    pub vgpu: Option<&'a Vgpu>,
    /// All that can be read.
    pub gpus: &'a [Gpu],
    /// How partitions are offered.
    pub strategy: MigStrategy,
    /// How devices are shared.
    pub sharing: &'a Sharing,
}

/// The labels, but for the time at which they were made. Without GPUs there is none but that there are no virtual ones.
pub fn labels(machine: &Machine<'_>) -> BTreeMap<String, String> {
    let mut labels = Labels::default();
    if let Some(vgpu) = machine.vgpu {
        labels.put("nvidia.com/vgpu.present", *vgpu != Vgpu::None);
        if let Vgpu::Driver { version, branch } = vgpu {
            labels.put("nvidia.com/vgpu.host-driver-version", version);
            labels.put("nvidia.com/vgpu.host-driver-branch", branch);
        }
    }
    if machine.gpus.is_empty() {
        return labels.0;
    }
    labels.put(
        "nvidia.com/gpu.machine",
        machine.product.filter(|name| !name.trim().is_empty()).unwrap_or("unknown"),
    );
    labels.put(
        "nvidia.com/gpu.mode",
        match machine.class {
            Some(VGA) => "graphics",
            Some(COMPUTE) => "compute",
            _ => "unknown",
        },
    );
    versions(&mut labels, machine);
    let on = machine.gpus.iter().any(|gpu| gpu.mig.is_on());
    labels
        .put("nvidia.com/mig.capable", machine.gpus.iter().any(|gpu| gpu.mig != super::mig::Mig::Incapable));
    let mps = machine.sharing.all().any(|(way, shared)| way == Way::Mps && shared.replicas > 1);
    labels.put("nvidia.com/mps.capable", mps && !on);
    if let Some((cluster, clique)) = fabric(machine.gpus) {
        labels.put("nvidia.com/gpu.clique", format!("{}.{clique}", uuid(cluster)));
    }
    gpus(&mut labels, machine);
    match machine.strategy {
        MigStrategy::None => {}
        MigStrategy::Single => {
            labels.put("nvidia.com/mig.strategy", "single");
            single(&mut labels, machine);
        }
        MigStrategy::Mixed => {
            labels.put("nvidia.com/mig.strategy", "mixed");
            for (profile, (model, instance, count)) in profiles(machine.gpus) {
                partitions(
                    &mut labels,
                    machine,
                    &format!("nvidia.com/mig-{profile}"),
                    &model,
                    instance,
                    count,
                );
            }
        }
    }
    labels.0
}

/// Both generations of names for the same versions.
fn versions(labels: &mut Labels, machine: &Machine<'_>) {
    if let Some(version) = machine.driver_version {
        let parts: Vec<_> = version.split('.').collect();
        if let [major, minor, rest @ ..] = parts.as_slice()
            && rest.len() <= 1
        {
            let revision = rest.first().copied().unwrap_or_default();
            labels.put("nvidia.com/cuda.driver.major", major);
            labels.put("nvidia.com/cuda.driver.minor", minor);
            labels.put("nvidia.com/cuda.driver.rev", revision);
            labels.put("nvidia.com/cuda.driver-version.major", major);
            labels.put("nvidia.com/cuda.driver-version.minor", minor);
            labels.put("nvidia.com/cuda.driver-version.revision", revision);
            labels.put("nvidia.com/cuda.driver-version.full", version);
        }
    }
    if let Some(version) = machine.cuda_version.filter(|version| *version > 0) {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        labels.put("nvidia.com/cuda.runtime.major", major);
        labels.put("nvidia.com/cuda.runtime.minor", minor);
        labels.put("nvidia.com/cuda.runtime-version.major", major);
        labels.put("nvidia.com/cuda.runtime-version.minor", minor);
        labels.put("nvidia.com/cuda.runtime-version.full", format!("{major}.{minor}"));
    }
}

/// The whole GPUs. Partitioned ones count, too, but have no replicas; where there are both of a product, or several products, the
/// ones that are handed out whole have the last word.
fn gpus(labels: &mut Labels, machine: &Machine<'_>) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for gpu in machine.gpus {
        *counts.entry(model(gpu)).or_default() += 1;
    }
    let (whole, partitioned): (Vec<_>, Vec<_>) = machine.gpus.iter().partition(|gpu| !gpu.mig.is_on());
    let shared = share(machine.sharing, GPU_RESOURCE);
    for (gpu, share) in partitioned
        .into_iter()
        .map(|gpu| (gpu, Share { replicas: 0, ..Share::default() }))
        .chain(whole.into_iter().map(|gpu| (gpu, shared)))
    {
        labels.base(GPU_RESOURCE, &[model(gpu)], counts.get(model(gpu)).copied().unwrap_or(1), share);
        if let Some(mib) = gpu.fixed.memory_mib {
            labels.put(format!("{GPU_RESOURCE}.memory"), mib);
        }
        if let Some((major, minor)) = gpu.fixed.compute.filter(|(major, _)| *major > 0) {
            labels.put(format!("{GPU_RESOURCE}.family"), family(major, minor));
            labels.put(format!("{GPU_RESOURCE}.compute.major"), major);
            labels.put(format!("{GPU_RESOURCE}.compute.minor"), minor);
        }
    }
}

fn single(labels: &mut Labels, machine: &Machine<'_>) {
    let migs: Vec<_> = machine.gpus.iter().map(|gpu| &gpu.mig).collect();
    if mistake(&migs).is_some() {
        let first = machine.gpus.iter().find(|gpu| gpu.mig.is_on()).map_or("", model);
        labels.put(format!("{GPU_RESOURCE}.product"), product(&[first, "MIG", "INVALID"], false));
        for count in ["count", "replicas", "memory"] {
            labels.put(format!("{GPU_RESOURCE}.{count}"), 0);
        }
        labels.put(format!("{GPU_RESOURCE}.sharing-strategy"), "");
        return;
    }
    for (model, instance, count) in profiles(machine.gpus).into_values() {
        partitions(labels, machine, GPU_RESOURCE, &model, instance, count);
    }
}

/// By profile: a model of GPU that has such partitions, one of them, and how many there are.
fn profiles(gpus: &[Gpu]) -> BTreeMap<String, (String, &Instance, usize)> {
    let mut profiles: BTreeMap<String, (String, &Instance, usize)> = BTreeMap::new();
    for gpu in gpus {
        for instance in gpu.mig.instances() {
            profiles
                .entry(instance.profile.name())
                .or_insert_with(|| (model(gpu).to_owned(), instance, 0))
                .2 += 1;
        }
    }
    profiles
}

fn partitions(
    labels: &mut Labels,
    machine: &Machine<'_>,
    resource: &str,
    model: &str,
    instance: &Instance,
    count: usize,
) {
    let profile = instance.profile.name();
    labels.base(resource, &[model, "MIG", &profile], count, share(machine.sharing, resource));
    let Some(has) = &instance.attributes else { return };
    labels.put(format!("{resource}.memory"), has.memory_mib);
    for (name, count) in [
        ("multiprocessors", has.multiprocessors),
        ("slices.gi", has.gpu_slices),
        ("slices.ci", has.compute_slices),
        ("engines.copy", has.copy_engines),
        ("engines.decoder", has.decoders),
        ("engines.encoder", has.encoders),
        ("engines.jpeg", has.jpegs),
        ("engines.ofa", has.ofas),
    ] {
        labels.put(format!("{resource}.{name}"), count);
    }
}

/// How a resource is shared.
#[derive(Debug, Clone, Copy)]
struct Share {
    replicas: u32,
    strategy: &'static str,
    /// Its replicas are called as the resource is without them.
    suffix: bool,
}

impl Default for Share {
    fn default() -> Self {
        Self { replicas: 1, strategy: "none", suffix: false }
    }
}

fn share(sharing: &Sharing, resource: &str) -> Share {
    let Some((way, shared)) = sharing.all().find(|(_, shared)| shared.name.as_str() == resource) else {
        return Share::default();
    };
    if shared.replicas < 2 {
        return Share::default();
    }
    let renamed = shared.rename.is_some() || sharing.renames_by_default(way);
    let strategy = match way {
        Way::TimeSlicing => "time-slicing",
        Way::Mps => "mps",
        Way::Memory => "memory",
    };
    Share { replicas: shared.replicas, strategy, suffix: !renamed }
}

#[derive(Debug, Default)]
struct Labels(BTreeMap<String, String>);

impl Labels {
    #[allow(clippy::needless_pass_by_value, reason = "most values are made for it")]
    fn put(&mut self, key: impl Into<String>, value: impl ToString) {
        self.0.insert(key.into(), sanitised(&value.to_string()));
    }

    fn base(&mut self, resource: &str, parts: &[&str], count: usize, share: Share) {
        self.put(format!("{resource}.product"), product(parts, share.suffix));
        self.put(format!("{resource}.count"), count);
        self.put(format!("{resource}.replicas"), share.replicas);
        self.put(format!("{resource}.sharing-strategy"), share.strategy);
    }
}

/// A product's name of several parts. What is too long loses the end of the first part, never the others.
fn product(parts: &[&str], shared: bool) -> String {
    let mut parts: Vec<_> = parts.iter().map(|part| clean(part)).filter(|part| !part.is_empty()).collect();
    if shared {
        parts.push("SHARED".to_owned());
    }
    let rest: usize = parts.iter().skip(1).map(|part| part.len() + 1).sum();
    if let Some(first) = parts.first_mut() {
        first.truncate(VALUE_LIMIT.saturating_sub(rest));
    }
    parts.join("-")
}

/// Only characters that a label may have; words are joined by dashes.
fn clean(text: &str) -> String {
    let allowed = |character: &char| {
        character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.') || character.is_whitespace()
    };
    let kept: String = text.chars().filter(allowed).collect();
    kept.split_whitespace().collect::<Vec<_>>().join("-")
}

/// A label's value: at most 63 characters, with a letter or a digit at either end.
fn sanitised(text: &str) -> String {
    let clean = clean(text);
    let trim = |text: &str| text.trim_matches(|edge: char| !edge.is_ascii_alphanumeric()).to_owned();
    let mut value = trim(&clean);
    value.truncate(VALUE_LIMIT);
    trim(&value)
}

fn model(gpu: &Gpu) -> &str {
    gpu.fixed.product.as_deref().unwrap_or_default()
}

/// The fabric that all attached GPUs have in common.
fn fabric(gpus: &[Gpu]) -> Option<([u8; 16], u32)> {
    let mut fabrics: BTreeSet<_> = gpus.iter().filter_map(|gpu| gpu.fixed.fabric).collect();
    if fabrics.len() == 1 { fabrics.pop_first() } else { None }
}

fn uuid(bytes: [u8; 16]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..4], &hex[4..6], &hex[6..8], &hex[8..10], &hex[10..]].map(<[String]>::concat).join("-")
}

fn family(major: u32, minor: u32) -> &'static str {
    match (major, minor) {
        (1, _) => "tesla",
        (2, _) => "fermi",
        (3, _) => "kepler",
        (5, _) => "maxwell",
        (6, _) => "pascal",
        (7, 0..=4) => "volta",
        (7, _) => "turing",
        (8, 0..=8) => "ampere",
        (8, _) => "ada-lovelace",
        (9, _) => "hopper",
        (10 | 12, _) => "blackwell",
        _ => "undefined",
    }
}

#[cfg(test)]
mod tests;
