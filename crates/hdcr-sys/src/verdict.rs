//! Deaths of several processes that are all or none: a child of ours holds them by descriptor and kills them when it is
//! told to, also when we die right after; it kills nobody when we die before.
#![expect(unsafe_code, reason = "a child of a process with threads may only make plain system calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

/// A child that waits for the word.
#[derive(Debug)]
pub struct Verdict {
    child: Pid,
    word: Option<OwnedFd>,
}

/// Makes the child that will kill these processes (pidfds).
pub fn prepare(processes: &[OwnedFd]) -> io::Result<Verdict> {
    let (hears, word) = pipe_with(PipeFlags::CLOEXEC)?;
    let processes: Vec<RawFd> = processes.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the child only makes system calls, and never returns.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => carry_out(hears.as_fd().as_raw_fd(), word.as_fd().as_raw_fd(), &processes),
        child => {
            let child = Pid::from_raw(child).ok_or_else(|| io::Error::from(io::ErrorKind::Other))?;
            Ok(Verdict { child, word: Some(word) })
        }
    }
}

/// What the child does: no allocation, no lock, nothing but system calls.
fn carry_out(hears: RawFd, word: RawFd, processes: &[RawFd]) -> ! {
    // SAFETY: of zeros it is a valid value.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: fills the set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: reads the set, and is told not to write an old one.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) };
    // SAFETY: the child's copy of the number, which it does not use: with it open it would never hear of our end.
    unsafe { libc::close(word) };
    let mut byte = 0_u8;
    // SAFETY: writes at most one byte into `byte`.
    let told = unsafe { libc::read(hears, (&raw mut byte).cast(), 1) };
    if told == 1 {
        for process in processes {
            let no_info = std::ptr::null::<libc::siginfo_t>();
            // SAFETY: no memory is touched.
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, *process, libc::SIGKILL, no_info, 0) };
        }
    }
    // SAFETY: ends the child without running anything of ours.
    unsafe { libc::_exit(0) }
}

impl Verdict {
    /// Gives the word, and returns when all have been killed (not when they have ended).
    pub fn pronounce(mut self) -> io::Result<()> {
        if let Some(word) = self.word.take() {
            rustix::io::write(&word, &[1])?;
        }
        Ok(())
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        self.word.take();
        while matches!(waitpid(Some(self.child), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{PidfdFlags, pidfd_open};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    fn sleepers() -> (Vec<Child>, Vec<OwnedFd>) {
        let start = || Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let children: Vec<Child> = (0..3).map(|_| start()).collect();
        let open = |child: &Child| pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
        let opened = children.iter().map(open).collect();
        (children, opened)
    }

    #[test]
    fn all_die_at_the_word() {
        let (children, opened) = sleepers();
        prepare(&opened).unwrap().pronounce().unwrap();
        for mut child in children {
            assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        }
    }

    #[test]
    fn nobody_dies_without_it() {
        let (children, opened) = sleepers();
        drop(prepare(&opened).unwrap());
        for mut child in children {
            drop(child.stdin.take());
            assert!(child.wait().unwrap().success());
        }
    }
}
