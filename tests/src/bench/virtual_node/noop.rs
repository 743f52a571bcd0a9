//! Pods of provider `none` against kwok, on one control plane: what costs is the API server, the watch and the node's own books.

use std::path::Path;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::{runtime::Runtime, time::Instant};

use super::{
    NAMESPACE, Options, Part, adoption,
    api::{Requests, Server},
    footprint, in_turns, load, process, summary,
    summary::Figures,
};
use crate::{
    cluster::{
        self, Cluster, control_plane, network,
        node::wait_ready,
        pki,
        process::Process,
        serverless::{approve_serving_certificate, install},
        write,
    },
    components,
    demo::report::count,
    image,
};

/// Who makes a node on which nothing runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contender {
    /// The node and the machine.
    pub(super) node: &'static str,
    pub(super) component: &'static str,
}

const OURS: Contender = Contender { node: "noop-1", component: "spillway-vk" };
const KWOK: Contender = Contender { node: "kwok-1", component: "kwok" };
/// What is tried to find how many status patches the API server can do.
const IN_FLIGHT: [usize; 3] = [4, 8, 16];
/// How many pods come and go beside those that rest.
const CHURNING: usize = 100;
/// A node that nobody looks after.
const NOBODY: &str = "nobody-1";

impl Contender {
    pub(super) fn pod_name(&self, index: usize) -> String {
        format!("{}-{index}", self.node)
    }
}

/// What one round has shown of one contender.
#[derive(Debug, Clone)]
struct Round {
    /// Seconds from the first pod's creation until all ran, and from the first deletion until none was left.
    run: f64,
    go: f64,
    /// Of that: until the last pod was created, and until the last was told to go.
    created: f64,
    deleted: f64,
    idle_mib: f64,
    full_mib: f64,
    full_private_mib: f64,
    peak_mib: f64,
    /// Milliseconds of CPU time per pod.
    cpu: f64,
    /// KiB received per pod.
    received: f64,
    requests: Requests,
}

/// Reads a figure from a round.
type Look<'a> = &'a dyn Fn(&Round) -> f64;

/// Everything that is measured where nothing runs, on one cluster.
pub(super) fn with_cluster(options: &Options, program: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let kwok = options.wants(Part::Noop).then(components::ensure_kwok).transpose()?;
    let cluster = Cluster::up(&cluster::Options {
        nodes: Vec::new(),
        serverless: Vec::new(),
        bare: true,
        ..cluster::Options::default()
    })?;
    cluster.create_namespace(NAMESPACE)?;
    start_ours(&cluster, program)?;
    let runtime = super::runtime()?;
    if let Some(sources) = kwok {
        start_kwok(&cluster, &sources.join("kustomize/stage"))?;
        compare(&cluster, &runtime, options, figures)?;
        limit(&cluster, &runtime, options)?;
    }
    if options.wants(Part::Footprint) || options.wants(Part::Adoption) {
        full(&cluster, &runtime, options, figures)?;
    }
    cluster.down()
}

