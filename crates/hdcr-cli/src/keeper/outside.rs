//! An algorithm outside of the keeper (`--algorithm exec:COMMAND`): questions and answers, one after the other.
//!
//! Nobody waits for it. Until it has said hello, when it does not answer in time, answers something else, or has ended, what
//! happens is decided by a rule of the keeper's own. What it would do after a fault it is asked beforehand.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use hdcr::algorithm::line::{self, Answer, Asked, Hello, LONGEST_ANSWER, Question, VERSION, WITHIN, Welcome};
use hdcr::{Heard, Link};
use hdcr_policy::algorithm::{
    Algorithm, Decision, Event, Exact, Facts, Fault, Fixed, Kept, Kind, Level, Observation, OnNotice, Order, Recovery,
    Whom, oldest_beyond,
};

use serde::Serialize;

use crate::duration;
use crate::kinds::Every;
use crate::rule::{FromRule, ToRule};

/// More questions are not kept for one that is slow.
const QUEUE: usize = 32;

/// What it is asked.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Inquiry {
    Decide { now: Duration, event: Event, facts: Facts },
    Forget(Vec<Kept>),
    Recover(Fault, Vec<Kept>),
}

/// Where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stands {
    /// It does not run, or not yet.
    Away,
    /// It was greeted and has so long to answer.
    Greeted(Instant),
    Ready,
    /// Whoever ran it is gone.
    Gone,
}

/// What it has said, and what follows.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Happened {
    /// It is there, under this name.
    Ready(String),
    Decided(Event, Decision),
    GivesUp(Vec<u64>),
    /// On standard error.
    Said(String),
    /// It is not there: why, and what it has left undecided.
    Away(String, Vec<(Event, Decision)>),
}

/// The keeper's side of it.
#[derive(Debug)]
pub(super) struct Outside {
    link: Link,
    job: String,
    stands: Stands,
    asked: Option<(u64, Inquiry, Instant)>,
    queue: VecDeque<Inquiry>,
    last: u64,
    instead: Box<dyn Algorithm + Send>,
    /// What it would do after a fault, and after the same one again, when this is the newest checkpoint.
    standing: [Option<(u64, Recovery)>; 2],
    idle: bool,
    /// The process that runs it.
    runner: Option<i32>,
}

impl Outside {
    pub(super) fn new(link: Link, job: &str, every: Every) -> Self {
        let otherwise: Box<dyn Algorithm + Send> = match every {
            Every::Fixed(period) => Box::new(Fixed::new(period)),
            Every::Auto => Box::new(Exact::default()),
        };
        Self {
            link,
            job: job.to_owned(),
            stands: Stands::Away,
            asked: None,
            queue: VecDeque::new(),
            last: 0,
            instead: Box::new(OnNotice::new(otherwise)),
            standing: [None; 2],
            idle: false,
            runner: None,
        }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        (self.stands != Stands::Gone).then(|| self.link.as_fd())
    }

    /// Whether it wants to be told that the program does nothing.
    pub(super) fn wants_idleness(&self) -> bool {
        self.idle && self.stands == Stands::Ready
    }

