//! `kubectl spillway` on the real cluster, as an admin types it: kubectl finds the plugin on the PATH.

use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use spillway_tests::{cluster, components};

use crate::{
    Test,
    harness::{DEDICATED, Namespace, Pool, VIRTUAL, wait, wait_gpus},
    vk_metrics::with_metrics_server,
};

pub(crate) const TESTS: &[Test] = &[
    ("capacity::a_report_says_who_has_what_and_why_a_pod_waits", reported),
    ("capacity::who_lacks_rights_is_told_which", refused),
    ("capacity::a_member_of_one_namespace_sees_that_and_is_told_the_rest", member),
    ("capacity::exporters_and_metrics_server_are_asked", sources),
    ("capacity::the_examples_of_report_run_as_they_stand", examples),
];

/// kubectl with the plugin on the PATH, as the administrator.
pub(crate) fn kubectl(pool: &Pool) -> anyhow::Result<Command> {
    let path = std::env::var("PATH").unwrap_or_default();
    let (tools, plugin) = (components::folder(), cluster::current_binaries()?);
    ensure!(plugin.join("kubectl-spillway").is_file(), "kubectl-spillway is not in {}", plugin.display());
    let mut command = pool.cluster.kubectl_command(&[]);
    command.env("PATH", format!("{}:{}:{path}", plugin.display(), tools.display()));
    Ok(command)
}

pub(crate) fn spillway(pool: &Pool, arguments: &[&str]) -> anyhow::Result<Output> {
    kubectl(pool)?.arg("spillway").args(arguments).output().context("can't run kubectl")
}

/// What it prints; its exit code has to be this one.
pub(crate) fn told(pool: &Pool, arguments: &[&str], code: i32) -> anyhow::Result<String> {
    let output = spillway(pool, arguments)?;
    let said =
        [output.stdout.as_slice(), &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    ensure!(output.status.code() == Some(code), "{arguments:?}: {}\n{}", output.status, said.concat());
    Ok(said.concat())
}

pub(crate) fn json(pool: &Pool, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = spillway(pool, &[&["report", "-o", "json"], arguments].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("the report is no JSON")
}

/// A pod that asks for GPUs and finds no place.
fn waiting(namespace: &Namespace<'_>, name: &str, gpus: u32, more: &str) -> anyhow::Result<()> {
    namespace.pod(
        name,
        &format!(
            "{more}  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: spillway.test/busybox:dev, imagePullPolicy: Never, command: [sleep, '100000'], resources: {{limits: {{nvidia.com/gpu: {gpus}}}}}}}]
"
        ),
    )
}

fn contains(text: &str, parts: &[&str]) -> anyhow::Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    Ok(())
}

/// Waits until both GPUs are there, and the pods of earlier tests have let go of them.
pub(crate) fn free_gpus(pool: &Pool) -> anyhow::Result<()> {
    wait_gpus(pool, 2)?;
    wait("the pods of earlier tests to let go of GPUs", || {
        let report = json(pool, &[])?;
        let pools = report["dedicated"].as_array().context("no pools")?;
        let gpus = pools.iter().find(|pool| pool["resource"] == "nvidia.com/gpu").context("no GPUs")?;
        Ok((gpus["allocated"] == 0).then_some(()))
    })
}

fn reported(pool: &Pool) -> anyhow::Result<()> {
    free_gpus(pool)?;
    let namespace = pool.namespace("capacity")?;
    namespace.holder("lazy", "nvidia.com/gpu", 1)?;
    namespace.wait_ready("lazy")?;
    let far = "  nodeName: virtual-1\n  containers: [{name: main, image: spillway.test/busybox:dev, imagePullPolicy: Never, command: [sleep, '100000'], resources: {requests: {cpu: 2}}}]\n";
    namespace.pod("far", far)?;
    namespace.wait_ready("far")?;
    waiting(&namespace, "pair", 2, "")?;
    waiting(&namespace, "huge", 16, "")?;
    waiting(&namespace, "picky", 1, "  nodeSelector: {nvidia.com/gpu.product: H100}\n")?;
    waiting(&namespace, "gated", 1, "  schedulingGates: [{name: example.com/hold}]\n")?;
    namespace.apply("apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: none-more}\nspec: {hard: {count/jobs.batch: 9, pods: 6}}\n")?;
    namespace.apply(
        "apiVersion: batch/v1
kind: Job
metadata: {name: sweep}
spec:
  parallelism: 3
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: spillway.test/busybox:dev, imagePullPolicy: Never, command: [sleep, '100000'], resources: {limits: {nvidia.com/gpu: 1}}}]
",
    )?;
    // The agent has seen that nothing runs on the GPU, and the API server has refused the Job's pods.
    wait("the report to tell of the idle pod and of the quota", || {
        let report = json(pool, &["--idle-after", "0", "-n", "capacity"])?;
        let idle =
            report["idle"].as_array().is_some_and(|idle| idle.len() == 1 && idle[0]["idle_s"].is_number());
        let quota =
            report["waiting"].as_array().is_some_and(|all| all.iter().any(|one| one["reason"] == "quota"));
        Ok((idle && quota).then_some(()))
    })?;
    let text = told(pool, &["report", "--idle-after", "0", "--dedicated-price", "2.5"], 0)?;
    eprintln!("{text}");
    contains(
        &text,
        &[
            "DEDICATED: machines that you own",
            "SERVERLESS: limits of virtual nodes",
            "costs in USD",
            "2.50",
            "computes nothing",
            "asks for 2 GPUs: 1 of 2 is free",
            "if capacity/lazy (1 GPU, idle for ",
            "asks for 16 GPUs on one machine, and the largest (dedicated-1) has 2",
            "no machine has the label nvidia.com/gpu.product=H100 of its node selector",
            "held back by its scheduling gate example.com/hold",
            "the namespace's quota none-more is used up: 6 of 6 pods are taken, and a pod asks for 1",
        ],
    )?;
    never_added_up(&json(pool, &[])?)?;
    conditions(pool)?;
    // It starts when what was said to help is done.
    namespace.kubectl(&["delete", "job", "sweep"])?;
    namespace.kubectl(&["delete", "pod", "lazy", "gated", "picky", "huge"])?;
    namespace.wait_ready("pair")
}

