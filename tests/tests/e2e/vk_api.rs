//! The virtual node's edge: its kubelet API through the API server and by itself, its node object, its identity.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, Read as _},
    process::Stdio,
};

use anyhow::{Context as _, bail, ensure};
use spillway_tests::cluster::Cluster;

use crate::{
    Test,
    harness::{DEDICATED, LIMIT, Namespace, ON_VIRTUAL, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("vk_api::logs_in_every_variant", logs_in_every_variant),
    ("vk_api::exec_in_every_variant", exec_in_every_variant),
    ("vk_api::streams_and_stats_are_a_kubelet_s", streams_and_stats_are_a_kubelet_s),
    ("vk_api::a_deleted_node_comes_back", a_deleted_node_comes_back),
    ("vk_api::strangers_get_no_answer", strangers_get_no_answer),
    ("vk_api::the_identity_is_a_node_s_and_no_more", the_identity_is_a_node_s_and_no_more),
    (
        "vk_api::the_chart_s_node_is_a_service_account_that_may_only_be_that_node",
        the_chart_s_node_is_a_service_account_that_may_only_be_that_node,
    ),
    ("vk_api::a_restart_asks_for_no_new_certificate", a_restart_asks_for_no_new_certificate),
];

/// Where the virtual node's own kubeconfig is on its machine.
const KUBECONFIG: &str = "/var/lib/spillway-vk/pki/kubeconfig";

fn busybox(namespace: &Namespace<'_>, name: &str, script: &str) -> anyhow::Result<()> {
    let command = format!("[sh, -c, '{script}']");
    namespace.pod(
        name,
        &format!(
            "{ON_VIRTUAL}  terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: main, image: spillway.test/busybox:dev, \
             imagePullPolicy: Never, command: {command}}}\n"
        ),
    )
}

fn logs_in_every_variant(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-api-logs")?;
    busybox(&namespace, "talker", "echo one; echo two >&2; echo three; sleep 1; exec sleep 3600")?;
    namespace.wait_phase("talker", "Running")?;
    let logs = |flags: &[&str]| {
        let mut arguments = vec!["logs", "talker"];
        arguments.extend(flags);
        namespace.kubectl(&arguments)
    };
    wait("the first three lines", || Ok((logs(&[])?.lines().count() == 3).then_some(())))?;
    let mut lines: Vec<_> = logs(&[])?.lines().map(str::to_owned).collect();
    // Two streams race on their way to the file.
    lines.sort();
    ensure!(lines == ["one", "three", "two"], "{lines:?}");
    ensure!(logs(&["--tail=1"])?.lines().count() == 1);
    ensure!(logs(&["--tail=0"])?.is_empty());
    ensure!(logs(&["--limit-bytes=5"])?.len() == 5);
    ensure!(logs(&["--since-time=2030-01-01T00:00:00Z"])?.is_empty());
    ensure!(logs(&["--since=1h"])?.lines().count() == 3);
    for line in logs(&["--timestamps"])?.lines() {
        let (time, word) = line.split_once(' ').context("a timestamp")?;
        ensure!(time.len() == "2026-11-20T10:00:00.000000000Z".len() && time.ends_with('Z'), "{line}");
        ensure!(["one", "two", "three"].contains(&word), "{line}");
    }
    refused(
        &namespace,
        &["logs", "talker", "--previous"],
        "previous terminated container \"main\" in pod \"talker\" not found",
    )?;

    // Followed to its end: all of it, and then kubectl ends by itself.
    busybox(&namespace, "counter", "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.5; done; exit 3")?;
    wait("the container to have started", || {
        Ok(namespace.kubectl(&["logs", "counter"]).is_ok().then_some(()))
    })?;
    let followed = namespace.kubectl(&["logs", "-f", "counter"])?;
    ensure!(
        followed == "line 1\nline 2\nline 3\nline 4\nline 5\nline 6\n" || followed.ends_with("line 6"),
        "{followed:?}"
    );
    wait("the log of the attempt before", || {
        let previous = namespace.kubectl_output(&["logs", "counter", "--previous"])?;
        Ok(previous.status.success().then_some(()))
    })?;

    namespace.pod(
        "pictureless",
        &format!("{ON_VIRTUAL}  containers: [{{name: main, image: spillway.test/nothing:dev, imagePullPolicy: Never}}]\n"),
    )?;
    wait("the reason", || {
        let output = namespace.kubectl_output(&["logs", "pictureless"])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(text
            .contains("container \"main\" in pod \"pictureless\" is waiting to start: ErrImageNeverPull")
            .then_some(()))
    })
}

fn exec_in_every_variant(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-api-exec")?;
    busybox(&namespace, "shell", "exec sleep 3600")?;
    namespace.wait_ready("shell")?;
    ensure!(namespace.exec("shell", &["echo", "hello"])?.trim_end() == "hello");

    let output =
        namespace.kubectl_output(&["exec", "shell", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!(output.status.code() == Some(7), "{output:?}");
    ensure!(output.stdout == b"out\n" && output.stderr.starts_with(b"err\n"), "{output:?}");

    refused(&namespace, &["exec", "shell", "--", "nonexistent-program"], "nonexistent-program")?;

    // A megabyte in and back, with each of the two protocols that kubectl speaks.
    let data: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    for websockets in ["true", "false"] {
        let echoed = piped(
            &pool.cluster,
            &["-n", &namespace.name, "exec", "-i", "shell", "--", "cat"],
            &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)],
            &data,
        )?;
        ensure!(
            echoed == data,
            "websockets={websockets}: {} of {} bytes came back",
            echoed.len(),
            data.len()
        );
    }
    // kubectl asks for a terminal only when it has one itself; script gives it one.
    let kubectl =
        format!("kubectl -n {} exec -it shell -- sh -c 'test -t 0 && echo terminal'", namespace.name);
    let own = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(spillway_tests::components::folder()).chain(std::env::split_paths(&own));
    let output = std::process::Command::new("script")
        .args(["-qec", &kubectl, "/dev/null"])
        .env("KUBECONFIG", pool.cluster.kubeconfig())
        .env("PATH", std::env::join_paths(folders)?)
        .stdin(Stdio::null())
        .output()
        .context("can't run script (Debian package bsdutils)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("terminal"), "{text}");
    Ok(())
}

fn streams_and_stats_are_a_kubelet_s(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-api-streams")?;
    // The same pod on both nodes.
    for (name, node) in [("here", VIRTUAL), ("there", DEDICATED)] {
        let script = "echo kept > /scratch/file; while true; do echo hello from here | nc -l -p 8080; done";
        namespace.pod(
            name,
            &format!(
                "  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  volumes: [{{name: scratch, emptyDir: {{}}}}]\n  \
                 automountServiceAccountToken: false\n  containers:\n  - {{name: main, image: spillway.test/busybox:dev, \
                 imagePullPolicy: Never, command: [sh, -c, '{script}'], resources: {{limits: {{cpu: 500m, memory: 64Mi}}}}, \
                 volumeMounts: [{{name: scratch, mountPath: /scratch}}]}}\n"
            ),
        )?;
    }
    namespace.wait_ready("here")?;
    namespace.wait_ready("there")?;

    // Attached to from its first byte to its last.
    let overrides = format!("{{\"spec\":{{\"nodeName\":\"{VIRTUAL}\"}}}}");
    for websockets in ["true", "false"] {
        let name = format!("cat-{websockets}");
        let flags = format!("--overrides={overrides}");
        let arguments = [
            "-n",
            &namespace.name,
            "run",
            &name,
            "-i",
            "--restart=Never",
            "--image=spillway.test/busybox:dev",
            "--image-pull-policy=Never",
            &flags,
            "--",
            "cat",
        ];
        let environment = [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)];
        let echoed = piped(&pool.cluster, &arguments, &environment, b"one line\nand another\n")?;
        ensure!(
            String::from_utf8_lossy(&echoed).contains("one line\nand another\n"),
            "websockets={websockets}: {:?}",
            String::from_utf8_lossy(&echoed)
        );
    }
    refused(&namespace, &["attach", "cat-true"], "cannot attach a container in a completed pod")?;

    for websockets in ["true", "false"] {
        let answer = forwarded(&pool.cluster, &namespace.name, websockets)?;
        ensure!(answer == "hello from here\n", "websockets={websockets}: {answer:?}");
    }

    let file = tempfile::NamedTempFile::new()?;
    let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(file.path(), &data)?;
    let (from, back) = (file.path().display().to_string(), format!("{}.back", file.path().display()));
    namespace.kubectl(&["cp", &from, "here:/scratch/copy"])?;
    namespace.kubectl(&["cp", "here:/scratch/copy", &back])?;
    let copied = std::fs::read(&back);
    let _ = std::fs::remove_file(&back);
    ensure!(copied? == data, "what was copied there and back is another file");

    wait("the statistics to have the same keys as the kubelet's", || {
        let ours = keys_of_summary(pool, VIRTUAL, &namespace.name, "here")?;
        let theirs = keys_of_summary(pool, DEDICATED, &namespace.name, "there")?;
        let missing: Vec<_> = theirs.difference(&ours).collect();
        let further: Vec<_> = ours.difference(&theirs).collect();
        eprintln!("    missing {missing:?}, further {further:?}");
        Ok((missing.is_empty() && further.is_empty()).then_some(()))
    })?;
    let (ours, theirs) = (names(pool, VIRTUAL, "resource")?, names(pool, DEDICATED, "resource")?);
    ensure!(ours == theirs, "/metrics/resource: {ours:?} is not {theirs:?}");
    let (ours, theirs) = (names(pool, VIRTUAL, "cadvisor")?, names(pool, DEDICATED, "cadvisor")?);
    eprintln!("    cadvisor: missing {:?}", theirs.difference(&ours).collect::<Vec<_>>());
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_network_receive_bytes_total",
    ] {
        ensure!(ours.contains(name), "/metrics/cadvisor has no {name}");
    }
    for path in ["metrics/probes", "healthz", "configz", "pods", "runningpods/", "metrics"] {
        ask_node(pool, VIRTUAL, path)?;
    }
    Ok(())
}

