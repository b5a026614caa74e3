//! What a worker does when the program runs that it restored, and memory is still missing: it fills it, and when that fails
//! it ends the program rather than let it see what is not its own.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hdcr_engine::checkpoint::Surveyed;
use hdcr_engine::ids::Pid;
use hdcr_engine::progress::Progress;
use hdcr_engine::restore::{self, Filling, Lazily, Lazy};
use hdcr_image::Outline;
use rustix::fs::{Mode, OFlags};

use crate::failure::{Failure, Result};
use crate::kinds;
use crate::standby::Standby;
use crate::task::Filled;

/// An image with less memory is restored at once by `--lazy auto`.
const WORTH: u64 = 16 << 20;

/// Looks at a tree for a checkpoint; waits for a while when nothing stands in the way but that its memory is still being
/// filled.
pub(crate) fn when_filled(mut look: impl FnMut() -> Result<Surveyed>) -> Result<Surveyed> {
    const PAUSE: Duration = Duration::from_millis(20);
    const TRIES: usize = 500;
    for _ in 0..TRIES {
        let surveyed = look()?;
        let refusals = surveyed.refusals();
        // A program with a userfaultfd of its own is refused for that, too.
        if refusals.is_empty() || refusals.iter().any(|refusal| refusal.code != "mapping-userfaultfd") {
            return Ok(surveyed);
        }
        std::thread::sleep(PAUSE);
    }
    look()
}

/// Who stands by for a restore that may be lazy.
pub(crate) fn standby(outline: &Outline, lazy: kinds::Lazy) -> Result<Option<Standby>> {
    let wanted = match lazy {
        kinds::Lazy::Never => false,
        kinds::Lazy::Auto => restore::memory(outline) >= WORTH,
        kinds::Lazy::Always => true,
    };
    if !wanted {
        return Ok(None);
    }
    let numbers: BTreeSet<i32> = restore::numbers(outline)?;
    Standby::begin(&numbers).map(Some)
}

/// What the engine is told of it.
pub(crate) fn lazily(standby: Option<&Standby>, lazy: kinds::Lazy) -> Result<Option<Lazily>> {
    let Some(standby) = standby else { return Ok(None) };
    let which = match lazy {
        kinds::Lazy::Never => Lazy::Never,
        kinds::Lazy::Auto => Lazy::Large,
        kinds::Lazy::Always => Lazy::Always,
    };
    Ok(Some(Lazily { which, standby: standby.process()? }))
}

/// A tree that runs without all of its memory.
#[derive(Debug)]
pub(crate) struct Unfilled {
    pub(crate) filling: Filling,
    pub(crate) standby: Standby,
    pub(crate) began: Instant,
    pub(crate) place: String,
}

/// Numbers of processes as they travel.
pub(crate) fn numbers(pids: &[Pid]) -> Vec<i32> {
    pids.iter().map(|pid| pid.0).collect()
}

impl Unfilled {
    /// Fills it. On an error nothing of the tree is left.
    pub(crate) fn fill(self, progress: &Progress) -> Result<Filled> {
        let Self { mut filling, standby, began, place } = self;
        leave_command();
        match filling.fill(progress) {
            Ok(filled) => {
                standby.dismiss();
                Ok(Filled { total_us: micros(began.elapsed()), faults: filled.faults })
            }
            Err(error) => {
                // As long as this goes on, who misses a page waits.
                standby.end_tree();
                drop(filling);
                standby.dismiss();
                let failure = Failure::from(error).during(format_args!("filling the memory of {place}"));
                let remedy = "the program was killed, for it would have seen memory that is not its own; `--lazy never` \
                     checks all of it before the program runs";
                Err(Failure { code: "fill-failed".to_owned(), ..failure }.remedy(remedy))
            }
        }
    }
}

/// The command may end before the filling does: what it was given is let go of, so that nobody waits for its end in vain, and
/// a signal to its session does not come here.
fn leave_command() {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let left = null.and_then(|null| {
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)
    });
    if let Err(error) = left.and_then(|()| rustix::process::setsid().map(drop)) {
        tracing::debug!(%error, "the page server stays with its command");
    }
}

/// How long a worker may be silent about the end of its filling when the program was killed.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(2);

/// Microseconds of a duration.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
