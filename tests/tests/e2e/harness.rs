//! The clusters that tests are lent, and what they do over and over.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Output,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use libtest_mimic::Failed;
use spillway_proto::podresources::{
    AllocatableResourcesRequest, ListPodResourcesRequest,
    pod_resources_lister_client::PodResourcesListerClient,
};
use spillway_tests::{
    BARE_POOL,
    cluster::{Cluster, Options},
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// How long any single condition may take. Generous: it only matters when something is broken.
pub(crate) const LIMIT: Duration = Duration::from_mins(2);

/// The dedicated node.
pub(crate) const DEDICATED: &str = "dedicated-1";
/// The virtual node, and the machine of its runtime.
pub(crate) const VIRTUAL: &str = "virtual-1";

/// What most containers of the tests run, as two keys of a container in YAML's flow style.
pub(crate) const IMAGE: &str = "image: spillway.test/busybox:dev, imagePullPolicy: Never";

/// Pools that no test has at the moment.
static IDLE: Mutex<Vec<Pool>> = Mutex::new(Vec::new());

/// The hybrid pool under test.
#[derive(Clone)]
pub(crate) struct Pool {
    pub(crate) cluster: Cluster,
}

/// Runs one test on a pool that it has to itself: one that an earlier test is done with, or a new one.
pub(crate) fn run(name: &str, test: fn(&Pool) -> anyhow::Result<()>) -> Result<(), Failed> {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let pool = match idle {
        Some(pool) => pool,
        None => Pool::start().map_err(|error| Failed::from(format!("no cluster: {error:#}")))?,
    };
    let begin = Instant::now();
    let result = std::panic::catch_unwind(|| test(&pool))
        .unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
            Err(anyhow::anyhow!("it panicked: {}", said.unwrap_or_default()))
        })
        .map_err(|error| {
            let cluster = &pool.cluster;
            let pods = cluster.kubectl(&["get", "pods,nodes", "-A", "-o", "wide"]).unwrap_or_default();
            let ended = cluster.log_tails(20, None);
            let vk = cluster.log_tails(30, Some("spillway-vk"));
            Failed::from(format!("{error:#}\n{pods}\n{ended}{vk}"))
        });
    eprintln!("  {name}: {:.1} s", begin.elapsed().as_secs_f64());
    IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(pool);
    result
}

/// Runs a test that needs no cluster.
pub(crate) fn run_alone(name: &str, test: fn() -> anyhow::Result<()>) -> Result<(), Failed> {
    let begin = Instant::now();
    let result = test().map_err(|error| Failed::from(format!("{error:#}")));
    eprintln!("  {name}: {:.1} s", begin.elapsed().as_secs_f64());
    result
}

/// Ends the pools that tests started.
pub(crate) fn finish() -> anyhow::Result<()> {
    let pools = std::mem::take(&mut *IDLE.lock().unwrap_or_else(PoisonError::into_inner));
    let ends: Vec<_> =
        pools.into_iter().map(|pool| std::thread::spawn(move || pool.cluster.down())).collect();
    let ended =
        ends.into_iter().map(|end| end.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))));
    // All of them, also after one that did not end.
    ended.collect::<Vec<_>>().into_iter().collect()
}

impl Pool {
    fn start() -> anyhow::Result<Self> {
        let bare = std::env::var_os(BARE_POOL).is_some();
        let options = if bare { Options::bare() } else { Options::default() };
        let cluster = Cluster::up(&options)?;
        cluster.install_chart(&[])?;
        Ok(Self { cluster })
    }

    /// Makes a namespace that goes when the value does.
    pub(crate) fn namespace(&self, name: &str) -> anyhow::Result<Namespace<'_>> {
        self.cluster.create_namespace(name)?;
        Ok(Namespace { cluster: &self.cluster, name: name.to_owned() })
    }

    /// Runs a command on a machine.
    pub(crate) fn on(&self, machine: &str, script: &str) -> anyhow::Result<String> {
        self.cluster.machine(machine)?.shell(script)
    }
}

/// By resource, the IDs that a kubelet would hand out now or has handed out.
pub(crate) type Offered = BTreeMap<String, BTreeSet<String>>;

/// Asks the dedicated node's kubelet about its pods' resources. It takes 100 questions a second from all who ask.
fn ask_kubelet<T>(
    pool: &Pool,
    ask: impl AsyncFnOnce(PodResourcesListerClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
) -> anyhow::Result<T> {
    let socket = pool.cluster.machine(DEDICATED)?.live_path("/var/lib/kubelet/pod-resources/kubelet.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://kubelet").connect_with_connector(connect).await?;
        anyhow::Ok(ask(PodResourcesListerClient::new(channel)).await?.into_inner())
    })
}

