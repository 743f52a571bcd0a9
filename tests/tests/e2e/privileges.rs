//! The agent's privileges, one by one: each that the chart gives is taken away from an agent that is otherwise as the chart starts it, and
//! what it can do without is compared with what it can do with it. Neither less nor more than the privilege's own purpose may fail, and a
//! privilege that no case knows fails the test.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::{
    Test,
    agent::{GPU, wait_offered},
    harness::{DEDICATED, Pool, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("privileges::the_chart_says_of_each_what_it_is_for", the_chart_says_of_each_what_it_is_for),
    ("privileges::each_is_needed_and_only_for_its_purpose", each_is_needed_and_only_for_its_purpose),
];

const SYSTEM: &str = "spillway-system";
const AGENT: &str = "spillway-agent";
/// The pod that stands for the `DaemonSet`'s.
const POD: &str = "agent-with-less";
const CHOICE: &str = "nvidia.com/device-plugin.config";

/// What an agent shows that it can do.
type Abilities = BTreeSet<&'static str>;

/// What the chart gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Privilege {
    Mount(&'static str),
    Capability(&'static str),
    /// A rule of the `ClusterRole`, by its resource and first verb.
    Rule(&'static str, &'static str),
    HostPid,
}
use Privilege::{Capability, HostPid, Mount, Rule};

/// What is taken away, what fails then, and words that the agent says of it. What is known by two ways fails only without both.
const CASES: &[(&[Privilege], &[&str], &str)] = &[
    (&[Mount("device-plugins")], ALL, "there is no device plugin folder /var/lib/kubelet/device-plugins"),
    (&[Mount("config")], ALL, "can't read the configuration /etc/spillway/agent.yaml"),
    (&[Mount("pod-logs")], &[], "/var/log/pods"),
    (&[Mount("pod-resources"), Mount("pod-logs")], &["holders"], "/var/log/pods"),
    (&[Mount("bpf")], &["isolation"], "can't look at /host/bpf"),
    (&[Mount("cgroup")], &["isolation"], "/host/cgroup holds no cgroup v2 hierarchy"),
    (&[Capability("BPF")], &["isolation"], "Operation not permitted"),
    (&[Capability("NET_ADMIN")], &["isolation"], "CAP_NET_ADMIN"),
    (&[Mount("sys")], &["FPGAs"], ""),
    (&[Mount("dev")], &["condition"], "the host has no /dev/nvidia0"),
    // Nothing is configured, labelled or held where there are no GPUs.
    (&[Mount("driver-0")], &["GPUs", "configuration", "events", "holders", "labels"], "no NVML library"),
    (&[HostPid], &["processes"], NO_PROCESSES),
    // A pod that holds a share of a GPU holds nothing known when GPUs are not shared: its holder goes with the configuration.
    (
        &[Mount("token")],
        &["configuration", "holders", "labels", "condition", "events"],
        "no access to the Kubernetes API",
    ),
    (
        &[Mount("node-configs")],
        &["configuration", "holders"],
        "can't read the folder /etc/spillway-node-configs",
    ),
    (
        &[Rule("nodes", "get")],
        &["configuration", "holders", "labels", "condition", "events"],
        "can't watch the node:",
    ),
    // The event is about labels that are left alone.
    (&[Rule("nodes", "patch")], &["labels", "events"], "can't label the node"),
    (&[Rule("nodes/status", "patch")], &["condition"], "can't set the node's condition"),
    (&[Rule("events", "create")], &["events"], "can't write an event"),
    (&[Rule("pods", "list")], &["pod labels"], NO_POD_LABELS),
];

const NO_PROCESSES: &str = "run it with hostPID";
const NO_POD_LABELS: &str = "can't watch the node's pods";

/// The first is taken away further below. What the others are for, no stand-in shows here: MIG devices' nodes are in the driver's procfs,
/// and only a CDI strategy writes specifications.
const ELSEWHERE: &[Privilege] = &[Mount("plugins-registry"), Mount("proc"), Mount("cdi")];

/// Given only where a setting asks for it, and never taken away here.
const ASKED_FOR: &[Privilege] =
    &[Mount("bitstreams"), Mount("driver-dev"), Mount("mps"), Capability("KILL"), Capability("SYS_ADMIN")];

/// An agent that has all it needs.
const ALL: &[&str] = &[
    "GPUs",
    "FPGAs",
    "isolation",
    "holders",
    "labels",
    "condition",
    "events",
    "configuration",
    "processes",
    "pod labels",
];

/// Puts the chart's agent back, also when the test fails.
struct Instead<'a> {
    pool: &'a Pool,
    rules: Value,
}

