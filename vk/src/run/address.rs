//! This machine's address, where nobody gave it: the one that its route to the API server starts from. Nothing is sent.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    time::Duration,
};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

/// How often it is looked at; as often as the machine's processors and memory.
const LOOK: Duration = Duration::from_mins(1);

/// Where the route to the API server begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// This machine's address.
    pub(super) source: IpAddr,
    server: SocketAddr,
}

impl Route {
    /// The route to `server`, by IPv4 where there is one.
    ///
    /// # Errors
    /// The server's name is not known, or no route leads to it.
    pub(super) fn find(server: &http::Uri) -> anyhow::Result<Self> {
        let how = || {
            format!(
                "can't find this machine's address towards the API server {server}: give it with --node-ip"
            )
        };
        let host = server.host().with_context(how)?.trim_start_matches('[').trim_end_matches(']');
        let resolved = (host, server.port_u16().unwrap_or(443)).to_socket_addrs().with_context(how)?;
        let mut servers: Vec<SocketAddr> = resolved.collect();
        servers.sort_by_key(SocketAddr::is_ipv6);
        let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        for server in servers {
            match source(server) {
                Ok(source) => return Ok(Self { source, server }),
                Err(error) => last = error,
            }
        }
        Err(last).with_context(how)
    }

    /// Until `stop`. The server's address stays the one that was found first: another one of its name may have another route.
    ///
    /// # Errors
    /// The machine has another address: what was told of the old one, certificates included, is wrong.
    pub(super) async fn stays(self, stop: CancellationToken) -> anyhow::Result<()> {
        self.stays_by(source, stop).await
    }

    async fn stays_by(
        self,
        look: impl Fn(SocketAddr) -> io::Result<IpAddr>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { source, server } = self;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            match look(server) {
                Ok(found) if found == source => {}
                Ok(found) => anyhow::bail!(
                    "this machine's address towards the API server was {source} and is {found} now: a new start takes it, which ends no pod; \
                     --node-ip keeps one"
                ),
                // As long as there is no network, there is no other address either.
                Err(error) => {
                    tracing::debug!(%error, %server, "this machine's address can't be looked at");
                }
            }
        }
    }
}

/// The address that packets to `server` would have.
fn source(server: SocketAddr) -> io::Result<IpAddr> {
    let any =
        if server.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    let source = socket.local_addr()?.ip();
    // A device may be on the route that has no address yet.
    if source.is_unspecified() { Err(io::ErrorKind::AddrNotAvailable.into()) } else { Ok(source) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_route_is_found_by_name_and_by_address() {
        let find = |server: &str| Route::find(&server.parse().unwrap());
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_eq!(find("https://127.0.0.1:6443").unwrap().source, loopback);
        assert_eq!(find("https://localhost").unwrap().source, loopback);
        let error = find("/nowhere").unwrap_err().to_string();
        assert!(error.contains("/nowhere") && error.contains("--node-ip"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn another_address_ends_the_life_and_no_answer_does_not() {
        let before: IpAddr = "10.0.0.5".parse().unwrap();
        let route = Route { source: before, server: "10.0.0.1:6443".parse().unwrap() };
        let looks = AtomicUsize::new(0);
        let look = |server| {
            assert_eq!(server, route.server);
            match looks.fetch_add(1, Ordering::Relaxed) {
                0 => Ok(before),
                1 => Err(io::ErrorKind::NetworkUnreachable.into()),
                _ => Ok("10.0.7.9".parse().unwrap()),
            }
        };
        let error = route.stays_by(look, CancellationToken::new()).await.unwrap_err().to_string();
        assert!(error.contains("was 10.0.0.5 and is 10.0.7.9 now"), "{error}");
        assert_eq!(looks.load(Ordering::Relaxed), 3);

        let stop = CancellationToken::new();
        stop.cancel();
        route.stays_by(|_| Ok(before), stop).await.unwrap();
    }
}
