//! The bpf(2) system call, and nothing more than is called here. The only `unsafe` of the daemons: every structure handed to the kernel
//! is plain old data of a known size, every pointer in it points into a buffer that outlives the call and is at least as long as the
//! kernel was told when the object was made, and every descriptor that comes back is owned from then on.

#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use super::program::Instruction;

// enum bpf_cmd, linux/bpf.h.
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const MAP_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_INFO: libc::c_long = 15;
const MAP_TAKE: libc::c_long = 21;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const LINK_TYPE_CGROUP: u32 = 3;
/// Memory for an entry is taken when it is made.
const NO_PREALLOCATION: u32 = 1;
/// `BPF_FS_MAGIC`, `CGROUP2_SUPER_MAGIC` and `CGROUP_SUPER_MAGIC`, linux/magic.h.
const BPF_FS: i64 = 0xcafe_4a11;
const CGROUP2_FS: i64 = 0x6367_7270;
const CGROUP1_FS: i64 = 0x0027_e0eb;
/// Room for what the verifier has to say.
const LOG_SIZE: usize = 64 << 10;

/// Why the kernel did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A bpf(2) command failed.
    #[error("the kernel can't {what}")]
    Call {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The verifier refused the program.
    #[error("the kernel refuses the device program{}", if log.is_empty() { String::new() } else { format!(": {log}") })]
    Refused {
        /// The verifier's words; empty where it was not asked, as without the right to load a program.
        log: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A path could not be used.
    #[error("can't {what} {}", path.display())]
    Path {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl KernelError {
    /// Whether a capability is missing.
    pub fn is_permission(&self) -> bool {
        let (Self::Call { source, .. } | Self::Refused { source, .. } | Self::Path { source, .. }) = self;
        source.kind() == io::ErrorKind::PermissionDenied
    }

    /// Whether there was nothing at a path.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Path { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Plain old data without padding: one layout for each command of `union bpf_attr`. The kernel takes the rest of the union as zero.
trait Attributes {}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct MapElement {
    map: u32,
    zero: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct GetInfo {
    fd: u32,
    size: u32,
    info: u64,
}

/// For both link commands: descriptor, program or cgroup, and what differs.
#[repr(C)]
struct LinkWords([u32; 4]);

impl Attributes for MapCreate {}
impl Attributes for MapElement {}
impl Attributes for ProgLoad {}
impl Attributes for Object {}
impl Attributes for GetInfo {}
impl Attributes for LinkWords {}

/// The call itself. Negative answers become errors.
fn bpf<A: Attributes>(command: libc::c_long, attributes: &mut A) -> io::Result<i32> {
    // SAFETY: `attributes` is a live, exclusively borrowed structure of exactly the size that is said; what its pointers point to is
    // kept alive by the callers in this file until the call returns, as the head of the file says.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), std::mem::size_of::<A>())
    };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The same for commands that answer with a new descriptor.
fn bpf_fd<A: Attributes>(command: libc::c_long, attributes: &mut A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel has just made this descriptor for us (it sets close-on-exec on all of them), so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn word(fd: impl AsFd) -> u32 {
    // A descriptor is never negative.
    fd.as_fd().as_raw_fd().unsigned_abs()
}

fn address<T>(data: &[T]) -> u64 {
    data.as_ptr() as u64
}

fn address_mut<T>(data: &mut [T]) -> u64 {
    data.as_mut_ptr() as u64
}

fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    // The last byte stays zero.
    for (to, from) in name[..15].iter_mut().zip(text.bytes()) {
        *to = from;
    }
    name
}

fn c_path(path: &Path) -> Result<CString, KernelError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| KernelError::Path {
        what: "use",
        path: path.to_owned(),
        source: io::Error::from(io::ErrorKind::InvalidInput),
    })
}

fn info<const N: usize>(fd: &OwnedFd, what: &'static str) -> Result<[u32; N], KernelError> {
    let mut words = [0_u32; N];
    let size = u32::try_from(std::mem::size_of_val(&words)).unwrap_or_default();
    let mut attributes = GetInfo { fd: word(fd), size, info: address_mut(&mut words) };
    // Writes at most `size` bytes into `words`.
    bpf(OBJ_INFO, &mut attributes).map_err(|source| KernelError::Call { what, source })?;
    Ok(words)
}

/// Makes the object live on at `path`, in a bpffs.
///
/// # Errors
/// When something is there, or it isn't in a bpffs.
fn pin(fd: &OwnedFd, path: &Path) -> Result<(), KernelError> {
    let text = c_path(path)?;
    let mut attributes = Object { path: text.as_ptr() as u64, fd: word(fd), flags: 0 };
    bpf(OBJ_PIN, &mut attributes).map(drop).map_err(|source| KernelError::Path {
        what: "pin a BPF object at",
        path: path.to_owned(),
        source,
    })
}

fn pinned(path: &Path) -> Result<OwnedFd, KernelError> {
    let text = c_path(path)?;
    let mut attributes = Object { path: text.as_ptr() as u64, fd: 0, flags: 0 };
    bpf_fd(OBJ_GET, &mut attributes).map_err(|source| KernelError::Path {
        what: "open the pinned BPF object",
        path: path.to_owned(),
        source,
    })
}

/// How a map is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// Refuses new entries when it is full.
    Hash = 1,
    /// Forgets the least recently used when it is full.
    LruHash = 9,
}

/// What a map shall be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How it is kept.
    pub kind: MapKind,
    /// Its name, at most 15 letters, digits and `_`. It carries the version of what the entries mean.
    pub name: &'static str,
    /// How many entries it takes.
    pub entries: u32,
}

/// A map from `K` bytes to `V` bytes.
#[derive(Debug)]
pub struct Map<const K: usize, const V: usize> {
    fd: OwnedFd,
    entries: u32,
}

impl<const K: usize, const V: usize> Map<K, V> {
    /// Makes an empty one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(layout: Layout) -> Result<Self, KernelError> {
        let mut attributes = MapCreate {
            kind: layout.kind as u32,
            key_size: u32::try_from(K).unwrap_or_default(),
            value_size: u32::try_from(V).unwrap_or_default(),
            max_entries: layout.entries,
            flags: if layout.kind == MapKind::Hash { NO_PREALLOCATION } else { 0 },
            name: name(layout.name),
            ..MapCreate::default()
        };
        let fd = bpf_fd(MAP_CREATE, &mut attributes)
            .map_err(|source| KernelError::Call { what: "make a BPF map", source })?;
        Ok(Self { fd, entries: layout.entries })
    }

    /// Opens a pinned one; none if what is pinned there is not of this layout.
    ///
    /// # Errors
    /// When nothing is pinned there, or it can't be opened.
    pub fn open(path: &Path, layout: Layout) -> Result<Option<Self>, KernelError> {
        let fd = pinned(path)?;
        // struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name[16]. Of a program or link the words mean
        // something else, and can't be all of these by accident.
        let [kind, _, key_size, value_size, entries, _, name_words @ ..] =
            info::<10>(&fd, "describe a BPF map")?;
        let mut found = [0; 16];
        for (to, from) in found.chunks_exact_mut(4).zip(name_words) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        let sizes = (u32::try_from(K).ok(), u32::try_from(V).ok());
        let fits = kind == layout.kind as u32
            && (Some(key_size), Some(value_size)) == sizes
            && entries == layout.entries
            && found == name(layout.name);
        Ok(fits.then_some(Self { fd, entries }))
    }

    /// Keeps it at `path`.
    ///
    /// # Errors
    /// When something is there, or it isn't in a bpffs.
    pub fn pin(&self, path: &Path) -> Result<(), KernelError> {
        pin(&self.fd, path)
    }

    /// Its descriptor, for a program that is about to be loaded.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn element(&self, key: &[u8; K], value_or_next: u64) -> MapElement {
        MapElement { map: word(&self.fd), zero: 0, key: address(key), value_or_next, flags: 0 }
    }

    /// Sets an entry.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set(&self, key: &[u8; K], value: &[u8; V]) -> Result<(), KernelError> {
        bpf(MAP_UPDATE, &mut self.element(key, address(value)))
            .map(drop)
            .map_err(|source| KernelError::Call { what: "write to a BPF map", source })
    }

    /// Removes an entry, if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, key: &[u8; K]) -> Result<(), KernelError> {
        match bpf(MAP_DELETE, &mut self.element(key, 0)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(KernelError::Call { what: "remove from a BPF map", source })
            }
            _ => Ok(()),
        }
    }

    fn read(&self, command: libc::c_long, key: &[u8; K]) -> Result<Option<[u8; V]>, KernelError> {
        let mut value = [0; V];
        match bpf(command, &mut self.element(key, address_mut(&mut value))) {
            Ok(_) => Ok(Some(value)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KernelError::Call { what: "read a BPF map", source }),
        }
    }

    /// An entry's value.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, key: &[u8; K]) -> Result<Option<[u8; V]>, KernelError> {
        self.read(MAP_LOOKUP, key)
    }

    /// Removes an entry and gives its value, in one step.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take(&self, key: &[u8; K]) -> Result<Option<[u8; V]>, KernelError> {
        self.read(MAP_TAKE, key)
    }

    /// Every key. One that comes or goes meanwhile may be missing or be there twice.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keys(&self) -> Result<Vec<[u8; K]>, KernelError> {
        let mut keys: Vec<[u8; K]> = Vec::new();
        // When the last key has gone meanwhile the kernel begins again: that must not go on for ever.
        while keys.len() < 2 * self.entries as usize {
            let mut next = [0; K];
            let to = address_mut(&mut next);
            let mut attributes = match keys.last() {
                Some(last) => self.element(last, to),
                None => MapElement { map: word(&self.fd), zero: 0, key: 0, value_or_next: to, flags: 0 },
            };
            match bpf(MAP_NEXT_KEY, &mut attributes) {
                Ok(_) => keys.push(next),
                Err(source) if source.kind() == io::ErrorKind::NotFound => break,
                Err(source) => return Err(KernelError::Call { what: "list a BPF map", source }),
            }
        }
        Ok(keys)
    }
}

