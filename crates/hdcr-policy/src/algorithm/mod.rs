//! The interface of checkpoint and recovery algorithms: observations in, decisions out.
//!
//! An [`Algorithm`] says when a checkpoint is taken, of whom, whether it is full or an increment, at which level it is
//! kept, which older ones are given up, and what happens after a fault. It does nothing itself: it reads no clock, no file
//! and no process, so that it can be tested with tables and replayed over traces of failures
//! ([`simulator`](crate::simulator)). Those that come with HDCR are here, one file each; a user writes one by the same
//! trait.

mod adaptive;
mod chain;
mod cooperative;
mod daly;
mod exact;
mod fixed;
mod learn;
mod levels;
mod on_idle;
mod on_notice;
mod settings;
mod young;

use std::fmt;
use std::time::Duration;

pub use adaptive::Adaptive;
pub use chain::Chain;
pub use cooperative::Cooperative;
pub use daly::Daly;
pub use exact::Exact;
pub(crate) use exact::exact;
pub use fixed::Fixed;
pub use learn::Learnt;
pub use levels::Levels;
pub use on_idle::OnIdle;
pub use on_notice::OnNotice;
pub use settings::{NAMES, Settings, by_name, make, takes};
pub use young::Young;

/// Where a checkpoint is kept. Level 0 is the nearest and cheapest and the first that is lost with its host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Level(pub u8);

/// How much of the memory a checkpoint holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// All of it.
    #[default]
    Full,
    /// What changed since the checkpoint before.
    Increment,
}

/// What a checkpoint took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// How long the program stood still. This is what the best period depends on.
    pub stopped: Duration,
    /// From the request until it was durable; until then it is of no use.
    pub total: Duration,
    /// Bytes written.
    pub bytes: u64,
}

/// A checkpoint that can be gone back to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Its number, never given twice.
    pub number: u64,
    /// When it was taken, on the clock of [`Observation::now`].
    pub taken: Duration,
    /// Full or an increment.
    pub kind: Kind,
    /// The checkpoint that it needs to be restored.
    pub base: Option<u64>,
    /// Where it lies.
    pub level: Level,
    /// Somebody asked for it to be kept.
    pub pinned: bool,
}

/// What has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The program has begun.
    Started,
    /// The moment that [`Decision::wake`] named has come.
    Due,
    /// A checkpoint is durable.
    Checkpointed {
        /// Full or an increment.
        kind: Kind,
        /// Where it lies.
        level: Level,
        /// What it took.
        cost: Cost,
    },
    /// A checkpoint failed, for the so-manieth time in a row.
    NotCheckpointed {
        /// Failures in a row.
        failures: u32,
    },
    /// The program runs again after a fault.
    Recovered {
        /// From the fault until it ran again.
        took: Duration,
    },
    /// Its end is near: a preemption notice, a `SIGTERM` of the batch system, a time limit.
    Notice {
        /// How long it still may run, when that is known.
        grace: Option<Duration>,
    },
    /// It has done nothing for so long (no CPU time).
    Idle(Duration),
    /// It says itself that this is a good moment.
    GoodMoment,
}

/// What can be known of a job.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// How long the program has worked, along the line of its checkpoints.
    pub ran: Duration,
    /// Bytes of memory in use.
    pub memory: u64,
    /// Bytes changed in a second, when changes are tracked.
    pub dirty_rate: Option<u64>,
    /// How many levels there are, at least 1.
    pub levels: u8,
    /// All checkpoints that can be gone back to, oldest first.
    pub kept: Vec<Kept>,
}

/// What an algorithm is told.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// Time since the job began, faults and restores included.
    pub now: Duration,
    /// What has happened.
    pub event: Event,
    /// How things stand.
    pub facts: &'a Facts,
}

/// Whose checkpoint is taken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Whom {
    /// Every process of the job, in one consistent state.
    #[default]
    All,
    /// These members of a parallel job.
    Members(Vec<u32>),
}

