//! A clone of this process that waits to be taken over by a tracer.
#![expect(unsafe_code, reason = "raw system calls")]

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_long};
use nix::Result;
use nix::errno::Errno;

/// `struct clone_args` (include/uapi/linux/sched.h), as far as Linux 5.7 knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct CloneArguments {
    /// `CLONE_*`.
    pub flags: u64,
    /// Where a pidfd is put.
    pub pidfd: u64,
    /// Address for `CLONE_CHILD_CLEARTID` and `CLONE_CHILD_SETTID`.
    pub child_tid: u64,
    /// Address for `CLONE_PARENT_SETTID`.
    pub parent_tid: u64,
    /// Signal to the parent at the end.
    pub exit_signal: u64,
    /// Lowest byte of the stack, 0: the caller's.
    pub stack: u64,
    /// Its size.
    pub stack_size: u64,
    /// For `CLONE_SETTLS`.
    pub tls: u64,
    /// Address of the wanted numbers, innermost pid namespace first.
    pub set_tid: u64,
    /// How many there are.
    pub set_tid_size: u64,
    /// For `CLONE_INTO_CGROUP`.
    pub cgroup: u64,
}

impl CloneArguments {
    /// Length of the struct.
    pub const LEN: usize = size_of::<Self>();

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let words = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ];
        let mut bytes = [0; Self::LEN];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// Flags that would make the clone share something with us that it must not.
const REFUSED: c_int = libc::CLONE_VM
    | libc::CLONE_VFORK
    | libc::CLONE_THREAD
    | libc::CLONE_SIGHAND
    | libc::CLONE_FILES
    | libc::CLONE_SETTLS;

/// Clones this process. The clone blocks all signals and sleeps until a tracer takes its registers away, or until the
/// process that `guardian` (a pidfd) stands for has died: then it dies, too. Returns its number.
///
/// The clone makes no call but `poll` and `exit_group`: whatever lock another thread holds here does not matter there.
pub fn clone_waiting(flags: u64, exit_signal: i32, tid: Option<i32>, guardian: BorrowedFd<'_>) -> Result<i32> {
    if flags & u64::try_from(REFUSED).unwrap_or(u64::MAX) != 0 {
        return Err(Errno::EINVAL);
    }
    let wanted = [tid.unwrap_or(0)];
    let wanted_at = wanted.as_ptr().expose_provenance();
    let arguments = CloneArguments {
        flags,
        exit_signal: u64::try_from(exit_signal).map_err(|_| Errno::EINVAL)?,
        set_tid: match tid {
            Some(_) => u64::try_from(wanted_at).map_err(|_| Errno::EFAULT)?,
            None => 0,
        },
        set_tid_size: u64::from(tid.is_some()),
        ..CloneArguments::default()
    };
    let mask = change_mask(u64::MAX)?;
    let at = &raw const arguments;
    // SAFETY: the arguments and what they point to are live; without CLONE_VM the child has its own copy of everything.
    let result = unsafe { libc::syscall(libc::SYS_clone3, at, CloneArguments::LEN) };
    if result == 0 {
        wait_for_tracer(guardian.as_raw_fd());
    }
    let born = Errno::result(result);
    change_mask(mask)?;
    i32::try_from(born?).map_err(|_| Errno::EOVERFLOW)
}

/// Sets the calling thread's mask and returns the one before. Not by glibc: it leaves out two signals.
fn change_mask(mask: u64) -> Result<u64> {
    let mut before = 0u64;
    let new = &raw const mask;
    let old = &raw mut before;
    // SAFETY: the kernel reads one mask of 8 bytes and writes another; both are live.
    Errno::result(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, new, old, size_of::<u64>()) })?;
    Ok(before)
}

fn wait_for_tracer(guardian: c_int) -> ! {
    loop {
        let mut watched = libc::pollfd { fd: guardian, events: libc::POLLIN, revents: 0 };
        let at = &raw mut watched;
        let forever: c_long = -1;
        // SAFETY: one live pollfd.
        let ready = unsafe { libc::syscall(libc::SYS_poll, at, 1, forever) };
        if ready > 0 {
            // SAFETY: ends this clone; nothing of it is needed any more.
            unsafe { libc::syscall(libc::SYS_exit_group, 1) };
        }
    }
}
