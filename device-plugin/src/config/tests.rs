use proptest::prelude::*;

use super::*;

fn load(text: &str) -> Result<Loaded, ConfigError> {
    Config::load("a test", text.as_bytes(), &Overrides::default())
}

fn config(text: &str) -> Config {
    load(text).unwrap().config
}

/// The error for `text` has all these parts, on one line.
fn refused(text: &str, parts: &[&str]) {
    let message = load(text).unwrap_err().to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
    assert!(!message.contains('\n'), "{message:?}");
}

#[test]
fn what_is_not_said_has_its_default() {
    for empty in ["", "# nothing\n\n", "gpu: {}\n", "version: v1\n"] {
        assert_eq!(config(empty), Config::default(), "{empty:?}");
    }
    let config = config("gpu:\n  ignoredXids: [13]\nfpga:\n  enabled: false\n");
    assert_eq!(config.gpu, Gpu { ignored_xids: vec![13], ..Gpu::default() });
    assert!(!config.fpga.enabled);
}

#[test]
fn mistakes_are_told_with_their_line() {
    refused("gpu:\n  enabled: true\n  ignoredXid: [13]\n", &["ignoredXid", "line 3"]);
    refused("gpu:\n  recoverySeconds: soon\n", &["line 2 column 20"]);
    refused("gpus: {}\n", &["gpus", "line 1"]);
    refused("gpu: [\n", &["line"]);
    refused("\u{0}\u{1}", &["line"]);
    refused("version: v2\n", &["v2", "line 1"]);
    refused("flags:\n  migStrategy: some\n", &["some", "line 2"]);
    refused("flags:\n  plugin:\n    deviceListStrategy: [envvar, cdi]\n", &["cdi", "line 3"]);
    refused("flags:\n  plugin:\n    deviceListStrategy: []\n", &["line 3"]);
    refused("resources:\n  gpus:\n  - {pattern: '*', name: nvidia.com/a/b}\n", &["nvidia.com/a/b", "line 3"]);
    refused("resources:\n  gpus:\n  - pattern: '*'\n", &["name", "line 3"]);
    let error = Config::load("a test", b"\xff\xfe", &Overrides::default()).unwrap_err();
    assert_eq!(error.to_string(), "the configuration a test is not valid: it is not a text");
}

#[test]
fn sharing_mistakes_are_told_with_their_line() {
    let under = |way: &str, entry: &str| format!("sharing:\n  {way}:\n    resources:\n    - {entry}\n");
    refused(&under("timeSlicing", "{name: gpu, replicas: 1}"), &["replicas", "2", "line 4"]);
    refused(&under("timeSlicing", "{name: gpu, replicas: -4}"), &["replicas", "-4", "line 4"]);
    refused(&under("timeSlicing", "{name: gpu}"), &["replicas", "line 4"]);
    refused(&under("timeSlicing", "{name: gpu, replicas: 4000000000}"), &["50000", "line 4"]);
    refused(&under("timeSlicing", "{name: gpu, replicas: 2, devices: some}"), &["some", "line 4"]);
    refused(&under("timeSlicing", "{name: gpu, replicas: 2, devices: 0}"), &["line 4"]);
    refused(&under("timeSlicing", "{name: gpu, replicas: 2, devices: [../x]}"), &["../x", "line 4"]);
    refused(&under("timeSlicing", "{name: gpu, replicas: 2, memoryMiB: 4}"), &["memoryMiB", "line 4"]);
    refused(&under("memory", "{name: gpu, replicas: 2, memoryMiB: 0}"), &["without memory", "line 4"]);
    refused(&under("mps", "{name: mig-1g.5gb, replicas: 2}"), &["MPS", "line 4 column 14"]);
    refused("sharing:\n  timeSlicing: {}\n", &["resources", "line 2"]);
    refused("sharing:\n  timeSlicing: {resources: []}\n", &["at least one", "line 2"]);
    refused(
        "sharing:\n  memory: {warnPercent: 0, resources: [{name: gpu, replicas: 2}]}\n",
        &["warnPercent"],
    );
    let long = "x".repeat(60);
    refused(
        &format!(
            "sharing:\n  timeSlicing:\n    renameByDefault: true\n    resources: [{{name: {long}, replicas: 2}}]\n"
        ),
        &["63", "line 4"],
    );
}

#[test]
fn a_resource_is_shared_in_one_way() {
    let text = "sharing:\n  timeSlicing:\n    resources:\n    - {name: nvidia.com/gpu, replicas: 2}\n  memory:\n    resources:\n    \
                - {name: gpu, replicas: 4}\n";
    refused(text, &["line 7 column 14", "sharing.memory", "sharing.timeSlicing", "line 4 column 14"]);
    refused(
        "sharing: {timeSlicing: {resources: [{name: gpu, replicas: 2}, {name: gpu, replicas: 3}]}}",
        &["again"],
    );
    refused(
        "flags: {migStrategy: single}\nsharing: {mps: {resources: [{name: gpu, replicas: 2}]}}",
        &["MPS", "migStrategy none"],
    );
}

