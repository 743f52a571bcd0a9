//! FPGAs of all kinds on a dedicated node: what is offered in which mode, what pods get of it, and how faults and programming reach the
//! kubelet. The cards are stand-ins; kubelet, containers and device cgroups are real.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use spillway_tests::standin::{BoardStandin, FPGA_INTERFACE_ID, FpgaStandin, OpaeStandin, XrtStandin};

use crate::{
    Test,
    harness::{DEDICATED, Namespace, Offered, Pool, allocatable, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("fpga::every_kind_of_card_is_offered_watched_and_given", every_kind),
    ("fpga::functions_are_offered_and_put_into_ports", functions),
];

/// The interface of the OPAE stand-in, and one that a card is updated to.
const OPAE_INTERFACE: &str = "57a4d100000000000000000000000002";
const NEW_INTERFACE: &str = "57a4d100000000000000000000000003";
/// A function, and another.
const ONE: &str = "57a4d1000000000000000000000000a1";
const OTHER: &str = "57a4d1000000000000000000000000a2";
/// What these are called behind the first stand-in's interface: `base64url` of both ids, as Intel's plugin has it.
const ONE_RESOURCE: &str = "fpga.intel.com/af-57a.57a.V6TRAAAAAAAAAAAAAAAAAVek0QAAAAAAAAAAAAAAAKE";
const OTHER_RESOURCE: &str = "fpga.intel.com/af-57a.57a.V6TRAAAAAAAAAAAAAAAAAVek0QAAAAAAAAAAAAAAAKI";
const BITSTREAMS: &str = "/srv/intel.com/fpga";

const PORT: &str = "0000:5e:00.0-port0";
const OPAE_PORT: &str = "0000:af:00.0-port0";
const AMD_CARD: &str = "0000:d0:00.1";
const BOARD: &str = "standin-board-region90";

/// All cards put in, with their nodes; out again when it is dropped.
struct Cards<'a> {
    pool: &'a Pool,
    dfl: FpgaStandin,
    opae: OpaeStandin,
    amd: XrtStandin,
    board: BoardStandin,
}

/// Nodes that the machine doesn't have by itself.
fn nodes() -> [(String, u32, u32); 5] {
    [
        FpgaStandin::management_node(0),
        OpaeStandin::device_node(0),
        XrtStandin::device_node(0),
        XrtStandin::management_node(0),
        BoardStandin::device_node(),
    ]
}

impl<'a> Cards<'a> {
    fn of(pool: &'a Pool) -> anyhow::Result<Self> {
        let base = pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin");
        let cards = Self {
            pool,
            dfl: FpgaStandin::at(&base),
            opae: OpaeStandin::at(&base),
            amd: XrtStandin::at(&base),
            board: BoardStandin::at(&base),
        };
        let make = nodes().map(|(path, major, minor)| format!("mknod -m 666 {path} c {major} {minor}"));
        pool.on(DEDICATED, &format!("mkdir -p /dev/dri; {}", make.join("; ")))?;
        Ok(cards)
    }
}

impl Drop for Cards<'_> {
    fn drop(&mut self) {
        let _ = self.dfl.remove(0);
        let _ = self.dfl.add(0);
        let _ = (self.opae.remove(0), self.amd.remove(0), self.board.remove());
        let remove = nodes().map(|(path, ..)| path).join(" ");
        let _ = self.pool.on(DEDICATED, &format!("rm -rf {remove} {BITSTREAMS}"));
    }
}

