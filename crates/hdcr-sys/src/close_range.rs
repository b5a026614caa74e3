//! `close_range(2)` with `CLOSE_RANGE_CLOEXEC` (Linux 5.11).
#![expect(unsafe_code, reason = "close_range has no safe wrapper")]

use std::io;

/// `CLOSE_RANGE_CLOEXEC` of `linux/close_range.h`.
const CLOEXEC: u32 = 4;

/// Lets every descriptor from this number on be closed by the next `execve`.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no descriptor is closed here, only a flag of each is set: whoever owns one keeps it.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
