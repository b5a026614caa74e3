//! Syscall user dispatch (`PR_SET_SYSCALL_USER_DISPATCH`) of a stopped tracee.
#![expect(unsafe_code, reason = "the request has no safe wrapper")]

use nix::Result;
use nix::errno::Errno;

/// `PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG` (Linux 6.4).
const GET_CONFIG: libc::c_long = 0x4211;

/// `struct ptrace_sud_config` of `linux/ptrace.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Config {
    mode: u64,
    selector: u64,
    offset: u64,
    len: u64,
}

/// Whether the thread's system calls are handed to itself; `None` when this kernel does not tell.
pub fn is_on(tid: i32) -> Result<Option<bool>> {
    let mut config = Config::default();
    let to = &raw mut config;
    // SAFETY: the kernel writes at most the given size to a live local.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, GET_CONFIG, tid, size_of::<Config>(), to) };
    match Errno::result(result) {
        Ok(_) => Ok(Some(config.mode != 0)),
        Err(Errno::EIO | Errno::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_a_tracee_can_be_asked() {
        assert!(super::is_on(1).is_err());
    }
}
