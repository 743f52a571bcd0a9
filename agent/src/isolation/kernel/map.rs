//! Maps that the device program and the agent share.

use std::{
    io,
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
};

use super::{
    KernelError,
    call::{self, MapFd, MapInfo},
    name, pin, pinned,
};

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

impl Layout {
    fn info<const K: usize, const V: usize>(self) -> MapInfo {
        let size = |bytes| u32::try_from(bytes).unwrap_or_default();
        let Self { kind, entries, .. } = self;
        MapInfo { kind, key: size(K), value: size(V), entries, name: name(self.name) }
    }
}

/// A map from `K` bytes to `V` bytes.
#[derive(Debug)]
pub struct Map<const K: usize, const V: usize> {
    map: MapFd,
    entries: u32,
}

impl<const K: usize, const V: usize> Map<K, V> {
    /// Makes an empty one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(layout: Layout) -> Result<Self, KernelError> {
        let map = MapFd::create(layout.info::<K, V>());
        let map = map.map_err(|source| KernelError::Call { what: "make a BPF map", source })?;
        Ok(Self { map, entries: layout.entries })
    }

    /// Opens a pinned one; none if what is pinned there is not of this layout.
    ///
    /// # Errors
    /// When nothing is pinned there, or it can't be opened.
    pub fn open(path: &Path, layout: Layout) -> Result<Option<Self>, KernelError> {
        let found = MapFd::of(pinned(path)?)
            .map_err(|source| KernelError::Call { what: "describe a BPF map", source })?;
        let fitting = found.filter(|(_, info)| *info == layout.info::<K, V>());
        Ok(fitting.map(|(map, _)| Self { map, entries: layout.entries }))
    }

    /// Keeps it at `path`.
    ///
    /// # Errors
    /// When something is there, or it isn't in a bpffs.
    pub fn pin(&self, path: &Path) -> Result<(), KernelError> {
        pin(self.map.fd(), path)
    }

    /// The kernel's number for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn id(&self) -> Result<u32, KernelError> {
        // struct bpf_map_info: type, id, ...
        let info = call::info(self.map.fd());
        info.map(|[_, id]| id).map_err(|source| KernelError::Call { what: "describe a BPF map", source })
    }

    /// Whether it is the one that is pinned at `path`.
    ///
    /// # Errors
    /// When nothing is pinned there, or it can't be opened.
    pub fn is_at(&self, path: &Path) -> Result<bool, KernelError> {
        let found = MapFd::of(pinned(path)?);
        let found = found.map_err(|source| KernelError::Call { what: "describe a BPF map", source })?;
        match found {
            Some((map, _)) => Ok(Self { map, entries: self.entries }.id()? == self.id()?),
            None => Ok(false),
        }
    }

    /// Its descriptor, for a program that is about to be loaded.
    pub fn raw(&self) -> RawFd {
        self.map.fd().as_raw_fd()
    }

    /// Sets an entry.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set(&self, key: &[u8; K], value: &[u8; V]) -> Result<(), KernelError> {
        self.map.update(key, value).map_err(|source| KernelError::Call { what: "write to a BPF map", source })
    }

    /// Removes an entry, if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, key: &[u8; K]) -> Result<(), KernelError> {
        found(self.map.delete(key), "remove from a BPF map").map(drop)
    }

    /// An entry's value.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, key: &[u8; K]) -> Result<Option<[u8; V]>, KernelError> {
        let mut value = [0; V];
        Ok(found(self.map.look_up(key, &mut value), "read a BPF map")?.then_some(value))
    }

    /// Removes an entry and gives its value, in one step.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take(&self, key: &[u8; K]) -> Result<Option<[u8; V]>, KernelError> {
        let mut value = [0; V];
        Ok(found(self.map.take(key, &mut value), "read a BPF map")?.then_some(value))
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
            let before = keys.last().map(<[u8; K]>::as_slice);
            if !found(self.map.next_key(before, &mut next), "list a BPF map")? {
                break;
            }
            keys.push(next);
        }
        Ok(keys)
    }
}

/// Whether it was there.
fn found(answer: io::Result<()>, what: &'static str) -> Result<bool, KernelError> {
    match answer {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(KernelError::Call { what, source }),
    }
}
