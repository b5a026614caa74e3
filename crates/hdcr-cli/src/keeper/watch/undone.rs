//! The keeper's side of its watch: when it begins, and what is undone with what it knows.

use hdcr_image::JobName;
use hdcr_policy::touched::Changes;

use super::super::Keeper;
use super::{START, Watch, remembered};
use crate::failure::Obstacle;
use crate::parts;
use crate::told::Since;

impl Keeper {
    /// Begins to watch, where that is permitted.
    pub(in crate::keeper) fn begin_watching(&mut self) {
        if !rustix::process::geteuid().is_root() {
            return self.warn_unwatched();
        }
        match Watch::start(std::process::id().cast_signed()) {
            Ok(watch) => {
                for line in watch.blind() {
                    tracing::debug!("files are not watched on {line}");
                }
                self.watch = Some(watch);
                self.tell_blind();
            }
            Err(failure) => {
                self.detail(&failure.to_string());
                self.warn_unwatched();
            }
        }
    }

    /// Says at the beginning what will not be rolled back, to whoever has not named files.
    fn warn_unwatched(&self) {
        if self.plan.files.always.is_empty() {
            self.tell_notes(&[parts::unwatched()]);
        }
    }

    /// Says with each roll-back what may be newer than the program, when nobody has watched.
    pub(in crate::keeper) fn tell_unwatched(&self) {
        self.tell_notes(&self.unwatched());
    }

    fn unwatched(&self) -> Vec<Obstacle> {
        let unwatched = || {
            let cause = "nobody watches them (it takes root): those that the program did not hold open at the checkpoint, and \
                         that --files does not name, stay as it left them";
            Obstacle { cause: cause.to_owned(), remedy: String::new(), ..parts::unwatched() }
        };
        self.watch.is_none().then(unwatched).into_iter().collect()
    }

    /// A worker is not of the job.
    pub(in crate::keeper) fn set_apart(&mut self, pid: i32) {
        if let Some(watch) = &mut self.watch {
            watch.set_apart(pid);
        }
    }

    /// Nor is the one that brings it back.
    pub(in crate::keeper) fn set_apart_restorer(&mut self, pid: i32) {
        if let Some(watch) = &mut self.watch {
            watch.set_apart_restorer(pid);
        }
    }

    /// What is to be undone of what the job did to files since a checkpoint.
    pub(in crate::keeper) fn undo_since(&mut self, number: u64) -> Option<Since> {
        self.log_to_the_end();
        if let Some(since) = self.known_earlier(number) {
            return Some(since);
        }
        let given_up = self.line.given_up(number);
        let watch = self.watch.as_mut()?;
        let known = watch.roll_back(number);
        let Some(changes) = known.or_else(|| Some(watch.change_lives(number, &given_up?))) else {
            // From here on it is known what is done.
            watch.begin_from(number);
            return None;
        };
        Some(Since::new(&changes, &self.plan.files, self.aside(number), self.plan.store.clone()))
    }

    /// The program is dead, has no checkpoint, and is about to begin anew: among the files that there were before it.
    /// What is to be known of it is returned.
    pub(in crate::keeper) fn files_as_before(&mut self) -> Vec<Obstacle> {
        self.log_to_the_end();
        let watched = self.watch.as_mut().and_then(|watch| watch.roll_back(START));
        let is_known = watched.is_some();
        let (mut told, mut changes) = (self.unwatched(), watched.unwrap_or_default());
        self.stdio_began.add_to(&mut changes);
        let since = Since::new(&changes, &self.plan.files, self.aside(START), self.plan.store.clone());
        let since = since.keeping(self.stdio_began.outputs());
        let done = parts::files_as_before(&self.plan.store, &self.plan.name, &since);
        if let Some(watch) = self.watch.as_mut().filter(|_| is_known) {
            // What this process has done itself is not of the job.
            watch.end();
            if done.is_ok() { watch.rolled_back() } else { watch.not_rolled_back() }
        }
        match done {
            Ok(notes) => told.extend(notes),
            Err(failure) => {
                let failure =
                    failure.during(format_args!("the files of job {} are as the program left them", self.plan.name));
                self.note(&failure.to_string());
            }
        }
        told
    }

    /// An earlier life was cut short with its keeper before it had a checkpoint: its files go as they would have by that keeper.
    pub(in crate::keeper) fn files_as_before_that_life(&mut self) {
        let (store, name) = (&self.plan.store, &self.plan.name);
        let Some(since) = remembered::read(store, name).since_the_start() else { return };
        match parts::files_as_before(store, name, &since) {
            Ok(notes) => self.tell_notes(&notes),
            Err(failure) => {
                self.note(
                    &failure.during(format_args!("the files of job {name} are as that life left them")).to_string(),
                );
            }
        }
    }

    /// The program is about to begin.
    pub(in crate::keeper) fn watch_from_the_start(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.begins();
        }
    }

    /// The name of the directory for what is newer than a checkpoint.
    pub(super) fn aside(&self, number: u64) -> String {
        aside(&self.plan.name, number)
    }
}

/// The name of the directory for what is newer than a checkpoint of a job.
pub(super) fn aside(name: &JobName, number: u64) -> String {
    format!(".hdcr-aside-{name}-{number}")
}

impl Watch {
    /// The job goes back to a checkpoint of a life that was given up: what it has done since the two lives parted is undone.
    /// What the other life had done to names from there on is not known; its files come from the image, as far as it has
    /// them.
    fn change_lives(&mut self, number: u64, ancestors: &[u64]) -> Changes {
        let changes = ancestors.iter().find_map(|ancestor| self.roll_back(*ancestor)).unwrap_or_default();
        let before = self.before_rollback.take();
        // Older checkpoints have not seen what comes back now.
        self.queue.lost();
        self.begin_from(number);
        self.before_rollback = before.or(self.before_rollback.take());
        Changes { incomplete: true, lengths: Vec::new(), ..changes }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use hdcr_policy::touched::{Event, Kind, New};

    use super::*;

    #[test]
    fn who_goes_back_to_a_life_that_was_given_up_undoes_what_came_since_they_parted() {
        let Ok(mut watch) = Watch::start(std::process::id().cast_signed()) else { return };
        let made = |name: &str| Event::Created(PathBuf::from(name), Kind::File, name.as_bytes().to_vec());
        watch.begin_from(1);
        watch.queue.seen(&made("/x/one"));
        watch.begin_from(2);
        watch.queue.seen(&made("/x/two"));
        watch.begin_from(3);
        watch.roll_back(2).unwrap();
        watch.queue.seen(&made("/x/three"));
        assert!(watch.roll_back(3).is_none());
        let news = |changes: &[New]| -> Vec<String> {
            changes.iter().map(|new| new.at.display().to_string()).filter(|name| name.starts_with("/x/")).collect()
        };
        let changes = watch.change_lives(3, &[2, 1]);
        assert_eq!((news(&changes.new), changes.incomplete), (vec!["/x/three".to_owned()], true));
        assert!(watch.since(1).unwrap().incomplete && !watch.since(3).unwrap().incomplete);
        // It fails.
        watch.not_rolled_back();
        assert_eq!(news(&watch.since(1).unwrap().new), ["/x/one", "/x/three"]);
    }
}