/// What NVIDIA's documentation shows, with every key that its sources know.
#[test]
fn nvidias_file_works() {
    let text = r#"
version: v1
flags:
  migStrategy: "mixed"
  failOnInitError: true
  mpsRoot: /run/nvidia/mps
  nvidiaDriverRoot: "/run/nvidia/driver"
  nvidiaDevRoot: "/"
  gdrcopyEnabled: false
  gdsEnabled: true
  mofedEnabled: false
  useNodeFeatureAPI: false
  deviceDiscoveryStrategy: auto
  plugin:
    passDeviceSpecs: true
    deviceListStrategy: ["envvar", "cdi-cri"]
    deviceIDStrategy: index
    cdiAnnotationPrefix: "cdi.k8s.io/"
    nvidiaCTKPath: /usr/bin/nvidia-ctk
    containerDriverRoot: /driver-root
    cdiFeatureFlags: ""
  gfd:
    oneshot: false
    noTimestamp: true
    sleepInterval: 1m30s
    outputFile: /etc/kubernetes/node-feature-discovery/features.d/gfd
    machineTypeFile: /sys/class/dmi/id/product_name
resources:
  gpus:
  - pattern: "A100-SXM4-40GB"
    name: a100
  mig:
  - pattern: "1g.5gb"
    name: nvidia.com/mig-small
sharing:
  timeSlicing:
    renameByDefault: true
    failRequestsGreaterThanOne: true
    resources:
    - name: nvidia.com/gpu
      rename: nvidia.com/gpu.part
      devices: all
      replicas: 4
    - name: nvidia.com/mig-1g.5gb
      devices: [0, "1", "2:3", GPU-b1028956-cfa2-0990-bf4a-5da9abb51763]
      replicas: 2
    - name: nvidia.com/mig-2g.10gb
      devices: 2
      replicas: 10
imex:
  channelIDs: [0]
health:
  disabled: false
  eventTypes: [EventTypeXidCriticalError]
  ignoredXIDs: [13]
  criticalXIDs: [48, 79]
"#;
    let Loaded { config, warnings } = load(text).unwrap();
    assert_eq!(config.flags.mig_strategy, MigStrategy::Mixed);
    assert!(config.flags.plugin.uses_cdi() && config.flags.plugin.lists_by(DeviceListStrategy::Envvar));
    assert_eq!(config.flags.plugin.device_id_strategy, DeviceIdStrategy::Index);
    assert_eq!(config.flags.driver_root_here(), Path::new("/driver-root"));
    assert_eq!(config.resources.gpus[0].name.as_str(), "nvidia.com/a100");
    let shared: Vec<_> = config.sharing.all().collect();
    let names: Vec<_> = shared
        .iter()
        .map(|(way, shared)| shared.offered_as(config.sharing.renames_by_default(*way)).unwrap().to_string())
        .collect();
    assert_eq!(
        names,
        ["nvidia.com/gpu.part", "nvidia.com/mig-1g.5gb.shared", "nvidia.com/mig-2g.10gb.shared"]
    );
    assert_eq!(
        shared[1].1.devices,
        SharedDevices::List(vec![
            DeviceRef::Index(0),
            DeviceRef::Index(1),
            DeviceRef::Partition(2, 3),
            DeviceRef::Id(crate::device::DeviceId::new("GPU-b1028956-cfa2-0990-bf4a-5da9abb51763").unwrap()),
        ])
    );
    assert_eq!(shared[2].1.devices, SharedDevices::Count(2));
    assert!(config.gpu.is_critical(79) && !config.gpu.is_critical(13) && !config.gpu.is_critical(119));
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    for key in ["nvidiaCTKPath", "sleepInterval", "outputFile", "health.eventTypes"] {
        assert!(warning.contains(key), "{warning:?} lacks {key}");
    }
    assert!(!warning.contains("useNodeFeatureAPI") && !warning.contains("gds"), "{warning}");
}

#[test]
fn flags_and_environment_go_before_the_file() {
    let overrides = Overrides {
        mig_strategy: Some(MigStrategy::Single),
        device_list_strategy: Some(vec![DeviceListStrategy::CdiCri]),
        nvidia_driver_root: Some("/run/nvidia/driver".into()),
        health: Overridden::read("79, 48", "13").unwrap(),
        ..Overrides::default()
    };
    let text = b"flags: {migStrategy: mixed, gdsEnabled: true, plugin: {deviceListStrategy: envvar}}";
    let config = Config::load("a test", text, &overrides).unwrap().config;
    assert_eq!(config.flags.mig_strategy, MigStrategy::Single);
    assert_eq!(config.flags.plugin.device_list_strategy, [DeviceListStrategy::CdiCri]);
    assert!(config.flags.gds_enabled, "what no flag says is the file's");
    assert_eq!(config.flags.driver_root_here(), Path::new("/run/nvidia/driver"));
    assert!(config.gpu.is_critical(13) && !config.gpu.is_critical(79) && config.gpu.is_critical(119));

    let overrides = Overrides { mig_strategy: Some(MigStrategy::Mixed), ..Overrides::default() };
    let shared = b"sharing: {mps: {resources: [{name: gpu, replicas: 2}]}}";
    let error = Config::load("a test", shared, &overrides).unwrap_err();
    assert!(error.to_string().contains("MPS"), "what a flag makes impossible is refused, too: {error}");
}