/// What the dedicated node's kubelet says (`GetAllocatableResources`: what is Healthy).
pub(crate) fn allocatable(pool: &Pool) -> anyhow::Result<Offered> {
    let answer = ask_kubelet(pool, async |mut client| {
        client.get_allocatable_resources(AllocatableResourcesRequest {}).await
    })?;
    let mut offered = Offered::new();
    for devices in answer.devices.into_iter().filter(|devices| !devices.device_ids.is_empty()) {
        offered.entry(devices.resource_name).or_default().extend(devices.device_ids);
    }
    Ok(offered)
}

/// By namespace, pod and container, the IDs of a resource's devices that are held, as the dedicated node's kubelet says (`List`).
pub(crate) fn held(
    pool: &Pool,
    resource: &str,
) -> anyhow::Result<BTreeMap<(String, String, String), BTreeSet<String>>> {
    let answer = ask_kubelet(pool, async |mut client| client.list(ListPodResourcesRequest {}).await)?;
    let mut held = BTreeMap::new();
    for pod in answer.pod_resources {
        for container in pod.containers {
            let devices = container.devices.into_iter().filter(|devices| devices.resource_name == resource);
            let ids: BTreeSet<_> = devices.flat_map(|devices| devices.device_ids).collect();
            if !ids.is_empty() {
                held.insert((pod.namespace.clone(), pod.name.clone(), container.name), ids);
            }
        }
    }
    Ok(held)
}

/// Waits until the dedicated node's kubelet hands out so many NVIDIA GPUs, or shares of them.
pub(crate) fn wait_gpus(pool: &Pool, count: usize) -> anyhow::Result<()> {
    let mut last = None;
    wait(&format!("the kubelet to offer {count} GPUs"), || {
        let now = allocatable(pool)?.remove("nvidia.com/gpu").unwrap_or_default();
        let fits = now.len() == count;
        last = Some(now);
        // The kubelet takes 100 questions a second from all who ask.
        std::thread::sleep(Duration::from_millis(20));
        Ok(fits.then_some(()))
    })
    .with_context(|| format!("last: {last:?}"))
}

/// Waits until the dedicated node's status says so many, which the kubelet writes a moment later.
pub(crate) fn wait_gpus_in_status(pool: &Pool, count: usize) -> anyhow::Result<()> {
    wait(&format!("{count} GPUs to be in the node's status"), || {
        let path = "jsonpath={.status.allocatable.nvidia\\.com/gpu}";
        let now = pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])?;
        Ok((now == count.to_string()).then_some(()))
    })
}

/// Puts a new pod in the place of the agent's, and waits until its GPUs are offered. Unlike a container that has ended several times, a new
/// pod starts at once.
pub(crate) fn replace_agent(pool: &Pool) -> anyhow::Result<()> {
    let agents = ["-n", "spillway-system", "delete", "pod", "-l", "app.kubernetes.io/component=agent"];
    pool.cluster.kubectl(&agents)?;
    wait_gpus(pool, 2)
}

/// Fields of the agent's pods, by `JSONPath`.
pub(crate) fn agents(pool: &Pool, path: &str) -> anyhow::Result<String> {
    let select = ["-n", "spillway-system", "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o"];
    pool.cluster.kubectl(&[&select[..], &[&format!("jsonpath={path}")]].concat())
}

/// What the agent has logged.
pub(crate) fn agent_log(pool: &Pool) -> anyhow::Result<String> {
    let select = ["-n", "spillway-system", "logs", "-l", "app.kubernetes.io/component=agent", "--tail=-1"];
    pool.cluster.kubectl(&select)
}

/// All metrics of the dedicated node's agent. Between two agents nobody answers: waits until there is one, and it does.
pub(crate) fn metrics(pool: &Pool) -> anyhow::Result<String> {
    wait("the agent to answer with its metrics", || {
        let pods = agents(pool, "{range .items[*]}{.metadata.name} {end}")?;
        let [pod] = pods.split_whitespace().collect::<Vec<_>>()[..] else { return Ok(None) };
        let path = format!("/api/v1/namespaces/spillway-system/pods/{pod}:9400/proxy/metrics");
        pool.cluster.kubectl(&["get", "--raw", &path]).map(Some)
    })
}

/// A metric of the agent, by its name and all its labels, or the first of them.
pub(crate) fn metric(pool: &Pool, name: &str) -> anyhow::Result<Option<i64>> {
    Ok(metrics(pool)?.lines().find_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse().ok()))
}

