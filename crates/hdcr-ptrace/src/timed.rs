//! Calls with a time limit: what remains of it.

use hdcr_engine::mechanism::{Deadline, Result, TimedCall};

use crate::calls::Calls;
use crate::registers::{Interrupted, interrupted};
use crate::tracee::Tracee;

/// The monotonic clock, in nanoseconds.
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The timed call that a thread is in.
pub(crate) fn call_of(
    _calls: &Calls,
    tracee: &mut Tracee,
    _stopped_at: u64,
    _by: Deadline,
) -> Result<Option<TimedCall>> {
    if interrupted(&tracee.own.regs) != Interrupted::Block {
        return Ok(None);
    }
    Ok(Some(TimedCall { nr: tracee.own.regs.orig_ax, remaining_ns: None }))
}
