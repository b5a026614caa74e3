//! Private pids for root: a number that is taken, generations of checkpoints from inside, jobs.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::guests::{self, Way};
use super::stage::{LIMIT, Stage, counting, needs_root, shell, signal, with_command};
use crate::wait;

pub(crate) fn guests(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let names = ["anon_memory", "pipe", "restart_calls", "signalfd", "threads", "tree"];
    guests::all(stage, &names, &Way { restore: vec!["--new-pids"], ..Way::default() })
}

/// Restored beside the program itself, and checkpointed again in there, three generations.
pub(crate) fn taken(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let mut program = stage.program(&counting("count", 200))?;
    stage.until_counted("count", 5)?;
    let pid = program.id().to_string();
    stage.expect(0, &["checkpoint", &pid, "-o", "image.0"])?;
    let refused = stage.expect(69, &["restore", "./image.0"])?;
    refused.names(&["[pid-taken]", &pid, "in use by sh", "--new-pids"])?;
    signal(program.id(), Signal::STOP);
    for generation in 0..3 {
        let (old, new) = (format!("./image.{generation}"), format!("./image.{}", generation + 1));
        stage.expect(
            0,
            &["restore", &old, "--new-pids", "--force", "--detach", "--pidfile", "pid", "--stdio", "null"],
        )?;
        let inside = stage.text("pid").trim().to_owned();
        ensure!(inside != pid, "it got the number that is taken");
        stage.expect(0, &["check", &inside])?.names(&["checkpoint of", "is possible"])?;
        stage.expect(0, &["checkpoint", &inside, "--kill", "-o", &new])?.names(&["then killed"])?;
        wait::gone(inside.parse().context("the pid")?, LIMIT)?;
    }
    signal(program.id(), Signal::KILL);
    wait::end_of(&mut program, "the first program", LIMIT)?;
    stage.expect(7, &["restore", "./image.3", "--new-pids"])?;
    stage.counted("count", 200)?;
    let mut job = stage.start(&["restore", "./image.3", "--new-pids", "--pidfile", "pid.2"], "says")?;
    wait::until("the pid file", LIMIT, || Ok(fs::read_to_string(stage.path("pid.2")).ok()))?;
    signal(job.id(), Signal::TERM);
    let status = shell(wait::end_of(&mut job, "the restored program", LIMIT)?);
    ensure!(status == 143, "ended by a signal that was passed on, with {status}");
    Ok(())
}

pub(crate) fn job(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let script = format!("trap 'echo caught >> caught' USR1; {}", counting("count", 100_000));
    let run = ["run", "--new-pids", "--name", "p", "--every", "1h", "--", "sh", "-c", &script];
    let mut job = stage.start(&run, "says")?;
    let mut counted = 5;
    for generation in 1..=3 {
        stage.until_counted("count", counted)?;
        stage.expect(0, &["checkpoint", "p"])?.names(&[&format!("p@{generation}:")])?;
        stage.expect(0, &["ps"])?.names(&["p", "running", &format!("@{generation}")])?;
        stage.expect(0, &["check", "p"])?.names(&["checkpoint of"])?;
        let program = with_command(&stage.folder, |command| command.starts_with("sh -c"));
        let program = program.first().copied().context("no program")?;
        signal(program, Signal::KILL);
        wait::gone(program, LIMIT)?;
        stage.until_said("says", &format!("restart {generation} of 5"))?;
        counted = stage.text("count").lines().count() + 10;
    }
    stage.until_counted("count", counted)?;
    signal(job.id(), Signal::USR1);
    stage.until_said("caught", "caught")?;
    stage.expect(0, &["stop", "p"])?.names(&["status 143"])?;
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 143, "the job ended with {status}");
    let text = stage.text("count");
    let count = text.lines().count();
    let numbers = text.lines().zip(1..).all(|(line, number)| line == format!("{number}"));
    ensure!(count > 10 && numbers, "{count} lines, in order: {numbers}");
    Ok(())
}

/// A job of an ordinary user has the numbers 3 to 102 as threads: who brings it back takes none of them.
pub(crate) fn of_threads(stage: &mut Stage<'_>) -> Result<()> {
    stage.become_user()?;
    let script = "import threading, time\nhold = threading.Event()\n\
                  threads = [threading.Thread(target=hold.wait) for _ in range(100)]\n\
                  [thread.start() for thread in threads]\ncount = open('count', 'w', buffering=1)\n\
                  for i in range(1, 101):\n    print(i, file=count)\n    time.sleep(0.02)\n\
                  hold.set()\n[thread.join() for thread in threads]\nraise SystemExit(7)\n";
    fs::write(stage.path("threads.py"), script)?;
    let mut job = stage.start(&["run", "--name", "threads", "--every", "1h", "--", "python3", "threads.py"], "says")?;
    stage.until_counted("count", 10)?;
    stage.expect(0, &["checkpoint", "threads"])?;
    let is_program = |line: &str| line.ends_with("python3 threads.py") && !line.contains("--name");
    signal(*with_command(&stage.folder, is_program).first().context("no program")?, Signal::KILL);
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 7, "the job ended with {status}: {}", stage.text("says"));
    stage.counted("count", 100)
}