/// Waits until the kubelet offers just these FPGAs, and says how long it took.
fn wait_offered(pool: &Pool, what: &str, expected: &[(&str, &str)]) -> anyhow::Result<()> {
    let expected: Offered =
        expected.iter().map(|(resource, id)| ((*resource).to_owned(), [(*id).to_owned()].into())).collect();
    let (begin, mut last) = (Instant::now(), None);
    wait(&format!("what the kubelet offers {what}"), || {
        let mut now = allocatable(pool)?;
        now.retain(|resource, _| resource.starts_with("fpga.") || resource.starts_with("amd.com/"));
        let fits = now == expected;
        last = Some(now);
        std::thread::sleep(Duration::from_millis(20));
        Ok(fits.then_some(()))
    })
    .with_context(|| format!("expected {expected:?}; last: {last:?}"))?;
    eprintln!("    {what}: {:.2} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// The pod has these nodes of FPGAs, and may open them: there is no driver behind, which is another error than that of one who may not.
fn ensure_has(namespace: &Namespace<'_>, pod: &str, expected: &[&str]) -> anyhow::Result<()> {
    let list = "cd /dev && ls -d dfl-* intel-fpga-* xclmgmt* uio* dri/* 2>/dev/null; true";
    let nodes = namespace.exec(pod, &["sh", "-c", list])?;
    let nodes: Vec<_> = nodes.split_whitespace().collect();
    ensure!(nodes == expected, "{pod} has {nodes:?} instead of {expected:?}");
    for node in nodes {
        let said = open(namespace, pod, &format!("/dev/{node}"))?;
        ensure!(said.contains("No such device or address"), "{pod} opening its own {node}: {said}");
    }
    Ok(())
}

fn open(namespace: &Namespace<'_>, pod: &str, path: &str) -> anyhow::Result<String> {
    let output = namespace.kubectl_output(&["exec", pod, "--", "sh", "-c", &format!("exec 3<{path}")])?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn every_kind(pool: &Pool) -> anyhow::Result<()> {
    let cards = Cards::of(pool)?;
    let region = FpgaStandin::resource();
    let opae = format!("fpga.intel.com/region-{OPAE_INTERFACE}");
    let dfl = (region.as_str(), PORT);
    wait_offered(pool, "at first", &[dfl])?;
    cards.opae.add(0, OPAE_INTERFACE)?;
    cards.amd.add(0)?;
    cards.board.add()?;
    let (opae, amd, board) =
        ((opae.as_str(), OPAE_PORT), (XrtStandin::RESOURCE, AMD_CARD), (BoardStandin::RESOURCE, BOARD));
    wait_offered(pool, "with a card of each kind", &[dfl, opae, amd, board])?;

    let namespace = pool.namespace("fpgas")?;
    let (render, ..) = XrtStandin::device_node(0);
    let pods = [
        ("dfl", dfl.0, "dfl-port.0"),
        ("opae", opae.0, "intel-fpga-port.0"),
        ("amd", amd.0, render.trim_start_matches("/dev/")),
        ("board", board.0, "uio90"),
    ];
    for (pod, resource, _) in pods {
        // The kubelet admits by its node's status, which follows after seconds.
        wait(&format!("the node to offer {resource}"), || {
            let path = format!("jsonpath={{.status.allocatable.{}}}", resource.replace('.', "\\."));
            Ok((pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", &path])? == "1").then_some(()))
        })?;
        namespace.holder(pod, resource, 1)?;
    }
    for (pod, _, node) in pods {
        namespace.wait_ready(pod)?;
        ensure_has(&namespace, pod, &[node])?;
    }
    // What programs the card for everybody is nobody's, not even by a node of one's own.
    let (_, major, minor) = XrtStandin::management_node(0);
    namespace.exec("amd", &["mknod", "/tmp/management", "c", &major.to_string(), &minor.to_string()])?;
    let said = open(&namespace, "amd", "/tmp/management")?;
    ensure!(said.contains("Operation not permitted"), "the pod opening the management function: {said}");

    cards.amd.set_ready(0, false)?;
    wait_offered(pool, "when AMD's driver is not ready", &[dfl, opae, board])?;
    cards.board.set_state("write error")?;
    wait_offered(pool, "when the board's manager has failed", &[dfl, opae])?;
    cards.dfl.set_alarm(0, true)?;
    wait_offered(pool, "when the DFL card is hot", &[opae])?;
    cards.dfl.set_alarm(0, false)?;
    cards.board.set_state("operating")?;
    cards.amd.set_ready(0, true)?;
    wait_offered(pool, "when all are well again", &[dfl, opae, amd, board])?;

    cards.dfl.set_interface(0, NEW_INTERFACE)?;
    let moved = format!("fpga.intel.com/region-{NEW_INTERFACE}");
    // The port is the old pod's, whatever it is called now.
    wait_offered(pool, "after an update of the DFL card", &[opae, amd, board])?;
    for (pod, ..) in pods {
        let phase = namespace.field("pod", pod, ".status.phase")?;
        let restarts = namespace.field("pod", pod, ".status.containerStatuses[0].restartCount")?;
        ensure!((phase.as_str(), restarts.as_str()) == ("Running", "0"), "{pod} was touched: {phase}");
    }
    namespace.kubectl(&["delete", "pod", "dfl"])?;
    wait_offered(pool, "when nobody has its port any more", &[(&moved, PORT), opae, amd, board])?;
    drop(cards);
    wait_offered(pool, "when the others are out", &[dfl])
}

/// Sets the agent's FPGA configuration, at once: a changed file alone would reach it when the kubelet next looks.
fn configure(pool: &Pool, settings: &[String]) -> anyhow::Result<()> {
    let stamp = format!(
        "agent.podAnnotations.settings={}",
        settings.join("-").replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    );
    let settings: Vec<&str> = settings.iter().map(String::as_str).chain([stamp.as_str()]).collect();
    pool.cluster.install_chart(&settings)?;
    Ok(())
}

/// The agent as all other tests expect it, when this is dropped.
struct AsBefore<'a>(&'a Pool);

impl Drop for AsBefore<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.cluster.install_chart(&[]) {
            eprintln!("    the agent was not set back: {error:#}");
        }
    }
}

fn functions(pool: &Pool) -> anyhow::Result<()> {
    let cards = Cards::of(pool)?;
    let _as_before = AsBefore(pool);
    let region = FpgaStandin::resource();
    cards.dfl.set_function(0, ONE)?;
    configure(pool, &["agent.config.fpga.mode=af".to_owned()])?;
    wait_offered(pool, "in mode af", &[(ONE_RESOURCE, PORT)])?;
    cards.dfl.set_function(0, OTHER)?;
    wait_offered(pool, "when another function is in it", &[(OTHER_RESOURCE, PORT)])?;

    configure(pool, &["agent.config.fpga.mode=regiondevel".to_owned()])?;
    wait_offered(pool, "in mode regiondevel", &[(&region, "0000:5e:00.0")])?;
    let namespace = pool.namespace("fpga-functions")?;
    namespace.holder("developer", &region, 1)?;
    namespace.wait_ready("developer")?;
    ensure_has(&namespace, "developer", &["dfl-fme.0", "dfl-port.0"])?;
    namespace.kubectl(&["delete", "pod", "developer"])?;

    // The other function is in the port. Its bitstream is for another card, which is found out before anything is written.
    put_bitstream(pool, NEW_INTERFACE)?;
    configure(
        pool,
        &[
            format!("agent.config.fpga.functions[0].interface={FPGA_INTERFACE_ID}"),
            format!("agent.config.fpga.functions[0].function={ONE}"),
            format!("agent.fpga.bitstreamFolder={BITSTREAMS}"),
        ],
    )?;
    wait_offered(pool, "when ports are reserved for a function", &[(ONE_RESOURCE, PORT)])?;
    namespace.holder("job", ONE_RESOURCE, 1)?;
    wait_held_back(
        &namespace,
        "job",
        &format!("is for interface {NEW_INTERFACE}, expected {FPGA_INTERFACE_ID}"),
    )?;
    // One that fits goes to the kernel: that there is no driver behind the node is said by the kernel.
    put_bitstream(pool, FPGA_INTERFACE_ID)?;
    wait_held_back(&namespace, "job", "dfl-port.0 to program it")?;
    // As if it had been programmed.
    cards.dfl.set_function(0, ONE)?;
    namespace.wait_ready("job")?;
    ensure_has(&namespace, "job", &["dfl-port.0"])
}

/// Puts a bitstream for the first function into the machine's folder, made for this interface.
fn put_bitstream(pool: &Pool, interface: &str) -> anyhow::Result<()> {
    let metadata = format!(
        r#"{{"version":1,"afu-image":{{"interface-uuid":"{interface}","accelerator-clusters":[{{"accelerator-type-uuid":"{ONE}"}}]}}}}"#
    );
    let length = u32::try_from(metadata.len())?.to_le_bytes();
    let file = [b"XeonFPGA\xb7GBSv001".as_slice(), &length, metadata.as_bytes(), b"image"].concat();
    let folder = pool.cluster.machine(DEDICATED)?.path(BITSTREAMS).join(FPGA_INTERFACE_ID);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(format!("{ONE}.gbs")), file).context("can't write the bitstream")
}

/// Waits until the kubelet says why it doesn't start a pod's container.
fn wait_held_back(namespace: &Namespace<'_>, pod: &str, why: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    wait(&format!("{pod} to be held back: {why}"), || {
        last = namespace.field("pod", pod, ".status.containerStatuses[0].state.waiting.message")?;
        Ok(last.contains(why).then_some(()))
    })
    .with_context(|| format!("last: {last}"))
}
