//! What kubectl says and does with a pod on a kubelet and with the same pod on the virtual node: logs, debug, run, cp, and what probes are counted as.
//! `vk_api` has what needs no comparison.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::{
    Test,
    beside::{NODES, both, on_both, wait_both},
    harness::{IMAGE, Namespace, Pool, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("vk_kubectl::logs_are_those_of_a_real_node", logs_are_those_of_a_real_node),
    ("vk_kubectl::debug_run_and_cp_are_those_of_a_real_node", debug_run_and_cp_are_those_of_a_real_node),
    ("vk_kubectl::probes_are_counted_as_on_a_real_node", probes_are_counted_as_on_a_real_node),
];

/// What a command prints on either stream, and how it ends, without what is bound to differ.
fn told(namespace: &Namespace<'_>, kind: &str, command: &str) -> anyhow::Result<(Option<i32>, String)> {
    let node =
        NODES.into_iter().find_map(|(of, node)| (of == kind).then_some(node)).context("a kind of node")?;
    let filled = command.replace("KIND", kind).replace("NODE", node);
    let output = namespace.kubectl_output(&filled.split(' ').collect::<Vec<_>>())?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.code(), text.replace(&format!("-{kind}"), "-KIND").replace(node, "NODE")))
}

/// What a command says on both nodes, if it is the same.
fn alike(namespace: &Namespace<'_>, command: &str) -> anyhow::Result<(Option<i32>, String)> {
    let [real, virtual_one] = both(|kind| told(namespace, kind, command))?;
    ensure!(virtual_one == real, "{command:?} says {virtual_one:?} instead of {real:?}");
    Ok(real)
}

fn logs_are_those_of_a_real_node(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-kubectl-logs")?;
    on_both(
        &namespace,
        "talker",
        &format!(
            "  terminationGracePeriodSeconds: 0
  volumes: [{{name: kept, emptyDir: {{}}}}]
  initContainers: [{{name: init, {IMAGE}, command: [sh, -c, 'echo prepared']}}]
  containers:
  - name: main
    {}
    volumeMounts: [{{name: kept, mountPath: /kept}}]
    command: [sh, -c, 'echo x >> /kept/runs; n=$(wc -l < /kept/runs); for i in 1 2 3 4; do echo run $n line $i; done; printf unfinished; [ $n = 2 ] || exit 3; exec sleep 10000']
  - {{name: other, {IMAGE}, command: [sh, -c, 'echo beside; exec sleep 10000']}}
",
            IMAGE.replace(", ", "\n    ")
        ),
    )?;
    let first = "run 1 line 1\nrun 1 line 2\nrun 1 line 3\nrun 1 line 4\nunfinished";
    for (kind, _) in NODES {
        wait("the second run", || {
            let (_, said) = told(&namespace, kind, "logs talker-KIND -c main")?;
            Ok((said.ends_with("run 2 line 4\nunfinished") || said.ends_with("run 2 line 4\n")).then_some(()))
        })?;
    }
    for (command, expected) in [
        ("logs talker-KIND -c main --previous", Some(first)),
        ("logs talker-KIND -c main --previous --tail=2", Some("run 1 line 4\nunfinished")),
        ("logs talker-KIND -c main --previous --limit-bytes=10", Some("run 1 line")),
        ("logs talker-KIND -c main --previous --tail=2 --limit-bytes=3", Some("run")),
        ("logs talker-KIND -c main --tail=0", Some("")),
        ("logs talker-KIND -c main --since-time=2100-01-01T00:00:00Z", Some("")),
        ("logs talker-KIND -c main --since=1h --tail=1", None),
        ("logs talker-KIND -c init", Some("prepared\n")),
        ("logs talker-KIND -c init --previous", None),
        ("logs talker-KIND -c other --previous", None),
        ("logs talker-KIND -c nothing", None),
        ("logs talker-KIND --all-containers --prefix --tail=1 -c main", None),
        ("logs talker-KIND --since=-1h", None),
        ("logs talker-KIND --limit-bytes=0", None),
    ] {
        let (_, said) = alike(&namespace, command)?;
        ensure!(expected.is_none_or(|expected| said == expected), "{command:?} says {said:?}");
    }

    // Followed from the middle to the end, with its times.
    on_both(
        &namespace,
        "counter",
        &format!(
            "  restartPolicy: Never\n  containers: [{{name: main, {IMAGE}, command: [sh, -c, 'for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 1; done; exit 4']}}]\n"
        ),
    )?;
    for (kind, _) in NODES {
        wait("the third line", || {
            Ok(told(&namespace, kind, "logs counter-KIND")?.1.contains("line 3").then_some(()))
        })?;
    }
    let [real, virtual_one] = both(|kind| {
        let (code, text) = told(&namespace, kind, "logs -f --tail=1 --since=10m --timestamps counter-KIND")?;
        let mut times = Vec::new();
        let mut words = Vec::new();
        for line in text.lines() {
            let (time, word) = line.split_once(' ').context("a timestamp")?;
            times.push(time.to_owned());
            words.push(word.to_owned());
        }
        ensure!(times.is_sorted(), "{times:?}");
        ensure!(times.iter().all(|time| time.len() == times[0].len() && time.ends_with('Z')), "{times:?}");
        Ok((code, words))
    })?;
    for (code, words) in [&real, &virtual_one] {
        let first: usize = words[0].strip_prefix("line ").context("a line")?.parse()?;
        let expected: Vec<_> = (first..=8).map(|n| format!("line {n}")).collect();
        ensure!(*words == expected && first > 1 && *code == Some(0), "{words:?}, {code:?}");
    }
    // What has ended is not followed.
    let (_, said) = alike(&namespace, "logs -f --tail=2 counter-KIND")?;
    ensure!(said == "line 7\nline 8\n", "{said:?}");
    Ok(())
}

