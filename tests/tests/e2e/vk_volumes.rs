//! The same volumes on a kubelet and on the virtual node: what containers see of them, how they change, and how they fail have to be
//! alike.

use anyhow::{Context as _, ensure};

use crate::{
    Test,
    beside::{NODES, both, wait_both},
    harness::{IMAGE, Namespace, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] =
    &[("vk_volumes::volumes_look_as_on_a_real_node", volumes_look_as_on_a_real_node)];

const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, file: text}
binaryData: {bytes: AAECAw==}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: fixed}
immutable: true
data: {never: changes}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hunter2, user: admin}
";

/// One container, which has everything.
const ALL: &str = "  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1234, runAsGroup: 1234, fsGroup: 2000}
  containers:
  - name: main
    IMAGE
    command: [sleep, '100000']
    resources: {limits: {cpu: 250m, memory: 64Mi}}
    volumeMounts:
    - {name: disk, mountPath: /v/disk}
    - {name: disk, mountPath: /v/made, subPath: made/here}
    - {name: memory, mountPath: /v/memory}
    - {name: sized, mountPath: /v/sized}
    - {name: settings, mountPath: /v/settings}
    - {name: settings, mountPath: /v/one-file, subPath: file}
    - {name: disk, mountPath: /v/settings/nested}
    - {name: items, mountPath: /v/items}
    - {name: fixed, mountPath: /v/fixed}
    - {name: keys, mountPath: /v/keys}
    - {name: self, mountPath: /v/self}
    - {name: projected, mountPath: /v/projected}
    - {name: later, mountPath: /v/later}
    - {name: never, mountPath: /v/never}
    - {name: host, mountPath: /v/host, readOnly: true}
    - {name: expanded, mountPath: /v/expanded, subPathExpr: $(POD)}
    env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}]
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: expanded, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: sized, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: settings, configMap: {name: settings}}
  - {name: items, configMap: {name: settings, defaultMode: 256, items: [{key: bytes, path: deep/er/bytes}, {key: file, path: ./file, mode: 511}]}}
  - {name: fixed, configMap: {name: fixed}}
  - {name: keys, secret: {secretName: keys, defaultMode: 288}}
  - {name: later, configMap: {name: later, optional: true}}
  - {name: never, secret: {secretName: keys, optional: true, items: [{key: none, path: x}]}}
  - {name: host, hostPath: {path: /srv/shared, type: Directory}}
  - name: self
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
      - {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}, mode: 420}
      - {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory}}
  - name: projected
    projected:
      defaultMode: 416
      sources:
      - serviceAccountToken: {path: deep/token, expirationSeconds: 600, audience: somebody}
      - secret: {name: keys, items: [{key: user, path: user}]}
      - configMap: {name: settings, items: [{key: colour, path: deep/colour}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
";

/// Modes, owners and links of everything, what is in the files, and how it is mounted.
const LOOK: &str = r#"
cd /v
find . -not -path './host/*' | sed 's/\.\.20[0-9_.]*/..TIME/' | sort | uniq
find . -not -path './host/*' -not -name '..20*' | sort | while read f; do stat -c '%A %u %g %N' "$f"; done | sed 's/\.\.20[0-9_.]*/..TIME/g'
stat -c '%A %u %g' settings/..20* keys/..20* projected/..20* projected/..20*/deep
for f in settings/colour settings/file settings/bytes one-file items/deep/er/bytes items/file fixed/never keys/password keys/user \
  self/labels self/annotations self/cpu self/memory projected/user projected/deep/colour projected/namespace; do
  echo "$f: $(od -An -c $f | head -3)"
done
cut -d. -f2 projected/deep/token | tr _- /+ | base64 -d 2>/dev/null | grep -o '"aud":[^]]*]'
awk '$2 ~ "^/v/" { split($4, o, ","); print $2, ($3 == "tmpfs" ? "tmpfs" : "disk"), o[1] }' /proc/mounts | sort
df -k /v/sized | awk 'END { print $2 }'
for f in disk made memory sized settings items keys self projected host expanded; do touch $f/probe 2>/dev/null && echo "$f can be written"; done
echo x > one-file || echo "one-file can't be written"
rm -f */probe
true
"#;

fn on_both(namespace: &Namespace<'_>, pod: &str, spec: &str) -> anyhow::Result<()> {
    for (kind, node) in NODES {
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}-{kind}, labels: {{app: \"a\"}}, annotations: {{note: 'say \"hi\"'}}}}\nspec:\n  nodeName: {node}\n{}",
            spec.replace("IMAGE", &IMAGE.replace(", ", "\n    "))
        );
        namespace.apply(&manifest)?;
    }
    Ok(())
}

/// What a command in each of the pods says, the real one's first.
fn say(namespace: &Namespace<'_>, pod: &str, script: &str) -> anyhow::Result<[String; 2]> {
    both(|kind| namespace.exec(&format!("{pod}-{kind}"), &["sh", "-c", script]))
}

fn ensure_alike(what: &str, [real, virtual_one]: &[String; 2]) -> anyhow::Result<()> {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (real, virtual_one) = (lines(real), lines(virtual_one));
    let only = |these: &[String], those: &[String]| {
        these.iter().filter(|line| !those.contains(line)).cloned().collect::<Vec<_>>().join("\n")
    };
    ensure!(
        real == virtual_one,
        "{what} differ.\nOnly on the real node:\n{}\nOnly on the virtual one:\n{}",
        only(&real, &virtual_one),
        only(&virtual_one, &real)
    );
    Ok(())
}

/// Waits until both pods' files are so.
fn wait_files(namespace: &Namespace<'_>, what: &str, script: &str, expected: &str) -> anyhow::Result<()> {
    let look = |kind: &str| namespace.exec(&format!("all-{kind}"), &["sh", "-c", script]);
    wait_both(what, look, |real, virtual_one| [real, virtual_one].iter().all(|said| said.trim() == expected))
        .map(drop)
}

/// Waits until both pods say the same about `path`, and something that is expected.
fn wait_field(
    namespace: &Namespace<'_>,
    pod: &str,
    path: &str,
    expected: impl Fn(&str) -> bool,
) -> anyhow::Result<String> {
    let look = |kind: &str| {
        let name = format!("{pod}-{kind}");
        // Names and UIDs are bound to differ.
        let uid = namespace.field("pod", &name, ".metadata.uid")?;
        Ok(namespace.field("pod", &name, path)?.replace(&uid, "UID").replace(&name, "NAME"))
    };
    let what = format!("both pods {pod} to say the same at {path}");
    let [said, _] = wait_both(&what, look, |real, virtual_one| real == virtual_one && expected(real))?;
    Ok(said)
}

fn volumes_look_as_on_a_real_node(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-volumes")?;
    namespace.apply(OBJECTS)?;
    // These take a kubelet their time.
    on_both(&namespace, "full", FULL)?;
    on_both(&namespace, "wrote", WROTE)?;
    on_both(&namespace, "all", ALL)?;
    for (kind, _) in NODES {
        namespace.wait_ready(&format!("all-{kind}"))?;
    }
    ensure_alike("volumes", &say(&namespace, "all", LOOK)?)?;
    files_follow_their_objects(&namespace)?;
    ensure_alike("volumes after changes", &say(&namespace, "all", LOOK)?)?;
    sub_paths_fail_alike(&namespace)?;
    variables_are_read_at_each_start(&namespace)?;
    host_paths_are_checked_alike(&namespace)?;
    images_are_shown_alike(&namespace)?;
    for pod in ["full", "wrote"] {
        let message = wait_field(&namespace, pod, ".status.message", |message| message.contains("exceed"))?;
        eprintln!("    {message}");
        wait_field(&namespace, pod, ".status['phase','reason']", |said| said == "Failed Evicted")?;
    }
    a_killed_daemon_finds_them_again(pool, &namespace)
}

fn a_killed_daemon_finds_them_again(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let pods = ["all-virtual", "inside-virtual", "image-virtual"];
    let uids = pods.map(|pod| namespace.field("pod", pod, ".metadata.uid"));
    let traces = |uid: &str| {
        let look = format!(
            "ls /var/lib/spillway-vk/pods | grep {uid} || true; grep {uid} /proc/self/mountinfo || true"
        );
        pool.on(VIRTUAL, &look)
    };
    pool.cluster.kill(VIRTUAL, "spillway-vk")?;
    namespace.kubectl(&["patch", "secret", "keys", "-p", r#"{"stringData": {"password": "hunter3"}}"#])?;
    namespace.kubectl(&["delete", "pod", "inside-virtual", "--wait=false"])?;
    pool.cluster.start(VIRTUAL, "spillway-vk")?;
    let see = ["cat", "/v/keys/password", "/v/one-file"];
    wait("what changed meanwhile", || {
        Ok((namespace.exec("all-virtual", &see)? == "hunter3text").then_some(()))
    })?;
    let restarts = namespace.field("pod", "all-virtual", ".status.containerStatuses[0].restartCount")?;
    ensure!(restarts == "0", "the container was restarted {restarts} times");
    namespace.kubectl(&["delete", "pod", "all-virtual", "image-virtual", "--wait=false"])?;
    for uid in uids {
        let uid = uid?;
        let mut left = String::new();
        wait(&format!("the volumes of pod {uid} to be gone"), || {
            left = traces(&uid)?;
            Ok(left.is_empty().then_some(()))
        })
        .with_context(|| format!("still there:\n{left}"))?;
    }
    Ok(())
}

/// A volume with a limit on the disk.
const FULL: &str = "  terminationGracePeriodSeconds: 30
  containers:
  - name: main
    IMAGE
    command: [sh, -c, 'dd if=/dev/zero of=/v/data bs=1M count=3; sleep 100000']
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {sizeLimit: 2Mi}}]
";

/// A container with a limit.
const WROTE: &str = "  restartPolicy: Never
  containers:
  - name: main
    IMAGE
    command: [sh, -c, 'dd if=/dev/zero of=/tmp-data bs=1M count=5; sleep 100000']
    resources: {limits: {ephemeral-storage: 2Mi}}
  - {name: other, image: spillway.test/busybox:dev, imagePullPolicy: Never, command: [sleep, '100000'], resources: {limits: {ephemeral-storage: 1Mi}}}
";

fn files_follow_their_objects(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let settings = r#"{"data": {"colour": "red", "more": "x"}, "binaryData": null}"#;
    namespace.kubectl(&["patch", "configmap", "settings", "-p", settings])?;
    namespace.kubectl(&["patch", "secret", "keys", "-p", r#"{"stringData": {"none": "now"}}"#])?;
    namespace.kubectl(&["create", "configmap", "later", "--from-literal=is=there"])?;
    let begin = std::time::Instant::now();
    let see = "cat /v/settings/colour /v/settings/more /v/projected/deep/colour /v/later/is /v/never/x; ls /v/settings";
    let expected = "redxredtherenowcolour\nfile\nmore\nnested";
    wait("the virtual node's files to follow their objects", || {
        Ok((namespace.exec("all-virtual", &["sh", "-c", see])?.trim() == expected).then_some(()))
    })?;
    eprintln!("    files followed within {:.1} s", begin.elapsed().as_secs_f64());
    for (kind, _) in NODES {
        let pod = format!("all-{kind}");
        // A kubelet has a look at its pod then.
        namespace.kubectl(&["label", "pod", &pod, "app-", "colour=green"])?;
        namespace.kubectl(&["annotate", "pod", &pod, "note-", "other=x"])?;
    }
    wait_files(namespace, "both pods' files to follow their objects", see, expected)?;
    let labels =
        "cat /v/self/labels; echo; grep -v -e last-applied -e kubernetes.io/config /v/self/annotations";
    wait_files(namespace, "labels and annotations", labels, "colour=\"green\"\nother=\"x\"")?;
    // What was there when the container began stays in what shows one file.
    wait_files(namespace, "the one file", "cat /v/one-file", "text")?;

    namespace.kubectl(&["delete", "configmap", "later"])?;
    wait("the virtual node's files to go with their object", || {
        Ok(namespace.exec("all-virtual", &["ls", "/v/later"])?.is_empty().then_some(()))
    })?;
    for (kind, _) in NODES {
        namespace.kubectl(&["label", "pod", &format!("all-{kind}"), "last=1"])?;
    }
    wait_files(namespace, "both pods' files to go with their object", "ls /v/later", "")?;
    wait_files(namespace, "the last label", "grep -c last /v/self/labels", "1")
}

fn sub_paths_fail_alike(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let with = |mount: &str, init: &str| {
        format!(
            "  initContainers: [{{name: first, {IMAGE}, command: [sh, -c, '{init}'], volumeMounts: [{{name: v, mountPath: /v}}]}}]
  containers:
  - name: main
    IMAGE
    command: [sleep, '100000']
    env: [{{name: PART, valueFrom: {{fieldRef: {{fieldPath: \"metadata.annotations['part']\"}}}}}}]
    volumeMounts: [{{name: v, mountPath: /v, {mount}}}]
  volumes: [{{name: v, emptyDir: {{}}}}]
"
        )
    };
    on_both(namespace, "out", &with("subPath: out", "ln -s / /v/out"))?;
    on_both(namespace, "deep-out", &with("subPath: out/var/new", "ln -s ../../../../../../.. /v/out"))?;
    on_both(namespace, "file", &with("subPath: f/x", "touch /v/f"))?;
    on_both(namespace, "expr", &with("subPathExpr: $(PART)", "true"))?;
    on_both(
        namespace,
        "inside",
        &with("subPath: link", "mkdir -p /v/a/b; touch /v/a/b/x; ln -s a/b /v/link"),
    )?;
    let waiting = ".status.containerStatuses[0].state.waiting['reason','message']";
    for pod in ["out", "file", "expr"] {
        let said =
            wait_field(namespace, pod, waiting, |said| said.starts_with("CreateContainerConfigError "))?;
        eprintln!("    {said}");
    }
    // A kubelet makes nothing there either, and says it in other words.
    wait("nothing to lead out of the volume", || {
        let said = namespace.field("pod", "deep-out-virtual", waiting)?;
        Ok(said
            .contains("failed to prepare subPath for volumeMount \"v\" of container \"main\"")
            .then_some(()))
    })?;
    for (kind, _) in NODES {
        namespace.kubectl(&["annotate", "pod", &format!("expr-{kind}"), "part=here"])?;
    }
    for (kind, _) in NODES {
        namespace.wait_ready(&format!("expr-{kind}"))?;
        namespace.wait_ready(&format!("inside-{kind}"))?;
    }
    ensure_alike("what is inside", &say(namespace, "inside", "ls -l /v | awk '{ print $1, $3, $4, $9 }'")?)
}

/// A container of which the file `/v/end` is the end.
const COLOURED: &str = "  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    IMAGE
    command: [sh, -c, 'rm -f /v/end; until [ -e /v/end ]; do sleep 0.2; done']
    env: [{name: COLOUR, valueFrom: {configMapKeyRef: {name: colours, key: colour}}}]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
";

fn variables_are_read_at_each_start(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    namespace.kubectl(&["create", "configmap", "colours", "--from-literal=other=x"])?;
    on_both(namespace, "coloured", COLOURED)?;
    let container = ".status.containerStatuses[0]";
    let said = wait_field(
        namespace,
        "coloured",
        &format!("{container}.state.waiting['reason','message']"),
        |said| said.starts_with("CreateContainerConfigError "),
    )?;
    ensure!(said.contains("couldn't find key colour in ConfigMap"), "{said}");
    for (restarts, colour) in ["blue", "red"].into_iter().enumerate() {
        let data = format!(r#"{{"data": {{"colour": "{colour}"}}}}"#);
        namespace.kubectl(&["patch", "configmap", "colours", "-p", &data])?;
        for (kind, _) in NODES {
            // The first is waited for already.
            if restarts > 0 {
                namespace.exec(&format!("coloured-{kind}"), &["touch", "/v/end"])?;
            }
        }
        let path = format!("{container}['ready','restartCount']");
        wait_field(namespace, "coloured", &path, |said| said == format!("true {restarts}"))?;
        let seen = say(namespace, "coloured", "echo $COLOUR")?;
        ensure!(seen.iter().all(|seen| seen.trim() == colour), "{seen:?} instead of {colour}");
    }
    Ok(())
}

fn host_paths_are_checked_alike(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    for (n, kind) in ["File", "Socket", "CharDevice", "BlockDevice"].into_iter().enumerate() {
        on_both(
            namespace,
            &format!("host{n}"),
            &format!(
                "  containers: [{{name: main, {IMAGE}, command: [sleep, '100000'], volumeMounts: [{{name: v, mountPath: /v}}]}}]
  volumes: [{{name: v, hostPath: {{path: /srv/shared, type: {kind}}}}}]
"
            ),
        )?;
        let mut last = Vec::new();
        wait(&format!("both nodes to refuse /srv/shared as a {kind}"), || {
            last.clear();
            for (node, _) in NODES {
                let about = format!("involvedObject.name=host{n}-{node},reason=FailedMount");
                let path = "jsonpath={.items[0]['type','message']}";
                last.push(namespace.kubectl(&["get", "events", "--field-selector", &about, "-o", path])?);
            }
            Ok((last[0] == last[1] && last[0].contains("type check failed")).then_some(()))
        })
        .with_context(|| format!("real and virtual: {last:#?}"))?;
    }
    Ok(())
}

fn images_are_shown_alike(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    on_both(
        namespace,
        "image",
        "  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    IMAGE
    command: [sleep, '100000']
    volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /part, subPath: bin}]
  volumes: [{name: v, image: {reference: spillway.test/busybox:dev, pullPolicy: Never}}]
",
    )?;
    for (kind, _) in NODES {
        namespace.wait_ready(&format!("image-{kind}"))?;
    }
    let look = "ls /v; ls /part | head -5; touch /v/x /part/x 2>/dev/null || echo refused";
    ensure_alike("images", &say(namespace, "image", look)?)?;
    on_both(
        namespace,
        "no-image",
        &format!(
            "  containers: [{{name: main, {IMAGE}, command: [sleep, '100000'], volumeMounts: [{{name: v, mountPath: /v}}]}}]
  volumes: [{{name: v, image: {{reference: spillway.test/none:dev, pullPolicy: Never}}}}]
"
        ),
    )?;
    let waiting = ".status.containerStatuses[0].state.waiting['reason','message']";
    wait_field(namespace, "no-image", waiting, |said| said.starts_with("ErrImageNeverPull ")).map(drop)
}
