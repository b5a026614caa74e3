//! A program whose keeper has died without a word (`kill -9`): it runs on, and nobody rolls it back. It is found by what
//! its keeper has left behind, and ended for those who say so.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;

use crate::failure::{Class, Failure, Result};
use crate::job::{self, Held, Record, State, peek};
use crate::parts;
use crate::process;
use crate::registry::Registry;
use crate::trust;

/// How long killed processes may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A program without its keeper.
#[derive(Debug, Serialize)]
pub(crate) struct Orphan {
    pub(crate) name: String,
    /// Its first process.
    pub(crate) pid: i32,
    pub(crate) command: String,
    pub(crate) store: PathBuf,
    #[serde(skip)]
    record: Record,
}

impl Orphan {
    /// What to say to somebody who wants its keeper.
    pub(crate) fn refusal(&self) -> Failure {
        let (name, pid) = (&self.name, self.pid);
        let message =
            format!("job {name} has lost its keeper; its program runs on as pid {pid}, and nobody rolls it back");
        Failure::refused("orphan-runs", message).remedy(format!(
            "`hdcr checkpoint {pid} -o FILE --kill` keeps what it has done so far, and `hdcr restore FILE` goes on from there; or \
             `kill -9 {pid}`, and the same `hdcr run` goes on from its last checkpoint, among the files that it has made without \
             a keeper; `hdcr stop {name}` ends it for good"
        ))
    }

    /// Ends it for good: all of its processes, asked first.
    pub(crate) fn end(self, registry: &Registry, grace: Duration, trusts: bool) -> Result<()> {
        trust::store(&self.store, trusts)?;
        let name = parts::job_name(&self.name)?;
        job::refuse_foreign(&self.store, &name)?;
        let held = Held::take(&self.store, &name)?;
        end_tree(self.pid, self.record.main_born, grace)?;
        if parts::numbers(&self.store, &name)?.is_empty() {
            held.forget()?;
        } else {
            held.write(&Record { state: State::Ended, ..self.record })?;
        }
        registry.forget(&self.name);
        Ok(())
    }
}

/// Ends a process, asked first, and all below it.
pub(crate) fn end_tree(main: i32, born: i64, grace: Duration) -> Result<()> {
    let mut tree = Tree::of(main);
    tree.signal(main, Signal::TERM);
    tree.signal(main, Signal::CONT);
    if !ends(main, born, grace)? {
        tree.look(main);
        tree.signal(main, Signal::KILL);
    }
    let end = Instant::now() + KILL_LIMIT;
    while let Some(left) = tree.kill() {
        if Instant::now() >= end {
            let message = format!("process {left} ({}) does not end although it was killed", process::name(left));
            return Err(Failure::new(Class::Failed, "unkillable", message));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Processes with their births, so that nobody is killed who has a number after them.
struct Tree(Vec<(i32, i64)>);

impl Tree {
    fn of(main: i32) -> Self {
        let mut tree = Self(Vec::new());
        tree.look(main);
        tree
    }

    fn look(&mut self, main: i32) {
        for pid in std::iter::once(main).chain(process::below(main)) {
            if let Some(born) = process::born(pid)
                && !self.0.contains(&(pid, born))
            {
                self.0.push((pid, born));
            }
        }
    }

    fn is(&self, pid: i32) -> bool {
        process::lives(pid) && process::born(pid).is_some_and(|born| self.0.contains(&(pid, born)))
    }

    fn signal(&self, pid: i32, signal: Signal) {
        let Some(number) = rustix::process::Pid::from_raw(pid) else { return };
        // The descriptor first: what it leads to then is looked at and cannot become another one.
        if let Ok(process) = pidfd_open(number, PidfdFlags::empty())
            && self.is(pid)
            && pidfd_send_signal(process, signal).is_err()
        {
            tracing::debug!(pid, "a process of the orphan could not be signalled");
        }
    }

    /// Kills what is left, with what it has made meanwhile; one that lives still.
    fn kill(&mut self) -> Option<i32> {
        let living: Vec<i32> = self.0.iter().map(|(pid, _)| *pid).filter(|pid| self.is(*pid)).collect();
        for pid in &living {
            self.look(*pid);
        }
        for (pid, _) in &self.0 {
            self.signal(*pid, Signal::KILL);
        }
        living.first().copied()
    }
}

/// Waits for the end of a process that is not a child; false when it is still there after the time.
fn ends(pid: i32, born: i64, limit: Duration) -> Result<bool> {
    let Some(number) = rustix::process::Pid::from_raw(pid) else { return Ok(true) };
    let Ok(process) = pidfd_open(number, PidfdFlags::empty()) else { return Ok(true) };
    if process::born(pid) != Some(born) {
        return Ok(true);
    }
    let limit = Timespec::try_from(limit).map_err(|_| Failure::usage("the time of --grace is too long"))?;
    let ready = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit));
    ready.map(|count| count > 0).map_err(Failure::system(format_args!("waiting for the end of process {pid}")))
}

/// The program of a job whose keeper is dead, if it runs on. What is remembered of a job that runs no more is forgotten.
pub(crate) fn find(registry: &Registry, name: &str, store: &std::path::Path) -> Result<Option<Orphan>> {
    let Ok(job) = parts::job_name(name) else { return Ok(None) };
    let remembered = registry.store_of(name);
    let is_remembered = remembered.is_some();
    let store = remembered.unwrap_or_else(|| store.to_owned());
    // Its keeper holds it when it lives; another one may have been begun under this name with another store.
    let record = peek(&store, &job)?.filter(Record::orphaned).filter(|_| !job::is_held(&store, &job));
    if record.is_none() && is_remembered {
        registry.forget(name);
    }
    Ok(record.map(|record| {
        let (pid, command) = (record.main, job::show(&record.command));
        Orphan { name: name.to_owned(), pid, command, store, record }
    }))
}

/// All of them.
pub(crate) fn all(registry: &Registry) -> Result<Vec<Orphan>> {
    let mut found = Vec::new();
    for name in registry.remembered()? {
        if registry.connect(&name)?.is_none() {
            found.extend(find(registry, &name, std::path::Path::new("/"))?);
        }
    }
    Ok(found)
}
