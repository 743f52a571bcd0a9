//! The agent on a dedicated node: its accelerators are offered, given to pods one by one, and survive everything that happens to
//! kubelet, sockets and agent. The accelerators are stand-ins; kubelet, containers and device cgroups are real.

use anyhow::{Context as _, ensure};
use spillway_tests::standin::{FpgaStandin, GpuStandin};

use crate::{
    Test,
    harness::{DEDICATED, Pool, agents, metric, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("agent::pods_get_exactly_their_devices", pods_get_exactly_their_devices),
    ("agent::registrations_survive_everything", registrations_survive_everything),
    ("agent::health_and_hot_plug_reach_the_node", health_and_hot_plug_reach_the_node),
];

pub(crate) const GPU: &str = "nvidia.com/gpu";

/// What the node says of a resource: allocatable, capacity.
fn offered(pool: &Pool, resource: &str) -> anyhow::Result<(String, String)> {
    let of = |field: &str| {
        let path = format!("jsonpath={{.status.{field}.{}}}", resource.replace('.', "\\."));
        pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", &path])
    };
    Ok((of("allocatable")?, of("capacity")?))
}

pub(crate) fn wait_offered(
    pool: &Pool,
    resource: &str,
    allocatable: u32,
    capacity: u32,
) -> anyhow::Result<()> {
    let expected = (allocatable.to_string(), capacity.to_string());
    let mut last = None;
    wait(&format!("{allocatable} of {capacity} {resource} to be allocatable"), || {
        let now = offered(pool, resource)?;
        let fits = now == expected;
        last = Some(now);
        Ok(fits.then_some(()))
    })
    .with_context(|| format!("last: {last:?}"))
}

fn pods_get_exactly_their_devices(pool: &Pool) -> anyhow::Result<()> {
    let fpga = FpgaStandin::resource();
    wait_offered(pool, GPU, 2, 2)?;
    wait_offered(pool, &fpga, 1, 1)?;
    let namespace = pool.namespace("devices")?;
    for (name, resource) in [("gpu-a", GPU), ("gpu-b", GPU), ("fpga", &fpga)] {
        namespace.holder(name, resource, 1)?;
    }
    let mut visible = Vec::new();
    for pod in ["gpu-a", "gpu-b"] {
        namespace.wait_ready(pod)?;
        visible.push(namespace.exec(pod, &["sh", "-c", "echo -n $NVIDIA_VISIBLE_DEVICES"])?);
    }
    let expected = [GpuStandin::uuid(0), GpuStandin::uuid(1)];
    visible.sort();
    ensure!(visible == expected, "the pods see {visible:?}");

    for pod in ["gpu-a", "gpu-b"] {
        let minor = namespace.exec(pod, &["sh", "-c", "echo -n ${NVIDIA_VISIBLE_DEVICES##*-}"])?;
        let minor: u32 = minor.parse().with_context(|| format!("{minor:?} is no minor"))?;
        let nodes = namespace.exec(pod, &["sh", "-c", "cd /dev && ls -d nvidia* dfl* 2>/dev/null; true"])?;
        let expected =
            ["nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools", &format!("nvidia{minor}"), "nvidiactl"]
                .join("\n");
        ensure!(nodes.trim() == expected, "{pod} has {nodes}");
        // ENXIO: the container may open it, but there is no driver behind. EPERM: it may not.
        let open = |path: &str| {
            namespace.kubectl_output(&["exec", pod, "--", "sh", "-c", &format!("exec 3<{path}")])
        };
        let own = open(&format!("/dev/nvidia{minor}"))?;
        let own = String::from_utf8_lossy(&own.stderr).into_owned();
        ensure!(own.contains("No such device or address"), "{pod} opening its own GPU: {own}");
        let other = 1 - minor;
        namespace.exec(pod, &["mknod", "/tmp/other", "c", "195", &other.to_string()])?;
        let others = open("/tmp/other")?;
        let others = String::from_utf8_lossy(&others.stderr).into_owned();
        ensure!(others.contains("Operation not permitted"), "{pod} opening the other's GPU: {others}");
    }
    namespace.wait_ready("fpga")?;
    let nodes = namespace.exec("fpga", &["sh", "-c", "cd /dev && ls -d nvidia* dfl* 2>/dev/null; true"])?;
    ensure!(nodes.trim() == "dfl-port.0", "the FPGA's pod has {nodes}");

    // A third one, bound past the scheduler, is refused by the kubelet.
    namespace.holder("one-too-many", GPU, 1)?;
    namespace.wait_phase("one-too-many", "Failed")?;
    let reason = namespace.field("pod", "one-too-many", ".status.reason")?;
    ensure!(
        reason == "UnexpectedAdmissionError" || reason.starts_with("OutOf"),
        "the third pod failed for {reason}"
    );
    for pod in ["gpu-a", "gpu-b", "fpga", "one-too-many"] {
        namespace.kubectl(&["delete", "pod", pod])?;
    }
    Ok(())
}

fn registrations_survive_everything(pool: &Pool) -> anyhow::Result<()> {
    type Disturbance = fn(&Pool) -> anyhow::Result<()>;
    let disturbances: [(&str, Disturbance); 5] = [
        ("the plugin's own socket is deleted", |pool| {
            pool.on(DEDICATED, "rm /var/lib/kubelet/device-plugins/spillway-nvidia.com_gpu.sock").map(drop)
        }),
        ("the kubelet is restarted", |pool| pool.cluster.restart(DEDICATED, "kubelet")),
        ("the kubelet is killed", |pool| {
            pool.cluster.kill(DEDICATED, "kubelet")?;
            pool.cluster.start(DEDICATED, "kubelet")
        }),
        ("the agent is killed", |pool| pool.on(DEDICATED, "kill -9 $(pidof spillway-agent)").map(drop)),
        ("the agent's pod is replaced", |pool| {
            pool.cluster
                .kubectl(&[
                    "-n",
                    "spillway-system",
                    "delete",
                    "pod",
                    "-l",
                    "app.kubernetes.io/component=agent",
                ])
                .map(drop)
        }),
    ];

    wait_offered(pool, GPU, 2, 2)?;
    let namespace = pool.namespace("registration")?;
    namespace.holder("steady", GPU, 1)?;
    namespace.wait_ready("steady")?;
    let container = || {
        let field = "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
        namespace.kubectl(&["get", "pod", "steady", "-o", &format!("jsonpath={field}")])
    };
    let before = container()?;

    for (what, disturb) in disturbances {
        let registrations =
            r#"spillway_plugin_registrations_total{resource="nvidia.com/gpu",outcome="success"}"#;
        let earlier = metric(pool, registrations)?.context("the agent has never registered")?;
        let agent = || agents(pool, "{.items[*].status.containerStatuses[*].containerID}");
        let earlier_agent = agent()?;
        disturb(pool)?;
        wait(&format!("a registration after {what}"), || {
            let now = metric(pool, registrations)?;
            Ok((now > Some(earlier) || agent()? != earlier_agent).then_some(()))
        })?;
        wait_offered(pool, GPU, 2, 2).with_context(|| format!("after {what}"))?;
        // The kubelet asks the plugin, not only its memory. Between a registration and the first list of devices it refuses pods for good,
        // and the node's status still shows the devices of before: such a pod is tried again.
        wait(&format!("a pod to get a GPU after {what}"), || {
            namespace.holder("next", GPU, 1)?;
            let phase = wait("the next pod to run or to be refused", || {
                let phase = namespace.field("pod", "next", ".status.phase")?;
                Ok((phase == "Running" || phase == "Failed").then_some(phase))
            })?;
            namespace.kubectl(&["delete", "pod", "next"])?;
            Ok((phase == "Running").then_some(()))
        })?;
        let after = container()?;
        ensure!(after == before, "when {what} the running pod was touched: {before} became {after}");
    }
    let sockets = pool.on(DEDICATED, "ls /var/lib/kubelet/device-plugins | grep -c '^spillway-.*sock$'")?;
    ensure!(sockets.trim() == "2", "{sockets} sockets instead of one a resource");
    Ok(())
}

fn health_and_hot_plug_reach_the_node(pool: &Pool) -> anyhow::Result<()> {
    let base = pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin");
    let (gpus, fpgas, fpga) = (GpuStandin::at(&base), FpgaStandin::at(&base), FpgaStandin::resource());
    wait_offered(pool, GPU, 2, 2)?;
    let namespace = pool.namespace("health")?;
    namespace.holder("steady", GPU, 1)?;
    namespace.wait_ready("steady")?;

    // Of an application: nothing happens. Of the GPU: not allocatable any more, but what runs goes on running.
    gpus.xid(0, 13)?;
    gpus.xid(1, 79)?;
    wait_offered(pool, GPU, 1, 2)?;
    let unhealthy = metric(pool, r#"spillway_devices{resource="nvidia.com/gpu",health="unhealthy"}"#)?;
    ensure!(unhealthy.is_some_and(|count| count <= 1), "{unhealthy:?} GPUs are unhealthy");
    wait_offered(pool, GPU, 2, 2).context("it did not recover")?;

    gpus.set_lost(0, true)?;
    wait_offered(pool, GPU, 1, 2)?;
    gpus.set_lost(0, false)?;
    wait_offered(pool, GPU, 2, 2).context("it was not found again")?;

    let (path, major, minor) = GpuStandin::device_node(2);
    pool.on(DEDICATED, &format!("mknod -m 666 {path} c {major} {minor}"))?;
    gpus.add(2)?;
    wait_offered(pool, GPU, 3, 3)?;
    gpus.remove(2)?;
    wait_offered(pool, GPU, 2, 2)?;
    pool.on(DEDICATED, &format!("rm {path}"))?;

    gpus.set_temperature(0, 77)?;
    let temperature = format!(r#"spillway_device_temperature_celsius{{device="{}""#, GpuStandin::uuid(0));
    wait("the temperature to be measured", || Ok((metric(pool, &temperature)? == Some(77)).then_some(())))?;

    fpgas.set_errors(0, 0x4)?;
    wait_offered(pool, &fpga, 0, 1)?;
    fpgas.set_errors(0, 0)?;
    wait_offered(pool, &fpga, 1, 1)?;

    let phase = namespace.field("pod", "steady", ".status.phase")?;
    let restarts = namespace.field("pod", "steady", ".status.containerStatuses[0].restartCount")?;
    ensure!(
        (phase.as_str(), restarts.as_str()) == ("Running", "0"),
        "the running pod was touched: {phase}, {restarts}"
    );
    Ok(())
}
