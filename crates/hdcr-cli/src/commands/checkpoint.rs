//! `hdcr checkpoint`: one checkpoint of a process or a job.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdcr_engine::progress::Progress;

use super::{Surrounding, stop};
use crate::asking::{self, Question};
use crate::busy::BUSY;
use crate::by_hand as restored_by_hand;
use crate::cli::{CheckpointArgs, FileArgs};
use crate::failure::{Class, Failure, Result};
use crate::job::{self, State};
use crate::kinds::Then;
use crate::names;
use crate::namespace;
use crate::orphan;
use crate::parts::{self, Session};
use crate::process;
use crate::progress::{Bar, Teller};
use crate::registry::{Answer, Registry, Request};
use crate::settings::absolute;
use crate::shortage;
use crate::slow;
use crate::task::{CheckpointTask, Checkpointed, Reply, Target, Who};
use crate::upright::Upright;

pub(crate) fn run(at: &Surrounding<'_>, args: &CheckpointArgs) -> Result<u8> {
    let then = match (args.kill, args.stop) {
        (true, _) => Then::Kill,
        (false, true) => Then::Stop,
        (false, false) => Then::GoOn,
    };
    let numbered = pid(&args.target);
    let restored = if numbered.is_none() { restored(at, &args.target)? } else { None };
    let done = match numbered.or(restored) {
        Some(pid) => {
            if at.entered.is_some() {
                process::take_name();
            } else {
                if args.output.is_none() {
                    at.trusted_store()?;
                }
                must_exist(pid)?;
                if let Some(status) = namespace::enter(pid)? {
                    return Ok(status);
                }
            }
            let target = if let Some(path) = &args.output {
                file_target(path)?
            } else {
                // What was brought back from the checkpoints of a job adds to them.
                let job = if restored.is_some() { args.target.clone() } else { name_of(at, pid) };
                Target::Store { root: at.settings.store.clone(), job }
            };
            let timeout = at.settings.checkpoint_timeout(args.timeout);
            let files = at.settings.files(&args.files)?;
            let tree = at.entered.unwrap_or(pid);
            // Before there is a process beside, which is as small as can be: of two with one score the larger goes first.
            shortage::goes_first();
            let upright = Rc::new(Upright::keep(at.output)?);
            let bar = at.output.bar_or_line(move || slow::tree_of(tree));
            let who = Who::Tree(at.entered.unwrap_or(pid));
            let jobs = at.settings.surroundings.jobs();
            let task = CheckpointTask::of_any(who, target, files, timeout, jobs);
            let task = CheckpointTask { then, progress: bar.is_seen(), ..task };
            let done = by_hand(&task, &bar, &upright, args.wait.unwrap_or_default())?;
            tell_of_its_job(at, pid);
            done
        }
        None => of_job(at, args, then)?,
    };
    at.output.result(&done)?;
    Ok(0)
}

/// A checkpoint by number of what a keeper has is none of its job.
fn tell_of_its_job(at: &Surrounding<'_>, pid: i32) {
    let job = at.registry().ok().filter(|_| at.entered.is_none()).and_then(|registry| stop::job_with(&registry, pid));
    if let Some(job) = job {
        at.output.note(&format!(
            "process {pid} is the program of job {job}: `hdcr checkpoint {job}` makes one that the job goes back to"
        ));
    }
}

/// The program of a job that was restored by hand, when no keeper has the job: by its number here.
pub(super) fn restored(at: &Surrounding<'_>, name: &str) -> Result<Option<i32>> {
    let Ok(job) = parts::job_name(name) else { return Ok(None) };
    // Inside of its namespace it has another number, which is known already.
    if at.entered.is_some() {
        return Ok(at.entered);
    }
    if at.registry().and_then(|registry| registry.names()).is_ok_and(|names| names.contains(&job.to_string())) {
        return Ok(None);
    }
    match restored_by_hand::living(&at.settings.store, &job)?.as_slice() {
        [] => Ok(None),
        [program] => Ok(Some(program.pid)),
        several => {
            let pids: Vec<String> = several.iter().map(|program| program.pid.to_string()).collect();
            let message = format!("programs of job {name} run that were restored by hand: {}", pids.join(", "));
            Err(Failure::refused("several-copies", message).remedy("name one by its pid"))
        }
    }
}

/// Whoever looks at a bar. He watches no files.
struct Seen<'a>(&'a Teller);

impl parts::Listener for Seen<'_> {
    fn tell(&mut self, reply: Reply) -> Result<()> {
        if let Reply::Progress(step) = reply {
            self.0.at(step);
        }
        Ok(())
    }

    fn touched(&mut self) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

/// Takes it in this very process.
fn by_hand(task: &CheckpointTask, bar: &Bar, upright: &Rc<Upright>, wait: Duration) -> Result<Checkpointed> {
    let teller = bar.teller();
    let steps = bar.teller();
    let progress = if bar.is_seen() { parts::steps_to(move |step| steps.at(step)) } else { Progress::default() };
    let mut hear = Seen(&teller);
    let mut attempt = || {
        let session = Session::new().heard_by(Rc::<Upright>::clone(upright));
        parts::checkpoint(task, &session, &progress, &mut hear)
    };
    wait_for_others(wait, &bar.teller(), || retry(&mut attempt))
}

