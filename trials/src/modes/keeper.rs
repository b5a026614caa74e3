//! What befalls a keeper: its store is removed, it is stopped, it is killed; and what it tells of who outlives its job.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::stage::{LIMIT, Stage, counting, needs_root, shell, signal, with_command};
use crate::wait;

/// What `ps --json` says of a job of this trial; others may have theirs beside it.
fn status(stage: &mut Stage<'_>, list: &str, name: &str) -> Result<Option<Value>> {
    let said = stage.expect(0, &["ps", "--json"])?;
    let all: Value = serde_json::from_str(said.out.trim()).context("no JSON")?;
    let jobs = all[list].as_array().with_context(|| format!("no {list} in {all}"))?;
    Ok(jobs.iter().find(|job| job["name"] == name).cloned())
}

fn number(value: &Value, key: &str) -> Result<u32> {
    value[key].as_u64().and_then(|number| number.try_into().ok()).with_context(|| format!("no {key} in {value}"))
}

/// The pid that `ps --json` tells is one that its reader can use, whatever pids the job has of its own.
pub(crate) fn pids(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let script = counting("count", 100_000);
    for (name, options) in [("keeper-pids-a", &[][..]), ("keeper-pids-b", &["--new-pids"][..])] {
        fs::remove_file(stage.path("count")).ok();
        let says = format!("says.{name}");
        let mut run = vec!["run", "--name", name, "--every", "1h"];
        run.extend(options);
        run.extend(["--", "sh", "-c", &script]);
        let mut job = stage.start(&run, &says)?;
        stage.until_counted("count", 5)?;
        let told = status(stage, "jobs", name)?.context("no such job")?;
        ensure!(number(&told, "pid")? == stage.only("sh -c")?, "{told}");
        ensure!(told["pid_inside"].is_u64() != options.is_empty(), "{told}");
        ensure!(fs::read_link(format!("/proc/{}/exe", number(&told, "keeper")?))?.ends_with("hdcr"), "{told}");
        stage.expect(0, &["checkpoint", name])?;
        // As in the README.
        signal(number(&told, "pid")?, Signal::KILL);
        stage.until_said(&says, "restart 1 of 5")?;
        stage.expect(0, &["stop", name])?;
        wait::end_of(&mut job, "the job", LIMIT)?;
    }
    Ok(())
}

/// The store goes away under a job, as a whole and in part; so does its socket. It goes on, is found again, says what is
/// lost, and rolls back to what it has made since.
pub(crate) fn store_gone(stage: &mut Stage<'_>) -> Result<()> {
    let name = "keeper-gone";
    let script = counting("count", 100_000);
    let mut job = stage.start(&["run", "--name", name, "--every", "1h", "--", "sh", "-c", &script], "says")?;
    stage.until_counted("count", 5)?;
    let record = "the record of job keeper-gone in";
    let checkpoints = "of job keeper-gone removed, the newest among them";
    for (gone, says, times) in [
        ("store", record, 1),
        ("store/.jobs", record, 2),
        ("store/.jobs/keeper-gone.json", record, 3),
        ("store/jobs/keeper-gone", checkpoints, 2),
    ] {
        stage.expect(0, &["checkpoint", name])?;
        let path = stage.path(gone);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.context(gone)?;
        wait::until(&format!("what is said of {gone}"), LIMIT, || {
            Ok((stage.text("says").matches(says).count() >= times).then_some(()))
        })?;
        wait::until("a new checkpoint", LIMIT, || {
            let told = status(stage, "jobs", name)?.context("no such job")?;
            Ok(told["newest"].is_u64().then_some(()))
        })
        .context(gone)?;
        let held = stage.expect(69, &["run", "--name", name, "--", "true"])?;
        held.names(&["is running already"])?;
    }
    let lines = stage.text("count").lines().count();
    stage.until_counted("count", lines + 10)?;
    signal(stage.only("sh -c")?, Signal::KILL);
    stage.until_said("says", "restart 1 of 5")?;
    let lines = stage.text("count").lines().count();
    stage.until_counted("count", lines + 5)?;
    stage.expect(0, &["stop", name])?.names(&["status 143"])?;
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 143, "the job ended with {status}");
    let text = stage.text("count");
    ensure!(text.lines().zip(1..).all(|(line, number)| line == format!("{number}")), "count is not in order");
    Ok(())
}

/// A keeper that was stopped is named at once by whoever asks it, and does not do later what nobody waits for.
pub(crate) fn stopped(stage: &mut Stage<'_>) -> Result<()> {
    let name = "keeper-stopped";
    let script = counting("count", 100_000);
    let mut job = stage.start(&["run", "--name", name, "--every", "1h", "--", "sh", "-c", &script], "says")?;
    stage.until_counted("count", 5)?;
    let keeper = number(&status(stage, "jobs", name)?.context("no such job")?, "keeper")?;
    signal(keeper, Signal::STOP);
    wait::until("the stop of the keeper", LIMIT, || {
        let stat = fs::read_to_string(format!("/proc/{keeper}/stat"))?;
        Ok(stat.contains(") T ").then_some(()))
    })?;
    for command in [&["checkpoint", name][..], &["stop", name], &["check", name]] {
        let words = [format!("process {keeper} is stopped"), format!("kill -CONT {keeper}")];
        stage.expect(75, command)?.names(&[&words[0], &words[1]])?;
    }
    let silent = status(stage, "silent", name)?.context("a stopped keeper is not told of")?;
    ensure!(silent["error"]["code"] == "keeper-stuck", "{silent}");
    signal(keeper, Signal::CONT);
    stage.expect(0, &["checkpoint", name])?.names(&[&format!("{name}@1:")])?;
    stage.expect(0, &["stop", name])?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    Ok(())
}