impl Drop for Instead<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            eprintln!("    the chart's agent is not put back: {error:#}");
        }
    }
}

impl<'a> Instead<'a> {
    /// Ends the chart's agent.
    fn begin(pool: &'a Pool) -> anyhow::Result<Self> {
        let role = pool.cluster.kubectl(&["get", "clusterrole", AGENT, "-o", "json"])?;
        let role: Value = serde_json::from_str(&role)?;
        let this = Self { pool, rules: role["rules"].clone() };
        this.select(&json!("true"))?;
        wait("the chart's agent to end", || {
            let pods = ["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o", "name"];
            Ok(pool.cluster.kubectl(&pods)?.is_empty().then_some(()))
        })?;
        Ok(this)
    }

    /// Lets the `DaemonSet` want a label that no node has, or not (null).
    fn select(&self, value: &Value) -> anyhow::Result<()> {
        let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": { "spillway.test/nowhere": value } } } } });
        let patch = patch.to_string();
        self.pool
            .cluster
            .kubectl(&["-n", SYSTEM, "patch", "daemonset", AGENT, "--type=merge", "-p", &patch])
            .map(drop)
    }

    fn set_rules(&self, rules: &Value) -> anyhow::Result<()> {
        let patch = json!({ "rules": rules }).to_string();
        self.pool.cluster.kubectl(&["patch", "clusterrole", AGENT, "--type=merge", "-p", &patch]).map(drop)
    }

    fn put_back(&self) -> anyhow::Result<()> {
        self.set_rules(&self.rules)?;
        let cluster = &self.pool.cluster;
        cluster.kubectl(&["-n", SYSTEM, "delete", "pod", POD, "--ignore-not-found"])?;
        let (choice, product) = (format!("{CHOICE}-"), "nvidia.com/gpu.product-");
        cluster.kubectl(&["label", "node", DEDICATED, &choice, product])?;
        self.select(&Value::Null)?;
        let rollout = ["-n", SYSTEM, "rollout", "status", "daemonset", AGENT, "--timeout=120s"];
        cluster.kubectl(&rollout).map(drop)
    }

    /// The pod that the chart would start, on its node. No controller takes it for its own.
    fn pod(&self) -> anyhow::Result<Value> {
        let set = self.pool.cluster.kubectl(&["-n", SYSTEM, "get", "daemonset", AGENT, "-o", "json"])?;
        let mut set: Value = serde_json::from_str(&set)?;
        let mut spec = set["spec"]["template"]["spec"].take();
        spec["nodeName"] = json!(DEDICATED);
        spec["restartPolicy"] = json!("Never");
        spec["nodeSelector"] = Value::Null;
        let labels = json!({ "app.kubernetes.io/component": "agent" });
        Ok(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": POD, "namespace": SYSTEM, "labels": labels }, "spec": spec,
        }))
    }
}

/// What a pod and a role are given, each spelled as its privilege is.
fn given(pod: &Value, rules: &Value) -> anyhow::Result<BTreeSet<String>> {
    let container = &pod["spec"]["containers"][0];
    let security = &container["securityContext"];
    ensure!(security["privileged"] != true, "the agent is privileged");
    ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "it keeps what runtimes give: {security}");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mounts =
        list(&container["volumeMounts"]).into_iter().map(|mount| format!("Mount({})", mount["name"]));
    let added = list(&security["capabilities"]["add"]).into_iter().map(|one| format!("Capability({one})"));
    let granted =
        list(rules).into_iter().map(|rule| format!("Rule({}, {})", rule["resources"][0], rule["verbs"][0]));
    let host = [("hostPID", "HostPid"), ("hostNetwork", "hostNetwork"), ("hostIPC", "hostIPC")];
    let host = host.into_iter().filter(|(key, _)| pod["spec"][*key] == true).map(|(_, name)| name.to_owned());
    Ok(mounts.chain(added).chain(granted).chain(host).collect())
}

