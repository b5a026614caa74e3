//! Bounded waits: every wait of the trials has a deadline and says what it waited for.

use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitOptions, waitpid};

/// Between two looks; short against any trial, long against the cost of a look.
const PAUSE: Duration = Duration::from_millis(3);

/// Asks until there is an answer; fails with `what` when there is none by the deadline.
pub(crate) fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits for the end of a child; kills it at the deadline, so that it never outlives the trial.
pub(crate) fn end_of(child: &mut Child, what: &str, limit: Duration) -> Result<ExitStatus> {
    let ended = until(what, limit, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill().with_context(|| format!("kill {what} at its deadline"))?;
        child.wait()?;
    }
    ended
}

/// Waits until no process has this number any more. A zombie still has: orphans become ours, and are reaped here,
/// as the init of some machines takes seconds for it.
pub(crate) fn gone(pid: u32, limit: Duration) -> Result<()> {
    until(&format!("the end of process {pid}"), limit, || {
        reap(pid);
        Ok((!Path::new("/proc").join(pid.to_string()).exists()).then_some(()))
    })
}

/// Reaps a child that has ended. Not a child of ours is no error: its parent reaps it.
pub(crate) fn reap(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        waitpid(Some(pid), WaitOptions::NOHANG).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_the_wait() {
        let mut asked = 0;
        let got = until("three", Duration::from_mins(1), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(got.unwrap(), 3);
    }

    #[test]
    fn the_deadline_names_what_was_waited_for() {
        let got = until("nothing", Duration::ZERO, || Ok(None::<()>));
        assert_eq!(got.unwrap_err().to_string(), "waited 0 s for nothing");
    }
}
