//! For scripts: every command answers with JSON that can be read, with the exit statuses of the README; settings by their
//! order: files, environment, flags.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stage::{LIMIT, Said, Stage, counting};
use crate::wait;

/// The one object that a command printed.
/// The answer; beside the program's own output the first of several objects, a line each.
fn object(said: &Said, aside: bool) -> Result<Value> {
    let text = if aside { &said.err } else { &said.out };
    let lines = if aside { text.trim().lines().collect() } else { vec![text.trim()] };
    let values: Vec<Value> = lines
        .into_iter()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
        .collect::<Result<_>>()?;
    ensure!(values.iter().all(Value::is_object), "{values:?}");
    values.into_iter().next().context("it says nothing")
}

fn says(stage: &mut Stage<'_>, status: i32, arguments: &[&str], key: &str) -> Result<Value> {
    let mut all = arguments.to_vec();
    all.push("--json");
    let said = stage.expect(status, &all)?;
    let value = object(&said, false).with_context(|| arguments.join(" "))?;
    value.get(key).cloned().with_context(|| format!("{}: no {key} in {value}", arguments.join(" ")))
}

pub(crate) fn json(stage: &mut Stage<'_>) -> Result<()> {
    let program = stage.program(&counting("count", 100_000))?;
    stage.until_counted("count", 3)?;
    let pid = program.id().to_string();
    says(stage, 0, &["doctor"], "findings")?;
    ensure!(says(stage, 0, &["check", &pid], "possible")? == true, "check of a process");
    let snapshot = says(stage, 0, &["checkpoint", &pid], "snapshot")?;
    let snapshot = snapshot.as_str().context("snapshot")?.to_owned();
    let name = snapshot.split('@').next().context("a name")?.to_owned();
    says(stage, 0, &["checkpoint", &pid, "-o", "image"], "path")?;
    says(stage, 0, &["list"], "checkpoints")?;
    says(stage, 0, &["list", &name], "checkpoints")?;
    let tree = says(stage, 0, &["show", &snapshot], "tree")?;
    ensure!(tree[0]["pid"] == program.id() && tree[0]["mapped"].as_u64() > Some(0), "{tree}");
    let files = says(stage, 0, &["show", &snapshot], "open_files")?;
    let count = stage.path("count").display().to_string();
    ensure!(files.as_array().is_some_and(|files| files.iter().any(|file| file["what"] == count.as_str())), "{files}");
    let said = stage.expect(0, &["show", &snapshot, "--records"])?;
    said.names(&["THREADS", "regfile", &count, &format!("{pid}:3")])?;
    ensure!(!said.out.contains("of kind"), "a record without words: {}", said.out);
    let debug = ["Some(", " { ", " None", "List(", "Record", ": true", ": false"];
    let line = said.out.lines().find(|line| debug.iter().any(|words| line.contains(words)));
    ensure!(line.is_none(), "a record as programmers read it: {line:?}");
    says(stage, 0, &["verify", "./image"], "whole")?;
    says(stage, 0, &["ps"], "jobs")?;
    ensure!(says(stage, 69, &["check", "./image"], "possible")? == false, "its pids are in use");
    stage.end_all()?;
    ensure!(says(stage, 0, &["check", "./image"], "possible")? == true, "check of an image");
    running(stage)?;
    says(stage, 0, &["rm", &snapshot], "removed")?;
    refusals(stage)
}

/// `restore` and `run` say what they say on standard error: standard output is the program's.
fn running(stage: &mut Stage<'_>) -> Result<()> {
    let said = stage.expect(0, &["restore", "./image", "--detach", "--json", "--stdio", "null"])?;
    let pid = object(&said, true)?["pid"].as_u64().context("pid")?;
    ensure!(pid > 1, "pid {pid}");
    stage.end_all()?;
    let script = counting("count.2", 100_000);
    let mut job = stage.start(&["run", "--json", "--name", "j", "--", "sh", "-c", &script], "says")?;
    stage.until_counted("count.2", 3)?;
    // Jobs of others may run beside it.
    let jobs = says(stage, 0, &["ps"], "jobs")?;
    ensure!(jobs.as_array().is_some_and(|jobs| jobs.iter().any(|job| job["name"] == "j")), "ps: {jobs}");
    says(stage, 0, &["checkpoint", "j"], "snapshot")?;
    ensure!(says(stage, 0, &["stop", "j"], "status")? == 143, "stop");
    wait::end_of(&mut job, "the job", LIMIT)?;
    ensure!(stage.text("says").lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "run says no JSON");
    let said = stage.expect(5, &["run", "--quiet", "--name", "k", "--", "sh", "-c", "echo out; exit 5"])?;
    ensure!(said.out == "out\n" && said.err.is_empty(), "--quiet says {said:?}");
    let said = stage.expect(0, &["run", "-v", "--name", "v", "--", "true"])?;
    said.names(&["job v runs, a checkpoint every 30"])
}

