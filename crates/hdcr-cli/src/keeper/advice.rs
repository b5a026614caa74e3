//! An algorithm decides when checkpoints are taken (`--algorithm`): what it is told, and what becomes of its decisions.
//!
//! It advises, and the keeper acts: an order waits until a checkpoint can be taken, is never carried out more often than the
//! budget allows, and the newest checkpoint is never given up. Nothing here waits for anybody.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use hdcr::Link;
use hdcr_policy::algorithm::{
    Algorithm, Cost, Decision, Event, Facts, Fault, Kept, Kind, Level, Looks, Observation, Order, Recovery, Settings,
    make,
};
use hdcr_policy::interval::{Spent, pause_after};
use hdcr_policy::restart::{self, Ended};

use super::decided::{Decided, Word, kind_in_words, why};
use super::doings::{Doings, IDLE_LOOK};
use super::outside::Outside;
use super::work::Errand;
use super::{Keeper, Made, Phase, Plan};
use crate::algorithm::{Choice, Notice};
use crate::duration;
use crate::kinds::{Every, Keep};
use crate::parts;
use crate::process;
use crate::signals::Received;
use crate::task::Checkpointed;
use crate::worker::Worker;

/// It is asked again after so long, whatever it has said: it may have forgotten the job.
const LONGEST: Duration = Duration::from_hours(1);
/// Between two checkpoints, before one knows better.
const USUAL: Duration = Duration::from_secs(10);
/// After a failure nothing is tried sooner than that, doubled with each one in a row.
const PAUSE: Duration = Duration::from_millis(200);

/// A checkpoint that is wanted.
#[derive(Clone, Debug)]
struct Wanted {
    kind: Option<Kind>,
}

/// A signal that is passed on when a last checkpoint is there.
#[derive(Clone, Copy, Debug)]
struct Held {
    received: Received,
    until: Instant,
}

/// Who decides.
#[derive(Debug)]
pub(super) enum Rule {
    Own(Box<dyn Algorithm + Send>),
    Outside(Box<Outside>),
}

/// The algorithm of a job, and what follows from what it says.
#[derive(Debug)]
pub(crate) struct Adviser {
    pub(super) called: String,
    pub(super) rule: Rule,
    /// The period of what decides when nobody else does.
    period: Duration,
    notice: Notice,
    /// When it is asked again.
    next: Option<Instant>,
    order: Option<Wanted>,
    /// The kind of the checkpoint that is at work.
    pub(super) kind: Option<Kind>,
    /// No order is carried out before.
    not_before: Instant,
    /// When the last checkpoint was begun for it.
    taken: Option<Instant>,
    /// From one to the next, as it was, and as it is planned.
    gap: Option<Duration>,
    planned: Option<Duration>,
    told: Option<Duration>,
    given_up: Vec<u64>,
    held: Option<Held>,
    doings: Doings,
    pub(super) decided: Option<Decided>,
    /// When the program crashed that is brought back now.
    fell: Option<Instant>,
    has_begun: bool,
    /// It is outside and not there, and that was told.
    pub(super) is_missed: bool,
    /// When the program has said last that a moment is good.
    moment: Option<Instant>,
    /// It wants the job to end.
    pub(super) gave_up: bool,
}

impl Adviser {
    /// The one that was chosen. `every` is the period of those that have none of their own.
    pub(super) fn of(plan: &Plan, link: Option<Link>, now: Instant) -> Option<Self> {
        let choice = plan.algorithm.as_ref()?;
        let usual = match plan.every {
            Every::Fixed(time) => time,
            Every::Auto => Settings::default().period,
        };
        let (rule, notice) = match choice {
            Choice::Own { name, settings, period, notice } => {
                let settings = Settings { period: period.unwrap_or(usual), ..*settings };
                (Rule::Own(make(name, &settings)?), *notice)
            }
            Choice::Outside(_) => {
                (Rule::Outside(Box::new(Outside::new(link?, plan.name.as_str(), plan.every))), Notice::default())
            }
        };
        Some(Self::new(choice.called().to_owned(), rule, usual, notice, now))
    }

    fn new(called: String, rule: Rule, period: Duration, notice: Notice, now: Instant) -> Self {
        Self {
            called,
            rule,
            period,
            notice,
            next: None,
            order: None,
            kind: None,
            not_before: now,
            taken: None,
            gap: None,
            planned: None,
            told: None,
            given_up: Vec::new(),
            held: None,
            doings: Doings::new(now),
            decided: None,
            fell: None,
            has_begun: false,
            is_missed: false,
            moment: None,
            gave_up: false,
        }
    }

