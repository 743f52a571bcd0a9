//! Pods on the virtual node, as their users see them.

use anyhow::{Context as _, ensure};

use crate::{
    Test,
    harness::{IMAGE, Namespace, ON_VIRTUAL, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("vk::containers_see_what_the_pod_says", containers_see_what_the_pod_says),
    ("vk::pods_end_as_a_kubelet_says", pods_end_as_a_kubelet_says),
    ("vk::what_is_missing_is_waited_for", what_is_missing_is_waited_for),
    ("vk::what_is_not_supported_is_refused", what_is_not_supported_is_refused),
    ("vk::deletion_is_graceful_and_leaves_nothing", deletion_is_graceful_and_leaves_nothing),
    ("vk::a_killed_daemon_loses_and_doubles_nothing", a_killed_daemon_loses_and_doubles_nothing),
];

/// What the machine still has of a pod: containers, logs, volumes, mounts, cgroups.
fn traces(pool: &Pool, uid: &str) -> anyhow::Result<String> {
    pool.on(
        VIRTUAL,
        &format!(
            r#"ctr -n k8s.io containers ls -q 'labels."io.kubernetes.pod.uid"=={uid}' | sed 's/^/container /'
            ls /var/log/pods /var/lib/spillway-vk/pods | grep {uid} || true
            ls -l /var/log/containers | grep {uid} || true
            grep {uid} /proc/self/mountinfo || true
            find /sys/fs/cgroup -type d -name pod{uid}"#
        ),
    )
}

fn wait_no_traces(pool: &Pool, uid: &str) -> anyhow::Result<()> {
    let mut left = String::new();
    wait(&format!("every trace of pod {uid} to be gone"), || {
        left = traces(pool, uid)?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .with_context(|| format!("still there:\n{left}"))
}

fn event(namespace: &Namespace<'_>, pod: &str, reason: &str) -> anyhow::Result<String> {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    wait(&format!("event {reason} of pod {pod}"), || {
        let found = namespace.kubectl(&[
            "get",
            "events",
            "--field-selector",
            &selector,
            "-o",
            "jsonpath={.items[*].message}",
        ])?;
        Ok((!found.is_empty()).then_some(found))
    })
}

fn terminated(namespace: &Namespace<'_>, pod: &str, field: &str) -> anyhow::Result<String> {
    namespace.field("pod", pod, &format!(".status.containerStatuses[0].state.terminated.{field}"))
}

fn containers_see_what_the_pod_says(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-see")?;
    namespace.kubectl(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=colour=blue",
        "--from-literal=file=text",
    ])?;
    namespace.kubectl(&["create", "secret", "generic", "keys", "--from-literal=password=hunter2"])?;
    namespace.pod(
        "all",
        &format!(
            "{ON_VIRTUAL}  terminationGracePeriodSeconds: 1
  securityContext: {{fsGroup: 2000}}
  initContainers:
  - {{name: first, {IMAGE}, command: [sh, -c, 'echo one >> /empty/order'], volumeMounts: [{{name: empty, mountPath: /empty}}]}}
  - {{name: second, {IMAGE}, command: [sh, -c, 'echo two >> /empty/order'], volumeMounts: [{{name: empty, mountPath: /empty}}]}}
  containers:
  - name: main
    {}
    command: [sleep, '1000']
    env:
    - {{name: WHO, value: me}}
    - {{name: GREETING, value: 'hello $(WHO)'}}
    - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
    - {{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
    - {{name: CPU, valueFrom: {{resourceFieldRef: {{resource: limits.cpu, divisor: 1m}}}}}}
    - {{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: settings, key: colour}}}}}}
    - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: keys, key: password}}}}}}
    securityContext: {{runAsUser: 1234, readOnlyRootFilesystem: true}}
    resources: {{limits: {{cpu: 250m, memory: 64Mi}}}}
    volumeMounts:
    - {{name: empty, mountPath: /empty}}
    - {{name: memory, mountPath: /memory}}
    - {{name: settings, mountPath: /settings}}
    - {{name: settings, mountPath: /one-file, subPath: file}}
    - {{name: keys, mountPath: /keys, readOnly: true}}
    - {{name: self, mountPath: /self}}
    - {{name: host, mountPath: /host}}
  volumes:
  - {{name: empty, emptyDir: {{}}}}
  - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}
  - {{name: settings, configMap: {{name: settings}}}}
  - {{name: keys, secret: {{secretName: keys, items: [{{key: password, path: deep/pw, mode: 256}}]}}}}
  - {{name: self, downwardAPI: {{items: [{{path: name, fieldRef: {{fieldPath: metadata.name}}}}]}}}}
  - {{name: host, hostPath: {{path: /srv/shared, type: Directory}}}}
