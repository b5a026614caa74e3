//! Calls that the kernel ends with `EINTR` on any stop are made again, and their time goes on meanwhile.
//!
//! What remains of such a call's time nobody tells, and a program that is stopped more often than a call's time is long
//! would never see its end. So a call that is put back carries when that was, in the upper half of the word that holds
//! its number: the kernel takes the lower half alone (Linux 5.14), shows the whole of it at the next stop (`orig_ax`), and
//! overwrites it with the result when the call ends. A stop thus finds in the thread itself whether this is the very call
//! that a stop has put back before, whoever did that, and since when. The program cannot see it.
//!
//! A call never ends early by this: its time runs from the first stop that met it.

use hdcr_engine::ids::{Fd, Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::Result;
use hdcr_engine::regs::Regs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::calls::Calls;
use crate::registers::{NO_CALL, before_call};
use crate::repair::{Premises, USER_CS};
use crate::tasks::{self, Status};
use crate::timed;
use crate::tracee::Tracee;

const EINTR: i64 = -4;
const EAGAIN: i64 = -11;
const EINPROGRESS: i64 = -115;

const CONNECT: u64 = 42;
const SIGTIMEDWAIT: u64 = 128;
const IO_GETEVENTS: u64 = 208;
const SEMTIMEDOP: u64 = 220;
const EPOLL_WAIT: u64 = 232;
const EPOLL_PWAIT: u64 = 281;
const IO_PGETEVENTS: u64 = 333;
const EPOLL_PWAIT2: u64 = 441;

/// Calls that the kernel ends with `EINTR` on any stop (signal(7)): `semop` and those above; and, on sockets with a time
/// limit (`SO_RCVTIMEO`, `SO_SNDTIMEO`; net/core/sock.c `sock_intr_errno`), [`RECEIVE`] and [`SEND`].
const ENDED_BY_STOPS: [u64; 8] =
    [65, SIGTIMEDWAIT, IO_GETEVENTS, SEMTIMEDOP, EPOLL_WAIT, EPOLL_PWAIT, IO_PGETEVENTS, EPOLL_PWAIT2];
/// `read`, `readv`, `accept`, `recvfrom`, `recvmsg`, `accept4`, `recvmmsg` (whose own limit counts between messages only).
const RECEIVE: [u64; 7] = [0, 19, 43, 45, 47, 288, 299];
/// `write`, `writev`, `connect`, `sendto`, `sendmsg`, `sendmmsg`.
const SEND: [u64; 6] = [1, 20, CONNECT, 44, 46, 307];

/// The four uppermost bits of a marked word; below them are 28 of the monotonic clock in milliseconds (74 hours, after
/// which the time of a call counts anew).
const MARK: u64 = 0x5;
const CLOCK: u64 = 0xfff_ffff;

fn marked(number: u64, since: u64) -> u64 {
    number | (since & CLOCK) << 32 | MARK << 60
}

fn known(number: u64) -> bool {
    ENDED_BY_STOPS.contains(&number) || RECEIVE.contains(&number) || SEND.contains(&number)
}

/// The number of one of these calls, and when a stop has put it back, if one has.
fn parts(word: u64) -> Option<(u64, Option<u64>)> {
    let number = word & u64::from(u32::MAX);
    let since = (word >> 60 == MARK).then_some(word >> 32 & CLOCK);
    (known(number) && (since.is_some() || word == number)).then_some((number, since))
}

/// Milliseconds from one time to another. What is put back for the first time is so at the next full one, which may not
/// have come yet.
fn elapsed(since: u64, now: u64) -> u64 {
    match now.wrapping_sub(since) & CLOCK {
        CLOCK => 0,
        elapsed => elapsed,
    }
}

fn limited_by_argument(number: u64) -> bool {
    matches!(number, EPOLL_WAIT | EPOLL_PWAIT)
}

/// The limit of an `epoll_wait` is an `int`: the upper half means nothing, and below zero is without end.
fn endless(regs: &Regs, number: u64) -> bool {
    limited_by_argument(number) && regs.r10 & 1 << 31 != 0
}

/// An `epoll_wait` or its kin as it is to be made again: its limit is in its arguments, so it gets what remains.
fn what_remains(regs: &Regs, number: u64, since: Option<u64>, now: u64) -> Regs {
    let limit = regs.r10 & u64::from(u32::MAX);
    let Some(since) = since else {
        return before_call(regs, marked(number, now + 1));
    };
    // The sum of mark and limit stays the same: nothing is lost by rounding, however often this is.
    let passed = elapsed(since, now).min(limit);
    before_call(&Regs { r10: limit - passed, ..*regs }, marked(number, since + passed))
}

/// Puts a call that any stop ends back before its `syscall` instruction, unless a handler is about to run: then the
/// `EINTR` is the program's. To be done the moment the thread has stopped: it is the one thing that the death of the tool
/// does not undo.
pub(crate) fn repeat_ended_call(calls: &Calls, pid: Pid, tid: Tid) -> Result<()> {
    let regs = calls.registers(tid)?;
    let Some((number, since)) = parts(regs.orig_ax) else {
        return Ok(());
    };
    if regs.ax.cast_signed() != EINTR || regs.cs != USER_CS {
        return Ok(());
    }
    let status = tasks::status(pid, tid).unwrap_or_default();
    if status.pending & !status.blocked & status.caught != 0 {
        return Ok(());
    }
    if !calls.marks || endless(&regs, number) {
        return calls.set_registers(tid, &before_call(&regs, number));
    }
    let now = timed::now() / 1_000_000;
    if limited_by_argument(number) {
        return calls.set_registers(tid, &what_remains(&regs, number, since, now));
    }
    let since = since.unwrap_or(now + 1);
    let went_on = match limit(calls, (pid, tid), &Regs { orig_ax: number, ..regs }, &status) {
        None => before_call(&regs, number),
        Some(limit) if limit.is_up(elapsed(since, now)) => {
            Regs { ax: limit.result.cast_unsigned(), orig_ax: number, ..regs }
        }
        Some(_) => before_call(&regs, marked(number, since)),
    };
    calls.set_registers(tid, &went_on)
}

/// Whether the kernel lets a call carry a mark.
pub(crate) fn marks_are_kept() -> bool {
    hdcr_sys::task::number_is_lower_half(MARK << 28 | 1)
}

/// The limit of a call's time.
struct Limit {
    ns: u64,
    /// What the call returns when its time is up.
    result: i64,
    /// What it waits for seems to be there: made again it ends at once, and rightly.
    due: bool,
}

impl Limit {
    /// Whether the call is to end after so many milliseconds. One that is due and does not end is in error about that.
    fn is_up(&self, elapsed: u64) -> bool {
        let patience = if self.due { self.ns.saturating_mul(2) } else { self.ns };
        elapsed.saturating_mul(1_000_000) >= patience
    }
}

/// The limit of a call that has it behind a pointer or on its socket; `None`: it has none, or that cannot be told.
fn limit(calls: &Calls, (pid, tid): (Pid, Tid), regs: &Regs, status: &Status) -> Option<Limit> {
    let number = regs.orig_ax;
    let (at, result) = match number {
        SIGTIMEDWAIT => (regs.dx, EAGAIN),
        SEMTIMEDOP => (regs.r10, EAGAIN),
        EPOLL_PWAIT2 => (regs.r10, 0),
        IO_GETEVENTS | IO_PGETEVENTS => (regs.r8, 0),
        _ => return limit_of_socket(calls, (pid, tid), regs),
    };
    let mut bytes = [0; 16];
    calls.read(tid, RemotePtr(at), &mut bytes).ok()?;
    let ns = time(&bytes, 1)?;
    let mut set = [0; 8];
    let due = number == SIGTIMEDWAIT
        && calls.read(tid, RemotePtr(regs.di), &mut set).is_ok()
        && status.pending & u64::from_ne_bytes(set) != 0;
    Some(Limit { ns, result, due })
}

fn limit_of_socket(calls: &Calls, (pid, tid): (Pid, Tid), regs: &Regs) -> Option<Limit> {
    let number = regs.orig_ax;
    let (option, event) = match number {
        _ if RECEIVE.contains(&number) => (libc::SO_RCVTIMEO, PollFlags::IN),
        _ if SEND.contains(&number) => (libc::SO_SNDTIMEO, PollFlags::OUT),
        _ => return None,
    };
    // An `int`: the upper half means nothing.
    let fd = i32::try_from(regs.di & u64::from(u32::MAX)).ok()?;
    let socket = calls.duplicate(pid, tid, Fd(fd)).ok()?;
    let value = hdcr_sys::socket::option(&socket, libc::SOL_SOCKET, option, 16).ok()?;
    // None is written as zero.
    let ns = time(&value.try_into().ok()?, 1000).filter(|ns| *ns != 0)?;
    let local = || hdcr_sys::socket::option_int(&socket, libc::SOL_SOCKET, libc::SO_DOMAIN).ok() == Some(libc::AF_UNIX);
    let result = if number == CONNECT && !local() { EINPROGRESS } else { EAGAIN };
    let mut polled = [PollFd::new(&socket, event)];
    let asked = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    let due = asked.is_ok() && polled.iter().any(|polled| polled.revents().contains(event));
    Some(Limit { ns, result, due })
}

/// A `timespec`, or a `timeval` with a unit of 1000 ns, in nanoseconds.
fn time(bytes: &[u8; 16], unit: u64) -> Option<u64> {
    let (seconds, rest) = bytes.split_at_checked(8)?;
    let seconds = u64::try_from(i64::from_ne_bytes(seconds.try_into().ok()?)).ok()?;
    let rest = u64::try_from(i64::from_ne_bytes(rest.try_into().ok()?)).ok()?;
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(rest.saturating_mul(unit)))
}

