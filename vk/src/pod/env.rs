//! The environment of a container: values, references, expansion. Pure; what references lead to is fetched elsewhere.

pub(crate) mod file;
pub(crate) mod sources;

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, EnvVarSource, FileKeySelector, Pod, Service};

use super::{
    objects::{Missing, Objects},
    resources::{self, Amounts},
};

/// What a pod learns about itself at run time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runtime {
    /// The node's addresses.
    pub(crate) host_ips: Vec<IpAddr>,
    /// The pod's addresses.
    pub(crate) pod_ips: Vec<IpAddr>,
    /// What the node has for pods.
    pub(crate) allocatable: Amounts,
    /// Files of variables, by volume and path.
    pub(crate) env_files: BTreeMap<(String, String), Result<String, String>>,
}

/// Why a container has no environment (yet). The text is what its status says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    #[error("{0}")]
    Object(Missing),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { key: String, kind: &'static str, namespace: String, name: String },
    #[error("{0}")]
    Field(String),
    #[error("variable {name}: {source}")]
    Long { name: String, source: TooLong },
    #[error("variable {name}: what it shall be is no text, and no process can be given it")]
    NoText { name: String },
}

/// The container's variables; each name once.
pub(crate) fn resolve(
    pod: &Pod,
    container: &Container,
    objects: &Objects,
    runtime: &Runtime,
    services: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env: BTreeMap<String, String> = from_objects(container, objects)?;
    // All together are not longer than one may be: a hundred variables, each as long, are no way around.
    let mut left = MAX_BYTES;
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => {
                let expanded =
                    expand(text, |name| env.get(name).or_else(|| services.get(name)).map(String::as_str));
                expanded.map_err(|source| EnvError::Long { name: variable.name.clone(), source })?
            }
            (_, Some(source)) => match reference(pod, container, source, objects, runtime)? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        left = left
            .checked_sub(value.len())
            .ok_or_else(|| EnvError::Long { name: variable.name.clone(), source: TooLong })?;
        env.insert(variable.name.clone(), value);
    }
    for (name, value) in services {
        env.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Ok(env.into_iter().collect())
}

fn from_objects(container: &Container, objects: &Objects) -> Result<BTreeMap<String, String>, EnvError> {
    let mut env = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let mut put = |key: &str, value: String| drop(env.insert(format!("{prefix}{key}"), value));
        if let Some(reference) = &source.config_map_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(object) = objects.config_map(&reference.name, optional).map_err(EnvError::Object)? {
                for (key, value) in object.data.iter().flatten() {
                    put(key, value.clone());
                }
            }
        } else if let Some(reference) = &source.secret_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(object) = objects.secret(&reference.name, optional).map_err(EnvError::Object)? {
                for (key, value) in object.data.iter().flatten() {
                    put(key, text(key, &value.0)?);
                }
            }
        }
    }
    Ok(env)
}

/// A secret may be any bytes; a variable ends at the first zero. A runtime would be told something else than the pod asks for.
fn text(name: &str, bytes: &[u8]) -> Result<String, EnvError> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| EnvError::NoText { name: name.to_owned() })
}

/// `None`: optional and not there.
fn reference(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    objects: &Objects,
    runtime: &Runtime,
) -> Result<Option<String>, EnvError> {
    let missing_key = |key: &str, kind, name: &str| EnvError::Key {
        key: key.to_owned(),
        kind,
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: name.to_owned(),
    };
    if let Some(field_ref) = &source.field_ref {
        return field(pod, &field_ref.field_path, runtime).map(Some).map_err(EnvError::Field);
    }
    if let Some(selector) = &source.resource_field_ref {
        let spec = pod.spec.as_ref();
        let defaults = spec.map(|spec| resources::default_limits(spec, &runtime.allocatable));
        return resources::field(pod, Some(container), selector, &defaults.unwrap_or_default())
            .map(Some)
            .map_err(EnvError::Field);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional.unwrap_or(false);
        let object = objects.config_map(&selector.name, optional).map_err(EnvError::Object)?;
        let value = object.and_then(|object| object.data.as_ref()?.get(&selector.key).cloned());
        return match value {
            None if !optional => Err(missing_key(&selector.key, "ConfigMap", &selector.name)),
            value => Ok(value),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional.unwrap_or(false);
        let object = objects.secret(&selector.name, optional).map_err(EnvError::Object)?;
        let value =
            object.and_then(|object| Some(text(&selector.key, &object.data.as_ref()?.get(&selector.key)?.0)));
        return match value.transpose()? {
            None if !optional => Err(missing_key(&selector.key, "Secret", &selector.name)),
            value => Ok(value),
        };
    }
    if let Some(selector) = &source.file_key_ref {
        return of_file(selector, runtime).map_err(EnvError::Field);
    }
    Err(EnvError::Field("the variable's source is not supported".to_owned()))
}

/// What a `fileKeyRef` reads. As with a kubelet, only the key is optional.
fn of_file(selector: &FileKeySelector, runtime: &Runtime) -> Result<Option<String>, String> {
    let FileKeySelector { key, path, volume_name, .. } = selector;
    let text = runtime
        .env_files
        .get(&(volume_name.clone(), path.clone()))
        .ok_or_else(|| format!("cannot find the volume {volume_name:?} referenced by FileKeyRef"))?;
    // What is wrong with it is said in the log: the file may hold secrets.
    let value = text.as_deref().ok().and_then(|text| file::value(text, key).ok());
    match value.ok_or("couldn't parse env file")? {
        None if !selector.optional.unwrap_or(false) => {
            Err(format!("environment variable key {key:?} not found in file {path:?}"))
        }
        value => Ok(value),
    }
}

/// What a `fieldRef` reads.
pub(crate) fn field(pod: &Pod, path: &str, runtime: &Runtime) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let join = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let text = match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" => first(&runtime.host_ips),
        "status.hostIPs" => join(&runtime.host_ips),
        "status.podIP" => first(&runtime.pod_ips),
        "status.podIPs" => join(&runtime.pod_ips),
        _ => {
            let (map, key) = subscript(path).ok_or_else(|| format!("unsupported fieldPath: {path}"))?;
            let map = match map {
                "metadata.labels" => meta.labels.as_ref(),
                "metadata.annotations" => meta.annotations.as_ref(),
                _ => return Err(format!("unsupported fieldPath: {path}")),
            };
            map.and_then(|map| map.get(key).cloned()).unwrap_or_default()
        }
    };
    Ok(text)
}

