//! What the agent says of its machine to the API server, what it is told there, and with whom it shares the machine. API server, kubelet
//! and admission policies are real; the accelerators, and NVIDIA's plugin, are stand-ins.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use spillway_tests::standin::GpuStandin;

use crate::{
    Test,
    harness::{DEDICATED, Pool, VIRTUAL, agents, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("node::labels_are_kept_and_others_left_alone", labels_are_kept_and_others_left_alone),
    ("node::a_sick_gpu_is_a_condition_and_an_event", a_sick_gpu_is_a_condition_and_an_event),
    ("node::a_label_picks_the_configuration", a_label_picks_the_configuration),
    ("node::an_agent_writes_only_what_is_its_to_say", an_agent_writes_only_what_is_its_to_say),
];

/// A value of the dedicated node, by `JSONPath` without the braces.
fn node(pool: &Pool, path: &str) -> anyhow::Result<String> {
    pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", &format!("jsonpath={{{path}}}")])
}

fn label(pool: &Pool, key: &str) -> anyhow::Result<String> {
    node(pool, &format!(".metadata.labels.{}", key.replace('.', "\\.")))
}

fn wait_label(pool: &Pool, key: &str, value: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    wait(&format!("the label {key}={value}"), || {
        last = label(pool, key)?;
        Ok((last == value).then_some(()))
    })
    .with_context(|| format!("last: {last:?}"))
}

/// Sets or, with a key and `-`, removes a label as an admin does.
fn set_label(pool: &Pool, label: &str) -> anyhow::Result<()> {
    pool.cluster.kubectl(&["label", "node", DEDICATED, "--overwrite", label]).map(drop)
}

/// Waits for an event about the node with this reason and these words.
fn wait_event(pool: &Pool, reason: &str, words: &[&str]) -> anyhow::Result<()> {
    let mut last = String::new();
    wait(&format!("an event {reason} with {words:?}"), || {
        let fields =
            "jsonpath={range .items[*]}{.regarding.kind} {.regarding.name} {.reason}: {.note}{\"\\n\"}{end}";
        last = pool.cluster.kubectl(&["-n", "default", "get", "events.events.k8s.io", "-o", fields])?;
        let begin = format!("Node {DEDICATED} {reason}: ");
        let found = last.lines().any(|line| {
            line.strip_prefix(&begin).is_some_and(|note| words.iter().all(|word| note.contains(word)))
        });
        Ok(found.then_some(()))
    })
    .with_context(|| last.clone())
}

/// The agent's pod and its container's ID, which is another after a restart.
fn agent(pool: &Pool) -> anyhow::Result<(String, String)> {
    let found =
        agents(pool, "{.items[0].metadata.name} {.items[0].status.containerStatuses[0].containerID}")?;
    let (pod, container) = found.split_once(' ').context("no agent")?;
    Ok((pod.to_owned(), container.to_owned()))
}

fn labels_are_kept_and_others_left_alone(pool: &Pool) -> anyhow::Result<()> {
    wait_label(pool, "nvidia.com/gpu.count", "2")?;
    // What an earlier version said and this one doesn't: the API server knows that it was the agent's.
    let stale = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {DEDICATED}, labels: {{nvidia.com/gpu.obsolete: 'true'}}}}\n"
    );
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), stale)?;
    let file = file.path().to_str().context("a temporary path is text")?;
    pool.cluster.kubectl(&["apply", "--server-side", "--field-manager=spillway-agent", "-f", file])?;
    wait_label(pool, "nvidia.com/gpu.obsolete", "")?;
    wait_label(pool, "nvidia.com/gpu.count", "2")?;

    // Somebody else's, which is left alone, and said.
    set_label(pool, "nvidia.com/gpu.count=many")?;
    wait_event(pool, "LabelsHeldByAnother", &["kubectl-label", "nvidia.com/gpu.count"])?;
    ensure!(label(pool, "nvidia.com/gpu.count")? == "many", "it was taken over");
    ensure!(!label(pool, "nvidia.com/gpu.product")?.is_empty(), "the others were lost");
    set_label(pool, "nvidia.com/gpu.count-")?;
    wait_label(pool, "nvidia.com/gpu.count", "2").context("it was let go, but not taken up again")?;
    // Neither NFD's nor an admin's are touched.
    for other in ["feature.node.kubernetes.io/cpu-cpuid.AVX=true", "spillway.dev/team=vision"] {
        set_label(pool, other)?;
    }
    let base = pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin");
    let gpus = GpuStandin::at(&base);
    gpus.add(2)?;
    wait_label(pool, "nvidia.com/gpu.count", "3")?;
    wait_event(pool, "AcceleratorAdded", &[&GpuStandin::uuid(2)])?;
    gpus.remove(2)?;
    wait_label(pool, "nvidia.com/gpu.count", "2")?;
    wait_event(pool, "AcceleratorRemoved", &[&GpuStandin::uuid(2)])?;
    ensure!(label(pool, "feature.node.kubernetes.io/cpu-cpuid.AVX")? == "true", "NFD's label is gone");
    ensure!(label(pool, "spillway.dev/team")? == "vision", "the admin's label is gone");
    for other in ["feature.node.kubernetes.io/cpu-cpuid.AVX-", "spillway.dev/team-"] {
        set_label(pool, other)?;
    }
    Ok(())
}