/// Takes note of a mark: the thread stands before a call with one, or its last call, which has ended, had one.
pub(crate) fn see(calls: &Calls, premises: &Premises, tracee: &mut Tracee) {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let regs = &mut tracee.own.regs;
    if let Some((number, Some(_))) = parts(regs.orig_ax) {
        regs.orig_ax = number;
    }
    if regs.orig_ax == NO_CALL && matches!(parts(regs.ax), Some((_, Some(_)))) {
        // Anywhere else it is a number of the program's own.
        let mut code = [0; 2];
        let read = calls.peek(&premises.memory, tracee.tid, regs.ip, &mut code);
        tracee.put_back = read.is_ok() && code == SYSCALL;
    }
}

/// A thread's registers without the mark, which means nothing on another kernel or at another time.
pub(crate) fn seen(tracee: &Tracee) -> Regs {
    let regs = tracee.own.regs;
    match parts(regs.ax) {
        Some((number, _)) if tracee.put_back => Regs { ax: number, ..regs },
        _ => regs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoll(limit: i32, since: Option<u64>, now: u64) -> (u64, Option<(u64, Option<u64>)>) {
        let r10 = u64::from(limit.cast_unsigned());
        let regs = Regs { r10, ip: 102, ax: EINTR.cast_unsigned(), orig_ax: EPOLL_WAIT, ..Regs::default() };
        let again = what_remains(&regs, EPOLL_WAIT, since, now);
        assert_eq!((again.ip, again.orig_ax), (100, NO_CALL));
        (again.r10, parts(again.ax))
    }

    #[test]
    fn a_mark_is_told_from_numbers_and_results() {
        assert_eq!(parts(marked(EPOLL_WAIT, 7)), Some((EPOLL_WAIT, Some(7))));
        assert_eq!(parts(marked(0, CLOCK + 3)), Some((0, Some(2))));
        assert_eq!(parts(EPOLL_WAIT), Some((EPOLL_WAIT, None)));
        assert_eq!(parts(marked(7, 7)), None);
        assert_eq!(parts(EPOLL_WAIT | 1 << 32), None);
        assert_eq!(parts(NO_CALL), None);
        assert!(marked(EPOLL_WAIT, CLOCK).cast_signed() > 0);
    }

    #[test]
    fn time_goes_on_also_where_the_clock_begins_anew() {
        assert_eq!(elapsed(5, 5), 0);
        assert_eq!(elapsed(6, 5), 0);
        assert_eq!(elapsed(5, 9), 4);
        assert_eq!(elapsed(CLOCK, CLOCK + 3), 3);
    }

    #[test]
    fn what_remains_is_waited_for_and_no_time_is_lost_or_won() {
        assert_eq!(epoll(500, None, 1000), (500, Some((EPOLL_WAIT, Some(1001)))));
        assert_eq!(epoll(500, Some(1001), 1000), (500, Some((EPOLL_WAIT, Some(1001)))));
        assert_eq!(epoll(500, Some(1001), 1101), (400, Some((EPOLL_WAIT, Some(1101)))));
        assert_eq!(epoll(400, Some(1101), 1101), (400, Some((EPOLL_WAIT, Some(1101)))));
        assert_eq!(epoll(400, Some(1101), 9999), (0, Some((EPOLL_WAIT, Some(1501)))));
        assert!(endless(&Regs { r10: (-1_i64).cast_unsigned(), ..Regs::default() }, EPOLL_WAIT));
        assert!(endless(&Regs { r10: u64::from(u32::MAX), ..Regs::default() }, EPOLL_PWAIT));
        assert!(!endless(&Regs { r10: 1 << 32 | 5, ..Regs::default() }, EPOLL_WAIT));
    }

    #[test]
    fn a_limit_is_up_at_its_time_and_somewhat_later_where_it_seems_due() {
        let limit = |due| Limit { ns: 300_000_001, result: 0, due };
        assert!(!limit(false).is_up(300));
        assert!(limit(false).is_up(301));
        assert!(!limit(true).is_up(600));
        assert!(limit(true).is_up(601));
    }

    #[test]
    fn times_are_read() {
        let bytes = |first: i64, second: i64| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&first.to_ne_bytes());
            bytes[8..].copy_from_slice(&second.to_ne_bytes());
            bytes
        };
        assert_eq!(time(&bytes(2, 5), 1), Some(2_000_000_005));
        assert_eq!(time(&bytes(2, 5), 1000), Some(2_000_005_000));
        assert_eq!(time(&bytes(-1, 5), 1), None);
        assert_eq!(time(&bytes(i64::MAX, 5), 1), Some(u64::MAX));
    }
}