    pub(super) fn called(&self) -> &str {
        &self.called
    }

    /// From one checkpoint to the next: what is planned, or longer when it has come to that.
    pub(super) fn every(&self) -> Duration {
        match (self.planned, self.gap) {
            (Some(planned), Some(gap)) => planned.max(gap),
            (planned, gap) => planned.or(gap).unwrap_or(USUAL),
        }
    }

    /// What was decided last, and when it is asked again.
    pub(super) fn decided(&self) -> Option<String> {
        let decided = self.decided.as_ref()?;
        Some(decided.told())
    }

    /// Where one outside is heard.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.rule {
            Rule::Outside(outside) => outside.fd(),
            Rule::Own(_) => None,
        }
    }

    fn looks(&self) -> Looks {
        match &self.rule {
            Rule::Own(rule) => rule.looks(),
            Rule::Outside(outside) => Looks { memory: true, idleness: outside.wants_idleness() },
        }
    }

    /// Whether it is still to say what follows from what it was told.
    fn is_asked(&self) -> bool {
        matches!(&self.rule, Rule::Outside(outside) if outside.is_asked())
    }

    /// When something is to be done for it while a checkpoint could be taken.
    fn due(&self) -> Option<Instant> {
        if self.order.is_some() { Some(self.not_before) } else { self.next }
    }

    /// When something is to be done whatever is at work; `runs`: there is a program.
    fn deadline(&self, now: Instant, runs: bool) -> Option<Instant> {
        let idle = (runs && self.looks().idleness).then(|| now + IDLE_LOOK);
        let held = self.held.filter(|_| runs).map(|held| held.until);
        let answer = match &self.rule {
            Rule::Outside(outside) => outside.deadline(),
            Rule::Own(_) => None,
        };
        held.into_iter().chain(idle).chain(answer).min()
    }

    /// A checkpoint begins that it has ordered.
    fn begins(&mut self, now: Instant) {
        self.kind = self.order.take().and_then(|wanted| wanted.kind);
        self.gap = self.taken.map(|taken| now.saturating_duration_since(taken)).or(self.gap);
        self.taken = Some(now);
    }
}

impl Keeper {
    /// When a checkpoint may be due.
    pub(super) fn next_due(&self) -> Instant {
        match &self.adviser {
            None => self.next_checkpoint,
            Some(adviser) => adviser.due().unwrap_or(self.footing.next),
        }
    }

    /// When something is to be done for the algorithm whatever is at work.
    pub(super) fn advice_due(&self) -> Option<Instant> {
        self.adviser.as_ref()?.deadline(Instant::now(), self.phase == Phase::Running)
    }

    /// Whether a checkpoint is to be taken now. Asks the algorithm when it is time for that.
    pub(super) fn wants_checkpoint(&mut self, now: Instant) -> bool {
        let Some(adviser) = &mut self.adviser else { return now >= self.next_checkpoint };
        if adviser.order.is_none() && adviser.next.is_some_and(|next| now >= next) {
            adviser.next = Some(now + LONGEST);
            self.advise(Event::Due);
        }
        let Some(adviser) = &mut self.adviser else { return false };
        if adviser.order.is_some() && now >= adviser.not_before {
            adviser.begins(now);
            return true;
        }
        false
    }

    /// The next checkpoint is to be taken as soon as one can be.
    pub(super) fn checkpoint_soon(&mut self, pause: Duration) {
        let soon = Instant::now() + pause;
        self.next_checkpoint = soon;
        if let Some(adviser) = &mut self.adviser {
            adviser.order.get_or_insert(Wanted { kind: None });
            adviser.not_before = soon;
        }
    }

    /// All that can be gone back to.
    fn kept(&self) -> Vec<Kept> {
        let pins = parts::pins(&self.plan.store, &self.plan.name).unwrap_or_default();
        let kept = |made: &Made| Kept {
            number: made.number,
            taken: made.when.map_or(Duration::ZERO, |when| when.saturating_duration_since(self.began)),
            kind: if made.increment { Kind::Increment } else { Kind::Full },
            // What an image needs of the one before it has as well.
            base: None,
            level: Level(0),
            pinned: pins.contains_key(&made.number),
        };
        self.line.ways_back().iter().map(kept).collect()
    }