fn compare(
    cluster: &Cluster,
    runtime: &Runtime,
    options: &Options,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let pods = usize::from(options.noop_pods);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for index in 0..options.rounds {
        for contender in in_turns(index, [OURS, KWOK]) {
            let round = round(cluster, runtime, &contender, pods)
                .with_context(|| format!("with {pods} no-op pods of {}", contender.component))?;
            cluster.say(&format!(
                "round {index}: {}: created in {:.1} s, all Running after {:.1} s; deleted in {:.1} s, gone after {:.1} s; load {}",
                contender.component, round.created, round.run, round.deleted, round.go, load()
            ));
            if contender.node == OURS.node { &mut ours } else { &mut theirs }.push(round);
        }
    }
    println!("\n{pods} no-op pods; medians of {} rounds; load {}\n", options.rounds, load());
    println!("  {:44}{:>12}{:>12}{:>10}", "", "spillway-vk", "kwok", "ratio");
    let pods = count(pods);
    let rows: [(&str, Look<'_>); 12] = [
        ("bind -> Running, pods/s", &|round| pods / round.run),
        ("  of that: creating them, s", &|round| round.created),
        ("deletion -> gone, pods/s", &|round| pods / round.go),
        ("  of that: asking for it, s", &|round| round.deleted),
        ("both, pods/s", &|round| pods / (round.run + round.go)),
        ("RSS before, MiB", &|round| round.idle_mib),
        ("RSS with all pods, at rest, MiB", &|round| round.full_mib),
        ("  of it anonymous", &|round| round.full_private_mib),
        ("peak RSS, MiB", &|round| round.peak_mib),
        ("CPU time per pod, ms", &|round| round.cpu),
        ("received per pod, KiB", &|round| round.received),
        ("API calls per pod", &|round| round.requests.total() / pods),
    ];
    for (what, of) in rows {
        let [a, b] = [&ours, &theirs].map(|rounds| rounds.iter().map(of).collect::<Vec<f64>>());
        let [x, y] = [&a, &b].map(|samples| summary::median(samples).unwrap_or(f64::NAN));
        println!("  {what:44}{x:12.2}{y:12.2}{:10.2}", summary::ratio(&a, &b).unwrap_or(f64::NAN));
    }
    for (rounds, name) in [(&ours, "spillway-vk"), (&theirs, "kwok")] {
        if let Some(round) = rounds.last() {
            println!("  calls of {name}, per pod: {}", round.requests.per_pod(pods));
        }
    }
    let all = |rounds: &[Round], of: Look<'_>| rounds.iter().map(of).collect::<Vec<f64>>();
    let rate = |round: &Round| pods / (round.run + round.go);
    figures.noop_rate_over_kwok = summary::ratio(&all(&ours, &rate), &all(&theirs, &rate));
    let memory = |round: &Round| round.full_mib;
    figures.rss_over_kwok = summary::ratio(&all(&ours, &memory), &all(&theirs, &memory));
    figures.api_calls_per_pod = summary::median(&all(&ours, &|round| round.requests.total() / pods));
    Ok(())
}

fn round(cluster: &Cluster, runtime: &Runtime, contender: &Contender, pods: usize) -> anyhow::Result<Round> {
    let Contender { node, component } = *contender;
    // From scratch, so that no round's memory is the one before's.
    cluster.restart(node, component)?;
    wait_ready(cluster, node, component)?;
    // The node is Ready from before, and kwok waits until the lease of the process before has run out.
    runtime.block_on(async {
        let server = Server::new(cluster.client().await?);
        server.create(NAMESPACE, std::iter::once(pod(contender, pods))).await?;
        server.until(NAMESPACE, "a first pod to run", |seen| seen.running() == 1).await?;
        server.delete(NAMESPACE, std::iter::once(contender.pod_name(pods))).await?;
        server.until(NAMESPACE, "the first pod to go", |seen| seen.total() == 0).await
    })?;
    let idle = process::usage(cluster, node, component)?;
    let machine = cluster.machine(node)?;
    let received = process::received(&machine)?;
    runtime.block_on(async {
        let server = Server::new(cluster.client().await?);
        let before = server.requests().await?;
        let mut watch = server.watch(NAMESPACE).await?;
        let begin = Instant::now();
        let creating = async {
            server.create(NAMESPACE, (0..pods).map(|index| pod(contender, index))).await?;
            Ok::<_, anyhow::Error>(begin.elapsed().as_secs_f64())
        };
        let running = watch.until("all pods Running", |seen| seen.running() == pods);
        let (created, ()) = futures::future::try_join(creating, running).await?;
        let run = begin.elapsed().as_secs_f64();
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        let full = process::usage(cluster, node, component)?;
        let begin = Instant::now();
        let deleting = async {
            server.delete(NAMESPACE, (0..pods).map(|index| contender.pod_name(index))).await?;
            Ok::<_, anyhow::Error>(begin.elapsed().as_secs_f64())
        };
        let gone = watch.until("all pods gone", |seen| seen.total() == 0);
        let (deleted, ()) = futures::future::try_join(deleting, gone).await?;
        let go = begin.elapsed().as_secs_f64();
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let end = process::usage(cluster, node, component)?;
        let own = [("POST pods", count(pods)), ("DELETE pods", count(pods))];
        Ok(Round {
            run,
            go,
            created,
            deleted,
            idle_mib: idle.resident_mib(),
            full_mib: full.resident_mib(),
            full_private_mib: full.private_mib(),
            peak_mib: end.peak_mib(),
            cpu: (end.cpu - idle.cpu) / count(pods) * 1000.0,
            received: (process::received(&machine)? - received) / 1024.0 / count(pods),
            requests: server.requests().await?.since(&before, &own),
        })
    })
}

/// How many status patches a second the API server can do for a loop that does nothing else.
fn limit(cluster: &Cluster, runtime: &Runtime, options: &Options) -> anyhow::Result<()> {
    let pods = usize::from(options.noop_pods).min(2000);
    let nobody = Contender { node: NOBODY, component: "" };
    // Pods of a node that isn't there are collected as garbage.
    cluster.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {NOBODY}}}\n"))?;
    let names = || (0..pods).map(|index| nobody.pod_name(index));
    runtime.block_on(async {
        let server = Server::new(cluster.client().await?);
        server.create(NAMESPACE, (0..pods).map(|index| pod(&nobody, index))).await?;
        println!();
        for (turn, in_flight) in IN_FLIGHT.into_iter().enumerate() {
            let ready = json!({ "type": "Ready", "status": "True", "reason": format!("Turn{turn}") });
            let status = json!({ "status": { "phase": "Running", "podIP": "198.18.0.1", "conditions": [ready],
                "podIPs": [{ "ip": "198.18.0.1" }], "startTime": "2026-01-01T00:00:00Z" } });
            let begin = Instant::now();
            server.patch_status(NAMESPACE, names(), &status, in_flight).await?;
            let rate = count(pods) / begin.elapsed().as_secs_f64();
            println!("  bare loop of status patches, {in_flight:2} in flight: {rate:.0}/s; load {}", load());
        }
        server.delete(NAMESPACE, names()).await
    })?;
    // kubectl would wait for each by itself.
    let by_force = ["delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false"];
    cluster.kubectl(&[&["-n", NAMESPACE][..], &by_force].concat())?;
    runtime.block_on(async {
        let server = Server::new(cluster.client().await?);
        server.until(NAMESPACE, "nobody's pods to go", |seen| seen.total() == 0).await
    })?;
    cluster.kubectl(&["delete", "node", NOBODY]).map(drop)
}

