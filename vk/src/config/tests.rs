use clap::Parser as _;

use super::*;

fn load(flags: &[&str], file: &str) -> Result<Config, ConfigError> {
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
}

#[test]
fn errors_name_line_column_key_and_remedy() {
    let cases = [
        ("nodeName: a\ncapacitty: {}\n", "2:1: unknown field `capacitty`"),
        ("cri:\n  endpont: x\n", "2:3: unknown field `endpont`"),
        ("capacity:\n  cpu: 8\n  memory: 32GiB\n", "\"32GiB\" is no quantity, such as 8, 500m or 32Gi"),
        ("nodeIP: here\n", "1:9: "),
        ("taints:\n- {key: a, effect: Never}\n", "NoSchedule, NoExecute or PreferNoSchedule"),
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
    assert!(problem(&["--nodename", "a", "--taint-effect", "No"], "").starts_with("--taint-effect"));
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
