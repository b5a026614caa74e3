//! One job is never there twice: a program that was restored by hand, and another machine that shares the store.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::stage::{LIMIT, Stage, counting, needs_root, shell, signal};
use crate::wait;

/// A program that was restored by hand lives: neither `run` nor `restore` makes a second one of its job.
pub(crate) fn by_hand(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    restored_twice(stage, &["", "--new-pids"])
}

/// The same for an ordinary user, who restores into a namespace in any case.
pub(crate) fn by_hand_of_user(stage: &mut Stage<'_>) -> Result<()> {
    stage.become_user()?;
    restored_twice(stage, &[""])
}

fn restored_twice(stage: &mut Stage<'_>, ways: &[&str]) -> Result<()> {
    let script = counting("count", 400);
    let run = ["run", "--name", "twice", "--every", "1h", "--", "sh", "-c", &script];
    let mut job = stage.start(&run, "says")?;
    stage.until_counted("count", 5)?;
    stage.expect(0, &["checkpoint", "twice", "--kill"])?;
    ensure!(shell(wait::end_of(&mut job, "the job", LIMIT)?) == 75, "{}", stage.text("says"));
    for way in ways {
        let mut restore = vec!["restore", "twice", "--detach", "--pidfile", "pid", "--stdio", "null"];
        restore.extend(Some(*way).filter(|way| !way.is_empty()));
        stage.expect(0, &restore)?;
        let pid = stage.text("pid").trim().to_owned();
        let named = ["job-runs", &format!("pid {pid}"), "twice"];
        stage.expect(69, &run)?.names(&named)?;
        stage.expect(69, &["restore", "twice", "--detach"])?.names(&named)?;
        signal(pid.parse()?, Signal::KILL);
        wait::gone(pid.parse()?, LIMIT)?;
        stage.end_all()?;
    }
    at_the_same_moment(stage, &run)?;
    // In the foreground, too, and only as long as it lives.
    fs::remove_file(stage.path("store/.jobs/twice.restored")).ok();
    let mut restored = stage.start(&["restore", "twice"], "restored")?;
    wait::until("the list of programs restored by hand", LIMIT, || {
        Ok(stage.path("store/.jobs/twice.restored").exists().then_some(()))
    })?;
    stage.expect(69, &run)?.names(&["job-runs"])?;
    ensure!(shell(wait::end_of(&mut restored, "the program", LIMIT)?) == 7, "{}", stage.text("restored"));
    stage.expect(7, &run)?;
    stage.counted("count", 400)
}

/// A program that was restored by hand is listed and can be ended; beside it no copy is made that writes the same files.
pub(crate) fn second(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let script = counting("count", 100_000);
    let mut job = stage.start(&["run", "--name", "second", "--every", "1h", "--", "sh", "-c", &script], "says")?;
    stage.until_counted("count", 5)?;
    stage.expect(0, &["checkpoint", "second"])?;
    beside(stage, "second")?;
    stage.expect(0, &["checkpoint", "second", "--kill"])?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    let detached = |options: &[&'static str]| -> Vec<&str> {
        [&["restore", "second", "--detach", "--pidfile", "pid", "--stdio", "null"], options].concat()
    };
    stage.expect(0, &detached(&[]))?;
    let pid = stage.text("pid").trim().to_owned();
    stage.expect(69, &["rm", "second"])?.names(&["job-runs", &pid, "by hand"])?;
    stage.expect(0, &["ps"])?.names(&["second", &pid, "by hand"])?;
    beside(stage, "second")?;
    // An image knows its program too.
    stage.expect(0, &["checkpoint", &pid, "-o", "image"])?;
    beside(stage, "./image")?;
    stage.expect(0, &detached(&["--new-pids", "--force"]))?;
    let other = stage.text("pid").trim().to_owned();
    stage.expect(69, &["stop", "second"])?.names(&["several-copies", &pid, &other])?;
    for pid in [&pid, &other] {
        stage.expect(0, &["stop", pid])?.names(&["second", pid])?;
        wait::gone(pid.parse()?, LIMIT)?;
    }
    let said = stage.expect(0, &["ps"])?;
    ensure!(!said.out.contains("second"), "it is still listed: {said:?}");
    stage.expect(69, &["stop", "second"])?.names(&["no-such-job"])?;
    stage.expect(0, &detached(&["--new-pids"]))?;
    stage.expect(0, &["stop", "second"])?.names(&["second", "has been ended"])
}

