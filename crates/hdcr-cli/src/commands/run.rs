//! `hdcr run`: a program under a keeper.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hdcr::Link;
use hdcr_image::JobName;
use hdcr_policy::restart::{Condition as Rule, Rules};

use super::Surrounding;
use super::restore::descriptors;
use crate::algorithm::Choice;
use crate::by_hand::{self, JobTurn};
use crate::cli::RunArgs;
use crate::door::Door;
use crate::failure::{Class, Failure, Result};
use crate::host::Host;
use crate::job::{self, Held, Record, Start, State};
use crate::keeper::{Given, Keeper, Plan};
use crate::kinds::{Condition, Every, Keep, StdioTarget};
use crate::namespace::{self, Outside};
use crate::orphan;
use crate::parts;
use crate::rule;

pub(crate) fn run(at: &Surrounding<'_>, args: &RunArgs) -> Result<u8> {
    at.trusted_store()?;
    // Before a name is chosen and told.
    every(at, args)?;
    let private = args.new_pids || !namespace::may_choose_pids();
    let turn = turn(at, args)?;
    let rule = rule(at, args)?;
    if private && at.inside.is_none() {
        return in_namespace(turn, rule.as_ref());
    }
    let store = at.settings.store.clone();
    let (name, held) = take(at, args)?;
    // From here on it is seen that the job is held.
    drop(turn);
    if let Some(outside) = &at.inside {
        namespace::tell_ready(outside, std::process::id().cast_signed())?;
    }
    let old = held.read()?;
    if !args.take_over {
        job::refuse_elsewhere(old.as_ref(), &name)?;
    }
    if old.as_ref().is_some_and(Record::orphaned) {
        drop(held);
        let orphan = orphan::find(&at.registry()?, name.as_str(), &store)?;
        let ended = || Failure::new(Class::Changed, "job-ended", format!("the program of job {name} has just ended"));
        return Err(orphan.map_or_else(ended, |orphan| orphan.refusal()));
    }
    let newest = parts::numbers(&store, &name)?.last().copied();
    let start = job::start(old.as_ref(), &args.command, newest, args.fresh)?;
    if start == Start::Anew && old.is_some() && newest.is_some() && !args.fresh {
        at.output.note(&format!(
            "job {name} had ended; it begins anew (`hdcr restore {name}` brings back its last checkpoint)"
        ));
    }
    if start == Start::Again {
        at.output.note(&format!("job {name} was cut short before its first checkpoint; it begins anew"));
    }
    let record = record(at, args, (start, old), newest, &held)?;
    let registry = at.registry()?;
    let listener = registry.listen(&name, &store)?;
    let door = Door::open(&registry, &name)?;
    let plan = plan(at, args, name, start)?;
    at.output.detail(&match &plan.algorithm {
        Some(algorithm) => format!("job {} runs, checkpoints by algorithm {}", plan.name, algorithm.called()),
        None => format!("job {} runs, a checkpoint every {}", plan.name, plan.every),
    });
    let stdio: [OwnedFd; 3] = descriptors(&StdioTarget::Inherit)?;
    let outside = at.inside.as_ref().map(std::fs::File::try_clone).transpose();
    let outside = outside.map_err(Failure::system("duplicating the way to the outer process"))?;
    let jobs = at.settings.surroundings.jobs();
    Keeper::run(plan, Given { output: at.output, held, record, listener, door, jobs, stdio, outside, rule })
}

/// The record of the job: the old one when it goes on, else a new one.
fn record(
    at: &Surrounding<'_>,
    args: &RunArgs,
    (start, old): (Start, Option<Record>),
    newest: Option<u64>,
    held: &Held,
) -> Result<Record> {
    Ok(match (start, old) {
        (Start::GoOn, Some(old)) => {
            let ours = Record { state: State::Running, main_born: 0, host: Host::here(), ..old };
            // From here on other machines see that it is not theirs.
            held.write(&ours)?;
            ours
        }
        _ => Record {
            command: args.command.clone(),
            directory: std::env::current_dir().map_err(Failure::system("finding the current directory"))?,
            state: State::Running,
            status: None,
            after: newest.unwrap_or(0),
            main: 0,
            main_born: 0,
            host: Host::here(),
            private_pids: at.inside.is_some(),
            returned: 0,
            went_back: None,
        },
    })
}

/// Does the same inside of a private pid namespace.
fn in_namespace(mut turn: Option<JobTurn>, rule: Option<&Link>) -> Result<u8> {
    let rule = rule.map(rule::bequeath).transpose()?;
    namespace::outside(rule.into_iter().chain(std::env::args_os().skip(1)), &mut |_| {
        turn.take();
        Ok(Outside::Waits)
    })
}

/// The way to an algorithm that is no part of this program. It is outside of the pid namespace of the job: inside, all
/// processes are the job's.
fn rule(at: &Surrounding<'_>, args: &RunArgs) -> Result<Option<Link>> {
    match (at.rule, &at.inside, algorithm(at, args)) {
        (Some(number), Some(_), _) => rule::inherited(number).map(Some),
        (_, None, Some(Choice::Outside(command))) => rule::start(command).map(Some),
        _ => Ok(None),
    }
}