fn debug_run_and_cp_are_those_of_a_real_node(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-kubectl-debug")?;
    on_both(
        &namespace,
        "subject",
        &format!(
            "  terminationGracePeriodSeconds: 0\n  containers: [{{name: main, {IMAGE}, command: [sleep, '12345']}}]\n"
        ),
    )?;
    both(|kind| namespace.wait_ready(&format!("subject-{kind}")))?;

    // A container beside the pod's own, in its process namespace.
    let debug = "debug subject-KIND --image=spillway.test/busybox:dev --image-pull-policy=Never --target=main -c looks -- sh -c";
    for (kind, _) in NODES {
        let pod = format!("subject-{kind}");
        let script = "tr '\\0' ' ' < /proc/1/cmdline; hostname; exit 6";
        let debug = debug.replace("KIND", kind);
        let arguments: Vec<_> = debug.split(' ').chain([script]).collect();
        namespace.kubectl(&arguments)?;
        let state = ".status.ephemeralContainerStatuses[0].state.terminated.exitCode";
        wait("the debugging container to end", || {
            Ok((namespace.field("pod", &pod, state)? == "6").then_some(()))
        })?;
    }
    let (_, said) = alike(&namespace, "logs subject-KIND -c looks")?;
    ensure!(said == "sleep 12345 subject-KIND\n", "{said:?}");

    // One that is attached to, and one beside the node's own processes.
    let words = "a line\r";
    for (kind, node) in NODES {
        let waits = "until read -t 1 line; do echo waiting; done; echo got $line; exit 5";
        let image = "--image=spillway.test/busybox:dev --image-pull-policy=Never";
        let debug = format!(
            "kubectl -n {} debug -it subject-{kind} {image} -c attached -- sh -c '{waits}'",
            namespace.name
        );
        let overrides = format!("{{\"spec\":{{\"nodeName\":\"{node}\"}}}}");
        let run = format!(
            "kubectl -n {} run typed-{kind} -it --rm --restart=Never {image} --overrides='{overrides}' -- sh -c '{waits}'",
            namespace.name
        );
        for command in [debug, run] {
            let said = typed(pool, &command, "waiting", words)?;
            ensure!(said.contains("got a line"), "{command}: {said}");
        }
        namespace.wait_gone(&format!("typed-{kind}"))?;

        let script = "hostname; test -d /host/var/lib/containerd && echo its files; grep -q . /proc/1/cmdline && echo its processes";
        let of_node = format!("node/{node}");
        let said = namespace.kubectl(&[
            "debug",
            &of_node,
            "--image=spillway.test/busybox:dev",
            "--image-pull-policy=Never",
            "--",
            "sh",
            "-c",
            script,
        ])?;
        let pod = said
            .split_whitespace()
            .find(|word| word.starts_with("node-debugger-"))
            .with_context(|| said.clone())?;
        namespace.wait_phase(pod, "Succeeded")?;
        let said = namespace.kubectl(&["logs", pod])?;
        ensure!(said == format!("{node}\nits files\nits processes\n"), "{node}: {said:?}");
    }

    // Folders there and back, with what is in them.
    let folder = tempfile::tempdir()?;
    let data: Vec<u8> = (0..70_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::create_dir_all(folder.path().join("there/deep/er"))?;
    std::fs::write(folder.path().join("there/deep/er/data"), &data)?;
    std::fs::write(folder.path().join("there/empty"), "")?;
    for (kind, _) in NODES {
        let here = |name: &str| folder.path().join(name).display().to_string();
        let pod = format!("subject-{kind}:/tmp/there");
        namespace.kubectl(&["cp", &here("there"), &pod])?;
        namespace.kubectl(&["cp", &pod, &here(kind)])?;
        ensure!(
            std::fs::read(folder.path().join(kind).join("deep/er/data"))? == data,
            "{kind}: another file came back"
        );
        ensure!(std::fs::read(folder.path().join(kind).join("empty"))?.is_empty());
    }
    // What cp runs there. What it makes of a failure depends on which of two streams kubectl reads first.
    let (code, said) = alike(&namespace, "exec subject-KIND -c main -- tar cf - /no/such/file")?;
    ensure!(code == Some(1) && said.contains("/no/such/file: No such file"), "{code:?}, {said:?}");
    Ok(())
}

/// What a command on a terminal prints, after these words have been typed once it printed the others.
fn typed(pool: &Pool, command: &str, after: &str, words: &str) -> anyhow::Result<String> {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(spillway_tests::components::folder()).chain(std::env::split_paths(&own));
    let mut child = Command::new("timeout")
        .args(["120", "script", "-qec", command, "/dev/null"])
        .env("KUBECONFIG", pool.cluster.kubeconfig())
        .env("PATH", std::env::join_paths(folders)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("can't run script (Debian package bsdutils)")?;
    let (mut stdin, mut stdout) =
        (child.stdin.take().context("a pipe")?, child.stdout.take().context("a pipe")?);
    let (mut said, mut buffer, mut has_typed) = (String::new(), [0; 4096], false);
    loop {
        let count = stdout.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        said += &String::from_utf8_lossy(&buffer[..count]);
        if !has_typed && said.contains(after) {
            stdin.write_all(words.as_bytes())?;
            has_typed = true;
        }
    }
    child.wait()?;
    Ok(said)
}

/// The samples of a pod's probes, without their values and what differs between the nodes.
fn samples(
    pool: &Pool,
    namespace: &Namespace<'_>,
    pod: &str,
    kind: &str,
) -> anyhow::Result<BTreeSet<String>> {
    let node =
        NODES.into_iter().find_map(|(of, node)| (of == kind).then_some(node)).context("a kind of node")?;
    let text =
        pool.cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/probes")])?;
    let pod = format!("pod=\"{pod}-{kind}\"");
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with("# ") && line.contains("prober_") {
            found.insert(line.to_owned());
        } else if line.contains(&format!("namespace=\"{}\"", namespace.name)) && line.contains(&pod) {
            let (sample, value) = line.rsplit_once(' ').context("a value")?;
            let value: f64 = value.parse().with_context(|| line.to_owned())?;
            ensure!(value >= 0.0, "{line}");
            let uid = sample.split("pod_uid=\"").nth(1).and_then(|rest| rest.split('"').next());
            let sample = uid.map_or_else(|| sample.to_owned(), |uid| sample.replace(uid, "UID"));
            found.insert(sample.replace(&pod, "pod=\"POD\""));
        }
    }
    Ok(found)
}

fn probes_are_counted_as_on_a_real_node(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-kubectl-probes")?;
    on_both(
        &namespace,
        "probed",
        &format!(
            "  terminationGracePeriodSeconds: 0
  initContainers:
  - {{name: sidecar, {IMAGE}, restartPolicy: Always, command: [sleep, '10000'], readinessProbe: {{periodSeconds: 1, exec: {{command: ['true']}}}}}}
  containers:
  - name: main
    {}
    command: [sleep, '10000']
    startupProbe: {{periodSeconds: 1, exec: {{command: ['true']}}}}
    livenessProbe: {{periodSeconds: 1, exec: {{command: ['true']}}}}
    readinessProbe: {{periodSeconds: 1, httpGet: {{port: 81}}}}
  - {{name: quiet, {IMAGE}, command: [sleep, '10000']}}
",
            IMAGE.replace(", ", "\n    ")
        ),
    )?;
    let expected = [
        ("main", "Startup", "successful"),
        ("main", "Liveness", "successful"),
        ("main", "Readiness", "failed"),
        ("sidecar", "Readiness", "successful"),
    ];
    let is_there = |found: &BTreeSet<String>| {
        expected.iter().all(|(container, kind, result)| {
            found.contains(&format!(
                "prober_probe_total{{container=\"{container}\",namespace=\"vk-kubectl-probes\",pod=\"POD\",pod_uid=\"UID\",probe_type=\"{kind}\",result=\"{result}\"}}"
            ))
        })
    };
    let [real, _] = wait_both(
        "the same samples of probes on both nodes",
        |kind| samples(pool, &namespace, "probed", kind),
        |real, virtual_one| real == virtual_one && is_there(real),
    )?;
    ensure!(real.iter().any(|sample| sample.contains("le=\"0.005\"")), "{real:#?}");
    // A pod that is gone is told of no more.
    for (kind, _) in NODES {
        namespace.kubectl(&["delete", "pod", &format!("probed-{kind}")])?;
    }
    wait_both(
        "the pods' samples to go",
        |kind| Ok(samples(pool, &namespace, "probed", kind)?.iter().any(|sample| sample.contains("POD"))),
        |real, virtual_one| !real && !virtual_one,
    )
    .map(drop)
}
