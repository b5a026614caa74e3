//! The rules of the protocol by name. Tests break one at a time, to show that the search finds what it is there for.

/// What must hold, and is not plain from the states alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// `Hold` is ordered when all are frozen.
    FreezeBarrier,
    /// `Capture` is ordered when all hold.
    HoldBarrier,
    /// `Thaw` is ordered when all have captured.
    CaptureBarrier,
    /// The commit is written when all are durable.
    DurableBarrier,
    /// `Durable` is said only by who was thawed by order.
    DurableAfterThaw,
    /// The end of a lease thaws.
    LeaseThaws,
    /// The end of a lease ends the round for its participant.
    LeaseRefuses,
    /// Orders of an earlier term are not obeyed.
    TermFences,
    /// Orders to an earlier life of an agent are not obeyed, nor its reports heard.
    BootFences,
    /// An agent that starts learns term and incarnation from the ledger.
    BootReadsLedger,
    /// A word of another round is not counted.
    RoundFences,
    /// `Commit` is told when the entry is known to be written.
    CommitAfterWrite,
    /// While it is not known whether the entry was written nothing is told.
    UnknownWaits,
    /// An entry is one's own only if its author is oneself.
    AuthorKnown,
    /// Each claim is written before the first order.
    ClaimFirst,
    /// A rollback is written before the first kill.
    RollbackFirst,
    /// Nothing is restored before all that ran is killed or excluded.
    FenceBeforeRestore,
    /// Who has still to be excluded stands in the ledger.
    SuspectsRemembered,
    /// Nothing runs before all is restored.
    RestoreBarrier,
    /// What waits behind the gate is killed when its lease ends.
    GateLease,
    /// Tasks of a new member run when it is in the view.
    JoinWaits,
    /// Of the tasks that were put on a host one after the other, each is told and asked for by its number.
    StaysCounted,
    /// What was restored for a run is let run once.
    RunsOnce,
    /// A coordinator that hears of a newer term gives up.
    NewerTermDeposes,
    /// The end of tasks is not counted of those that run no more: an order can come before the word of it.
    EndsCounted,
    /// Sequence numbers of connections are compared.
    ChannelsChecked,
    /// Garbage is what belongs to rounds before the newest committed one only.
    GarbageBounded,
}

/// Which rules are kept: all, but in tests that break one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    #[cfg(test)]
    broken: u32,
}

impl Rules {
    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "in tests it depends on the value")]
    pub(crate) fn keep(self, _rule: Rule) -> bool {
        true
    }

    #[cfg(test)]
    pub(crate) fn keep(self, rule: Rule) -> bool {
        self.broken & Rules::bit(rule) == 0
    }

    #[cfg(test)]
    pub(crate) fn without(self, rule: Rule) -> Self {
        Rules { broken: self.broken | Rules::bit(rule) }
    }

    #[cfg(test)]
    #[expect(clippy::as_conversions, reason = "a field-less enum has no other way to its number")]
    fn bit(rule: Rule) -> u32 {
        1 << (rule as u32)
    }
}
