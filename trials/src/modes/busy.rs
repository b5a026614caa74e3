//! Two checkpoints of one program at the same time: the second says who is at work, or waits, and the program is unharmed.

use std::fs;
use std::path::Path;
use std::process::Child;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::stage::{LIMIT, Stage, counting, needs_root, shell, signal};
use crate::wait;

/// Root's.
const RUNNING: &str = "/run/hdcr/jobs/.at-work";

/// A checkpoint that is held up while it has the program, as a slow one is.
fn held_up(stage: &mut Stage<'_>, pid: &str) -> Result<Child> {
    const ROUNDS: usize = 50;
    for _ in 0..ROUNDS {
        let mut first = stage.start(&["checkpoint", pid, "-o", "first", "--timeout", "50s"], "first.out")?;
        let traced =
            || fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| !text.contains("TracerPid:\t0"));
        while first.try_wait()?.is_none() {
            if traced() {
                signal(first.id(), Signal::STOP);
                break;
            }
        }
        if traced() {
            return Ok(first);
        }
        signal(first.id(), Signal::CONT);
        wait::end_of(&mut first, "the first checkpoint", LIMIT)?;
        fs::remove_file(stage.path("first")).ok();
    }
    bail!("no checkpoint was met in the middle")
}

/// A program does not stand still for a command that is stopped: Ctrl-Z waits until it goes on, and who cannot wait is ended.
pub(crate) fn stopped(stage: &mut Stage<'_>) -> Result<()> {
    let program = stage.program(&counting("count", 100_000))?;
    stage.until_counted("count", 3)?;
    let pid = program.id().to_string();
    let first = |letter: &str, of: u32| {
        fs::read_to_string(format!("/proc/{of}/status")).is_ok_and(|text| text.contains(&format!("State:\t{letter}")))
    };
    for _ in 0..20 {
        let mut command = stage.start(&["checkpoint", &pid, "-o", "image", "--timeout", "50s"], "terminal.out")?;
        while command.try_wait()?.is_none() {
            if first("t", program.id()) {
                signal(command.id(), Signal::TSTP);
                break;
            }
        }
        // In a group that nobody watches over it is not stopped at all.
        wait::until("its stop or its end", LIMIT, || {
            let at_rest = first("T", command.id()) || command.try_wait()?.is_some();
            Ok(at_rest.then_some(()))
        })?;
        ensure!(!first("t", program.id()), "the program stands still for a command that is stopped");
        signal(command.id(), Signal::CONT);
        let status = shell(wait::end_of(&mut command, "the command", LIMIT)?);
        ensure!(status == 0, "{status}: {}", stage.text("terminal.out"));
    }
    let mut command = held_up(stage, &pid)?;
    let so_far = stage.text("count").lines().count();
    let status = shell(wait::end_of(&mut command, "the stopped command", LIMIT)?);
    ensure!(status == 137, "{status}: {}", stage.text("first.out"));
    stage.until_said("first.out", "hdcr-stopped")?;
    stage.until_counted("count", so_far + 10)?;
    stage.expect(0, &["checkpoint", &pid, "-o", "image"])?;
    stage.end_all()
}

/// The same user, and another one, who has another place for what runs.
pub(crate) fn told(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    stage.surround("HDCR_TRIAL_UNWATCHED", Path::new("yes"));
    let mut program = stage.program(&counting("count", 300))?;
    stage.until_counted("count", 3)?;
    let pid = program.id().to_string();
    let mut first = held_up(stage, &pid)?;
    let named = ["busy", &format!("another hdcr (process {})", first.id()), "--wait"];
    stage.expect(75, &["checkpoint", &pid, "-o", "second"])?.names(&named)?;
    stage.expect(75, &["checkpoint", &pid, "-o", "second", "--wait", "100ms"])?.names(&named)?;
    stage.expect(75, &["check", &pid])?.names(&named)?;
    let second = stage.start(&["checkpoint", &pid, "-o", "second", "--wait", "30s"], "second.out")?;
    let waits = format!("not done after 3.0 s: waiting: another hdcr (process {})", first.id());
    stage.until_said("second.out", &waits)?;
    signal(first.id(), Signal::CONT);
    for (mut child, says) in [(first, "first.out"), (second, "second.out")] {
        let status = shell(wait::end_of(&mut child, says, LIMIT)?);
        ensure!(status == 0, "{says}: {status}: {}", stage.text(says));
    }
    fs::remove_file(stage.path("first"))?;
    first = held_up(stage, &pid)?;
    // The first one's lock is not seen by a user with another place for what runs; that it traces is.
    fs::rename(RUNNING, format!("{RUNNING}.aside"))?;
    let said = stage.run(&["checkpoint", &pid, "-o", "third"]);
    fs::rename(format!("{RUNNING}.aside"), RUNNING)?;
    let said = said?;
    ensure!(said.status == 75, "{said:?}");
    said.names(&["busy", &format!("another hdcr (process {})", first.id())])?;
    signal(first.id(), Signal::CONT);
    wait::end_of(&mut first, "the first checkpoint", LIMIT)?;
    together(stage, &pid)?;
    let status = shell(wait::end_of(&mut program, "the program", LIMIT)?);
    ensure!(status == 7, "the program ended with {status}");
    stage.counted("count", 300)
}

/// Many at once: each is made, or says that another one is at work.
fn together(stage: &mut Stage<'_>, pid: &str) -> Result<()> {
    for round in 0..5 {
        let mut all = Vec::new();
        for number in 0..4 {
            let name = format!("{round}-{number}");
            let child = stage.start(&["checkpoint", pid, "-o", &format!("image-{name}")], &format!("out-{name}"))?;
            all.push((name, child));
        }
        let mut made = 0;
        for (name, mut child) in all {
            let status = shell(wait::end_of(&mut child, "a checkpoint", LIMIT)?);
            let said = stage.text(&format!("out-{name}"));
            match status {
                0 => made += 1,
                75 => ensure!(said.contains("[busy]"), "{said}"),
                _ => bail!("a checkpoint ended with {status}: {said}"),
            }
        }
        ensure!(made > 0, "none was made");
        ensure!(
            fs::read_to_string(format!("/proc/{pid}/status")).context("it is gone")?.contains("TracerPid:\t0"),
            "traced"
        );
    }
    Ok(())
}
