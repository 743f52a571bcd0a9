//! The few URLs that probes have: made from a pod's fields, or named by a container that redirects. Pure; both are hostile.

use std::{borrow::Cow, fmt};

/// An `http` or `https` URL without user or fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) https: bool,
    /// A name or an address, without brackets.
    pub(super) host: String,
    /// `None`: the scheme's.
    pub(super) port: Option<u16>,
    /// Path and query; begins with a slash.
    pub(super) target: String,
}

impl Url {
    /// From a path that may have a query and that nobody has checked.
    pub(super) fn new(https: bool, host: &str, port: u16, path: &str) -> Self {
        Self { https, host: host.to_owned(), port: Some(port), target: target(path) }
    }

    pub(super) fn port_number(&self) -> u16 {
        self.port.unwrap_or(if self.https { 443 } else { 80 })
    }

    /// `host:port` as in a Host header.
    pub(super) fn authority(&self) -> String {
        let host = bracketed(&self.host);
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host.into_owned(),
        }
    }

    /// Where a Location header leads. `None`: nowhere that a probe goes.
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        let location = location.trim();
        let (scheme, rest) = match location.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                (Some(scheme.to_ascii_lowercase()), rest)
            }
            _ => match location.strip_prefix("//") {
                Some(rest) => (Some(if self.https { "https" } else { "http" }.to_owned()), rest),
                None => (None, location),
            },
        };
        let Some(scheme) = scheme else {
            let path = self.target.split('?').next().unwrap_or_default();
            let target = match rest.as_bytes().first() {
                Some(b'/') => target(rest),
                Some(b'?') => target(&format!("{path}{rest}")),
                _ => target(&format!("{}{rest}", &path[..=path.rfind('/').unwrap_or(0)])),
            };
            return Some(Self { target, ..self.clone() });
        };
        let https = match scheme.as_str() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = authority.rsplit('@').next().unwrap_or_default();
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']')?;
                (host, after.strip_prefix(':').unwrap_or_default())
            }
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        let port = if port.is_empty() { None } else { Some(port.parse().ok()?) };
        (!host.is_empty()).then(|| Self { https, host: host.to_owned(), port, target: target(path) })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

/// What can stand in a request line: a leading slash, no fragment, nothing that is no character of a URL.
fn target(path: &str) -> String {
    use std::fmt::Write as _;
    let path = path.split('#').next().unwrap_or_default();
    let mut out = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        out.push('/');
    }
    for byte in path.bytes() {
        if byte <= b' ' || byte >= 0x7f || b"\"<>\\^`{|}".contains(&byte) {
            let _ = write!(out, "%{byte:02X}");
        } else {
            out.push(char::from(byte));
        }
    }
    out
}

/// A host as it stands before a port: an IPv6 address in brackets.
pub(super) fn bracketed(host: &str) -> Cow<'_, str> {
    if host.contains(':') { format!("[{host}]").into() } else { host.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_becomes_one() {
        let check = |path: &str, expected: &str| {
            assert_eq!(Url::new(false, "10.0.0.1", 80, path).to_string(), expected);
        };
        check("/healthz?x=1", "http://10.0.0.1:80/healthz?x=1");
        check("", "http://10.0.0.1:80/");
        check("a b\r\nX: y#z", "http://10.0.0.1:80/a%20b%0D%0AX:%20y");
        assert_eq!(Url::new(true, "fd00::1", 443, "/").to_string(), "https://[fd00::1]:443/");
    }

    #[test]
    fn locations_lead_on_or_nowhere() {
        let from = Url::new(false, "10.0.0.1", 8080, "/a/b?q");
        let check = |location: &str, expected: Option<&str>| {
            let found = from.join(location).map(|url| url.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        };
        check("/c", Some("http://10.0.0.1:8080/c"));
        check("c?d", Some("http://10.0.0.1:8080/a/c?d"));
        check("?d", Some("http://10.0.0.1:8080/a/b?d"));
        check("//other/x", Some("http://other/x"));
        check("https://u:p@10.0.0.1/x", Some("https://10.0.0.1/x"));
        check("http://[fd00::1]:9/", Some("http://[fd00::1]:9/"));
        check("file:///etc/passwd", None);
        check("http://", None);
        check("http://a:notaport/", None);
    }

    proptest::proptest! {
        /// Whatever a container says: nothing that splits a request line comes out.
        #[test]
        fn no_location_breaks_a_request(location in ".*") {
            let from = Url::new(false, "10.0.0.1", 8080, "/a/b?q");
            if let Some(url) = from.join(&location) {
                proptest::prop_assert!(url.target.starts_with('/'));
                proptest::prop_assert!(url.target.bytes().all(|byte| (0x21..0x7f).contains(&byte)));
            }
        }
    }
}