",
            IMAGE.replace(", ", "\n    ")
        ),
    )?;
    namespace.wait_ready("all")?;
    let ip = namespace.field("pod", "all", ".status.podIP")?;
    let sh = |script: &str| namespace.exec("all", &["sh", "-c", script]).map(|text| text.trim().to_owned());
    let expected = [
        (
            "echo $GREETING, $NODE, $CPU, $COLOUR, $PASSWORD",
            "hello me, virtual-1, 250, blue, hunter2".to_owned(),
        ),
        ("echo $IP", ip.clone()),
        ("cat /empty/order | tr '\\n' ' '", "one two".to_owned()),
        ("cat /settings/colour /one-file /keys/deep/pw /self/name", "bluetexthunter2all".to_owned()),
        ("echo $(id -u) $(id -G)", "1234 0 2000".to_owned()),
        ("touch /root-file 2>/dev/null || echo refused", "refused".to_owned()),
        ("touch /keys/x 2>/dev/null || echo refused", "refused".to_owned()),
        ("stat -c %T -f /memory", "tmpfs".to_owned()),
        ("stat -c %g /empty", "2000".to_owned()),
        ("hostname", "all".to_owned()),
        ("grep -c . /var/run/secrets/kubernetes.io/serviceaccount/token", "1".to_owned()),
        (
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
            "67108864".to_owned(),
        ),
    ];
    for (script, answer) in expected {
        let found = sh(script)?;
        ensure!(found == answer, "{script:?} says {found:?} instead of {answer:?}");
    }
    ensure!(sh("cat /etc/hosts")?.contains(&format!("{ip}\tall")), "the pod is not in its hosts file");
    let resolver = sh("cat /etc/resolv.conf")?;
    ensure!(
        resolver.contains("search vk-see.svc.cluster.local svc.cluster.local cluster.local")
            && resolver.contains("nameserver 10.96.0.10")
            && resolver.contains("ndots:5"),
        "{resolver}"
    );
    let phase = namespace.field("pod", "all", ".status.qosClass")?;
    ensure!(phase == "Guaranteed" || phase == "Burstable", "quality of service {phase:?}");
    Ok(())
}

fn pods_end_as_a_kubelet_says(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-end")?;
    let once = |name: &str, command: &str, more: &str| {
        namespace.pod(
            name,
            &format!(
                "{ON_VIRTUAL}  restartPolicy: Never\n{more}  terminationGracePeriodSeconds: 1
  containers:\n  - {{name: main, {IMAGE}, resources: {{limits: {{memory: 32Mi}}}}, command: [{command}]}}\n"
            ),
        )
    };
    once("well", "sh, -c, 'printf done > /dev/termination-log'", "")?;
    once("badly", "sh, -c, 'exit 3'", "")?;
    once("hungry", "tail, /dev/zero", "")?;
    once("late", "sleep, '1000'", "  activeDeadlineSeconds: 2\n")?;
    once("absent", "/no/such/program", "")?;
    let init = format!("  initContainers: [{{name: first, {IMAGE}, command: [sh, -c, 'exit 4']}}]\n");
    once("unprepared", "sleep, '1000'", &init)?;
    namespace.pod(
        "again",
        &format!("{ON_VIRTUAL}  containers:\n  - {{name: main, {IMAGE}, command: [sh, -c, 'exit 5']}}\n"),
    )?;

    for (pod, phase, reason, code) in [
        ("well", "Succeeded", "Completed", "0"),
        ("badly", "Failed", "Error", "3"),
        ("hungry", "Failed", "OOMKilled", "137"),
        ("absent", "Failed", "StartError", "128"),
    ] {
        namespace.wait_phase(pod, phase)?;
        let found = (terminated(&namespace, pod, "reason")?, terminated(&namespace, pod, "exitCode")?);
        ensure!(found == (reason.to_owned(), code.to_owned()), "{pod} ended with {found:?}");
    }
    ensure!(terminated(&namespace, "well", "message")? == "done", "the last words are lost");
    namespace.wait_phase("late", "Failed")?;
    ensure!(namespace.field("pod", "late", ".status.reason")? == "DeadlineExceeded");
    namespace.wait_phase("unprepared", "Failed")?;
    let code =
        namespace.field("pod", "unprepared", ".status.initContainerStatuses[0].state.terminated.exitCode")?;
    ensure!(code == "4", "the init container ended with {code:?}");
    wait("the crash loop to be told", || {
        let waiting = namespace.field("pod", "again", ".status.containerStatuses[0].state.waiting.reason")?;
        let before =
            namespace.field("pod", "again", ".status.containerStatuses[0].lastState.terminated.exitCode")?;
        Ok((waiting == "CrashLoopBackOff" && before == "5").then_some(()))
    })?;
    for reason in ["Pulled", "Created", "Started", "BackOff"] {
        event(&namespace, "again", reason)?;
    }
    Ok(())
}

