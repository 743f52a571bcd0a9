use clap::Parser as _;

use super::*;
use crate::node::pressure::Threshold;

fn load(flags: &[&str], file: &str) -> Result<Config, ConfigError> {
    load_all(flags, file).map(|mut nodes| {
        assert_eq!(nodes.len(), 1);
        nodes.remove(0)
    })
}

fn load_all(flags: &[&str], file: &str) -> Result<Vec<Config>, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vk.yaml");
    std::fs::write(&path, file).unwrap();
    let path = path.display().to_string();
    let flags = ["spillway-vk", "--config", &path].into_iter().chain(flags.iter().copied());
    Config::load(&Args::parse_from(flags))
}

/// The message without the folder, which differs each time.
fn problem(flags: &[&str], file: &str) -> String {
    let message = load(flags, file).unwrap_err().to_string();
    message.rsplit_once("/vk.yaml:").map_or(message.clone(), |(_, rest)| rest.to_owned())
}

#[test]
fn the_example_in_deploy_is_valid() {
    let config = load(&["--nodename", "vk1"], include_str!("../../../deploy/systemd/vk.yaml")).unwrap();
    assert_eq!(config.node.capacity["pods"].0, "200");
    assert_eq!(config.cluster_dns, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
    assert_eq!(config.provider, ProviderConfig::Cri(CriConfig::default()));
}

#[test]
fn nothing_given_is_a_cri_node_with_the_usual_taint() {
    let config = load(&["--nodename", "vk1"], "# nothing but a comment\n").unwrap();
    let [taint] = config.node.taints.as_slice() else { panic!("{:?}", config.node.taints) };
    assert_eq!(
        (taint.key.as_str(), taint.value.as_deref(), taint.effect.as_str()),
        ("virtual-kubelet.io/provider", Some("cri"), "NoSchedule")
    );
    assert_eq!(config.cluster_domain, "cluster.local");
    let api = config.kubelet_api.unwrap();
    assert_eq!((api.address.port(), api.serving), (10250, ServingSource::Csr));
}

#[test]
fn flags_win_over_the_file() {
    let file = "nodeName: file\nnodeIP: 10.0.0.1\nprovider: cri\nclusterDomain: file.local\n";
    let flags = [
        "--nodename",
        "flag",
        "--node-ip",
        "10.0.0.2",
        "--provider",
        "none",
        "--cluster-domain",
        "flag.local",
    ];
    let config = load(&flags, file).unwrap();
    assert_eq!(config.node.name, "flag");
    assert_eq!(config.node.address, Some("10.0.0.2".parse().unwrap()));
    assert_eq!(config.provider, ProviderConfig::None);
    assert_eq!(config.cluster_domain, "flag.local");
    assert_eq!(load(&[], file).unwrap().node.name, "file");
}

#[test]
fn taints_are_the_provider_s_and_the_file_s() {
    let file = "taints: [{key: dedicated, value: burst, effect: NoExecute}]\n";
    let keys = |flags: &[&str]| -> Vec<String> {
        load(flags, file).unwrap().node.taints.into_iter().map(|taint| taint.key).collect()
    };
    assert_eq!(keys(&["--nodename", "a"]), ["virtual-kubelet.io/provider", "dedicated"]);
    assert_eq!(keys(&["--nodename", "a", "--taint-key", "example.com/x"]), ["example.com/x", "dedicated"]);
    assert_eq!(keys(&["--nodename", "a", "--disable-taint"]), ["dedicated"]);
    let own = "taints: [{key: virtual-kubelet.io/provider, value: mine, effect: NoSchedule}]\n";
    let twice = problem(&["--nodename", "a"], own);
    assert!(twice.contains("two of key \"virtual-kubelet.io/provider\" and effect NoSchedule"), "{twice}");
    load(&["--nodename", "a"], &own.replace("NoSchedule", "NoExecute")).unwrap();
    load(&["--nodename", "a", "--disable-taint"], own).unwrap();
}

#[test]
fn errors_name_line_column_key_and_remedy() {
    let cases = [
        ("nodeName: a\ncapacitty: {}\n", "2:1: unknown field `capacitty`"),
        ("cri:\n  endpont: x\n", "2:3: unknown field `endpont`"),
        ("capacity:\n  cpu: 8\n  memory: 32GiB\n", "\"32GiB\" is no quantity, such as 8, 500m or 32Gi"),
        ("nodeIP: here\n", "1:9: "),
        ("evictionHard: {memory.free: 1Gi}\n", "\"memory.free\" is no signal"),
        ("evictionHard: {memory.available: 120%}\n", "\"120%\" is no percentage"),
        ("imageGCHighThresholdPercent: 101\n", "101 is no percentage"),
        ("imageMinimumGCAge: soon\n", "\"soon\" is no duration"),
        ("taints:\n- {key: a, effect: Never}\n", "NoSchedule, NoExecute or PreferNoSchedule"),
        (
            "labels: {zone: a}\nnodes:\n- name: a\n  labels: {node-role.kubernetes.io/gpu: \"\"}\n",
            "4:12: \"node-role.kubernetes.io/gpu\" is",
        ),
        ("taints:\n- key: a b\n  effect: NoExecute\n", "2:8: \"a b\" can't be the key of a taint"),
        ("taints: [{key: a, value: row 7, effect: NoExecute}]\n", "1:26: \"row 7\" can't be the value"),
        ("capacity:\n  gpu: 1\n", "2:3: \"gpu\" is no resource that a pod can ask for"),
        ("capacity:\n  cpu: 8\n  example.com/gpu: 0.5\n", "example.com/gpu: \"0.5\" is no whole number"),
        ("nodes:\n- name: a\n  quota: {requests.x.y/z: 1}\n", "3:11: \"requests.x.y/z\" is no resource"),
        ("labels:\n  rack: row 7\n", "2:9: \"row 7\" can't be the value of a label"),
        ("annotations: {a/b/c: d}\n", "\"a/b/c\" can't be the key of an annotation"),
        ("nodeName: [a\n", ""),
    ];
    for (file, expected) in cases {
        let message = problem(&["--nodename", "a"], file);
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        assert!(!message.contains('\n'), "{message:?} is one line");
        let line = message.split(':').next().unwrap().parse::<u32>();
        assert!(line.is_ok_and(|line| line > 0), "{message:?} begins with a line");
    }
    assert!(problem(&["--nodename", "a"], cases[2].0).starts_with("3:"), "{}", problem(&[], cases[2].0));
}

#[test]
fn values_that_can_t_be_are_refused() {
    assert_eq!(
        problem(&["--nodename", "a", "--provider", "aci"], ""),
        "unknown provider \"aci\": choose `cri` or `none`"
    );
    for name in ["Upper", "under_score", "-a", "a..b", ""] {
        assert!(problem(&[&format!("--nodename={name}")], "").contains("is no DNS name"), "{name}");
    }
    for (flag, value) in [("--taint-effect", "No"), ("--taint-key", "a b"), ("--taint-value", "a b")] {
        assert!(problem(&["--nodename", "a", flag, value], "").starts_with(flag), "{flag}");
    }
    let long = "x".repeat(64);
    assert!(problem(&["--nodename", &long], "").contains("the label kubernetes.io/hostname"));
    load(&["--nodename", &long], "labels: {kubernetes.io/hostname: x}\n").unwrap();
    let missing = Args::parse_from(["spillway-vk", "--config", "/nonexistent/vk.yaml"]);
    assert_eq!(
        Config::load(&missing).unwrap_err().to_string(),
        "can't read configuration file /nonexistent/vk.yaml"
    );
}

#[test]
fn a_provider_file_has_the_provider_s_keys_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cri.yaml");
    std::fs::write(&path, "endpoint: unix:///run/crio/crio.sock\n").unwrap();
    let path = path.display().to_string();
    let config =
        load(&["--nodename", "a", "--provider-config", &path], "cri: {endpoint: \"unix:///x\"}\n").unwrap();
    let ProviderConfig::Cri(cri) = config.provider else { panic!() };
    assert_eq!(cri.endpoint, "unix:///run/crio/crio.sock");
}

