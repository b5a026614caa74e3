//! Which thread causes what is told of an address space: it waits in its call until that is heard, and `/proc` shows the call.

use std::ops::Range;

use nix::libc;

use crate::ids::{Pid, Tid};
use crate::procfs;

/// With more threads than this nobody is looked for.
const MOST: usize = 64;

/// A thread in a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiter {
    tid: Tid,
    nr: i64,
    first: u64,
}

impl Waiter {
    fn forks(&self) -> bool {
        [libc::SYS_fork, libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3].contains(&self.nr)
    }
}

/// The threads of a process that wait in a call.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Waiters(Vec<Waiter>);

impl Waiters {
    /// Looks at a process.
    pub(crate) fn of(pid: Option<Pid>) -> Self {
        let tids = pid.and_then(|pid| procfs::threads(pid).ok()).filter(|tids| tids.len() <= MOST);
        let look = |tid: Tid| {
            let text = procfs::read(Pid(tid.0), "syscall").ok()?;
            parse(tid, &String::from_utf8_lossy(&text))
        };
        Self(tids.into_iter().flatten().filter_map(look).collect())
    }

    /// The only one that fits.
    fn only(&self, fits: impl Fn(&Waiter) -> bool) -> Option<Tid> {
        let mut found = self.0.iter().filter(|waiter| fits(waiter));
        found.next().filter(|_| found.next().is_none()).map(|waiter| waiter.tid)
    }

    /// Who clones its process.
    pub(crate) fn who_forks(&self) -> Option<Tid> {
        self.only(Waiter::forks)
    }

    /// Whether anybody does.
    pub(crate) fn any_forks(&self) -> bool {
        self.0.iter().any(Waiter::forks)
    }

    /// Who moves the mapping at an address.
    pub(crate) fn who_moves(&self, from: u64) -> Option<Tid> {
        self.only(|waiter| waiter.nr == libc::SYS_mremap && waiter.first == from)
    }

    /// Who gives up a range: it may be a part of what the call is about.
    pub(crate) fn who_gives_up(&self, range: &Range<u64>) -> Option<Tid> {
        const CALLS: [i64; 5] = [libc::SYS_munmap, libc::SYS_madvise, libc::SYS_mmap, libc::SYS_mremap, libc::SYS_brk];
        let exact = self.only(|waiter| CALLS.contains(&waiter.nr) && waiter.first == range.start);
        exact.or_else(|| self.only(|waiter| CALLS.contains(&waiter.nr)))
    }
}

/// `syscall` of `proc_pid_syscall(5)`: the number of the call and its arguments, or `running`.
fn parse(tid: Tid, text: &str) -> Option<Waiter> {
    let mut words = text.split_whitespace();
    let nr = words.next()?.parse().ok()?;
    let first = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    Some(Waiter { tid, nr, first })
}

/// The process of a thread.
pub(crate) fn process_of(tid: Tid) -> Option<Pid> {
    let status = procfs::read(Pid(tid.0), "status").ok()?;
    let text = String::from_utf8_lossy(&status);
    let line = text.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok().map(Pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_that_fits_is_named() {
        let lines = [
            (1, "25 0x7f0000001000 0x1000 0x1000 0x3 0x7f0000009000 0x0 0x7ffc0 0x7f1"),
            (2, "running"),
            (3, "28 0x7f0000005000 0x2000 0x4 0x0 0x0 0x0 0x7ffc0 0x7f1"),
            (4, "56 0x1200011 0x0 0x0 0x0 0x0 0x0 0x7ffc0 0x7f1"),
            (5, "-1 0x7ffc0 0x7f1"),
        ];
        let waiters = Waiters(lines.iter().filter_map(|(tid, text)| parse(Tid(*tid), text)).collect());
        assert_eq!(waiters.who_moves(0x7f00_0000_1000), Some(Tid(1)));
        assert_eq!(waiters.who_moves(0x7f00_0000_2000), None);
        assert_eq!(waiters.who_forks(), Some(Tid(4)));
        assert_eq!(waiters.who_gives_up(&(0x7f00_0000_5000..0x7f00_0000_6000)), Some(Tid(3)));
        assert_eq!(waiters.who_gives_up(&(0..1)), None, "two may have done it");
    }

    #[test]
    fn this_thread_is_of_this_process() {
        let tid = Tid(nix::unistd::gettid().as_raw());
        assert_eq!(process_of(tid), Some(Pid(std::process::id().cast_signed())));
    }
}
