//! How much CPU time answering takes: a benchmark of the agent has to tell the stand-in's work, which is reading files, from the agent's. It is
//! added up in a file of 8 bytes that is mapped, so that whoever measures can read it from outside.

use std::{
    cell::Cell,
    fs::File,
    os::fd::AsRawFd as _,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::folder;

/// None: nobody wants to know.
static SUM: OnceLock<Option<&AtomicU64>> = OnceLock::new();

thread_local! {
    /// Questions are asked within questions.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

fn sum() -> Option<&'static AtomicU64> {
    *SUM.get_or_init(|| {
        let file = File::options().read(true).write(true).open(folder::root().join("spent")).ok()?;
        if file.metadata().ok()?.len() != size_of::<AtomicU64>() as u64 {
            return None;
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of as many bytes as the file has; it is never unmapped.
        let place = unsafe {
            libc::mmap(ptr::null_mut(), size_of::<AtomicU64>(), access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        // SAFETY: it is the beginning of a page, has the bytes of a number, stays for ever, and others only read it.
        (place != libc::MAP_FAILED).then(|| unsafe { &*place.cast::<AtomicU64>() })
    })
}

/// The CPU time of this thread.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock writes to `time`, which outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// From its beginning until it is dropped, time is counted.
pub(crate) struct Counted {
    since: Option<u64>,
}

impl Counted {
    pub(crate) fn begin() -> Self {
        let outermost = DEPTH.replace(DEPTH.get() + 1) == 0;
        Self { since: (outermost && sum().is_some()).then(now) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        if let (Some(since), Some(sum)) = (self.since, sum()) {
            sum.fetch_add(now().saturating_sub(since), Ordering::Relaxed);
        }
    }
}
