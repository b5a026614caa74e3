//! One host's part: what an agent does on orders, on the ends of its leases, and when its engine is done.
//!
//! The promise: a participant that hears nothing thaws by itself, and then never says `Durable` for that round.

use std::collections::BTreeSet;

use crate::ids::{Boot, Incarnation, Member, Round, Stamp, Stay, Term};
use crate::ledger::Entry;
use crate::manifest::{Share, ShareId};
use crate::message::{Command, Condition, Next, Order, Report, Word};
use crate::rules::{Rule, Rules};

/// What happens to a participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An order has come.
    Order(Order),
    /// The engine has done a piece of work; `Stamp` is the one it was asked with.
    Done(Work, Stamp),
    /// `Persist` is done, and synced.
    Written(Share, Stamp),
    /// The engine could not, and has undone what it did of it.
    Failed(Work, Stamp),
    /// The lease that was armed with this stamp has ended.
    LeaseEnded(Stamp),
    /// Tasks of the job were put here by a launcher; they are held before their first instruction.
    Arrived,
    /// All tasks here have ended by themselves. It comes before the word of any work that is finished after it.
    Ended,
    /// A task has died that should not have, or under a freeze.
    Died,
}

/// What a participant wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell the coordinator.
    Send(Report),
    /// Ask the engine.
    Work(Work, Stamp),
    /// `LeaseEnded` with this stamp is to come after the time of a lease, unless another is armed.
    ArmLease(Stamp),
    /// No lease is needed any more.
    DropLease,
}

/// What the engine is asked. `Thaw` and `Kill` cannot fail: what cannot be thawed is killed, and `Died` follows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// Hooks run, space reserved, memory copied ahead.
    Quiesce,
    /// All tasks stopped, or none.
    Freeze,
    /// The job's connections held in both directions.
    Hold,
    /// Everything read that has to be read in the stop.
    Capture,
    /// Tasks run again and the hold is dropped; ends any work of the round that is under way. Never waits.
    Thaw,
    /// What was captured written and synced, under the name of the round.
    Persist,
    /// What was written in this round is the base of the next one.
    Settle,
    /// What changed up to this round has changed still: dirty sets are merged back.
    Merge,
    /// Tasks that wait for their first instruction run.
    Admit,
    /// All tasks of the job here killed, whatever state they are in.
    Kill,
    /// Shares built, stopped, network held.
    Restore(BTreeSet<ShareId>),
    /// Connections leave repair, the hold is dropped, tasks run.
    Release,
}

/// Where a participant is in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    Quiescing,
    Quiesced,
    Freezing,
    Frozen,
    Holding,
    Held,
    Capturing,
    Captured,
    Persisting,
    Durable,
}

impl Step {
    fn is_stopped(self) -> bool {
        Step::Freezing <= self && self <= Step::Captured
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Empty,
    /// Empty, as all tasks came to their own end.
    Ended,
    Waiting,
    Running,
    Round(Step, Stamp),
    Killing(Stamp),
    Restoring(Stamp),
    Gate(Stamp),
    Releasing(Stamp),
}

/// The state machine of one host's agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Participant {
    me: Member,
    boot: Boot,
    stay: Stay,
    /// The highest term heard of.
    term: Term,
    /// What runs here, or what was fenced off last.
    incarnation: Incarnation,
    state: State,
    /// The last round that was begun.
    last: Round,
    /// The last report, said again when its order is repeated.
    said: Option<Report>,
    /// All tasks have ended, and that has still to be told.
    ended: bool,
    /// Tasks that belong here are gone, or not built yet: no new ones can take their place.
    bereft: bool,
    /// What was restored here for this run has run: built again, it would be older than the rest of the run.
    has_run: bool,
    rules: Rules,
}

/// What an agent finds when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No task of the job.
    Nothing,
    /// Tasks of this run of the job; an agent that died has left them running.
    Tasks(Incarnation),
}

impl Participant {
    /// An agent starts. `last` is the last entry of the ledger, read after the agent before this one was gone.
    pub fn new(me: Member, boot: Boot, last: Option<&Entry>, found: Found) -> Self {
        Participant::with(Rules::default(), me, boot, last, found)
    }