/// A GPU of two is held; the virtual node's thousand cores are nowhere in what is owned.
fn never_added_up(report: &Value) -> anyhow::Result<()> {
    let pools = report["dedicated"].as_array().context("no pools")?;
    let gpus = pools.iter().find(|pool| pool["resource"] == "nvidia.com/gpu").context("no GPUs")?;
    for (field, value) in [("capacity", 2), ("allocatable", 2), ("allocated", 1), ("free", 1), ("nodes", 1)] {
        ensure!(gpus[field] == value, "{field} is {}, not {value}", gpus[field]);
    }
    ensure!(gpus["largest_pod"]["devices"] == 1 && gpus["largest_pod"]["node"] == DEDICATED, "{gpus}");
    ensure!(
        pools.iter().all(|pool| pool["cpu_cores"].as_f64().is_some_and(|cores| cores < 1000.0)),
        "{pools:?}"
    );
    let virtual_nodes = report["serverless"].as_array().context("no virtual nodes")?;
    let node = virtual_nodes.iter().find(|node| node["node"] == VIRTUAL).context("no virtual node")?;
    let cpu = node["offers"].as_array().and_then(|all| all.iter().find(|offer| offer["resource"] == "cpu"));
    let cpu = cpu.context("no CPU")?;
    ensure!(cpu["capacity"] == 1_000_000 && cpu["allocated"] == 2000, "{cpu}");
    Ok(())
}

fn conditions(pool: &Pool) -> anyhow::Result<()> {
    contains(&told(pool, &["report", "--fail-if", "waiting>0"], 3)?, &["fails: waiting>0: it is "])?;
    told(pool, &["report", "--fail-if", "free>5", "--fail-if", "allocated>99%"], 0)?;
    contains(&told(pool, &["report", "--fail-if", "strand>5"], 2)?, &["allocated, requested, used, idle"])?;
    contains(&told(pool, &["report", "-l", "a within b"], 2)?, &["no selector"])?;
    contains(&told(pool, &["report", "-o", "csv"], 0)?, &["resource,model,nodes"])?;
    contains(&told(pool, &["report", "-l", "type=virtual-kubelet"], 0)?, &["virtual-1"])?;
    let nowhere = told(pool, &["report", "--context", "nowhere"], 1)?;
    contains(&nowhere, &["nowhere"])
}

