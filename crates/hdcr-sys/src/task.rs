//! Single calls about one thread that no crate wraps.
#![expect(unsafe_code, reason = "raw system calls")]

use nix::Result;
use nix::errno::Errno;

/// Sends a signal to one thread of a process (`tgkill(2)`).
pub fn signal_thread(pid: i32, tid: i32, signal: i32) -> Result<()> {
    // SAFETY: three numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}

/// Head and length of a thread's list of robust futexes (`get_robust_list(2)`).
pub fn robust_list(tid: i32) -> Result<(u64, u64)> {
    let mut head = 0u64;
    let mut len = 0u64;
    let (head_to, len_to) = (&raw mut head, &raw mut len);
    // SAFETY: the kernel writes one word to each of two live locals.
    Errno::result(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, head_to, len_to) })?;
    Ok((head, len))
}

/// Whether the kernel takes the lower half of `rax` alone for the number of a system call (Linux 5.14; before that it
/// knew no such number).
pub fn number_is_lower_half(upper_half: u64) -> bool {
    let Ok(number) = (upper_half << 32 | libc::SYS_getpid.cast_unsigned()).try_into() else {
        return false;
    };
    // SAFETY: a call without arguments that only returns a number, or none that exists.
    let got = unsafe { libc::syscall(number) };
    got == i64::from(nix::unistd::getpid().as_raw())
}
