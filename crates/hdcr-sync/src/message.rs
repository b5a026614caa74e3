//! What a coordinator and its participants say to one another.

use std::collections::BTreeSet;

use crate::ids::{Boot, Incarnation, Member, Round, Stamp, Stay};
use crate::manifest::{Share, ShareId};

/// From the coordinator to one participant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order {
    /// For whom.
    pub to: Member,
    /// For which life of its agent; `None` for `Hail`, which asks for it.
    pub boot: Option<Boot>,
    /// Whose order, about what.
    pub stamp: Stamp,
    /// The newest committed round: tells a participant that waits how its round has ended.
    pub line: Option<Round>,
    /// What to do.
    pub what: Command,
}

/// What a coordinator orders.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// Say hello.
    Hail,
    /// The tasks of a member that joined may run: those that were put there last, not some that came before.
    Welcome(Stay),
    /// A round begins: run hooks, reserve space, copy ahead.
    Begin,
    /// Stop all tasks.
    Freeze,
    /// Hold the network of the job.
    Hold,
    /// Read what is stopped.
    Capture,
    /// Let the tasks run, drop the hold, and write what was read.
    Thaw,
    /// The round is committed.
    Commit,
    /// The round is over and never was.
    Abort,
    /// Kill all tasks of earlier incarnations.
    Fence(Next),
    /// Build these shares, stopped, behind the network hold.
    Restore(BTreeSet<ShareId>),
    /// All hosts have built theirs: let them run.
    Release,
}

/// What comes after a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Next {
    /// Shares will be built here: until then no other tasks have a place here.
    Restored,
    /// Nothing of the job belongs here.
    Nothing,
}

/// From a participant to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Report {
    /// Who.
    pub from: Member,
    /// In which life.
    pub boot: Boot,
    /// Of which tasks, if it is about those that a launcher has put there.
    pub stay: Stay,
    /// The stamp of the order that this answers.
    pub stamp: Stamp,
    /// What.
    pub what: Word,
}

/// What a participant tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word {
    /// I am here, and this is what I hold.
    Hello(Condition),
    /// Tasks of the job were put here and wait to run.
    Join,
    /// All tasks here have ended by themselves.
    Leave,
    /// `Begin` is done.
    Quiesced,
    /// `Freeze` is done.
    Frozen,
    /// `Hold` is done.
    Held,
    /// `Capture` is done.
    Captured,
    /// Written and synced; said only after `Thaw` was received in time.
    Durable(Share),
    /// This participant is out of the round and will never say `Durable` for it.
    Failed,
    /// `Fence` is done: nothing of an earlier incarnation runs here.
    Fenced,
    /// `Restore` is done: built, not running.
    Restored,
    /// `Release` is done.
    Running,
    /// Not an answer: a newer coordinator, whose term is in the stamp, is obeyed here.
    Superseded,
}

/// What a participant holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// No task.
    Empty,
    /// No task any more: all have come to their own end.
    Ended(Incarnation),
    /// Tasks that have not been let run yet.
    Waiting,
    /// Tasks that run.
    Running(Incarnation),
    /// Tasks that are being killed, restored, or wait behind the gate.
    Between,
}
