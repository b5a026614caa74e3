//! What commands say: that a result was not written, and nothing that is not so.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use super::stage::{LIMIT, Stage, counting, signal};
use crate::wait;

/// A result that cannot be written is a failure of the command; a reader that has gone away is none.
pub(crate) fn unwritable(stage: &mut Stage<'_>) -> Result<()> {
    let program = stage.program(&counting("count", 100_000))?;
    stage.until_counted("count", 3)?;
    let pid = program.id().to_string();
    stage.expect(0, &["checkpoint", &pid, "-o", "image"])?;
    let commands: [&[&str]; 10] = [
        &["list"],
        &["list", "--json"],
        &["ps"],
        &["doctor"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
        &["show", "./image"],
        &["verify", "./image", "--quiet"],
        &["checkpoint", &pid, "-o", "another"],
    ];
    for arguments in commands {
        let mut full = stage.command("sh");
        full.args(["-c", "exec \"$@\" > /dev/full", "sh"]).arg(stage.hdcr()).args(arguments);
        let said = stage.end_of(full, &format!("hdcr {} > /dev/full", arguments.join(" ")))?;
        ensure!(said.status == 71, "{arguments:?} ended with {}: {}", said.status, said.both());
        said.names(&["standard output", "No space left", "output"])?;
    }
    ensure!(stage.path("another").exists(), "the checkpoint itself was made");
    let mut closed = stage.command("bash");
    closed.args(["-c", "\"$@\" | true; exit ${PIPESTATUS[0]}", "bash"]).arg(stage.hdcr()).arg("doctor");
    let said = stage.end_of(closed, "hdcr doctor | true")?;
    ensure!([0, 69].contains(&said.status) && !said.both().contains("standard output"), "{said:?}");
    stage.end_all()
}

/// Twice `-v` tells the phases with their durations, and what was chosen; also what a worker does. How many processes
/// there are is chance: the script starts one for each of its sleeps.
pub(crate) fn verbose(stage: &mut Stage<'_>) -> Result<()> {
    let program = stage.program(&counting("count", 100_000))?;
    stage.until_counted("count", 3)?;
    let pid = program.id().to_string();
    let said = stage.expect(0, &["checkpoint", &pid, "-o", "image", "-v"])?;
    ensure!(!said.err.contains(" ms)"), "-v tells phases: {}", said.err);
    let said = stage.expect(0, &["checkpoint", &pid, "-o", "image.2", "-vv"])?;
    for words in ["looked at ", "stopped (", "read (", "let go (", "written and durable", "read in the stop"] {
        ensure!(said.err.contains(words), "-vv does not tell {words}: {}", said.err);
    }
    stage.end_all()?;
    let said = stage.expect(0, &["restore", "./image.2", "--detach", "--stdio", "null", "-vv"])?;
    for words in ["image read: ", "files found and opened (", "memory mapped and filled (", "the tree let go ("] {
        ensure!(said.err.contains(words), "-vv does not tell {words}: {}", said.err);
    }
    stage.end_all()
}

/// What came to nothing leaves nothing in the store.
pub(crate) fn nothing_left(stage: &mut Stage<'_>) -> Result<()> {
    stage.expect(0, &["run", "--name", "ended", "--", "true"])?;
    stage.expect(3, &["run", "--", "sh", "-c", "exit 3"])?;
    stage.expect(127, &["run", "--name", "none", "--", "./not-there"])?;
    stage.expect(64, &["run", "--name", "wrong", "--every", "1ms", "--", "true"])?;
    let mut job = stage.start(&["run", "--name", "asked", "--every", "1h", "--", "sleep", "1000"], "says")?;
    signal(stage.only("sleep 1000")?, Signal::TERM);
    wait::end_of(&mut job, "the job", LIMIT)?;
    let mut job = stage.start(&["run", "--name", "orphan", "--every", "1h", "--", "sleep", "1001"], "says")?;
    stage.only("sleep 1001")?;
    wait::until("the record", LIMIT, || Ok(stage.path("store/.jobs/orphan.json").exists().then_some(())))?;
    signal(job.id(), Signal::KILL);
    wait::end_of(&mut job, "the keeper", LIMIT)?;
    stage.expect(0, &["stop", "orphan"])?;
    // One whose only other end of a pipe lies outside of its tree.
    stage.program("(exec sleep 1002 3>&1 >/dev/null 2>&1) | (exec sleep 1003); :")?;
    let pid = stage.only("sleep 1002")?.to_string();
    stage.only("sleep 1003")?;
    stage.expect(69, &["checkpoint", &pid])?.names(&["outside-end"])?;
    for place in ["store/.jobs", "store/jobs"] {
        let left: Vec<_> = fs::read_dir(stage.path(place)).into_iter().flatten().flatten().collect();
        ensure!(left.is_empty(), "{place}: {left:?}");
    }
    // With a checkpoint the record is needed.
    let mut job = stage.start(&["run", "--name", "kept", "--every", "1h", "--", "sleep", "1004"], "says")?;
    stage.only("sleep 1004")?;
    stage.expect(0, &["checkpoint", "kept", "--kill"])?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    ensure!(stage.path("store/.jobs/kept.json").exists(), "the job cannot go on");
    stage.end_all()
}

/// A restore that is refused because another one of the same job is at work has touched no file, and speaks of none.
pub(crate) fn refused_beside(stage: &mut Stage<'_>) -> Result<()> {
    let program = stage.program(&counting("count", 100_000))?;
    stage.until_counted("count", 3)?;
    let said = stage.expect(0, &["checkpoint", &program.id().to_string(), "--json"])?;
    let value: serde_json::Value = serde_json::from_str(&said.out)?;
    let snapshot = value["snapshot"].as_str().context("snapshot")?.to_owned();
    let name = snapshot.split('@').next().context("a name")?.to_owned();
    stage.end_all()?;
    let journal = stage.path("store/.rollback").join(&name);
    fs::create_dir_all(&journal)?;
    let other = fs::File::open(&journal)?;
    flock(&other, FlockOperation::LockExclusive)?;
    let said = stage.expect(69, &["restore", &name])?;
    said.names(&["restore-runs"])?;
    ensure!(!said.both().contains("put back"), "nothing was touched: {}", said.both());
    Ok(())
}
