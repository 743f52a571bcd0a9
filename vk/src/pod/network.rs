//! What a pod's network files say: host name, `/etc/hosts`, `/etc/resolv.conf`. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::provider::runtime::Dns;

/// A kubelet cuts longer names off.
const MAX_HOSTNAME: usize = 63;
/// Linux allows no longer host names.
const MAX_FULL_NAME: usize = 64;
/// Resolvers read no more servers than these.
const MAX_SERVERS: usize = 3;
/// The kubelet's limits on search lists.
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
/// Some resolvers abort at longer domains.
const MAX_SEARCH_DOMAIN: usize = 253;

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
        let name = cut_off(name);
        return Ok(Hostname { short: name.clone(), full: None, kernel: name });
    }
    let set = |get: fn(&PodSpec) -> Option<&String>| spec.and_then(get).filter(|text| !text.is_empty());
    let name = set(|spec| spec.hostname.as_ref()).or(pod.metadata.name.as_ref());
    let short = cut_off(name.cloned().unwrap_or_default());
    let full = set(|spec| spec.subdomain.as_ref()).map(|subdomain| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        format!("{short}.{subdomain}.{namespace}.svc.{cluster_domain}")
    });
    // On the machine's network it has the machine's name, whatever its own would be.
    let as_full =
        spec.is_some_and(|spec| spec.set_hostname_as_fqdn == Some(true) && spec.host_network != Some(true));
    let kernel = match &full {
        Some(full) if as_full && full.len() > MAX_FULL_NAME => {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({MAX_FULL_NAME} characters \
                 is the max, {} characters requested)",
                full.len()
            ));
        }
        Some(full) if as_full => full.clone(),
        _ => short.clone(),
    };
    Ok(Hostname { short, full, kernel })
}

fn cut_off(mut name: String) -> String {
    if name.len() > MAX_HOSTNAME {
        name.truncate(name.floor_char_boundary(MAX_HOSTNAME));
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    name
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

/// A pod's resolver configuration, and what its user is to be told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodDns {
    pub(crate) dns: Dns,
    /// It wanted the cluster's DNS, and there is none.
    pub(crate) lacks_cluster: bool,
    /// What was left out because a limit was exceeded; a kubelet's texts.
    pub(crate) omissions: Vec<String>,
}

/// The pod's resolver configuration by its `dnsPolicy` and `dnsConfig`.
pub(crate) fn dns(pod: &Pod, machine: &Dns, cluster_dns: &[IpAddr], cluster_domain: &str) -> PodDns {
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
    let omissions = fit(&mut dns);
    PodDns { dns, lacks_cluster: wants_cluster && cluster_dns.is_empty(), omissions }
}

/// Leaves out what is beyond the limits, and says so; `formDNSConfigFitsLimits` in `pkg/kubelet/network/dns`.
fn fit(dns: &mut Dns) -> Vec<String> {
    let mut omissions = Vec::new();
    if dns.servers.len() > MAX_SERVERS {
        dns.servers.truncate(MAX_SERVERS);
        omissions.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            dns.servers.join(" ")
        ));
    }
    let asked = dns.searches.len();
    dns.searches.truncate(MAX_SEARCHES);
    dns.searches.retain(|domain| domain.len() <= MAX_SEARCH_DOMAIN);
    while dns.searches.join(" ").len() > MAX_SEARCH_CHARS {
        dns.searches.pop();
    }
    if dns.searches.len() < asked {
        omissions.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            dns.searches.join(" ")
        ));
    }
    omissions
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
        // As long as may be, and one more.
        let full = |letters: usize| {
            let full = format!("web-0.{}.ns.svc.cluster.local", "a".repeat(letters));
            (json!({ "subdomain": "a".repeat(letters), "setHostnameAsFQDN": true }), full)
        };
        let (spec, longest) = full(37);
        assert_eq!(longest.len(), 64);
        check(spec, ("web-0", Some(&longest), &longest));
        let (mut spec, too_long) = full(38);
        assert!(hostname(&pod(spec.clone()), "cluster.local").unwrap_err().contains(&too_long));
        spec["hostNetwork"] = json!(true);
        check(spec, ("web-0", Some(&too_long), "web-0"));
        let (given, cut) = (format!("{}-b", "a".repeat(62)), "a".repeat(62));
        check(json!({ "hostnameOverride": given }), (&cut, None, &cut));
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
            let PodDns { dns, lacks_cluster, omissions } =
                dns(&pod(spec), &machine, cluster, "cluster.local");
            assert!(omissions.is_empty(), "{omissions:?}");
            let text =
                format!("{} | {} | {}", dns.servers.join(" "), dns.searches.join(" "), dns.options.join(" "));
            (text, lacks_cluster)
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

    #[test]
    fn what_is_beyond_a_limit_is_left_out_and_told() {
        let formed = |servers: &[&str], searches: Vec<String>| {
            let config = json!({ "nameservers": servers, "searches": searches });
            dns(
                &pod(json!({ "dnsPolicy": "None", "dnsConfig": config })),
                &Dns::default(),
                &[],
                "cluster.local",
            )
        };
        let domains = |count: usize| (0..count).map(|n| format!("d{n}")).collect::<Vec<_>>();
        let most = formed(&["1.1.1.1", "2.2.2.2", "3.3.3.3"], domains(MAX_SEARCHES));
        assert_eq!((most.dns.searches.len(), most.omissions), (32, Vec::new()));

        let over = formed(&["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"], domains(33));
        assert_eq!((over.dns.servers.len(), over.dns.searches.len()), (3, 32));
        assert_eq!(
            over.omissions[0],
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
             1.1.1.1 2.2.2.2 3.3.3.3"
        );
        let applied = domains(32).join(" ");
        assert_eq!(
            over.omissions[1],
            format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {applied}"
            )
        );

        let long = formed(&["1.1.1.1"], vec!["a".repeat(253), "b".repeat(254), "c".to_owned()]);
        assert_eq!((long.dns.searches, long.omissions.len()), (vec!["a".repeat(253), "c".to_owned()], 1));
        let letters = |letter: char| letter.to_string().repeat(253);
        let line: Vec<String> = ('a'..'j').map(letters).collect();
        assert_eq!(formed(&["1.1.1.1"], line.clone()).dns.searches, line[..8]);
    }
}
