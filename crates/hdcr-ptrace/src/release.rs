//! Letting threads go that were attached, whatever they do at that moment.

use std::time::Instant;

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::Deadline;
use hdcr_sys::ptrace::EVENT_STOP;
use hdcr_sys::wait::Seen;

use crate::calls::{Calls, Patience};
use crate::tasks;

/// Lets threads go, each as soon as it has stopped, whoever else has not; those that have not until then, and those that
/// sleep where no stop reaches them, are handed back.
pub(crate) fn all(calls: &Calls, mut tids: Vec<Tid>, by: Deadline) -> Vec<Tid> {
    let mut patience = Patience::until(by);
    loop {
        let before = tids.len();
        let now = Deadline(Instant::now());
        tids.retain(|tid| !let_go_of(calls, *tid, now));
        if tids.len() < before {
            patience.renew();
        }
        let sleep = tids.iter().all(|tid| tasks::state(Pid(tid.0), *tid) == Some('D'));
        if sleep || !patience.wait() {
            return tids;
        }
    }
}

/// Lets a thread go once it has stopped. False when it does not stop in time.
pub(crate) fn let_go_of(calls: &Calls, tid: Tid, by: Deadline) -> bool {
    let mut patience = Patience::until(by);
    loop {
        match calls.look(tid) {
            Ok(Seen::Nothing) => {
                if !patience.wait() {
                    return false;
                }
            }
            Ok(Seen::Stopped(status)) => {
                let event = status >> 8;
                // What it has just cloned is ours from birth, and stands still as well.
                let born = (event != 0 && event != EVENT_STOP).then(|| calls.event_message(tid).ok()).flatten();
                // A signal that was being delivered is delivered.
                drop(calls.detach(tid, if event == 0 { status & 0xff } else { 0 }));
                let born = born.and_then(|born| i32::try_from(born).ok()).filter(|born| *born > 0);
                return born.is_none_or(|born| let_go_of(calls, Tid(born), crate::grace()));
            }
            Ok(Seen::Exited(_) | Seen::Killed(_)) => {
                bury(calls, tid);
                return true;
            }
            Err(_) => return true,
        }
    }
}

/// Collects a dead tracee: a thread, or a leader whose real parent is another process. A child of this very process is
/// left for whoever here waits for it.
pub(crate) fn bury(calls: &Calls, tid: Tid) {
    let own = nix::unistd::getpid().as_raw();
    let child = tasks::status(Pid(tid.0), tid).is_some_and(|status| status.process == tid.0 && status.parent == own);
    if !child {
        calls.collect(tid);
    }
}
