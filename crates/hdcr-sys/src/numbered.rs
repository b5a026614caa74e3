//! A file at a certain descriptor number of this process, for the time of one call.
#![expect(unsafe_code, reason = "descriptors are taken and given back by number")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs `act` while the file has this number here. Whatever had the number before has it again afterwards; `act` must not
/// use that. Not for a process with other threads that open or use files.
pub fn with<T>(file: BorrowedFd<'_>, number: i32, act: impl FnOnce(BorrowedFd<'_>) -> T) -> io::Result<T> {
    if file.as_raw_fd() == number {
        return Ok(act(file));
    }
    // SAFETY: F_GETFD takes no argument and touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    let before = if flags < 0 {
        None
    } else {
        // SAFETY: F_DUPFD_CLOEXEC takes a number and touches no memory.
        let copy = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, number.saturating_add(1)) })?;
        // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
        Some(unsafe { OwnedFd::from_raw_fd(copy) })
    };
    // SAFETY: the number is free, or a copy of what had it is kept and put back below; no owner of it acts meanwhile.
    check(unsafe { libc::dup3(file.as_raw_fd(), number, libc::O_CLOEXEC) })?;
    // SAFETY: the descriptor was made above and is open until the end of this function.
    let result = act(unsafe { BorrowedFd::borrow_raw(number) });
    match before {
        Some(before) => {
            let close = if flags & libc::FD_CLOEXEC != 0 { libc::O_CLOEXEC } else { 0 };
            // SAFETY: gives the number back to the file that had it, with its flag.
            check(unsafe { libc::dup3(before.as_raw_fd(), number, close) })?;
        }
        None => {
            // SAFETY: the descriptor was made above, and nobody else knows of it.
            check(unsafe { libc::close(number) })?;
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_number_in_use_is_given_back() {
        let [a, b] = [(); 2].map(|()| OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        let (r, _w) = rustix::pipe::pipe().unwrap();
        let seen = with(r.as_fd(), b.as_raw_fd(), inode).unwrap();
        assert_eq!((seen, inode(b.as_fd())), (inode(r.as_fd()), inode(a.as_fd())));
        let free = 900;
        assert_eq!(with(r.as_fd(), free, inode).unwrap(), inode(r.as_fd()));
        // SAFETY: only asks whether the number is open.
        assert!(unsafe { libc::fcntl(free, libc::F_GETFD) } < 0);
    }
}