/// A program whose keeper was killed is known, can be saved, and can be ended; then the job goes on.
pub(crate) fn killed(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let name = "keeper-killed";
    let script = counting("count", 100);
    let run = ["run", "--name", name, "--every", "1h", "--", "sh", "-c", &script];
    let mut job = stage.start(&run, "says")?;
    stage.until_counted("count", 5)?;
    stage.expect(0, &["checkpoint", name])?;
    let told = status(stage, "jobs", name)?.context("no such job")?;
    let program = number(&told, "pid")?;
    signal(number(&told, "keeper")?, Signal::KILL);
    wait::end_of(&mut job, "the keeper", LIMIT)?;
    let orphan = status(stage, "orphans", name)?.context("the orphan is not told of")?;
    ensure!(number(&orphan, "pid")? == program && status(stage, "jobs", name)?.is_none(), "{orphan}");
    stage.expect(0, &["ps"])?.names(&["orphan!", "has lost its keeper", &format!("hdcr stop {name}")])?;
    for command in [&run[..], &["checkpoint", name], &["rm", name]] {
        let said = stage.expect(69, command)?;
        said.names(&["lost its keeper", &format!("pid {program}"), &format!("hdcr stop {name}")])?;
    }
    stage.expect(0, &["checkpoint", &program.to_string(), "-o", "image"])?;
    stage.expect(0, &["stop", name])?.names(&["had lost its keeper", "has been ended"])?;
    wait::gone(program, LIMIT)?;
    ensure!(status(stage, "orphans", name)?.is_none(), "the orphan is still told of");
    stage.expect(69, &["stop", name])?.names(&["no job keeper-killed is running"])?;
    fs::remove_file(stage.path("count")).ok();
    stage.expect(7, &run)?.names(&["it begins anew"])?;
    stage.counted("count", 100)
}

/// Who outlives a job is told of at its end.
pub(crate) fn left(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let script =
        "(setsid sh -c 'echo > daemon; exec sleep 1000' &) ; while [ ! -e daemon ]; do sleep 0.02; done; exit 3";
    let said = stage.expect(3, &["run", "--name", "keeper-left", "--", "sh", "-c", script])?;
    let daemon = *with_command(&stage.folder, |command| command == "sleep 1000").first().context("no daemon")?;
    said.names(&["1 process that it began runs on without a keeper", &format!("{daemon} (sleep)")])?;
    stage.end_all()?;
    fs::remove_file(stage.path("daemon"))?;
    let said = stage.expect(3, &["run", "--new-pids", "--name", "keeper-left-p", "--", "sh", "-c", script])?;
    said.names(&["1 process that it began ends with its pid namespace"])?;
    ensure!(with_command(&stage.folder, |command| command == "sleep 1000").is_empty(), "it lives on");
    Ok(())
}

/// `--every auto`: the period is chosen and told.
pub(crate) fn auto(stage: &mut Stage<'_>) -> Result<()> {
    let name = "keeper-auto";
    let script = counting("count", 100_000);
    let mut job = stage.start(&["run", "-v", "--name", name, "--every", "auto", "--", "sh", "-c", &script], "says")?;
    stage.until_counted("count", 5)?;
    let first = status(stage, "jobs", name)?.context("no such job")?;
    ensure!(first["every_auto"] == true && first["every_s"] == 10.0, "{first}");
    stage.expect(0, &["checkpoint", name])?;
    stage.until_said("says", "(auto: one costs")?;
    let then = status(stage, "jobs", name)?.context("no such job")?["every_s"].as_f64().context("every_s")?;
    ensure!((1.0..=3600.0).contains(&then), "a checkpoint every {then} s");
    stage.expect(0, &["ps"])?.names(&["(auto)"])?;
    stage.expect(0, &["stop", name])?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    Ok(())
}

/// A program that waits longer than the time between two checkpoints sees the end of its wait.
pub(crate) fn waits(stage: &mut Stage<'_>) -> Result<()> {
    let script = "import asyncio; asyncio.run(asyncio.sleep(1)); print('slept')";
    let run = ["run", "--name", "keeper-waits", "--every", "100ms", "--", "python3", "-c", script];
    stage.expect(0, &run)?.names(&["slept"])
}

/// While the keeper's own attempts wait for a thread that does not stop, who asks for a checkpoint is told that, after the time
/// of its own; and as well when it is its turn because such an attempt has just been given up.
pub(crate) fn late(stage: &mut Stage<'_>) -> Result<()> {
    const TRIES: usize = 10;
    let name = "keeper-late";
    // A parent sleeps in the kernel until its vfork child has gone.
    let script = "syscall(58) or sleep 1000; sleep 1000";
    let run = ["run", "--name", name, "--every", "100ms", "--timeout", "3s", "--", "perl", "-e", script];
    let mut job = stage.start(&run, "says")?;
    stage.until_said("says", "runs on without a new checkpoint")?;
    let mut waited = false;
    for _ in 0..TRIES {
        stage.expect(71, &["checkpoint", name, "--timeout", "4s"])?.names(&["[late]"])?;
        let said = stage.expect(71, &["checkpoint", name, "--timeout", "1s"])?;
        said.names(&["[late]"])?;
        waited = said.both().contains("within 1.0 s for the checkpoint that is at work");
        if waited {
            break;
        }
    }
    ensure!(waited, "nobody was told after the time of its own");
    // Who is waited for does not always hear of a request to end.
    stage.expect(0, &["stop", name, "--grace", "100ms"])?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    stage.end_all()
}