/// Who may choose no pids gets a copy with other ones in any case: beside a program that runs it is refused like the others.
pub(crate) fn second_of_user(stage: &mut Stage<'_>) -> Result<()> {
    stage.become_user()?;
    let program = stage.program(&counting("count", 100_000))?;
    stage.until_counted("count", 3)?;
    stage.expect(0, &["checkpoint", &program.id().to_string(), "-o", "image"])?;
    let counted = stage.text("count").lines().count();
    stage.until_counted("count", counted + 5)?;
    let refused = stage.expect(69, &["restore", "./image", "--detach", "--stdio", "null"])?;
    refused.names(&["copy-runs", "/count", "--force"])?;
    ensure!(stage.text("count").lines().count() >= counted + 5, "the file was cut back under the program that runs");
    stage.end_all()?;
    stage.expect(0, &["restore", "./image", "--detach", "--stdio", "null"])?;
    // Now it runs under another number, which is the old one where it lives.
    let refused = stage.expect(69, &["restore", "./image", "--detach", "--stdio", "null"])?;
    refused.names(&["copy-runs", "/count"])?;
    stage.end_all()
}

/// So is one that would put back the values of semaphores, or the contents of shared memory, which have no paths.
pub(crate) fn second_with_semaphores(stage: &mut Stage<'_>) -> Result<()> {
    const SCRIPT: &str = "import ctypes, os, time\nc = ctypes.CDLL(None)\nids = c.semget(0, 1, 0o1600), c.shmget(0, 5000, 0o1600)\n\
                          c.semctl(ids[0], 0, 16, 2)\nopen('ids', 'w').write(f'{ids[0]} {ids[1]}')\n\
                          c.shmdt(ctypes.c_void_p(c.shmat(ids[1], None, 0)))\ntime.sleep(10000)\n";
    needs_root()?;
    fs::write(stage.path("script.py"), SCRIPT)?;
    let program = stage.program("exec /usr/bin/python3 script.py")?;
    let ids = wait::until("the numbers of the objects", LIMIT, || {
        Ok(Some(fs::read_to_string(stage.path("ids")).unwrap_or_default()).filter(|ids| !ids.is_empty()))
    })?;
    let (semaphores, _memory) = ids.split_once(' ').context("two numbers")?;
    let made = Objects(ids.clone());
    stage.expect(0, &["checkpoint", &program.id().to_string(), "-o", "image"])?;
    let refused = stage.expect(69, &["restore", "./image", "--new-pids", "--detach", "--stdio", "null"])?;
    refused.names(&["copy-runs", &format!("System V semaphores {semaphores}"), "--force"])?;
    stage.end_all()?;
    stage.expect(0, &["restore", "./image", "--new-pids", "--detach", "--stdio", "null"])?;
    drop(made);
    stage.end_all()
}

/// System V objects, a set of semaphores and a segment, that go when a trial ends.
struct Objects(String);

impl Drop for Objects {
    fn drop(&mut self) {
        for (option, id) in ["-s", "-m"].into_iter().zip(self.0.split(' ')) {
            std::process::Command::new("ipcrm").args([option, id]).output().ok();
        }
    }
}

/// A second copy is refused, and what the first one writes stays.
fn beside(stage: &mut Stage<'_>, image: &str) -> Result<()> {
    let counted = stage.text("count").lines().count();
    stage.until_counted("count", counted + 5)?;
    let refused = stage.expect(69, &["restore", image, "--new-pids", "--detach", "--stdio", "null"])?;
    refused.names(&["copy-runs", "/count", "--force", "--map-path"])?;
    ensure!(stage.text("count").lines().count() >= counted + 5, "the file was cut back under the program that runs");
    Ok(())
}

