//! The course of a job: one life after the other, until it has ended.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdcr_image::JobName;
use hdcr_sync::Coordinator;
use hdcr_sync::ids::Incarnation;

use super::super::credentials;
use super::super::ledger::Ledger;
use super::super::letter::ToAgent;
use super::super::lives;
use super::super::room::{End, Life, Room, Spec};
use super::super::transport::{self, Exchange, Heard};
use super::launch::Agents;
pub(crate) use super::launch::Launcher;
use super::{BEAT, Ending, Seat, author};
use crate::failure::{Class, Failure, Result};
use crate::foreground::KILL_LIMIT;
use crate::output::Output;
use crate::signals::Signals;

/// Status of a job that was ended for good, as a shell shows the death by SIGTERM.
pub(crate) const ABORTED: u8 = 143;

/// What a coordinator is to do.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: JobName,
    pub(crate) store: PathBuf,
    pub(crate) spec: Spec,
    pub(crate) every: Duration,
    pub(crate) restarts: u32,
    pub(crate) launcher: Launcher,
    pub(crate) listen: SocketAddr,
    pub(crate) patience: Duration,
    /// Begin anew, whatever there is.
    pub(crate) is_fresh: bool,
    pub(crate) output: Output,
}

/// Runs a job to its end; its exit status.
pub(crate) fn run(plan: &Plan) -> Result<u8> {
    let room = Room::of(&plan.store, &plan.name);
    let _held = room.take(&plan.name)?;
    let mut life = begin(plan, &room)?;
    room.set_spec(&plan.spec)?;
    let identity = credentials::of_coordinator(&room, plan.name.as_str(), &plan.store)?;
    let signals = Signals::take()?;
    let exchange = transport::serve(plan.listen, &identity)?;
    room.set_address(exchange.address())?;
    tell_how_to_join(plan, &room, exchange.address());
    let mut losses = 0_u32;
    loop {
        room.forget_before(&life);
        let mut seat = seat(plan, &life, (exchange.as_ref(), &signals))?;
        let ending = seat.until_over()?;
        if ending != Ending::Lost {
            return over(plan, seat, ending);
        }
        losses = losses.saturating_add(1);
        seat.end_all()?;
        seat.ledger.must_be_without()?;
        let why = seat.fell.take().map_or_else(String::new, |(_, why)| format!("{why}; "));
        life = begin_anew(plan, &room, losses, &why)?;
    }
}

/// The life after one that was lost before its first checkpoint.
fn begin_anew(plan: &Plan, room: &Room, losses: u32, why: &str) -> Result<Life> {
    if losses > plan.restarts {
        let message = format!("job {}: {why}lost {losses} times before its first checkpoint; giving up", plan.name);
        return Err(Failure::new(Class::Failed, "gave-up", message));
    }
    plan.output.note(&format!("job {}: {why}there is no checkpoint yet, beginning anew", plan.name));
    room.begin_life()
}

/// A life, and the job with it, is over; its exit status.
fn over(plan: &Plan, mut seat: Seat<'_>, ending: Ending) -> Result<u8> {
    let name = &plan.name;
    match ending {
        Ending::Ended(status) => {
            seat.life.set_end(End { status })?;
            seat.end_all()?;
            Ok(status)
        }
        Ending::Aborted => {
            seat.life.set_end(End { status: ABORTED })?;
            seat.end_all()?;
            plan.output.note(&format!("job {name} was ended for good"));
            Ok(ABORTED)
        }
        Ending::Paused(signal) => {
            seat.end_all()?;
            plan.output.note(&format!("job {name} was ended; the same command goes on"));
            Ok(crate::process::shell_status(hdcr_policy::restart::Death::Signal(signal)))
        }
        Ending::GaveUp(failure) => {
            seat.end_all()?;
            Err(failure)
        }
        Ending::Deposed | Ending::Lost => {
            Err(Failure::new(Class::Changed, "deposed", format!("another coordinator has taken over job {name}")))
        }
    }
}

