//! `signalfd(2)` by the kernel's own mask of 64 signals, real-time signals and all.
#![expect(unsafe_code, reason = "rustix has no signalfd, and that of nix knows no real-time signals")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A new signalfd, closed on exec; bit n-1 of the mask stands for signal n.
pub fn new(mask: u64) -> io::Result<OwnedFd> {
    let size = size_of_val(&mask);
    // SAFETY: the kernel reads `size` bytes from `mask`, which lives until after the call.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size, libc::SFD_CLOEXEC) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