fn condition(pool: &Pool, field: &str) -> anyhow::Result<String> {
    node(pool, &format!(".status.conditions[?(@.type=='AcceleratorHealthy')].{field}"))
}

fn wait_condition(pool: &Pool, status: &str) -> anyhow::Result<()> {
    wait(&format!("AcceleratorHealthy={status}"), || Ok((condition(pool, "status")? == status).then_some(())))
}

fn a_sick_gpu_is_a_condition_and_an_event(pool: &Pool) -> anyhow::Result<()> {
    wait_condition(pool, "True")?;
    let base = pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin");
    let gpus = GpuStandin::at(&base);
    gpus.xid(1, 79)?;
    wait_condition(pool, "False")?;
    let message = condition(pool, "message")?;
    ensure!(message.contains(&GpuStandin::uuid(1)) && message.contains("79"), "{message}");
    wait_event(pool, "AcceleratorUnhealthy", &[&GpuStandin::uuid(1), "79"])?;
    wait_condition(pool, "True")?;
    wait_event(pool, "AcceleratorHealthy", &[&GpuStandin::uuid(1)])?;
    let described = pool.cluster.kubectl(&["describe", "node", DEDICATED])?;
    ensure!(described.contains("is healthy again"), "kubectl describe doesn't show the events:\n{described}");

    // What happened while the API server did not answer, it is told afterwards.
    let (control, server) = ("control-plane", "kube-apiserver");
    pool.cluster.pause(control, server)?;
    let begun = gpus.xid(0, 79);
    pool.cluster.resume(control, server)?;
    begun?;
    wait_event(pool, "AcceleratorUnhealthy", &[&GpuStandin::uuid(0), "79"])?;
    wait_event(pool, "AcceleratorHealthy", &[&GpuStandin::uuid(0)])?;
    wait_condition(pool, "True")
}

fn a_label_picks_the_configuration(pool: &Pool) -> anyhow::Result<()> {
    const LABEL: &str = "nvidia.com/device-plugin.config";
    let offered = |count: &str| {
        let mut last = String::new();
        wait(&format!("{count} nvidia.com/gpu"), || {
            last = node(pool, ".status.allocatable.nvidia\\.com/gpu")?;
            Ok((last == count).then_some(()))
        })
        .with_context(|| format!("last: {last:?}"))
    };
    offered("2")?;
    let before = agent(pool)?;
    set_label(pool, &format!("{LABEL}=shared"))?;
    offered("8")?;
    set_label(pool, &format!("{LABEL}=nonsense"))?;
    wait_event(pool, "ConfigurationRefused", &["\"nonsense\"", "shared"])?;
    offered("8")?;
    set_label(pool, &format!("{LABEL}=broken"))?;
    wait_event(pool, "ConfigurationRefused", &["broken", "line"])?;
    offered("8")?;
    set_label(pool, &format!("{LABEL}-"))?;
    offered("2")?;
    ensure!(agent(pool)? == before, "the agent was restarted");
    Ok(())
}

