//! Letting a frozen thread into its interrupted call again for a moment, to see from outside what it does there.
//!
//! The thread runs no instruction of its program: it is let go to the border of the call and into it, and if the call
//! ends it stops at the border again. Then the call's result stands in its registers, as if the freeze had come later.

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Deadline, MechanismError, Result};
use hdcr_engine::regs::Regs;
use hdcr_sys::ptrace::EVENT_STOP;
use hdcr_sys::wait::Seen;

use crate::calls::{Calls, Patience};
use crate::freeze::late;
use crate::registers::{Interrupted, RESTART_SYSCALL, interrupted};
use crate::rendezvous::{BORDER, any_stop, bit};
use crate::repair::restarted_call;
use crate::tasks;
use crate::tracee::Tracee;

/// Whether the thread can be let into its call: a signal that is about to be delivered would be, and end the call.
pub(crate) fn possible(tracee: &Tracee) -> bool {
    tasks::status(tracee.pid, tracee.tid).is_some_and(|status| status.pending & !tracee.own.mask & !status.ignored == 0)
}

/// Observes while the thread sleeps in its call. `None` when the call ended instead; the registers have changed then.
pub(crate) fn observe<T>(
    calls: &Calls,
    tracee: &mut Tracee,
    by: Deadline,
    observation: impl FnOnce() -> T,
) -> Result<Option<T>> {
    tracee.go_home(calls)?;
    let observed = go_in(calls, tracee, by, observation);
    if observed.is_err() {
        leave(calls, tracee);
    }
    observed
}

/// After an error: the thread stops, has its own mask (it blocks a signal that came meanwhile), and what its call came to
/// is its own.
fn leave(calls: &Calls, tracee: &mut Tracee) {
    let (pid, tid) = (tracee.pid, tracee.tid);
    let mask = tracee.own.mask;
    if calls.set_signal_mask(tid, mask).is_err() {
        // It runs, or the fault was in this very call.
        let stopped = calls.interrupt(tid).and_then(|()| any_stop(calls, pid, tid, crate::grace()));
        if let Err(error) = stopped.and_then(|_| calls.set_signal_mask(tid, mask)) {
            tracing::warn!(%error, "a signal mask was not put back");
        }
    }
    if let Ok(seen) = calls.registers(tid) {
        tracee.own.regs = Regs { orig_ax: tracee.own.regs.orig_ax, ..seen };
    }
}

fn go_in<T>(calls: &Calls, tracee: &mut Tracee, by: Deadline, observation: impl FnOnce() -> T) -> Result<Option<T>> {
    let (pid, tid) = (tracee.pid, tracee.tid);
    // To the border of restart_syscall, then into it.
    calls.cont_to_syscall(tid, 0)?;
    let mut status = any_stop(calls, pid, tid, by)?;
    while status != BORDER {
        pass_on(calls, tracee, status)?;
        status = any_stop(calls, pid, tid, by)?;
    }
    calls.cont_to_syscall(tid, 0)?;
    let mut patience = Patience::until(by);
    while tasks::state(pid, tid) != Some('S') && calls.look(tid)? == Seen::Nothing {
        if !patience.wait() {
            return Err(late("go on with its call", pid, tid));
        }
    }
    let observed = observation();
    come_back(calls, tracee, by)?;
    let inside = interrupted(&tracee.own.regs) == Interrupted::Block;
    Ok(inside.then_some(observed))
}

/// Stops the thread again and takes over its registers.
fn come_back(calls: &Calls, tracee: &mut Tracee, by: Deadline) -> Result<()> {
    let (pid, tid) = (tracee.pid, tracee.tid);
    calls.interrupt(tid)?;
    let mut status = any_stop(calls, pid, tid, by)?;
    while status >> 8 != EVENT_STOP {
        // Any stop forgets a pending interrupt.
        calls.interrupt(tid)?;
        pass_on(calls, tracee, status)?;
        status = any_stop(calls, pid, tid, by)?;
    }
    calls.set_signal_mask(tid, tracee.own.mask)?;
    let seen = calls.registers(tid)?;
    let nr = tracee.own.regs.orig_ax;
    if seen.orig_ax != RESTART_SYSCALL && seen.orig_ax != nr {
        return Err(MechanismError::System {
            operation: "letting it go on with its call",
            tid,
            source: std::io::ErrorKind::InvalidData.into(),
        });
    }
    tracee.own.regs = Regs { orig_ax: nr, ..seen };
    Ok(())
}

