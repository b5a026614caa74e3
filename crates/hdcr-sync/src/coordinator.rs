//! The coordinator of a job: claims its term, takes the members through a round, commits it by one entry in the ledger.
//!
//! `round.rs` has the way of a checkpoint, `rollback.rs` the way back, `members.rs` who is there. At most one entry is
//! being written at any time, and while it is, nothing is decided.

mod members;
mod rollback;
mod round;

use std::collections::{BTreeMap, BTreeSet};

use crate::channel::Inconsistent;
use crate::ids::{Author, Boot, Epoch, Incarnation, Member, Round, Seq, Stamp, Stay, Term};
use crate::ledger::{Decision, End, Entry, Outcome};
use crate::manifest::{EpochManifest, Share, ShareId};
use crate::message::{Command, Condition, Order, Report, Word};
use crate::rules::{Rule, Rules};

/// What happens to a coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It is to begin: the first event.
    Start,
    /// The end of the ledger was read.
    Read(End),
    /// The writing of the entry at this place has ended so.
    Appended(Seq, Outcome),
    /// A report has come.
    Report(Report),
    /// A checkpoint is wanted.
    Checkpoint,
    /// The time that was armed with this number has passed.
    Deadline(u64),
    /// Answers may have got lost: ask again those who have not answered.
    Resend,
    /// A participant can be reached, for the first time or again.
    Connected(Member),
    /// A participant is known or taken to be gone.
    Lost(Member),
    /// Nothing of an incarnation before this one runs on that host, nor can it be reached from others.
    Excluded(Member, Incarnation),
}

/// What a coordinator wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read the end of the ledger: `Read` follows.
    ReadLedger,
    /// Write this entry at this place unless it is taken: `Appended` follows.
    Append(Seq, Box<Entry>),
    /// Tell a participant.
    Send(Order),
    /// `Deadline` with this number is to come, unless another is armed.
    Arm(u64),
    /// See to it that nothing of the job runs on that host: `Excluded` follows.
    Exclude(Member, Incarnation),
    /// A round is committed.
    Committed(Round),
    /// A round has ended without a commit.
    Aborted(Round, Reason),
    /// Shares of rounds before `before` that no manifest of `keep` names can be removed.
    Collect {
        /// Rounds to keep: the newest committed one, and the one before.
        keep: Vec<Round>,
        /// What is not older is left alone.
        before: Round,
    },
    /// The job runs again, as this incarnation.
    RolledBack(Incarnation),
    /// The job has lost members and has no checkpoint: it can only be started anew.
    Unrecoverable,
    /// Another coordinator has taken over: this one is done.
    Deposed,
}

/// Why a round was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A participant could not, or its lease has ended.
    Failed(Member),
    /// Somebody did not answer in time.
    Late,
    /// A member is gone, or its agent began anew.
    Lost(Member),
    /// A member has come to its end.
    Left(Member),
    /// Connections do not match.
    Channels(Inconsistent),
    /// The store would not take the entry.
    Store,
}

/// How far a round is: what was ordered last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    Begin,
    Freeze,
    Hold,
    Capture,
    Thaw,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    New,
    Reading,
    Claiming,
    Gathering,
    Ready,
    Viewing,
    Round(Stage),
    Committing(EpochManifest),
    Deciding,
    Fencing,
    Restoring,
    Releasing,
    /// Nobody is there to restore on.
    Starved,
    /// There is nothing to restore.
    Hopeless,
    Deposed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Known {
    boot: Boot,
    stay: Stay,
    condition: Condition,
}

