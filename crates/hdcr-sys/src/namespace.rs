//! Namespaces of the calling process that rustix offers only as an unsafe call.
#![expect(unsafe_code, reason = "unshare is unsafe in general: with CLONE_FILES or CLONE_VM it can break Rust's rules")]

use std::io;

/// `CLONE_NEWTIME` of `linux/sched.h` (Linux 5.6).
const NEW_TIME: i32 = 0x80;

/// Children of this process will live in a new time namespace; its offsets can be set until the first one is born
/// (`time_namespaces(7)`).
pub fn unshare_time() -> io::Result<()> {
    // SAFETY: CLONE_NEWTIME alone changes no memory and no descriptor of this process.
    let answer = unsafe { libc::unshare(NEW_TIME) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