    /// Whether an answer is to come.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some() || !self.queue.is_empty()
    }

    /// When it is late.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match (self.stands, &self.asked) {
            (Stands::Greeted(until), _) => Some(until),
            (Stands::Ready, Some((_, _, until))) => Some(*until),
            _ => None,
        }
    }

    /// What is to be done, when that is known at once; else it is asked.
    pub(super) fn decide(&mut self, now: Duration, event: Event, facts: &Facts) -> Option<Decision> {
        if self.stands != Stands::Ready || self.queue.len() >= QUEUE {
            return Some(self.instead.decide(&Observation { now, event, facts }));
        }
        self.queue.push_back(Inquiry::Decide { now, event, facts: facts.clone() });
        None
    }

    /// Asks which checkpoints are given up, and what would be done after a fault.
    pub(super) fn ask_of(&mut self, now: Duration, kept: &[Kept], used: Option<u64>) {
        if self.stands != Stands::Ready || self.queue.len() >= QUEUE {
            return;
        }
        self.queue.push_back(Inquiry::Forget(kept.to_vec()));
        for again in [false, true] {
            let fault = Fault { at: now, severity: Level(0), again, last: used.filter(|_| again) };
            self.queue.push_back(Inquiry::Recover(fault, kept.to_vec()));
        }
    }

    /// What it has said it would do after such a fault.
    pub(super) fn recovery(&self, again: bool, newest: u64) -> Option<Recovery> {
        let standing = self.standing.get(usize::from(again)).copied().flatten();
        standing.filter(|(of, _)| *of == newest).map(|(_, recovery)| recovery)
    }

    /// Asks the next question when the last one is answered; what follows when that cannot be done.
    pub(super) fn ask(&mut self) -> Option<Happened> {
        if self.stands != Stands::Ready || self.asked.is_some() {
            return None;
        }
        let inquiry = self.queue.pop_front()?;
        self.last = self.last.saturating_add(1);
        let question = Question { id: self.last, asked: asked(&inquiry) };
        self.asked = Some((self.last, inquiry, Instant::now() + WITHIN));
        if self.say(&question) { None } else { Some(self.again("does not take its question")) }
    }

    /// It is late, if it is.
    pub(super) fn is_late(&mut self, now: Instant) -> Option<Happened> {
        let late = self.deadline().is_some_and(|deadline| now >= deadline);
        late.then(|| self.again(&format!("has not answered within {}", duration::show(WITHIN))))
    }

    /// The next thing that it has said.
    pub(super) fn hear(&mut self) -> Option<Happened> {
        loop {
            if self.stands == Stands::Gone {
                return None;
            }
            match self.link.hear::<FromRule>() {
                Ok(Heard::Nothing) => return None,
                Ok(Heard::Said(FromRule::Began { own })) => {
                    self.runner = Some(own);
                    if let Some(happened) = self.greet() {
                        return Some(happened);
                    }
                }
                Ok(Heard::Said(FromRule::Said(line))) => return Some(Happened::Said(line)),
                Ok(Heard::Said(FromRule::Line(line))) => {
                    if let Some(happened) = self.on_line(&line) {
                        return Some(happened);
                    }
                }
                Ok(Heard::Said(FromRule::Ended { how, pause })) => {
                    // One that was told to end has been told of already.
                    if self.stands != Stands::Away {
                        return Some(
                            self.away(&format!("has ended ({how}); started again in {}", duration::show(pause))),
                        );
                    }
                }
                Ok(Heard::Ended) | Err(_) => {
                    let happened = self.away("is gone for good");
                    self.stands = Stands::Gone;
                    return Some(happened);
                }
            }
        }
    }

    /// A process number is needed that one of its processes has.
    pub(super) fn makes_room(&mut self, taken: &[i32]) {
        let Some(runner) = self.runner else { return };
        if taken.contains(&runner) {
            self.stands = Stands::Gone;
            if let Err(error) = rustix::net::shutdown(self.link.as_fd(), rustix::net::Shutdown::Both) {
                tracing::debug!(%error, "whoever runs the algorithm is not told");
            }
        } else if crate::process::below(runner).iter().any(|pid| taken.contains(pid)) {
            self.again("has a process number that the program needs");
        }
    }

    fn greet(&mut self) -> Option<Happened> {
        self.stands = Stands::Greeted(Instant::now() + WITHIN);
        let within_ms = u64::try_from(WITHIN.as_millis()).unwrap_or(u64::MAX);
        let hello = Hello { hdcr: VERSION, job: self.job.clone(), within_ms, longest: LONGEST_ANSWER };
        if self.say(&hello) { None } else { Some(self.again("does not take its greeting")) }
    }

    /// Writes a line to it; false when that cannot be done at once.
    fn say(&self, message: &impl Serialize) -> bool {
        serde_json::to_string(message).is_ok_and(|line| self.link.send(&ToRule::Line(line)).is_ok())
    }

    fn on_line(&mut self, line: &str) -> Option<Happened> {
        match (self.stands, self.asked.take()) {
            (Stands::Greeted(_), _) => match serde_json::from_str::<Welcome>(line) {
                Ok(Welcome { hdcr: 1..=VERSION, name, idle }) => {
                    (self.stands, self.idle) = (Stands::Ready, idle);
                    let name: String = name.unwrap_or_default().chars().filter(|c| !c.is_control()).take(40).collect();
                    Some(Happened::Ready(name))
                }
                Ok(Welcome { hdcr, .. }) => Some(self.again(&format!("speaks version {hdcr}, not {VERSION}"))),
                Err(error) => Some(self.again(&format!("does not greet: {error}"))),
            },
            (Stands::Ready, Some((id, inquiry, until))) => match serde_json::from_str::<Answer>(line) {
                Ok(answer) if answer.id == id => self.answered(inquiry, &answer),
                other => {
                    self.asked = Some((id, inquiry, until));
                    let why =
                        other.map_or_else(|error| error.to_string(), |answer| format!("it answers {}", answer.id));
                    Some(self.again(&format!("has not answered question {id}: {why}")))
                }
            },
            (Stands::Ready, None) => Some(self.again("answers what nobody has asked")),
            (Stands::Away | Stands::Gone, asked) => {
                self.asked = asked;
                None
            }
        }
    }

    fn answered(&mut self, inquiry: Inquiry, answer: &Answer) -> Option<Happened> {
        match inquiry {
            Inquiry::Decide { now, event, .. } => {
                let order =
                    |kind: line::KindLine| Order { kind: Option::<Kind>::from(kind), level: Level(0), whom: Whom::All };
                let wake = answer.in_s.map(|left| now.saturating_add(line::time(left)));
                let wake = answer.wake_s.map(line::time).or(wake);
                Some(Happened::Decided(event, Decision { checkpoint: answer.checkpoint.map(order), wake }))
            }
            Inquiry::Forget(kept) => {
                let all = answer.forget.clone();
                Some(Happened::GivesUp(all.unwrap_or_else(|| oldest_beyond(&kept, 3))))
            }
            Inquiry::Recover(fault, kept) => {
                let newest = kept.last().map(|one| one.number);
                let recovery = answer.recover.map(Recovery::from);
                if let Some(standing) = self.standing.get_mut(usize::from(fault.again)) {
                    *standing = newest.zip(recovery);
                }
                None
            }
        }
    }

    /// It is ended and started again.
    fn again(&mut self, why: &str) -> Happened {
        if let Err(error) = self.link.send(&ToRule::Again {}) {
            tracing::debug!(%error, "whoever runs the algorithm does not hear");
        }
        self.away(why)
    }

    /// It is not there any more: what it was asked is decided without it.
    fn away(&mut self, why: &str) -> Happened {
        self.stands = Stands::Away;
        self.standing = [None; 2];
        let asked = self.asked.take().map(|(_, inquiry, _)| inquiry);
        let left: Vec<Inquiry> = asked.into_iter().chain(std::mem::take(&mut self.queue)).collect();
        let instead = &mut self.instead;
        let decided = left.into_iter().filter_map(|inquiry| match inquiry {
            Inquiry::Decide { now, event, facts } => {
                Some((event, instead.decide(&Observation { now, event, facts: &facts })))
            }
            Inquiry::Forget(_) | Inquiry::Recover(..) => None,
        });
        Happened::Away(why.to_owned(), decided.collect())
    }
}