/// Commands that bring the job back at the same moment: one of them does.
fn at_the_same_moment(stage: &mut Stage<'_>, run: &[&str]) -> Result<()> {
    let restore = ["restore", "twice"];
    for (round, others) in [[&restore[..], &restore], [&restore, run]].into_iter().cycle().take(6).enumerate() {
        let mut commands = Vec::new();
        for (number, words) in [&restore[..]].into_iter().chain(others).enumerate() {
            let says = format!("moment-{round}-{number}");
            commands.push((stage.start(words, &says)?, says));
        }
        wait::until("the end of all but one of the commands", LIMIT, || {
            let mut living = 0;
            for (command, _) in &mut commands {
                living += usize::from(command.try_wait()?.is_none());
            }
            Ok((living <= 1).then_some(()))
        })?;
        stage.only("sh -c exec 3>count")?;
        let mut refused = 0;
        for (command, says) in &mut commands {
            if let Some(status) = command.try_wait()? {
                let text = stage.text(says);
                let said = ["job-runs", "job-begins"].iter().any(|code| text.contains(code));
                ensure!(shell(status) == 69 && said, "{says} ended with {}: {text}", shell(status));
                refused += 1;
            }
        }
        ensure!(refused == 2, "{refused} of three commands were refused");
        stage.end_all()?;
    }
    Ok(())
}

/// Makes the record of the job one of another machine.
fn far_away(stage: &Stage<'_>, name: &str) -> Result<()> {
    let path = stage.path(&format!("store/.jobs/{name}.json"));
    let mut record: Value = serde_json::from_slice(&fs::read(&path)?)?;
    for (key, value) in
        [("boot", "00000000-0000-4000-8000-000000000000"), ("machine", "0".repeat(32).as_str()), ("host", "far-away")]
    {
        ensure!(record[key].is_string(), "no {key}: {record}");
        record[key] = value.into();
    }
    fs::write(stage.path("record"), record.to_string())?;
    fs::rename(stage.path("record"), path)?;
    Ok(())
}

/// A job that another machine runs is left alone, unless somebody says that that machine is gone.
pub(crate) fn elsewhere(stage: &mut Stage<'_>) -> Result<()> {
    let script = counting("count", 300);
    let run = ["run", "--name", "far", "--every", "1h", "--", "sh", "-c", &script];
    let mut job = stage.start(&run, "says")?;
    stage.until_counted("count", 5)?;
    stage.expect(0, &["checkpoint", "far"])?;
    signal(job.id(), Signal::KILL);
    wait::end_of(&mut job, "the keeper", LIMIT)?;
    stage.end_all()?;
    far_away(stage, "far")?;
    let named = ["job-elsewhere", "far-away"];
    for command in [&run[..], &["restore", "far"], &["restore", "far", "--new-pids"], &["rm", "far"]] {
        stage.expect(69, command)?.names(&[named[0], named[1], "--take-over"])?;
    }
    for command in [&["checkpoint", "far"], &["stop", "far"]] {
        stage.expect(69, command)?.names(&named)?;
    }
    let mut taken = vec!["run", "--take-over"];
    taken.extend(run.iter().skip(1));
    stage.expect(7, &taken)?.names(&["goes on from its checkpoint far@1"])?;
    stage.counted("count", 300)?;
    stage.expect(0, &["rm", "far"])?;
    Ok(())
}

/// A job that was taken over by another machine ends on this one, and leaves the record to that one.
pub(crate) fn taken_over(stage: &mut Stage<'_>) -> Result<()> {
    let run = ["run", "--name", "mine", "--every", "1h", "--", "sleep", "1000"];
    let mut job = stage.start(&run, "says")?;
    let program = stage.only("sleep 1000")?;
    stage.expect(0, &["checkpoint", "mine"])?;
    far_away(stage, "mine")?;
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 69, "the job ended with {status}: {}", stage.text("says"));
    stage.until_said("says", "taken over by host far-away")?;
    wait::gone(program, LIMIT)?;
    let record: Value = serde_json::from_slice(&fs::read(stage.path("store/.jobs/mine.json"))?)?;
    ensure!(record["host"] == "far-away" && record["state"] == "running", "{record}");
    Ok(())
}