/// Lets the thread go on from a stop that is not the one waited for. A signal is queued again: it is blocked at the
/// moment of its delivery (kernel/signal.c `ptrace_signal`).
fn pass_on(calls: &Calls, tracee: &Tracee, status: i32) -> Result<()> {
    let signal = if status == BORDER || status >> 8 != 0 { 0 } else { status & 0xff };
    if signal != 0 {
        calls.set_signal_mask(tracee.tid, tracee.own.mask | bit(signal))?;
    }
    calls.cont_to_syscall(tracee.tid, signal)
}

/// Where a thread sleeps. It is said to sleep a moment before it has left its processor, and until then nothing is told.
fn asleep_in(pid: Pid, tid: Tid) -> String {
    const TIMES: u32 = 200;
    const PAUSE: std::time::Duration = std::time::Duration::from_micros(20);
    for _ in 0..TIMES {
        let channel = tasks::wait_channel(pid, tid);
        if !channel.is_empty() {
            return channel;
        }
        std::thread::sleep(PAUSE);
    }
    String::new()
}

/// Learns the true number of a call that hides behind `restart_syscall`, of a thread that was caught between two sleeps.
pub(crate) fn name_call(calls: &Calls, tracee: &mut Tracee, by: Deadline) -> Result<()> {
    let regs = &tracee.own.regs;
    let hidden = regs.orig_ax == RESTART_SYSCALL && interrupted(regs) == Interrupted::Block;
    if !hidden || !possible(tracee) {
        return Ok(());
    }
    let (pid, tid) = (tracee.pid, tracee.tid);
    let channel = observe(calls, tracee, by, || asleep_in(pid, tid))?;
    if let Some(nr) = channel.and_then(|channel| restarted_call(&tracee.own.regs, &channel)) {
        tracee.own.regs.orig_ax = nr;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use hdcr_engine::mechanism::Stand;
    use nix::sys::signal::{Signal, kill};

    use super::*;
    use crate::faults::{Faults, Steps};
    use crate::registers::RestartBlock;
    use crate::standing::Standing;
    use crate::tracee::{Own, Place};

    fn calls(fail_at: Option<u64>) -> Calls {
        Calls { steps: Steps::new(Faults { fail_at, ..Faults::default() }), marks: true, standing: Standing::default() }
    }

    fn soon() -> Deadline {
        Deadline(Instant::now() + Duration::from_secs(20))
    }

    /// A stopped thread that sleeps for a minute, and its process.
    fn sleeper(calls: &Calls) -> (Child, Tracee) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid(child.id().cast_signed());
        let tid = pid.leader();
        let mut patience = Patience::until(soon());
        while !tasks::wait_channel(pid, tid).contains("nanosleep") {
            assert!(patience.wait(), "it does not sleep");
        }
        calls.seize(tid, libc::PTRACE_O_TRACESYSGOOD).unwrap();
        calls.interrupt(tid).unwrap();
        any_stop(calls, pid, tid, soon()).unwrap();
        let own = Own { regs: calls.registers(tid).unwrap(), mask: calls.signal_mask(tid).unwrap() };
        let tracee = Tracee {
            tid,
            pid,
            stand: Stand::Running,
            own,
            place: Place::Home,
            restart_block: RestartBlock::Kept,
            running: false,
            missed: None,
            put_back: false,
            shown: None,
            born: None,
        };
        (child, tracee)
    }

    #[test]
    fn whatever_fails_the_mask_is_the_threads_own() {
        let clean = calls(None);
        let (mut child, mut tracee) = sleeper(&clean);
        let (tid, mask) = (tracee.tid, tracee.own.mask);
        let raw = nix::unistd::Pid::from_raw(tid.0);
        let mut failed = 0;
        for fail_at in 1..200 {
            // A signal that comes in the middle is blocked for a moment.
            kill(raw, Signal::SIGWINCH).unwrap();
            let calls = calls(Some(fail_at));
            let observed = observe(&calls, &mut tracee, soon(), || ());
            assert_eq!(clean.signal_mask(tid).unwrap(), mask, "call {fail_at} failed");
            if calls.steps.made() < fail_at {
                assert_eq!(observed.unwrap(), Some(()));
                break;
            }
            failed += u32::from(observed.is_err());
        }
        assert!(failed > 8, "{failed}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
