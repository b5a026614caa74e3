//! `hdcr job`: parallel jobs.

use std::time::Duration;

use hdcr_image::JobName;
use serde::Serialize;

use super::Surrounding;
use crate::cli::job::{JobArgs, JobCommand, JobRunArgs};
use crate::duration;
use crate::failure::{Class, Failure, Result};
use crate::job;
use crate::output::Report;
use crate::parallel::credentials;
use crate::parallel::ledger::Ledger;
use crate::parallel::lives::{self, Seen};
use crate::parallel::room::{self, End, Life, Room, Spec};
use crate::parallel::seat::questions::{Answer, Ask, MemberStatus, Status};
use crate::parallel::seat::{self, ABORTED, Launcher, Plan};
use crate::parallel::transport;
use crate::parts;
use crate::settings::absolute;

/// A coordinator that does not answer in this time is not waited for.
const SOON: Duration = Duration::from_secs(10);
/// Nor for a checkpoint longer than this.
const LATE: Duration = Duration::from_mins(30);

pub(crate) fn run(at: &Surrounding<'_>, args: &JobArgs) -> Result<u8> {
    at.trusted_store()?;
    match &args.what {
        JobCommand::Run(args) => seat::run(&plan(at, args)?),
        JobCommand::List => list(at),
        JobCommand::Status(args) => status(at, &parts::job_name(&args.name)?),
        JobCommand::Checkpoint(args) => checkpoint(at, &parts::job_name(&args.name)?),
        JobCommand::Abort(args) => abort(at, &parts::job_name(&args.name)?),
    }
}

fn plan(at: &Surrounding<'_>, args: &JobRunArgs) -> Result<Plan> {
    let name = args.name.clone().unwrap_or_else(|| job::name_of(&args.command));
    let every = args.every.unwrap_or(Duration::from_secs(30));
    if every < Duration::from_millis(100) {
        return Err(Failure::usage("--every is at least 100ms"));
    }
    let patience = args.patience.unwrap_or(match args.launcher {
        Launcher::Local => Duration::from_secs(30),
        Launcher::Manual => Duration::from_mins(2),
    });
    Ok(Plan {
        name: parts::job_name(&name)?,
        store: at.settings.store.clone(),
        spec: Spec {
            command: args.command.clone(),
            directory: std::env::current_dir().map_err(Failure::system("finding the current directory"))?,
            members: args.members,
            output: args.output.as_ref().map(|path| absolute(path)).transpose()?,
            files: at.settings.files(&args.files)?,
            lease: at.settings.checkpoint_timeout(args.timeout),
            restore: at.settings.restore_timeout(None),
        },
        every,
        restarts: args.restarts.or(at.settings.config.run.restarts).unwrap_or(5),
        launcher: args.launcher,
        listen: args.listen,
        patience,
        is_fresh: args.fresh,
        output: at.output,
    })
}

/// What the coordinator answers.
fn ask(room: &Room, what: Ask, limit: Duration) -> Result<Answer> {
    let credentials = credentials::read(&credentials::for_agents(room))?;
    let address = room.address().unwrap_or_default();
    Answer::decode(&transport::ask(&credentials.identity, &address, what.encode(), limit)?)
}

/// A job in one line.
#[derive(Debug, Serialize)]
struct Listed {
    job: String,
    state: &'static str,
    members: u32,
    /// The newest checkpoint.
    checkpoint: Option<String>,
    /// How it has ended, when it has.
    status: Option<u8>,
}

#[derive(Debug, Serialize)]
struct List {
    jobs: Vec<Listed>,
}