fn ask_node(pool: &Pool, node: &str, path: &str) -> anyhow::Result<String> {
    pool.cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{path}")])
}

/// Names of the metrics that a node has samples of.
fn names(pool: &Pool, node: &str, path: &str) -> anyhow::Result<BTreeSet<String>> {
    let text = ask_node(pool, node, &format!("metrics/{path}"))?;
    let names = text.lines().filter(|line| !line.starts_with('#'));
    Ok(names.filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())).collect())
}

/// Paths of all values in what a node says of itself and of one pod. Which containers of the system there are is the machine's.
fn keys_of_summary(pool: &Pool, node: &str, namespace: &str, pod: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut summary: serde_json::Value = serde_json::from_str(&ask_node(pool, node, "stats/summary")?)?;
    let pods = summary["pods"].as_array_mut().context("there are pods")?;
    pods.retain(|used| used["podRef"]["name"] == pod && used["podRef"]["namespace"] == namespace);
    let machine = summary["node"].as_object_mut().context("there is a node")?;
    machine.remove("systemContainers");
    let mut keys = BTreeSet::new();
    collect_keys(&summary, String::new(), &mut keys);
    Ok(keys)
}

fn collect_keys(value: &serde_json::Value, path: String, keys: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                collect_keys(value, format!("{path}.{key}"), keys);
            }
        }
        serde_json::Value::Array(values) => {
            for value in values {
                collect_keys(value, format!("{path}[]"), keys);
            }
        }
        _ => drop(keys.insert(path)),
    }
}

