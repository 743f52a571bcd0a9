//! Listening sockets, as Go's `net.Listen` makes a kubelet's: for both families where no address is named, and dead peers are noticed.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use tokio::net::{TcpListener, TcpSocket};

/// How long nothing is heard before a peer is asked whether it is there, and how long between questions.
const KEEPALIVE_SECONDS: u32 = 15;
/// As std has it; the kernel caps it.
const BACKLOG: u32 = 1024;

/// Listens on `address`; `0.0.0.0` and `::` are both every address, of IPv6 and IPv4.
///
/// # Errors
/// The address is taken, or not this machine's, or its port is not ours to take.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen_on(address);
    }
    match listen_on((Ipv6Addr::UNSPECIFIED, address.port()).into()) {
        Err(error) if has_no_ipv6(&error) => listen_on((Ipv4Addr::UNSPECIFIED, address.port()).into()),
        listener => listener,
    }
}

/// A kernel without IPv6 has no such sockets, and one where it is switched off no such address.
fn has_no_ipv6(error: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL].iter().any(|no| error.raw_os_error() == Some(*no as i32))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    // Connections inherit these.
    socket.set_keepalive(true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &KEEPALIVE_SECONDS)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn every_address_is_both_families() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let listener = listen(address.parse().unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            if std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
                TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
            }
        }
        let one = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(one.local_addr().unwrap().ip(), Ipv4Addr::LOCALHOST, "what is named is alone");
    }

    #[tokio::test]
    async fn peers_are_asked_whether_they_are_there() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (accepted, _client) = (accepted.unwrap().0, client.unwrap());
        assert!(getsockopt(&accepted, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&accepted, sockopt::TcpKeepIdle).unwrap(), KEEPALIVE_SECONDS);
        assert_eq!(getsockopt(&accepted, sockopt::TcpKeepInterval).unwrap(), KEEPALIVE_SECONDS);
    }
}
