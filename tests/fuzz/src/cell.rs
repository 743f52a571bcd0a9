//! A thread with a file system and a network of its own, for targets that mount and make things: an empty root in memory, and no way out.
//! It needs root's rights, as what is tried does.

use std::{
    fs, io,
    os::unix::fs::symlink,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{LazyLock, Mutex, PoisonError, mpsc},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{chdir, chroot},
};

type Job = Box<dyn FnOnce() + Send>;

/// What is in the root from the beginning.
const FURNITURE: [&str; 4] = ["kernel", "proc", "node", "resolv.conf"];

/// Does something in there.
///
/// # Panics
/// When it does.
pub fn inside<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    static CELL: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| Mutex::new(build()));
    let (tell, told) = mpsc::channel();
    let job = move || drop(tell.send(catch_unwind(AssertUnwindSafe(job))));
    let sent = CELL.lock().unwrap_or_else(PoisonError::into_inner).send(Box::new(job));
    sent.expect("the cell could be made: that takes root's rights");
    told.recv().expect("every job says how it ended").unwrap_or_else(|panic| resume_unwind(panic))
}

/// Takes away what is in the root and was not from the beginning, and says what that was.
pub fn sweep() -> Vec<String> {
    let entries = fs::read_dir("/").expect("the cell has a root").flatten();
    let left: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let left: Vec<_> = left.into_iter().filter(|name| !FURNITURE.contains(&name.as_str())).collect();
    for name in &left {
        let path = Path::new("/").join(name);
        fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).expect("nothing is mounted there");
    }
    left
}

fn build() -> mpsc::Sender<Job> {
    let (sender, jobs) = mpsc::channel::<Job>();
    thread::spawn(move || {
        enter().expect("a file system and a network of its own");
        for job in jobs {
            job();
        }
    });
    sender
}

fn enter() -> io::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    // Only this thread sees it there.
    let root = std::env::temp_dir();
    mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), Some("size=512m"))?;
    for folder in ["kernel", "proc", "node"] {
        fs::create_dir(root.join(folder))?;
    }
    fs::write(root.join("resolv.conf"), "nameserver 10.0.0.2\nsearch machine.example\n")?;
    mount(Some("/proc"), &root.join("kernel"), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    // To the kernel a process is its first thread, and that one is not in here.
    symlink("/kernel/thread-self", root.join("proc/self"))?;
    symlink("/kernel/meminfo", root.join("proc/meminfo"))?;
    chroot(&root)?;
    chdir("/")?;
    Ok(())
}
