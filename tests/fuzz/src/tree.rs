//! A folder that looks like a machine's `/sys`, `/dev` and `/proc`, and that bytes spoil.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use arbitrary::{Result, Unstructured};
use tempfile::TempDir;

/// What an attribute may say besides what the bytes say.
const VALUES: [&[u8]; 24] = [
    b"",
    b"\n",
    b"0\n",
    b"1\n",
    b"0x0\n",
    b"0x1\n",
    b"-1\n",
    b"6\n",
    b"+0\n",
    b"0x+0\n",
    b"00\n",
    b"18446744073709551615\n",
    b"18446744073709551616\n",
    b"0xffffffffffffffff\n",
    b"ffffffffffffffffffffffffffffffff\n",
    b"00000000000000000000000000000000\n",
    b"57a4d1000000000000000000000000af\n",
    b"57A4D1000000000000000000000000AF",
    b"operating\n",
    b"write error\n",
    b"../../../etc/passwd\n",
    b"xilinx_u250_gen3x16_xdma_shell_4_1\n",
    b"\0\0\0\0",
    b"\xff\xfe\n",
];
/// Where links may lead besides other places in the tree.
const TARGETS: [&str; 6] = ["/", "/dev", "..", ".", "/proc/self/root/etc", "nowhere"];
/// Names that entries may get besides what the bytes say.
const NAMES: [&str; 20] = [
    "dfl-port.0",
    "dfl-port.4294967295",
    "dfl-port.+1",
    "dfl-fme.1",
    "dfl-fme-region.7",
    "region1",
    "region4294967296",
    "intel-fpga-port.2",
    "intel-fpga-dev.3",
    "renderD200",
    "dma.qdma.u.9",
    "rom.u.0",
    "mgmt_pf",
    "user_pf",
    "uio",
    "uio7",
    "hwmon9",
    "0000:65:00.2",
    "xclmgmt0",
    "nvidia-cap1",
];
/// More is no longer a small machine.
const MOST_EDITS: u8 = 12;

/// The folder; gone with the value.
#[derive(Debug)]
pub struct Tree {
    folder: TempDir,
    places: Vec<String>,
}

impl Tree {
    /// An empty machine.
    ///
    /// # Panics
    /// When the temporary folder can't be used: that is no finding.
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        debug_assert_eq!(fs::canonicalize(folder.path()).ok().as_deref(), Some(folder.path()));
        for root in ["sys", "dev", "proc"] {
            fs::create_dir(folder.path().join(root)).expect("a folder in a fresh one");
        }
        Self { folder, places: Vec::new() }
    }

    /// Where a root is.
    pub fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Writes an attribute that should be there.
    pub fn set(&mut self, path: &str, value: impl AsRef<[u8]>) {
        let _ = write(&self.at(path), value.as_ref());
        self.places.push(path.to_owned());
    }

    /// Makes a link that should be there.
    pub fn link(&mut self, path: &str, target: &str) {
        let _ = make_link(&self.at(path), Path::new(target));
        self.places.push(path.to_owned());
    }

    /// Makes an entry of a class for the folder `below` of a device, and links both as the kernel does.
    pub fn class(&mut self, class: &str, entry: &str, device: &str, below: &str) {
        let up = "../".repeat(below.split('/').count());
        self.link(&format!("sys/{device}/{below}/device"), up.trim_end_matches('/'));
        self.link(&format!("sys/class/{class}/{entry}"), &format!("../../{device}/{below}"));
    }

    /// Does what the bytes say to some of the places. How many edits there were.
    ///
    /// # Errors
    /// When the bytes are used up.
    pub fn spoil(&self, bytes: &mut Unstructured<'_>) -> Result<u8> {
        let edits = bytes.int_in_range(0..=MOST_EDITS)?;
        for _ in 0..edits {
            let place = self.at(bytes.choose(&self.places)?);
            if !self.has(&place) {
                continue;
            }
            // What fails changes nothing, which is an edit, too.
            let _ = match bytes.int_in_range(0..=9_u8)? {
                0..=2 => write(&place, bytes.choose(&VALUES)?),
                3..=4 => {
                    let length = bytes.int_in_range(0..=80_usize)?.min(bytes.len());
                    write(&place, bytes.bytes(length)?)
                }
                5 => {
                    let value = bytes.arbitrary::<u8>()?;
                    write(&place, &vec![value; bytes.int_in_range(4000..=5000)?])
                }
                6 => remove(&place),
                7 => {
                    let target = if bytes.arbitrary()? {
                        self.at(bytes.choose(&self.places)?)
                    } else {
                        PathBuf::from(bytes.choose(&TARGETS)?)
                    };
                    remove(&place).and_then(|()| make_link(&place, &target))
                }
                8 => fs::rename(&place, sibling(&place, bytes)?),
                _ => {
                    copy(place.parent().unwrap_or(&place), &sibling(place.parent().unwrap_or(&place), bytes)?)
                }
            };
        }
        Ok(edits)
    }
}

impl Tree {
    /// Whether a place is in the tree: a link in its way may lead out of it by now, and nobody's files are written to.
    fn has(&self, place: &Path) -> bool {
        let folders = [place.parent(), place.parent().and_then(Path::parent)];
        folders.into_iter().flatten().all(|folder| match fs::canonicalize(folder) {
            Ok(folder) => folder.starts_with(self.folder.path()),
            Err(_) => true,
        })
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// A path beside this one, of any name that an entry can have.
fn sibling(place: &Path, bytes: &mut Unstructured<'_>) -> Result<PathBuf> {
    let name = if bytes.arbitrary()? {
        (*bytes.choose(&NAMES)?).to_owned()
    } else {
        bytes.arbitrary::<&str>()?.chars().filter(|letter| !"/\0".contains(*letter)).take(40).collect()
    };
    let name = if matches!(name.as_str(), "" | "." | "..") { "x".to_owned() } else { name };
    Ok(place.with_file_name(name))
}

fn write(path: &Path, value: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Never through a link: it may lead out of the tree.
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    fs::write(path, value)
}

fn make_link(path: &Path, target: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    symlink(target, path)
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// A folder's files and links once more, one level deep.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let kind = entry.file_type()?;
        let to = to.join(entry.file_name());
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, to)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
