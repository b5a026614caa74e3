//! What others ask a keeper for through the registry.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::asker::Asker;
use super::checkpoints::Wish;
use super::work::Work;
use super::{Keeper, Phase};
use crate::job::show;
use crate::kinds::Every;
use crate::process;
use crate::registry::{Answer, Client, Heard, Request, Status};

/// Somebody wants the job to end for good.
#[derive(Debug)]
pub(crate) struct Stop {
    /// When the program is killed; `None` once it was.
    pub(super) deadline: Option<Instant>,
    pub(super) clients: Vec<Client>,
}

/// Nobody waits longer; what is added to a time stays a time, whoever asks for what.
const LONGEST: Duration = Duration::from_hours(366 * 24);

/// What somebody asks for, with times that can be.
fn bounded(request: Request) -> Request {
    match request {
        Request::Checkpoint { target, files, timeout, then, progress } => {
            let timeout = timeout.map(|timeout| timeout.min(LONGEST));
            Request::Checkpoint { target, files, timeout, then, progress }
        }
        Request::Stop { grace } => Request::Stop { grace: grace.min(LONGEST) },
        Request::Status => Request::Status,
    }
}

impl Keeper {
    /// Hears all who are connected. Whoever has not said all yet is heard again.
    pub(super) fn on_clients(&mut self) {
        for mut client in std::mem::take(&mut self.clients) {
            match client.hear() {
                Heard::Part => self.clients.push(client),
                Heard::Gone => {}
                // Who has given up waiting does not want it any more.
                Heard::Request(_) if !client.is_there() => {}
                Heard::Request(request) => self.on_request(client, request),
            }
        }
    }

    fn on_request(&mut self, mut client: Client, request: Request) {
        if request != Request::Status {
            client.tell(&Answer::Accepted);
        }
        match bounded(request) {
            Request::Status => client.answer(&Answer::Status(self.status())),
            Request::Checkpoint { target, files, timeout, then, progress } => {
                let timeout = timeout.unwrap_or(self.plan.timeout);
                client.follows = progress;
                let asker = Asker::Client(client);
                self.wishes.push_back(Wish { asker, target, files, timeout, then });
            }
            Request::Stop { grace } => self.on_stop(client, grace),
        }
    }

    fn on_stop(&mut self, client: Client, grace: Duration) {
        let deadline = Some(Instant::now() + grace);
        match &mut self.stop {
            Some(stop) => {
                stop.clients.push(client);
                stop.deadline = stop.deadline.and(deadline);
            }
            None => self.stop = Some(Stop { deadline, clients: vec![client] }),
        }
        if self.phase == Phase::Running {
            process::signal(self.record.main, Signal::SIGTERM as i32);
            process::signal(self.record.main, Signal::SIGCONT as i32);
        }
    }

    /// Kills the program when it had its time to end.
    pub(super) fn stop_by_force(&mut self, now: Instant) {
        let running = self.phase == Phase::Running;
        let Some(stop) =
            self.stop.as_mut().filter(|stop| running && stop.deadline.is_some_and(|deadline| now >= deadline))
        else {
            return;
        };
        stop.deadline = None;
        process::signal(self.record.main, Signal::SIGKILL as i32);
    }

    fn status(&self) -> Status {
        let phase = match self.phase {
            Phase::Running if self.stop.is_some() => "ending",
            Phase::Running => "running",
            Phase::Restoring(_) | Phase::Waiting(_) => "restoring",
            Phase::Dying(_) | Phase::Done(_) => "ending",
        };
        let newest = self.line.newest();
        Status {
            name: self.plan.name.to_string(),
            keeper: std::process::id().cast_signed(),
            pid: (self.phase == Phase::Running).then_some(self.record.main),
            pid_inside: None,
            private_pids: self.record.private_pids,
            phase: phase.to_owned(),
            command: show(&self.record.command),
            store: self.plan.store.clone(),
            ran_s: self.ran().as_secs(),
            every_s: self.every().as_secs_f64(),
            every_auto: self.plan.every == Every::Auto,
            restarts: self.history.restarts,
            restarts_allowed: self.plan.rules.restarts,
            newest: newest.map(|made| made.number),
            newest_age_s: newest.and_then(|made| made.when).map(|when| when.elapsed().as_secs()),
            trouble: self.trouble.clone(),
            slow: self.slow.clone(),
            at_work: self.work.as_ref().and_then(Work::slowly),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreground::KILL_LIMIT;

    /// A keeper that panics ends its job.
    #[test]
    fn no_time_that_is_asked_for_is_too_long_for_the_keeper() {
        let (begin, then) = (Instant::now(), crate::kinds::Then::GoOn);
        let timeout = Some(Duration::MAX);
        let checkpoint = Request::Checkpoint { target: None, files: None, timeout, then, progress: false };
        for request in [Request::Stop { grace: Duration::MAX }, checkpoint] {
            // As it comes.
            let text = serde_json::to_string(&request).unwrap();
            match bounded(serde_json::from_str(&text).unwrap()) {
                Request::Stop { grace } => assert!(begin.checked_add(grace).is_some()),
                Request::Checkpoint { timeout, .. } => {
                    let limit = timeout.unwrap().saturating_mul(20).checked_add(KILL_LIMIT).unwrap();
                    assert!(begin.checked_add(limit).is_some());
                }
                Request::Status => unreachable!("nobody asks how it stands"),
            }
        }
    }
}