fn what_is_missing_is_waited_for(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-wait")?;
    namespace.pod(
        "patient",
        &format!(
            "{ON_VIRTUAL}  terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: main, {IMAGE}, command: [sleep, '1000'], \
             env: [{{name: KEY, valueFrom: {{secretKeyRef: {{name: later, key: key}}}}}}], \
             volumeMounts: [{{name: v, mountPath: /v}}]}}\n  volumes: [{{name: v, configMap: {{name: later}}}}]\n"
        ),
    )?;
    let message = event(&namespace, "patient", "FailedMount")?;
    ensure!(message.contains("configmap \"later\" not found"), "{message}");
    namespace.kubectl(&["create", "configmap", "later", "--from-literal=a=1"])?;
    wait("the missing secret to be told", || {
        let waiting =
            namespace.field("pod", "patient", ".status.containerStatuses[0].state.waiting.reason")?;
        Ok((waiting == "CreateContainerConfigError").then_some(()))
    })?;
    namespace.kubectl(&["create", "secret", "generic", "later", "--from-literal=key=k1"])?;
    namespace.wait_ready("patient")?;
    let seen = namespace.exec("patient", &["sh", "-c", "echo $KEY $(cat /v/a)"])?;
    ensure!(seen.trim() == "k1 1", "{seen}");

    namespace.pod("imageless", &format!("{ON_VIRTUAL}  containers: [{{name: main, image: 'spillway.test/none:1', imagePullPolicy: Never}}]\n"))?;
    wait("the missing image to be told", || {
        let waiting =
            namespace.field("pod", "imageless", ".status.containerStatuses[0].state.waiting.reason")?;
        Ok((waiting == "ErrImageNeverPull").then_some(()))
    })
}

fn what_is_not_supported_is_refused(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-refuse")?;
    let container =
        |more: &str| format!("  containers: [{{name: main, {IMAGE}, command: [sleep, '1000']{more}}}]\n");
    let volume = "  volumes: [{name: v, nfs: {server: example.com, path: /}}]\n";
    let sysctl = "  securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}\n";
    for (pod, spec, reason, field) in [
        ("volume", format!("{}{volume}", container("")), "PodFeatureUnsupported", "spec.volumes[0].nfs"),
        ("sysctl", format!("{}{sysctl}", container("")), "SysctlForbidden", "spec.securityContext.sysctls"),
        (
            "users",
            format!("{}  hostUsers: false\n", container("")),
            "PodFeatureUnsupported",
            "spec.hostUsers",
        ),
        (
            "device",
            container(", resources: {limits: {nvidia.com/gpu: '1'}}"),
            "OutOfnvidia.com/gpu",
            "nvidia.com/gpu, requested: 1",
        ),
    ] {
        namespace.pod(pod, &format!("{ON_VIRTUAL}{spec}"))?;
        namespace.wait_phase(pod, "Failed")?;
        let found = namespace.field("pod", pod, ".status.reason")?;
        ensure!(found == reason, "pod {pod} failed with reason {found:?}");
        let message = namespace.field("pod", pod, ".status.message")?;
        ensure!(message.contains(field), "{message:?} does not name {field}");
        event(&namespace, pod, reason)?;
    }
    Ok(())
}

