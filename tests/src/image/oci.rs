//! Writes an OCI image layout into a tar: one layer, its configuration, a manifest, an index. The same inputs give the same bytes.
//!
//! Field names are those of the OCI image specification 1.1 (`config.md`, `manifest.md`, `image-layout.md`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Image, libraries::linked_libraries};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One file of an image. Everything belongs to root and is dated 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A copy of a file of this machine; links are followed.
    File {
        /// Where it is here.
        source: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// A file with this content.
    Bytes {
        /// The content.
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link to this path.
    Link(String),
    /// A folder. Those that lie above other entries need not be named.
    Folder {
        /// Permission bits.
        mode: u32,
    },
}

impl Entry {
    /// A copy of a program.
    pub fn program(source: &Path) -> Self {
        Self::File { source: source.to_owned(), mode: 0o755 }
    }

    /// A file with a text in it.
    pub fn text(content: &str) -> Self {
        Self::Bytes { content: content.as_bytes().to_owned(), mode: 0o644 }
    }
}

/// What an image shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    name: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
    environment: Vec<String>,
    user: String,
    working_folder: String,
    entries: BTreeMap<String, Entry>,
}

impl Spec {
    /// An empty image that is called `name`, tag included, and runs `entrypoint`.
    pub fn new<const N: usize>(name: &str, entrypoint: [&str; N]) -> Self {
        Self {
            name: name.to_owned(),
            entrypoint: entrypoint.map(str::to_owned).into(),
            command: Vec::new(),
            environment: vec![PATH.to_owned()],
            user: String::new(),
            working_folder: "/".to_owned(),
            entries: BTreeMap::new(),
        }
    }

    /// Arguments to the entrypoint, or the command where there is none, that a pod may replace.
    #[must_use]
    pub fn command<const N: usize>(mut self, command: [&str; N]) -> Self {
        self.command = command.map(str::to_owned).into();
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// The user, and after a colon the group, as numbers; root without it.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// The folder in which the program starts; the root without it.
    #[must_use]
    pub fn working_folder(mut self, folder: &str) -> Self {
        folder.clone_into(&mut self.working_folder);
        self
    }

    /// One more entry, at an absolute path.
    #[must_use]
    pub fn entry(mut self, path: &str, entry: Entry) -> Self {
        self.entries.insert(path.trim_start_matches('/').to_owned(), entry);
        self
    }

    /// Copies of files of this machine, at the paths where they are here.
    #[must_use]
    pub fn files(self, files: impl IntoIterator<Item = PathBuf>) -> Self {
        files.into_iter().fold(self, |spec, file| spec.entry(&file.to_string_lossy(), Entry::program(&file)))
    }

    /// The shared objects that a program links.
    ///
    /// # Errors
    /// Those of [`linked_libraries`].
    pub fn with_libraries(self, program: &Path) -> anyhow::Result<Self> {
        Ok(self.files(linked_libraries(program)?))
    }

    /// Changes whenever the image would: what is in it, and which versions of the copied files.
    fn key(&self) -> anyhow::Result<String> {
        let mut digest = Sha256::new();
        digest.update(format!("{self:?}"));
        for entry in self.entries.values() {
            if let Entry::File { source, .. } = entry {
                let data =
                    fs::metadata(source).with_context(|| format!("can't read {}", source.display()))?;
                digest.update(format!("{}:{:?}", data.len(), data.modified()?));
            }
        }
        Ok(format!("{:x}", digest.finalize()))
    }
}

/// Writes an image into the folder `out`, unless the one there was made of the same.
///
/// # Errors
/// When an input can't be read or the tar can't be written; then no tar, or the old one, is there.
pub fn build(spec: &Spec, out: &Path) -> anyhow::Result<Image> {
    let file = spec.name.replace(['/', ':'], "-");
    let image = Image { name: spec.name.clone(), tar: out.join(format!("{file}.tar")) };
    let stamp = out.join(format!(".{file}.key"));
    let key = spec.key()?;
    if image.tar.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == key) {
        return Ok(image);
    }
    // Made under another name, so that whoever reads the old one meanwhile is not disturbed.
    let mut fresh = tempfile::NamedTempFile::new_in(out)
        .with_context(|| format!("can't write into {}", out.display()))?;
    write(spec, &mut fresh).with_context(|| format!("can't make image {}", spec.name))?;
    let _ = fs::remove_file(&stamp);
    fresh.persist(&image.tar).with_context(|| format!("can't put {} in place", image.tar.display()))?;
    fs::write(&stamp, key).with_context(|| format!("can't write {}", stamp.display()))?;
    Ok(image)
}

