//! Tells systemd how we are (`Type=notify`): one datagram to the socket named in `NOTIFY_SOCKET`. Does nothing elsewhere.

use std::{env, os::unix::net::UnixDatagram};

use std::os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr};

/// Start-up is done; a status line for `systemctl status`.
pub(crate) fn ready(status: &str) {
    send(&format!("READY=1\nSTATUS={status}"));
}

/// A shutdown has begun.
pub(crate) fn stopping() {
    send("STOPPING=1");
}

fn send(message: &str) {
    let Ok(path) = env::var("NOTIFY_SOCKET") else { return };
    if let Err(error) = send_to(&path, message) {
        tracing::warn!(%error, path, "can't notify systemd");
    }
}

fn send_to(path: &str, message: &str) -> std::io::Result<()> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_arrives_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let at_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("spillway-notify-test-{}", std::process::id());
        let at_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, address) in [(at_path, path.display().to_string()), (at_name, format!("@{name}"))] {
            send_to(&address, "READY=1").unwrap();
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
    }
}
