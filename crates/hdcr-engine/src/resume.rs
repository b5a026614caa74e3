//! The last state of a thread, and how a call that was interrupted goes on.

use hdcr_image::hdcr_layout::Registers;
use nix::libc;

use crate::error::Result;
use crate::ids::{RemotePtr, Tid};
use crate::mechanism::{Final, Resume};
use crate::model::ObjectId;
use crate::regs::Regs;
use crate::restore::Restore;
use crate::tree::ThreadRecord;
/// What a thread gets last of all.
pub(crate) fn last_state(cx: &Restore<'_>, tid: Tid, id: ObjectId, stopped: Option<i32>) -> Result<Final> {
    let registers: Registers = cx.record(id)?;
    let record: ThreadRecord = cx.record(id)?;
    let mut regs = Regs::from_words(registers.words);
    let resume = resume(&mut regs, &record);
    Ok(Final { tid, regs, xstate: record.xstate, signal_mask: record.signal_mask, resume, stopped })
}

/// How an interrupted timed call goes on: begun anew with what remains of its time.
fn resume(regs: &mut Regs, record: &ThreadRecord) -> Resume {
    const RESTART_BLOCK: i64 = -516;
    const FUTEX_COMMAND: u64 = 0x7f;
    const FUTEX_WAIT: u64 = 0;
    if record.timed_call == 0 || regs.ax.cast_signed() != RESTART_BLOCK {
        return Resume::Plain;
    }
    let nr = record.timed_call;
    let original = [regs.di, regs.si, regs.dx, regs.r10, regs.r8, regs.r9];
    regs.orig_ax = nr;
    let Some(remaining) = record.remaining_ns else { return Resume::Plain };
    let mut timespec = [0; 16];
    timespec[..8].copy_from_slice(&(remaining / 1_000_000_000).to_le_bytes());
    timespec[8..].copy_from_slice(&(remaining % 1_000_000_000).to_le_bytes());
    // Below the red zone of the stack, where a signal frame would be put too; put back afterwards.
    let place = RemotePtr(regs.sp.wrapping_sub(128 + 16) & !15);
    let mut args = original;
    let argument = match nr {
        nr if nr == libc::SYS_poll.cast_unsigned() => {
            args[2] = remaining.div_ceil(1_000_000);
            return Resume::Timed { nr, args, scratch: None };
        }
        nr if nr == libc::SYS_nanosleep.cast_unsigned() => &mut args[0],
        nr if nr == libc::SYS_clock_nanosleep.cast_unsigned() => &mut args[2],
        // FUTEX_WAIT_BITSET takes an absolute time: the call is simply made again.
        nr if nr == libc::SYS_futex.cast_unsigned() && original[1] & FUTEX_COMMAND == FUTEX_WAIT => &mut args[3],
        _ => return Resume::Plain,
    };
    *argument = place.0;
    Resume::Timed { nr, args, scratch: Some((place, timespec)) }
}
