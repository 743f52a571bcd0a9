//! How a machine's folders are mounted, on a kubelet and on the virtual node: made when they are missing, read-only all the way down, with
//! mounts that cross over, by parts that links lead to.

use anyhow::ensure;

use crate::{
    Test,
    beside::{NODES, both, on_both, wait_both},
    harness::{IMAGE, Namespace, Pool},
};

pub(crate) const TESTS: &[Test] =
    &[("vk_mounts::folders_are_mounted_as_on_a_real_node", folders_are_mounted_as_on_a_real_node)];

const ROOT: &str = "/var/lib/spillway-mounts";

/// What the machines have.
const MADE: &str = "mkdir -p ROOT/deep/sub ROOT/linked/real ROOT/crossed; mount -t tmpfs tmpfs ROOT/deep/sub
ln -s ROOT/linked/real ROOT/linked/back; ln -s /etc ROOT/linked/out; echo found >ROOT/linked/real/file";

const UNMADE: &str = "umount ROOT/crossed/inner 2>/dev/null || true; umount ROOT/deep/sub; rm -rf ROOT";

fn folders_are_mounted_as_on_a_real_node(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-mounts")?;
    let on_machines = |script: &str| {
        NODES.iter().try_for_each(|(_, node)| pool.on(node, &script.replace("ROOT", ROOT)).map(drop))
    };
    on_machines(MADE)?;
    missing_ones_are_made(pool, &namespace)?;
    read_only_ones_are_so_all_the_way_down(&namespace)?;
    links_lead_only_back(&namespace)?;
    mounts_cross_over(&namespace)?;
    for (kind, _) in NODES {
        for pod in ["made", "deep", "back", "out", "crossed"] {
            namespace.kubectl(&["delete", "pod", &format!("{pod}-{kind}"), "--wait=true"])?;
        }
    }
    on_machines(UNMADE)
}

fn ready(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<()> {
    NODES.iter().try_for_each(|(kind, _)| namespace.wait_ready(&format!("{pod}-{kind}")))
}

/// What a script says in this container of both pods, which has to be the same.
fn same(namespace: &Namespace<'_>, pod: &str, container: &str, script: &str) -> anyhow::Result<String> {
    let [real, virtual_one] = both(|kind| {
        let pod = format!("{pod}-{kind}");
        namespace.kubectl(&["exec", &pod, "-c", container, "--", "sh", "-c", script])
    })?;
    ensure!(real == virtual_one, "real:\n{real}\nvirtual:\n{virtual_one}");
    Ok(real)
}

fn container(name: &str, mounts: &str, more: &str) -> String {
    format!("  - {{name: {name}, {IMAGE}, command: [sleep, '100000'], volumeMounts: [{mounts}]{more}}}\n")
}

fn pod(containers: &str, volumes: &str) -> String {
    format!("  terminationGracePeriodSeconds: 0\n  containers:\n{containers}  volumes: [{volumes}]\n")
}

fn missing_ones_are_made(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let volumes = format!(
        "{{name: d, hostPath: {{path: {ROOT}/new/folder, type: DirectoryOrCreate}}}}, \
         {{name: f, hostPath: {{path: {ROOT}/file, type: FileOrCreate}}}}"
    );
    let mounts = "{name: d, mountPath: /d}, {name: f, mountPath: /f}";
    on_both(namespace, "made", &pod(&container("main", mounts, ""), &volumes))?;
    ready(namespace, "made")?;
    same(namespace, "made", "main", "echo x >/d/x && echo y >/f && cat /d/x /f")?;
    let [real, virtual_one] = NODES.map(|(_, node)| {
        pool.on(node, &format!("cd {ROOT}; stat -c '%n %F %a %u %g' new new/folder file; cat file"))
    });
    let (real, virtual_one) = (real?, virtual_one?);
    ensure!(real == virtual_one && real.ends_with("y\n"), "real:\n{real}\nvirtual:\n{virtual_one}");
    Ok(())
}

fn read_only_ones_are_so_all_the_way_down(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let mounts = "{name: v, mountPath: /enabled, readOnly: true, recursiveReadOnly: Enabled}, \
         {name: v, mountPath: /possible, readOnly: true, recursiveReadOnly: IfPossible}, \
         {name: v, mountPath: /plain, readOnly: true}, {name: v, mountPath: /open}";
    let volume = format!("{{name: v, hostPath: {{path: {ROOT}/deep}}}}");
    on_both(namespace, "deep", &pod(&container("main", mounts, ""), &volume))?;
    ready(namespace, "deep")?;
    let look = "for d in enabled possible plain open; do for f in x sub/x; do \
         touch /$d/$f 2>/dev/null && echo /$d/$f is written; done; done; true";
    let said = same(namespace, "deep", "main", look)?;
    eprintln!("    {}", said.trim().replace('\n', ", "));
    let status = |kind: &str| {
        namespace.field("pod", &format!("deep-{kind}"), ".status.containerStatuses[0].volumeMounts")
    };
    wait_both("the mounts in the status", status, |real, virtual_one| {
        let mask = |text: &str| text.split("kube-api-access-").next().unwrap_or_default().to_owned();
        mask(real) == mask(virtual_one) && real.contains("recursiveReadOnly")
    })
    .map(drop)
}

fn links_lead_only_back(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let volume = format!("{{name: v, hostPath: {{path: {ROOT}/linked}}}}");
    for name in ["back", "out"] {
        let mount = format!("{{name: v, mountPath: /v, subPath: {name}}}");
        on_both(namespace, name, &pod(&container("main", &mount, ""), &volume))?;
    }
    ready(namespace, "back")?;
    let said = same(namespace, "back", "main", "cat /v/file")?;
    ensure!(said == "found\n", "{said:?}");
    let waiting = |kind: &str| {
        let path = ".status.containerStatuses[0].state.waiting['reason','message']";
        namespace.field("pod", &format!("out-{kind}"), path)
    };
    let [said, _] = wait_both("both to refuse what leads out", waiting, |real, virtual_one| {
        real == virtual_one && real.starts_with("CreateContainerConfigError ")
    })?;
    eprintln!("    {said}");
    Ok(())
}

fn mounts_cross_over(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let mount = |propagation: &str| format!("{{name: v, mountPath: /v, mountPropagation: {propagation}}}");
    let containers = [
        container("both", &mount("Bidirectional"), ", securityContext: {privileged: true}"),
        container("in", &mount("HostToContainer"), ""),
        container("none", &mount("None"), ""),
    ];
    let volume = format!("{{name: v, hostPath: {{path: {ROOT}/crossed}}}}");
    on_both(namespace, "crossed", &pod(&containers.concat(), &volume))?;
    ready(namespace, "crossed")?;
    let cross = "mkdir -p /v/inner && mount -t tmpfs tmpfs /v/inner && echo crossed >/v/inner/file";
    same(namespace, "crossed", "both", cross)?;
    let look = "cat /v/inner/file 2>/dev/null || echo nothing";
    for (name, expected) in [("both", "crossed\n"), ("in", "crossed\n"), ("none", "nothing\n")] {
        let said = same(namespace, "crossed", name, look)?;
        ensure!(said == expected, "{name}: {said:?}");
    }
    Ok(())
}
