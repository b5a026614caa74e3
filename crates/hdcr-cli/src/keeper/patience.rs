//! A restore that cannot have its process numbers or its network addresses yet is tried again for a while: who has one now
//! is often about to end, and so are old connections. So is one that failed for something that passes: its processes or its
//! worker were killed, it took too long, there was no memory.

use std::time::{Duration, Instant};

use super::{Keeper, Phase};
use crate::failure::{Class, Failure, Result};
use crate::shortage;

/// How long all tries together may take.
const LIMIT: Duration = Duration::from_secs(30);
/// The same where an address is in use: old connections close for a minute each, in two states one after the other
/// (`TCP_TIMEWAIT_LEN`, include/net/tcp.h; `tcp_fin_timeout`, tcp(7)).
const LIMIT_OF_ADDRESSES: Duration = Duration::from_secs(130);
/// The first pause; each is twice as long as the one before it.
const FIRST: Duration = Duration::from_millis(50);
/// What is tried again soon.
const SOON: Duration = Duration::from_millis(200);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(4);

/// Tries that failed for what may pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    began: Instant,
    pause: Duration,
    /// When it is tried again.
    pub(super) next: Instant,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self { began: now, pause: FIRST, next: now + FIRST }
    }

    /// After one more failure; `None` when it has lasted too long.
    fn again(self, now: Instant, limit: Duration) -> Option<Self> {
        let pause = (self.pause * 2).min(LONGEST);
        (now < self.began + limit).then_some(Self { pause, next: now + pause, ..self })
    }
}

/// All that stands in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Taken {
    Numbers,
    /// And perhaps process numbers.
    Addresses,
}

impl Taken {
    fn by(failure: &Failure) -> Option<Self> {
        let all = |codes: &[&str]| failure.refusals.iter().all(|refusal| codes.contains(&refusal.code.as_str()));
        match failure.refusals.is_empty() {
            true => (failure.code == "pid-in-use").then_some(Self::Numbers),
            false if all(&["pid-taken"]) => Some(Self::Numbers),
            false => all(&["pid-taken", "port-taken"]).then_some(Self::Addresses),
        }
    }

    fn limit(self) -> Duration {
        match self {
            Self::Numbers => LIMIT,
            Self::Addresses => LIMIT_OF_ADDRESSES,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Numbers => "process numbers",
            Self::Addresses => "network addresses",
        }
    }
}

/// Whether another try may go better, with nobody's help.
fn passes(failure: &Failure) -> bool {
    const PASSING: [&str; 6] = ["gone", "late", "restore-runs", "worker-died", "no-memory", shortage::CODE];
    failure.class == Class::Changed || PASSING.contains(&failure.code.as_str())
}

/// How soon a checkpoint is tried again of a program that was met in a moment that passes, after so many such moments in a row.
/// `None`: it is none, or there have been too many.
pub(super) fn met_in_a_moment(failure: &Failure, moments: u32) -> Option<Duration> {
    const OF_A_MOMENT: [&str; 1] = ["tcp-unaccepted"];
    const TRIES: u32 = 10;
    let refused = &failure.refusals;
    let passes = !refused.is_empty() && refused.iter().all(|refusal| OF_A_MOMENT.contains(&refusal.code.as_str()));
    let pause = Duration::from_millis(20) * 2_u32.saturating_pow(moments);
    (passes && moments < TRIES).then(|| pause.min(SOON))
}

/// How soon a checkpoint is tried again that has failed so many times in a row, if it may only have been changed under our eyes.
pub(super) fn again_soon(failure: &Failure, failures: u32) -> Option<Duration> {
    (failure.class == Class::Changed && failures == 1).then_some(SOON)
}

