//! Stopping all tasks of a scope, or none.
//!
//! In rounds: look at all tasks, queue the stop in those of the scope that are new, wait until they have answered. Done is a
//! look that finds nothing new while nothing is waited for. A task that cannot answer is held when it runs its callback
//! before its next instruction in any case; else it is named, and all are let go.
// SPDX-License-Identifier: GPL-2.0-only

use hdcr_abi::{Freeze, THREADS, hold, stand};

use crate::answer::{Errno, Result};
use crate::glue::{self, Answer, Gate, Look, Park, kind};
use crate::scope::{Numbers, Row, Scope, row_flag};
use crate::table::Table;

/// For how long answers are waited for before it is looked at who does not answer.
const SLICE_NS: u64 = 300_000;

/// What a freeze is to do.
pub(crate) struct Orders {
    /// Which tasks.
    pub(crate) scope: Scope,
    /// When to give up, on the monotonic clock.
    pub(crate) until: u64,
    /// Whether what a foreign tracer has stopped counts as frozen.
    pub(crate) hold_traced: bool,
}

/// One thread of a freeze.
pub(crate) struct Member {
    /// Its number.
    pub(crate) tid: i32,
    /// Its process.
    pub(crate) tgid: i32,
    start: u64,
    /// How it was held, when it did not park: one of [`stand`].
    held: u32,
    /// The task itself.
    pub(crate) park: Park,
}

impl Member {
    /// How it stands.
    pub(crate) fn stand(&self) -> u32 {
        match self.park.answer() {
            Answer::Gone | Answer::Dead => stand::DEAD,
            Answer::Held => self.held,
            Answer::Queued | Answer::Parked => stand::RUNNING,
        }
    }

    fn is_alive(&self) -> bool {
        !matches!(self.park.answer(), Answer::Gone | Answer::Dead)
    }

    fn is_ending(&self) -> bool {
        matches!(self.park.look().kind, kind::ENDED | kind::ENDING)
    }

    /// Alive, and the caller may not touch it. Whatever is ending cannot be asked about, and nothing of it is read.
    fn is_barred(&self) -> bool {
        self.is_alive() && !self.park.may_access() && !self.is_ending()
    }
}

/// All tasks of a scope, stopped. Dropping it lets them go.
pub(crate) struct Frozen {
    gate: Gate,
    members: Table<Member>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Before the members are dropped: they may stand at another gate after that.
        self.gate.open();
    }
}

impl Frozen {
    /// By rising thread number.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// A thread that is alive.
    pub(crate) fn member(&self, tid: i32) -> Result<&Member> {
        let at = self.members.binary_search_by_key(&tid, |member| member.tid).map_err(|_| Errno::SRCH)?;
        self.members.get(at).filter(|member| member.is_alive()).ok_or(Errno::SRCH)
    }

    /// Kills every process; the signal is there before any of them may go on.
    pub(crate) fn kill(self) {
        for member in &*self.members {
            member.park.kill();
        }
    }
}

/// Why a freeze failed: the number, and who was in the way.
struct Failure {
    errno: Errno,
    hold: u32,
    culprit: i32,
    state: u32,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self { errno, hold: hold::NONE, culprit: 0, state: 0 }
    }
}

impl Failure {
    fn new(errno: Errno, hold: u32, culprit: i32) -> Self {
        Self { errno, hold, culprit, state: 0 }
    }
}

/// Stops them. `answer` is filled in either way.
pub(crate) fn freeze(orders: &Orders, answer: &mut Freeze) -> Result<Frozen> {
    let mut work = Work { orders, frozen: Frozen { gate: Gate::new()?, members: Table::new() }, rounds: 0 };
    let result = work.freeze();
    answer.rounds = work.rounds;
    match result {
        Ok(()) => {
            let members = work.frozen.members();
            answer.threads = u32::try_from(members.iter().filter(|m| m.is_alive()).count()).unwrap_or(u32::MAX);
            answer.processes = processes(members);
            (answer.hold, answer.culprit, answer.culprit_state) = (hold::NONE, 0, 0);
            Ok(work.frozen)
        }
        Err(failure) => {
            (answer.threads, answer.processes) = (0, 0);
            (answer.hold, answer.culprit, answer.culprit_state) = (failure.hold, failure.culprit, failure.state);
            Err(failure.errno)
        }
    }
}

