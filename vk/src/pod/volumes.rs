//! What is in a pod's volumes, and where containers see it. Pure: [`files`](super::files) writes it.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath, Pod, PodSpec, ProjectedVolumeSource,
    ServiceAccountTokenProjection, Volume,
};

use super::{
    env::{self, Runtime},
    ephemeral,
    objects::{Missing, Objects, Token},
    resources::{self, Amounts},
};

/// Why a volume can't be filled (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("{0}")]
    Object(Missing),
    #[error("references non-existent secret key: {0}")]
    SecretKey(String),
    #[error("configmap references non-existent config key: {0}")]
    ConfigMapKey(String),
    #[error("{0}")]
    Field(String),
    #[error("path {0:?} leads out of the volume")]
    Path(String),
    #[error("no service account token for {path:?}: {message}")]
    Token { path: String, message: String },
    #[error("{0}")]
    Unsupported(String),
}

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    /// Not root's but this user's.
    pub(crate) owner: Option<u32>,
}

/// Files by path below the volume.
pub(crate) type Files = BTreeMap<PathBuf, File>;

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// An empty folder; `memory`: on a tmpfs, of so many bytes at most.
    Empty { memory: bool, bytes: Option<u64> },
    /// Files that Kubernetes keeps up to date; `memory`: they must not touch a disk.
    Files { files: Files, memory: bool },
    /// A place of the machine.
    Host { path: PathBuf, kind: HostKind },
}

/// What has to be at a hostPath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostKind {
    Anything,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

impl HostKind {
    /// By the API's name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "" => Self::Anything,
            "DirectoryOrCreate" => Self::DirectoryOrCreate,
            "Directory" => Self::Directory,
            "FileOrCreate" => Self::FileOrCreate,
            "File" => Self::File,
            "Socket" => Self::Socket,
            "CharDevice" => Self::CharDevice,
            "BlockDevice" => Self::BlockDevice,
            _ => return None,
        })
    }
}

/// Which token a pod has: audience ("" is the API server's own) and life in seconds.
pub(crate) type TokenKey = (String, i64);

/// Tokens that were asked for, or why there is none.
pub(crate) type Tokens = BTreeMap<TokenKey, Result<Token, String>>;

/// The token that a projection asks for.
pub(crate) fn token_key(source: &ServiceAccountTokenProjection) -> TokenKey {
    (source.audience.clone().unwrap_or_default(), source.expiration_seconds.unwrap_or(3600))
}

/// All tokens that a pod asks for.
pub(crate) fn token_keys(pod: &Pod) -> Vec<TokenKey> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut keys: Vec<TokenKey> = volumes
        .iter()
        .filter_map(|volume| volume.projected.as_ref()?.sources.as_ref())
        .flatten()
        .filter_map(|source| source.service_account_token.as_ref())
        .map(token_key)
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Whether a volume's files change while the pod runs.
pub(crate) fn is_live(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

/// What a pod says of itself that can change while it runs, in few bits; `None`: nothing of that is in its volumes.
pub(crate) fn told(pod: &Pod) -> Option<u64> {
    let spec = pod.spec.as_ref()?;
    let is_told = spec.volumes.iter().flatten().any(|volume| {
        let projected = volume.projected.as_ref().and_then(|source| source.sources.as_ref());
        volume.downward_api.is_some()
            || projected.into_iter().flatten().any(|source| source.downward_api.is_some())
    });
    if !is_told {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    (&pod.metadata.labels, &pod.metadata.annotations).hash(&mut hasher);
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let resources = container.resources.iter();
        let amounts =
            resources.flat_map(|resources| resources.limits.iter().chain(&resources.requests)).flatten();
        for (name, amount) in amounts {
            (&container.name, name, &amount.0).hash(&mut hasher);
        }
    }
    Some(hasher.finish())
}

/// Images whose content a container mounts: the volume's name, the image, and when it is pulled.
pub(crate) fn images(spec: &PodSpec, container: &Container) -> Vec<(String, String, Option<String>)> {
    let is_mounted = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    let mounted = spec.volumes.iter().flatten().filter(|volume| is_mounted(&volume.name));
    let image = |volume: &Volume| {
        let source = volume.image.as_ref()?;
        Some((volume.name.clone(), source.reference.clone()?, source.pull_policy.clone()))
    };
    mounted.filter_map(image).collect()
}

/// What the volume shall be.
pub(crate) fn content(
    pod: &Pod,
    volume: &Volume,
    objects: &Objects,
    tokens: &Tokens,
    runtime: &Runtime,
) -> Result<Content, VolumeError> {
    if let Some(source) = &volume.empty_dir {
        let memory = source.medium.as_deref() == Some("Memory");
        let bytes = if memory { memory_size(pod, source, &runtime.allocatable) } else { None };
        return Ok(Content::Empty { memory, bytes });
    }
    if let Some(source) = &volume.host_path {
        let kind = HostKind::parse(source.type_.as_deref().unwrap_or_default())
            .ok_or_else(|| VolumeError::Unsupported(format!("unknown hostPath type {:?}", source.type_)))?;
        return Ok(Content::Host { path: PathBuf::from(&source.path), kind });
    }
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(0o644);
        let optional = source.optional.unwrap_or(false);
        config_map(&mut files, objects, &source.name, source.items.as_deref(), mode, optional)?;
        return Ok(Content::Files { files, memory: false });
    }
    if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(0o644);
        let optional = source.optional.unwrap_or(false);
        let name = source.secret_name.as_deref().unwrap_or_default();
        secret(&mut files, objects, name, source.items.as_deref(), mode, optional)?;
        return Ok(Content::Files { files, memory: true });
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(0o644);
        downward(&mut files, pod, source.items.as_deref(), mode, runtime)?;
        return Ok(Content::Files { files, memory: true });
    }
    if let Some(source) = &volume.projected {
        projected(&mut files, pod, source, objects, tokens, runtime)?;
        return Ok(Content::Files { files, memory: true });
    }
    Err(VolumeError::Unsupported(format!(
        "volume {:?} is of a kind that this node does not have",
        volume.name
    )))
}