fn named<'a>(privileges: impl IntoIterator<Item = &'a Privilege>) -> BTreeSet<String> {
    privileges.into_iter().map(|privilege| format!("{privilege:?}")).collect()
}

fn taken_away() -> impl Iterator<Item = &'static Privilege> {
    CASES.iter().flat_map(|(privileges, ..)| *privileges).chain(ELSEWHERE)
}

/// The chart with all that can be asked for: nothing of it is unknown here, and of each privilege a comment says what it is for.
fn the_chart_says_of_each_what_it_is_for(pool: &Pool) -> anyhow::Result<()> {
    let chart = spillway_tests::repository().join("deploy/chart");
    let values = chart.join("../../tests/cluster/standin-values.yaml");
    let (chart, values) = (chart.display().to_string(), values.display().to_string());
    let rendered = pool.cluster.helm(&[
        "template",
        "spillway",
        &chart,
        "--namespace",
        SYSTEM,
        "--api-versions=admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy",
        "--values",
        &values,
        "--set=agent.isolation.devicesController=true",
        "--set=agent.memoryBudgetKill=true",
        "--set=agent.nvidia.driverDev=true",
        "--set=agent.fpga.bitstreamFolder=/srv/intel.com/fpga",
        "--set=agent.config.sharing.mps.resources[0].name=nvidia.com/gpu",
    ])?;
    let mut documents = Vec::new();
    for text in rendered.split("\n---\n") {
        let document: Value = serde_saphyr::from_str(text).with_context(|| text.to_owned())?;
        documents.push(document);
    }
    let of = |kind: &str, name: &str| {
        let found = documents.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
        found.with_context(|| format!("the chart has no {kind} {name}"))
    };
    let (set, role) = (of("DaemonSet", AGENT)?, of("ClusterRole", AGENT)?);
    let given = given(&set["spec"]["template"], &role["rules"])?;
    let known = named(taken_away().chain(ASKED_FOR));
    ensure!(given == known, "the chart gives {given:?}, and known here is {known:?}");

    let lines: Vec<_> = rendered.lines().map(str::trim_start).collect();
    let mut uncommented = Vec::new();
    for pair in lines.windows(2) {
        let explained = pair[0].starts_with("# ");
        let privilege = pair[1].contains("hostPath:")
            || pair[1].starts_with("- {apiGroups:") && pair[1].contains("verbs:")
            || pair[1].starts_with("host") && pair[1].ends_with(": true");
        if privilege && !explained {
            uncommented.push(pair[1]);
        }
        if pair[1].starts_with("capabilities:") && pair[1].contains("add:") {
            let comment = lines.iter().filter(|line| line.starts_with("# ")).copied().collect::<String>();
            let added = pair[1].split_once("add:").context("they are added")?.1;
            for one in added.split(['[', ']', ',', '}']).map(str::trim).filter(|one| !one.is_empty()) {
                if !comment.contains(&format!("{one}: ")) {
                    uncommented.push(one);
                }
            }
        }
    }
    ensure!(uncommented.is_empty(), "nothing says what these are for: {uncommented:?}");
    Ok(())
}