fn an_agent_writes_only_what_is_its_to_say(pool: &Pool) -> anyhow::Result<()> {
    let (pod, _) = agent(pool)?;
    let account = pool.cluster.kubectl(&[
        "-n",
        "spillway-system",
        "get",
        "pod",
        &pod,
        "-o",
        "jsonpath={.spec.serviceAccountName}",
    ])?;
    // The same claims as in the token that the kubelet mounts.
    let token = pool.cluster.kubectl(&[
        "-n",
        "spillway-system",
        "create",
        "token",
        &account,
        "--bound-object-kind=Pod",
        "--bound-object-name",
        &pod,
    ])?;
    let server = pool.cluster.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let bare = token.trim().to_owned();
    let (token, server) = (format!("--token={bare}"), format!("--server={server}"));
    let access = ["--kubeconfig=/dev/null", "--insecure-skip-tls-verify", &server, &token];
    let attempt = |arguments: &[&str]| -> anyhow::Result<(bool, String)> {
        let output = pool.cluster.kubectl_output(&[&access, arguments].concat())?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let (done, said) = attempt(&["label", "node", DEDICATED, "nvidia.com/test=1"])?;
    ensure!(done, "its own label: {said}");
    let (done, said) = attempt(&["label", "node", DEDICATED, "nvidia.com/test-"])?;
    ensure!(done, "its own label's removal: {said}");

    let patch = |path: &str, value: &str| format!(r#"[{{"op":"add","path":"{path}","value":{value}}}]"#);
    let taints = patch("/spec/taints", r#"[{"key":"a","effect":"NoExecute"}]"#);
    let finalizer = patch("/metadata/finalizers", r#"["spillway.dev/x"]"#);
    let denied: [(&str, &[&str], &str); 10] = [
        ("another node", &["label", "node", VIRTUAL, "nvidia.com/test=1"], "only write to the node"),
        ("a role", &["label", "node", DEDICATED, "node-role.kubernetes.io/control-plane="], "labels about"),
        (
            "its own choice",
            &["label", "node", DEDICATED, "nvidia.com/device-plugin.config=x"],
            "labels about",
        ),
        (
            "the operator's switch",
            &["label", "node", DEDICATED, "nvidia.com/gpu.deploy.dcgm=x"],
            "labels about",
        ),
        ("a label's removal", &["label", "node", DEDICATED, "kubernetes.io/hostname-"], "labels about"),
        ("an annotation", &["annotate", "node", DEDICATED, "example.com/x=1"], "annotations under"),
        ("a taint", &["patch", "node", DEDICATED, "--type=json", "-p", &taints], "spec, owners"),
        ("a finalizer", &["patch", "node", DEDICATED, "--type=json", "-p", &finalizer], "spec, owners"),
        ("a node's end", &["delete", "node", DEDICATED], "forbidden"),
        ("secrets", &["get", "secrets", "-A"], "forbidden"),
    ];
    for (what, arguments, why) in denied {
        let (done, said) = attempt(arguments)?;
        ensure!(!done && said.contains(why), "{what}: done: {done}, instead of {why:?}: {said}");
    }
    // kubectl would read the status first, which an agent may not.
    let status = |patch: serde_json::Value| -> anyhow::Result<Result<(), String>> {
        let mut kubeconfig = kube::config::Kubeconfig::read_from(pool.cluster.kubeconfig())?;
        for user in &mut kubeconfig.auth_infos {
            user.auth_info =
                Some(kube::config::AuthInfo { token: Some(bare.clone().into()), ..Default::default() });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let options = kube::config::KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            let nodes: Api<Node> = Api::all(kube::Client::try_from(config)?);
            let done = nodes.patch_status(DEDICATED, &PatchParams::default(), &Patch::Strategic(patch)).await;
            Ok(done.map(drop).map_err(|error| error.to_string()))
        })
    };
    for (what, patch) in [
        ("its capacity", json!({ "capacity": { "nvidia.com/gpu": "100" } })),
        ("another condition", json!({ "conditions": [{ "type": "Ready", "status": "Unknown" }] })),
        ("its kubelet's port", json!({ "daemonEndpoints": { "kubeletEndpoint": { "Port": 1 } } })),
    ] {
        let result = status(json!({ "status": patch }))?;
        let refused =
            result.as_ref().is_err_and(|why| why.contains("only set the condition AcceleratorHealthy"));
        ensure!(refused, "{what}: {result:?}");
    }
    let result = status(json!({ "metadata": { "labels": { "kubernetes.io/evil": "x" } } }))?;
    ensure!(
        result.as_ref().is_err_and(|why| why.contains("labels about accelerators")),
        "a label: {result:?}"
    );
    Ok(())
}