#[test]
fn nvidias_variables_for_xids_are_understood() {
    assert!(Overridden::read("all", "").unwrap().disabled);
    assert!(Overridden::read("xids,31", "").unwrap().disabled);
    assert!(!Overridden::read("all", "48").unwrap().disabled);
    assert!(Overridden::read("soon", "").unwrap_err().contains("soon"));
    assert_eq!(Overridden::read("", " ").unwrap(), Overridden::default());
}

#[test]
fn what_contradicts_itself_is_refused() {
    refused("gpu: {criticalXids: [79], ignoredXids: [79]}", &["79"]);
    refused("gpu: {ignoredXids: [1]}\nhealth: {ignoredXIDs: [2]}", &["the same thing"]);
    refused("flags: {deviceDiscoveryStrategy: tegra}", &["nvml"]);
    refused("flags: {nvidiaDriverRoot: run/nvidia}", &["nvidiaDriverRoot"]);
    refused("flags: {plugin: {cdiAnnotationPrefix: ../x}}", &["cdiAnnotationPrefix"]);
    refused("gpu: {criticalXids: some}", &["all", "line 1"]);
}

#[test]
fn one_name_is_not_offered_for_two_ways_of_sharing() {
    let text = |other: &str| {
        format!(
            "sharing:\n  timeSlicing: {{resources: [{{name: gpu, rename: part, replicas: 2}}]}}\n  \
             {other}: {{resources: [{{name: a100, rename: part, replicas: 2}}]}}"
        )
    };
    refused(&text("mps"), &["nvidia.com/part", "sharing.mps", "line 3", "sharing.timeSlicing (line 2"]);
    refused(&text("memory"), &["nvidia.com/part", "sharing.memory", "line 3"]);
    let one_way = "sharing: {timeSlicing: {resources: [{name: a, rename: x, replicas: 2}, {name: b, rename: x, replicas: 2}]}}";
    load(one_way).unwrap();
}

#[test]
fn giving_up_device_nodes_is_worth_a_warning() {
    let Loaded { warnings, .. } = load("flags: {plugin: {passDeviceSpecs: false}}").unwrap();
    assert!(warnings[0].contains("daemon-reload"), "{warnings:?}");
    let cdi = load("flags: {plugin: {passDeviceSpecs: false, deviceListStrategy: cdi-cri}}").unwrap();
    assert_eq!(cdi.warnings, Vec::<String>::new());
}

#[test]
fn a_file_that_grows_when_it_is_read_is_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&["a", &level.to_string(), ": &a", &level.to_string(), " ["].concat());
        bomb.push_str(&[before.as_str(); 10].join(", "));
        bomb.push_str("]\n");
    }
    bomb += "imex: {channelIDs: *a11}\n";
    assert!(load(&bomb).is_err());
    assert!(load(&format!("gpu: {}enabled: true", "{".repeat(100_000))).is_err());
    refused(&format!("# {}\ngpu: {{}}", "x".repeat(1024 * 1024)), &["1 MiB"]);
}

proptest! {
    #[test]
    fn any_bytes_are_a_configuration_or_a_message(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Config::load("a test", &bytes, &Overrides::default());
    }

    #[test]
    fn any_values_in_known_places_are_a_configuration_or_a_message(
        key in prop::sample::select(vec![
            "flags.migStrategy", "flags.plugin.deviceListStrategy", "sharing.timeSlicing.resources", "sharing.memory.warnPercent",
            "resources.gpus", "gpu.ignoredXids", "gpu.criticalXids", "gpu.recoverySeconds", "fpga.mode", "health.criticalXIDs",
        ]),
        value in "[-0-9a-z*:\\[\\]{}, \"'&!|>#.~]{0,24}",
    ) {
        let parts: Vec<_> = key.split('.').collect();
        let opening = format!("{{{}: ", parts.join(": {"));
        let text = format!("{opening}{value}{}", "}".repeat(parts.len()));
        if let Err(error) = Config::load("a test", text.as_bytes(), &Overrides::default()) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::read(Path::new("/nonexistent/agent.yaml"), &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/agent.yaml"), "{error}");
}

#[test]
fn a_file_without_an_end_is_refused() {
    let error = Config::read(Path::new("/dev/zero"), &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
}
