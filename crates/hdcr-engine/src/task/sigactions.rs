//! `sigaction(2)`: what a process does on each of the 64 signals, also on the two that a libc keeps to itself.
//!
//! Asked of the process itself and kept as the kernel has them. They go back in two steps. Before anything is queued, every
//! signal is set to be ignored or to what it was when that was to ignore it: this discards reports that came up while the
//! tree was made (kernel/signal.c `do_sigaction`), and later nothing of the program's own queue is discarded. Handlers follow
//! at the very end.

use hdcr_image::List;
use hdcr_layout::SignalAction;
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::Result;
use crate::ids::Tid;
use crate::model;
use crate::restore::{Restore, TaskBatch};

pub(crate) struct SigActions;

/// What is kept: only actions that differ from the default.
pub(crate) type SigActionsRecord = List<SignalAction>;

/// Size of the kernel's `struct sigaction` (x86-64): handler, flags, restorer, mask.
const ACTION: usize = 32;
/// Size of the kernel's signal set.
const SET: u64 = 8;
const DEFAULT: u64 = 0;
const IGNORE: u64 = 1;

/// Every signal whose action can be set.
fn settable() -> impl Iterator<Item = u32> {
    (1..=64).filter(|signal| *signal != 9 && *signal != 19)
}

/// Whether setting this action discards what is pending: ignored, or ignored by default.
fn ignores(action: &SignalAction) -> bool {
    let signal = i32::try_from(action.signal).unwrap_or(0);
    let by_default = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH].contains(&signal);
    action.handler == IGNORE || (action.handler == DEFAULT && by_default)
}

fn default_of(signal: u32) -> SignalAction {
    SignalAction { handler: DEFAULT, flags: 0, restorer: 0, mask: 0, signal }
}

fn is_default(action: &SignalAction) -> bool {
    *action == default_of(action.signal)
}

fn set(batch: &mut TaskBatch, action: &SignalAction) {
    let new = batch.room(ACTION);
    for (at, word) in (new..).step_by(8).zip([action.handler, action.flags, action.restorer, action.mask]) {
        batch.put(at, &word.to_le_bytes());
    }
    let args = [Arg::Value(action.signal.into()), Arg::Data(new), Arg::Value(0), Arg::Value(SET)];
    batch.call("setting a signal action", libc::SYS_rt_sigaction, &args);
}

impl TaskKind for SigActions {
    type Record = SigActionsRecord;
    type Asked = Vec<(u32, usize, usize)>;
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, batch: &mut Batch) -> Self::Asked {
        let ask_one = |signal: u32| {
            let old = batch.room(ACTION);
            let args = [Arg::Value(signal.into()), Arg::Value(0), Arg::Data(old), Arg::Value(SET)];
            (signal, old, batch.try_call(libc::SYS_rt_sigaction, &args))
        };
        settable().map(ask_one).collect()
    }

    fn capture(
        _cx: &mut Capture<'_>,
        task: &TaskView,
        asked: Self::Asked,
        replies: &Replies,
    ) -> Result<SigActionsRecord> {
        let mut actions = Vec::new();
        for (signal, old, call) in asked {
            super::reply(task, replies, call, "rt_sigaction")?;
            let read = || {
                let word = |at: usize| replies.word(old.checked_add(at)?);
                Some(SignalAction { handler: word(0)?, flags: word(8)?, restorer: word(16)?, mask: word(24)?, signal })
            };
            let action = read().ok_or_else(|| model::no_reply(task, "rt_sigaction"))?;
            if !is_default(&action) {
                actions.push(action);
            }
        }
        Ok(List(actions))
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: SigActionsRecord) -> Result<()> {
        let of =
            |signal: u32| record.0.iter().find(|a| a.signal == signal).copied().unwrap_or_else(|| default_of(signal));
        for action in settable().map(of) {
            // A child that ended would vanish unreaped while SIGCHLD is SIG_IGN; its default discards reports as well.
            let first =
                if ignores(&action) || action.signal == libc::SIGCHLD.unsigned_abs() { DEFAULT } else { IGNORE };
            let cleared = SignalAction { handler: first, ..default_of(action.signal) };
            set(cx.batch(Stage::Timers, task), if ignores(&action) { &action } else { &cleared });
            if !ignores(&action) {
                set(cx.batch(Stage::Last, task), &action);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdcr_image::Record;

    #[test]
    fn the_record_comes_back_as_it_was() {
        let action =
            SignalAction { handler: 0x40_1000, flags: 0x0400_0004, restorer: 0x40_2000, mask: u64::MAX, signal: 33 };
        let record = List(vec![action, default_of(64)]);
        assert_eq!(SigActionsRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        assert!(SigActionsRecord::decode(&[7; 35], 1).is_err());
    }

    #[test]
    fn what_discards_pending_signals_is_known() {
        assert!(ignores(&default_of(17)) && !ignores(&default_of(14)));
        assert!(ignores(&SignalAction { handler: IGNORE, ..default_of(14) }));
        assert!(!ignores(&SignalAction { handler: 0x1000, ..default_of(17) }));
        assert_eq!(settable().count(), 62);
    }
}