/// `metadata.labels['key']` → (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// A map as a downward API file has it: `key="value"`, a line each, sorted.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// As `strconv.Quote` of Go.
fn quoted(value: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::from('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            ' '..='~' => text.push(c),
            '\x07' => text.push_str("\\a"),
            '\x08' => text.push_str("\\b"),
            '\x0b' => text.push_str("\\v"),
            '\x0c' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if !c.is_ascii() && is_printable(c) => text.push(c),
            c => {
                let _ = match u32::from(c) {
                    code @ ..0x80 => write!(text, "\\x{code:02x}"),
                    code @ 0x80..0x1_0000 => write!(text, "\\u{code:04x}"),
                    code => write!(text, "\\U{code:08x}"),
                };
            }
        }
    }
    text.push('"');
    text
}

/// Marks that combine with the character before them are printable, too, so one comes before.
fn is_printable(c: char) -> bool {
    !format!("a{c}").escape_debug().to_string().starts_with("a\\u")
}

/// No process gets more than this on Linux, all of its words and variables together (three quarters of `_STK_LIM`; execve(2) says E2BIG).
pub const MAX_BYTES: usize = 6 << 20;

/// What a text expands to is too long for any process. Variables that double each other reach that within a few lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("with its variables expanded it is longer than {MAX_BYTES} bytes, and no process can be given that")]
pub struct TooLong;

/// Replaces `$(NAME)`; `$$` is one dollar, and what is not known stays as it is written.
///
/// # Errors
/// When the outcome would be longer than [`MAX_BYTES`].
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> Result<String, TooLong> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // Behind the last one nothing is looked for any more.
    let mut closing = text.matches(')').count();
    while let Some(at) = rest.find('$') {
        closing -= rest[..at].matches(')').count();
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let name = after.strip_prefix('(').filter(|_| closing > 0).and_then(|inner| inner.split_once(')'));
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = name {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            closing -= 1;
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
        if out.len() > MAX_BYTES {
            return Err(TooLong);
        }
    }
    out.push_str(rest);
    if out.len() > MAX_BYTES { Err(TooLong) } else { Ok(out) }
}

/// [`expand`] for the words of a command, which are as bounded together.
pub(crate) fn expand_words<'a>(
    words: &[String],
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> Result<Vec<String>, TooLong> {
    let mut left = MAX_BYTES;
    let mut expanded = Vec::with_capacity(words.len());
    for word in words {
        let word = expand(word, &lookup)?;
        left = left.checked_sub(word.len()).ok_or(TooLong)?;
        expanded.push(word);
    }
    Ok(expanded)
}

/// Variables that lead to services, as `FromServices` in Kubernetes' `envvars.go` names them: those of the pod's namespace if it asks
/// for links, and always the API server's.
pub(crate) fn services<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for service in services {
        let meta = &service.metadata;
        let (Some(name), Some(spec)) = (&meta.name, &service.spec) else { continue };
        let of_api = meta.namespace.as_deref() == Some("default") && name == "kubernetes";
        let linked = links && meta.namespace.as_deref() == Some(namespace);
        if !(of_api || linked) {
            continue;
        }
        let ip = match spec.cluster_ip.as_deref() {
            None | Some("" | "None") => continue,
            Some(ip) => ip,
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let prefix = variable_name(name);
        env.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        env.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        for (index, port) in ports.iter().enumerate() {
            if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                env.insert(
                    format!("{prefix}_SERVICE_PORT_{}", variable_name(port_name)),
                    port.port.to_string(),
                );
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                env.insert(format!("{prefix}_PORT"), url.clone());
            }
            let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            env.insert(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
            env.insert(format!("{port_prefix}_PORT"), port.port.to_string());
            env.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
            env.insert(port_prefix, url);
        }
    }
    env
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests;
