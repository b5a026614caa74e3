//! Agents of a job: those that this command starts, and who is there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::super::lives::{self, Seen};
use super::super::room::Life;
use crate::failure::Failure;
use crate::output;
use crate::process::{self, Change, next_change};

/// An agent that ends is started again so much later, at the soonest.
const PAUSE: Duration = Duration::from_millis(500);
/// One that was started so often and never came is not started again.
const STARTS: u32 = 8;
/// Who is away for so long is looked for.
const AWAY: Duration = Duration::from_secs(5);

/// Who starts agents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum Launcher {
    /// This command, all of them on this host
    #[default]
    Local,
    /// Somebody else, by hand or by a batch system: hdcrd --join ADDRESS --credentials FILE --member N
    Manual,
}

/// The agents of all members.
#[derive(Debug)]
pub(super) struct Agents {
    launcher: Launcher,
    life: Life,
    credentials: PathBuf,
    /// An agent that is away for so long is lost, and its share brought back by another.
    patience: Duration,
    all: BTreeMap<u32, Agent>,
}

/// The agent of one member.
#[derive(Debug)]
struct Agent {
    /// As this command has started it.
    child: Option<i32>,
    next_start: Instant,
    /// So often it was started without ever being here since.
    starts: u32,
    is_here: bool,
    /// Since when it is away, when it is.
    since: Instant,
    /// That it is lost was told.
    is_lost: bool,
    host: String,
}

impl Agents {
    pub(super) fn new(launcher: Launcher, life: &Life, credentials: PathBuf, members: u32, patience: Duration) -> Self {
        let now = Instant::now();
        let agent = |_| Agent {
            child: None,
            next_start: now,
            starts: 0,
            is_here: false,
            since: now,
            is_lost: false,
            host: String::new(),
        };
        let all = (0..members).map(|member| (member, agent(member))).collect();
        Self { launcher, life: life.clone(), credentials, patience, all }
    }

    pub(super) fn came(&mut self, member: u32, host: String) {
        if let Some(agent) = self.all.get_mut(&member) {
            (agent.is_here, agent.is_lost, agent.host, agent.starts) = (true, false, host, 0);
        }
    }

    pub(super) fn went(&mut self, member: u32) {
        if let Some(agent) = self.all.get_mut(&member) {
            agent.is_here = false;
            agent.since = Instant::now();
        }
    }

    /// Where the agent of a member is, when it is there.
    pub(super) fn place(&self, member: u32) -> Option<&str> {
        self.all.get(&member).filter(|agent| agent.is_here).map(|agent| agent.host.as_str())
    }

    pub(super) fn here(&self) -> Vec<u32> {
        self.all.iter().filter(|(_, agent)| agent.is_here).map(|(member, _)| *member).collect()
    }

    pub(super) fn first_away(&self) -> Option<u32> {
        self.all.iter().find(|(_, agent)| !agent.is_here).map(|(member, _)| *member)
    }

    /// Whether it has been away long enough to be looked for.
    pub(super) fn is_away(&self, member: u32, now: Instant) -> bool {
        self.all.get(&member).is_none_or(|agent| !agent.is_here && now.saturating_duration_since(agent.since) > AWAY)
    }

    /// Who has been away too long, each once.
    pub(super) fn lost(&mut self, now: Instant) -> Vec<u32> {
        let patience = self.patience;
        let lost =
            |agent: &Agent| !agent.is_here && !agent.is_lost && now.saturating_duration_since(agent.since) > patience;
        let mut found = Vec::new();
        for (member, agent) in &mut self.all {
            if lost(agent) {
                agent.is_lost = true;
                found.push(*member);
            }
        }
        found
    }

    /// Whose agent ends each time that it is started.
    pub(super) fn in_vain(&self) -> Option<u32> {
        let in_vain = |agent: &Agent| agent.child.is_none() && agent.starts >= STARTS;
        self.all.iter().find(|(_, agent)| in_vain(agent)).map(|(member, _)| *member)
    }

    /// Reaps agents that have ended, and starts those that do not run.
    pub(super) fn look(&mut self, job: &str) {
        while let Some((pid, change)) = next_change() {
            if let Change::Ended(death) = change
                && let Some(agent) = self.all.values_mut().find(|agent| agent.child == Some(pid))
            {
                tracing::debug!(?death, "an agent has ended");
                agent.child = None;
            }
        }
        if self.launcher == Launcher::Local {
            self.start_missing(job);
        }
    }

    fn start_missing(&mut self, job: &str) {
        let now = Instant::now();
        for (member, agent) in &mut self.all {
            if agent.child.is_some() || agent.is_here || agent.next_start > now {
                continue;
            }
            agent.next_start = now + PAUSE.saturating_mul(agent.starts.saturating_add(1));
            // One that an earlier coordinator has started may run on.
            let runs = lives::last(&self.life, *member).map(|last| last.is_some_and(|last| last.seen() != Seen::Gone));
            if runs.unwrap_or(false) {
                continue;
            }
            let mut command = process::this_program();
            command.args(output::verbosity()).arg("__agent").arg("--credentials").arg(&self.credentials);
            command.arg("--member").arg(member.to_string()).stdin(Stdio::null());
            match command.spawn().map_err(Failure::system("starting an agent")) {
                Ok(child) => {
                    agent.child = Some(child.id().cast_signed());
                    agent.starts = agent.starts.saturating_add(1);
                    agent.since = now;
                }
                Err(failure) => tracing::warn!(%failure, "job {job}, member {member}"),
            }
        }
    }

    /// Whether any agent runs, as far as can be seen from here.
    pub(super) fn any_left(&mut self) -> bool {
        while let Some((pid, change)) = next_change() {
            if let Change::Ended(_) = change {
                self.all.values_mut().filter(|agent| agent.child == Some(pid)).for_each(|agent| agent.child = None);
            }
        }
        let runs = |member: &u32| {
            lives::last(&self.life, *member)
                .is_ok_and(|last| last.is_some_and(|last| matches!(last.seen(), Seen::Here(_))))
        };
        self.all.iter().any(|(member, agent)| agent.is_here || agent.child.is_some() || runs(member))
    }
}
