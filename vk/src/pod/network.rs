//! What a pod's network files say: host name, `/etc/hosts`, `/etc/resolv.conf`. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::provider::runtime::Dns;

/// Linux allows no longer host names.
const MAX_HOSTNAME: usize = 63;
/// Resolvers read no more servers than these.
const MAX_SERVERS: usize = 3;
/// The kubelet's limits on search lists.
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// The name of the pod's host, and its full name if it has a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hostname {
    pub(crate) short: String,
    pub(crate) full: Option<String>,
    /// What the kernel shall be told.
    pub(crate) kernel: String,
}

/// Host name by `hostname`, `subdomain`, `setHostnameAsFQDN` and `hostnameOverride`.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> Result<Hostname, String> {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|spec| spec.hostname_override.clone()) {
        return Ok(Hostname { short: name.clone(), full: None, kernel: name });
    }
    let set = |get: fn(&PodSpec) -> Option<&String>| spec.and_then(get).filter(|text| !text.is_empty());
    let mut short =
        set(|spec| spec.hostname.as_ref()).or(pod.metadata.name.as_ref()).cloned().unwrap_or_default();
    if short.len() > MAX_HOSTNAME {
        short.truncate(short.floor_char_boundary(MAX_HOSTNAME));
        short.truncate(short.trim_end_matches(['-', '.']).len());
    }
    let full = set(|spec| spec.subdomain.as_ref()).map(|subdomain| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        format!("{short}.{subdomain}.{namespace}.svc.{cluster_domain}")
    });
    let as_full = spec.and_then(|spec| spec.set_hostname_as_fqdn).unwrap_or(false);
    let kernel = match &full {
        Some(full) if as_full && full.len() > MAX_HOSTNAME => {
            return Err(format!(
                "the FQDN {full} is too long ({MAX_HOSTNAME} characters is the max, {} given)",
                full.len()
            ));
        }
        Some(full) if as_full => full.clone(),
        _ => short.clone(),
    };
    Ok(Hostname { short, full, kernel })
}

/// `/etc/hosts` of a pod with a network of its own.
pub(crate) fn hosts(pod: &Pod, hostname: &Hostname, pod_ips: &[IpAddr]) -> String {
    let mut text = "# Kubernetes-managed hosts file.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n"
        .to_owned();
    let names = match &hostname.full {
        Some(full) => format!("{full}\t{}", hostname.short),
        None => hostname.short.clone(),
    };
    for ip in pod_ips {
        text.extend([ip.to_string().as_str(), "\t", names.as_str(), "\n"]);
    }
    text + &aliases(pod)
}

/// `/etc/hosts` of a pod on the machine's network: the machine's, and the pod's aliases.
pub(crate) fn machine_hosts(pod: &Pod, machine: &str) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{machine}{}", aliases(pod))
}

fn aliases(pod: &Pod) -> String {
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = "\n# Entries added by HostAliases.\n".to_owned();
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.extend([alias.ip.as_str(), "\t", names.as_str(), "\n"]);
    }
    text
}

/// Lines of the machine's own resolver configuration.
pub(crate) fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let values = |words: std::str::SplitWhitespace<'_>| words.map(str::to_owned).collect::<Vec<_>>();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            // The last one holds.
            Some("search") => {
                let domains = values(words).into_iter().filter(|domain| domain != ".");
                dns.searches = domains.map(|domain| domain.trim_end_matches('.').to_owned()).collect();
            }
            Some("options") => {
                for option in words {
                    set_option(&mut dns.options, option.to_owned());
                }
            }
            _ => {}
        }
    }
    dns
}