const TWO: &str = "
labels: {zone: a}
taints: [{key: all, effect: NoSchedule}]
capacity: {cpu: 4, memory: 1Gi}
nodes:
- name: runtime
  labels: {tier: real}
- name: noop
  provider: none
  kubeletPort: 10251
  nodeIP: 10.0.0.9
  labels: {zone: b}
  taints: [{key: own, effect: NoExecute}]
  capacity: {cpu: 1k}
  maxPods: 5000
";

#[test]
fn several_nodes_share_what_stands_beside_them_and_no_folder() {
    let nodes = load_all(&["--max-pods", "50"], TWO).unwrap();
    let [runtime, noop] = nodes.as_slice() else { panic!("{nodes:?}") };
    assert_eq!((runtime.provider.name(), noop.provider.name()), ("cri", "none"));
    assert_eq!((runtime.node.capacity["cpu"].0.as_str(), noop.node.capacity["cpu"].0.as_str()), ("4", "1k"));
    assert_eq!(
        (runtime.node.capacity["pods"].0.as_str(), noop.node.capacity["pods"].0.as_str()),
        ("50", "5000")
    );
    assert_eq!(noop.node.labels["zone"], "b");
    assert_eq!((runtime.node.labels["zone"].as_str(), runtime.node.labels["tier"].as_str()), ("a", "real"));
    let keys = |config: &Config| config.node.taints.iter().map(|taint| taint.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(noop), ["virtual-kubelet.io/provider", "all", "own"]);
    assert_eq!(noop.node.address, Some("10.0.0.9".parse().unwrap()));
    assert_ne!(runtime.root_dir, noop.root_dir);
    assert_ne!(runtime.identity.cert_dir, noop.identity.cert_dir);
    let ProviderConfig::Cri(cri) = &runtime.provider else { panic!() };
    assert_eq!(cri.cgroup_root, "/runtime");
    let single = load(&["--nodename", "a"], "").unwrap();
    assert_eq!(single.root_dir, Path::new("/var/lib/spillway-vk"));
    assert_eq!(single.identity.cert_dir, Path::new("/var/lib/spillway-vk/pki"));
}

