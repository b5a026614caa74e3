//! What this process knows of its keeper. There is one of it a process: a child begins with nothing (`ffi.rs`).

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::ffi;
use crate::hooks::Hooks;
use crate::link::{Heard, Link};
use crate::outcome::Restored;
use crate::regions::Regions;
use crate::sections::Sections;
use crate::wire::{self, Answer, Ask, Greeting, Welcome};

/// How long a keeper may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a keeper is asked whose answer is cut off by a restore.
pub(crate) const TRIES: usize = 3;

const UNKNOWN: u8 = 0;
const ABSENT: u8 = 1;
const ENABLED: u8 = 2;

/// The knowledge of this process.
pub(crate) fn this() -> &'static Process {
    ffi::this_process()
}

/// What is known.
#[derive(Debug, Default)]
pub(crate) struct Process {
    /// For the callers that must not wait.
    standing: AtomicU8,
    known: Mutex<Known>,
    pub(crate) agent: Agent,
    pub(crate) hooks: Hooks,
    pub(crate) sections: Sections,
    pub(crate) regions: Regions,
}

#[derive(Debug, Default)]
struct Known {
    /// Where the keeper listens, when that is not what the environment says.
    control: Option<PathBuf>,
    /// Stays open: what a restored program finds in it is how it learns of that.
    presence: Option<Link>,
    job: Option<String>,
    seen: Seen,
    /// When it was told last that a moment is good.
    moment: Option<Instant>,
}

/// What the library has been told of restores.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) count: u64,
    pub(crate) last: Option<Restored>,
}

impl Process {
    pub(crate) fn is_enabled(&self) -> bool {
        match self.standing.load(Ordering::Acquire) {
            UNKNOWN => self.look().is_some(),
            standing => standing == ENABLED,
        }
    }

    pub(crate) fn job(&self) -> Option<String> {
        self.look()?;
        self.known().job.clone()
    }

    /// What was told meanwhile; `None` without a keeper and without a past.
    pub(crate) fn look(&self) -> Option<Seen> {
        let mut known = self.known();
        self.refresh(&mut known);
        (known.presence.is_some() || known.seen.last.is_some()).then(|| known.seen.clone())
    }

    /// A new conversation with the keeper.
    pub(crate) fn connect(&self) -> Option<Link> {
        let mut known = self.known();
        self.refresh(&mut known);
        known.presence.as_ref()?;
        known.way().and_then(|way| Link::connect(&way).ok())
    }

    /// Tells the keeper that this is a good moment for a checkpoint; not more often than it wants to hear that.
    pub(crate) fn good_moment(&self) {
        if !self.is_enabled() {
            return;
        }
        let (mut known, now) = (self.known(), Instant::now());
        if known.moment.is_some_and(|last| now.saturating_duration_since(last) < wire::BETWEEN_MOMENTS) {
            return;
        }
        self.refresh(&mut known);
        known.moment = Some(now);
        // Who cannot be told just now is told next time.
        known.presence.as_ref().map(|presence| presence.send(&Ask::Moment {}));
    }

    /// The program has found in some connection that it was restored.
    pub(crate) fn greeted(&self, greeting: &Greeting) {
        self.known().greeted(greeting);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears what was said, and finds the keeper (again).
    fn refresh(&self, known: &mut Known) {
        while let Some(presence) = &known.presence {
            match presence.hear::<Answer>() {
                Ok(Heard::Nothing) => break,
                Ok(Heard::Said(Answer::Restored(greeting))) => known.greeted(&greeting),
                Ok(Heard::Said(_)) => {}
                Ok(Heard::Ended) | Err(_) => known.presence = None,
            }
        }
        if known.presence.is_none() {
            known.introduce();
        }
        let standing = if known.presence.is_some() { ENABLED } else { ABSENT };
        self.standing.store(standing, Ordering::Release);
    }
}

impl Known {
    /// Where the keeper listens; nowhere, without HDCR.
    fn way(&self) -> Option<PathBuf> {
        match &self.control {
            Some(path) if path.as_os_str().is_empty() => None,
            Some(path) => Some(path.clone()),
            None => control_of_environment(),
        }
    }

    fn greeted(&mut self, greeting: &Greeting) {
        self.control = Some(greeting.control.as_ref().map(PathBuf::from).unwrap_or_default());
        self.seen = Seen { count: greeting.restored.count, last: Some(greeting.restored.clone()) };
    }

    /// Asks the keeper who it is.
    fn introduce(&mut self) {
        for _ in 0..TRIES {
            let Some(link) = self.way().and_then(|way| Link::connect(&way).ok()) else { return };
            let asked = link.send(&Ask::Hello { version: wire::VERSION });
            match asked.and_then(|()| link.wait(Some(Instant::now() + PATIENCE))) {
                Ok(Heard::Said(Answer::Welcome(welcome))) => return self.welcomed(link, welcome),
                // This life began in the middle of it.
                Ok(Heard::Said(Answer::Restored(greeting))) => self.greeted(&greeting),
                Ok(Heard::Nothing) => return,
                Ok(Heard::Said(_) | Heard::Ended) | Err(_) => {}
            }
        }
    }

    fn welcomed(&mut self, link: Link, welcome: Welcome) {
        self.presence = Some(link);
        self.seen.count = self.seen.count.max(welcome.count);
        self.job = Some(welcome.job);
    }
}

#[expect(clippy::disallowed_methods, reason = "the keeper tells its programs by the environment where it listens")]
fn control_of_environment() -> Option<PathBuf> {
    std::env::var_os(wire::CONTROL).map(PathBuf::from).filter(|path| path.is_absolute())
}