fn projected(
    files: &mut Files,
    pod: &Pod,
    source: &ProjectedVolumeSource,
    objects: &Objects,
    tokens: &Tokens,
    runtime: &Runtime,
) -> Result<(), VolumeError> {
    let mode = source.default_mode.unwrap_or(0o644);
    for source in source.sources.iter().flatten() {
        if let Some(source) = &source.config_map {
            let optional = source.optional.unwrap_or(false);
            config_map(files, objects, &source.name, source.items.as_deref(), mode, optional)?;
        } else if let Some(source) = &source.secret {
            let optional = source.optional.unwrap_or(false);
            secret(files, objects, &source.name, source.items.as_deref(), mode, optional)?;
        } else if let Some(source) = &source.downward_api {
            downward(files, pod, source.items.as_deref(), mode, runtime)?;
        } else if let Some(source) = &source.service_account_token {
            let failed =
                |message: &str| VolumeError::Token { path: source.path.clone(), message: message.to_owned() };
            let token = match tokens.get(&token_key(source)) {
                Some(Ok(token)) => token,
                Some(Err(message)) => return Err(failed(message)),
                None => return Err(failed("it was not asked for")),
            };
            // Where the group or the user is known the file is theirs alone.
            let owner = pod.spec.as_ref().and_then(only_user);
            let mode = if owner.is_some() || fs_group(pod).is_some() { 0o600 } else { mode };
            put(files, &source.path, token.text.clone().into_bytes(), mode)?;
            let clean: PathBuf =
                Path::new(&source.path).components().filter(|part| *part != Component::CurDir).collect();
            if let Some(file) = files.get_mut(&clean) {
                file.owner = owner.and_then(|owner| u32::try_from(owner).ok());
            }
        } else {
            return Err(VolumeError::Unsupported("a projected source is of an unknown kind".to_owned()));
        }
    }
    Ok(())
}

/// What a tmpfs may grow to, as a kubelet decides it: no more than the volume, the pod or the node may have.
fn memory_size(pod: &Pod, source: &EmptyDirVolumeSource, allocatable: &Amounts) -> Option<u64> {
    let of_pod = pod.spec.as_ref().and_then(|spec| resources::pod(spec).limits.memory_bytes);
    let of_node = allocatable.get("memory").and_then(resources::whole);
    let own = size_limit(source);
    let sizes = [own, of_pod, of_node].into_iter().flatten();
    sizes.filter_map(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0).min()
}

/// Bytes; `None`: no limit.
pub(crate) fn size_limit(source: &EmptyDirVolumeSource) -> Option<i64> {
    source.size_limit.as_ref().and_then(resources::whole).filter(|bytes| *bytes > 0)
}