/// All pods at rest, others that come and go beside them, and their adoption.
fn full(
    cluster: &Cluster,
    runtime: &Runtime,
    options: &Options,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let pods = usize::from(options.noop_pods);
    let Contender { node, component } = OURS;
    cluster.restart(node, component)?;
    wait_ready(cluster, node, component)?;
    let idle = footprint::at_rest(cluster, node, component)?;
    let fresh: Vec<Pod> = (pods..pods + CHURNING).map(|index| pod(&OURS, index)).collect();
    let alone = footprint::churn(cluster, runtime, (node, component), &fresh, 0)?;
    cluster.say(&format!("starting {pods} no-op pods"));
    runtime.block_on(async {
        let server = Server::new(cluster.client().await?);
        server.create(NAMESPACE, (0..pods).map(|index| pod(&OURS, index))).await?;
        server.until(NAMESPACE, "all pods Running", |seen| seen.running() == pods).await
    })?;
    let received = process::received(&cluster.machine(node)?)?;
    let full = footprint::at_rest(cluster, node, component)?;
    let received = process::received(&cluster.machine(node)?)? - received;
    let beside = footprint::churn(cluster, runtime, (node, component), &fresh, pods)?;
    let after = footprint::at_rest(cluster, node, component)?;
    let growth = footprint::growth_kib(&idle, &full, pods);
    println!(
        "\nMemory and CPU time of {component} where nothing runs; load {}\n\n{}",
        load(),
        footprint::header()
    );
    println!("{}", idle.row("started, no pods"));
    println!("{}", full.row(&format!("{pods} no-op pods")));
    println!("{}", after.row("the same, after more came and went"));
    println!("  growth {growth:.1} KiB per pod; received in 30 s at rest: {:.1} KiB", received / 1024.0);
    println!("{}\n{}", alone.told(0), beside.told(pods));
    figures.rss_kib_per_pod = Some(figures.rss_kib_per_pod.unwrap_or(0.0).max(growth));
    if options.wants(Part::Adoption) {
        figures.adopt_noop_s = Some(adoption::noop(cluster, runtime, options, &OURS)?);
    }
    Ok(())
}