/// The life that goes on, or a new one.
fn begin(plan: &Plan, room: &Room) -> Result<Life> {
    let Some(life) = room.life()? else { return room.begin_life() };
    if life.end()?.is_some() {
        return room.begin_life();
    }
    if plan.is_fresh {
        life.set_end(End { status: ABORTED })?;
        for member in 0..room.spec()?.map_or(0, |spec| spec.members) {
            lives::end(&life, member)?;
        }
        return room.begin_life();
    }
    let before = room.spec()?;
    let is_same = |before: &Spec| {
        (&before.command, before.members, &before.directory)
            == (&plan.spec.command, plan.spec.members, &plan.spec.directory)
    };
    if before.as_ref().is_none_or(is_same) {
        plan.output.note(&format!("job {} goes on (--fresh begins anew)", plan.name));
        return Ok(life);
    }
    let message =
        format!("job {} has not ended, and was run with another command, directory or number of members", plan.name);
    Err(Failure::refused("job-differs", message).remedy(format!(
        "run it as it was, end it for good (`hdcr job abort {}`), or begin anew with --fresh",
        plan.name
    )))
}

fn tell_how_to_join(plan: &Plan, room: &Room, address: &str) {
    let text = format!("hdcrd --join {address} --credentials {} --member N", credentials::for_agents(room).display());
    match plan.launcher {
        Launcher::Local => plan.output.detail(&format!("job {}: coordinator at {address}", plan.name)),
        Launcher::Manual => plan.output.note(&format!("job {} waits for its agents: {text}", plan.name)),
    }
}

fn seat<'a>(plan: &'a Plan, life: &Life, (exchange, signals): (&'a dyn Exchange, &'a Signals)) -> Result<Seat<'a>> {
    let room = Room::of(&plan.store, &plan.name);
    let ledger = Ledger::open(life)?;
    ledger.sweep();
    let now = Instant::now();
    let credentials = credentials::for_agents(&room);
    Ok(Seat {
        name: &plan.name,
        output: plan.output,
        every: plan.every,
        restarts: plan.restarts,
        agents: Agents::new(plan.launcher, life, credentials, plan.spec.members, plan.patience),
        life: life.clone(),
        spec: plan.spec.clone(),
        ledger,
        machine: Coordinator::new(author()?),
        exchange,
        signals,
        events: VecDeque::new(),
        later: None,
        ever: std::collections::BTreeSet::new(),
        deadline: None,
        resend: now,
        next_checkpoint: now + plan.every,
        excluding: BTreeMap::new(),
        askers: Vec::new(),
        statuses: BTreeMap::new(),
        written: Vec::new(),
        rollbacks: 0,
        incarnation: Incarnation::default(),
        fell: None,
        failing: None,
        trouble: None,
        failure: None,
        over: None,
    })
}

impl Seat<'_> {
    /// Ends all agents with what is below them, as far as they can be reached.
    fn end_all(&mut self) -> Result<()> {
        let end = Instant::now() + KILL_LIMIT;
        for member in self.agents.here() {
            self.exchange.tell(member, ToAgent::Finish(self.life.number).encode());
        }
        while self.agents.any_left() && Instant::now() < end {
            self.signals.wait(&mut [self.exchange.fd()], Some(BEAT))?;
            // A second signal is not waited for.
            while self.signals.next().is_some() {}
            for heard in self.exchange.hear() {
                match heard {
                    Heard::Came(member) => {
                        self.exchange.tell(member, ToAgent::Finish(self.life.number).encode());
                    }
                    Heard::Went(member) => self.agents.went(member),
                    Heard::Said(..) | Heard::Asked(_) => {}
                }
            }
        }
        for member in 0..self.spec.members {
            lives::end(&self.life, member)?;
        }
        Ok(())
    }
}