#[test]
fn nodes_that_can_t_live_together_are_refused() {
    let problem = |flags: &[&str], file: &str| load_all(flags, file).unwrap_err().to_string();
    assert!(problem(&["--nodename", "x"], TWO).starts_with("--nodename (DEFAULT_NODE_NAME) names one node"));
    assert!(problem(&[], &format!("nodeName: x\n{TWO}")).starts_with("nodeName names one node"));
    assert!(problem(&[], "nodes: []\n").contains("the list is empty"));
    assert!(problem(&[], "nodes: [{name: a}, {name: a, kubeletPort: 1}]\n").contains("two called \"a\""));
    let ports = problem(&[], "nodes: [{name: a}, {name: b}]\n");
    assert!(
        ports.contains("\"a\" and \"b\" both listen on port 10250") && ports.contains("kubeletPort"),
        "{ports}"
    );
    let roots =
        "nodes: [{name: a, cri: {cgroupRoot: /x}}, {name: b, kubeletPort: 1, cri: {cgroupRoot: /x}}]\n";
    assert!(problem(&[], roots).contains("the same cri.cgroupRoot"));
    assert!(problem(&["--bootstrap-kubeconfig", "/b", "--kubeconfig", "/k"], TWO).contains("leave it out"));
    assert!(problem(&[], "nodes: [{nodeIP: 10.0.0.1}]\n").contains("is no DNS name"));
    assert!(problem(&[], "nodes: [{name: a, port: 1}]\n").contains("unknown field `port`"));
}

