//! The pause container: holds a pod's namespaces open, and is process 1 where the pod shares its process namespace.
//!
//! Compiled by itself into a static program, without crates. It sleeps until it is told to end, and lets the kernel reap orphans.

use std::ffi::c_int;

const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIGCHLD: c_int = 17;
const SIG_BLOCK: c_int = 0;
const SIG_IGN: usize = 1;

/// `sigset_t` of Linux' C libraries: 1,024 bits.
#[repr(C)]
struct SignalSet([u64; 16]);

unsafe extern "C" {
    fn signal(signal: c_int, handler: usize) -> usize;
    fn sigaddset(set: *mut SignalSet, signal: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn sigwait(set: *const SignalSet, signal: *mut c_int) -> c_int;
}

fn main() {
    let mut set = SignalSet([0; 16]);
    let mut received: c_int = 0;
    // SAFETY: every pointer is to a live local of the type that the C library declares; the old mask may be null. The process has
    // one thread and no handlers.
    unsafe {
        // An ignored SIGCHLD makes the kernel reap children itself: no zombies stay.
        signal(SIGCHLD, SIG_IGN);
        sigaddset(&raw mut set, SIGINT);
        sigaddset(&raw mut set, SIGTERM);
        // Process 1 gets only signals that it handles or blocks.
        sigprocmask(SIG_BLOCK, &raw const set, std::ptr::null_mut());
        sigwait(&raw const set, &raw mut received);
    }
}
