//! What follows from the end of a program that runs under a keeper: the end of the job, or a rollback, and how far.

use std::collections::BTreeSet;
use std::time::Duration;

/// `SIGHUP`, `SIGINT`, `SIGQUIT`, `SIGPIPE`, `SIGTERM`: by these a program is *asked* to end (or its reader has gone), so a
/// death by them is no crash.
const REQUESTS_TO_END: [i32; 5] = [1, 2, 3, 13, 15];

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Death {
    /// It ended by itself with this status.
    Exit(i32),
    /// A signal killed it.
    Signal(i32),
}

/// A further condition for a rollback (`--on`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Condition {
    /// It ended with just this status.
    Exit(i32),
    /// It ended with any status but 0.
    AnyFailure,
    /// This signal killed it, also when the user passed it on.
    Signal(i32),
    /// Any signal killed it.
    AnySignal,
}

/// The rules of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Conditions beyond a crash.
    pub on: BTreeSet<Condition>,
    /// How many times it may be rolled back or begun anew.
    pub restarts: u32,
    /// A crash at most this much later in the life of the program than the crash before counts as the same crash.
    pub slack: Duration,
}

/// What was seen of the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// How.
    pub death: Death,
    /// Somebody asked the job to end: the user passed on this very signal, or a request to end a moment ago, or said `stop`.
    pub asked_for: bool,
    /// How long the program had run then, counted along the line of its checkpoints: after a rollback the clock goes on
    /// from where the checkpoint had it.
    pub at: Duration,
}

/// What was decided before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// Rollbacks and new beginnings so far.
    pub restarts: u32,
    /// Where the crash before this one was.
    pub last_crash: Option<Duration>,
    /// Run time of the checkpoint that was gone back to then; `None`: the beginning.
    pub last_target: Option<Duration>,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The job has ended.
    End,
    /// Go back to this checkpoint (its place in the list).
    Rollback(usize),
    /// There is no checkpoint: begin anew.
    Begin,
    /// It has crashed too often.
    GiveUp,
}

/// Decides what follows from an end.
///
/// `checkpoints` holds the run time at which each usable checkpoint was made, oldest first. A crash at a new place goes
/// back to the newest. A crash at the same place as before, or earlier, says that the checkpoint may hold the cause: it
/// goes back to the newest one that is older than the one used last, or to the oldest when there is none.
pub fn decide(rules: &Rules, ended: Ended, history: History, checkpoints: &[Duration]) -> Decision {
    if !is_crash(&rules.on, ended) {
        return Decision::End;
    }
    if history.restarts >= rules.restarts {
        return Decision::GiveUp;
    }
    let Some(newest) = checkpoints.len().checked_sub(1) else {
        return Decision::Begin;
    };
    match history.last_target {
        Some(used) if is_again(rules, ended, history) => {
            Decision::Rollback(checkpoints.iter().rposition(|made| *made < used).unwrap_or(0))
        }
        _ => Decision::Rollback(newest),
    }
}

/// Whether a crash is at the same place as the one before, or earlier.
pub fn is_again(rules: &Rules, ended: Ended, history: History) -> bool {
    history.last_crash.is_some_and(|last| ended.at <= last.saturating_add(rules.slack))
}

/// Whether an end calls for a rollback.
fn is_crash(on: &BTreeSet<Condition>, ended: Ended) -> bool {
    match ended.death {
        Death::Exit(0) => on.contains(&Condition::Exit(0)),
        Death::Exit(status) => {
            on.contains(&Condition::Exit(status)) || (!ended.asked_for && on.contains(&Condition::AnyFailure))
        }
        Death::Signal(signal) => {
            let named = on.contains(&Condition::Signal(signal));
            let crash = !REQUESTS_TO_END.contains(&signal) || on.contains(&Condition::AnySignal);
            named || (crash && !ended.asked_for)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn rules(on: &[Condition]) -> Rules {
        Rules { on: on.iter().copied().collect(), restarts: 5, slack: s(1) }
    }

    fn ended(death: Death, asked_for: bool) -> Ended {
        Ended { death, asked_for, at: s(100) }
    }

    #[test]
    fn only_a_crash_or_what_is_named_rolls_back() {
        use Condition as C;
        use Death::{Exit, Signal};
        let rows: [(Death, bool, &[Condition], bool); 17] = [
            (Exit(0), false, &[], false),
            (Exit(0), false, &[C::AnyFailure], false),
            (Exit(1), false, &[], false),
            (Exit(75), false, &[C::Exit(75)], true),
            (Exit(75), true, &[C::Exit(75)], true),
            (Exit(3), false, &[C::AnyFailure], true),
            (Exit(3), true, &[C::AnyFailure], false),
            (Signal(9), false, &[], true),
            (Signal(9), true, &[], false),
            (Signal(11), false, &[], true),
            (Signal(6), false, &[], true),
            (Signal(15), false, &[], false),
            (Signal(15), true, &[C::Signal(15)], true),
            (Signal(2), true, &[], false),
            (Signal(13), false, &[], false),
            (Signal(13), false, &[C::AnySignal], true),
            (Signal(2), true, &[C::AnySignal], false),
        ];
        for (death, asked_for, on, crash) in rows {
            let decision = decide(&rules(on), ended(death, asked_for), History::default(), &[s(10)]);
            let expected = if crash { Decision::Rollback(0) } else { Decision::End };
            assert_eq!(decision, expected, "{death:?} {asked_for} {on:?}");
        }
    }

    #[test]
    fn the_same_crash_goes_further_back_each_time() {
        let kill = |at| Ended { death: Death::Signal(9), asked_for: false, at: s(at) };
        let after = |crash, target| History { restarts: 1, last_crash: Some(s(crash)), last_target: target };
        let made = [s(10), s(20), s(30)];
        let rows = [
            (kill(35), History::default(), Decision::Rollback(2)),
            // The same crash: one further back, also when a new checkpoint has been made in between.
            (kill(35), after(35, Some(s(30))), Decision::Rollback(1)),
            (kill(36), after(35, Some(s(20))), Decision::Rollback(0)),
            (kill(12), after(35, Some(s(10))), Decision::Rollback(0)),
            // Another crash, further on.
            (kill(60), after(35, Some(s(30))), Decision::Rollback(2)),
            // It began anew last time and now has checkpoints.
            (kill(35), after(35, None), Decision::Rollback(2)),
        ];
        for (ended, history, expected) in rows {
            assert_eq!(decide(&rules(&[]), ended, history, &made), expected, "{ended:?} {history:?}");
        }
    }

    #[test]
    fn without_a_checkpoint_it_begins_anew_and_at_last_gives_up() {
        let kill = ended(Death::Signal(11), false);
        let history = |restarts| History { restarts, ..History::default() };
        assert_eq!(decide(&rules(&[]), kill, history(4), &[]), Decision::Begin);
        assert_eq!(decide(&rules(&[]), kill, history(5), &[]), Decision::GiveUp);
        assert_eq!(decide(&rules(&[]), kill, history(5), &[s(1)]), Decision::GiveUp);
        let never = Rules { restarts: 0, ..rules(&[]) };
        assert_eq!(decide(&never, kill, history(0), &[s(1)]), Decision::GiveUp);
    }
}