/// A small pod, bound already.
pub(super) fn pod(contender: &Contender, index: usize) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": contender.pod_name(index), "labels": { "app": "noop" } },
        "spec": {
            "nodeName": contender.node,
            "tolerations": [{ "operator": "Exists" }],
            "automountServiceAccountToken": false,
            "containers": [{ "name": "main", "image": image::BUSYBOX, "command": ["sleep", "864000"] }],
        },
    }))
    .unwrap_or_default()
}

/// A machine with a cable to the control plane, and nothing on it.
fn machine(cluster: &Cluster, name: &str, index: usize) -> anyhow::Result<cluster::machine::Machine> {
    let machine = cluster.start_machine(name)?;
    network::connect(&cluster.machine(control_plane::MACHINE)?, &machine, index)?;
    Ok(machine)
}

fn start_ours(cluster: &Cluster, program: &Path) -> anyhow::Result<()> {
    let Contender { node, component } = OURS;
    let machine = machine(cluster, node, 0)?;
    let etc = machine.path("/etc/spillway");
    let authority = cluster.folder().join("pki");
    let bootstrap =
        pki::bootstrap_kubeconfig(&authority, control_plane::BOOTSTRAP_TOKEN, control_plane::SERVER)?;
    write(&etc.join("bootstrap.kubeconfig"), &bootstrap)?;
    let address = network::address(0);
    let capacity = "{cpu: \"10000\", memory: 40Ti, pods: \"20000\", ephemeral-storage: 10Ti}";
    let configuration = format!(
        "nodeName: {node}\nnodeIP: {address}\nprovider: none\ncapacity: {capacity}\nevictionHard: {{}}\n"
    );
    write(&etc.join("vk.yaml"), &configuration)?;
    let program = install(&machine, program)?;
    let files =
        ["--config", "/etc/spillway/vk.yaml", "--bootstrap-kubeconfig", "/etc/spillway/bootstrap.kubeconfig"];
    let arguments = [program].into_iter().chain(files.map(str::to_owned)).collect();
    cluster.add_process(process_of(cluster, OURS, arguments))?;
    approve_serving_certificate(cluster, node)?;
    wait_ready(cluster, node, component)
}

fn start_kwok(cluster: &Cluster, stages: &Path) -> anyhow::Result<()> {
    let Contender { node, component } = KWOK;
    let machine = machine(cluster, node, 1)?;
    let etc = machine.path("/etc/kwok");
    let copy = |from: &Path, to: &str| {
        let text = std::fs::read_to_string(from).with_context(|| format!("can't read {}", from.display()))?;
        write(&etc.join(to), &text)
    };
    copy(&cluster.machine(control_plane::MACHINE)?.path(control_plane::ADMIN_CONF), "kubeconfig")?;
    let mut arguments = vec![
        "/opt/spillway/bin/kwok".to_owned(),
        "--kubeconfig=/etc/kwok/kubeconfig".to_owned(),
        format!("--manage-single-node={node}"),
        // One address for each pod.
        "--cidr=10.64.0.1/16".to_owned(),
        "--node-lease-duration-seconds=40".to_owned(),
    ];
    for (folder, file) in [
        ("node/fast", "node-initialize.yaml"),
        ("node/heartbeat-with-lease", "node-heartbeat-with-lease.yaml"),
        ("pod/fast", "pod-ready.yaml"),
        ("pod/fast", "pod-complete.yaml"),
        ("pod/fast", "pod-delete.yaml"),
    ] {
        copy(&stages.join(folder).join(file), file)?;
        arguments.push(format!("--config=/etc/kwok/{file}"));
    }
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\nspec: {{taints: [{{key: kwok.x-k8s.io/node, effect: NoSchedule}}]}}\n"
    ))?;
    cluster.add_process(process_of(cluster, KWOK, arguments))?;
    wait_ready(cluster, node, component)
}

fn process_of(cluster: &Cluster, contender: Contender, arguments: Vec<String>) -> Process {
    let Contender { node, component } = contender;
    Process {
        machine: node.to_owned(),
        name: component.to_owned(),
        arguments,
        environment: std::collections::BTreeMap::new(),
        log: cluster.folder().join("log").join(format!("{node}-{component}.log")),
        id: None,
    }
}