/// Asks the keeper of a job.
fn of_job(at: &Surrounding<'_>, args: &CheckpointArgs, then: Then) -> Result<Checkpointed> {
    let target = args.output.as_ref().map(|path| file_target(path)).transpose()?;
    let FileArgs { always, policies, limit, ends, snapshot, compress, mechanism } = &args.files;
    let given = !always.is_empty() || !policies.is_empty() || limit.is_some() || ends.is_some();
    let given = given || snapshot.is_some() || compress.is_some() || mechanism.is_some();
    let files = given.then(|| at.settings.files(&args.files)).transpose()?;
    let (jobs, name) = (at.settings.surroundings.jobs(), args.target.clone());
    let bar = at.output.bar_or_line(move || tree_of_job(&jobs, &name));
    bar.teller().waits(format!("the keeper of job {} has not begun with it", args.target));
    let request = Request::Checkpoint { target, files, timeout: args.timeout, then, progress: bar.is_seen() };
    let limit = at.settings.checkpoint_timeout(args.timeout).saturating_mul(20) + Duration::from_mins(1);
    let registry = at.registry()?;
    let question = Question { name: &args.target, request: &request, limit };
    let answered = asking::ask(&registry, &question, &mut |step| bar.teller().at(step))?;
    drop(bar);
    match answered.map(|answered| answered.answer) {
        Some(Answer::Checkpointed(done)) => Ok(done),
        Some(Answer::Failed(failure)) => Err(failure),
        Some(_) => Err(Failure::new(Class::Internal, "answer", "the keeper gave an answer to another question")),
        None => Err(orphan::find(&registry, &args.target, &at.settings.store)?
            .map_or_else(|| no_such_job(at, &args.target), |orphan| orphan.refusal())),
    }
}

/// The processes of a job, when its keeper tells.
fn tree_of_job(jobs: &Path, name: &str) -> Vec<i32> {
    let status = Registry::open(jobs).and_then(|registry| asking::status(&registry, name, Duration::from_secs(1)));
    status.ok().flatten().and_then(|status| status.pid).map(slow::tree_of).unwrap_or_default()
}

/// Tries again while another hdcr is at work on the program, for so long at most.
fn wait_for_others<T>(limit: Duration, teller: &Teller, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    const PAUSE: Duration = Duration::from_millis(20);
    let end = Instant::now() + limit;
    loop {
        match attempt() {
            Err(failure) if failure.code == BUSY && Instant::now() < end => {
                teller.waits(failure.message);
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// Once more, and again, when the program changed under our eyes.
fn retry<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    const AGAIN: usize = 2;
    for _ in 0..AGAIN {
        match attempt() {
            Err(failure) if failure.class == Class::Changed && failure.code != BUSY => {}
            other => return other,
        }
    }
    attempt()
}

/// A pid, when the text is one.
pub(crate) fn pid(text: &str) -> Option<i32> {
    text.parse().ok().filter(|pid| *pid > 0)
}

/// Refuses a process that is not there.
pub(crate) fn must_exist(pid: i32) -> Result<()> {
    match process::stat(pid) {
        Some(stat) if process::ended(&stat) => {
            Err(Failure::refused("no-such-process", format!("process {pid} has ended")))
        }
        Some(_) => Ok(()),
        None => Err(Failure::refused("no-such-process", format!("there is no process {pid}"))),
    }
}

/// What to say when nobody runs under this name.
pub(crate) fn no_such_job(at: &Surrounding<'_>, name: &str) -> Failure {
    let record = parts::job_name(name).ok().and_then(|job| job::peek(&at.settings.store, &job).ok().flatten());
    // One that has ended begins anew, and what was never run cannot be run again.
    let goes_on = record.as_ref().is_some_and(|record| record.state != State::Ended);
    if let Some(record) = record.filter(|record| record.state == State::Running && record.host.is_elsewhere()) {
        let host = record.host.called();
        let message = format!("job {name} does not run here, but on host {host}, or ran there when that was lost");
        return Failure::refused("job-elsewhere", message).remedy(format!("give this command on {host}"));
    }
    let failure = Failure::refused("no-such-job", format!("no job {name} is running"));
    if let Some((job, _)) = name.split_once('@') {
        return failure.remedy(format!("{name} would be a checkpoint; a job is named without it: {job}"));
    }
    let running = at.registry().and_then(|registry| registry.names()).unwrap_or_default();
    let otherwise = "`hdcr ps` lists the jobs of this user; a process is named by its pid";
    let kept = parts::job_name(name).and_then(|job| parts::numbers(&at.settings.store, &job)).unwrap_or_default();
    match (names::nearest(name, running), kept.last()) {
        (_, Some(newest)) => {
            let again = if goes_on { ", or the same `hdcr run`," } else { "" };
            failure.remedy(format!(
                "it has checkpoints, the newest is {name}@{newest}: `hdcr restore {name}`{again} brings it back"
            ))
        }
        (Some(near), None) => failure.remedy(format!("did you mean {near}? {otherwise}")),
        (None, None) => failure.remedy(otherwise),
    }
}

/// A job name for a process that runs under no keeper.
fn name_of(at: &Surrounding<'_>, pid: i32) -> String {
    format!("{}-{pid}", job::name_of(&[process::name(at.entered.unwrap_or(pid)).into()]))
}

/// The target for `-o`: an empty directory, or a path with a slash at its end, becomes an image directory; else a file.
fn file_target(path: &Path) -> Result<Target> {
    let directory = path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/");
    let path = absolute(path)?;
    Ok(if directory { Target::Directory(path) } else { Target::File(path) })
}
