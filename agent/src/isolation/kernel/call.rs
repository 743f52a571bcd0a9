//! The bpf(2) system call: the only `unsafe` of isolation. What is offered is safe to call with any arguments: every structure handed to
//! the kernel is plain old data of a known size; every pointer in it points into a buffer that is borrowed until the call returns, and
//! is as long as the kernel takes it to be, which is checked against what it said of the map; every descriptor that comes back is
//! owned from then on.

#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::MapKind;
use crate::isolation::program::Instruction;

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
pub(super) const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Memory for an entry is taken when it is made.
const NO_PREALLOCATION: u32 = 1;

/// As the kernel keeps names: zeros fill it, the last byte is one.
pub(super) type Name = [u8; 16];

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
    name: Name,
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
    name: Name,
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

/// For the link commands: descriptor, program or cgroup, and what differs.
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
    // borrowed by the callers in this file until the call returns, and as long as the head of the file says.
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

fn size(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn address<T>(data: &[T]) -> u64 {
    data.as_ptr() as u64
}

fn address_mut<T>(data: &mut [T]) -> u64 {
    data.as_mut_ptr() as u64
}

/// What the kernel says of an object, as its words; those that it doesn't fill are zero.
pub(super) fn info<const N: usize>(fd: impl AsFd) -> io::Result<[u32; N]> {
    let mut words = [0; N];
    let size = size(std::mem::size_of_val(&words))?;
    let mut attributes = GetInfo { fd: word(fd), size, info: address_mut(&mut words) };
    // Writes at most `size` bytes into `words`, which as zeros point to no further buffers.
    bpf(OBJ_INFO, &mut attributes)?;
    Ok(words)
}

/// Makes the object live on at `path`, in a bpffs.
pub(super) fn pin(fd: &OwnedFd, path: &CStr) -> io::Result<()> {
    let mut attributes = Object { path: path.as_ptr() as u64, fd: word(fd), flags: 0 };
    bpf(OBJ_PIN, &mut attributes).map(drop)
}

/// Opens what is pinned at `path`.
pub(super) fn pinned(path: &CStr) -> io::Result<OwnedFd> {
    bpf_fd(OBJ_GET, &mut Object { path: path.as_ptr() as u64, fd: 0, flags: 0 })
}

/// A map, and how long its keys and values are.
#[derive(Debug)]
pub(super) struct MapFd {
    fd: OwnedFd,
    key: usize,
    value: usize,
}

/// What the kernel says of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapInfo {
    pub(super) kind: MapKind,
    pub(super) key: u32,
    pub(super) value: u32,
    pub(super) entries: u32,
    pub(super) name: Name,
}

impl MapFd {
    /// Makes a map.
    pub(super) fn create(info: MapInfo) -> io::Result<Self> {
        let mut attributes = MapCreate {
            kind: info.kind as u32,
            key_size: info.key,
            value_size: info.value,
            max_entries: info.entries,
            flags: if info.kind == MapKind::Hash { NO_PREALLOCATION } else { 0 },
            name: info.name,
            ..MapCreate::default()
        };
        let fd = bpf_fd(MAP_CREATE, &mut attributes)?;
        Ok(Self { fd, key: info.key as usize, value: info.value as usize })
    }

    /// Takes a descriptor for a map; none if it is none of the kinds that we know: of others the kernel writes more than a value's size.
    pub(super) fn of(fd: OwnedFd) -> io::Result<Option<(Self, MapInfo)>> {
        // struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name[16]. Of a program or link the words mean
        // something else; then no command for maps takes the descriptor.
        let [kind, _, key, value, entries, _, words @ ..] = info::<10>(&fd)?;
        let Some(kind) = [MapKind::Hash, MapKind::LruHash].into_iter().find(|known| *known as u32 == kind)
        else {
            return Ok(None);
        };
        let mut name = [0; 16];
        for (to, from) in name.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        let map = Self { fd, key: key as usize, value: value as usize };
        Ok(Some((map, MapInfo { kind, key, value, entries, name })))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn element(&self, key: &[u8], value_or_next: u64) -> io::Result<MapElement> {
        fits(key, self.key)?;
        Ok(MapElement { map: word(&self.fd), zero: 0, key: address(key), value_or_next, flags: 0 })
    }

    pub(super) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        fits(value, self.value)?;
        bpf(MAP_UPDATE, &mut self.element(key, address(value))?).map(drop)
    }