impl Keeper {
    /// Waits for another try when that may help; says so at the first time.
    pub(super) fn has_patience(&mut self, number: u64, failure: &Failure) -> bool {
        let taken = Taken::by(failure);
        if taken.is_none() && !passes(failure) {
            return false;
        }
        if taken.is_some() {
            self.rule_makes_room(failure);
        }
        let now = Instant::now();
        let limit = taken.map_or(LIMIT, Taken::limit);
        let first = self.patience.is_none();
        self.patience = self.patience.map_or_else(|| Some(Patience::new(now)), |patience| patience.again(now, limit));
        if self.patience.is_none() {
            return false;
        }
        if first {
            let (name, limit) = (&self.plan.name, limit.as_secs());
            self.note(&match taken {
                Some(taken) => format!("job {name} waits up to {limit} s for its {}: {failure}", taken.what()),
                None => format!("the roll-back of job {name} is tried again, for up to {limit} s: {failure}"),
            });
        }
        self.phase = Phase::Waiting(number);
        true
    }

    /// Tries again when it is time.
    pub(super) fn try_again(&mut self) -> Result<()> {
        let (Phase::Waiting(number), Some(patience)) = (self.phase, self.patience) else { return Ok(()) };
        let made = self.line.find(number);
        match made.filter(|_| Instant::now() >= patience.next) {
            Some(made) => self.restore_by(made, self.brings_back),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::failure::Obstacle;
    use crate::kinds::Lazy;

    #[test]
    fn pauses_grow_and_end() {
        let now = Instant::now();
        let mut patience = Patience::new(now);
        let mut pauses = Vec::new();
        while let Some(next) = patience.again(patience.next, LIMIT) {
            pauses.push(next.pause.as_millis());
            patience = next;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 4000, 4000, 4000, 4000, 4000, 4000]);
    }

    fn failure(codes: &[&str]) -> Failure {
        let obstacle = |code: &&str| Obstacle {
            code: (*code).to_owned(),
            object: String::new(),
            pid: None,
            fd: None,
            path: None,
            cause: String::new(),
            remedy: String::new(),
        };
        let refusals = codes.iter().map(obstacle).collect();
        Failure { refusals, ..Failure::new(Class::Refused, "refused", "") }
    }

    #[test]
    fn the_next_try_brings_memory_back_as_the_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let now = Instant::now();
        keeper.line.push(1, Duration::ZERO, now, false);
        // As after a filling that failed, in a job that is brought back before all of its memory is there.
        (keeper.plan.lazy, keeper.brings_back) = (Lazy::Always, Lazy::Never);
        keeper.phase = Phase::Waiting(1);
        keeper.patience = Some(Patience { next: now, ..Patience::new(now) });
        keeper.try_again().unwrap();
        assert_eq!(keeper.brings_back, Lazy::Never);
        assert_ne!(keeper.phase, Phase::Waiting(1), "it was not tried");
    }

    #[test]
    fn moments_that_pass_are_soon_over() {
        let pauses =
            |failure: &Failure| (0..20).filter_map(|moments| met_in_a_moment(failure, moments)).collect::<Vec<_>>();
        let met = pauses(&failure(&["tcp-unaccepted", "tcp-unaccepted"]));
        assert!(met.len() == 10 && met.is_sorted() && met[0] == Duration::from_millis(20), "{met:?}");
        assert!(pauses(&failure(&["tcp-unaccepted", "seccomp"])).is_empty() && pauses(&failure(&[])).is_empty());
        let changed = Failure::new(Class::Changed, "changed", "");
        assert!(
            pauses(&changed).is_empty() && again_soon(&changed, 1) == Some(SOON) && again_soon(&changed, 2).is_none()
        );
    }

    #[test]
    fn only_what_is_taken_is_waited_for() {
        assert_eq!(Taken::by(&failure(&["pid-taken", "pid-taken"])), Some(Taken::Numbers));
        assert_eq!(Taken::by(&failure(&["pid-taken", "port-taken"])), Some(Taken::Addresses));
        assert_eq!(Taken::by(&failure(&["pid-taken", "file-missing"])), None);
        assert_eq!(Taken::by(&failure(&[])), None);
        assert_eq!(Taken::by(&Failure::refused("pid-in-use", "")), Some(Taken::Numbers));
        assert!(
            passes(&Failure::new(Class::Failed, "gone", ""))
                && passes(&Failure::new(Class::Internal, "worker-died", ""))
                && passes(&Failure::refused("restore-runs", ""))
        );
        assert!(
            !passes(&Failure::new(Class::Corrupt, "corrupt", "")) && !passes(&Failure::refused("file-missing", ""))
        );
    }
}
