//! What commands say: that a result was not written, and nothing that is not so.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use super::stage::{Stage, counting};

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