impl Report for List {
    fn text(&self) -> String {
        if self.jobs.is_empty() {
            return "no parallel job in this store".to_owned();
        }
        let line = |job: &Listed| {
            let checkpoint = job.checkpoint.as_deref().unwrap_or("-");
            let status = job.status.map_or_else(String::new, |status| format!(" with status {status}"));
            format!("{}: {} members, checkpoint {checkpoint}, {}{status}", job.job, job.members, job.state)
        };
        self.jobs.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn list(at: &Surrounding<'_>) -> Result<u8> {
    let jobs: Result<Vec<Listed>> = room::jobs(&at.settings.store)
        .iter()
        .filter_map(|name| listed(&Room::of(&at.settings.store, name), name).transpose())
        .collect();
    at.output.result(&List { jobs: jobs? })?;
    Ok(0)
}

fn listed(room: &Room, name: &JobName) -> Result<Option<Listed>> {
    let (Some(spec), Some(life)) = (room.spec()?, room.life()?) else { return Ok(None) };
    let status = life.end()?.map(|end| end.status);
    let state = match status {
        Some(_) => "ended",
        None if room.is_held() => "running",
        None => "without its coordinator",
    };
    let checkpoint = newest(&life)?;
    Ok(Some(Listed { job: name.to_string(), state, members: spec.members, checkpoint, status }))
}

/// The newest checkpoint, by the ledger.
fn newest(life: &Life) -> Result<Option<String>> {
    let last = Ledger::open(life)?.last()?;
    Ok(last.and_then(|(_, entry)| entry.line).map(|round| format!("{}.{}", round.term.0, round.epoch.0)))
}

impl Report for Status {
    fn text(&self) -> String {
        let checkpoint = self.checkpoint.as_deref().unwrap_or("none yet");
        let rollbacks = self.rollbacks;
        let first =
            format!("{}: {}, newest checkpoint {checkpoint}, rolled back {rollbacks} times", self.job, self.state);
        let member = |member: &MemberStatus| {
            let place = member.host.as_ref().map_or_else(|| "no agent".to_owned(), |host| format!("agent on {host}"));
            let state = match (member.takes_part, member.status) {
                (_, Some(status)) => format!("ended with status {status}"),
                (true, None) => "runs".to_owned(),
                (false, None) => "does not run".to_owned(),
            };
            format!("  member {}: {place}, {state}", member.member)
        };
        std::iter::once(first).chain(self.members.iter().map(member)).collect::<Vec<_>>().join("\n")
    }
}

fn status(at: &Surrounding<'_>, name: &JobName) -> Result<u8> {
    let room = Room::existing(&at.settings.store, name)?;
    if room.is_held() {
        let answer = ask(&room, Ask::Status, SOON)?;
        let Answer::Status(status) = answer else { return Err(unexpected(answer)) };
        return at.output.result(&status).map(|()| 0);
    }
    let listed = listed(&room, name)?;
    at.output.result(&List { jobs: listed.into_iter().collect() })?;
    Ok(0)
}

fn unexpected(answer: Answer) -> Failure {
    let other = || Failure::new(Class::Corrupt, "bad-message", "the coordinator answers another question");
    if let Answer::Failed(failure) = answer { failure } else { other() }
}

/// A committed checkpoint of a whole job.
#[derive(Debug, Serialize)]
struct Committed {
    job: String,
    checkpoint: String,
    stopped_us: u64,
    bytes: u64,
}

impl Report for Committed {
    fn text(&self) -> String {
        let Self { job, checkpoint, bytes, .. } = self;
        let stopped = duration::show(Duration::from_micros(self.stopped_us));
        format!("{job}: checkpoint {checkpoint}, {}, stopped for {stopped}", duration::show_size(*bytes))
    }
}

fn checkpoint(at: &Surrounding<'_>, name: &JobName) -> Result<u8> {
    let room = Room::existing(&at.settings.store, name)?;
    let answer = ask(&room, Ask::Checkpoint, LATE)?;
    let Answer::Committed { checkpoint, stopped_us, bytes } = answer else { return Err(unexpected(answer)) };
    at.output.result(&Committed { job: name.to_string(), checkpoint, stopped_us, bytes })?;
    Ok(0)
}

/// A job that was ended for good.
#[derive(Debug, Serialize)]
struct Aborted {
    job: String,
}

impl Report for Aborted {
    fn text(&self) -> String {
        format!("job {} was ended for good", self.job)
    }
}

fn abort(at: &Surrounding<'_>, name: &JobName) -> Result<u8> {
    let room = Room::existing(&at.settings.store, name)?;
    if room.life()?.map(|life| life.end()).transpose()?.flatten().is_some() {
        return Err(Failure::refused("job-ended", format!("parallel job {name} has ended")));
    }
    if room.is_held() {
        let answer = ask(&room, Ask::Abort, SOON)?;
        if answer != Answer::Aborted {
            return Err(unexpected(answer));
        }
    } else {
        let _held = room.take(name)?;
        end_without_coordinator(&room)?;
    }
    at.output.result(&Aborted { job: name.to_string() })?;
    Ok(0)
}

/// Agents that run on without a coordinator.
fn end_without_coordinator(room: &Room) -> Result<()> {
    let (Some(spec), Some(life)) = (room.spec()?, room.life()?) else { return Ok(()) };
    if life.end()?.is_none() {
        // Agents elsewhere see it in the store, and end.
        life.set_end(End { status: ABORTED })?;
    }
    for member in 0..spec.members {
        if let Seen::Elsewhere(host) = lives::end(&life, member)? {
            tracing::debug!(%host, "member {member} ends by itself");
        }
    }
    Ok(())
}
