//! A thread that collects dead threads of the targets while the tracer attaches to more of them.
//!
//! `PTRACE_SEIZE` waits for an exec in the same process (`cred_guard_mutex`), the exec waits until all other threads are
//! gone (fs/exec.c `de_thread`), and a dead thread that is traced is not gone before somebody of the tracer's process has
//! collected it: the tracer alone would wait for itself for ever.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hdcr_engine::ids::Pid;
use hdcr_engine::procfs::threads;
use hdcr_sys::wait::{Seen, Take, look};

/// How often it looks. An exec that met the tracer is held up this long, or [`SHARE`] rounds.
const ROUND: Duration = Duration::from_millis(2);
/// It rests this many times as long as a round took: with hundreds of threads to look at it would else take a processor from
/// those who stop them.
const SHARE: u32 = 20;

/// What both threads know: the processes to look after, or that it is over.
type Charges = Arc<Mutex<Option<BTreeSet<Pid>>>>;

/// Works until it is dropped.
#[derive(Debug)]
pub(crate) struct Undertaker {
    charges: Charges,
    thread: Option<JoinHandle<()>>,
}

impl Undertaker {
    /// Starts one.
    pub(crate) fn start() -> std::io::Result<Self> {
        let charges: Charges = Arc::new(Mutex::new(Some(BTreeSet::new())));
        let theirs = Arc::clone(&charges);
        let thread = thread::Builder::new().name("undertaker".into()).spawn(move || {
            let mut rest = ROUND;
            loop {
                // The tracer meets an exec seldom; nothing is lost by resting first.
                thread::park_timeout(rest);
                let began = Instant::now();
                if !go_round(&theirs) {
                    break;
                }
                rest = ROUND.max(began.elapsed() * SHARE);
            }
        })?;
        Ok(Self { charges, thread: Some(thread) })
    }

    /// Gives it a process.
    pub(crate) fn look_after(&self, pid: Pid) {
        if let Some(pids) = self.charges.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            pids.insert(pid);
        }
    }
}

/// False when it is over.
fn go_round(charges: &Charges) -> bool {
    let Some(pids) = charges.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
        return false;
    };
    pids.into_iter().for_each(collect_dead_threads);
    true
}

/// All that are traced, known to the tracer or born since. The leader is collected by the exec itself, or by its parent.
fn collect_dead_threads(pid: Pid) {
    for tid in threads(pid).unwrap_or_default().into_iter().filter(|tid| *tid != pid.leader()) {
        if let Ok(Seen::Exited(_) | Seen::Killed(_)) = look(tid.0, Take::Leave) {
            look(tid.0, Take::Collect).ok();
        }
    }
}

impl Drop for Undertaker {
    fn drop(&mut self) {
        *self.charges.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot have panicked, and nothing hangs on it if it has.
            thread.join().ok();
        }
    }
}
