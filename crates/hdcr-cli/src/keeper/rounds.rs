//! The program is asked before each checkpoint, when it wants to be: a round.
//!
//! The worker has copied ahead what it could and asks for its permit; every process that attends is told to prepare. One that
//! vetoes has its will. One that does not answer in time is told of and not waited for: it has said nothing against it,
//! and a job whose hook hangs needs its checkpoints most. When the program goes on, all are told so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hdcr::Heard;
use hdcr::wire::{Answer, Ask};

use super::Keeper;
use crate::door::Caller;
use crate::failure::{Class, Failure};
use crate::task::Permit;

/// So long a program may make itself ready.
pub(crate) const PREPARING: Duration = Duration::from_secs(5);

/// A process that wants to be asked.
#[derive(Debug)]
pub(super) struct Attendant {
    caller: Caller,
    number: u64,
    /// It wants no checkpoint at all.
    never: Option<Failure>,
}

/// Who attends, and the round that is under way.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    attendants: Vec<Attendant>,
    last: u64,
    /// The checkpoint for which they were asked has not let the program go on yet.
    is_open: bool,
    asking: Option<Asking>,
}

/// Not all have answered.
#[derive(Debug)]
struct Asking {
    until: Instant,
    waiting: BTreeSet<u64>,
}

impl Rounds {
    /// Whether anybody wants to be asked.
    pub(super) fn are_wanted(&self) -> bool {
        !self.attendants.is_empty()
    }

    /// When those are given up who have not answered.
    pub(super) fn until(&self) -> Option<Instant> {
        self.asking.as_ref().map(|asking| asking.until)
    }

    pub(super) fn callers(&self) -> impl Iterator<Item = &Caller> {
        self.attendants.iter().map(|attendant| &attendant.caller)
    }

    pub(super) fn attend(&mut self, caller: Caller) {
        self.last += 1;
        self.attendants.push(Attendant { caller, number: self.last, never: None });
    }

    /// Tells all to prepare, `None`; or what the worker is to be told at once.
    fn ask(&mut self, hold: Duration) -> Option<Permit> {
        if let Some(never) = self.attendants.iter().find_map(|attendant| attendant.never.clone()) {
            return Some(Permit::Denied(never));
        }
        self.last += 1;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let prepare = Answer::Prepare { round: self.last, within_ms: ms(PREPARING), hold_ms: ms(hold) };
        self.attendants.retain(|attendant| attendant.caller.link.send(&prepare).is_ok());
        let waiting: BTreeSet<u64> = self.attendants.iter().map(|attendant| attendant.number).collect();
        if waiting.is_empty() {
            return Some(Permit::Granted);
        }
        self.is_open = true;
        self.asking = Some(Asking { until: Instant::now() + PREPARING + GRACE, waiting });
        None
    }

    /// What was said meanwhile; what the worker is to be told when that is decided.
    fn hear(&mut self) -> Option<Permit> {
        let mut denied = None;
        let mut attendants = std::mem::take(&mut self.attendants);
        attendants.retain_mut(|attendant| self.goes_on(attendant, &mut denied));
        self.attendants = attendants;
        let asking = self.asking.as_mut()?;
        asking.waiting.retain(|number| self.attendants.iter().any(|attendant| attendant.number == *number));
        let decided = denied.map(Permit::Denied).or_else(|| asking.waiting.is_empty().then_some(Permit::Granted))?;
        self.asking = None;
        Some(decided)
    }

    /// Hears one of them; false when it is gone.
    fn goes_on(&mut self, attendant: &mut Attendant, denied: &mut Option<Failure>) -> bool {
        match attendant.caller.link.hear() {
            Ok(Heard::Nothing) => true,
            Ok(Heard::Said(Ask::Ready { round })) => {
                self.answered(attendant.number, round);
                true
            }
            Ok(Heard::Said(Ask::Veto { round, permanent, code, text })) => {
                let veto = vetoed(attendant.caller.pid, permanent, code, &text);
                attendant.never = permanent.then(|| veto.clone());
                if self.answered(attendant.number, round) {
                    denied.get_or_insert(veto);
                }
                true
            }
            Ok(Heard::Said(_) | Heard::Ended) | Err(_) => false,
        }
    }

    /// Whether that was asked for.
    fn answered(&mut self, number: u64, round: u64) -> bool {
        round == self.last && self.asking.as_mut().is_some_and(|asking| asking.waiting.remove(&number))
    }

    /// Gives those up who have not answered: who they are.
    fn give_up(&mut self, now: Instant) -> Option<Vec<i32>> {
        let asking = self.asking.take_if(|asking| now >= asking.until)?;
        let late = self.attendants.iter().filter(|attendant| asking.waiting.contains(&attendant.number));
        Some(late.map(|attendant| attendant.caller.pid).collect())
    }

    /// The program goes on.
    pub(super) fn resume(&mut self, captured: bool) {
        self.asking = None;
        if std::mem::take(&mut self.is_open) {
            let resume = Answer::Resume { round: self.last, captured };
            self.attendants.retain(|attendant| attendant.caller.link.send(&resume).is_ok());
        }
    }

