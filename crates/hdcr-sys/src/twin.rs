//! A child that goes on in the program image of its parent (`fork(2)`), which costs a tenth of a start by `execve(2)`.
#![expect(
    unsafe_code,
    reason = "fork is unsafe in general: a child of several threads has only one of them, and all their locks"
)]

use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{fs, process};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::{ForkResult, Pid, fork};

/// A child that does `work` with this descriptor as its standard input, and then ends with the status that `work` returns, or
/// with 101 where it panics; its process id. It has `/dev/null` as standard output, the standard error of this process and no
/// other descriptor, and starts with all signals blocked. Nothing that this process has still to write or to drop is written or
/// dropped by it.
///
/// # Errors
/// `EBUSY` when this process has other threads, and what `fork(2)` says.
pub fn start(input: BorrowedFd<'_>, work: impl FnOnce() -> i32) -> io::Result<i32> {
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let born = alone().and_then(|()| {
        // SAFETY: there is no other thread whose locks and half done work the child could meet, so it is as free to go on as
        // this process is. It never returns from here.
        Ok(unsafe { fork() }?)
    });
    match born {
        Ok(ForkResult::Child) => {
            let status = catch_unwind(AssertUnwindSafe(|| {
                let done = rustix::stdio::dup2_stdin(input)
                    .and_then(|()| rustix::stdio::dup2_stdout(&null))
                    .is_ok_and(|()| close_from(3));
                if done { work() } else { 71 }
            }));
            // SAFETY: it ends at once, and runs nothing of what was registered for the end of this process.
            unsafe { libc::_exit(status.unwrap_or(101)) }
        }
        born => {
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            match born? {
                ForkResult::Parent { child } => Ok(Pid::as_raw(child)),
                ForkResult::Child => process::abort(),
            }
        }
    }
}

/// Whether this process has one thread only. With all signals blocked it stays so.
fn alone() -> io::Result<()> {
    if fs::read_dir("/proc/self/task")?.count() == 1 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EBUSY)) }
}

/// Closes all descriptors from this number on.
fn close_from(first: u32) -> bool {
    // SAFETY: what owns them is the parent's; the child neither uses nor drops it.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    /// Test programs have threads; what one without does is shown by every checkpoint by hand.
    #[test]
    fn a_process_with_threads_has_no_twin() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let before = SigSet::thread_get_mask().unwrap();
        let refused = std::thread::spawn(move || start(near.as_fd(), || 0)).join().unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
