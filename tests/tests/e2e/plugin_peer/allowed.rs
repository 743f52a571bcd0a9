//! Where ours differs from NVIDIA's plugin, and why. `agent/README.md` tells users the same.

/// A difference that is meant.
pub(super) struct Allowed {
    /// The case's name; `*` stands for any text.
    pub(super) case: &'static str,
    /// What it is about; `*` as above.
    pub(super) key: &'static str,
    pub(super) why: &'static str,
    /// NVIDIA's plugin says one thing or the other by chance.
    pub(super) chance: bool,
}

impl Allowed {
    pub(super) fn fits(&self, case: &str, key: &str) -> bool {
        glob(self.case, case) && glob(self.key, key)
    }
}

/// Whether a text is what a pattern says.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, rest)) => text.strip_prefix(before).is_some_and(|text| {
            (0..=text.len()).any(|at| text.is_char_boundary(at) && glob(rest, &text[at..]))
        }),
    }
}

const fn allow(case: &'static str, key: &'static str, why: &'static str) -> Allowed {
    Allowed { case, key, why, chance: false }
}

/// By case and key; the first that fits is it.
pub(super) const ALLOWED: &[Allowed] = &[
    Allowed {
        case: "two products",
        key: "label nvidia.com/gpu.*",
        why: "of several products under one resource NVIDIA's labels are those of any, in the order of a Go map; ours are always the same",
        chance: true,
    },
    allow(
        "defaults",
        "nvidia.com/gpu allocate * node *",
        "passDeviceSpecs is true unless said otherwise: access that a runtime's hook gives is lost at `systemctl daemon-reload`",
    ),
    allow(
        "*",
        "* options",
        "before a container starts on a sick device it is held back (health.holdBackSickRestarts)",
    ),
    // A layout that migStrategy single can't offer.
    allow(
        "mig single, *",
        "process",
        "a layout that can't be offered is said, and followed when it is mended; nothing ends",
    ),
    allow(
        "mig single, several profiles",
        "nvidia.com/gpu device *",
        "what a wrong layout keeps from being offered is listed as Unhealthy",
    ),
    allow(
        "mig single, one gpu without",
        "nvidia.com/gpu device *",
        "what a wrong layout keeps from being offered is listed as Unhealthy",
    ),
    // NVIDIA's plugin looks for a profile's name anywhere in another's, and takes the first that it finds; its labels don't.
    allow(
        "mig mixed*",
        "nvidia.com/mig-1g.5gb.me *",
        "1g.5gb+me is offered as mig-1g.5gb.me, as the labels have it; NVIDIA's plugin takes it for a 1g.5gb",
    ),
    allow(
        "mig mixed*",
        "nvidia.com/mig-1g.5gb device *",
        "1g.5gb+me is offered as mig-1g.5gb.me, as the labels have it; NVIDIA's plugin takes it for a 1g.5gb",
    ),
    allow(
        "mig mixed, compute instances",
        "nvidia.com/mig-3g.20gb device *",
        "a part of a GPU instance is not offered; NVIDIA's plugin takes 1c.3g.20gb for a 3g.20gb",
    ),
    // CDI.
    allow(
        "*",
        "CDI * hook *",
        "specifications have no hooks: nothing of ours or of the driver's runs in a container",
    ),
    allow(
        "*",
        "CDI * variable NVIDIA_CTK_LIBCUDA_DIR",
        "specifications have no hooks: nothing of ours or of the driver's runs in a container",
    ),
    allow("*", "CDI * mount /usr/lib/*.so.*", "links are mounts, which NVIDIA's hook makes in the container"),
    allow(
        "*",
        "CDI * mount /usr/local/nvidia/lib64/*",
        "libraries are also in the folder that NVIDIA's images search, because no hook renews the loader's cache",
    ),
    allow(
        "*",
        "CDI device k8s.device-plugin.nvidia.com/gpu=*",
        "devices have both of their names, so that a container starts again after deviceIDStrategy was changed",
    ),
    allow(
        "what gds, mofed, gdrcopy need",
        "CDI device k8s.device-plugin.nvidia.com/*=all",
        "what gds, mofed and gdrcopy need is part of the GPUs' specification",
    ),
    allow(
        "what gds, mofed, gdrcopy need",
        "*: CDI devices",
        "what gds, mofed and gdrcopy need is part of the GPUs' specification",
    ),
    allow(
        "imex channel",
        "CDI device *imex-channel*",
        "the channel's node is part of the GPUs' specification",
    ),
    allow("imex channel", "*: CDI devices", "the channel's node is part of the GPUs' specification"),
    allow(
        "imex channel",
        "CDI * node /dev/nvidia-caps-imex-channels/*",
        "the channel's node is part of the GPUs' specification",
    ),
    allow(
        "what gds, mofed, gdrcopy need",
        "CDI k8s.device-plugin.nvidia.com/gpu=* node *",
        "what gds, mofed and gdrcopy need is part of the GPUs' specification",
    ),
    allow(
        "a required imex channel",
        "*",
        "a required channel that there isn't makes GPUs Unhealthy; NVIDIA's plugin ends",
    ),
    // Health.
    allow(
        "xid of a shared gpu",
        "nvidia.com/gpu device GPU-*1::*",
        "all shares of a sick GPU are Unhealthy; NVIDIA's plugin finds one of them",
    ),
    Allowed {
        chance: true,
        ..allow(
            "xid of a partition",
            "nvidia.com/gpu device MIG-*",
            "the partition that an XID names is Unhealthy; NVIDIA's plugin finds it if it is the last of its GPU in its map",
        )
    },
    // Choice.
    allow(
        "time slicing",
        "nvidia.com/gpu prefer 2 *",
        "shares of several GPUs rather than two of one, which give a container nothing more",
    ),
    // Configuration.
    allow("unknown key", "*", "a key that nobody knows is an error; NVIDIA's plugin ignores it"),
];