/// A process of the dedicated node's machine that stands still until this is dropped.
pub(crate) struct Frozen<'a> {
    pool: &'a Pool,
    pid: String,
}

impl<'a> Frozen<'a> {
    pub(crate) fn agent(pool: &'a Pool) -> anyhow::Result<Self> {
        Self::process(pool, &pool.on(DEDICATED, "pidof spillway-agent")?)
    }

    pub(crate) fn process(pool: &'a Pool, pid: &str) -> anyhow::Result<Self> {
        let pid = pid.trim().to_owned();
        pool.on(DEDICATED, &format!("kill -STOP {pid}"))?;
        Ok(Self { pool, pid })
    }

    pub(crate) fn kill(self) -> anyhow::Result<()> {
        self.pool.on(DEDICATED, &format!("kill -KILL {}", self.pid)).map(drop)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = self.pool.on(DEDICATED, &format!("kill -CONT {}", self.pid));
    }
}

/// Waits for a condition, with the limit that all tests share.
pub(crate) fn wait<T>(what: &str, probe: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    spillway_tests::wait_for(what, LIMIT, probe)
}

/// A namespace of one test.
pub(crate) struct Namespace<'a> {
    cluster: &'a Cluster,
    pub(crate) name: String,
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // A failed test's pods must not disturb the next one; whether they go is the tests' own matter.
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

impl Namespace<'_> {
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments);
        self.cluster.kubectl(&all)
    }

    pub(crate) fn kubectl_output(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments);
        self.cluster.kubectl_output(&all)
    }

    /// Applies a manifest; its objects name no namespace.
    pub(crate) fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let path = tempfile::NamedTempFile::new()?;
        std::fs::write(path.path(), manifest)?;
        let file = path.path().to_str().context("a temporary path is text")?;
        self.kubectl(&["apply", "-f", file]).map(drop).with_context(|| manifest.to_owned())
    }

    /// Applies a pod from its spec's YAML, indented by two spaces.
    pub(crate) fn pod(&self, name: &str, spec: &str) -> anyhow::Result<()> {
        self.apply(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{spec}"))
    }

    /// Applies a pod on the dedicated node that holds `count` devices of `resource` until it is deleted.
    pub(crate) fn holder(&self, name: &str, resource: &str, count: u32) -> anyhow::Result<()> {
        self.pod(
            name,
            &format!(
                "  nodeName: {DEDICATED}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sleep, '100000']
    resources: {{limits: {{{resource}: {count}}}}}
"
            ),
        )
    }

    /// A field of an object, by `JSONPath` without the braces.
    pub(crate) fn field(&self, kind: &str, name: &str, path: &str) -> anyhow::Result<String> {
        self.kubectl(&["get", kind, name, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// Waits until a pod is in this phase; one that ends in another fails at once.
    pub(crate) fn wait_phase(&self, pod: &str, phase: &str) -> anyhow::Result<()> {
        let mut ended = None;
        wait(&format!("pod {pod} to be {phase}"), || {
            let now = self.field("pod", pod, ".status.phase")?;
            if now != phase && (now == "Failed" || now == "Succeeded") {
                ended = Some(now);
                return Ok(Some(()));
            }
            Ok((now == phase).then_some(()))
        })
        .with_context(|| self.kubectl(&["describe", "pod", pod]).unwrap_or_default())?;
        if let Some(now) = ended {
            bail!("pod {pod} became {now} instead of {phase}:\n{}", self.kubectl(&["describe", "pod", pod])?);
        }
        Ok(())
    }

    /// Waits until a pod is Ready.
    pub(crate) fn wait_ready(&self, pod: &str) -> anyhow::Result<()> {
        wait(&format!("pod {pod} to be Ready"), || {
            let ready = self.field("pod", pod, ".status.conditions[?(@.type=='Ready')].status")?;
            Ok((ready == "True").then_some(()))
        })
        .with_context(|| self.kubectl(&["describe", "pod", pod]).unwrap_or_default())
    }

    /// Waits until a pod is gone.
    pub(crate) fn wait_gone(&self, pod: &str) -> anyhow::Result<()> {
        wait(&format!("pod {pod} to be gone"), || {
            let found = self.kubectl(&["get", "pod", pod, "--ignore-not-found", "-o", "name"])?;
            Ok(found.is_empty().then_some(()))
        })
    }

    /// Runs a command in a pod and gives what it prints.
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> anyhow::Result<String> {
        let mut arguments = vec!["exec", pod, "--"];
        arguments.extend(command);
        self.kubectl(&arguments)
    }
}

/// Spec lines that put a pod on the virtual node.
pub(crate) const ON_VIRTUAL: &str = "  nodeName: virtual-1\n";
