//! `hdcr stop`: the end of a job, for good; also of one that has lost its keeper.

use std::time::Duration;

use serde::Serialize;

use super::Surrounding;
use super::checkpoint::no_such_job;
use crate::asking::{self, Question};
use crate::by_hand;
use crate::cli::StopArgs;
use crate::duration;
use crate::failure::{Class, Failure, Result};
use crate::orphan;
use crate::output::Report;
use crate::parts;
use crate::process;
use crate::registry::{Answer, Registry, Request};
use crate::trust;

/// A job that has ended.
#[derive(Debug, Serialize)]
struct Stopped {
    name: String,
    /// Not known of one that had lost its keeper.
    status: Option<u8>,
    /// Whether the store has a checkpoint of it.
    has_checkpoints: bool,
}

impl Report for Stopped {
    fn text(&self) -> String {
        let name = &self.name;
        let how = match self.status {
            Some(status) => format!("has ended with status {status}"),
            None => "had lost its keeper; its program has been ended".to_owned(),
        };
        let left = if self.has_checkpoints {
            format!("its checkpoints are kept (`hdcr rm {name}` removes them)")
        } else {
            "it had no checkpoint yet".to_owned()
        };
        format!("job {name} {how}; {left}")
    }
}

/// A program that was restored by hand, of this name or with this pid.
#[derive(Debug, Serialize)]
struct Ended {
    name: String,
    pid: i32,
}

impl Report for Ended {
    fn text(&self) -> String {
        let Self { name, pid } = self;
        format!(
            "the program of job {name} that was restored by hand (pid {pid}) has been ended; its checkpoints are kept"
        )
    }
}

fn stop_by_hand(at: &Surrounding<'_>, args: &StopArgs) -> Result<u8> {
    let store = &at.settings.store;
    let pid = args.name.parse::<i32>().ok();
    let all = by_hand::all(store).into_iter();
    let meant: Vec<_> = all.filter(|(name, program)| name.as_str() == args.name || Some(program.pid) == pid).collect();
    match meant.as_slice() {
        [(name, program)] => {
            trust::store(store, at.trusts)?;
            by_hand::end(store, name, program, args.grace)?;
            at.output.result(&Ended { name: name.to_string(), pid: program.pid })?;
            Ok(0)
        }
        [] => Err(nothing(at, &args.name, pid)),
        several => {
            let pids: Vec<String> = several.iter().map(|(_, program)| program.pid.to_string()).collect();
            let message = format!("programs of job {} run that were restored by hand: {}", args.name, pids.join(", "));
            Err(Failure::refused("several-copies", message).remedy("name one by its pid: `hdcr stop PID`"))
        }
    }
}

/// There is nothing of this name, or with this pid.
fn nothing(at: &Surrounding<'_>, name: &str, pid: Option<i32>) -> Failure {
    match pid.filter(|pid| process::lives(*pid)) {
        Some(pid) => Failure::refused("no-such-job", format!("process {pid} is not a program that `hdcr ps` shows"))
            .remedy(format!("a job is named by its name; `kill {pid}` ends a process of your own")),
        None => no_such_job(at, name),
    }
}

/// The job whose program has this pid.
pub(super) fn job_with(registry: &Registry, pid: i32) -> Option<String> {
    let names = registry.names().unwrap_or_default();
    let has_it = |name: &String| {
        let status = asking::status(registry, name, Duration::from_secs(5)).ok().flatten();
        status.is_some_and(|status| status.pid == Some(pid))
    };
    names.into_iter().find(has_it).or_else(|| {
        let orphans = orphan::all(registry).ok()?;
        orphans.into_iter().find(|orphan| orphan.pid == pid).map(|orphan| orphan.name)
    })
}

pub(crate) fn run(at: &Surrounding<'_>, args: &StopArgs) -> Result<u8> {
    let limit = args.grace.saturating_add(Duration::from_mins(1));
    let registry = at.registry()?;
    let request = Request::Stop { grace: args.grace };
    // A name that looks like a number is a name.
    let pid = args.name.parse().ok().filter(|_| !registry.names().is_ok_and(|names| names.contains(&args.name)));
    let by_pid = pid.and_then(|pid| job_with(&registry, pid));
    let name = by_pid.unwrap_or_else(|| args.name.clone());
    // Of a keeper that does not tell, the store of this command.
    let known = asking::status(&registry, &name, Duration::from_secs(1)).ok().flatten().map(|status| status.store);
    let store = known.unwrap_or_else(|| at.settings.store.clone());
    let question = Question { name: &name, request: &request, limit };
    let bar = at.output.bar_or_line(Vec::new);
    let grace = duration::show(args.grace);
    bar.teller().waits(format!(
        "job {name} was asked to end, and is killed after {grace}; who waits in the kernel, or in a frozen control group, \
         ends when that lets go"
    ));
    let asked = asking::ask(&registry, &question, &mut |_| {})?;
    drop(bar);
    let status = match asked.map(|answered| answered.answer) {
        Some(Answer::Stopped(status)) => Some(status),
        Some(Answer::Failed(failure)) => return Err(failure),
        Some(_) => {
            return Err(Failure::new(Class::Internal, "answer", "the keeper gave an answer to another question"));
        }
        None => {
            match orphan::find(&registry, &name, &at.settings.store)? {
                Some(orphan) => orphan.end(&registry, args.grace, at.trusts)?,
                None => return stop_by_hand(at, args),
            }
            None
        }
    };
    let has_checkpoints =
        parts::job_name(&name).and_then(|job| parts::numbers(&store, &job)).map_or(true, |all| !all.is_empty());
    at.output.result(&Stopped { name, status, has_checkpoints })?;
    Ok(0)
}
