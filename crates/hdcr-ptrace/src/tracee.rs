//! One stopped thread: how it stood, what the program owns of it, and whether it is away in a stub.

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Deadline, Result, Stand};
use hdcr_engine::regs::Regs;

use crate::calls::Calls;
use crate::registers::{Interrupted, RestartBlock, before_call, interrupted, restarted_by_hand, waits_for_ever};
use crate::rendezvous::{self, Meeting, all_but, bit};
use crate::tasks::Status;

/// What the program owns of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Own {
    pub(crate) regs: Regs,
    pub(crate) mask: u64,
}

/// Where the thread's registers and mask are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In the thread: it stands in its program.
    Home,
    /// Kept here and in a control block: it stands in a stub.
    Stub,
}

/// A stopped thread.
#[derive(Clone, Debug)]
pub(crate) struct Tracee {
    pub(crate) tid: Tid,
    pub(crate) pid: Pid,
    pub(crate) stand: Stand,
    pub(crate) own: Own,
    pub(crate) place: Place,
    pub(crate) restart_block: RestartBlock,
    /// Let run in a stub, and not yet seen to stop again.
    pub(crate) running: bool,
    /// A signal that the program blocks came while it was let through in a stub: to be sent again.
    pub(crate) missed: Option<i32>,
    /// It stands before a call that a stop has ended; `ax` holds when that was, too (`waits`).
    pub(crate) put_back: bool,
    /// Its `status`, when somebody has read that since it stands. What is pending may be more by now.
    pub(crate) shown: Option<Status>,
    /// A child that it has made in a stub, attached at its birth.
    pub(crate) born: Option<Tid>,
}

impl Tracee {
    /// The registers with which the stub lets the thread go on when nobody traces it.
    pub(crate) fn healed(&self, restart_block: RestartBlock) -> Regs {
        let lost = self.restart_block == RestartBlock::Lost;
        restarted_by_hand(&self.own.regs, if lost { RestartBlock::Lost } else { restart_block })
    }

    /// The registers to put back at a stop inside the kernel's signal delivery, where the kernel restarts by itself.
    fn put_back(&self) -> Regs {
        let block = interrupted(&self.own.regs) == Interrupted::Block;
        // A call without end is made again as itself: `restart_syscall` would hide its number from the next freeze.
        if block && (self.restart_block == RestartBlock::Lost || waits_for_ever(&self.own.regs)) {
            return before_call(&self.own.regs, self.own.regs.orig_ax);
        }
        self.own.regs
    }

    /// Lets the thread run in a stub with these registers. Registers before the mask: it may differ only in a stub.
    pub(crate) fn start(&mut self, calls: &Calls, regs: &Regs, signal: i32) -> Result<()> {
        self.send_into_stub(calls, regs, signal)?;
        calls.cont(self.tid, 0)?;
        self.running = true;
        Ok(())
    }

    /// As [`Tracee::start`], but to the next border of a system call.
    pub(crate) fn start_to_border(&mut self, calls: &Calls, regs: &Regs, signal: i32) -> Result<()> {
        self.send_into_stub(calls, regs, signal)?;
        calls.cont_to_syscall(self.tid, 0)?;
        self.running = true;
        Ok(())
    }

    fn send_into_stub(&mut self, calls: &Calls, regs: &Regs, signal: i32) -> Result<()> {
        calls.set_registers(self.tid, regs)?;
        if self.place == Place::Home {
            self.place = Place::Stub;
            calls.set_signal_mask(self.tid, all_but(signal))?;
        }
        Ok(())
    }

    /// Waits until the thread has come to the rendezvous at `ip`.
    pub(crate) fn meet(&mut self, calls: &Calls, at: Meeting, by: Deadline) -> Result<Regs> {
        let mut strangers = Vec::new();
        let task = (self.pid, self.tid);
        let regs = rendezvous::meet(calls, task, at, by, (&mut strangers, &mut self.born))?;
        self.running = false;
        // Where the program does not block the signal it was chosen because nobody would notice it.
        if !strangers.is_empty() && self.own.mask & bit(at.signal) != 0 {
            self.missed = Some(at.signal);
        }
        Ok(regs)
    }

    /// Stops a thread that has not come to its rendezvous.
    pub(crate) fn stop(&mut self, calls: &Calls, by: Deadline) -> Result<()> {
        if self.running {
            calls.interrupt(self.tid)?;
            rendezvous::any_stop(calls, self.pid, self.tid, by)?;
            self.running = false;
        }
        Ok(())
    }

    /// Puts mask and registers of the program back. The mask first: it may differ only while the thread is in a stub.
    pub(crate) fn go_home(&mut self, calls: &Calls) -> Result<()> {
        if self.place == Place::Stub {
            calls.set_signal_mask(self.tid, self.own.mask)?;
            calls.set_registers(self.tid, &self.put_back())?;
            self.place = Place::Home;
        }
        Ok(())
    }
}