    /// The processes of the program.
    fn of_program(&self) -> Vec<i32> {
        let ours: Vec<i32> =
            self.work.iter().map(|work| work.worker.pid()).chain(self.spare.iter().map(Worker::pid)).collect();
        let all = process::below(std::process::id().cast_signed());
        all.into_iter().filter(|pid| !ours.contains(pid)).collect()
    }

    fn facts(&mut self) -> Facts {
        let (kept, ran, now) = (self.kept(), self.ran(), Instant::now());
        let is_followed = self.spare.is_some();
        let Some(adviser) = &self.adviser else { return Facts::default() };
        let mut doings = adviser.doings;
        if adviser.looks().memory {
            doings.look(now, || self.of_program());
        }
        if let Some(adviser) = &mut self.adviser {
            adviser.doings = doings;
        }
        Facts { ran, memory: doings.memory(), dirty_rate: doings.rate().filter(|_| is_followed), levels: 1, kept }
    }

    /// Tells the algorithm what has happened, and follows what it decides.
    pub(super) fn advise(&mut self, event: Event) {
        if self.adviser.is_none() {
            return;
        }
        let (now, facts) = (self.began.elapsed(), self.facts());
        let Some(adviser) = &mut self.adviser else { return };
        let decision = match &mut adviser.rule {
            Rule::Own(rule) => Some(rule.decide(&Observation { now, event, facts: &facts })),
            Rule::Outside(outside) => outside.decide(now, event, &facts),
        };
        match decision {
            Some(decision) => self.follow(event, &decision),
            None => self.on_rule(),
        }
    }

    /// Does what was decided.
    pub(super) fn follow(&mut self, event: Event, decision: &Decision) {
        let Some(adviser) = &mut self.adviser else { return };
        let now = Instant::now();
        let left = decision.wake.map(|wake| wake.saturating_sub(self.began.elapsed()).min(LONGEST));
        if let Some(left) = left {
            adviser.next = Some(now + left);
        }
        let begins = matches!(event, Event::Started | Event::Recovered { .. } | Event::Checkpointed { .. });
        if begins {
            adviser.planned = left.or(adviser.planned);
        }
        if let Some(Order { kind, .. }) = decision.checkpoint {
            adviser.order = Some(Wanted { kind });
            if matches!(event, Event::Notice { .. }) {
                adviser.not_before = now;
            }
        }
        let told = |told: Duration, left: Duration| told.abs_diff(left) < told / 5;
        let news = begins && left.is_some_and(|left| !adviser.told.is_some_and(|before| told(before, left)));
        if news {
            adviser.told = left;
        }
        let words = match (&decision.checkpoint, left) {
            (Some(order), _) => kind_in_words(order.kind).to_owned(),
            (None, Some(left)) => format!("looks again in {}", duration::show(left)),
            (None, None) => return,
        };
        let words = format!("{words} ({})", why(event));
        let says = decision.checkpoint.is_some() || news || self.output.verbose > 1;
        let (checkpoint, in_s) = (decision.checkpoint.as_ref(), left.map(|left| left.as_secs_f64()));
        let told = Word {
            event: Some(event.into()),
            checkpoint: checkpoint.map(|order| order.kind.into()),
            in_s,
            ..self.told_of_algorithm()
        };
        self.tell_decided(says, &told);
        self.has_decided(&words, says);
    }

    /// The program lives: its first life, or a later one.
    pub(super) fn advise_life(&mut self) {
        let Some(adviser) = &mut self.adviser else { return };
        (adviser.order, adviser.next) = (None, None);
        let took = adviser.fell.take().map(|fell| fell.elapsed());
        let again = std::mem::replace(&mut adviser.has_begun, true);
        let crashed = again && self.reason == hdcr::Reason::Crash;
        self.advise(took.filter(|_| crashed).map_or(Event::Started, |took| Event::Recovered { took }));
        if again {
            self.ask_of_faults();
        }
    }