/// A checkpoint to be taken now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Order {
    /// Full, or an increment on the newest one; `None`: whichever HDCR finds cheaper. An increment without a base is made
    /// full.
    pub kind: Option<Kind>,
    /// Where it is to lie.
    pub level: Level,
    /// Whose.
    pub whom: Whom,
}

/// What an algorithm wants. The default: nothing, and to be asked again at the next event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Decision {
    /// A checkpoint, now.
    pub checkpoint: Option<Order>,
    /// When it wants to be asked again by [`Event::Due`], on the clock of [`Observation::now`]; `None`: as said before.
    pub wake: Option<Duration>,
}

impl Decision {
    /// A checkpoint now.
    pub fn take(order: Order) -> Self {
        Self { checkpoint: Some(order), wake: None }
    }

    /// Nothing before this moment.
    pub fn at(moment: Duration) -> Self {
        Self { checkpoint: None, wake: Some(moment) }
    }
}

/// A fault that ended the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// When.
    pub at: Duration,
    /// Checkpoints below this level are lost with it (0: none are).
    pub severity: Level,
    /// The same fault as the one before: it came back at the same place soon after the rollback.
    pub again: bool,
    /// Then: the checkpoint that was gone back to, when that is known.
    pub last: Option<u64>,
}

/// What is done after a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// Go back to this checkpoint.
    Rollback(u64),
    /// Begin anew.
    Begin,
    /// Leave it to the user.
    GiveUp,
}

/// What an algorithm wants to know that costs a look at every process of the job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Looks {
    /// [`Facts::memory`] and [`Facts::dirty_rate`].
    pub memory: bool,
    /// [`Event::Idle`].
    pub idleness: bool,
}

/// A checkpoint and recovery algorithm.
pub trait Algorithm: fmt::Debug {
    /// Its name, as `--algorithm` takes it.
    fn name(&self) -> &str;

    /// What it wants to know that it would not be told else.
    fn looks(&self) -> Looks {
        Looks::default()
    }

    /// What is to be done, after each event.
    fn decide(&mut self, seen: &Observation<'_>) -> Decision;

    /// Numbers of checkpoints that are given up, asked after each new one. Whatever is said, a base of one that is kept is
    /// kept.
    fn forget(&mut self, kept: &[Kept]) -> Vec<u64> {
        oldest_beyond(kept, 3)
    }

    /// What is done after a fault; `kept` is what has survived it, oldest first.
    fn recover(&mut self, fault: &Fault, kept: &[Kept]) -> Recovery {
        newest_unless_again(fault, kept)
    }
}

/// All but the newest so many (at least one), and but those that these need or that are pinned.
pub fn oldest_beyond(kept: &[Kept], keep: usize) -> Vec<u64> {
    let place = |number: u64| kept.iter().position(|one| one.number == number);
    let stored: Vec<crate::retention::Stored> = kept
        .iter()
        .map(|one| crate::retention::Stored {
            base: one.base.and_then(place),
            pinned: one.pinned,
            ..Default::default()
        })
        .collect();
    let given_up =
        crate::retention::give_up(&stored, &crate::retention::Limits { count: Some(keep), ..Default::default() });
    given_up.into_iter().filter_map(|place| kept.get(place)).map(|one| one.number).collect()
}

/// The newest checkpoint; when the same fault came again, the one before the one that was gone back to, as that may hold its
/// cause.
pub fn newest_unless_again(fault: &Fault, kept: &[Kept]) -> Recovery {
    let newest = kept.last();
    let used = fault.last.or(newest.map(|one| one.number));
    let before = kept.iter().rfind(|one| used.is_some_and(|used| one.number < used)).or(kept.first());
    let chosen = if fault.again { before } else { newest };
    chosen.map_or(Recovery::Begin, |one| Recovery::Rollback(one.number))
}

#[cfg(test)]
pub(crate) mod tests;
