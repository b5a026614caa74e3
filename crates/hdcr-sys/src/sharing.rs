//! A clone of this process that shares its descriptors: whatever one of both opens stays open when it is killed.
#![expect(unsafe_code, reason = "a raw system call")]

use std::io;

/// Who returns from [`fork_sharing_files`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// The caller; the number of its new child.
    Parent(i32),
    /// The child.
    Child,
}

/// Forks this process; both have one table of descriptors from then on. Not for a process with several threads: what
/// they hold, the child would wait for in vain.
pub fn fork_sharing_files() -> io::Result<Who> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let flags = i64::from(libc::CLONE_FILES | libc::SIGCHLD);
    let none: *mut libc::c_void = std::ptr::null_mut();
    // SAFETY: without CLONE_VM the child has its own copy of everything but the descriptors, as after fork(2), and there
    // is no other thread whose locks it could miss; no address is given.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match i32::try_from(result) {
        Ok(0) => Ok(Who::Child),
        Ok(pid) if pid > 0 => Ok(Who::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, running nothing of it.
pub fn exit_at_once(status: i32) -> ! {
    // SAFETY: ends the process; nothing of it is needed any more.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        // The test runner has threads.
        let refused = fork_sharing_files().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
    }
}
