//! The one way from the host into a cluster: a loopback port of the host whose connections are made anew inside the control plane's
//! network namespace. A process of its own, because a cluster may outlive the program that started it.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};

use super::machine::{Machine, ProcessId};

/// The hidden subcommand of xtask that runs [`run`].
pub const SUBCOMMAND: &str = "forward";

/// Starts a forwarder to `target` on `machine`. Gives its process and the host's port.
///
/// # Errors
/// When the port or the process can't be had.
pub fn start(
    xtask: &Path,
    machine: &Machine,
    target: SocketAddr,
    log: &Path,
) -> anyhow::Result<(ProcessId, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("can't listen on a loopback port")?;
    let port = listener.local_addr()?.port();
    let log = File::create(log).with_context(|| format!("can't create {}", log.display()))?;
    let mut child = Command::new(xtask)
        .args([SUBCOMMAND, &machine.first.pid.to_string(), &target.to_string()])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("can't run {}", xtask.display()))?;
    let id = i32::try_from(child.id()).ok().and_then(ProcessId::of).context("the forwarder ended at once")?;
    std::thread::spawn(move || child.wait());
    Ok((id, port))
}

/// Accepts on the listener that is standard input, forever. The listening socket stays in the host's network namespace; this process
/// enters the other, so that its connections start there.
///
/// # Errors
/// When the namespace can't be entered or the listener fails.
pub fn run(first: i32, target: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let path = format!("/proc/{first}/ns/net");
    let namespace = File::open(&path).with_context(|| format!("can't open {path}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("can't enter {path}"))?;
    for client in listener.incoming() {
        let client = client.context("the listener failed")?;
        std::thread::spawn(move || {
            // While the API server is down the client sees its connection closed, as it would on the server's machine.
            if let Ok(server) = TcpStream::connect(target) {
                let _ = relay(&client, &server);
            }
        });
    }
    Ok(())
}

fn relay(client: &TcpStream, server: &TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| copy(client, server));
        copy(server, client);
    });
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    // The other direction may still carry an answer; a broken one must not linger.
    let _ = to.shutdown(std::net::Shutdown::Write);
}
