//! What others ask a keeper for through the registry.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::advice::Adviser;
use super::asker::Asker;
use super::checkpoints::Wish;
use super::work::Work;
use super::{Keeper, Phase};
use crate::duration;
use crate::failure::{Class, Failure};
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
                self.wishes.push_back(Wish { asker, target, files, timeout, then, asked: Instant::now() });
            }
            Request::Stop { grace } => self.on_stop(client, grace),
        }
    }

    /// When somebody who waits has waited long enough for a program that does not stop for the checkpoint at work. What that
    /// takes for copying and writing does not count: the program goes on meanwhile.
    fn gives_up(&self, wish: &Wish) -> Option<Instant> {
        let since = self.work.as_ref()?.stopping?;
        since.max(wish.asked).checked_add(wish.timeout)
    }

    /// When the first of them has.
    pub(super) fn wish_due(&self) -> Option<Instant> {
        self.wishes.iter().filter_map(|wish| self.gives_up(wish)).min()
    }

    /// Tells them.
    pub(super) fn give_up_wishes(&mut self, now: Instant) {
        for wish in std::mem::take(&mut self.wishes) {
            if self.gives_up(&wish).is_some_and(|due| now >= due) {
                let waited = duration::show(wish.timeout);
                let message =
                    format!("the program did not stop within {waited} for the checkpoint that is at work already");
                let remedy = "it is as it was before; try again, with a longer --timeout";
                wish.asker.failed(&Failure::new(Class::Failed, "late", message).remedy(remedy));
            } else {
                self.wishes.push_back(wish);
            }
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
            every_auto: self.adviser.is_none() && self.plan.every == Every::Auto,
            algorithm: self.adviser.as_ref().map(|adviser| adviser.called().to_owned()),
            decided: self.adviser.as_ref().and_then(Adviser::decided),
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
    use std::io::Read as _;

    use super::super::testing::{self, late_work};
    use super::*;
    use crate::foreground::KILL_LIMIT;
    use crate::kinds::Then;
    use crate::progress::{Doing, Step};

    /// A keeper that panics ends its job.
    #[test]
    fn no_time_that_is_asked_for_is_too_long_for_the_keeper() {
        let (begin, then) = (Instant::now(), Then::GoOn);
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

    #[test]
    fn who_asks_waits_no_longer_for_a_program_that_does_not_stop_for_the_checkpoint_at_work() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let _worker = late_work(&mut keeper);
        keeper.footing.next = Instant::now() + Duration::from_hours(1);
        let (mut far, begin) = (Vec::new(), Instant::now());
        for timeout in [Duration::from_secs(2), Duration::from_mins(10)] {
            let (client, end) = Client::of_test();
            far.push(end);
            let (asker, then) = (Asker::Client(client), Then::GoOn);
            keeper.wishes.push_back(Wish { asker, target: None, files: None, timeout, then, asked: begin });
        }
        let work = keeper.work.as_mut().unwrap();
        work.limit = Duration::from_hours(1);
        work.is_at(Step::begins(Doing::Copying));
        let later = begin + Duration::from_mins(1);
        keeper.give_up_wishes(later);
        assert!(keeper.wish_due().is_none() && keeper.wishes.len() == 2, "the program goes on while it is copied");
        keeper.work.as_mut().unwrap().is_at(Step::begins(Doing::Stopping));
        assert!(keeper.time_left() <= Some(Duration::from_secs(2)));
        keeper.give_up_wishes(begin + Duration::from_secs(1));
        assert_eq!(keeper.wishes.len(), 2);
        keeper.give_up_wishes(later);
        assert_eq!(keeper.wishes.len(), 1);
        let mut said = String::new();
        far[0].read_to_string(&mut said).unwrap();
        assert!(said.contains("late") && said.contains("did not stop within 2.0 s"), "{said}");
        keeper.work.as_mut().unwrap().has_frozen();
        assert!(keeper.wish_due().is_none());
    }
}
