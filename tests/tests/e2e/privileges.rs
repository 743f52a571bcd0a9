//! The agent's privileges: each that the chart gives is taken away from an agent that is otherwise as the chart starts it, and what it can do
//! without is compared with what it can do with it. Neither less nor more than the privilege's own purpose may fail, and a privilege that no
//! case knows fails the test. Each start takes seconds, so privileges with different purposes go together, and each has its own words.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use spillway_tests::standin::{GpuStandin, MigStandin};

use crate::{
    Test,
    agent::{GPU, wait_offered},
    harness::{DEDICATED, Namespace, Pool, wait},
    neighbour,
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
const CASES: &[(&[Privilege], &[&str], &[&str])] = &[
    (&[Mount("device-plugins")], ALL, &["there is no device plugin folder /var/lib/kubelet/device-plugins"]),
    (&[Mount("config")], ALL, &["can't read the configuration /etc/spillway/agent.yaml"]),
    // Names come from the kubelet's API, too.
    (
        &[Mount("pod-logs"), Mount("dev")],
        &["condition", "MIG", "CDI"],
        &["/var/log/pods", "the host has no /dev/nvidia0"],
    ),
    (&[Mount("pod-resources"), Mount("pod-logs")], &["holders"], &["/var/log/pods"]),
    (&[Mount("bpf"), Mount("sys")], &["isolation", "FPGAs"], &["can't look at /host/bpf"]),
    (
        &[Mount("cgroup"), Rule("nodes/status", "patch")],
        &["isolation", "condition"],
        &["/host/cgroup holds no cgroup v2 hierarchy", "can't set the node's condition"],
    ),
    (
        &[Capability("BPF"), Rule("pods", "list")],
        &["isolation", "pod labels"],
        &["Operation not permitted", NO_POD_LABELS],
    ),
    (
        &[Capability("NET_ADMIN"), Mount("proc")],
        &["isolation", "MIG", "condition"],
        &["CAP_NET_ADMIN", "the driver names no device node"],
    ),
    (
        &[HostPid, Mount("cdi")],
        &["processes", "CDI"],
        &[NO_PROCESSES, "can't write the CDI specification to /var/run/cdi"],
    ),
    // Nothing is configured, labelled or held where there are no GPUs.
    (
        &[Mount("driver-0")],
        &["GPUs", "MIG", "CDI", "configuration", "events", "holders", "labels"],
        &["no NVML library"],
    ),
    (
        &[Mount("token")],
        &["configuration", "MIG", "CDI", "labels", "condition", "events"],
        &["no access to the Kubernetes API"],
    ),
    (
        &[Mount("node-configs"), Rule("events", "create")],
        &["configuration", "MIG", "CDI", "events"],
        &["can't read the folder /etc/spillway-node-configs", "can't write an event"],
    ),
    (
        &[Rule("nodes", "get")],
        &["configuration", "MIG", "CDI", "labels", "condition", "events"],
        &["can't watch the node:"],
    ),
    // The event is about labels that are left alone.
    (&[Rule("nodes", "patch")], &["labels", "events"], &["can't label the node"]),
];

const NO_PROCESSES: &str = "run it with hostPID";
const NO_POD_LABELS: &str = "can't watch the node's pods";

/// The first two, and the kubelet's API alone, are taken away further below.
const BELOW: &[Privilege] = &[Mount("plugins-registry"), Capability("KILL")];
/// Given only where a setting asks for it, and never taken away here: bitstreams, MPS and a driver container's /dev have tests of their own,
/// hosts with cgroup v1 alone have none.
const ASKED_FOR: &[Privilege] =
    &[Mount("bitstreams"), Mount("driver-dev"), Mount("mps"), Capability("SYS_ADMIN")];

/// An agent that has all it needs.
const ALL: &[&str] = &[
    "GPUs",
    "MIG",
    "FPGAs",
    "CDI",
    "isolation",
    "holders",
    "labels",
    "condition",
    "events",
    "configuration",
    "processes",
    "pod labels",
];

/// The only MIG device of GPU 1.
const MIG: &str = "1g.5gb";
/// The node's configuration, which asks for all that takes a privilege of its own.
const CONFIGURATION: &str = "privileges";
const CDI: &str = "/var/run/cdi/k8s.device-plugin.nvidia.com-gpu.json";

/// Puts the chart's agent back, also when the test fails.
struct Instead<'a> {
    pool: &'a Pool,
    rules: Value,
    gpus: GpuStandin,
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
        let gpus = GpuStandin::at(&pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin"));
        let this = Self { pool, rules: role["rules"].clone(), gpus };
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
        leave(&self.gpus)?;
        self.gpus.disable_mig(1)?;
        self.pool.on(DEDICATED, "rm -rf /dev/nvidia-caps")?;
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
    CASES.iter().flat_map(|(privileges, ..)| *privileges).chain(BELOW)
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
    pool.on(DEDICATED, &format!("rm -f {CDI}"))?;
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
fn look(pool: &Pool, words: &[&str]) -> anyhow::Result<(Abilities, String)> {
    let log = pool.cluster.kubectl(&["-n", SYSTEM, "logs", POD]).unwrap_or_default();
    if log.is_empty() || !words.iter().all(|words| log.contains(words)) {
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
        (
            "MIG",
            shows(&format!(r#"spillway_devices{{resource="nvidia.com/mig-{MIG}",health="healthy""#), " 1"),
        ),
        (
            "CDI",
            pool.on(DEDICATED, &format!("cat {CDI} 2>/dev/null || true"))?.contains(&GpuStandin::uuid(0)),
        ),
        ("FPGAs", shows(r#"spillway_plugin_registered{resource="fpga."#, " 1")),
        ("isolation", shows("spillway_isolation_in_force", " 1")),
        ("holders", shows("spillway_container_device_held{", " 1") && metrics.contains(r#"pod="held""#)),
        ("labels", label.is_string()),
        (
            "condition",
            conditions.iter().any(|one| one["type"] == "AcceleratorHealthy" && one["status"] == "True"),
        ),
        ("events", !events.is_empty()),
        ("configuration", shows(r#"spillway_devices{resource="nvidia.com/gpu""#, " 4")),
        ("processes", !log.is_empty() && !log.contains(NO_PROCESSES)),
        ("pod labels", !log.is_empty() && !log.contains(NO_POD_LABELS)),
    ];
    Ok((found.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect(), log))
}

/// Waits until an agent can do all but `lost`, and has said these words.
fn wait_abilities(pool: &Pool, what: &str, lost: &[&str], words: &[&str]) -> anyhow::Result<()> {
    let left: Abilities = ALL.iter().copied().filter(|one| !lost.contains(one)).collect();
    let (mut seen, mut in_a_row) = (None, 0);
    wait(&format!("what fails without {what}"), || {
        let (can, log) = look(pool, words)?;
        in_a_row = if can == left { in_a_row + 1 } else { 0 };
        seen = Some((can, log));
        // What has failed is said by then; what has not been said might only be late.
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
    ensure!(untried.is_empty(), "the chart gives what is not taken away here: {untried:?}");

    let mig = MigStandin::new(1, MIG);
    let nodes =
        mig.device_nodes(1).map(|(path, major, minor)| format!("mknod -m 666 {path} c {major} {minor}"));
    pool.on(DEDICATED, &format!("mkdir -p /dev/nvidia-caps; {}", nodes.join("; ")))?;
    instead.gpus.set_mig(1, &[mig])?;
    let choice = format!("{CHOICE}={CONFIGURATION}");
    let theirs = "nvidia.com/gpu.product=theirs";
    pool.cluster.kubectl(&["label", "node", DEDICATED, &choice, theirs, "--overwrite"])?;
    instead.try_without(&[], |what| {
        wait_offered(pool, GPU, 4, 4)?;
        // Of another user than the agent, who may end it only by a capability.
        namespace.pod(
            "held",
            &format!(
                "  nodeName: {DEDICATED}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sh, -c, 'sleep 100000; sleep 100000']
    securityContext: {{runAsUser: 1000}}
    resources: {{limits: {{{GPU}: 1}}}}
"
            ),
        )?;
        namespace.wait_ready("held")?;
        wait_abilities(pool, what, &[], &[])?;
        let over = over_budget(pool, &namespace, &instead.gpus)?;
        wait("what is over its budget to be ended", || Ok((!alive(pool, over)?).then_some(())))?;
        leave(&instead.gpus)
    })?;
    for (privileges, lost, words) in CASES {
        instead.try_without(privileges, |what| wait_abilities(pool, what, lost, words))?;
    }

    // Who else hands out the GPUs is seen by a socket in the kubelet's folder, or by what the kubelet has from them.
    let ids = (0..2).map(GpuStandin::uuid).collect();
    let mut theirs = neighbour::Standin::start(pool, "their-gpu.sock", ids)?;
    theirs.register();
    neighbour::wait_allocatable(pool, "2")?;
    let seen = |words: &str| {
        wait(&format!("{words} to be seen"), || {
            let events = ["-n", "default", "get", "events.events.k8s.io", "-o", "jsonpath={.items[*].note}"];
            Ok(pool.cluster.kubectl(&events)?.contains(words).then_some(()))
        })?;
        ensure!(!look(pool, &[])?.0.contains("GPUs"), "another's GPUs are offered");
        Ok(())
    };
    let socket = "/var/lib/kubelet/plugins_registry/gpu.nvidia.com-reg.sock";
    let socket = tempfile::TempPath::try_from_path(pool.cluster.machine(DEDICATED)?.live_path(socket))?;
    let mut listener = None;
    instead.try_without(&[], |_| {
        seen("another device plugin (the kubelet has nvidia.com/gpu from it; its socket seems to be their-gpu.sock)")?;
        listener = Some(std::os::unix::net::UnixListener::bind(&socket)?);
        theirs.end()?;
        seen("NVIDIA's DRA driver (gpu.nvidia.com-reg.sock)")
    })?;
    let mut theirs = neighbour::Standin::start(pool, "their-gpu.sock", vec!["0".to_owned()])?;
    theirs.register();
    neighbour::wait_allocatable(pool, "1")?;
    let blind = [Mount("plugins-registry"), Mount("pod-resources"), Capability("KILL")];
    instead.try_without(&blind, |what| {
        wait_abilities(pool, what, &[], &[])?;
        let over = over_budget(pool, &namespace, &instead.gpus)?;
        let words = format!("can't end process {over}");
        wait("the agent to be refused", || Ok(look(pool, &[&words])?.1.contains(&words).then_some(())))?;
        ensure!(alive(pool, over)?, "it was ended");
        Ok(())
    })?;
    theirs.end()?;
    drop((listener, socket));
    instead.put_back()
}

/// A process of the pod that holds a GPU, which is said to use more than its part of the memory.
fn over_budget(pool: &Pool, namespace: &Namespace<'_>, gpus: &GpuStandin) -> anyhow::Result<u32> {
    let uid = namespace.field("pod", "held", ".metadata.uid")?;
    let find = format!(
        "for p in $(grep -l pod{uid} /proc/[0-9]*/cgroup 2>/dev/null); do p=${{p%/cgroup}}; [ \"$(cat $p/comm)\" != sleep ] || echo ${{p#/proc/}}; done"
    );
    let found = pool.on(DEDICATED, &find)?;
    let pid = found.lines().next().context("nothing runs in the pod that holds a GPU")?.parse()?;
    gpus.set(0, "processes", format!("{pid} 1100 compute\n"))?;
    // As long as this stays what it is, the agent takes it that nobody came or went.
    gpus.set(0, "memory-used", 1100)?;
    Ok(pid)
}

/// Nobody uses the GPU.
fn leave(gpus: &GpuStandin) -> anyhow::Result<()> {
    gpus.set(0, "processes", "")?;
    Ok(gpus.set(0, "memory-used", 0)?)
}

fn alive(pool: &Pool, pid: u32) -> anyhow::Result<bool> {
    Ok(pool.on(DEDICATED, &format!("[ ! -d /proc/{pid} ] || echo yes"))?.trim() == "yes")
}
