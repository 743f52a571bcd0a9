//! The rights of the chart's virtual nodes: each that the chart gives is taken away from a process that starts without it, and what it can do is
//! compared with what it can do with all of them. Neither less nor more than the right's own purpose may fail, it has to be said, and what is
//! given back works again without another start. Rights are found in what the chart renders: one that nothing here knows a use of
//! fails the test.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::{
    Test,
    harness::{DEDICATED, Namespace, Pool, wait},
    vk_chart::{Far, SYSTEM, VK, far_pod},
};

pub(crate) const TESTS: &[Test] =
    &[("vk_privileges::each_right_is_needed_and_gives_no_more", each_right_is_needed_and_gives_no_more)];

const NODES: [&str; 2] = ["far-a", "far-b"];

/// What the process shows that it can do, for each of its nodes.
const NODE: &str = "node";
const PODS: &str = "pods";
const API: &str = "kubelet API";
type Abilities = BTreeSet<(&'static str, &'static str)>;

/// One right: a role's rule cut down to one verb on one object, or one subject of a binding.
#[derive(Debug, Clone)]
struct Right {
    /// In words, for people and for [`Right::purpose`].
    what: String,
    /// The object that gives it, and its key.
    object: Vec<String>,
    key: &'static str,
    /// That key's list with and without it.
    with: Value,
    without: Value,
}

