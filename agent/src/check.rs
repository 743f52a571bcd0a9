//! `spillway-agent check FILE`: whether a configuration is sound, and what it asks for, without a machine that has devices.

use std::{io, path::Path};

use spillway_device_plugin::config::{Config, Loaded, Overrides};

/// Prints what the file asks for, and what it says without effect.
///
/// # Errors
/// What is wrong with it.
pub fn check(file: &Path, overrides: &Overrides) -> anyhow::Result<()> {
    let loaded = if file.as_os_str() == "-" {
        Config::read_from("of standard input", io::stdin(), overrides)?
    } else {
        Config::read(file, overrides)?
    };
    println!("{}", report(&loaded));
    Ok(())
}

fn report(loaded: &Loaded) -> String {
    let mut lines = vec![format!("sound: {}", loaded.config.summary())];
    lines.extend(loaded.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_asked_for_and_what_has_no_effect() {
        let text = b"flags: {migStrategy: mixed, plugin: {nvidiaCTKPath: /usr/bin/nvidia-ctk}}\nsharing: {timeSlicing: {renameByDefault: true, resources: [{name: gpu, replicas: 4}]}}\nfpga: {enabled: false}\n";
        let loaded = Config::load("a test", text, &Overrides::default()).unwrap();
        assert_eq!(
            report(&loaded),
            "sound: GPUs (MIG mixed; listed by envvar, uuid; device nodes passed); no FPGAs; nvidia.com/gpu: 4 replicas each of all as \
             nvidia.com/gpu.shared (sharing.timeSlicing)\n\
             warning: accepted as in NVIDIA's file, but without effect here: flags.plugin.nvidiaCTKPath"
        );
        let bare = Config::load("a test", b"gpu: {enabled: false}", &Overrides::default()).unwrap();
        assert_eq!(report(&bare), "sound: no GPUs; FPGAs (region); nothing shared");
    }

    #[test]
    fn a_file_that_is_not_sound_is_refused() {
        let folder = std::env::temp_dir().join(format!("spillway-check-{}", std::process::id()));
        std::fs::write(&folder, "gpus: {}").unwrap();
        let error = check(&folder, &Overrides::default()).unwrap_err();
        std::fs::remove_file(&folder).unwrap();
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
