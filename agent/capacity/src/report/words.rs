//! How amounts, times and names are said.

use jiff::Timestamp;

use super::{
    quantity::{bytes, cores},
    snapshot::{Names, ResourceId},
};

/// `4 GPUs`, `1 core`, `64Gi of memory`, `2 nvidia.com/mig-1g.5gb`.
pub(super) fn amount(names: &Names, resource: ResourceId, amount: i64) -> String {
    match resource {
        ResourceId::CPU => format!("{} {}", cores(amount), if amount == 1000 { "core" } else { "cores" }),
        ResourceId::MEMORY => format!("{} of memory", bytes(amount)),
        _ if is_bytes(names.name(resource)) => format!("{} of {}", bytes(amount), names.name(resource)),
        ResourceId::PODS => format!("{amount} {}", if amount == 1 { "pod" } else { "pods" }),
        _ => format!("{amount} {}", things(names.name(resource), amount)),
    }
}

/// Whether a resource's amounts are bytes.
fn is_bytes(resource: &str) -> bool {
    resource == "ephemeral-storage" || resource.starts_with("hugepages-")
}

/// What a resource is called, one or many of it.
pub(super) fn things(resource: &str, count: i64) -> String {
    let plural = if count == 1 { "" } else { "s" };
    match resource {
        "cpu" => format!("core{plural}"),
        "memory" => "memory".to_owned(),
        "nvidia.com/gpu" | "amd.com/gpu" | "gpu.intel.com/i915" | "gpu.intel.com/xe" => {
            format!("GPU{plural}")
        }
        "nvidia.com/gpu.shared" => format!("shared GPU{plural}"),
        _ => resource.to_owned(),
    }
}

/// `3 h`, `5 min`, `2 d`: as much as one needs to know.
pub(super) fn lasting(seconds: f64) -> String {
    let minutes = seconds / 60.0;
    let (number, unit) = match minutes {
        _ if seconds < 100.0 => (seconds, "s"),
        _ if minutes < 100.0 => (minutes, "min"),
        _ if minutes < 48.0 * 60.0 => (minutes / 60.0, "h"),
        _ => (minutes / 60.0 / 24.0, "d"),
    };
    format!("{:.0} {unit}", number.max(0.0).floor())
}

/// Seconds from `then` to `now`, never less than none.
pub(super) fn seconds_between(then: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(then).as_secs_f64().max(0.0)
}

/// The first few of many: `gpu-1, gpu-2 and 7 more`.
pub(super) fn few<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const FEW: usize = 3;
    let all: Vec<_> = names.into_iter().collect();
    let more = all.len().saturating_sub(FEW);
    match (more, all.as_slice()) {
        (0, [one]) => (*one).to_owned(),
        (0, [first @ .., last]) => format!("{} and {last}", first.join(", ")),
        (0, []) => String::new(),
        _ => format!("{} and {more} more", all[..FEW].join(", ")),
    }
}

/// The beginning of a text that may be of any length.
pub(super) fn clipped(text: &str, most: usize) -> String {
    let text = text.trim();
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_lists_are_short() {
        assert_eq!(
            [lasting(3.9), lasting(300.0), lasting(3.0 * 3600.0), lasting(1e6)],
            ["3 s", "5 min", "3 h", "11 d"]
        );
        assert_eq!(few(["a"]), "a");
        assert_eq!(few(["a", "b", "c"]), "a, b and c");
        assert_eq!(few(["a", "b", "c", "d"]), "a, b, c and 1 more");
        assert_eq!(clipped("  größer ", 3), "grö…");
    }
}
