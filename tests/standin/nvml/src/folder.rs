//! The folder beside the library, read anew at every question. Whatever is missing or nonsense is "not there".

use std::{
    ffi::{CStr, CString, OsStr, c_void},
    fs,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    str::FromStr,
    sync::OnceLock,
    thread,
    time::Duration,
};

use nvml_wrapper_sys::bindings::nvmlEventTypeXidCriticalError;

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// `<library>.d`.
pub(crate) fn root() -> &'static Path {
    ROOT.get_or_init(|| {
        // SAFETY: an all-zero Dl_info is a valid one; dladdr fills it.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        // SAFETY: the address is of this very function, `info` outlives the call.
        let found = unsafe { libc::dladdr(root as *const c_void, &raw mut info) };
        if found == 0 || info.dli_fname.is_null() {
            return PathBuf::new();
        }
        // SAFETY: dladdr succeeded, so the name is a C string that lives as long as the library is loaded.
        let library = unsafe { CStr::from_ptr(info.dli_fname) };
        let mut path = OsStr::from_bytes(library.to_bytes()).to_owned();
        path.push(".d");
        PathBuf::from(path)
    })
}

/// The driver's version; none means that the driver is not loaded. Every question begins with it, so this is where they hang.
pub(crate) fn driver_version() -> Option<String> {
    while root().join("hang").exists() {
        thread::sleep(Duration::from_millis(20));
    }
    text(root(), "driver-version")
}

/// The folders of all GPUs, in the order of the PCI bus.
pub(crate) fn gpus() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("gpus")).into_iter().flatten().flatten();
    let mut gpus: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| uuid(path).starts_with("GPU-")).collect();
    gpus.sort_by_cached_key(|gpu| (text(gpu, "bus-id"), gpu.clone()));
    gpus
}

/// The UUID of the GPU in this folder.
pub(crate) fn uuid(gpu: &Path) -> String {
    gpu.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether the GPU or MIG device can't be asked: it is marked so, or its folder is gone.
pub(crate) fn lost(device: &Path) -> bool {
    !device.is_dir() || device.join("lost").exists() || parent(device).is_some_and(|gpu| lost(&gpu))
}

/// The GPU of a MIG device.
pub(crate) fn parent(mig: &Path) -> Option<PathBuf> {
    let folder = mig.parent()?;
    (folder.file_name()? == "mig").then(|| folder.parent().map(Path::to_owned)).flatten()
}

/// The folders of a GPU's MIG devices, in the order of their instances; none where MIG is not enabled.
pub(crate) fn migs(gpu: &Path) -> Vec<PathBuf> {
    if number::<u32>(gpu, "mig-mode") != Some(1) {
        return Vec::new();
    }
    let entries = fs::read_dir(gpu.join("mig")).into_iter().flatten().flatten();
    let mut migs: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| uuid(path).starts_with("MIG-")).collect();
    migs.sort_by_cached_key(|mig| (number::<u32>(mig, "gi"), number::<u32>(mig, "ci"), mig.clone()));
    migs
}

/// A text attribute.
pub(crate) fn text(folder: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(folder.join(name)).ok()?.trim().to_owned())
}

/// A number attribute.
pub(crate) fn number<T: FromStr>(gpu: &Path, name: &str) -> Option<T> {
    text(gpu, name)?.parse().ok()
}

/// A file beside the GPUs.
pub(crate) fn of_the_machine(name: &str) -> Option<String> {
    text(root(), name)
}

/// An event.
pub(crate) struct Event {
    pub(crate) uuid: String,
    pub(crate) kind: u64,
    /// The XID, if it is one.
    pub(crate) number: u64,
    pub(crate) instance: Option<(u32, u32)>,
}

/// Changes of the files that lie directly in the folder.
pub(crate) struct Changes(OwnedFd);

impl Changes {
    /// From now on; none where inotify is not available.
    pub(crate) fn watch() -> Option<Self> {
        let path = CString::new(root().as_os_str().as_bytes()).ok()?;
        // SAFETY: takes no pointer.
        let descriptor = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        if descriptor < 0 {
            return None;
        }
        // SAFETY: the kernel has just given it to us, and nobody else closes it.
        let inotify = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let events = libc::IN_CREATE | libc::IN_MODIFY | libc::IN_MOVED_TO;
        // SAFETY: the path is a C string that outlives the call.
        let watch = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), events) };
        (watch >= 0).then_some(Self(inotify))
    }

    /// Waits for one, but no longer than this.
    pub(crate) fn wait(&self, within: Duration) {
        let milliseconds = i32::try_from(within.as_millis()).unwrap_or(i32::MAX).max(1);
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut events = [0_u8; 4096];
        // SAFETY: one pollfd and a buffer of the size that is given, both of which outlive the calls.
        unsafe {
            if libc::poll(&raw mut poll, 1, milliseconds) > 0 {
                libc::read(self.0.as_raw_fd(), events.as_mut_ptr().cast(), events.len());
            }
        }
    }
}

/// The kinds of events that a GPU has.
pub(crate) fn event_types(gpu: &Path) -> u64 {
    number(gpu, "event-types").unwrap_or(nvmlEventTypeXidCriticalError.into())
}

/// All events so far. A line that is still being written is not one yet.
pub(crate) fn events() -> Vec<Event> {
    let text = fs::read_to_string(root().join("xids")).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| {
            let mut words = line.split_whitespace();
            let uuid = words.next().unwrap_or_default().to_owned();
            let word = words.next().unwrap_or_default();
            let (kind, number) = match word.strip_prefix("type=") {
                Some(kind) => (kind.parse().unwrap_or_default(), 0),
                None => (nvmlEventTypeXidCriticalError.into(), word.parse().unwrap_or_default()),
            };
            Event { uuid, kind, number, instance: pair(words) }
        })
        .collect()
}

/// A process on a GPU.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) mib: Option<u64>,
    pub(crate) kind: String,
    pub(crate) instance: Option<(u32, u32)>,
}

/// The processes on a GPU.
pub(crate) fn processes(gpu: &Path) -> Vec<Process> {
    let text = text(gpu, "processes").unwrap_or_default();
    let process = |line: &str| {
        let mut words = line.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let mib = words.next()?.parse().ok();
        let kind = words.next()?.to_owned();
        Some(Process { pid, mib, kind, instance: pair(words) })
    };
    text.lines().filter_map(process).collect()
}

fn pair<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<(u32, u32)> {
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}
