//! A restore as a parent sees it: starts the worker, becomes the parent of what it made, and behaves like the program.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use hdcr_policy::restart::Death;
use nix::sys::signal::Signal;

use crate::duration;
use crate::failure::{Failure, Result};
use crate::filling::LAST_WORD;
use crate::namespace;
use crate::output::{Output, counted};
use crate::parts;
use crate::process::{self, Change, kill_all_below, next_change};
use crate::progress::Bar;
use crate::signals::{REQUESTS_TO_END, Signals};
use crate::task::{Reply, RestoreTask, Restored, Task};
use crate::terminal::{Stop, Terminal};
use crate::worker::Worker;

/// How long the killing of what is left may take.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How a restore came out.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The program runs; its roots are children of this process. With who fills its memory, when that is still going on.
    Runs(Restored, Option<Worker>),
    /// The user asked for an end by this signal; nothing is left.
    Interrupted(i32),
}

/// What is restored, and what for.
#[derive(Debug)]
pub(crate) struct Errand<'a> {
    pub(crate) task: RestoreTask,
    /// For what led out of the tree.
    pub(crate) stdio: [OwnedFd; 3],
    /// The numbers that the tree needs.
    pub(crate) needed: &'a BTreeSet<i32>,
}

/// Restores a tree as children of this process. When it fails, nothing of it is left. `runs` is called at the moment in which
/// the tree runs: what then is still to be done may take a while.
pub(crate) fn restore(
    errand: Errand<'_>,
    signals: &Signals,
    output: Output,
    runs: &mut dyn FnMut(&Restored),
) -> Result<Outcome> {
    let Errand { mut task, stdio, needed } = errand;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(Failure::system("becoming the reaper of the tree"))?;
    let descriptors: Vec<_> = stdio.iter().map(AsFd::as_fd).collect();
    let bar = output.bar();
    task.progress = bar.is_seen();
    let worker = Worker::start(&Task::Restore(task.clone()), &descriptors, needed)?;
    let outcome = wait_for(&worker, signals, &bar, task.timeout + KILL_LIMIT);
    drop(bar);
    if let Ok(Outcome::Runs(restored, _)) = &outcome {
        runs(restored);
    }
    let outcome = match outcome {
        Ok(Outcome::Runs(restored, _)) if restored.filling => {
            if !worker.settles(KILL_LIMIT) {
                parts::settle_files(&task.place, &task.journals);
            }
            Ok(Outcome::Runs(restored, Some(worker)))
        }
        Ok(Outcome::Runs(restored, _)) => {
            if !worker.comes_to_its_end(KILL_LIMIT) {
                parts::settle_files(&task.place, &task.journals);
            }
            Ok(Outcome::Runs(restored, None))
        }
        bad => {
            worker.end();
            kill_all_below(signals, KILL_LIMIT, &mut |_, _| {})?;
            Terminal::open().take_from_the_dead();
            parts::repair_files(&task.place, &task.journals);
            bad
        }
    };
    rustix::process::set_child_subreaper(None).map_err(Failure::system("letting go of the tree"))?;
    outcome
}

fn wait_for(worker: &Worker, signals: &Signals, bar: &Bar, limit: Duration) -> Result<Outcome> {
    let end = std::time::Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Err(Failure::new(crate::failure::Class::Failed, "late", "the restore did not end in time")
                .remedy("try again, with a longer --timeout"));
        }
        let ready = signals.wait(&mut [worker.as_fd()], Some(left))?;
        if ready.first() == Some(&true) {
            match worker.answer()? {
                Reply::Restored(restored) => return Ok(Outcome::Runs(restored, None)),
                Reply::Failed(failure) => return Err(failure),
                Reply::Progress(step) => bar.teller().at(step),
                Reply::Asking
                | Reply::At(_)
                | Reply::Halting
                | Reply::Frozen
                | Reply::Thawed
                | Reply::Checkpointed(_)
                | Reply::GoesNext
                | Reply::Settled
                | Reply::Leaving
                | Reply::Filled(_) => {}
            }
            // A program that runs is not ended for what came at the same moment.
            continue;
        }
        while let Some(received) = signals.next() {
            if REQUESTS_TO_END.contains(&received.number) {
                return Ok(Outcome::Interrupted(received.number));
            }
        }
    }
}

/// Waits for the end of the program, passing on signals; behaves like it on a terminal. `outside`: leads to the process
/// outside of our pid namespace.
pub(crate) fn accompany(
    main: i32,
    signals: &Signals,
    output: Output,
    outside: Option<&File>,
    mut filler: Option<Worker>,
) -> Result<Death> {
    let mut terminal = Terminal::open();
    terminal.program_is(main);
    let death = loop {
        let mut others: Vec<_> = filler.iter().map(AsFd::as_fd).collect();
        let ready = match ended(main, &terminal, outside) {
            Some(death) => break death,
            None => signals.wait(&mut others, None)?,
        };
        if ready.first() == Some(&true)
            && let Some(worker) = filler.take()
        {
            filled(&worker, output)?;
        }
        while let Some(received) = signals.next() {
            if !(received.by_terminal && terminal.shares_group()) {
                process::signal(main, received.number);
            }
        }
    };
    terminal.take_back();
    if let Some(worker) = filler.filter(|_| death == Death::Signal(Signal::SIGKILL as i32)) {
        // Perhaps its memory could not be filled.
        let ready = signals.wait(&mut [worker.as_fd()], Some(LAST_WORD))?;
        if ready.first() == Some(&true) {
            filled(&worker, output)?;
        }
    }
    output.detail(&format!("the program ended: {}", tell(death)));
    Ok(death)
}

/// Hears how the filling of a program's memory went. The one who filled it ends now, and is reaped like any child.
fn filled(worker: &Worker, output: Output) -> Result<()> {
    match worker.answer() {
        Ok(Reply::Filled(filled)) => {
            let took = duration::show(Duration::from_micros(filled.total_us));
            let waited = counted(usize::try_from(filled.faults).unwrap_or(usize::MAX), "page was", "pages were");
            output.detail(&format!("all memory is there, after {took}; {waited} waited for"));
            Ok(())
        }
        Ok(Reply::Failed(failure)) => Err(failure),
        Ok(other) => {
            tracing::debug!(?other, "a word too many");
            Ok(())
        }
        Err(_) => {
            let message = "the process that filled the program's memory died, and the program was killed";
            Err(Failure::new(crate::failure::Class::Internal, "filler-died", message)
                .remedy("restore it again, from the same checkpoint"))
        }
    }
}

/// Looks at all children that changed; the end of the program, if it is among them.
fn ended(main: i32, terminal: &Terminal, outside: Option<&File>) -> Option<Death> {
    while let Some((pid, change)) = next_change() {
        match change {
            Change::Ended(death) if pid == main => return Some(death),
            Change::Stopped(signal) if pid == main => {
                if let (Stop::Outside, Some(outside)) = (terminal.program_stopped(signal), outside) {
                    namespace::tell_stopped(outside);
                }
            }
            Change::Ended(_) | Change::Stopped(_) | Change::Continued => {}
        }
    }
    None
}

/// A death in words.
pub(crate) fn tell(death: Death) -> String {
    match death {
        Death::Exit(code) => format!("exit status {code}"),
        Death::Signal(signal) => format!("killed by {}", crate::kinds::signal_name(signal)),
    }
}