/// The turn of who brings the job to life, when it has a name; refused when it lives by hand.
fn turn(at: &Surrounding<'_>, args: &RunArgs) -> Result<Option<JobTurn>> {
    // Before a namespace is entered in which other processes are not seen.
    let (Some(name), None) = (&args.name, &at.inside) else { return Ok(None) };
    let (store, name) = (&at.settings.store, parts::job_name(name)?);
    let turn = JobTurn::take(store, &name)?;
    by_hand::refuse_beside(store, &name, args.take_over)?;
    Ok(Some(turn))
}

/// The name of the job, held: the one given, or the first free one made from the command.
fn take(at: &Surrounding<'_>, args: &RunArgs) -> Result<(JobName, Held)> {
    let store = &at.settings.store;
    if let Some(name) = &args.name {
        let name = parts::job_name(name)?;
        let held = Held::take(store, &name).map_err(|failure| {
            // A lock of another machine is seen where the file system passes it on.
            let record = job::peek(store, &name).ok().flatten().filter(|_| failure.code == "job-runs");
            job::refuse_elsewhere(record.as_ref(), &name).err().unwrap_or(failure)
        })?;
        return Ok((name, held));
    }
    let stem = job::name_of(&args.command);
    for number in 1..10_000 {
        let name = parts::job_name(&format!("{stem}-{number}"))?;
        if !parts::numbers(store, &name)?.is_empty() || job::peek(store, &name)?.is_some() {
            continue;
        }
        match Held::take(store, &name) {
            Ok(held) => {
                at.output.note(&format!("job {name} (--name gives it another name)"));
                return Ok((name, held));
            }
            Err(failure) if failure.code == "job-runs" => {}
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::refused("no-free-name", format!("no name {stem}-N is free"))
        .remedy("give one with --name, or remove old jobs with `hdcr rm`"))
}

/// Who decides when; `None`: the time of `--every` alone. What is said later counts, and of what is said together an
/// algorithm.
fn algorithm<'a>(at: &'a Surrounding<'_>, args: &'a RunArgs) -> Option<&'a Choice> {
    let configured = at.settings.config.run.algorithm.as_ref().filter(|_| args.every.is_none());
    args.algorithm.as_ref().or(configured)
}

/// Says that a time is of no use.
fn note_idle_time(at: &Surrounding<'_>, args: &RunArgs, chosen: &Choice) {
    if let Some(every) = args.every.filter(|_| !chosen.has_period()) {
        let time = match every {
            Every::Auto => "auto".to_owned(),
            Every::Fixed(_) => every.to_string(),
        };
        at.output.note(&format!("algorithm {} has no use for --every {time}", chosen.called()));
    }
}

/// The time between two checkpoints, when it can be.
fn every(at: &Surrounding<'_>, args: &RunArgs) -> Result<Every> {
    let every = args.every.or(at.settings.config.run.every).unwrap_or(Every::Fixed(Duration::from_secs(30)));
    match every {
        Every::Fixed(time) if time < Duration::from_millis(10) => Err(Failure::usage("--every is at least 10ms")),
        Every::Fixed(_) | Every::Auto => Ok(every),
    }
}

fn plan(at: &Surrounding<'_>, args: &RunArgs, name: JobName, start: Start) -> Result<Plan> {
    let config = &at.settings.config.run;
    let algorithm = algorithm(at, args).cloned();
    if let Some(chosen) = &algorithm {
        note_idle_time(at, args, chosen);
    }
    let every = every(at, args)?;
    let slack = match every {
        Every::Fixed(time) if algorithm.is_none() => time.min(Duration::from_mins(1)),
        Every::Fixed(_) | Every::Auto => Duration::from_secs(10),
    };
    let configured: Result<BTreeSet<Rule>> = config
        .on
        .iter()
        .map(|text| text.parse::<Condition>().map(|condition| condition.0).map_err(Failure::usage))
        .collect();
    let named = args.on.iter().map(|condition| condition.0);
    let on = if args.on.is_empty() { configured? } else { named.collect() };
    let restarts = args.restarts.or(config.restarts).unwrap_or(5);
    Ok(Plan {
        name,
        store: at.settings.store.clone(),
        every,
        algorithm,
        timeout: at.settings.checkpoint_timeout(args.timeout),
        restore_timeout: at.settings.restore_timeout(None),
        keep: Keep::of(
            args.keep.or(config.keep),
            args.keep_for.or(config.keep_for),
            args.keep_size.or(config.keep_size),
        ),
        budget: args.budget.or(config.budget).map(|share| share.0),
        increments: args.increments.or(config.increments).unwrap_or_default(),
        lazy: args.lazy.or(config.lazy).unwrap_or_default(),
        rules: Rules { on, restarts, slack },
        files: at.settings.files(&args.files)?,
        start,
    })
}
