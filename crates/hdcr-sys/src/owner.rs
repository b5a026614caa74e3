//! `F_GETOWN_EX`, `F_SETOWN_EX`, `F_GETSIG`, `F_SETSIG` (fcntl(2)): who is told about an open file, by which signal.
#![expect(unsafe_code, reason = "these fcntl operations have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;

/// `struct f_owner_ex`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Owner {
    /// 0 a thread, 1 a process, 2 a process group.
    pub kind: i32,
    /// Its number, 0: nobody.
    pub pid: i32,
}

/// Who is told, and by which signal (0: `SIGIO` without further facts).
pub fn get(file: impl AsFd) -> io::Result<(Owner, i32)> {
    let fd = file.as_fd().as_raw_fd();
    let mut owner = Owner::default();
    // SAFETY: the pointer leads to an f_owner_ex of our own that outlives the call.
    let answer = unsafe { libc::fcntl(fd, F_GETOWN_EX, &raw mut owner) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_GETSIG takes no argument.
    let signal = unsafe { libc::fcntl(fd, F_GETSIG) };
    if signal < 0 { Err(io::Error::last_os_error()) } else { Ok((owner, signal)) }
}

/// Sets both.
pub fn set(file: impl AsFd, owner: Owner, signal: i32) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the pointer leads to an f_owner_ex of our own that outlives the call.
    let answer = unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETSIG takes an integer.
    let answer = unsafe { libc::fcntl(fd, F_SETSIG, signal) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
