//! Waiting for a task to come to the signal that a stub sends to itself.

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Deadline, MechanismError, Result, SigInfo};
use hdcr_engine::regs::Regs;
use hdcr_sys::wait::Seen;
use nix::errno::Errno;

use crate::calls::{Calls, Patience};
use crate::freeze::late;

/// Where a stub comes to rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Meeting {
    /// The instruction after the call that sends the signal.
    pub(crate) ip: u64,
    /// The signal.
    pub(crate) signal: i32,
}

/// The mask of a task in a stub: everything but the rendezvous signal is blocked.
pub(crate) fn all_but(signal: i32) -> u64 {
    !bit(signal)
}

/// The bit of a signal in a mask.
pub(crate) fn bit(signal: i32) -> u64 {
    u32::try_from(signal - 1).ok().and_then(|n| 1u64.checked_shl(n)).unwrap_or(0)
}

/// Waits for the next stop of any kind; its status.
pub(crate) fn any_stop(calls: &Calls, pid: Pid, tid: Tid, by: Deadline) -> Result<i32> {
    let mut patience = Patience::until(by);
    loop {
        match calls.look(tid)? {
            Seen::Stopped(status) => return Ok(status),
            Seen::Nothing => {
                if !patience.wait() {
                    return Err(late("stop", pid, tid));
                }
            }
            Seen::Exited(_) | Seen::Killed(_) => {
                return Err(MechanismError::Gone { operation: "waiting for its stop", tid });
            }
        }
    }
}

/// Waits for a rendezvous; the registers at it. Other stops on the way are passed through. The same signal sent by
/// somebody else goes to `strangers`, a child that was attached at its birth to `born`.
pub(crate) fn meet(
    calls: &Calls,
    (pid, tid): (Pid, Tid),
    at: Meeting,
    by: Deadline,
    (strangers, born): (&mut Vec<SigInfo>, &mut Option<Tid>),
) -> Result<Regs> {
    loop {
        let status = any_stop(calls, pid, tid, by)?;
        let (signal, event) = (status & 0xff, status >> 8);
        if event == libc::PTRACE_EVENT_CLONE {
            *born = i32::try_from(calls.event_message(tid)?).ok().map(Tid);
        }
        if event != 0 {
            // An interrupt that was still pending, or a group stop that began or ended meanwhile: the kernel puts the
            // thread back into a group stop when it is let go.
            calls.cont(tid, 0)?;
            continue;
        }
        if signal == at.signal {
            let regs = calls.registers(tid)?;
            if regs.ip == at.ip {
                return Ok(regs);
            }
            strangers.push(calls.stop_siginfo(tid)?);
            calls.cont(tid, 0)?;
            continue;
        }
        if is_fault(signal) {
            return Err(MechanismError::System { operation: "running a batch", tid, source: Errno::EFAULT.into() });
        }
        // Only SIGSTOP can come through the mask; what else might is blocked, and is queued again by being passed on.
        calls.cont(tid, signal)?;
    }
}

/// Signals that the processor raises.
fn is_fault(signal: i32) -> bool {
    matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP | libc::SIGSYS)
}

/// A stop at the border of a system call, with `PTRACE_O_TRACESYSGOOD`.
pub(crate) const BORDER: i32 = libc::SIGTRAP | 0x80;

/// Waits for the next border of a system call.
pub(crate) fn syscall_stop(calls: &Calls, pid: Pid, tid: Tid, by: Deadline) -> Result<()> {
    loop {
        match any_stop(calls, pid, tid, by)? {
            BORDER => return Ok(()),
            status if status >> 8 != 0 => calls.cont_to_syscall(tid, 0)?,
            signal => calls.cont_to_syscall(tid, signal)?,
        }
    }
}
