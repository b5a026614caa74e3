//! Signals as events: blocked, read from a descriptor, and told apart by who sent them.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::failure::{Failure, Result};

/// Signals that are passed on to the program.
pub(crate) const PASSED_ON: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

/// By these a user asks the program to end.
pub(crate) const REQUESTS_TO_END: [i32; 4] =
    [Signal::SIGHUP as i32, Signal::SIGINT as i32, Signal::SIGQUIT as i32, Signal::SIGTERM as i32];

/// A signal that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    /// Its number.
    pub(crate) number: i32,
    /// The kernel sent it to the whole foreground group of a terminal: a program in our group has it already.
    pub(crate) by_terminal: bool,
}

/// Whether this process leads its session: the end of a terminal is told to the leader alone (`drivers/tty/tty_jobctrl.c`
/// `tty_signal_session_leader`).
fn leads_session() -> bool {
    // The session's leader has no number here when it lies outside of our pid namespace.
    nix::unistd::getsid(None).is_ok_and(|session| session == nix::unistd::getpid())
}

/// The signals of a process that waits for events.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    /// Blocked by us and not by whoever started us.
    blocked: SigSet,
}

impl Signals {
    /// Blocks the reports of children and what is passed on, and takes them as events. What the caller of this program
    /// chose to ignore (nohup) stays ignored. `SIGTTOU` is blocked too, so that the terminal may be handed over.
    pub(crate) fn take() -> Result<Self> {
        let ignored = ignored();
        let mut events = SigSet::empty();
        events.add(Signal::SIGCHLD);
        PASSED_ON.into_iter().filter(|signal| ignored & bit(*signal) == 0).for_each(|signal| events.add(signal));
        let mut blocked = events;
        blocked.add(Signal::SIGTTOU);
        let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(Failure::system("blocking signals"))?;
        before.iter().for_each(|signal| blocked.remove(signal));
        let fd = SignalFd::with_flags(&events, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        fd.map(|fd| Self { fd, blocked }).map_err(Failure::system("making a signal descriptor"))
    }

    /// The signals that a program we start has to unblock, by number.
    pub(crate) fn to_unblock(&self) -> Vec<i32> {
        self.blocked.iter().map(|signal| signal as i32).collect()
    }

    /// The next signal that has arrived but for reports of children.
    pub(crate) fn next(&self) -> Option<Received> {
        loop {
            let info = self.fd.read_signal().ok().flatten()?;
            let number = info.ssi_signo.cast_signed();
            if number != Signal::SIGCHLD as i32 {
                let by_terminal = info.ssi_code == SI_KERNEL && !(number == Signal::SIGHUP as i32 && leads_session());
                return Some(Received { number, by_terminal });
            }
        }
    }

    /// Forgets reports of children that stand before all other signals; others stay where they are.
    pub(crate) fn discard_child_reports() {
        let mut only = SigSet::empty();
        only.add(Signal::SIGCHLD);
        let Ok(fd) = SignalFd::with_flags(&only, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else { return };
        while matches!(fd.read_signal(), Ok(Some(_))) {}
    }

    /// Waits until a signal arrives, one of the descriptors can be read (or is closed), or the time is over. Says which
    /// descriptors are ready.
    pub(crate) fn wait(&self, others: &mut [BorrowedFd<'_>], limit: Option<Duration>) -> Result<Vec<bool>> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
        fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::system("waiting for events")(error)),
        }
        Ok(fds.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect())
    }
}

/// Unblocks signals by number.
pub(crate) fn unblock(numbers: &[i32]) -> Result<()> {
    let set: SigSet = numbers.iter().filter_map(|number| Signal::try_from(*number).ok()).collect();
    set.thread_unblock().map_err(Failure::system("unblocking signals"))
}

/// `si_code` of a signal that the kernel made, as for a key pressed on a terminal.
const SI_KERNEL: i32 = 0x80;

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// The signals that this process ignores, bit n-1 for signal n.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