/// What a pod's port says through `kubectl port-forward`.
fn forwarded(cluster: &Cluster, namespace: &str, websockets: &str) -> anyhow::Result<String> {
    let mut child = cluster
        .kubectl_command(&["-n", namespace, "port-forward", "pod/here", ":8080"])
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
        .stdout(Stdio::piped())
        .spawn()
        .context("can't run kubectl")?;
    let answer = (|| {
        let mut line = String::new();
        let output = child.stdout.as_mut().context("a pipe was asked for")?;
        std::io::BufReader::new(output).read_line(&mut line)?;
        let port = line.split([':', ' ']).nth(3).with_context(|| format!("no port in {line:?}"))?;
        let mut socket = std::net::TcpStream::connect(format!("127.0.0.1:{port}"))?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        anyhow::Ok(answer)
    })();
    child.kill().context("can't end kubectl")?;
    child.wait().context("can't wait for kubectl")?;
    answer
}

fn a_deleted_node_comes_back(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-api-node")?;
    busybox(&namespace, "survivor", "exec sleep 3600")?;
    namespace.wait_ready("survivor")?;
    let container = || namespace.field("pod", "survivor", ".status.containerStatuses[0].containerID");
    let before = (pool.node(".metadata.uid")?, container()?);
    pool.cluster.kubectl(&["delete", "node", VIRTUAL])?;
    wait("the node to be registered again, and Ready", || {
        let output =
            pool.cluster.kubectl_output(&["get", "node", VIRTUAL, "-o", "jsonpath={.metadata.uid}"])?;
        if !output.status.success() || String::from_utf8_lossy(&output.stdout) == before.0 {
            return Ok(None);
        }
        Ok((pool.node(".status.conditions[?(@.type=='Ready')].status")? == "True").then_some(()))
    })?;
    ensure!(pool.node(".spec.taints[?(@.key=='virtual-kubelet.io/provider')].effect")? == "NoSchedule");
    wait("the lease of the new node", || {
        let lease = ["-n", "kube-node-lease", "get", "lease", VIRTUAL, "--ignore-not-found", "-o"];
        let owner = [lease.as_slice(), &["jsonpath={.metadata.ownerReferences[0].uid}"]].concat();
        Ok((pool.cluster.kubectl(&owner)? == pool.node(".metadata.uid")?).then_some(()))
    })?;
    ensure!(container()? == before.1, "the pod's container is another one");
    Ok(())
}

