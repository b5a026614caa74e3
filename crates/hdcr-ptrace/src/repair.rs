//! What a stop does to a thread that the program would notice later, put right at once.
//!
//! - A thread that still heals after a dead tracer stands in a stub: its registers and mask are in a control block.
//! - A thread in an rseq critical section must go on at its abort handler. The kernel sees to that only if the thread
//!   goes on where it stood; it would have been in a stub since.
//! - Some calls end with `EINTR` on any stop, handler or not (`epoll_wait` and its kin): they are made again (`waits`).
//! - A call restarted through `restart_syscall` hides its number; the place where it slept tells it.

use std::fs::File;

use hdcr_engine::ids::{Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{MechanismError, Result, Stand};
use hdcr_engine::regs::Regs;

use crate::calls::Calls;
use crate::freeze::Attached;
use crate::registers::{Interrupted, NO_CALL, RESTART_SYSCALL, RestartBlock, interrupted};
use crate::stub::{self, Control};
use crate::tracee::{Own, Place, Tracee};
use crate::vdso::Tail;
use crate::waits;

/// `cs` of 64-bit user code.
pub(crate) const USER_CS: u64 = 0x33;
/// A process's memory and the place of stubs in it, as far as they have been needed.
#[derive(Debug)]
pub(crate) struct Premises {
    pub(crate) memory: File,
    pub(crate) tail: Option<Tail>,
}

impl Premises {
    /// Opens the memory of a process by one of its stopped threads and finds its vdso.
    pub(crate) fn open(calls: &Calls, pid: Pid, tid: Tid) -> Result<Self> {
        let memory = calls.open_memory(pid, tid)?;
        let tail = Tail::find(calls, &memory, pid, tid);
        Ok(Self { memory, tail })
    }
}

/// Takes a thread that has stopped into care.
pub(crate) fn settle(calls: &Calls, premises: &Premises, tid: Tid, attached: &Attached) -> Result<Tracee> {
    let regs = calls.registers(tid)?;
    let mask = calls.signal_mask(tid)?;
    if regs.cs != USER_CS {
        return Err(MechanismError::Unsupported { tid, kind: "a 32-bit task" });
    }
    // With it every instruction of a stub would trap, into the program's handler or its death.
    if regs.flags & stub::TRAP_FLAG != 0 {
        return Err(MechanismError::Unsupported { tid, kind: "stepping through itself (trap flag)" });
    }
    // The numbers of its calls mean other calls, and the instruction that makes one is another one, too.
    if regs.orig_ax.cast_signed() >= 0 && calls.is_in_32_bit_call(tid)? {
        return Err(MechanismError::Unsupported { tid, kind: "a 64-bit task in a 32-bit system call (int 0x80)" });
    }
    let mut tracee = Tracee {
        tid,
        pid: attached.pid,
        stand: attached.stand.unwrap_or(Stand::Running),
        own: Own { regs, mask },
        place: Place::Home,
        restart_block: RestartBlock::Kept,
        running: false,
        missed: None,
        put_back: false,
        shown: None,
        born: None,
    };
    if let Some((mask, regs)) = left_by_dead_tracer(calls, premises, tid, &regs) {
        tracee.own = Own { regs, mask };
        tracee.place = Place::Stub;
        tracee.go_home(calls)?;
    }
    abort_rseq(calls, premises, &mut tracee)?;
    name_restarted_call(&mut tracee.own.regs, &attached.wait_channel);
    waits::see(calls, premises, &mut tracee);
    Ok(tracee)
}

/// Mask and registers of a thread that stands in a stub of a tracer that died.
fn left_by_dead_tracer(calls: &Calls, premises: &Premises, tid: Tid, regs: &Regs) -> Option<(u64, Regs)> {
    let read_control = |at: u64| {
        let mut control = [0; stub::CONTROL_LEN];
        calls.peek(&premises.memory, tid, at, &mut control).ok()?;
        Some(Control::adopt(&control, regs))
    };
    if let Some(tail) = premises.tail.filter(|tail| tail.holds(regs.ip)) {
        let at = tail.slot_of(regs.ip)?;
        let mut code = [0; stub::ONCE_CODE_LEN];
        calls.peek(&premises.memory, tid, at, &mut code).ok()?;
        let ours = code == *stub::once_code();
        return ours.then(|| read_control(at + offset(stub::ONCE_CODE_LEN)))?;
    }
    let at = regs.ip & !(offset(stub::BATCH_STRIDE) - 1);
    let mut code = [0; stub::BATCH_CODE_LEN];
    // A word first: most threads are not in a stub, and most pages there are readable.
    calls.peek(&premises.memory, tid, at, &mut code).ok()?;
    let ours = code == *stub::batch_code();
    ours.then(|| read_control(at + offset(stub::BATCH_CODE_LEN)))?
}

fn offset(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(0)
}

/// `struct rseq_cs` (include/uapi/linux/rseq.h).
struct CriticalSection {
    start: u64,
    len: u64,
    abort: u64,
}

fn critical_section(calls: &Calls, premises: &Premises, tid: Tid, at: u64) -> Option<CriticalSection> {
    let mut bytes = [0; 32];
    calls.peek(&premises.memory, tid, at, &mut bytes).ok()?;
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    Some(CriticalSection { start: word(8)?, len: word(16)?, abort: word(24)? })
}

/// Moves a thread in an rseq critical section to its abort handler, as the kernel would on any preemption.
fn abort_rseq(calls: &Calls, premises: &Premises, tracee: &mut Tracee) -> Result<()> {
    /// Offset of `rseq_cs` in `struct rseq`.
    const SECTION_AT: u64 = 8;
    let Some(rseq) = calls.rseq(tracee.tid)? else {
        return Ok(());
    };
    let at = rseq.pointer.wrapping_add(SECTION_AT);
    let mut pointer = [0; 8];
    let read = calls.read_some(tracee.tid, RemotePtr(at), &mut pointer);
    if read != Ok(8) || pointer == [0; 8] {
        return Ok(());
    }
    let section = critical_section(calls, premises, tracee.tid, u64::from_le_bytes(pointer));
    let Some(section) = section else {
        return Ok(());
    };
    let ip = tracee.own.regs.ip;
    if ip.wrapping_sub(section.start) >= section.len {
        return Ok(());
    }
    tracee.own.regs.ip = section.abort;
    tracee.own.regs.orig_ax = NO_CALL;
    // Registers first: at the abort handler a section that is still named is only forgotten by the kernel.
    calls.set_registers(tracee.tid, &tracee.own.regs)?;
    calls.force(&premises.memory, tracee.tid, at, &[0; 8])
}

/// Shows the true number of a call that the kernel goes on with through `restart_syscall`. Only here: the kernel is to
/// go on with `restart_syscall`, so the thread keeps what it has, which is the same to it (it looks at `ax` alone).
fn name_restarted_call(regs: &mut Regs, wait_channel: &str) {
    if regs.orig_ax != RESTART_SYSCALL || interrupted(regs) != Interrupted::Block {
        return;
    }
    if let Some(nr) = restarted_call(regs, wait_channel) {
        regs.orig_ax = nr;
    }
}

/// Which of the four calls with a restart block slept there.
pub(crate) fn restarted_call(regs: &Regs, wait_channel: &str) -> Option<u64> {
    const POLL: u64 = 7;
    const NANOSLEEP: u64 = 35;
    const FUTEX: u64 = 202;
    const CLOCK_NANOSLEEP: u64 = 230;
    if wait_channel.contains("poll") {
        return Some(POLL);
    }
    if wait_channel.contains("futex") {
        return Some(FUTEX);
    }
    if wait_channel.is_empty() {
        return None;
    }
    // The first argument is a small clock number (negative for CPU time clocks) or the address of a time.
    let clock = regs.di < 4096 || regs.di > u64::MAX - (1 << 32);
    Some(if clock { CLOCK_NANOSLEEP } else { NANOSLEEP })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(channel: &str, di: u64, expected: Option<u64>) {
        let mut regs = Regs { ax: (-516i64).cast_unsigned(), orig_ax: RESTART_SYSCALL, di, ..Regs::default() };
        assert_eq!(restarted_call(&regs, channel), expected);
        name_restarted_call(&mut regs, channel);
        assert_eq!(regs.orig_ax, expected.unwrap_or(RESTART_SYSCALL));
    }

    #[test]
    fn restarted_calls_are_told_by_where_they_sleep() {
        check("poll_schedule_timeout.constprop.0", 0x7fff_0000, Some(7));
        check("futex_do_wait", 0x7fff_0000, Some(202));
        check("hrtimer_nanosleep", 0x7fff_0000, Some(35));
        check("do_syscall_64", 1, Some(230));
        check("", 1, None);
    }
}