    pub(super) fn delete(&self, key: &[u8]) -> io::Result<()> {
        bpf(MAP_DELETE, &mut self.element(key, 0)?).map(drop)
    }

    pub(super) fn look_up(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        fits(value, self.value)?;
        bpf(MAP_LOOKUP, &mut self.element(key, address_mut(value))?).map(drop)
    }

    /// Looks it up and removes it, in one step.
    pub(super) fn take(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        fits(value, self.value)?;
        bpf(MAP_TAKE, &mut self.element(key, address_mut(value))?).map(drop)
    }

    /// The key after this one, or the first.
    pub(super) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<()> {
        fits(next, self.key)?;
        let to = address_mut(next);
        let mut attributes = match key {
            Some(key) => self.element(key, to)?,
            None => MapElement { map: word(&self.fd), zero: 0, key: 0, value_or_next: to, flags: 0 },
        };
        bpf(MAP_NEXT_KEY, &mut attributes).map(drop)
    }
}

fn fits(buffer: &[u8], size: usize) -> io::Result<()> {
    if buffer.len() == size { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Loads a device program; the verifier's words go to `log`, if there is one.
pub(super) fn load(code: &[Instruction], name: Name, log: Option<&mut [u8]>) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: size(code.len())?,
        instructions: address(code),
        license: c"Apache-2.0".as_ptr() as u64,
        attach_type: ATTACH_CGROUP_DEVICE,
        name,
        ..ProgLoad::default()
    };
    if let Some(log) = log {
        attributes.log_level = 1;
        attributes.log_size = size(log.len())?;
        attributes.log = address_mut(log);
    }
    bpf_fd(PROG_LOAD, &mut attributes)
}

/// Attaches a device program to a cgroup, beside all that are there.
pub(super) fn attach(program: &OwnedFd, cgroup: impl AsFd) -> io::Result<OwnedFd> {
    bpf_fd(LINK_CREATE, &mut LinkWords([word(program), word(cgroup), ATTACH_CGROUP_DEVICE, 0]))
}

/// Puts another program into a link.
pub(super) fn replace(link: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    bpf(LINK_UPDATE, &mut LinkWords([word(link), word(program), 0, 0])).map(drop)
}

/// Ends a link, whoever else holds it.
pub(super) fn detach(link: &OwnedFd) -> io::Result<()> {
    bpf(LINK_DETACH, &mut LinkWords([word(link), 0, 0, 0])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_another_size_never_reach_the_kernel() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let map = MapFd { fd: file.into(), key: 4, value: 8 };
        let refused = |answer: io::Result<()>| {
            // Our own errors have no number.
            let error = answer.unwrap_err();
            error.kind() == io::ErrorKind::InvalidInput && error.raw_os_error().is_none()
        };
        for (key, value) in [(3, 8), (5, 8), (4, 7), (4, 9), (0, 0)] {
            let (key, mut value) = (vec![0; key], vec![0; value]);
            assert!(refused(map.update(&key, &value)));
            assert!(refused(map.look_up(&key, &mut value)));
            assert!(refused(map.take(&key, &mut value)));
        }
        assert!(refused(map.delete(&[0; 8])));
        assert!(refused(map.next_key(None, &mut [0; 8])));
        assert!(refused(map.next_key(Some(&[0; 3]), &mut [0; 4])));
        // Those that fit do: that it is no map, or that it isn't ours to ask, is the kernel's answer.
        assert!(map.update(&[0; 4], &[0; 8]).unwrap_err().raw_os_error().is_some());
    }
}