    /// A checkpoint of the job's own is there.
    pub(super) fn advise_of(&mut self, done: &Checkpointed, spent: Spent) {
        let Some(adviser) = &mut self.adviser else { return };
        // The program gets at least the time that a checkpoint takes from it, whoever orders them.
        adviser.not_before = Instant::now() + pause_after(Duration::ZERO, spent, self.plan.budget);
        let micros = Duration::from_micros;
        let cost = Cost {
            stopped: micros(done.stopped_us.saturating_add(done.prepared_us)),
            total: micros(done.total_us),
            bytes: done.added,
        };
        let kind = if done.increment { Kind::Increment } else { Kind::Full };
        self.advise(Event::Checkpointed { kind, level: Level(0), cost });
        let kept = self.kept();
        match self.adviser.as_mut().map(|adviser| &mut adviser.rule) {
            Some(Rule::Own(rule)) => {
                let wanted = rule.forget(&kept);
                self.give_up_later(wanted);
            }
            Some(Rule::Outside(_)) => self.ask_of_faults(),
            None => {}
        }
    }

    /// Asks an algorithm outside what would be done after a fault, so that nobody has to wait for it then.
    pub(super) fn ask_of_faults(&mut self) {
        let (now, kept) = (self.began.elapsed(), self.kept());
        let used = self.history.last_target;
        let used = self.line.ways_back().iter().find(|made| Some(made.at) == used).map(|made| made.number);
        if let Some(Rule::Outside(outside)) = self.adviser.as_mut().map(|adviser| &mut adviser.rule)
            && !kept.is_empty()
        {
            outside.ask_of(now, &kept, used);
            self.on_rule();
        }
    }

    /// Nobody outside decides any more: the period of the rule that does.
    pub(super) fn falls_back(&mut self) -> Duration {
        let Some(adviser) = &mut self.adviser else { return Duration::ZERO };
        let (now, period) = (Instant::now(), adviser.period);
        let next = adviser.taken.map_or(now, |taken| taken.max(now.checked_sub(period).unwrap_or(now))) + period;
        adviser.next = Some(adviser.next.map_or(next, |before| before.min(next)));
        (adviser.planned, adviser.gap) = (Some(period), None);
        period
    }

    /// These are given up when the next checkpoint is durable.
    pub(super) fn give_up_later(&mut self, mut wanted: Vec<u64>) {
        let kept = self.line.numbers_of_line();
        let newest = kept.last().copied();
        wanted.retain(|number| kept.contains(number) && Some(*number) != newest);
        let Some(adviser) = &mut self.adviser else { return };
        let news = !wanted.is_empty() && wanted != adviser.given_up;
        adviser.given_up.clone_from(&wanted);
        if news {
            let numbers: Vec<String> = wanted.iter().map(|number| format!("@{number}")).collect();
            self.tell_decided(true, &Word { forget: Some(&wanted), ..self.told_of_algorithm() });
            self.has_decided(&format!("gives up {} after the next checkpoint", numbers.join(", ")), true);
        }
    }

    /// What the next checkpoint removes: by the limits of the user, or else what the algorithm gives up.
    pub(super) fn retention(&self) -> (Keep, Vec<u64>) {
        let Some(adviser) = &self.adviser else { return (self.plan.keep, Vec::new()) };
        let line = self.line.numbers_of_line();
        let newest = line.last().copied();
        let is_known = |number: &&u64| line.contains(number) && Some(**number) != newest;
        let gone: Vec<u64> = adviser.given_up.iter().filter(is_known).copied().collect();
        let Keep { count: None, time: None, bytes: None } = self.plan.keep else { return (self.plan.keep, gone) };
        // What is not of this line goes as it does else.
        let left = line.len().saturating_sub(gone.len()).saturating_add(1);
        (Keep { count: Some(left.max(3)), ..self.plan.keep }, gone)
    }

