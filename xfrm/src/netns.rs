//! Network namespaces for probes and tests.
//!
//! Duty: run a closure on a thread of its own in a fresh, empty network namespace, so that
//! nothing it tries can touch the machine. The namespace goes with the thread and the last file
//! descriptor opened in it.

use std::io;
use std::thread;

/// Runs `work` in a fresh network namespace and returns what it returns. Sockets opened and
/// processes started inside belong to that namespace.
///
/// # Errors
/// When the namespace cannot be made (no CAP_SYS_ADMIN) or `work` panics.
pub fn in_fresh_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        scope
            .spawn(move || {
                leave_namespace()?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

#[allow(unsafe_code)]
fn leave_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET changes only which network namespace the calling thread's later
    // system calls use. It shares or unshares no memory, files or signal handlers, so no
    // invariant of other threads depends on it; the thread is ours and ends soon.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .map_err(io::Error::from)
}