/// A kubeconfig whose context `planner` is a new service account of that name.
fn planner(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<tempfile::NamedTempFile> {
    namespace.kubectl(&["create", "serviceaccount", "planner"])?;
    let token = namespace.kubectl(&["create", "token", "planner"])?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::copy(pool.cluster.kubeconfig(), file.path())?;
    let kubeconfig = path_of(&file)?;
    for arguments in [
        &["config", "set-credentials", "planner", "--token", token.trim()][..],
        &["config", "set-context", "planner", "--user", "planner", "--cluster", &clusters_name(pool)?],
    ] {
        pool.cluster.kubectl(&[&["--kubeconfig", kubeconfig], arguments].concat())?;
    }
    Ok(file)
}

fn path_of(file: &tempfile::NamedTempFile) -> anyhow::Result<&str> {
    file.path().to_str().context("a temporary path is text")
}

fn member(pool: &Pool) -> anyhow::Result<()> {
    free_gpus(pool)?;
    let namespace = pool.namespace("member")?;
    let others = pool.namespace("others")?;
    others.holder("other", "nvidia.com/gpu", 1)?;
    namespace.holder("lazy", "nvidia.com/gpu", 1)?;
    namespace.wait_ready("lazy")?;
    waiting(&namespace, "pair", 2, "")?;
    let file = planner(pool, &namespace)?;
    let as_member = ["report", "-n", "member", "--kubeconfig", path_of(&file)?, "--context", "planner"];
    let refusal = told(pool, &as_member, 1)?;
    contains(&refusal, &["kubectl auth can-i list pods -n member", "--show-rbac -n member"])?;
    // What it prints for one namespace is enough for a report of it.
    let manifest = told(pool, &["report", "--show-rbac", "-n", "member"], 0)?;
    let ours = manifest.replace(
        "{apiGroup: rbac.authorization.k8s.io, kind: Group, name: spillway-planners}",
        "{kind: ServiceAccount, name: planner, namespace: member}",
    );
    pool.cluster.apply(&ours)?;
    let text = wait("the rights to be there", || {
        let output = spillway(pool, &as_member)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // The scheduler has its say once.
        Ok((output.status.success() && text.contains("default-scheduler says: ")).then_some(text))
    })?;
    contains(
        &text,
        &[
            "Insufficient nvidia.com/gpu",
            "NOT SEEN",
            "machines, and with them what is free and whether a pod fits: you may not list nodes",
            "pods of other namespaces than member",
        ],
    )?;
    ensure!(!text.contains("DEDICATED") && !text.contains("others"), "{text}");
    // Without -n it is told what is missing, and that -n would do.
    let everywhere = ["report", "--kubeconfig", path_of(&file)?, "--context", "planner"];
    contains(&told(pool, &everywhere, 1)?, &["-n NAMESPACE reports what can be seen from there"])?;
    // Nothing to complete is no error, and nothing is said.
    let complete =
        ["__complete", "--", "report", "--kubeconfig", path_of(&file)?, "--context", "planner", "-n", ""];
    ensure!(told(pool, &complete, 0)? == ":4\n", "a member who may list no namespaces is offered some");
    contains(&told(pool, &["__complete", "--", "report", "-n", "memb"], 0)?, &["member\n"])
}

/// MIG devices that nobody but the DCGM exporter tells of, and a metrics-server.
fn sources(pool: &Pool) -> anyhow::Result<()> {
    const PARTITIONS: &str =
        r#"[{"op": "add", "path": "/status/capacity/nvidia.com~1mig-1g.5gb", "value": "2"}]"#;
    const NONE: &str = r#"[{"op": "remove", "path": "/status/capacity/nvidia.com~1mig-1g.5gb"}]"#;
    let patch = |patch: &str| {
        let status = ["patch", "node", DEDICATED, "--subresource=status", "--type=json", "-p", patch];
        pool.cluster.kubectl(&status).map(drop)
    };
    patch(PARTITIONS)?;
    let outcome = with_metrics_server(pool, || asked(pool));
    patch(NONE)?;
    outcome
}

fn asked(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("sources")?;
    let manifest = spillway_tests::repository().join("tests/cluster/manifests/standin-dcgm-exporter.yaml");
    namespace.apply(&std::fs::read_to_string(manifest)?)?;
    for pod in ["busy", "lazy"] {
        // By the scheduler: a kubelet that is handed a pod directly refuses it until it knows of the new resource itself.
        namespace.pod(pod, "  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: spillway.test/busybox:dev, imagePullPolicy: Never, command: [sleep, '100000'], resources: {limits: {nvidia.com/mig-1g.5gb: 1}}}]
")?;
        namespace.wait_ready(pod)?;
    }
    namespace.wait_ready("standin-dcgm-exporter")?;
    wait("the report to tell what the exporter and metrics-server know", || {
        let report = json(pool, &["--idle-after", "0"])?;
        let seen = report["seen"].to_string();
        let all = ["the DCGM exporter on 1 node", "spillway-agent on 1 node", "metrics-server"];
        let pools = report["dedicated"].as_array().context("no pools")?;
        let Some(slices) = pools.iter().find(|pool| pool["resource"] == "nvidia.com/mig-1g.5gb") else {
            return Ok(None);
        };
        let idle = report["idle"].as_array().context("no holders")?;
        let idle: Vec<_> = idle.iter().filter(|one| one["namespace"] == "sources").collect();
        let right = all.iter().all(|source| seen.contains(source))
            && slices["used"] == 0.75
            && slices["allocated"] == 2
            && matches!(idle.as_slice(), [one] if one["pod"] == "lazy");
        Ok(right.then_some(()))
    })
}

fn refused(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("planners")?;
    let file = planner(pool, &namespace)?;
    let kubeconfig = path_of(&file)?;
    let as_planner = ["report", "--kubeconfig", kubeconfig, "--context", "planner"];
    let refusal = told(pool, &as_planner, 1)?;
    let columns = refusal.split_whitespace().collect::<Vec<_>>().join(" ");
    contains(
        &columns,
        &[
            "you lack rights",
            "kubectl auth can-i list nodes no needed:",
            "kubectl auth can-i list pods -A no needed:",
            "--show-rbac",
        ],
    )?;
    // What it prints is what it takes; without a part of it, it says what it could not see.
    let manifest = told(pool, &["report", "--show-rbac"], 0)?;
    let ours = manifest.replace(
        "{apiGroup: rbac.authorization.k8s.io, kind: Group, name: spillway-planners}",
        "{kind: ServiceAccount, name: planner, namespace: planners}",
    );
    ensure!(ours != manifest, "nobody is bound in {manifest}");
    let unblinded = |line: &&str| !line.contains("[pods/proxy]");
    let blind = ours.lines().filter(unblinded).collect::<Vec<_>>().join("\n");
    let result = (|| {
        pool.cluster.apply(&blind)?;
        wait("the rights to be there", || Ok(spillway(pool, &as_planner)?.status.success().then_some(())))?;
        contains(
            &told(pool, &as_planner, 0)?,
            &["NOT SEEN", "you may not get pods/proxy in all namespaces"],
        )?;
        pool.cluster.apply(&ours)?;
        wait("the last right to be there", || {
            let text = told(pool, &as_planner, 0)?;
            Ok((!text.contains("pods/proxy")).then_some(()))
        })
    })();
    pool.cluster.kubectl(&[
        "delete",
        "clusterrole,clusterrolebinding",
        "spillway-report",
        "--ignore-not-found",
    ])?;
    result
}

fn clusters_name(pool: &Pool) -> anyhow::Result<String> {
    pool.cluster.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].name}"])
}

fn examples(pool: &Pool) -> anyhow::Result<()> {
    // A backslash at a line's end: the example goes on in the next.
    let help = told(pool, &["report", "--help"], 0)?.replace(" \\\n", " ");
    let lines: Vec<_> = help.lines().filter(|line| line.starts_with("  kubectl spillway ")).collect();
    ensure!(lines.len() >= 2, "no examples in {help}");
    let kubectl = kubectl(pool)?;
    for line in lines {
        let mut shell = Command::new("bash");
        shell.args(["-ec", line.trim()]);
        shell.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = shell.output().context("can't run bash")?;
        let said = [output.stdout, output.stderr].concat();
        // A condition may well hold.
        ensure!(matches!(output.status.code(), Some(0 | 3)), "`{line}`: {}", String::from_utf8_lossy(&said));
    }
    Ok(())
}