/// The pod's resolver configuration by its `dnsPolicy` and `dnsConfig`, and whether it wanted the cluster's DNS while there is none.
pub(crate) fn dns(pod: &Pod, machine: &Dns, cluster_dns: &[IpAddr], cluster_domain: &str) -> (Dns, bool) {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let wants_cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let mut dns = match policy {
        "None" => Dns::default(),
        _ if wants_cluster && !cluster_dns.is_empty() => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let mut searches = vec![
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
            searches.extend(machine.searches.iter().cloned());
            Dns {
                servers: cluster_dns.iter().map(IpAddr::to_string).collect(),
                searches,
                options: vec!["ndots:5".to_owned()],
            }
        }
        _ => machine.clone(),
    };
    if let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        dns.servers.extend(config.nameservers.iter().flatten().cloned());
        dns.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            let option = match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            };
            set_option(&mut dns.options, option);
        }
    }
    dedup(&mut dns.servers);
    dedup(&mut dns.searches);
    dns.servers.truncate(MAX_SERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    while dns.searches.iter().map(|domain| domain.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS + 1 {
        dns.searches.pop();
    }
    (dns, wants_cluster && cluster_dns.is_empty())
}

/// Of several with one name the last one holds.
fn set_option(options: &mut Vec<String>, option: String) {
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    options.retain(|have| name(have) != name(&option));
    options.push(option);
}

fn dedup(items: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    items.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({ "metadata": { "name": "web-0", "namespace": "ns" }, "spec": spec }))
            .unwrap()
    }

    #[test]
    fn names_by_spec() {
        let check = |spec: serde_json::Value, expected: (&str, Option<&str>, &str)| {
            let name = hostname(&pod(spec), "cluster.local").unwrap();
            assert_eq!((name.short.as_str(), name.full.as_deref(), name.kernel.as_str()), expected);
        };
        check(json!({}), ("web-0", None, "web-0"));
        check(json!({ "hostname": "db" }), ("db", None, "db"));
        let full = "web-0.web.ns.svc.cluster.local";
        check(json!({ "subdomain": "web" }), ("web-0", Some(full), "web-0"));
        check(json!({ "subdomain": "web", "setHostnameAsFQDN": true }), ("web-0", Some(full), full));
        check(json!({ "hostnameOverride": "x.example.com" }), ("x.example.com", None, "x.example.com"));
        let long = json!({ "subdomain": "a".repeat(60), "setHostnameAsFQDN": true });
        assert!(hostname(&pod(long), "cluster.local").is_err());
        let mut long = pod(json!({}));
        long.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(10)));
        assert_eq!(hostname(&long, "cluster.local").unwrap().short, "a".repeat(62));
        // No API server lets that in; to be cut between letters it has to be, all the same.
        long.metadata.name = Some("ä".repeat(40));
        assert_eq!(hostname(&long, "cluster.local").unwrap().short, "ä".repeat(31));
    }

    #[test]
    fn hosts_file_has_addresses_names_and_aliases() {
        let pod = pod(json!({
            "subdomain": "web", "hostAliases": [{ "ip": "1.2.3.4", "hostnames": ["foo", "bar"] }],
        }));
        let name = hostname(&pod, "cluster.local").unwrap();
        insta::assert_snapshot!(hosts(&pod, &name, &["10.1.0.9".parse().unwrap()]), @r"
        # Kubernetes-managed hosts file.
        127.0.0.1	localhost
        ::1	localhost ip6-localhost ip6-loopback
        fe00::0	ip6-localnet
        fe00::0	ip6-mcastprefix
        fe00::1	ip6-allnodes
        fe00::2	ip6-allrouters
        10.1.0.9	web-0.web.ns.svc.cluster.local	web-0

        # Entries added by HostAliases.
        1.2.3.4	foo	bar
        ");
    }

    #[test]
    fn dns_by_policy() {
        let machine = parse_resolv_conf(
            "# comment\nnameserver 9.9.9.9\nsearch corp.example. .\noptions timeout:9 rotate\noptions timeout:2\n",
        );
        let cluster: Vec<IpAddr> = vec!["10.96.0.10".parse().unwrap()];
        let check = |spec: serde_json::Value, cluster: &[IpAddr]| {
            let (dns, missing) = dns(&pod(spec), &machine, cluster, "cluster.local");
            let text =
                format!("{} | {} | {}", dns.servers.join(" "), dns.searches.join(" "), dns.options.join(" "));
            (text, missing)
        };
        let first =
            "10.96.0.10 | ns.svc.cluster.local svc.cluster.local cluster.local corp.example | ndots:5";
        let machines = "9.9.9.9 | corp.example | rotate timeout:2";
        assert_eq!(check(json!({}), &cluster), (first.to_owned(), false));
        assert_eq!(check(json!({}), &[]), (machines.to_owned(), true));
        assert_eq!(check(json!({ "dnsPolicy": "Default" }), &cluster), (machines.to_owned(), false));
        assert_eq!(check(json!({ "hostNetwork": true }), &cluster), (machines.to_owned(), false));
        let with_host = json!({ "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet" });
        assert_eq!(check(with_host, &cluster), (first.to_owned(), false));
        let own = json!({ "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1"], "searches": ["x.y"],
            "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0", "value": "" }],
        } });
        assert_eq!(check(own, &cluster), ("1.1.1.1 | x.y | ndots:2 edns0".to_owned(), false));
        let over = json!({ "dnsConfig": { "options": [{ "name": "ndots", "value": "2" }] } });
        assert!(check(over, &cluster).0.ends_with("| ndots:2"));
    }
}