/// Takes a privilege away from the pod, or from its role.
fn take(instead: &Instead<'_>, pod: &mut Value, privilege: Privilege) -> anyhow::Result<()> {
    let container = &mut pod["spec"]["containers"][0];
    match privilege {
        Mount(name) => drop_from(&mut container["volumeMounts"], |mount| mount["name"] == name),
        Capability(name) => {
            drop_from(&mut container["securityContext"]["capabilities"]["add"], |one| one == name)
        }
        HostPid => {
            pod["spec"]["hostPID"] = json!(false);
            Ok(())
        }
        Rule(resource, verb) => {
            let mut rules = instead.rules.clone();
            drop_from(&mut rules, |rule| rule["resources"][0] == resource && rule["verbs"][0] == verb)?;
            instead.set_rules(&rules)?;
            let (account, verb) = (format!("--as=system:serviceaccount:{SYSTEM}:{AGENT}"), verb.to_owned());
            let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
            let sub = format!("--subresource={sub}");
            let group = if resource == "events" { "events.events.k8s.io" } else { resource };
            wait("the API server to know the lesser role", || {
                let can = ["auth", "can-i", &verb, group, &sub, &account];
                let output = instead.pool.cluster.kubectl_output(&can)?;
                Ok((String::from_utf8_lossy(&output.stdout).trim() == "no").then_some(()))
            })
        }
    }
}

fn drop_from(list: &mut Value, is: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
    let list = list.as_array_mut().context("no list")?;
    let before = list.len();
    list.retain(|one| !is(one));
    ensure!(list.len() + 1 == before, "the chart gives it no more, or more than once");
    Ok(())
}

/// What an agent does at its start is made undone: its label, its condition, its events.
fn undo(pool: &Pool) -> anyhow::Result<()> {
    pool.cluster.kubectl(&["label", "node", DEDICATED, "nvidia.com/gpu.count-"])?;
    let condition = r#"{"status":{"conditions":[{"type":"AcceleratorHealthy","status":"Unknown"}]}}"#;
    pool.cluster.kubectl(&[
        "patch",
        "node",
        DEDICATED,
        "--subresource=status",
        "--type=strategic",
        "-p",
        condition,
    ])?;
    pool.cluster.kubectl(&["-n", "default", "delete", "events.events.k8s.io", "--all"]).map(drop)
}

