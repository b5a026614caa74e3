//! The keeper's side of its watch: when it begins, and what is undone with what it knows.

use super::super::Keeper;
use super::{START, Watch};
use crate::parts;
use crate::told::Since;

impl Keeper {
    /// Begins to watch, where that is permitted.
    pub(in crate::keeper) fn begin_watching(&mut self) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        match Watch::start(std::process::id().cast_signed()) {
            Ok(watch) => {
                for line in watch.blind() {
                    self.detail(&format!("files are not watched on {line}"));
                }
                self.watch = Some(watch);
            }
            Err(failure) => self.detail(&failure.to_string()),
        }
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
        if let Some(since) = self.known_earlier(number) {
            return Some(since);
        }
        let watch = self.watch.as_mut()?;
        let Some(changes) = watch.roll_back(number) else {
            // From here on it is known what is done.
            watch.begin_from(number);
            return None;
        };
        Some(Since::new(&changes, &self.plan.files, self.aside(number), self.plan.store.clone()))
    }

    /// The program is dead, has no checkpoint, and is about to begin anew: among the files that there were before it.
    pub(in crate::keeper) fn files_as_before(&mut self) {
        let Some(changes) = self.watch.as_mut().and_then(|watch| watch.roll_back(START)) else { return };
        let since = Since::new(&changes, &self.plan.files, self.aside(START), self.plan.store.clone());
        let done = parts::files_as_before(&self.plan.store, &self.plan.name, &since);
        if let Some(watch) = &mut self.watch {
            // What this process has done itself is not of the job.
            watch.end();
            if done.is_ok() { watch.rolled_back() } else { watch.not_rolled_back() }
        }
        match done {
            Ok(notes) => notes.iter().for_each(|note| self.note(&note.to_string())),
            Err(failure) => {
                let failure =
                    failure.during(format_args!("the files of job {} are as the program left them", self.plan.name));
                self.note(&failure.to_string());
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
        format!(".hdcr-aside-{}-{number}", self.plan.name)
    }
}