/// The state machine of a job's coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Coordinator {
    author: Author,
    term: Term,
    incarnation: Incarnation,
    epoch: Epoch,
    /// The first free place of the ledger, as far as is known.
    next: Seq,
    /// The entry that is being written at `next`.
    pending: Option<Entry>,
    view: BTreeSet<Member>,
    /// Who of the view has joined since the last rollback.
    joined: BTreeSet<Member>,
    suspects: BTreeSet<Member>,
    line: Option<EpochManifest>,
    phase: Phase,
    /// Who has said hello to this coordinator and is not lost.
    known: BTreeMap<Member, Known>,
    /// To whom there is a connection, whether or not it has said hello.
    reachable: BTreeSet<Member>,
    joins: BTreeSet<Member>,
    leaves: BTreeSet<Member>,
    /// A member of the view is gone: the run is not whole.
    is_broken: bool,
    /// How far each member is in the round.
    progress: BTreeMap<Member, Stage>,
    /// How many of the view are not as far as the stage.
    missing: usize,
    shares: BTreeMap<Member, Share>,
    /// In a rollback: who builds what, and who has answered.
    plan: BTreeMap<Member, BTreeSet<ShareId>>,
    answered: BTreeSet<Member>,
    timer: u64,
    rules: Rules,
}

impl Coordinator {
    /// One that knows nothing yet; `author` is a number that no other coordinator of the job has.
    pub fn new(author: Author) -> Self {
        Coordinator::with(Rules::default(), author)
    }

    pub(crate) fn with(rules: Rules, author: Author) -> Self {
        Coordinator {
            author,
            term: Term::default(),
            incarnation: Incarnation::default(),
            epoch: Epoch::default(),
            next: Seq::default(),
            pending: None,
            view: BTreeSet::new(),
            joined: BTreeSet::new(),
            suspects: BTreeSet::new(),
            line: None,
            phase: Phase::New,
            known: BTreeMap::new(),
            reachable: BTreeSet::new(),
            joins: BTreeSet::new(),
            leaves: BTreeSet::new(),
            is_broken: false,
            progress: BTreeMap::new(),
            missing: 0,
            shares: BTreeMap::new(),
            plan: BTreeMap::new(),
            answered: BTreeSet::new(),
            timer: 0,
            rules,
        }
    }

