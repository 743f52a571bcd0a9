//! What a configuration asks for, in one line.

use super::{
    Config, DeviceIdStrategy, DeviceListStrategy, FpgaMode, MigStrategy, Shared, SharedDevices, Way,
};

impl Config {
    /// What is asked for, for people.
    pub fn summary(&self) -> String {
        let mut parts = vec![
            if self.gpu.enabled { format!("GPUs ({})", self.gpus()) } else { "no GPUs".to_owned() },
            match (self.fpga.enabled, self.fpga.mode) {
                (false, _) => "no FPGAs".to_owned(),
                (true, FpgaMode::Af) => "FPGAs (af)".to_owned(),
                (true, FpgaMode::Region) => "FPGAs (region)".to_owned(),
                (true, FpgaMode::RegionDevel) => "FPGAs (regiondevel)".to_owned(),
            },
        ];
        let before = parts.len();
        parts.extend(self.sharing.all().map(|(way, shared)| self.share(way, shared)));
        if parts.len() == before {
            parts.push("nothing shared".to_owned());
        }
        parts.join("; ")
    }

    fn gpus(&self) -> String {
        let plugin = &self.flags.plugin;
        let mut parts = Vec::new();
        match self.flags.mig_strategy {
            MigStrategy::None => {}
            MigStrategy::Single => parts.push("MIG single".to_owned()),
            MigStrategy::Mixed => parts.push("MIG mixed".to_owned()),
        }
        let ways: Vec<_> = plugin
            .device_list_strategy
            .iter()
            .map(|strategy| match strategy {
                DeviceListStrategy::Envvar => "envvar",
                DeviceListStrategy::VolumeMounts => "volume-mounts",
                DeviceListStrategy::CdiAnnotations => "cdi-annotations",
                DeviceListStrategy::CdiCri => "cdi-cri",
            })
            .collect();
        let names = match plugin.device_id_strategy {
            DeviceIdStrategy::Uuid => "uuid",
            DeviceIdStrategy::Index => "index",
        };
        parts.push(format!("listed by {}, {names}", ways.join(" and ")));
        parts.push(
            if plugin.pass_device_specs { "device nodes passed" } else { "no device nodes passed" }
                .to_owned(),
        );
        parts.join("; ")
    }

    fn share(&self, way: Way, shared: &Shared) -> String {
        let devices = match &shared.devices {
            SharedDevices::All => "all".to_owned(),
            SharedDevices::Count(count) => format!("the first {count}"),
            SharedDevices::List(list) => format!("{} named devices", list.len()),
        };
        let renamed = shared
            .offered_as(self.sharing.renames_by_default(way))
            .ok()
            .filter(|name| *name != shared.name)
            .map(|name| format!(" as {name}"))
            .unwrap_or_default();
        let memory = shared.memory_mib.map(|mib| format!(" with {mib} MiB each")).unwrap_or_default();
        format!("{}: {} replicas each of {devices}{renamed}{memory} ({way})", shared.name, shared.replicas)
    }
}