/// A loaded device program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    /// The kernel's number for it.
    pub id: u32,
}

impl Program {
    /// Loads it.
    ///
    /// # Errors
    /// With the verifier's words, when it refuses.
    pub fn load(code: &[Instruction], program_name: &str) -> Result<Self, KernelError> {
        let license = c"Apache-2.0";
        let mut attributes = ProgLoad {
            kind: PROG_TYPE_CGROUP_DEVICE,
            count: u32::try_from(code.len()).unwrap_or(u32::MAX),
            instructions: address(code),
            license: license.as_ptr() as u64,
            attach_type: ATTACH_CGROUP_DEVICE,
            name: name(program_name),
            ..ProgLoad::default()
        };
        let fd = match bpf_fd(PROG_LOAD, &mut attributes) {
            Ok(fd) => fd,
            // Once more, with a buffer for the reasons: without need they cost memory and may be cut off, which is an error again.
            Err(source) => {
                let mut log = vec![0_u8; LOG_SIZE];
                attributes.log_level = 1;
                attributes.log_size = u32::try_from(log.len()).unwrap_or_default();
                attributes.log = address_mut(&mut log);
                if let Ok(fd) = bpf_fd(PROG_LOAD, &mut attributes) {
                    fd
                } else {
                    let length = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                    let log = String::from_utf8_lossy(&log[..length]);
                    let log = log.trim().lines().rev().take(4).collect::<Vec<_>>();
                    let log = log.into_iter().rev().collect::<Vec<_>>().join("; ");
                    return Err(KernelError::Refused { log, source });
                }
            }
        };
        // struct bpf_prog_info: type, id, ...
        let [_, id] = info::<2>(&fd, "describe a BPF program")?;
        Ok(Self { fd, id })
    }
}