fn deletion_is_graceful_and_leaves_nothing(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-delete")?;
    let trap = "sh, -c, 'trap \"echo term >> /srv/term; exit 7\" TERM; while true; do sleep 0.1; done'";
    let pod = |name: &str, command: &str, grace: u32| {
        namespace.pod(
            name,
            &format!(
                "{ON_VIRTUAL}  terminationGracePeriodSeconds: {grace}\n  containers:\n  - {{name: main, {IMAGE}, command: [{command}], \
                 volumeMounts: [{{name: m, mountPath: /m}}, {{name: s, mountPath: /srv}}]}}\n  volumes:\n  - {{name: m, emptyDir: {{medium: Memory}}}}\n  \
                 - {{name: s, hostPath: {{path: /srv/shared}}}}\n"
            ),
        )
    };
    pod("polite", trap, 30)?;
    pod("stubborn", "sh, -c, 'trap : TERM; while true; do sleep 0.1; done'", 600)?;
    pod("forced", "sleep, '1000'", 600)?;
    let mut uids = Vec::new();
    for name in ["polite", "stubborn", "forced"] {
        namespace.wait_ready(name)?;
        uids.push(namespace.field("pod", name, ".metadata.uid")?);
    }
    ensure!(!traces(pool, &uids[0])?.trim().is_empty(), "a running pod leaves no trace: the check is blind");
    let heard = pool.cluster.shared().join("term");
    let _ = std::fs::remove_file(&heard);
    namespace.kubectl(&["delete", "pod", "polite"])?;
    ensure!(std::fs::read_to_string(&heard).is_ok_and(|text| text == "term\n"), "SIGTERM was not heard once");
    std::fs::remove_file(&heard)?;
    // Its grace period is longer than this test may take: only a shorter second deletion ends it.
    namespace.kubectl(&["delete", "pod", "stubborn", "--wait=false"])?;
    event(&namespace, "stubborn", "Killing")?;
    namespace.kubectl(&["delete", "pod", "stubborn", "--grace-period=1"])?;
    namespace.kubectl(&["delete", "pod", "forced", "--force", "--grace-period=0"])?;
    for uid in uids {
        wait_no_traces(pool, &uid)?;
    }
    Ok(())
}

fn a_killed_daemon_loses_and_doubles_nothing(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-kill")?;
    let pod = |name: &str, policy: &str, command: &str| {
        namespace.pod(
            name,
            &format!(
                "{ON_VIRTUAL}  restartPolicy: {policy}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: main, {IMAGE}, command: [{command}]}}\n"
            ),
        )
    };
    pod("stays", "Always", "sleep, '1000'")?;
    pod("ends", "Never", "sh, -c, 'while ! test -e /proc/1/root/tmp/go; do sleep 0.1; done; exit 42'")?;
    pod("deleted", "Always", "sleep, '1000'")?;
    pod("forced", "Always", "sleep, '1000'")?;
    let names = ["stays", "ends", "deleted", "forced"];
    for name in names {
        namespace.wait_ready(name)?;
    }
    let id = |name: &str| namespace.field("pod", name, ".status.containerStatuses[0].containerID");
    let before = (id("stays")?, id("ends")?);
    let uids = names.map(|name| namespace.field("pod", name, ".metadata.uid"));
    namespace.exec("ends", &["touch", "/tmp/go"])?;
    pool.cluster.kill(VIRTUAL, "spillway-vk")?;
    // Whether it saw the end or not, the exit code must be told once it is back.
    namespace.kubectl(&["delete", "pod", "deleted", "--wait=false"])?;
    namespace.kubectl(&["delete", "pod", "forced", "--force", "--grace-period=0"])?;
    pool.cluster.start(VIRTUAL, "spillway-vk")?;

    namespace.wait_phase("ends", "Failed")?;
    ensure!(terminated(&namespace, "ends", "exitCode")? == "42", "the exit code is lost");
    let [_, _, deleted, forced] = uids;
    namespace.wait_gone("deleted")?;
    wait_no_traces(pool, &deleted?)?;
    wait_no_traces(pool, &forced?)?;
    namespace.wait_ready("stays")?;
    ensure!((id("stays")?, id("ends")?) == before, "a container was replaced");
    ensure!(namespace.field("pod", "stays", ".status.containerStatuses[0].restartCount")? == "0");
    let uid = namespace.field("pod", "stays", ".metadata.uid")?;
    let containers = traces(pool, &uid)?.lines().filter(|line| line.starts_with("container ")).count();
    ensure!(containers == 2, "the pod has {containers} containers instead of its own and its sandbox");
    Ok(())
}
