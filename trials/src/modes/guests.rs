//! Guests of the zoo in a mode of their own: each is checkpointed and restored round by round, and judges itself.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::stage::{LIMIT, Stage, needs_root};
use crate::guest;
use crate::product::utf8;
use crate::trial::subject::Subject;
use crate::wait;

/// How the guests are started and restored.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// Stands before the guest's own command.
    pub(crate) start: Vec<String>,
    /// Stands before `hdcr checkpoint`, for the first round.
    pub(crate) first: Option<fn(u32) -> Vec<String>>,
    /// Further options of `hdcr checkpoint`.
    pub(crate) checkpoint: Vec<&'static str>,
    pub(crate) restore: Vec<&'static str>,
    /// Looked at after each restore, with the pid.
    pub(crate) look: Option<fn(u32) -> Result<()>>,
}

/// Runs these guests one after the other.
pub(crate) fn all(stage: &mut Stage<'_>, names: &[&str], way: &Way) -> Result<()> {
    let wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let guests = guest::find(&stage.place.sources.join("zoo"), &wanted)?;
    ensure!(guests.len() == names.len(), "{} guests of {} are there", guests.len(), names.len());
    let built = guest::build_all(&guests, &stage.place.build)?;
    let mut failed = Vec::new();
    for built in built.iter().filter(|built| built.name == built.guest.name) {
        let binary = built.binary.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
        let folder = stage.path(&built.name);
        fs::create_dir(&folder)?;
        let mut subject = Subject::alone(&built.guest, binary, &folder, 2)?;
        if let Some(user) = stage.user() {
            chown(&folder, Some(user), Some(user))?;
            chown(folder.join("guest"), Some(user), Some(user))?;
        }
        subject.user = stage.user();
        subject.prefix.clone_from(&way.start);
        let result = rounds(stage, &mut subject, way);
        let cleaned = subject.clean();
        stage.log.append(&mut subject.log);
        failed.extend(result.and(cleaned).err().map(|error| format!("{}: {error:#}", built.name)));
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// Memory that is copied by fork, whatever else would fit.
pub(crate) fn by_fork(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let way = Way { checkpoint: vec!["--snapshot", "fork"], ..Way::default() };
    all(stage, &["anon_memory", "thp", "private_file", "madvise_flags", "threads", "moving_memory"], &way)
}

fn rounds(stage: &mut Stage<'_>, subject: &mut Subject<'_>, way: &Way) -> Result<()> {
    subject.start()?;
    stage.is_waited_for(subject.pid);
    for round in 1..=subject.rounds {
        subject.await_ready(round)?;
        let left = Instant::now();
        let image = subject.folder.join(format!("image.{round}"));
        let pids = tree(subject.pid);
        let pid = subject.pid.to_string();
        stage.expect(0, &["check", &pid])?;
        let mut words = way.first.filter(|_| round == 1).map_or_else(Vec::new, |first| first(subject.pid));
        words.push(utf8(stage.hdcr())?.to_owned());
        words.extend(["checkpoint", &pid, "--kill", "-o", utf8(&image)?].map(str::to_owned));
        words.extend(way.checkpoint.iter().map(|option| (*option).to_owned()));
        let mut command = stage.command(&words[0]);
        command.args(&words[1..]);
        let said = stage.end_of(command, &words.join(" "))?;
        ensure!(said.status == 0, "{}", said.both().trim());
        subject.await_death(&pids)?;
        subject.pid = restored(stage, &image, &way.restore)?;
        subject.is_child = false;
        if let Some(look) = way.look {
            look(subject.pid)?;
        }
        subject.go(round, left.elapsed())?;
    }
    subject.verdict()
}

fn restored(stage: &mut Stage<'_>, image: &std::path::Path, options: &[&str]) -> Result<u32> {
    let pidfile: PathBuf = stage.path("pid");
    fs::remove_file(&pidfile).ok();
    let mut arguments = vec!["restore", utf8(image)?, "--detach", "--pidfile", utf8(&pidfile)?];
    arguments.extend(options);
    stage.expect(0, &arguments)?;
    let text = wait::until("the pid file", LIMIT, || Ok(fs::read_to_string(&pidfile).ok()))?;
    text.trim().parse().context("pid in the pid file")
}

/// A process with all below it.
fn tree(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        at += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
    }
    all
}
