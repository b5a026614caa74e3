//! One address space whose pages come while its program runs: what is missing, what happens, and pages put in.
//!
//! Everything that decides holds the ledger: a page is put in and crossed out, or an event heard and written down, as one
//! act. What the kernel tells of several threads at once may come in another order than it happened (mm/userfaultfd.c tells a
//! move after it is done); where that could make a difference, nobody can say what is missing where, and the tree has to end.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::advice::ForChildren;
use super::ledger::{Ledger, Missing};
use super::waiters::Waiters;
use crate::error::{Error, Result};
use crate::ids::{Pid, RemotePtr, Tid};
use crate::mechanism::{AbsentPages, Happening, Hindrance};
use crate::memory::PAGE;

/// How often an address space is looked at between two events, until it is at rest.
const LOOKS: usize = 64;
pub(super) const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE);

/// An address space.
#[derive(Debug)]
pub(crate) struct Place {
    pages: Box<dyn AbsentPages>,
    /// The address space in the image.
    pub(crate) space: u64,
    /// Its process, when that is known.
    pid: OnceLock<Pid>,
    state: Mutex<State>,
    /// Threads of the program that are being served: those who fill let them go first.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    /// What fillers are at work on.
    taken: Vec<Range<u64>>,
    /// Where the next filler looks first.
    next: u64,
    /// The address space is gone.
    ended: bool,
    /// What happened since it was last seen at rest.
    unsettled: Vec<Unsettled>,
}

/// What happened, and by whom.
#[derive(Debug)]
struct Unsettled {
    change: Change,
    /// The thread that did it, when it could be seen.
    by: Option<Tid>,
}

/// What an event concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Change {
    Fork,
    Gone(Range<u64>),
    Moved(Range<u64>, Range<u64>),
}

impl Change {
    /// Whether it makes a difference if it came before `other`, which was heard before it.
    fn minds(&self, other: &Self) -> bool {
        // The second half of the same call: a move gives up where the mapping was. If another call had done so before, there
        // would have been nothing to be moved.
        if let (Self::Gone(gone), Self::Moved(from, _)) = (self, other)
            && gone == from
        {
            return false;
        }
        let over = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        let reaches = |range: &Range<u64>| match other {
            Self::Fork => true,
            Self::Gone(gone) => over(range, gone),
            Self::Moved(from, to) => over(range, from) || over(range, to),
        };
        match self {
            Self::Moved(from, to) => reaches(from) || reaches(to),
            Self::Fork | Self::Gone(_) => matches!(other, Self::Moved(..)) && other.minds(self),
        }
    }
}

/// What was heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Pages that threads wait for.
    pub(crate) faults: Vec<u64>,
    /// Copies of the address space, with what is missing in them.
    pub(crate) born: Vec<Place>,
}

/// How it went to put pages in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Went {
    /// All that was still missing of them is in.
    Done,
    /// Something has to be heard first.
    Later,
}