    /// The program has ended.
    pub(super) fn forget(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }
}

/// An answer is on its way for so long.
const GRACE: Duration = Duration::from_millis(500);

fn vetoed(pid: i32, permanent: bool, code: i32, text: &str) -> Failure {
    let text: String = text.chars().filter(|character| !character.is_control()).take(200).collect();
    let when = if permanent { "wants no checkpoint" } else { "does not want this checkpoint" };
    let code = if code == 0 { String::new() } else { format!(" (code {code})") };
    let class = if permanent { Class::Refused } else { Class::Changed };
    Failure::new(class, "vetoed", format!("process {pid} {when}: {text}{code}"))
        .remedy("that is the program's own decision; it is asked again next time unless it wants none")
}

impl Keeper {
    /// The worker has copied ahead and wants to stop the program.
    pub(super) fn on_asking(&mut self) {
        let timeout = self.work.as_ref().and_then(|work| work.timeout).unwrap_or(self.plan.timeout);
        let hold = timeout + PREPARING;
        let permit = self.members.rounds.ask(hold);
        self.permit(permit);
    }

    /// Hears those who attend.
    pub(super) fn on_rounds(&mut self) {
        let permit = self.members.rounds.hear();
        self.permit(permit);
    }

    /// Nobody is waited for longer than that.
    pub(super) fn give_up_round(&mut self, now: Instant) {
        let Some(late) = self.members.rounds.give_up(now) else { return };
        for pid in late {
            self.detail(&format!(
                "process {pid} is not ready for its checkpoint in time; it is taken without its word"
            ));
        }
        self.permit(Some(Permit::Granted));
    }

    fn permit(&mut self, permit: Option<Permit>) {
        if let (Some(permit), Some(work)) = (permit, &self.work)
            && let Err(failure) = work.worker.tell(&permit)
        {
            tracing::debug!(%failure, "the worker does not listen");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use hdcr::Link;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// Somebody who attends, and the program's end.
    fn attendant(rounds: &mut Rounds, pid: i32) -> Link {
        let ends = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (near, far): (OwnedFd, OwnedFd) = ends.unwrap();
        rounds.attend(Caller::new(Link::from(near), pid));
        Link::from(far)
    }

    fn round_of(link: &Link) -> u64 {
        let heard = link.hear().unwrap();
        let Heard::Said(Answer::Prepare { round, .. }) = heard else { panic!("{heard:?}") };
        round
    }

    #[test]
    fn all_are_waited_for_and_all_are_told() {
        let mut rounds = Rounds::default();
        let (a, b) = (attendant(&mut rounds, 1), attendant(&mut rounds, 2));
        assert_eq!(rounds.ask(Duration::ZERO), None);
        let round = round_of(&a);
        assert_eq!(round_of(&b), round);
        a.send(&Ask::Ready { round }).unwrap();
        assert_eq!(rounds.hear(), None);
        // What was not asked for, and twice.
        b.send(&Ask::Ready { round: round - 1 }).unwrap();
        a.send(&Ask::Ready { round }).unwrap();
        assert_eq!(rounds.hear(), None);
        b.send(&Ask::Ready { round }).unwrap();
        assert_eq!(rounds.hear(), Some(Permit::Granted));
        rounds.resume(true);
        for link in [a, b] {
            assert_eq!(link.hear().unwrap(), Heard::Said(Answer::Resume { round, captured: true }));
        }
    }

    #[test]
    fn a_veto_has_its_will_once_or_for_good() {
        let mut rounds = Rounds::default();
        let a = attendant(&mut rounds, 7);
        for permanent in [false, true] {
            assert_eq!(rounds.ask(Duration::ZERO), None);
            let veto = Ask::Veto { round: round_of(&a), permanent, code: 3, text: "busy\u{1b}[2J".to_owned() };
            a.send(&veto).unwrap();
            let Some(Permit::Denied(failure)) = rounds.hear() else { panic!() };
            assert!(failure.message.ends_with("busy[2J (code 3)"), "{failure}");
            assert_eq!(failure.class == Class::Refused, permanent);
            rounds.resume(false);
            assert!(matches!(a.hear().unwrap(), Heard::Said(Answer::Resume { captured: false, .. })));
        }
        assert!(matches!(rounds.ask(Duration::ZERO), Some(Permit::Denied(_))));
        drop(a);
        rounds.hear();
        assert_eq!(rounds.ask(Duration::ZERO), Some(Permit::Granted));
    }

    #[test]
    fn who_is_silent_or_gone_is_not_waited_for() {
        let mut rounds = Rounds::default();
        let (a, _silent) = (attendant(&mut rounds, 1), attendant(&mut rounds, 2));
        assert_eq!(rounds.ask(Duration::ZERO), None);
        drop(a);
        assert_eq!(rounds.hear(), None);
        assert_eq!(rounds.give_up(Instant::now()), None);
        assert_eq!(rounds.give_up(Instant::now() + PREPARING * 2), Some(vec![2]));
        assert_eq!(rounds.give_up(Instant::now() + PREPARING * 2), None);
    }
}