    /// What is to be done about an event.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.phase == Phase::Deposed {
            return out;
        }
        match event {
            Event::Start => {
                if self.phase == Phase::New {
                    self.read(&mut out);
                }
            }
            Event::Read(end) => self.claim(end, &mut out),
            Event::Appended(at, outcome) => self.appended(at, outcome, &mut out),
            Event::Report(report) => self.report(report, &mut out),
            Event::Checkpoint => self.begin_round(&mut out),
            Event::Deadline(timer) => {
                if timer == self.timer {
                    self.late(&mut out);
                }
            }
            Event::Resend => self.resend(&mut out),
            Event::Connected(member) => {
                self.reachable.insert(member);
                self.order(member, Command::Hail, &mut out);
            }
            Event::Lost(member) => self.lost(member, &mut out),
            Event::Excluded(member, incarnation) => {
                if incarnation == self.incarnation {
                    self.cleared(member, &mut out);
                }
            }
        }
        out
    }

    /// Whether nothing is under way.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether another has taken over.
    pub fn is_deposed(&self) -> bool {
        self.phase == Phase::Deposed
    }

    /// Whether the job has to be started anew.
    pub fn is_hopeless(&self) -> bool {
        self.phase == Phase::Hopeless
    }

    /// Who has tasks of the job.
    pub fn view(&self) -> &BTreeSet<Member> {
        &self.view
    }

    /// The newest committed round.
    pub fn committed_round(&self) -> Option<Round> {
        self.line()
    }

    /// What it is about, in a word.
    pub fn activity(&self) -> &'static str {
        match self.phase {
            Phase::New | Phase::Reading | Phase::Claiming | Phase::Gathering => "gathering",
            Phase::Ready | Phase::Viewing => "running",
            Phase::Round(_) | Phase::Committing(_) => "checkpointing",
            Phase::Deciding | Phase::Fencing | Phase::Restoring | Phase::Releasing => "rolling back",
            Phase::Starved => "without hosts",
            Phase::Hopeless => "without a checkpoint",
            Phase::Deposed => "deposed",
        }
    }

    /// The life of a participant that this coordinator speaks to.
    pub fn knows(&self, member: Member) -> Option<Boot> {
        self.known.get(&member).map(|known| known.boot)
    }

    /// The run of the job, as far as this coordinator has taken it.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn stamp(&self) -> Stamp {
        Stamp { term: self.term, incarnation: self.incarnation, epoch: self.epoch }
    }

    fn line(&self) -> Option<Round> {
        self.line.as_ref().map(|manifest| manifest.round)
    }

    /// To who is not known no order can be given but a hail: it would not be told for which life it is.
    fn order(&self, to: Member, what: Command, out: &mut Vec<Effect>) {
        if what != Command::Hail && !self.known.contains_key(&to) {
            return;
        }
        if matches!(self.phase, Phase::New | Phase::Reading | Phase::Claiming) {
            return;
        }
        let boot = self.known.get(&to).map(|known| known.boot).filter(|_| what != Command::Hail);
        out.push(Effect::Send(Order { to, boot, stamp: self.stamp(), line: self.line(), what }));
    }

    fn order_all(&self, to: &BTreeSet<Member>, what: &Command, out: &mut Vec<Effect>) {
        for member in to {
            self.order(*member, what.clone(), out);
        }
    }

    fn arm(&mut self, out: &mut Vec<Effect>) {
        self.timer = self.timer.saturating_add(1);
        out.push(Effect::Arm(self.timer));
    }

    fn read(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Reading;
        out.push(Effect::ReadLedger);
    }

    fn claim(&mut self, end: End, out: &mut Vec<Effect>) {
        if self.phase != Phase::Reading {
            return;
        }
        if let Some((seq, last)) = end.last {
            self.next = seq.next();
            self.term = last.term;
            self.incarnation = last.incarnation;
            self.view = last.view;
            self.joined = last.joined;
            self.suspects = last.suspects;
        }
        self.is_broken = false;
        self.term = self.term.next();
        self.line = end.manifest;
        self.epoch = self.line.as_ref().map(|manifest| manifest.round.epoch).unwrap_or_default();
        self.phase = Phase::Claiming;
        let entry = self.entry(Decision::Claim);
        if self.rules.keep(Rule::ClaimFirst) {
            self.append(entry, out);
        } else {
            self.gather(out);
        }
    }

    fn entry(&self, decision: Decision) -> Entry {
        Entry {
            author: self.author,
            term: self.term,
            incarnation: self.incarnation,
            view: self.view.clone(),
            joined: self.joined.clone(),
            suspects: self.suspects.clone(),
            line: self.line(),
            decision,
        }
    }

    fn append(&mut self, entry: Entry, out: &mut Vec<Effect>) {
        out.push(Effect::Append(self.next, Box::new(entry.clone())));
        self.pending = Some(entry);
    }

    fn appended(&mut self, at: Seq, outcome: Outcome, out: &mut Vec<Effect>) {
        if at != self.next {
            return;
        }
        let Some(entry) = self.pending.take() else { return };
        match outcome {
            Outcome::Written => self.landed(entry, out),
            Outcome::Taken(there) if self.is_own(&there, &entry) => self.landed(entry, out),
            Outcome::Taken(_) if self.phase == Phase::Claiming => self.read(out),
            Outcome::Taken(_) => self.depose(out),
            Outcome::Refused if matches!(self.phase, Phase::Committing(_)) => self.abort(Reason::Store, out),
            Outcome::Unknown if matches!(self.phase, Phase::Committing(_)) && !self.rules.keep(Rule::UnknownWaits) => {
                self.abort(Reason::Store, out);
            }
            // The same bytes at the same place again: either they are there, or they will be, or another's are.
            Outcome::Refused | Outcome::Unknown => self.append(entry, out),
        }
    }

    fn depose(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Deposed;
        out.push(Effect::Deposed);
    }

    fn is_own(&self, there: &Entry, entry: &Entry) -> bool {
        let mut there = there.clone();
        if !self.rules.keep(Rule::AuthorKnown) {
            there.author = entry.author;
        }
        there == *entry
    }

    fn landed(&mut self, entry: Entry, out: &mut Vec<Effect>) {
        self.next = self.next.next();
        let view = entry.view;
        self.joined = entry.joined;
        match std::mem::replace(&mut self.phase, Phase::Ready) {
            Phase::Claiming => self.gather(out),
            Phase::Viewing => self.view_changed(view, out),
            Phase::Committing(manifest) => self.committed(manifest, out),
            Phase::Deciding => {
                self.incarnation = entry.incarnation;
                self.view = view;
                self.suspects = entry.suspects;
                self.decided(out);
            }
            other => self.phase = other,
        }
    }

    /// After whatever has ended: what has come up meanwhile.
    fn settle(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Ready;
        if self.is_broken {
            return self.roll_back(out);
        }
        self.change_view(out);
    }

    fn report(&mut self, report: Report, out: &mut Vec<Effect>) {
        let Report { from, boot, stay, stamp, what } = report;
        // Nothing was asked yet: it answers a rival, who may even hope for the same term.
        if matches!(self.phase, Phase::New | Phase::Reading | Phase::Claiming) {
            return;
        }
        if stamp.term > self.term && self.rules.keep(Rule::NewerTermDeposes) {
            // A term is heard of when it stands in the ledger, behind all that this coordinator may ever have written.
            return self.depose(out);
        }
        match what {
            Word::Hello(condition) => return self.hello(from, (boot, stay), stamp, condition, out),
            Word::Join => return self.join(from, (boot, stay), stamp, out),
            _ => {}
        }
        let known = self.known.get(&from);
        let is_known_life = known.is_some_and(|known| known.boot == boot) || !self.rules.keep(Rule::BootFences);
        let is_known_stay = known.is_some_and(|known| known.stay == stay) || !self.rules.keep(Rule::StaysCounted);
        if known.is_none() || !is_known_life || !is_known_stay {
            return;
        }
        if what == Word::Leave {
            return self.leave(from, stamp, out);
        }
        if stamp != self.stamp() && self.rules.keep(Rule::RoundFences) {
            return;
        }
        match what {
            Word::Quiesced => self.reached(from, Stage::Freeze, out),
            Word::Frozen => self.reached(from, Stage::Hold, out),
            Word::Held => self.reached(from, Stage::Capture, out),
            Word::Captured => self.reached(from, Stage::Thaw, out),
            Word::Durable(share) => self.durable(from, share, out),
            Word::Fenced => self.fenced(from, out),
            Word::Restored => self.restored(from, out),
            Word::Running => self.runs(from, out),
            Word::Failed => self.failed(from, out),
            Word::Hello(_) | Word::Join | Word::Leave | Word::Superseded => {}
        }
    }

    fn failed(&mut self, from: Member, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Round(_) => {
                self.abort(Reason::Failed(from), out);
                // Is it only out of the round, or out of the run?
                self.order(from, Command::Hail, out);
            }
            Phase::Restoring | Phase::Releasing => self.roll_back(out),
            _ => {}
        }
    }

    fn late(&mut self, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Round(at) => {
                let is_silent = |member: &&Member| self.progress.get(*member).is_none_or(|progress| *progress <= at);
                let silent: BTreeSet<Member> = self.view.iter().filter(is_silent).copied().collect();
                self.abort(Reason::Late, out);
                // Are they only slow, or not in this run?
                self.order_all(&silent, &Command::Hail, out);
            }
            Phase::Gathering => self.roll_back(out),
            Phase::Fencing | Phase::Restoring | Phase::Releasing => self.rollback_is_late(out),
            _ => {}
        }
    }

    fn resend(&mut self, out: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Gathering | Phase::Starved => self.hail(out),
            Phase::Round(_) => self.resend_round(out),
            Phase::Fencing | Phase::Restoring | Phase::Releasing => self.resend_rollback(out),
            Phase::Ready => {
                self.order_all(&self.view, &Command::Hail, out);
                self.hail(out);
            }
            _ => {}
        }
    }
}