impl Place {
    pub(crate) fn new(pages: Box<dyn AbsentPages>, space: u64, pid: Option<Pid>, ledger: Ledger) -> Self {
        let state = State { ledger, ..State::default() };
        let pid = pid.map_or_else(OnceLock::new, OnceLock::from);
        Self { pages, space, pid, state: Mutex::new(state), waiting: AtomicUsize::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is the one that a process was made with.
    pub(crate) fn is_of(&self, pid: Pid) -> bool {
        self.pid.get() == Some(&pid)
    }

    /// Becomes readable when something is to be heard.
    pub(crate) fn ready(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pages.ready()
    }

    /// Whether no page is missing any more, or nobody is left who could miss one.
    pub(crate) fn is_done(&self) -> bool {
        let state = self.state();
        if !self.pages.lives() {
            return true;
        }
        // Who forks just now gets a child in which as much may be missing as was before.
        state.ended || state.ledger.is_empty() && !self.pages.is_changing()
    }

    /// Hears all that happened.
    pub(crate) fn hear(&self) -> Result<Heard> {
        let mut heard = Heard::default();
        let mut state = self.state();
        self.settle(&mut state);
        loop {
            // Who caused an event waits until it is read, and can be seen only before.
            let waiters =
                if self.is_settled(&mut state) { Waiters::default() } else { Waiters::of(self.pid.get().copied()) };
            // So has what it said of its mappings: it may say another thing as soon as it goes on.
            let for_children = self.for_children(&waiters);
            let Some(happening) = self.pages.next()? else { return Ok(heard) };
            let change = match happening {
                Happening::Fault { at, tid } => {
                    heard.faults.push(at / PAGE * PAGE);
                    self.meet(tid);
                    continue;
                }
                Happening::Fork(pages) => {
                    heard.born.push(Self::new(pages, self.space, None, inherited(&state.ledger, &for_children)));
                    Change::Fork
                }
                Happening::Gone(range) => {
                    state.ledger.cut(&range);
                    Change::Gone(range)
                }
                Happening::Moved { from, to, len } => {
                    state.ledger.moved(from, to, len);
                    Change::Moved(from..from.saturating_add(len), to..to.saturating_add(len))
                }
            };
            let by = match &change {
                Change::Fork => waiters.who_forks(),
                Change::Gone(range) => waiters.who_gives_up(range),
                Change::Moved(from, _) => waiters.who_moves(from.start),
            };
            let minds = |before: &Unsettled| change.minds(&before.change) && (by.is_none() || by != before.by);
            if state.unsettled.iter().any(minds) {
                tracing::debug!(?change, ?by, before = ?state.unsettled, ?waiters, "events of several threads");
                return Err(Error::Changed {
                    subject: "an address space that is still being filled".to_owned(),
                    what: "several threads moved mappings at once, and nobody can tell what came first".to_owned(),
                });
            }
            state.unsettled.push(Unsettled { change, by });
            self.settle(&mut state);
        }
    }

    /// What a process that is being cloned has said about its children.
    fn for_children(&self, waiters: &Waiters) -> ForChildren {
        let pid = self.pid.get().filter(|_| waiters.any_forks());
        pid.map_or_else(ForChildren::default, |pid| ForChildren::of(*pid))
    }

    /// Learns whose copy this is from the first thread that waits for a page of it.
    fn meet(&self, tid: Tid) {
        if self.pid.get().is_none()
            && let Some(pid) = super::waiters::process_of(tid)
        {
            self.pid.get_or_init(|| pid);
        }
    }

    /// Whether all that was heard of is known to be over. Until then somebody has to look again, even if nothing happens: the
    /// next thing that does could not be told from one that happens at the same time.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.state().unsettled.is_empty()
    }

    /// Whether nothing is happening now: what comes later comes after all that was heard of.
    fn is_settled(&self, state: &mut State) -> bool {
        let settled = !self.pages.is_changing();
        if settled {
            state.unsettled.clear();
        }
        settled
    }

    /// Gives who caused an event the time to go on.
    fn settle(&self, state: &mut State) {
        for _ in 0..LOOKS {
            if state.unsettled.is_empty() || self.is_settled(state) {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Takes the next missing pages on: `reach` tells how many bytes are read together with those at an address of the
    /// image. `None` when others are at work on all that is missing.
    pub(crate) fn take(&self, reach: impl Fn(u64) -> u64) -> Option<Missing> {
        let mut state = self.state();
        if state.ended {
            return None;
        }
        let (mut at, mut turned) = (state.next, false);
        loop {
            let Some(found) = state.ledger.from(at) else {
                if turned {
                    return None;
                }
                (at, turned) = (0, true);
                continue;
            };
            if let Some(other) = state.taken.iter().find(|taken| taken.contains(&found.at.start)) {
                at = other.end;
                continue;
            }
            let end = found.at.start.saturating_add(reach(found.from).max(PAGE));
            let taken = Missing { at: found.at.start..end, from: found.from };
            state.taken.push(taken.at.clone());
            state.next = end;
            return Some(taken);
        }
    }

    /// Gives back what was taken.
    pub(crate) fn give_back(&self, taken: &Missing) {
        let mut state = self.state();
        if let Some(index) = state.taken.iter().position(|other| *other == taken.at) {
            state.taken.swap_remove(index);
        }
    }

    /// The missing pages around an address: what holds it.
    pub(crate) fn missing_at(&self, at: u64) -> Option<Missing> {
        self.state().ledger.at(at)
    }

    /// Looks for what is missing near an address first.
    pub(crate) fn look_near(&self, at: u64) {
        self.state().next = at;
    }

    /// Puts in what of these pages is still missing and still has this place.
    pub(crate) fn put(&self, wanted: &Missing, bytes: &[u8]) -> Result<Went> {
        let mut state = self.state();
        // What a guard covers was given up, which nobody tells; and the kernel would put pages over it.
        if let Some(pid) = self.pid.get() {
            self.pages.guards(*pid, &wanted.at).iter().for_each(|guard| state.ledger.cut(guard));
        }
        let shift = |address: u64| address.saturating_sub(wanted.at.start).saturating_add(wanted.from);
        for missing in state.ledger.within(&wanted.at) {
            if missing.from != shift(missing.at.start) {
                continue;
            }
            let offset = |address: u64| usize::try_from(address.saturating_sub(wanted.at.start)).unwrap_or(usize::MAX);
            let bytes = bytes.get(offset(missing.at.start)..offset(missing.at.end));
            let bytes = bytes.ok_or_else(|| Error::Unsound("fewer pages than the index says".to_owned()))?;
            if self.put_piece(&mut state, &missing.at, bytes)? == Went::Later {
                return Ok(Went::Later);
            }
        }
        Ok(Went::Done)
    }

    fn put_piece(&self, state: &mut State, at: &Range<u64>, bytes: &[u8]) -> Result<Went> {
        let (mut at, mut rest) = (at.clone(), bytes);
        // So much at once: the kernel puts nothing in that does not lie in one mapping, and a mapping may have been parted
        // since (`mprotect`, `madvise`), of which nobody tells.
        let mut most = rest.len();
        while !rest.is_empty() {
            let piece = rest.get(..most).unwrap_or(rest);
            let (done, hindrance) = self.pages.put(RemotePtr(at.start), piece);
            let left = piece.len().saturating_sub(done);
            let next = at.start.saturating_add(u64::try_from(done).unwrap_or(0)).min(at.end);
            state.ledger.cut(&(at.start..next));
            at.start = next;
            rest = rest.get(done..).unwrap_or_default();
            let page = at.start..at.start.saturating_add(PAGE);
            match hindrance {
                None => most = most.saturating_mul(2),
                Some(Hindrance::Changing) => return Ok(Went::Later),
                Some(Hindrance::NoPlace) if self.pages.is_changing() => return Ok(Went::Later),
                Some(Hindrance::NoPlace) if left > PAGE_LEN => most = (left / PAGE_LEN / 2) * PAGE_LEN,
                Some(Hindrance::Ended) => {
                    state.ended = true;
                    return Ok(Went::Done);
                }
                Some(Hindrance::Failed(source)) => {
                    let subject = format!("address {:#x}", at.start);
                    return Err(Error::System { operation: "putting pages into a program", subject, source });
                }
                Some(Hindrance::Present | Hindrance::NoPlace) => {
                    // Nothing is changing now: what has no place here is not ours any more. Whoever waits for it looks again.
                    state.ledger.cut(&page);
                    self.pages.wake(&page);
                    at.start = page.end;
                    rest = rest.get(PAGE_LEN..).unwrap_or_default();
                }
            }
        }
        Ok(Went::Done)
    }

    /// Crosses out what of these pages is still missing and has this place: the image does not hold them, so they are zeros.
    pub(crate) fn leave_out(&self, wanted: &Missing) {
        let mut state = self.state();
        let shift = wanted.at.start.wrapping_sub(wanted.from);
        for missing in state.ledger.within(&wanted.at) {
            if missing.at.start.wrapping_sub(missing.from) == shift {
                state.ledger.cut(&missing.at);
            }
        }
    }

    /// Answers a fault on a page that is zeros. `known`: what the ledger said of it; when it says another thing by now, the
    /// page is to be looked at again.
    pub(crate) fn put_zeros(&self, page: u64, known: Option<&Missing>) -> Result<Went> {
        let mut state = self.state();
        let from = |missing: &Missing| missing.from.wrapping_add(page.wrapping_sub(missing.at.start));
        if state.ledger.at(page).as_ref().map(from) != known.map(from) {
            return Ok(Went::Later);
        }
        let range = page..page.saturating_add(PAGE);
        match self.pages.put_zeros(&range) {
            Some(Hindrance::Changing) => return Ok(Went::Later),
            Some(Hindrance::NoPlace) if self.pages.is_changing() => return Ok(Went::Later),
            Some(Hindrance::Present | Hindrance::NoPlace) => self.pages.wake(&range),
            Some(Hindrance::Ended) => state.ended = true,
            Some(Hindrance::Failed(source)) => {
                let subject = format!("address {page:#x}");
                return Err(Error::System { operation: "putting zeros into a program", subject, source });
            }
            None => {}
        }
        state.ledger.cut(&range);
        Ok(Went::Done)
    }

    /// Says that threads of the program wait, for as long as the result lives.
    pub(crate) fn urgent(&self) -> Urgent<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Urgent(self)
    }

    /// Whether threads of the program wait to be served.
    pub(crate) fn is_urgent(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// What is missing in a child.
fn inherited(ledger: &Ledger, told: &ForChildren) -> Ledger {
    let mut ledger = ledger.clone();
    told.not_inherited().iter().for_each(|range| ledger.cut(range));
    ledger
}

/// Threads of the program wait.
#[derive(Debug)]
pub(crate) struct Urgent<'a>(&'a Place);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
