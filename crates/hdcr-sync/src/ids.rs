//! The numbers that tell one checkpoint, coordinator, run and agent from another.

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                $name(self.0.saturating_add(1))
            }
        }
    };
}

number!(
    /// Counts the attempts of one coordinator at a checkpoint; it goes on from the newest committed one.
    Epoch, u64
);
number!(
    /// Counts the coordinators of a job: each claims the next one in the ledger before it gives an order.
    Term, u64
);
number!(
    /// Counts the runs of a job: 0 as it was started, one more with each rollback.
    Incarnation, u64
);
number!(
    /// A place in the ledger, which holds at most one entry for ever.
    Seq, u64
);
number!(
    /// One participant, that is one host of the job.
    Member, u32
);
number!(
    /// One life of a participant's agent; a later life of the same host has a higher number.
    Boot, u64
);
number!(
    /// Counts how often tasks were put on a host by a launcher in one life of its agent.
    Stay, u64
);
number!(
    /// Chosen at random by each coordinator, so that it knows its own entries in the ledger from those of a rival.
    Author, u64
);

/// One attempt at a checkpoint. Never used twice, as no two coordinators share a term; ordered as they begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Round {
    /// Whose attempt.
    pub term: Term,
    /// Which of them.
    pub epoch: Epoch,
}

/// What every message carries, so that it can be refused when it is late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The coordinator's term.
    pub term: Term,
    /// The run of the job that is meant.
    pub incarnation: Incarnation,
    /// The attempt that is meant.
    pub epoch: Epoch,
}

impl Stamp {
    /// The attempt of this message.
    pub fn round(self) -> Round {
        Round { term: self.term, epoch: self.epoch }
    }
}
