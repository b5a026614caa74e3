//! `kcmp(2)`: whether two tasks share a kernel object, and an order on such objects.
#![expect(unsafe_code, reason = "kcmp has no safe wrapper")]

use std::cmp::Ordering;
use std::io;

/// What is compared (`linux/kcmp.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Open file descriptions behind two descriptors.
    File {
        /// The first task's descriptor.
        a: i32,
        /// The second task's descriptor.
        b: i32,
    },
    /// Address spaces.
    Vm,
    /// Descriptor tables.
    Files,
    /// Root, current directory, umask.
    Fs,
    /// Signal actions.
    Sighand,
    /// System V semaphore undo lists.
    SysvSem,
}

/// Compares; `Equal` means the same object. The order is arbitrary but stays the same while the objects live.
pub fn kcmp(a: i32, b: i32, kind: Kind) -> io::Result<Ordering> {
    let (number, first, second): (i32, i32, i32) = match kind {
        Kind::File { a, b } => (0, a, b),
        Kind::Vm => (1, 0, 0),
        Kind::Files => (2, 0, 0),
        Kind::Fs => (3, 0, 0),
        Kind::Sighand => (4, 0, 0),
        Kind::SysvSem => (6, 0, 0),
    };
    let wide = |number: i32| libc::c_long::from(number);
    // SAFETY: kcmp takes five integers and touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, wide(a), wide(b), wide(number), wide(first), wide(second)) };
    match answer {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        3 => Err(io::Error::other("the objects differ and have no order")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A member of an epoll instance: the instance's descriptor, the number under which the member was added, and how many
/// members with that number come before it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpollSlot {
    /// The instance.
    pub epoll: u32,
    /// The number.
    pub number: u32,
    /// How many come before.
    pub before: u32,
}

/// Whether a descriptor of a process leads to a member of an epoll instance of another process.
pub fn is_epoll_member(pid: i32, fd: i32, owner: i32, slot: EpollSlot) -> io::Result<bool> {
    const KCMP_EPOLL_TFD: libc::c_long = 7;
    let wide = |number: i32| libc::c_long::from(number);
    // SAFETY: the kernel reads one `EpollSlot`, laid out as its `struct kcmp_epoll_slot`, which outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_kcmp, wide(pid), wide(owner), KCMP_EPOLL_TFD, wide(fd), &raw const slot) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer == 0) }
}