    pub(crate) fn with(rules: Rules, me: Member, boot: Boot, last: Option<&Entry>, found: Found) -> Self {
        let known = last.filter(|_| rules.keep(Rule::BootReadsLedger));
        let floor = known.map(|entry| entry.incarnation).unwrap_or_default();
        let (state, incarnation) = match found {
            Found::Nothing => (State::Empty, floor),
            Found::Tasks(incarnation) => (State::Running, incarnation),
        };
        let term = known.map(|entry| entry.term).unwrap_or_default();
        let bereft = found == Found::Nothing && known.is_some_and(|entry| entry.view.contains(&me));
        let last = Round::default();
        let stay = Stay::default();
        Participant {
            me,
            boot,
            stay,
            term,
            incarnation,
            state,
            last,
            said: None,
            ended: false,
            bereft,
            has_run: false,
            rules,
        }
    }

    /// What is to be done about an event.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Order(order) => self.order(order, &mut out),
            Event::Done(work, stamp) => self.done(&work, stamp, &mut out),
            Event::Written(share, stamp) => {
                if self.state == State::Round(Step::Persisting, stamp) {
                    self.advance(Step::Durable, stamp, Word::Durable(share), &mut out);
                }
            }
            Event::Failed(work, stamp) => self.failed(&work, stamp, &mut out),
            Event::LeaseEnded(stamp) => self.lease_ended(stamp, &mut out),
            Event::Arrived => {
                if matches!(self.state, State::Empty | State::Ended) && !self.bereft {
                    self.state = State::Waiting;
                    self.stay = self.stay.next();
                    self.say(self.stamp(), Word::Join, &mut out);
                }
            }
            Event::Ended => {
                // Of tasks that were killed since: those that come in their place have not ended.
                let counts = matches!(self.state, State::Running | State::Round(..));
                if counts || !self.rules.keep(Rule::EndsCounted) {
                    self.ended = true;
                    self.tell_the_end(&mut out);
                }
            }
            Event::Died => self.died(&mut out),
        }
        out
    }

    /// Whether the programs are stopped on behalf of a round.
    pub fn is_frozen(&self) -> bool {
        matches!(&self.state, State::Round(step, _) if step.is_stopped())
    }

    /// Whether a restored run waits here for the others.
    pub fn is_at_gate(&self) -> bool {
        matches!(self.state, State::Gate(_))
    }

    fn stamp(&self) -> Stamp {
        let epoch = if self.last.term == self.term { self.last.epoch } else { Round::default().epoch };
        Stamp { term: self.term, incarnation: self.incarnation, epoch }
    }

    fn report(&self, stamp: Stamp, what: Word) -> Report {
        Report { from: self.me, boot: self.boot, stay: self.stay, stamp, what }
    }

    fn say(&mut self, stamp: Stamp, what: Word, out: &mut Vec<Effect>) {
        let report = self.report(stamp, what);
        self.said = Some(report.clone());
        out.push(Effect::Send(report));
    }

    fn advance(&mut self, step: Step, stamp: Stamp, word: Word, out: &mut Vec<Effect>) {
        self.state = State::Round(step, stamp);
        self.say(stamp, word, out);
    }

    fn begin(&mut self, step: Step, work: Work, stamp: Stamp, out: &mut Vec<Effect>) {
        self.state = State::Round(step, stamp);
        out.push(Effect::Work(work, stamp));
    }

    fn order(&mut self, order: Order, out: &mut Vec<Effect>) {
        let Order { boot, stamp, line, what, .. } = order;
        if self.rules.keep(Rule::BootFences) && boot.is_some_and(|boot| boot != self.boot) {
            return;
        }
        if stamp.term < self.term && self.rules.keep(Rule::TermFences) {
            return out.push(Effect::Send(self.report(self.stamp(), Word::Superseded)));
        }
        self.learn(stamp, line, out);
        match what {
            // The answer to an order before stays what is said again when that is repeated.
            Command::Hail => out.push(Effect::Send(self.report(stamp, Word::Hello(self.condition())))),
            Command::Fence(next) => self.fence(next, stamp, out),
            Command::Restore(shares) => self.restore(shares, stamp, out),
            Command::Release => self.release(stamp, out),
            Command::Welcome(stay) => {
                let is_meant = stay == self.stay || !self.rules.keep(Rule::StaysCounted);
                // What waits has never run, and belongs to no run before the one that it is taken into.
                if self.state == State::Waiting && stamp.incarnation >= self.incarnation && is_meant {
                    self.incarnation = stamp.incarnation;
                    self.state = State::Running;
                    out.push(Effect::Work(Work::Admit, stamp));
                }
            }
            _ if stamp.incarnation != self.incarnation => {}
            Command::Begin => self.quiesce(stamp, out),
            Command::Freeze => self.go_on(Step::Quiesced, Step::Freezing, Work::Freeze, stamp, out),
            Command::Hold => self.go_on(Step::Frozen, Step::Holding, Work::Hold, stamp, out),
            Command::Capture => self.go_on(Step::Held, Step::Capturing, Work::Capture, stamp, out),
            Command::Thaw => self.thaw(stamp, out),
            Command::Commit | Command::Abort => {
                if matches!(&self.state, State::Round(_, own) if own.round() == stamp.round()) {
                    self.leave_round(what == Command::Commit, out);
                }
            }
        }
    }

    fn condition(&self) -> Condition {
        match self.state {
            State::Empty => Condition::Empty,
            State::Ended => Condition::Ended(self.incarnation),
            State::Waiting => Condition::Waiting,
            State::Running | State::Round(..) => Condition::Running(self.incarnation),
            State::Killing(_) | State::Restoring(_) | State::Gate(_) | State::Releasing(_) => Condition::Between,
        }
    }

    /// What every order tells, whatever it orders: a newer term, and how the round before has ended.
    fn learn(&mut self, stamp: Stamp, line: Option<Round>, out: &mut Vec<Effect>) {
        self.term = self.term.max(stamp.term);
        let own = match &self.state {
            State::Round(_, own) => own.round(),
            _ => return,
        };
        if own < stamp.round() {
            self.leave_round(line == Some(own), out);
        }
    }

    fn leave_round(&mut self, committed: bool, out: &mut Vec<Effect>) {
        let State::Round(step, stamp) = self.state else { return };
        if step.is_stopped() {
            out.push(Effect::Work(Work::Thaw, stamp));
            out.push(Effect::DropLease);
        }
        out.push(Effect::Work(if committed { Work::Settle } else { Work::Merge }, stamp));
        self.state = State::Running;
        self.tell_the_end(out);
    }

    fn quiesce(&mut self, stamp: Stamp, out: &mut Vec<Effect>) {
        if self.state == State::Running && stamp.round() > self.last {
            self.last = stamp.round();
            self.begin(Step::Quiescing, Work::Quiesce, stamp, out);
        } else {
            self.answer(stamp, out);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one row of the table of a round")]
    fn go_on(&mut self, from: Step, to: Step, work: Work, stamp: Stamp, out: &mut Vec<Effect>) {
        if self.state != State::Round(from, stamp) {
            return self.answer(stamp, out);
        }
        if to == Step::Freezing {
            out.push(Effect::ArmLease(stamp));
        }
        self.begin(to, work, stamp, out);
    }

    fn thaw(&mut self, stamp: Stamp, out: &mut Vec<Effect>) {
        // Broken on purpose in a test only: who thawed alone takes the order for its own.
        let late =
            self.state == State::Running && self.last == stamp.round() && !self.rules.keep(Rule::DurableAfterThaw);
        if self.state == State::Round(Step::Captured, stamp) {
            out.push(Effect::Work(Work::Thaw, stamp));
            out.push(Effect::DropLease);
        } else if !late {
            return self.answer(stamp, out);
        }
        self.begin(Step::Persisting, Work::Persist, stamp, out);
    }

    /// To an order that does not fit: the same again if it was answered already, nothing if it is being obeyed, a refusal
    /// if its round is over here.
    fn answer(&mut self, stamp: Stamp, out: &mut Vec<Effect>) {
        let busy = matches!(&self.state, State::Round(_, own) if *own == stamp);
        match &self.said {
            Some(said) if said.stamp == stamp && said.what != Word::Join => out.push(Effect::Send(said.clone())),
            _ if busy => {}
            _ => self.say(stamp, Word::Failed, out),
        }
    }

    fn fence(&mut self, next: Next, stamp: Stamp, out: &mut Vec<Effect>) {
        if stamp.incarnation > self.incarnation {
            if self.is_frozen() || matches!(self.state, State::Gate(_) | State::Releasing(_)) {
                out.push(Effect::DropLease);
            }
            self.incarnation = stamp.incarnation;
            self.ended = false;
            self.bereft = next == Next::Restored;
            self.has_run = false;
            self.state = State::Killing(stamp);
            out.push(Effect::Work(Work::Kill, stamp));
        } else if stamp.incarnation == self.incarnation && self.state == State::Empty {
            self.say(stamp, Word::Fenced, out);
        }
    }

    fn restore(&mut self, shares: BTreeSet<ShareId>, stamp: Stamp, out: &mut Vec<Effect>) {
        let is_spent = self.has_run && self.rules.keep(Rule::RunsOnce);
        if stamp.incarnation != self.incarnation || is_spent {
            return;
        }
        match &self.state {
            State::Empty => {
                self.state = State::Restoring(stamp);
                out.push(Effect::Work(Work::Restore(shares), stamp));
            }
            State::Gate(own) if *own == stamp => self.say(stamp, Word::Restored, out),
            _ => {}
        }
    }

    fn release(&mut self, stamp: Stamp, out: &mut Vec<Effect>) {
        if self.state == State::Gate(stamp) {
            self.state = State::Releasing(stamp);
            self.has_run = true;
            out.push(Effect::DropLease);
            out.push(Effect::Work(Work::Release, stamp));
        } else if self.state == State::Running && stamp.incarnation == self.incarnation {
            self.say(stamp, Word::Running, out);
        }
    }

    fn done(&mut self, work: &Work, stamp: Stamp, out: &mut Vec<Effect>) {
        match (work, &self.state) {
            (Work::Quiesce, State::Round(Step::Quiescing, own)) if *own == stamp => {
                self.advance(Step::Quiesced, stamp, Word::Quiesced, out);
            }
            (Work::Freeze, State::Round(Step::Freezing, own)) if *own == stamp => {
                self.advance(Step::Frozen, stamp, Word::Frozen, out);
            }
            (Work::Hold, State::Round(Step::Holding, own)) if *own == stamp => {
                self.advance(Step::Held, stamp, Word::Held, out);
            }
            (Work::Capture, State::Round(Step::Capturing, own)) if *own == stamp => {
                self.advance(Step::Captured, stamp, Word::Captured, out);
            }
            (Work::Kill, State::Killing(own)) if *own == stamp => {
                self.state = State::Empty;
                self.say(stamp, Word::Fenced, out);
            }
            (Work::Restore(_), State::Restoring(own)) if *own == stamp => {
                self.state = State::Gate(stamp);
                out.push(Effect::ArmLease(stamp));
                self.say(stamp, Word::Restored, out);
            }
            (Work::Release, State::Releasing(own)) if *own == stamp => {
                self.state = State::Running;
                self.bereft = false;
                self.say(stamp, Word::Running, out);
            }
            _ => {}
        }
    }

    fn failed(&mut self, work: &Work, stamp: Stamp, out: &mut Vec<Effect>) {
        match &self.state {
            State::Round(step, own) if *own == stamp && *step != Step::Durable => {
                self.leave_round(false, out);
                self.say(stamp, Word::Failed, out);
            }
            // What was built of it is gone with the one who built.
            State::Restoring(own) | State::Releasing(own) if *own == stamp => {
                let is_release = *work == Work::Release;
                self.state = State::Empty;
                if is_release {
                    out.push(Effect::Work(Work::Kill, stamp));
                }
                self.say(stamp, Word::Failed, out);
            }
            _ => {}
        }
    }

    fn lease_ended(&mut self, stamp: Stamp, out: &mut Vec<Effect>) {
        if !self.rules.keep(Rule::LeaseThaws) {
            return;
        }
        match self.state {
            State::Round(step, own) if own == stamp && step.is_stopped() => {
                if self.rules.keep(Rule::LeaseRefuses) {
                    self.leave_round(false, out);
                    self.say(stamp, Word::Failed, out);
                } else {
                    out.push(Effect::Work(Work::Thaw, stamp));
                }
            }
            // Others may run or not: alone, what stands here is of no use, and the images are there still.
            State::Gate(own) if own == stamp && self.rules.keep(Rule::GateLease) => {
                self.state = State::Empty;
                out.push(Effect::Work(Work::Kill, stamp));
                self.say(stamp, Word::Failed, out);
            }
            _ => {}
        }
    }

    /// The end of all tasks is told when no round needs what was captured of them.
    fn tell_the_end(&mut self, out: &mut Vec<Effect>) {
        if !self.ended {
            return;
        }
        match self.state {
            State::Running => {
                self.ended = false;
                self.state = State::Ended;
                self.say(self.stamp(), Word::Leave, out);
            }
            State::Round(step, stamp) if step < Step::Persisting => {
                self.leave_round(false, out);
                self.say(stamp, Word::Failed, out);
            }
            _ => {}
        }
    }

    /// A run of which one task is missing is no run: the coordinator hears it, and rolls back.
    fn died(&mut self, out: &mut Vec<Effect>) {
        match self.state {
            State::Round(step, _) if step.is_stopped() => out.push(Effect::DropLease),
            State::Running | State::Round(..) => {}
            _ => return,
        }
        self.state = State::Empty;
        self.bereft = true;
        out.push(Effect::Work(Work::Kill, self.stamp()));
        self.say(self.stamp(), Word::Hello(Condition::Empty), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { term: Term(1), incarnation: Incarnation(1), epoch: crate::ids::Epoch(0) };

    fn order(agent: &mut Participant, what: Command) -> Vec<Effect> {
        agent.step(Event::Order(Order { to: Member(0), boot: Some(Boot(0)), stamp: STAMP, line: None, what }))
    }

    #[test]
    fn a_repeated_order_is_answered_as_before_although_it_was_hailed() {
        let stamp = Stamp { incarnation: Incarnation(0), epoch: crate::ids::Epoch(1), ..STAMP };
        let mut agent = Participant::new(Member(0), Boot(0), None, Found::Tasks(Incarnation(0)));
        let mut order = |what| {
            let order = Order { to: Member(0), boot: Some(Boot(0)), stamp, line: None, what };
            agent.step(Event::Order(order))
        };
        order(Command::Begin);
        assert!(matches!(order(Command::Hail)[..], [Effect::Send(Report { what: Word::Hello(_), .. })]));
        assert_eq!(order(Command::Begin), Vec::new());
        agent.step(Event::Done(Work::Quiesce, stamp));
        let mut order = |what| {
            let order = Order { to: Member(0), boot: Some(Boot(0)), stamp, line: None, what };
            agent.step(Event::Order(order))
        };
        order(Command::Hail);
        assert!(matches!(order(Command::Begin)[..], [Effect::Send(Report { what: Word::Quiesced, .. })]));
    }

    #[test]
    fn what_has_run_is_not_built_again_by_a_late_order() {
        let mut agent = Participant::new(Member(0), Boot(0), None, Found::Tasks(Incarnation(0)));
        let restore = || Command::Restore(BTreeSet::new());
        order(&mut agent, Command::Fence(Next::Restored));
        agent.step(Event::Done(Work::Kill, STAMP));
        assert!(order(&mut agent, restore()).contains(&Effect::Work(Work::Restore(BTreeSet::new()), STAMP)));
        agent.step(Event::Done(Work::Restore(BTreeSet::new()), STAMP));
        order(&mut agent, Command::Release);
        agent.step(Event::Done(Work::Release, STAMP));
        agent.step(Event::Died);
        assert_eq!(order(&mut agent, restore()), Vec::new());
    }
    #[test]
    fn the_end_of_tasks_that_were_killed_since_is_not_that_of_those_in_their_place() {
        let mut agent = Participant::new(Member(0), Boot(0), None, Found::Tasks(Incarnation(0)));
        order(&mut agent, Command::Fence(Next::Restored));
        agent.step(Event::Ended);
        agent.step(Event::Done(Work::Kill, STAMP));
        order(&mut agent, Command::Restore(BTreeSet::new()));
        agent.step(Event::Done(Work::Restore(BTreeSet::new()), STAMP));
        order(&mut agent, Command::Release);
        agent.step(Event::Done(Work::Release, STAMP));
        let stamp = Stamp { epoch: crate::ids::Epoch(1), ..STAMP };
        let mut order =
            |what| agent.step(Event::Order(Order { to: Member(0), boot: Some(Boot(0)), stamp, line: None, what }));
        order(Command::Begin);
        let left = order(Command::Abort);
        assert_eq!(left, [Effect::Work(Work::Merge, stamp)]);
        assert_eq!(agent.condition(), Condition::Running(Incarnation(1)));
    }
}