/// Where other volumes are mounted in this one, in any container.
pub(crate) fn nested(pod: &Pod, volume: &str) -> Vec<PathBuf> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let clean = |path: &str| Path::new("/").join(path).components().collect::<PathBuf>();
    let mut found: Vec<PathBuf> = containers
        .flat_map(|container| {
            let mounts = container.volume_mounts.as_deref().unwrap_or_default();
            let own =
                mounts.iter().filter(|mount| mount.name == volume).map(|mount| clean(&mount.mount_path));
            let all: Vec<PathBuf> = mounts.iter().map(|mount| clean(&mount.mount_path)).collect();
            own.flat_map(move |own| {
                let below = |path: &PathBuf| Some(path.strip_prefix(&own).ok()?.to_path_buf());
                all.iter().filter_map(below).collect::<Vec<_>>()
            })
        })
        .filter(|path| {
            path.components().next().is_some()
                && path.components().all(|part| matches!(part, Component::Normal(_)))
        })
        .collect();
    found.sort();
    // What is in another one is that one's.
    found.dedup_by(|later, earlier| later.starts_with(earlier.as_path()));
    found
}

/// The group that owns a pod's volumes.
pub(crate) fn fs_group(pod: &Pod) -> Option<i64> {
    pod.spec.as_ref()?.security_context.as_ref()?.fs_group
}

/// The user of all containers, if it is one and the pod names it.
pub(crate) fn only_user(spec: &PodSpec) -> Option<i64> {
    let default = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let contexts = ephemeral::each(spec, |own| &own.security_context, |own| &own.security_context);
    let mut users =
        contexts.map(|context| context.as_ref().and_then(|context| context.run_as_user).or(default));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}

fn config_map(
    files: &mut Files,
    objects: &Objects,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<(), VolumeError> {
    let Some(object) = objects.config_map(name, optional).map_err(VolumeError::Object)? else {
        return Ok(());
    };
    let text = object.data.iter().flatten().map(|(key, value)| (key, value.as_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(key, value)| (key, value.0.as_slice()));
    let data: BTreeMap<&str, &[u8]> = text.chain(binary).map(|(key, value)| (key.as_str(), value)).collect();
    select(files, &data, items, mode, optional, VolumeError::ConfigMapKey)
}

fn secret(
    files: &mut Files,
    objects: &Objects,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<(), VolumeError> {
    let Some(object) = objects.secret(name, optional).map_err(VolumeError::Object)? else { return Ok(()) };
    let data: BTreeMap<&str, &[u8]> =
        object.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice())).collect();
    select(files, &data, items, mode, optional, VolumeError::SecretKey)
}

fn select(
    files: &mut Files,
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    missing: fn(String) -> VolumeError,
) -> Result<(), VolumeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return data.iter().try_for_each(|(key, value)| put(files, key, value.to_vec(), mode));
    };
    for item in items {
        match data.get(item.key.as_str()) {
            Some(value) => put(files, &item.path, value.to_vec(), item.mode.unwrap_or(mode))?,
            None if optional => {}
            None => return Err(missing(item.key.clone())),
        }
    }
    Ok(())
}

fn downward(
    files: &mut Files,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
    runtime: &Runtime,
) -> Result<(), VolumeError> {
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::field(pod, &field.field_path, runtime),
            (None, Some(selector)) => resources::field(pod, None, selector, &runtime.allocatable),
            (None, None) => Err(format!("item {:?} refers to nothing", item.path)),
        };
        let text = text.map_err(VolumeError::Field)?;
        put(files, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

fn put(files: &mut Files, path: &str, data: Vec<u8>, mode: i32) -> Result<(), VolumeError> {
    let relative = Path::new(path);
    // The API server refuses these too; but what is written as root is checked where it is written.
    if path.is_empty()
        || path.starts_with("..")
        || relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(VolumeError::Path(path.to_owned()));
    }
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    let clean: PathBuf = relative.components().filter(|part| *part != Component::CurDir).collect();
    if clean.as_os_str().is_empty() || clean.as_os_str().as_encoded_bytes().starts_with(b"..") {
        return Err(VolumeError::Path(path.to_owned()));
    }
    files.insert(clean, File { data, mode, owner: None });
    Ok(())
}

#[cfg(test)]
mod tests;