fn write(spec: &Spec, out: &mut impl Write) -> anyhow::Result<()> {
    let mut layer = tempfile::tempfile().context("can't make a temporary file")?;
    write_layer(&spec.entries, &mut layer)?;
    let layer_digest = digest_of(&mut layer)?;
    let layer_size = layer.seek(io::SeekFrom::End(0))?;
    layer.rewind()?;

    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": spec.entrypoint,
            "Cmd": spec.command,
            "Env": spec.environment,
            "User": spec.user,
            "WorkingDir": spec.working_folder,
        },
        // The layer isn't compressed: its digest and that of its content are one.
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    });
    let (config, config_descriptor) = blob(CONFIG, &config);
    let (manifest, mut manifest_descriptor) = blob(
        MANIFEST,
        &json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config_descriptor,
            "layers": [{"mediaType": LAYER, "digest": layer_digest, "size": layer_size}],
        }),
    );
    let tag = spec.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    manifest_descriptor["platform"] = json!({"architecture": architecture(), "os": "linux"});
    manifest_descriptor["annotations"] =
        json!({"io.containerd.image.name": spec.name, "org.opencontainers.image.ref.name": tag});
    let index = json!({"schemaVersion": 2, "manifests": [manifest_descriptor]});

    let mut tar = tar::Builder::new(out);
    let mut add = |path: &str, size: u64, content: &mut dyn io::Read| {
        let mut header = header(tar::EntryType::Regular, 0o644);
        header.set_size(size);
        tar.append_data(&mut header, path, content)
    };
    let bytes = |value: &Value| value.to_string().into_bytes();
    for (path, content) in [
        ("oci-layout".to_owned(), bytes(&json!({"imageLayoutVersion": "1.0.0"}))),
        ("index.json".to_owned(), bytes(&index)),
        (blob_path(&config_descriptor), config),
        (blob_path(&manifest_descriptor), manifest),
    ] {
        add(&path, content.len() as u64, &mut content.as_slice())?;
    }
    add(&blob_path(&json!({"digest": layer_digest})), layer_size, &mut layer)?;
    tar.finish()?;
    Ok(())
}

fn blob(media_type: &str, content: &Value) -> (Vec<u8>, Value) {
    let bytes = content.to_string().into_bytes();
    let descriptor = json!({
        "mediaType": media_type,
        "digest": format!("sha256:{:x}", Sha256::digest(&bytes)),
        "size": bytes.len(),
    });
    (bytes, descriptor)
}

fn blob_path(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replacen(':', "/", 1))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest_of(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("sha256:{:x}", digest.finalize())),
            length => digest.update(&buffer[..length]),
        }
    }
}

fn write_layer(entries: &BTreeMap<String, Entry>, out: &mut File) -> anyhow::Result<()> {
    let mut tar = tar::Builder::new(io::BufWriter::new(out));
    let mut folders = BTreeSet::new();
    for (path, entry) in entries {
        for folder in Path::new(path).ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let folder = folder.to_string_lossy().into_owned();
            if !folder.is_empty() && !entries.contains_key(&folder) && folders.insert(folder.clone()) {
                tar.append_data(&mut header(tar::EntryType::Directory, 0o755), folder + "/", io::empty())?;
            }
        }
        match entry {
            Entry::File { source, mode } => {
                let file = File::open(source).with_context(|| format!("can't open {}", source.display()))?;
                let mut header = header(tar::EntryType::Regular, *mode);
                header.set_size(file.metadata()?.len());
                tar.append_data(&mut header, path, file)
                    .with_context(|| format!("can't copy {} as /{path}", source.display()))?;
            }
            Entry::Bytes { content, mode } => {
                let mut header = header(tar::EntryType::Regular, *mode);
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_slice())?;
            }
            Entry::Link(target) => {
                tar.append_link(&mut header(tar::EntryType::Symlink, 0o777), path, target)?;
            }
            Entry::Folder { mode } => {
                tar.append_data(
                    &mut header(tar::EntryType::Directory, *mode),
                    format!("{path}/"),
                    io::empty(),
                )?;
            }
        }
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

/// Root's, and of the beginning of time: a build's date would make every image another one.
fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests;
