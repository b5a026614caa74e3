//! A restore in the foreground behaves like the program: statuses, signals, standard streams; a killed one leaves nothing.

use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::stage::{LIMIT, Stage, counting, needs_root, reap_orphans, shell, signal, with_command};
use crate::wait;

/// Takes an image of a program that has written at least so many lines to `count`.
fn image(stage: &mut Stage<'_>, script: &str, lines: usize) -> Result<()> {
    fs::remove_file(stage.path("image")).ok();
    fs::remove_file(stage.path("count")).ok();
    let mut program = stage.program(script)?;
    stage.until_counted("count", lines)?;
    stage.expect(0, &["checkpoint", &program.id().to_string(), "--kill", "-o", "image"])?;
    wait::end_of(&mut program, "the program", LIMIT)?;
    reap_orphans()
}

/// Statuses: that of the program itself, and 128 and a number for its death by a signal.
pub(crate) fn status(stage: &mut Stage<'_>) -> Result<()> {
    let until = |end: &str| format!("exec 3>count; echo 1 >&3; while [ ! -e go ]; do sleep 0.02; done; {end}");
    for (end, expected) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -SEGV $$", 139),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
    ] {
        fs::remove_file(stage.path("go")).ok();
        image(stage, &until(end), 1)?;
        fs::write(stage.path("go"), "")?;
        stage.expect(expected, &["restore", "./image"])?;
        reap_orphans()?;
    }
    Ok(())
}

/// Signals that are passed on reach the program, which may live on or die of them.
pub(crate) fn signals(stage: &mut Stage<'_>) -> Result<()> {
    let script = "for s in HUP INT QUIT TERM USR1 USR2 ALRM WINCH; do trap \"echo $s >> caught\" $s; done; exec 3>count; \
                  echo 1 >&3; while [ ! -e go ]; do sleep 0.02; done; exit 9";
    image(stage, script, 1)?;
    let mut restored = stage.start(&["restore", "./image", "--pidfile", "pid"], "says")?;
    wait::until("the pid file", LIMIT, || Ok(fs::read_to_string(stage.path("pid")).ok()))?;
    let all = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("TERM", Signal::TERM),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("ALRM", Signal::ALARM),
        ("WINCH", Signal::WINCH),
    ];
    for (name, number) in all {
        signal(restored.id(), number);
        stage.until_said("caught", name)?;
    }
    fs::write(stage.path("go"), "")?;
    let ended = shell(wait::end_of(&mut restored, "the restored program", LIMIT)?);
    ensure!(ended == 9, "ended with {ended}");
    image(stage, &counting("count", 100_000), 3)?;
    for (number, expected) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129), (Signal::USR1, 138)] {
        fs::remove_file(stage.path("pid")).ok();
        let mut restored = stage.start(&["restore", "./image", "--pidfile", "pid"], "says")?;
        wait::until("the pid file", LIMIT, || Ok(fs::read_to_string(stage.path("pid")).ok()))?;
        signal(restored.id(), number);
        let ended = shell(wait::end_of(&mut restored, "the restored program", LIMIT)?);
        ensure!(ended == expected, "{number:?}: ended with {ended}");
        for left in with_command(&stage.folder, |_| true) {
            wait::gone(left, LIMIT)?;
        }
        reap_orphans()?;
    }
    Ok(())
}

/// Standard streams that led out become those of the restoring command, nothing, or a file; `--detach` returns at once.
pub(crate) fn stdio(stage: &mut Stage<'_>) -> Result<()> {
    let script = "exec 3>count; echo 1 >&3; read line; echo got $line; echo an error >&2; exit 4";
    let mut command = stage.command("setsid");
    command.args(["sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = stage.spawn(&mut command)?;
    stage.until_counted("count", 1)?;
    stage.expect(0, &["checkpoint", &program.id().to_string(), "--kill", "-o", "image"])?;
    wait::end_of(&mut program, "the program", LIMIT)?;
    fs::write(stage.path("input"), "a word\n")?;
    let mut command = stage.command(stage.hdcr());
    command.args(["restore", "./image"]).stdin(fs::File::open(stage.path("input"))?);
    let said = stage.end_of(command, "hdcr restore ./image < input")?;
    ensure!(said.status == 4 && said.out == "got a word\n" && said.err == "an error\n", "inherited: {said:?}");
    let said = stage.expect(4, &["restore", "./image", "--stdio", "null"])?;
    ensure!(said.both().is_empty(), "null: {said:?}");
    stage.expect(4, &["restore", "./image", "--stdio", "all.log"])?;
    ensure!(stage.text("all.log") == "got\nan error\n", "file: {}", stage.text("all.log"));
    for new_pids in [false, true] {
        needs_root()?;
        fs::remove_file(stage.path("detached.log")).ok();
        let mut arguments = vec!["restore", "./image", "--detach", "--stdio", "detached.log", "--json"];
        arguments.extend(new_pids.then_some("--new-pids"));
        let said = stage.expect(0, &arguments)?;
        let answer: serde_json::Value = serde_json::from_str(said.err.trim()).context("the answer")?;
        ensure!(answer["pid"].as_i64().is_some_and(|pid| pid > 1), "{answer}");
        stage.until_said("detached.log", "an error")?;
    }
    killed(stage)
}

/// A restore that is killed at some moment leaves a program that runs, or nothing.
fn killed(stage: &mut Stage<'_>) -> Result<()> {
    image(stage, &counting("count", 100_000), 3)?;
    for new_pids in [false, true] {
        for moment in 0..12_u64 {
            let mut arguments = vec!["restore", "./image"];
            arguments.extend(new_pids.then_some("--new-pids"));
            let mut restored = stage.start(&arguments, "says")?;
            std::thread::sleep(std::time::Duration::from_millis(4 * moment));
            signal(restored.id(), Signal::KILL);
            wait::end_of(&mut restored, "the killed restore", LIMIT)?;
            wait::until("nothing, or the whole program", LIMIT, || {
                let left = with_command(&stage.folder, |command| !command.starts_with("sleep"));
                let whole = left.len() == 1 || new_pids && left.len() == 2;
                let half = left.iter().any(|pid| {
                    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains("__worker")
                });
                Ok((left.is_empty() || whole && !half).then_some(()))
            })?;
            for pid in with_command(&stage.folder, |_| true) {
                signal(pid, Signal::KILL);
                wait::gone(pid, LIMIT)?;
            }
            reap_orphans()?;
        }
    }
    Ok(())
}