/// Each process has a first member; leaders that have ended are members as long as they can be waited for.
fn processes(members: &[Member]) -> u32 {
    let leaders = members.iter().filter(|member| member.tid == member.tgid);
    u32::try_from(leaders.count()).unwrap_or(u32::MAX)
}

struct Work<'a> {
    orders: &'a Orders,
    frozen: Frozen,
    rounds: u32,
}

impl Work<'_> {
    fn freeze(&mut self) -> core::result::Result<(), Failure> {
        loop {
            self.rounds += 1;
            let is_new = self.look_around()?;
            if !is_new {
                break;
            }
            self.await_answers()?;
        }
        self.await_switches()?;
        self.settle()
    }

    /// Whether the deadline has passed.
    fn is_late(&self) -> bool {
        glue::now() > self.orders.until
    }

    /// Queues the stop in every task of the scope that is new. True: there were some, or what was seen is not so any more.
    fn look_around(&mut self) -> core::result::Result<bool, Failure> {
        let rows = rows(self.orders.scope.id)?;
        let places = rows.len().saturating_mul(2).saturating_add(2);
        let (mut chosen, mut spared) = (Table::<i32>::filled(places)?, Table::<i32>::filled(places)?);
        let (mut chosen, mut spared) = (Numbers::new(&mut chosen), Numbers::new(&mut spared));
        self.orders.scope.choose(&rows, &mut chosen, &mut spared);
        let mut is_new = false;
        let mut is_any = false;
        let known = self.frozen.members.len();
        for row in rows.iter().filter(|row| chosen.has(row.tgid)) {
            is_any = true;
            self.may_stop(row)?;
            is_new |= self.stop(row, known)?;
        }
        if !is_any {
            return Err(Errno::SRCH.into());
        }
        self.frozen.members.sort_unstable_by_key(|member| member.tid);
        if is_new && self.rounds > 1 && self.is_late() {
            return Err(Failure::new(Errno::TIMEDOUT, hold::TOO_MANY, 0));
        }
        Ok(is_new)
    }

    fn may_stop(&self, row: &Row) -> core::result::Result<(), Failure> {
        if row.flags & row_flag::CALLER != 0 {
            return Err(Failure::new(Errno::DEADLK, hold::UNSUPPORTED, row.tid));
        }
        if row.flags & row_flag::INIT != 0 {
            return Err(Failure::new(Errno::PERM, hold::UNSUPPORTED, row.tid));
        }
        if row.flags & row_flag::KERNEL != 0 {
            return Err(Failure::new(Errno::INVAL, hold::UNSUPPORTED, row.tid));
        }
        if self.frozen.members.len() >= THREADS as usize {
            return Err(Failure::new(Errno::OVERFLOW, hold::TOO_MANY, row.tid));
        }
        Ok(())
    }

    /// True: it was not a member yet, or is gone. The first `known` members are sorted.
    fn stop(&mut self, row: &Row, known: usize) -> core::result::Result<bool, Failure> {
        let sorted = self.frozen.members.get(..known).unwrap_or_default();
        let found = sorted.binary_search_by_key(&row.tid, |member| member.tid).ok();
        if let Some(member) = found.and_then(|at| sorted.get(at)) {
            let is_dead = row.flags & row_flag::DEAD != 0;
            if member.start == row.start && (is_dead || member.is_alive()) {
                return Ok(false);
            }
        }
        let park = match self.frozen.gate.stop(row.tid, row.start) {
            Ok(park) => park,
            // It ended since the look, or an exec has given it another number: only a new look can tell.
            Err(Errno::SRCH) => return Ok(true),
            // It is held, under the number that it had before an exec.
            Err(Errno::EXIST) => return Ok(false),
            Err(Errno::BUSY) => return Err(Failure::new(Errno::BUSY, hold::OTHER_SESSION, row.tid)),
            Err(other) => return Err(other.into()),
        };
        let member = Member { tid: row.tid, tgid: row.tgid, start: row.start, held: stand::RUNNING, park };
        if member.is_barred() {
            return Err(Failure::new(Errno::PERM, hold::NOT_PERMITTED, row.tid));
        }
        self.frozen.members.push(member)?;
        Ok(true)
    }

    /// Until each has answered or is held.
    fn await_answers(&mut self) -> core::result::Result<(), Failure> {
        loop {
            self.frozen.gate.wait(SLICE_NS)?;
            let mut waited_for = None;
            for at in 0..self.frozen.members.len() {
                let Some(member) = self.frozen.members.get(at).filter(|m| m.park.answer() == Answer::Queued) else {
                    continue;
                };
                let look = member.park.look();
                match self.held_by(&look) {
                    Some(held) => self.hold(at, held),
                    None => waited_for = Some((member.tid, look)),
                }
            }
            let Some((tid, look)) = waited_for else {
                return Ok(());
            };
            if self.is_late() {
                let failure = Failure::new(Errno::TIMEDOUT, why(&look), tid);
                return Err(Failure { state: look.state, ..failure });
            }
        }
    }

    /// How a task is held that has not answered: none that could still run an instruction or make a call.
    fn held_by(&self, look: &Look) -> Option<u32> {
        let is_member = |tgid| self.frozen.members.iter().any(|member| member.tgid == tgid);
        match look.kind {
            kind::STOPPED => Some(stand::STOPPED),
            kind::TRACED => (self.orders.hold_traced || is_member(look.other)).then_some(stand::TRACED),
            kind::TRACED_CALL => is_member(look.other).then_some(stand::TRACED),
            kind::VFORK => is_member(look.other).then_some(stand::VFORK),
            _ => None,
        }
    }

    fn hold(&mut self, at: usize, held: u32) {
        if let Some(member) = self.frozen.members.get_mut(at) {
            member.held = held;
            member.park.hold();
        }
    }

    /// Registers are whole only when a task is off its processor, and what is ending is not told before it has ended.
    fn await_switches(&self) -> core::result::Result<(), Failure> {
        for member in self.frozen.members() {
            loop {
                let look = member.park.look();
                if if member.is_alive() { is_off(&look) } else { look.kind == kind::ENDED } {
                    break;
                }
                if self.is_late() {
                    let failure = Failure::new(Errno::TIMEDOUT, why(&look), member.tid);
                    return Err(Failure { state: look.state, ..failure });
                }
                glue::pause();
            }
        }
        Ok(())
    }

    /// Numbers as they are now, without those that are not there any more; and whether all this is still permitted, as a
    /// task may have executed a program of somebody else's just before it stopped.
    fn settle(&mut self) -> core::result::Result<(), Failure> {
        for member in self.frozen.members.iter_mut() {
            let facts = member.park.facts();
            member.tid = if facts.alive == 0 { 0 } else { facts.tid };
            member.tgid = facts.tgid;
        }
        self.frozen.members.retain(|member| member.tid != 0);
        self.frozen.members.sort_unstable_by_key(|member| member.tid);
        let barred = self.frozen.members.iter().find(|member| member.is_barred());
        barred.map_or(Ok(()), |member| Err(Failure::new(Errno::PERM, hold::NOT_PERMITTED, member.tid)))
    }
}

fn is_off(look: &Look) -> bool {
    look.off_cpu != 0 && look.kind != kind::RUNNING || look.kind == kind::ENDED
}

fn why(look: &Look) -> u32 {
    match look.kind {
        kind::RUNNING | kind::ENDING => hold::LATE,
        kind::VFORK => hold::VFORK,
        kind::TRACED | kind::TRACED_CALL => hold::TRACED,
        _ => hold::SLEEPS,
    }
}

/// All tasks of the system that the caller sees.
fn rows(cgroup: u64) -> Result<Table<Row>> {
    let mut room = 256;
    loop {
        let mut rows = Table::filled(room)?;
        let count = glue::scan(&mut rows, cgroup)?;
        if count <= room {
            rows.truncate(count);
            return Ok(rows);
        }
        // Some more may have come meanwhile.
        room = count.saturating_add(count / 4).saturating_add(64);
    }
}