fn asked(inquiry: &Inquiry) -> Asked {
    match inquiry {
        Inquiry::Decide { now, event, facts } => {
            Asked::Decide { event: (*event).into(), now_s: now.as_secs_f64(), facts: facts.into() }
        }
        Inquiry::Forget(kept) => Asked::Forget { kept: line::kept(kept) },
        Inquiry::Recover(fault, kept) => Asked::Recover { fault: (*fault).into(), kept: line::kept(kept) },
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// One that is there, and its end of the way.
    fn ready() -> (Outside, Link) {
        let ends = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (near, far): (OwnedFd, OwnedFd) = ends.unwrap();
        let mut outside = Outside::new(Link::from(near), "sim", Every::Fixed(Duration::from_secs(30)));
        let far = Link::from(far);
        far.send(&FromRule::Began { own: 1 }).unwrap();
        assert_eq!(outside.hear(), None);
        assert!(line_of(&far).starts_with(r#"{"hdcr":1,"job":"sim""#));
        far.send(&FromRule::Line(r#"{"hdcr":1,"name":"mine"}"#.to_owned())).unwrap();
        assert_eq!(outside.hear(), Some(Happened::Ready("mine".to_owned())));
        (outside, far)
    }

    fn line_of(far: &Link) -> String {
        let heard = far.hear().unwrap();
        let Heard::Said(ToRule::Line(line)) = heard else { panic!("{heard:?}") };
        line
    }

    fn answers(outside: &mut Outside, far: &Link, text: &str) -> Option<Happened> {
        far.send(&FromRule::Line(text.to_owned())).unwrap();
        outside.hear()
    }

    fn asks(outside: &mut Outside, event: Event) {
        assert_eq!(outside.decide(Duration::from_secs(5), event, &Facts::default()), None);
        assert_eq!(outside.ask(), None);
    }

    #[test]
    fn it_is_asked_and_its_answer_is_followed() {
        let (mut outside, far) = ready();
        asks(&mut outside, Event::Due);
        assert!(line_of(&far).starts_with(r#"{"id":1,"ask":"decide","event":"due""#));
        let decision = Decision { checkpoint: Some(Order::default()), wake: Some(Duration::from_secs(7)) };
        let said = answers(&mut outside, &far, r#"{"id":1,"checkpoint":"any","in_s":2}"#);
        assert_eq!(said, Some(Happened::Decided(Event::Due, decision)));
        assert!(!outside.is_asked() && outside.deadline().is_none());
    }

    /// Whatever it says or leaves unsaid, what it was asked is decided, and it is started again.
    #[test]
    fn what_it_does_not_answer_is_decided_without_it() {
        let taken = Decision::take(Order::default());
        for said in [
            Some(r#"{"id":2}"#),
            Some(r#"{"id":1,"checkpoint":"half"}"#),
            Some("nonsense"),
            Some("{\"id\":1,\"wake_s\":\"soon\"}"),
            None,
        ] {
            let (mut outside, far) = ready();
            asks(&mut outside, Event::Due);
            line_of(&far);
            let late = Instant::now() + WITHIN * 2;
            let happened = match said {
                Some(said) => answers(&mut outside, &far, said),
                None => outside.is_late(late),
            };
            let Some(Happened::Away(_, left)) = happened else { panic!("{said:?}: {happened:?}") };
            assert_eq!(left, [(Event::Due, taken.clone())]);
            assert_eq!(far.hear::<ToRule>().unwrap(), Heard::Said(ToRule::Again {}));
            assert_eq!(outside.decide(Duration::ZERO, Event::Due, &Facts::default()), Some(taken.clone()));
        }
    }

    #[test]
    fn who_runs_it_may_be_gone() {
        let (mut outside, far) = ready();
        drop(far);
        assert!(matches!(outside.hear(), Some(Happened::Away(..))));
        assert!(outside.hear().is_none() && outside.fd().is_none());
    }

    #[test]
    fn what_it_would_do_after_a_fault_counts_for_the_checkpoints_it_was_asked_of() {
        let (mut outside, far) = ready();
        let kept: Vec<Kept> = [3, 4]
            .map(|number| Kept {
                number,
                taken: Duration::ZERO,
                kind: Kind::Full,
                base: None,
                level: Level(0),
                pinned: false,
            })
            .to_vec();
        outside.ask_of(Duration::ZERO, &kept, None);
        for (answer, expected) in [
            (r#"{"id":1}"#, Some(Happened::GivesUp(Vec::new()))),
            (r#"{"id":2,"recover":{"rollback":4}}"#, None),
            (r#"{"id":3,"recover":{"rollback":3}}"#, None),
        ] {
            assert_eq!(outside.ask(), None);
            line_of(&far);
            assert_eq!(answers(&mut outside, &far, answer), expected);
        }
        assert_eq!(
            (outside.recovery(false, 4), outside.recovery(true, 4)),
            (Some(Recovery::Rollback(4)), Some(Recovery::Rollback(3)))
        );
        assert_eq!(outside.recovery(false, 5), None);
    }
}