/// What the agent can do now, and what it said. It may have ended, and is not asked before it has said these words.
fn look(pool: &Pool, words: &str) -> anyhow::Result<(Abilities, String)> {
    let log = pool.cluster.kubectl(&["-n", SYSTEM, "logs", POD]).unwrap_or_default();
    if log.is_empty() || !log.contains(words) {
        return Ok((Abilities::new(), log));
    }
    let node = format!("node/{DEDICATED}");
    let both = pool.cluster.kubectl(&["-n", SYSTEM, "get", &format!("pod/{POD}"), &node, "-o", "json"])?;
    let both: Value = serde_json::from_str(&both)?;
    let (agent, node) = (&both["items"][0], &both["items"][1]);
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{POD}:9400/proxy/metrics");
    // Only while it runs: the API server waits long for an address that nobody has.
    let running = agent["status"]["phase"] == "Running";
    let Some(metrics) = running.then(|| pool.cluster.kubectl(&["get", "--raw", &path]).ok()).flatten() else {
        return Ok((Abilities::new(), log));
    };
    let shows =
        |begin: &str, end: &str| metrics.lines().any(|line| line.starts_with(begin) && line.ends_with(end));
    let events = pool.cluster.kubectl(&["-n", "default", "get", "events.events.k8s.io", "-o", "name"])?;
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let label = &node["metadata"]["labels"]["nvidia.com/gpu.count"];
    let found = [
        ("GPUs", shows(r#"spillway_plugin_registered{resource="nvidia.com/gpu"#, " 1")),
        ("FPGAs", shows(r#"spillway_plugin_registered{resource="fpga."#, " 1")),
        ("isolation", shows("spillway_isolation_in_force", " 1")),
        ("holders", shows("spillway_container_device_held{", " 1") && metrics.contains(r#"pod="held""#)),
        ("labels", *label == "2"),
        (
            "condition",
            conditions.iter().any(|one| one["type"] == "AcceleratorHealthy" && one["status"] == "True"),
        ),
        ("events", !events.is_empty()),
        ("configuration", shows(r#"spillway_devices{resource="nvidia.com/gpu""#, " 8")),
        ("processes", !log.is_empty() && !log.contains(NO_PROCESSES)),
        ("pod labels", !log.is_empty() && !log.contains(NO_POD_LABELS)),
    ];
    Ok((found.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect(), log))
}

/// Waits until an agent can do all but `lost`, and has said these words.
fn wait_abilities(pool: &Pool, what: &str, lost: &[&str], words: &str) -> anyhow::Result<()> {
    let left: Abilities = ALL.iter().copied().filter(|one| !lost.contains(one)).collect();
    let (mut seen, mut in_a_row) = (None, 0);
    wait(&format!("what fails without {what}"), || {
        let (can, log) = look(pool, words)?;
        let fits = can == left && log.contains(words);
        in_a_row = if fits { in_a_row + 1 } else { 0 };
        seen = Some((can, log));
        // Where it says nothing, what fails might only be late.
        Ok((in_a_row > usize::from(words.is_empty())).then_some(()))
    })
    .with_context(|| {
        let (can, log) = seen.unwrap_or_default();
        let missing: Vec<_> = ALL.iter().filter(|one| !can.contains(*one)).collect();
        format!("instead of {lost:?} with {words:?}, {missing:?} failed:\n{log}")
    })
}

impl Instead<'_> {
    /// Starts an agent without these, and ends it when `check` is done.
    fn try_without(
        &self,
        privileges: &[Privilege],
        check: impl FnOnce(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut pod = self.pod()?;
        undo(self.pool)?;
        for privilege in privileges {
            take(self, &mut pod, *privilege).with_context(|| format!("taking {privilege:?}"))?;
        }
        self.pool.cluster.apply(&pod.to_string())?;
        check(&format!("{privileges:?}"))?;
        if privileges.iter().any(|one| matches!(one, Rule(..))) {
            self.set_rules(&self.rules)?;
        }
        self.pool.cluster.kubectl(&["-n", SYSTEM, "delete", "pod", POD]).map(drop)
    }
}

fn each_is_needed_and_only_for_its_purpose(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("privileges")?;
    let instead = Instead::begin(pool)?;
    let given = given(&instead.pod()?, &instead.rules)?;
    let untried: Vec<_> = given.difference(&named(taken_away())).cloned().collect();
    ensure!(untried.is_empty(), "the chart gives what no case takes away: {untried:?}");
    let choice = format!("{CHOICE}=shared");
    let theirs = "nvidia.com/gpu.product=theirs";
    pool.cluster.kubectl(&["label", "node", DEDICATED, &choice, theirs, "--overwrite"])?;
    instead.try_without(&[], |what| {
        wait_offered(pool, GPU, 8, 8)?;
        namespace.holder("held", GPU, 1)?;
        namespace.wait_ready("held")?;
        wait_abilities(pool, what, &[], "")
    })?;
    for (privileges, lost, words) in CASES {
        instead.try_without(privileges, |what| wait_abilities(pool, what, lost, words))?;
    }

    // Another who hands out the same GPUs is seen by its socket, and goes unseen without its folder.
    let socket = "/var/lib/kubelet/plugins_registry/gpu.nvidia.com-reg.sock";
    let socket = tempfile::TempPath::try_from_path(pool.cluster.machine(DEDICATED)?.live_path(socket))?;
    let listener = std::os::unix::net::UnixListener::bind(&socket)?;
    instead.try_without(&[], |_| {
        wait("the DRA driver to be seen", || {
            let notes = ["-n", "default", "get", "events.events.k8s.io", "-o", "jsonpath={.items[*].note}"];
            let notes = pool.cluster.kubectl(&notes)?;
            Ok(notes.contains("NVIDIA's DRA driver (gpu.nvidia.com-reg.sock)").then_some(()))
        })?;
        ensure!(!look(pool, "")?.0.contains("GPUs"), "another's GPUs are offered");
        Ok(())
    })?;
    instead.try_without(&[Mount("plugins-registry")], |what| wait_abilities(pool, what, &[], ""))?;
    drop((listener, socket));
    instead.put_back()
}
