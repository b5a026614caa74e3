//! How an agent begins: outside, one at a time, and then as the first process of a pid namespace.

use std::fs::File;
use std::time::{Duration, Instant};

use hdcr_sync::Participant;
use hdcr_sync::ids::{Boot, Member};
use hdcr_sync::participant::{Event, Found};

use super::super::credentials::{self, Credentials};
use super::super::ledger::Ledger;
use super::super::room::{Life, Room, Spec};
use super::super::{lives, transport};
use super::Agent;
use super::programs::Programs;
use crate::cli::job::AgentArgs;
use crate::commands::Surrounding;
use crate::commands::restore::descriptors;
use crate::failure::{Failure, Result};
use crate::job::make_private;
use crate::kinds::StdioTarget;
use crate::namespace::{self, Outside};
use crate::parts;
use crate::signals::Signals;
use crate::trust;

/// Members have their pids so far apart, so that one host can hold several after a loss.
const SPAN: i32 = 500;
/// The first ones are for hdcr itself.
const FIRST: i32 = 300;
/// So many members get a span of their own: pids may end at 32768.
const SPANS: u32 = 60;

/// The job that an agent is for.
#[derive(Debug)]
struct Place {
    credentials: Credentials,
    room: Room,
    life: Life,
    spec: Spec,
}

fn place(args: &AgentArgs) -> Result<Place> {
    let credentials = credentials::read(&args.credentials)?;
    let name = parts::job_name(&credentials.job)?;
    let room = Room::existing(&credentials.store, &name)?;
    let (spec, life) = (room.spec()?, room.life()?);
    let (Some(spec), Some(life)) = (spec, life) else {
        return Err(Failure::refused("no-such-job", format!("parallel job {name} has not begun yet"))
            .remedy("begin it with `hdcr job run` first"));
    };
    if args.member >= spec.members {
        let last = spec.members.saturating_sub(1);
        return Err(Failure::usage(format!("job {name} has members 0 to {last}, and no {}", args.member)));
    }
    Ok(Place { credentials, room, life, spec })
}

/// Runs an agent until its job is over.
pub(crate) fn enter(at: &Surrounding<'_>, args: &AgentArgs) -> Result<u8> {
    let place = place(args)?;
    if at.inside.is_none() {
        // It says what is executed.
        trust::store(&place.credentials.store, at.trusts)?;
    }
    match &at.inside {
        Some(report) => inside(args, place, report),
        None => outside(args, &place),
    }
}

/// Waits until the agent before is gone, and then for the one that it starts.
fn outside(args: &AgentArgs, place: &Place) -> Result<u8> {
    let _turn = lives::take(&place.life, args.member)?;
    let boot = lives::next_boot(&place.life, args.member)?;
    namespace::outside(std::env::args_os().skip(1), &mut |pid| {
        lives::set(&place.life, args.member, pid, boot)?;
        Ok(Outside::Waits)
    })
}

/// It is known to others under this number before it does anything.
fn known(life: &Life, member: u32) -> Result<Boot> {
    const LIMIT: Duration = Duration::from_secs(10);
    const PAUSE: Duration = Duration::from_millis(2);
    let boot = lives::newest_boot(life, member)?;
    let end = Instant::now() + LIMIT;
    while lives::last(life, member)?.is_none_or(|lives| lives.boot != boot) {
        if Instant::now() >= end {
            return Err(Failure::refused("agent-runs", format!("another agent of member {member} has begun")));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Boot(boot))
}

/// Where output and errors of a member go.
fn output(spec: &Spec, member: u32) -> Result<StdioTarget> {
    let Some(directory) = &spec.output else { return Ok(StdioTarget::Inherit) };
    std::fs::create_dir_all(directory).map_err(Failure::system(format_args!("making {}", directory.display())))?;
    Ok(StdioTarget::File(directory.join(format!("{member}.out"))))
}

fn inside(args: &AgentArgs, place: Place, report: &File) -> Result<u8> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(Failure::system("tying the agent to the process outside of its namespace"))?;
    rustix::process::setsid().map_err(Failure::system("making a session"))?;
    let signals = Signals::take()?;
    namespace::tell_ready(report, std::process::id().cast_signed())?;
    let Place { credentials, room, life, spec } = place;
    let boot = known(&life, args.member)?;
    let at_work = life.file("agents").join(format!("{}.work", args.member));
    make_private(&at_work)?;
    make_private(&life.file("journals"))?;
    let stdio = descriptors(&output(&spec, args.member)?)?;
    let ledger = Ledger::open(&life)?;
    let (last, ever) = (ledger.last()?, ledger.ever()?);
    let member = Member(args.member);
    let participant = Participant::new(member, boot, last.as_ref().map(|(_, entry)| entry), Found::Nothing);
    let (given, found) = (args.join.clone(), room.clone());
    let addresses = move || found.address().into_iter().chain(given.clone()).collect();
    let mut agent = Agent {
        me: args.member,
        job: credentials.job,
        line: transport::join(&credentials.identity, args.member, Box::new(addresses))?,
        room,
        life,
        spec,
        participant,
        signals,
        stdio,
        at_work,
        events: std::collections::VecDeque::new(),
        lease: None,
        taker: None,
        spent: None,
        building: None,
        programs: Programs::default(),
        killing: None,
        next_look: Instant::now(),
        over: None,
    };
    // What has run once is only ever brought back.
    if !ever.contains(&member) {
        agent.events.push_back(Event::Arrived);
    }
    let span = i32::try_from(args.member % SPANS).unwrap_or(0).saturating_mul(SPAN);
    namespace::next_pid_after(FIRST.saturating_add(span));
    agent.until_over()
}
