//! What is put in before the release, wherever it lies: what threads stand on, and what the kernel works with without
//! waiting for a page.
//!
//! - where registers point to: arguments of calls that are begun again, among them futexes that the kernel takes over by
//!   itself (kernel/futex/core.c `fault_in_user_writeable`)
//! - the top of the stack, where a signal frame goes
//! - what is written at the end of a thread, when the kernel waits for no page any more (fs/userfaultfd.c `PF_EXITING`):
//!   the number that is cleared, and the list of robust futexes

use hdcr_image::hdcr_layout::Registers;

use super::Filling;
use crate::error::Result;
use crate::ids::{Pid, RemotePtr, Tid};
use crate::mechanism::Nursery;
use crate::memory::PAGE;
use crate::model::ObjectId;
use crate::regs::Regs;
use crate::restore::Restore;
use crate::task::thread_ids::ThreadIdsRecord;

/// Of a stack: below the top, and above it.
const STACK: (u64, u64) = (2 * PAGE, 8 * PAGE);
/// `ROBUST_LIST_LIMIT` of linux/futex.h.
const ROBUST: usize = 2048;

/// Brings what a thread needs.
pub(crate) fn bring(
    cx: &Restore<'_>,
    nursery: &dyn Nursery,
    filling: &Filling,
    (pid, tid, id): (Pid, Tid, ObjectId),
) -> Result<()> {
    let registers: Registers = cx.record(id)?;
    let regs = Regs::from_words(registers.words);
    let mut addresses = regs.to_words().to_vec();
    // What they point to may reach into the next page.
    addresses.extend(regs.to_words().map(|word| word.saturating_add(PAGE)));
    let (below, above) = (regs.sp.saturating_sub(STACK.0), regs.sp.saturating_add(STACK.1));
    addresses.extend((below / PAGE * PAGE..above).step_by(usize::try_from(PAGE).unwrap_or(4096)));
    filling.bring(pid, &addresses)?;
    let known = cx.has::<ThreadIdsRecord>(id);
    let ids: ThreadIdsRecord = if known { cx.record(id)? } else { ThreadIdsRecord::default() };
    filling.bring(pid, &ids.written_by_kernel())?;
    robust(nursery, filling, (pid, tid), ids.robust_head())
}

/// Follows the list as the kernel will (kernel/futex/core.c `exit_robust_list`). A list that leads nowhere is the program's.
fn robust(nursery: &dyn Nursery, filling: &Filling, (pid, tid): (Pid, Tid), head: u64) -> Result<()> {
    let word = |at: u64| -> Result<Option<u64>> {
        filling.bring(pid, &[at, at.saturating_add(7)])?;
        let mut bytes = [0; 8];
        Ok(nursery.read(tid, RemotePtr(at), &mut bytes).ok().map(|()| u64::from_ne_bytes(bytes)))
    };
    if head == 0 {
        return Ok(());
    }
    let offset = word(head.saturating_add(8))?.unwrap_or(0);
    let pending = word(head.saturating_add(16))?.unwrap_or(0);
    let futex = |node: u64| (node & !1).wrapping_add(offset);
    filling.bring(pid, &[futex(pending)])?;
    let mut next = word(head)?;
    for _ in 0..ROBUST {
        let Some(node) = next.map(|node| node & !1).filter(|node| *node != head && *node != 0) else { break };
        filling.bring(pid, &[futex(node)])?;
        next = word(node)?;
    }
    Ok(())
}