impl Right {
    /// What fails without it, and words that are logged then.
    fn purpose(&self) -> Option<(Abilities, String)> {
        let all = |node| [NODE, PODS, API].map(|ability| (node, ability));
        for node in NODES {
            if self.what == format!("impersonate users/system:node:{node}") {
                return Some((all(node).into(), format!(r#"users "system:node:{node}" is forbidden"#)));
            }
            if self.what == format!("system:node:{node} is extension-apiserver-authentication-reader") {
                let words = format!(
                    r#"User "system:node:{node}" cannot get resource "configmaps" in API group "" in the namespace "kube-system""#
                );
                return Some(([(node, API)].into(), words));
            }
        }
        let cannot = |what: &str| {
            Some((every(), format!(r#"{VK}" cannot impersonate resource "{what}" in API group """#)))
        };
        match self.what.as_str() {
            "impersonate groups/system:nodes" => cannot("groups"),
            "spillway-vk is spillway-vk:far-a" => cannot("users"),
            _ => None,
        }
    }

    fn set(&self, pool: &Pool, list: &Value) -> anyhow::Result<()> {
        let patch = json!({ self.key: list }).to_string();
        let object = self.object.iter().map(String::as_str);
        let arguments: Vec<_> =
            ["patch"].into_iter().chain(object).chain(["--type=merge", "-p", &patch]).collect();
        pool.cluster.kubectl(&arguments).map(drop)
    }
}

fn every() -> Abilities {
    NODES.into_iter().flat_map(|node| [NODE, PODS, API].map(|ability| (node, ability))).collect()
}

/// The rights in what the chart has rendered, as narrow as they can be taken away.
fn rights(manifest: &str) -> anyhow::Result<Vec<Right>> {
    let mut rights = Vec::new();
    for text in manifest.split("\n---\n") {
        let document: Value = serde_saphyr::from_str(text).with_context(|| text.to_owned())?;
        let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
        let is_theirs = |subject: &Value| {
            let name = subject["name"].as_str().unwrap_or_default();
            name == VK || name.starts_with("system:node")
        };
        let labelled = document["metadata"]["labels"]["app.kubernetes.io/name"] == VK;
        let (key, atoms): (_, Vec<(String, Value)>) = match document["kind"].as_str() {
            Some("Role" | "ClusterRole") if labelled => {
                ("rules", list("rules").iter().flat_map(atoms).collect())
            }
            Some("RoleBinding" | "ClusterRoleBinding")
                if labelled || list("subjects").iter().any(is_theirs) =>
            {
                let role = document["roleRef"]["name"].as_str().unwrap_or_default();
                let named = |subject: Value| (format!("{} is {role}", text_of(&subject["name"])), subject);
                ("subjects", list("subjects").into_iter().map(named).collect())
            }
            _ => continue,
        };
        let name = text_of(&document["metadata"]["name"]);
        let mut object = vec![text_of(&document["kind"]).to_lowercase(), name];
        if let Some(namespace) = document["metadata"]["namespace"].as_str() {
            object.extend(["-n".to_owned(), namespace.to_owned()]);
        }
        let with: Value = atoms.iter().map(|(_, atom)| atom.clone()).collect();
        for (index, (what, _)) in atoms.iter().enumerate() {
            let mut without = with.clone();
            without.as_array_mut().context("it is a list")?.remove(index);
            rights.push(Right {
                what: what.clone(),
                object: object.clone(),
                key,
                with: with.clone(),
                without,
            });
        }
    }
    Ok(rights)
}

/// A rule as rules of one verb on one object each.
fn atoms(rule: &Value) -> Vec<(String, Value)> {
    let list = |key: &str| rule[key].as_array().cloned().unwrap_or_default();
    let names = list("resourceNames");
    // None is all of them.
    let names: Vec<_> = if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
    let mut atoms = Vec::new();
    for (verb, group) in list("verbs")
        .iter()
        .flat_map(|verb| list("apiGroups").into_iter().map(move |group| (verb.clone(), group)))
    {
        for (resource, name) in
            list("resources").iter().flat_map(|resource| names.iter().map(move |name| (resource, name)))
        {
            let group_text = match text_of(&group) {
                core if core.is_empty() => core,
                other => format!(".{other}"),
            };
            let mut what = format!("{} {}{group_text}", text_of(&verb), text_of(resource));
            let mut atom = json!({ "verbs": [verb], "apiGroups": [group], "resources": [resource] });
            if let Some(name) = name {
                what = format!("{what}/{}", text_of(name));
                atom["resourceNames"] = json!([name]);
            }
            atoms.push((what, atom));
        }
    }
    for url in list("nonResourceURLs") {
        atoms.push((
            format!("{} {}", rule["verbs"], text_of(&url)),
            json!({ "verbs": rule["verbs"], "nonResourceURLs": [url] }),
        ));
    }
    atoms
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What the virtual nodes beside a runtime are given in this cluster, taken away until this is dropped: it is all nodes', so the chart's, too.
struct WithoutOthers<'a>(&'a Pool);

impl<'a> WithoutOthers<'a> {
    const FILE: &'static str = "deploy/systemd/rbac.yaml";

    fn of(pool: &'a Pool) -> anyhow::Result<Self> {
        let file = spillway_tests::repository().join(Self::FILE).display().to_string();
        pool.cluster.kubectl(&["delete", "-f", &file])?;
        Ok(Self(pool))
    }
}

impl Drop for WithoutOthers<'_> {
    fn drop(&mut self) {
        let file = spillway_tests::repository().join(Self::FILE).display().to_string();
        if let Err(error) = self.0.cluster.kubectl(&["apply", "-f", &file]) {
            eprintln!("    the rights of virtual nodes beside a runtime are not as they were: {error:#}");
        }
    }
}

/// Starts of the process, each with pods of its own.
struct Starts<'a> {
    pool: &'a Pool,
    far: &'a Far<'a>,
    namespace: Namespace<'a>,
    count: usize,
}

impl Starts<'_> {
    fn scale(&self, replicas: usize) -> anyhow::Result<()> {
        let deployment = format!("deployment/{VK}");
        let replicas = format!("--replicas={replicas}");
        self.pool.cluster.kubectl(&["-n", SYSTEM, "scale", &deployment, &replicas]).map(drop)
    }

    /// Ends the process and all that is left of it.
    fn stop(&self) -> anyhow::Result<()> {
        self.scale(0)?;
        wait("the process to end", || Ok(self.far.pods(".metadata.name")?.is_empty().then_some(())))?;
        for node in NODES {
            self.pool.cluster.kubectl(&["delete", "node", node, "--ignore-not-found"])?;
        }
        Ok(())
    }

    fn pod(&self, node: &str) -> String {
        format!("{node}-{}", self.count)
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.namespace.kubectl(&[
            "delete",
            "pods",
            "--all",
            "--force",
            "--grace-period=0",
            "--wait=false",
        ])?;
        self.count += 1;
        self.scale(1)?;
        NODES.iter().try_for_each(|node| far_pod(&self.namespace, &self.pod(node), node))
    }

    /// What it can do now, and what it has logged.
    fn look(&self) -> anyhow::Result<(Abilities, String)> {
        let mut can = Abilities::new();
        let get = ["get", "node", NODES[0], NODES[1], "--ignore-not-found", "-o"];
        let ready = "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=='Ready')].status}{'\\n'}{end}";
        let ready = self.pool.cluster.kubectl(&[&get[..], &[ready]].concat())?;
        let run = "jsonpath={range .items[*]}{.metadata.name} {.status.phase} {.status.podIP}{'\\n'}{end}";
        let run = self.namespace.kubectl(&["get", "pods", "-o", run])?;
        for node in NODES {
            let pod = self.pod(node);
            match run.lines().find_map(|line| line.strip_prefix(&format!("{pod} "))) {
                Some(run) if run.starts_with("Running 198.1") => drop(can.insert((node, PODS))),
                Some(_) => {}
                // Kubernetes' garbage collector was here: there is no such node.
                None => far_pod(&self.namespace, &pod, node)?,
            }
            if ready.lines().any(|line| line == format!("{node} True")) {
                can.insert((node, NODE));
                // The provider's own answer.
                let logs = self.namespace.kubectl_output(&["logs", &pod])?;
                if String::from_utf8_lossy(&logs.stderr).contains("keeps no logs") {
                    can.insert((node, API));
                }
            }
        }
        if can.len() < every().len() {
            self.far.approve()?;
        }
        let logs = ["-n", SYSTEM, "logs", &format!("deployment/{VK}"), "--tail=-1"];
        let output = self.pool.cluster.kubectl_output(&logs)?;
        Ok((can, String::from_utf8_lossy(&output.stdout).replace("\\\"", "\"")))
    }

    /// Waits until it can do all but this, and has said these words.
    fn wait_all_but(&self, lost: &Abilities, words: &str) -> anyhow::Result<()> {
        let left: Abilities = every().difference(lost).copied().collect();
        let (mut seen, mut in_a_row) = (None, 0);
        wait(&format!("all but {lost:?}, and the words {words:?}"), || {
            let (can, log) = self.look()?;
            in_a_row = if can == left && log.contains(words) { in_a_row + 1 } else { 0 };
            seen = Some((can, log));
            Ok((in_a_row > usize::from(!lost.is_empty())).then_some(()))
        })
        .with_context(|| {
            let (can, log) = seen.unwrap_or_default();
            format!("it can do {can:?}, and says:\n{log}")
        })
    }
}

fn each_right_is_needed_and_gives_no_more(pool: &Pool) -> anyhow::Result<()> {
    let nodes: Vec<_> = NODES
        .iter()
        .enumerate()
        .flat_map(|(n, node)| {
            [
                format!("vk.config.nodes[{n}].name={node}"),
                format!("vk.config.nodes[{n}].kubeletPort={}", 10250 + n),
            ]
        })
        .collect();
    let _without = WithoutOthers::of(pool)?;
    let far = Far::install(pool, &NODES, &nodes.iter().map(String::as_str).collect::<Vec<_>>())?;
    let rights = rights(&pool.cluster.helm(&["get", "manifest", "spillway", "-n", SYSTEM])?)?;
    let unknown: Vec<_> =
        rights.iter().filter(|right| right.purpose().is_none()).map(|right| &right.what).collect();
    ensure!(unknown.is_empty(), "the chart gives what nothing here needs: {unknown:?}");
    ensure!(rights.len() == 3 + NODES.len() * 2 - 1, "{rights:#?}");

    let mut starts = Starts { pool, far: &far, namespace: pool.namespace("vk-privileges")?, count: 0 };
    starts.start()?;
    starts.wait_all_but(&Abilities::new(), "")?;
    let listed = pool.cluster.kubectl(&["get", "--raw", "/api/v1/nodes/far-a/proxy/pods"])?;
    let (own, other) = (starts.pod("far-a"), starts.pod("far-b"));
    ensure!(listed.contains(&format!("\"name\":\"{own}\"")) && !listed.contains(&other), "{listed}");
    // What it can't is its own word, too.
    let output = starts.namespace.kubectl_output(&["exec", &own, "--", "id"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("run commands"), "exec says {said:?}");
    refusals(pool, &starts.namespace)?;
    for right in &rights {
        let (lost, words) = right.purpose().context("all are known")?;
        starts.stop()?;
        right.set(pool, &right.without)?;
        starts.start()?;
        starts.wait_all_but(&lost, &words).with_context(|| format!("without {}", right.what))?;
        let process = far.pods(".status.containerStatuses[0].containerID")?;
        right.set(pool, &right.with)?;
        starts.wait_all_but(&Abilities::new(), "").with_context(|| format!("with {} again", right.what))?;
        ensure!(far.pods(".status.containerStatuses[0].containerID")? == process, "it was started again");
        eprintln!("    {}: {} things fail without it", right.what, lost.len());
    }
    starts
        .namespace
        .kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false"])
        .map(drop)
}

/// What the service account is refused by itself, as one of its nodes, and as anything else.
fn refusals(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    for name in ["own", "others", "nobodys"] {
        namespace.kubectl(&["create", "secret", "generic", name, "--from-literal=key=value"])?;
        namespace.kubectl(&["create", "configmap", name, "--from-literal=key=value"])?;
        namespace.kubectl(&["create", "serviceaccount", name])?;
    }
    for (pod, node, refers_to) in
        [("mine", "far-a", "own"), ("theirs", "far-b", "others"), ("real", DEDICATED, "others")]
    {
        namespace.pod(
            pod,
            &format!(
                "  nodeName: {node}\n  serviceAccountName: {refers_to}\n  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: 'spillway.test/busybox:dev', imagePullPolicy: Never, command: [sleep, '1000'], \
                 envFrom: [{{secretRef: {{name: {refers_to}}}}}, {{configMapRef: {{name: {refers_to}}}}}]}}]\n"
            ),
        )?;
        namespace.wait_ready(pod)?;
    }
    let token = pool.cluster.kubectl(&["-n", SYSTEM, "create", "token", VK])?;
    let account = Account { pool, namespace, token: token.trim().to_owned() };
    let own = Some("far-a");
    for allowed in [
        "get secret own",
        "get configmap own",
        "create token own --bound-object-kind=Pod --bound-object-name=mine --bound-object-uid=UID",
        "get node far-a",
        "get pod mine",
        "-n kube-node-lease get lease far-a",
    ] {
        // The authorizer's graph lags behind the pod.
        wait(&format!("{allowed:?} to be allowed"), || {
            let (done, said) = account.tries(own, "system:nodes", allowed)?;
            if !done && !said.to_lowercase().contains("forbidden") {
                bail!("{allowed}: {said}");
            }
            Ok(done.then_some(()))
        })?;
    }
    let cut_node = r#"{"metadata":{"labels":{"a":"b"}}}"#;
    for refused in [
        "get secret others".to_owned(),
        "get secret nobodys".to_owned(),
        "get configmap others".to_owned(),
        "get secrets".to_owned(),
        "get secrets -A".to_owned(),
        "get configmaps".to_owned(),
        "create token others --bound-object-kind=Pod --bound-object-name=real --bound-object-uid=UID"
            .to_owned(),
        // Its own pod's account, but for no pod.
        "create token own".to_owned(),
        "get node far-b".to_owned(),
        format!("get node {DEDICATED}"),
        "get nodes".to_owned(),
        format!("patch node far-b -p {cut_node}"),
        format!("patch node {DEDICATED} --subresource=status -p {cut_node}"),
        format!("delete node {DEDICATED}"),
        "delete pod real --wait=false".to_owned(),
        "get pods".to_owned(),
        "-n kube-node-lease get lease far-b".to_owned(),
        format!("-n kube-node-lease delete lease {DEDICATED}"),
        format!("-n {SYSTEM} get secrets"),
        "create deployment x --image=y".to_owned(),
    ] {
        account.is_refused(own, "system:nodes", &refused)?;
    }
    // By itself it may do nothing, nor be anybody else.
    for refused in
        ["get pods", "get secret own", "get node far-a", "get nodes", "-n kube-node-lease get lease far-a"]
    {
        account.is_refused(None, "", refused)?;
    }
    for (user, group) in [(DEDICATED, "system:nodes"), ("far-a", "system:masters"), ("far-c", "system:nodes")]
    {
        account.is_refused(Some(user), group, "get node far-a")?;
    }
    for pod in ["mine", "theirs", "real"] {
        namespace.kubectl(&["delete", "pod", pod, "--force", "--grace-period=0", "--wait=false"])?;
    }
    Ok(())
}

/// The chart's service account, by a token of its own.
struct Account<'a> {
    pool: &'a Pool,
    namespace: &'a Namespace<'a>,
    token: String,
}

impl Account<'_> {
    /// Whether kubectl could do this as this node and group, and what it said. `UID` is that of the pod that is named before it.
    fn tries(&self, node: Option<&str>, group: &str, command: &str) -> anyhow::Result<(bool, String)> {
        let cluster = &self.pool.cluster;
        let mut config: Value =
            serde_json::from_str(&cluster.kubectl(&["config", "view", "--raw", "--minify", "-o", "json"])?)?;
        let mut user = json!({ "token": self.token });
        if let Some(node) = node {
            user["as"] = json!(format!("system:node:{node}"));
            user["as-groups"] = json!([group]);
        }
        config["users"][0]["user"] = user;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), config.to_string())?;
        let mut arguments = vec![format!("--kubeconfig={}", file.path().display())];
        if !command.starts_with("-n") {
            arguments.extend(["-n".to_owned(), self.namespace.name.clone()]);
        }
        for argument in command.split(' ') {
            let pod = arguments.last().and_then(|last| last.strip_prefix("--bound-object-name="));
            let uid = match pod {
                Some(pod) if argument.ends_with("UID") => {
                    self.namespace.field("pod", pod, ".metadata.uid")?
                }
                _ => String::new(),
            };
            arguments.push(argument.replace("UID", &uid));
        }
        let output = cluster.kubectl_output(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    fn is_refused(&self, node: Option<&str>, group: &str, command: &str) -> anyhow::Result<()> {
        let (done, said) = self.tries(node, group, command)?;
        ensure!(
            !done && said.to_lowercase().contains("forbidden"),
            "{command:?} as {node:?} in {group:?} is not refused: {said}"
        );
        Ok(())
    }
}
