//! System calls that a parked thread makes on itself.
// SPDX-License-Identifier: GPL-2.0-only

use hdcr_abi::{CALL_DATA, CALLS, CallRow, Calls, PointerRow, argument};

use crate::answer::{Errno, Result};
use crate::freeze::Frozen;
use crate::glue::Job;
use crate::plain;

/// Calls that use or replace what the thread stands in, by their numbers: `rt_sigreturn`, `clone`, `fork`, `vfork`, `execve`,
/// `exit`, `ptrace`, `restart_syscall`, `exit_group`, `execveat`, `clone3`.
const BANNED: [u64; 11] = [15, 56, 57, 58, 59, 60, 101, 219, 231, 322, 435];

/// Whether a call may be made, and names nothing that is not there.
fn is_sound(index: usize, row: &CallRow, size: u32) -> bool {
    let mut args = row.args.iter().zip(row.kinds);
    let known = args.all(|(arg, kind)| match kind {
        argument::VALUE => true,
        argument::DATA => *arg <= u64::from(size),
        argument::RESULT => usize::try_from(*arg).is_ok_and(|of| of < index),
        _ => false,
    });
    known && row.stops <= 1 && row.reserved == 0 && row.nr <= u64::from(u32::MAX) && !BANNED.contains(&row.nr)
}

fn is_inside(row: &PointerRow, size: u32) -> bool {
    row.place.checked_add(8).is_some_and(|end| end <= size) && row.target <= size
}

/// Has them made; the results are written back.
pub(crate) fn calls(frozen: &Frozen, request: &mut Calls) -> Result<()> {
    let counts = [request.count, request.places];
    let is_odd = request.reserved != 0 || request.size > CALL_DATA || request.within_ns > hdcr_abi::LONGEST_NS;
    if is_odd || counts.iter().any(|count| *count > CALLS) {
        return Err(Errno::INVAL);
    }
    request.made = 0;
    let member = frozen.member(request.tid)?;
    let mut job = Job::new(request.count, request.size, request.places)?;
    plain::all_from_user(request.calls, job.calls())?;
    plain::all_from_user(request.data, job.data())?;
    plain::all_from_user(request.pointers, job.pointers())?;
    let rows_are_sound = job.calls().iter().enumerate().all(|(index, row)| is_sound(index, row, request.size));
    if !rows_are_sound || !job.pointers().iter().all(|row| is_inside(row, request.size)) {
        return Err(Errno::INVAL);
    }
    let mut done = member.park.run(job, request.within_ns)?;
    request.made = done.made();
    plain::all_to_user(request.calls, done.calls())?;
    plain::all_to_user(request.data, done.data())
}