    /// A checkpoint has failed for the so-manieth time.
    pub(super) fn advise_of_failure(&mut self) {
        let failures = self.failures;
        let Some(adviser) = &mut self.adviser else { return };
        adviser.not_before = Instant::now() + PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(5));
        self.advise(Event::NotCheckpointed { failures });
    }

    /// What the algorithm makes of a crash that is to be rolled back. It is not waited for.
    pub(super) fn advised(&mut self, decided: restart::Decision, ended: Ended) -> restart::Decision {
        let kept = self.kept();
        let again = restart::is_again(&self.plan.rules, ended, self.history);
        let ways = self.line.ways_back();
        let used = self.history.last_target.filter(|_| again);
        let last = used.and_then(|at| ways.iter().find(|made| made.at == at)).map(|made| made.number);
        let Some(adviser) = &mut self.adviser else { return decided };
        adviser.fell = Some(Instant::now());
        if !matches!(decided, restart::Decision::Rollback(_)) {
            return decided;
        }
        let fault = Fault { at: self.began.elapsed(), severity: Level(0), again, last };
        let standing = match &mut adviser.rule {
            Rule::Own(rule) => Some(rule.recover(&fault, &kept)),
            // As it has said beforehand; else the keeper's own rule counts.
            Rule::Outside(outside) => kept.last().and_then(|newest| outside.recovery(again, newest.number)),
        };
        let Some(recovery) = standing else { return decided };
        let (words, decision) = match recovery {
            Recovery::Rollback(number) => match ways.iter().position(|made| made.number == number) {
                Some(place) => (format!("back to @{number}"), restart::Decision::Rollback(place)),
                None => return decided,
            },
            Recovery::Begin => ("back to the oldest checkpoint".to_owned(), restart::Decision::Rollback(0)),
            Recovery::GiveUp => ("gives up".to_owned(), restart::Decision::GiveUp),
        };
        adviser.gave_up = decision == restart::Decision::GiveUp;
        let told = Word { fault: Some(fault.into()), recover: Some(recovery.into()), ..self.told_of_algorithm() };
        self.tell_decided(true, &told);
        self.has_decided(&format!("{words} (a crash)"), true);
        decision
    }

    /// Whether a signal is held back, because it announces the end and a last checkpoint may be wanted.
    pub(super) fn holds_back(&mut self, received: Received) -> bool {
        let limit = self.plan.timeout;
        let is_ending = self.stop.is_some();
        let Some(adviser) = &mut self.adviser else { return false };
        if received.number != adviser.notice.signal || is_ending {
            return false;
        }
        if adviser.held.is_some() {
            // Whoever sends it twice does not want to wait.
            self.let_go();
            return true;
        }
        let grace = adviser.notice.grace;
        adviser.held = Some(Held { received, until: Instant::now() + grace.unwrap_or(limit) });
        self.advise(Event::Notice { grace });
        true
    }

    /// Passes the signal on that was held back.
    fn let_go(&mut self) {
        if let Some(held) = self.adviser.as_mut().and_then(|adviser| adviser.held.take()) {
            self.pass_on(held.received);
        }
    }

    /// The program has ended while a signal was held back for it.
    pub(super) fn has_ended_under_notice(&mut self) {
        if let Some(held) = self.adviser.as_mut().and_then(|adviser| adviser.held.take()) {
            self.passed_on.insert(held.received.number, Instant::now());
        }
    }

    /// The program says that this is a good moment for a checkpoint.
    pub(super) fn on_good_moment(&mut self) {
        let now = Instant::now();
        let Some(adviser) = self.adviser.as_mut().filter(|_| self.phase == Phase::Running) else { return };
        if adviser.moment.is_none_or(|last| now.saturating_duration_since(last) >= hdcr::wire::BETWEEN_MOMENTS) {
            adviser.moment = Some(now);
            self.advise(Event::GoodMoment);
        }
    }

    /// Does what is due for the algorithm, whatever is at work.
    pub(super) fn on_advice(&mut self, now: Instant) {
        self.on_late_rule(now);
        if self.phase != Phase::Running {
            return;
        }
        let capturing = self.work.as_ref().is_some_and(|work| matches!(work.errand, Errand::Checkpoint { .. }));
        let Some(adviser) = &self.adviser else { return };
        let waits = capturing || adviser.order.is_some() || adviser.is_asked();
        if adviser.held.is_some_and(|held| !waits || now >= held.until) {
            self.let_go();
        }
        self.look_for_idleness(now);
    }

    fn look_for_idleness(&mut self, now: Instant) {
        let Some(adviser) = self.adviser.as_ref().filter(|adviser| adviser.looks().idleness) else { return };
        let mut doings = adviser.doings;
        if now.saturating_duration_since(doings.at()) < IDLE_LOOK || !doings.look(now, || self.of_program()) {
            return;
        }
        if let Some(adviser) = &mut self.adviser {
            adviser.doings = doings;
        }
        let idle = doings.idle(now);
        if idle >= IDLE_LOOK && self.work.is_none() {
            self.advise(Event::Idle(idle));
        }
    }
}

#[cfg(test)]
mod tests;