fn strangers_get_no_answer(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-api-auth")?;
    let address = pool.node(".status.addresses[?(@.type=='InternalIP')].address")?;
    let ask = |header: &str, path: &str| {
        let script =
            format!("curl -sk -o /dev/null -w '%{{http_code}}' {header} https://{address}:10250{path}");
        pool.on(VIRTUAL, &script).map(|code| code.trim().to_owned())
    };
    for path in ["/pods", "/healthz", "/containerLogs/a/b/c", "/exec/a/b/c?command=id&output=1", "/nothing"] {
        ensure!(ask("", path)? == "401", "no credentials: {path}");
        ensure!(ask("-H 'Authorization: Bearer nonsense'", path)? == "401", "a bad token: {path}");
    }
    let token = namespace.kubectl(&["create", "token", "default"])?;
    let bearer = format!("-H 'Authorization: Bearer {}'", token.trim());
    ensure!(ask(&bearer, "/pods")? == "403", "a token without rights");
    let name = &namespace.name;
    let role = format!("{name}-reads-pods");
    let creation = ["create", "clusterrole", &role, "--verb=get", "--resource=nodes/pods"];
    pool.cluster.kubectl(&creation)?;
    let binding = format!("--serviceaccount={name}:default");
    let role_flag = format!("--clusterrole={role}");
    pool.cluster.kubectl(&["create", "clusterrolebinding", &role, &role_flag, &binding])?;
    let granted = wait("the right to be seen", || Ok((ask(&bearer, "/pods")? == "200").then_some(())));
    let others = ask(&bearer, "/containerLogs/a/b/c");
    pool.cluster.kubectl(&["delete", "clusterrole,clusterrolebinding", &role])?;
    granted?;
    ensure!(others? == "403", "the right to see pods is not one to read logs");
    // Garbage, and then business as usual.
    pool.on(
        VIRTUAL,
        &format!("head -c 100000 /dev/urandom | timeout 5 nc {address} 10250 > /dev/null || true"),
    )?;
    ensure!(ask("", "/pods")? == "401");
    Ok(())
}

fn the_identity_is_a_node_s_and_no_more(pool: &Pool) -> anyhow::Result<()> {
    let as_node = |arguments: &str| {
        let output =
            pool.on(VIRTUAL, &format!("kubectl --kubeconfig {KUBECONFIG} {arguments} 2>&1 || true"))?;
        anyhow::Ok(output)
    };
    ensure!(
        as_node("auth whoami -o jsonpath={.status.userInfo.username}")? == format!("system:node:{VIRTUAL}")
    );
    for forbidden in [
        "get secrets -A",
        "get node dedicated-1",
        "delete pods --all -n kube-system",
        "get configmaps -n default",
    ] {
        let answer = as_node(forbidden)?;
        ensure!(answer.contains("Forbidden") || answer.contains("forbidden"), "{forbidden}: {answer}");
    }
    let mode = pool.on(VIRTUAL, "stat -c %a /var/lib/spillway-vk/pki/*.pem | sort -u")?;
    ensure!(mode.trim() == "600", "keys are readable by others: {mode}");
    Ok(())
}

fn a_restart_asks_for_no_new_certificate(pool: &Pool) -> anyhow::Result<()> {
    let requests = || pool.cluster.kubectl(&["get", "csr", "-o", "name"]);
    let registered = pool.node(".metadata.uid")?;
    let before = requests()?;
    pool.cluster.restart(VIRTUAL, "spillway-vk")?;
    wait("the kubelet API to be served again", || {
        let path = format!("/api/v1/nodes/{VIRTUAL}/proxy/healthz");
        let output = pool.cluster.kubectl_output(&["get", "--raw", &path])?;
        Ok((output.stdout == b"ok").then_some(()))
    })?;
    ensure!(requests()? == before, "a restart made a certificate request");
    ensure!(pool.node(".metadata.uid")? == registered);
    ensure!(pool.node(".status.conditions[?(@.type=='Ready')].status")? == "True", "a restart is no outage");
    Ok(())
}

/// The node of the chart's Deployment.
const FAR: &str = "spillway-virtual";