/// What holds a program to a cgroup.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

/// How a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// The kernel's number for it.
    pub id: u32,
    /// The program that it holds.
    pub program: u32,
    /// The cgroup's ID; 0 once it was detached, or the cgroup is gone.
    pub cgroup: u64,
}

impl Link {
    /// Attaches a program to a cgroup, beside all that are there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(program: &Program, cgroup: &File) -> Result<Self, KernelError> {
        let mut attributes = LinkWords([word(&program.fd), word(cgroup), ATTACH_CGROUP_DEVICE, 0]);
        let fd = bpf_fd(LINK_CREATE, &mut attributes).map_err(|source| KernelError::Call {
            what: "attach the device program to the cgroup",
            source,
        })?;
        Ok(Self { fd })
    }

    /// Opens a pinned one; none if what is pinned there holds no device program to a cgroup.
    ///
    /// # Errors
    /// When nothing is pinned there, or it can't be opened.
    pub fn open(path: &Path) -> Result<Option<Self>, KernelError> {
        let fd = pinned(path)?;
        // struct bpf_link_info: type, id, prog_id, padding, then for a cgroup: cgroup_id in two words, attach_type.
        let [kind, _, _, _, _, _, attach_type] = info::<7>(&fd, "describe a BPF link")?;
        Ok((kind == LINK_TYPE_CGROUP && attach_type == ATTACH_CGROUP_DEVICE).then_some(Self { fd }))
    }

    /// Puts another program in the place of the one it holds, in one step: no open is ever unguarded.
    ///
    /// # Errors
    /// When it was detached.
    pub fn replace(&self, program: &Program) -> Result<(), KernelError> {
        let mut attributes = LinkWords([word(&self.fd), word(&program.fd), 0, 0]);
        bpf(LINK_UPDATE, &mut attributes)
            .map(drop)
            .map_err(|source| KernelError::Call { what: "replace the device program", source })
    }

    /// Takes the program off the cgroup, whoever else holds the link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&self) -> Result<(), KernelError> {
        bpf(LINK_DETACH, &mut LinkWords([word(&self.fd), 0, 0, 0]))
            .map(drop)
            .map_err(|source| KernelError::Call { what: "detach the device program", source })
    }

    /// How it stands.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn state(&self) -> Result<LinkState, KernelError> {
        let [_, id, program, _, low, high, _] = info::<7>(&self.fd, "describe a BPF link")?;
        let mut cgroup = [0; 8];
        cgroup[..4].copy_from_slice(&low.to_ne_bytes());
        cgroup[4..].copy_from_slice(&high.to_ne_bytes());
        Ok(LinkState { id, program, cgroup: u64::from_ne_bytes(cgroup) })
    }

    /// Keeps it at `path`: the program stays when this process ends.
    ///
    /// # Errors
    /// When something is there, or it isn't in a bpffs.
    pub fn pin(&self, path: &Path) -> Result<(), KernelError> {
        pin(&self.fd, path)
    }
}

fn file_system(path: &Path) -> Result<i64, KernelError> {
    let found = nix::sys::statfs::statfs(path).map_err(|source| KernelError::Path {
        what: "look at",
        path: path.to_owned(),
        source: source.into(),
    })?;
    Ok(found.filesystem_type().0)
}

/// Whether a folder is in a bpffs, where BPF objects can be pinned.
///
/// # Errors
/// When it can't be looked at.
pub fn is_bpffs(path: &Path) -> Result<bool, KernelError> {
    Ok(file_system(path)? == BPF_FS)
}

/// Whether a folder is a cgroup of version 2.
///
/// # Errors
/// When it can't be looked at.
pub fn is_cgroup2(path: &Path) -> Result<bool, KernelError> {
    Ok(file_system(path)? == CGROUP2_FS)
}

/// Whether a folder is a cgroup of version 1.
///
/// # Errors
/// When it can't be looked at.
pub fn is_cgroup1(path: &Path) -> Result<bool, KernelError> {
    Ok(file_system(path)? == CGROUP1_FS)
}