/// Every class of failure has its status, and a code.
fn refusals(stage: &mut Stage<'_>) -> Result<()> {
    let mut bytes = fs::read(stage.path("image"))?;
    // Everywhere: what a restore does not need, because a file is still as it was, it does not read.
    let begin = bytes.len() / 8;
    bytes.iter_mut().skip(begin).step_by(512).for_each(|byte| *byte ^= 1);
    fs::write(stage.path("bad"), bytes)?;
    fs::write(stage.path("no-image"), "text")?;
    fs::write(stage.path("not-executable"), "text")?;
    let cases: [(i32, &[&str], bool); 13] = [
        (64, &["frobnicate"], false),
        (64, &["run", "--every", "soon", "--", "true"], false),
        (65, &["verify", "./bad"], false),
        (65, &["restore", "./bad"], true),
        (65, &["verify", "./no-image"], false),
        (69, &["checkpoint", "999999999"], false),
        (69, &["checkpoint", "nobody"], false),
        (69, &["stop", "nobody"], false),
        (69, &["restore", "nobody"], true),
        (69, &["show", "nobody@3"], false),
        (69, &["check", "999999999"], false),
        (127, &["run", "--name", "a", "--", "./not-there"], true),
        (126, &["run", "--name", "b", "--", "./not-executable"], true),
    ];
    for (status, arguments, aside) in cases {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let said = stage.expect(status, &all)?;
        let error = object(&said, aside).with_context(|| arguments.join(" "))?["error"].clone();
        ensure!(error["code"].is_string() && error["message"].is_string(), "{}: {error}", arguments.join(" "));
        let said = stage.expect(status, arguments)?;
        ensure!(!said.err.trim().is_empty(), "{} says nothing", arguments.join(" "));
    }
    Ok(())
}

/// A setting of the file is overruled by the environment, and that by a flag.
pub(crate) fn settings(stage: &mut Stage<'_>) -> Result<()> {
    fs::create_dir_all(stage.path(".config/hdcr"))?;
    let usual = format!("store = \"{}\"\n[run]\nevery = \"41s\"\n", stage.path("of-file").display());
    fs::write(stage.path(".config/hdcr/config.toml"), usual)?;
    fs::write(stage.path("other.toml"), "[run]\nevery = \"42s\"\n")?;
    fs::write(stage.path("bad.toml"), "[run]\nevrey = \"42s\"\n")?;
    let every = |stage: &mut Stage<'_>, environment: &[(&str, &str)], flags: &[&str]| -> Result<String> {
        let mut command = stage.command(stage.hdcr());
        command.args(["run", "-v", "--name", "s"]).args(flags).args(["--", "true"]).env_remove("HDCR_STORE");
        command.envs(environment.iter().copied());
        let said = stage.end_of(command, &format!("{environment:?} hdcr run -v {flags:?}"))?;
        ensure!(said.status == 0, "{}", said.both());
        let line = said.err.lines().find_map(|line| line.split_once("a checkpoint every ")).context("no interval")?;
        Ok(line.1.trim_end_matches(".0 s").trim_end_matches(" s").to_owned())
    };
    let store = stage.path("of-environment").display().to_string();
    let seen = [
        every(stage, &[], &[])?,
        every(stage, &[("HDCR_EVERY", "43s")], &[])?,
        every(stage, &[("HDCR_EVERY", "43s")], &["--every", "44s"])?,
        every(stage, &[("HDCR_CONFIG", "other.toml")], &["--store", "of-flag"])?,
        every(stage, &[("HDCR_STORE", &store)], &["--config", "other.toml"])?,
    ];
    ensure!(seen == ["41", "43", "44", "42", "42"], "{seen:?}");
    for place in ["of-file", "of-flag", "of-environment"] {
        ensure!(stage.path(place).join(".jobs").exists(), "{place} was not used");
    }
    stage.expect(64, &["--config", "bad.toml", "list"])?.names(&["bad.toml", "evrey"])
}
