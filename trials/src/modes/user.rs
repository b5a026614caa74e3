//! An ordinary user: own programs by pid, jobs that are killed and rolled back, and what needs more said with its reason.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::guests::{self, Way};
use super::stage::{LIMIT, Stage, counting, needs_root, shell, signal, with_command};
use crate::wait;

/// Without `restart_calls`: what remains of a poll is not to be seen without root, as `doctor` says; and without `memfd` and
/// `private_file`: they have mapped files that have neither a name nor a descriptor, which only root can open; and without
/// `tcp_listen`: the port of a server without `SO_REUSEADDR` is in `TIME_WAIT` there, and a user has it back after a minute.
const GUESTS: [&str; 38] = [
    "anon_memory",
    "blocked_calls",
    "brk",
    "dead_leader",
    "epoll",
    "eventfd",
    "fifo",
    "file_locks",
    "file_owner",
    "guard_pages",
    "inotify",
    "itimers",
    "mdwe",
    "pending_signals",
    "pidfd",
    "pipe",
    "posix_timers",
    "procfile",
    "pty",
    "regular_file",
    "robust_mutex",
    "rseq",
    "shared_anon",
    "shared_anon_longer",
    "shared_file",
    "sigactions",
    "signalfd",
    "socket_options",
    "stack_growth",
    "stopped",
    "tcp_pair",
    "tcp_waiting",
    "threads",
    "timerfd",
    "tree",
    "unix_listen",
    "unix_pair",
    "vfork_in_progress",
];

pub(crate) fn guests(stage: &mut Stage<'_>) -> Result<()> {
    stage.become_user()?;
    guests::all(stage, &GUESTS, &Way::default())
}

/// `run`, kill -9, rolled back, three times; asked about meanwhile; ended with the program's own status.
pub(crate) fn job(stage: &mut Stage<'_>) -> Result<()> {
    stage.become_user()?;
    let script = counting("count", 150);
    let mut job = stage.start(&["run", "--name", "j", "--every", "100ms", "--", "sh", "-c", &script], "says")?;
    for kill in 1..=3 {
        wait::until("a checkpoint to go back to", LIMIT, || {
            Ok(checkpoints(&stage.run(&["list", "--json"])?).then_some(()))
        })?;
        stage.until_counted("count", 10 * kill)?;
        stage.expect(0, &["checkpoint", "j"])?;
        if kill == 1 {
            stage.expect(0, &["ps"])?.names(&["j", "running"])?;
            stage.expect(0, &["check", "j", "--wait", "30s"])?.names(&["is possible", "[files-unwatched]"])?;
        }
        signal(stage.only("sh -c")?, Signal::KILL);
        stage.until_said("says", &format!("restart {kill} of 5"))?;
    }
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    let says = stage.text("says");
    ensure!(status == 7, "the job ended with {status}: {says}");
    ensure!(says.contains("job j: killed by SIGKILL; rolled back to j@"), "{says}");
    stage.counted("count", 150)
}

fn checkpoints(said: &super::stage::Said) -> bool {
    said.out.contains("\"job\"") || said.out.contains("j@") || said.out.contains("\"sequence\"")
}

/// What this user can and cannot do is said, by `doctor`, `check` and the errors; nothing is setuid.
pub(crate) fn told(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let stranger = stage.program("exec sleep 1000")?;
    let strange = stranger.id().to_string();
    stage.become_user()?;
    stage.expect(0, &["doctor"])?.names(&[
        "watch changed files: fanotify takes CAP_SYS_ADMIN",
        "choose pids: run and restore use a private pid namespace",
        "user: an ordinary user handles own programs only",
    ])?;
    for command in ["check", "checkpoint"] {
        stage.expect(69, &[command, &strange])?.names(&["not permitted", "as the same user or as root"])?;
        stage.expect(69, &[command, "999999999"])?.names(&["no process 999999999"])?;
    }
    let own = stage.program("exec sleep 1000")?.id();
    wait::until("the program", LIMIT, || {
        Ok((!with_command(&stage.folder, |c| c == "sleep 1000").is_empty()).then_some(()))
    })?;
    let own = own.to_string();
    stage.expect(0, &["check", &own])?.names(&["files-unwatched", "CAP_SYS_ADMIN", "--files"])?;
    stage.expect(0, &["checkpoint", &own, "-o", "image"])?;
    stage.expect(0, &["check", "./image"])?.names(&["restore of 1 process is possible"])?;
    let mode = fs::metadata(stage.hdcr())?.permissions().mode();
    ensure!(mode & 0o6000 == 0, "hdcr is setuid: {mode:o}");
    Ok(())
}

/// A job that runs is not restored beside itself by accident: that would roll its files back under it. One that was just
/// ended is restored at once.
pub(crate) fn beside(stage: &mut Stage<'_>) -> Result<()> {
    stage.become_user()?;
    let name = "user-beside";
    let script = counting("count", 200);
    let mut job = stage.start(&["run", "--name", name, "--every", "1h", "--", "sh", "-c", &script], "says")?;
    stage.until_counted("count", 5)?;
    stage.expect(0, &["checkpoint", name])?;
    let counted = stage.text("count").lines().count();
    stage.until_counted("count", counted + 5)?;
    let refused = stage.expect(69, &["restore", name])?;
    refused.names(&["job user-beside is running already", "hdcr stop user-beside", "--new-pids"])?;
    stage.expect(0, &["checkpoint", name, "--kill"])?;
    stage.expect(7, &["restore", name])?;
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 75, "the job ended with {status}");
    stage.counted("count", 200)
}