fn the_chart_s_node_is_a_service_account_that_may_only_be_that_node(pool: &Pool) -> anyhow::Result<()> {
    let chart = spillway_tests::repository().join("deploy/chart").display().to_string();
    let upgrade = |enabled: &str| {
        let set = format!("vk.enabled={enabled}");
        // Other tests have set by hand what is the chart's.
        let arguments =
            ["upgrade", "spillway", &chart, "-n", "spillway-system", "--reuse-values", "--set", &set];
        pool.cluster.helm(&[&arguments[..], &["--force-conflicts"]].concat()).map(drop)
    };
    upgrade("true")?;
    let result = far_node(pool);
    upgrade("false")?;
    pool.cluster.kubectl(&["delete", "node", FAR, "--ignore-not-found"])?;
    result
}

fn far_node(pool: &Pool) -> anyhow::Result<()> {
    let cluster = &pool.cluster;
    let mut csr = String::new();
    wait("the event that names the certificate request", || {
        let field = format!("involvedObject.name={FAR},reason=ServingCertificatePending");
        let events = ["get", "events", "--field-selector", &field, "-o", "jsonpath={.items[*].message}"];
        let message = cluster.kubectl(&events)?;
        let Some((_, name)) = message.rsplit_once("kubectl certificate approve ") else { return Ok(None) };
        name.trim().clone_into(&mut csr);
        Ok(Some(()))
    })?;
    let pod = ["-n", "spillway-system", "get", "pods", "-l", "app.kubernetes.io/name=spillway-vk", "-o"];
    let ready =
        [pod.as_slice(), &["jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"]].concat();
    ensure!(cluster.kubectl(&ready)? != "True", "it is ready although its kubelet API can't be served");
    cluster.kubectl(&["certificate", "approve", &csr])?;
    wait("the Deployment's pod to be Ready", || Ok((cluster.kubectl(&ready)? == "True").then_some(())))?;
    let healthz = format!("/api/v1/nodes/{FAR}/proxy/healthz");
    ensure!(cluster.kubectl(&["get", "--raw", &healthz])? == "ok");

    let namespace = pool.namespace("vk-api-far")?;
    namespace
        .pod("fake", &format!("  nodeName: {FAR}\n  containers: [{{name: main, image: anything}}]\n"))?;
    namespace.wait_ready("fake")?;
    ensure!(!namespace.field("pod", "fake", ".status.podIP")?.is_empty());
    refused(&namespace, &["logs", "fake"], "keeps no logs")?;
    namespace.kubectl(&["delete", "pod", "fake"])?;
    namespace.wait_gone("fake")?;

    let account = "system:serviceaccount:spillway-system:spillway-vk";
    for (verb, what, allowed) in [
        ("impersonate", format!("users/system:node:{FAR}"), true),
        ("impersonate", "groups/system:nodes".to_owned(), true),
        ("impersonate", "users/system:node:dedicated-1".to_owned(), false),
        ("impersonate", "groups/system:masters".to_owned(), false),
        ("list", "pods".to_owned(), false),
        ("get", "secrets".to_owned(), false),
        ("create", "nodes".to_owned(), false),
    ] {
        let output = cluster.kubectl_output(&["auth", "can-i", verb, &what, "--as", account])?;
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!((answer == "yes") == allowed, "{verb} {what}: {answer}");
    }
    Ok(())
}

impl Pool {
    /// A field of the virtual node, by `JSONPath` without the braces.
    fn node(&self, path: &str) -> anyhow::Result<String> {
        self.cluster.kubectl(&["get", "node", VIRTUAL, "-o", &format!("jsonpath={{{path}}}")])
    }
}

/// A command that must fail, and say this.
fn refused(namespace: &Namespace<'_>, arguments: &[&str], words: &str) -> anyhow::Result<()> {
    let output = namespace.kubectl_output(arguments)?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || !text.contains(words) {
        bail!("{arguments:?} should have failed with {words:?}: {text}");
    }
    Ok(())
}

/// What kubectl prints when it is fed `input`.
fn piped(
    cluster: &Cluster,
    arguments: &[&str],
    environment: &[(&str, &str)],
    input: &[u8],
) -> anyhow::Result<Vec<u8>> {
    let mut child = cluster
        .kubectl_command(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("can't run kubectl")?;
    let mut stdin = child.stdin.take().context("a pipe was asked for")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut stdin, input));
        child.wait_with_output()
    })?;
    ensure!(output.status.success(), "kubectl {arguments:?} failed");
    Ok(output.stdout)
}