#[test]
fn image_gc_has_a_kubelet_s_settings() {
    let of = |file: &str| load(&["--nodename", "a"], file).unwrap().image_gc;
    let usual = of("");
    assert_eq!((usual.high_percent, usual.low_percent, usual.all_images), (85, 80, false));
    assert_eq!(usual.shortage, Some(Threshold::Percent(5.0)));
    let given = of("evictionHard: {}\nimageGCHighThresholdPercent: 70\nimageGCLowThresholdPercent: 60\n\
         imageMinimumGCAge: 1m\nimageMaximumGCAge: 168h\nimageGCAllImages: true\n");
    assert_eq!((given.high_percent, given.low_percent, given.all_images), (70, 60, true));
    assert_eq!((given.minimum_age.as_secs(), given.maximum_age.as_secs()), (60, 7 * 24 * 3600));
    assert_eq!(given.shortage, None);
    for (file, message) in [
        ("imageGCLowThresholdPercent: 90\n", "imageGCLowThresholdPercent (90) must be less than"),
        ("imageMaximumGCAge: 1m\n", "imageMaximumGCAge (60s) must be more than imageMinimumGCAge (120s)"),
    ] {
        let told = load(&["--nodename", "a"], file).unwrap_err().to_string();
        assert!(told.starts_with(message), "{told}");
    }
}

#[test]
fn thresholds_are_a_kubelet_s_and_can_be_switched_off() {
    use crate::node::pressure::{Signal, Threshold, defaults};
    let of = |file: &str| load(&["--nodename", "a"], file).unwrap().node.thresholds;
    assert_eq!(of(""), defaults());
    assert!(of("evictionHard: {}\n").is_empty());
    let given = of("evictionHard: {memory.available: 1Gi, nodefs.available: 7.5%}\n");
    assert_eq!(
        given,
        [(Signal::Memory, Threshold::Amount(1 << 30)), (Signal::NodeFs, Threshold::Percent(7.5))].into()
    );
}

#[test]
fn the_times_of_an_election_have_an_order() {
    let with = |flags: &[&str]| {
        load(&[&["--nodename", "a"], flags].concat(), "").map(|config| config.leader_election)
    };
    assert_eq!(with(&[]).unwrap(), None);
    let usual = with(&["--leader-elect"]).unwrap().unwrap();
    assert_eq!(
        (usual.lease_duration.as_secs(), usual.renew_deadline.as_secs(), usual.retry_period.as_secs()),
        (15, 10, 2)
    );
    assert!(with(&["--leader-elect", "--leader-elect-renew-deadline", "15s"]).is_err());
    assert!(with(&["--leader-elect", "--leader-elect-retry-period", "10s"]).is_err());
}

#[test]
fn a_changed_file_changes_what_can_be_changed_and_names_the_rest() {
    let load = |file: &str| load_all(&[], file).unwrap();
    let before = load(TWO);
    assert_eq!(reload::changes(&before, &before), reload::Changes::default());
    let after = load(&TWO.replace("cpu: 1k", "cpu: 2k").replace("zone: a", "zone: c"));
    let changes = reload::changes(&before, &after);
    assert_eq!(changes.refused, Vec::<String>::new());
    assert_eq!(changes.nodes, [after[0].node.clone(), after[1].node.clone()]);

    let after =
        load(&TWO.replace("cpu: 1k", "cpu: 2k").replace("10251", "10252").replace("key: own", "key: other"));
    let changes = reload::changes(&before, &after);
    let [node] = changes.nodes.as_slice() else { panic!("{changes:?}") };
    assert_eq!((node.capacity["cpu"].0.as_str(), &node.taints), ("2k", &before[1].node.taints));
    let [taints, port] = changes.refused.as_slice() else { panic!("{changes:?}") };
    assert!(taints.contains("kubectl taint nodes noop") && port.contains("port"), "{changes:?}");

    let after = load(&TWO.replace("name: noop", "name: other"));
    let changes = reload::changes(&before, &after);
    assert!(changes.nodes.is_empty() && changes.refused.len() == 2, "{changes:?}");
}
