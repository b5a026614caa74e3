//! Paths that are no text.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::stage::{LIMIT, Said, Stage, counting};
use crate::wait;

/// A store, and an image, whose path is no UTF-8 work as any other; objects for programs show it as well as they can.
pub(crate) fn store(stage: &mut Stage<'_>) -> Result<()> {
    let odd = stage.path("").join(OsStr::from_bytes(b"st\xffore"));
    let command = |stage: &Stage<'_>, arguments: &[&str]| {
        let mut command = stage.command(stage.hdcr());
        command.env("HDCR_STORE", &odd).args(arguments);
        command
    };
    let good = |stage: &mut Stage<'_>, command: Command, what: &str| -> Result<Said> {
        let said = stage.end_of(command, what)?;
        ensure!(said.status == 0, "{what}: {}", said.both());
        Ok(said)
    };
    let mut job =
        command(stage, &["run", "--name", "odd", "--every", "100ms", "--", "sh", "-c", &counting("count", 400)]);
    let mut job = stage.spawn(&mut job)?;
    stage.until_counted("count", 30)?;
    let now = command(stage, &["ps", "--json"]);
    let said = good(stage, now, "ps")?;
    let told: serde_json::Value = serde_json::from_str(&said.out)?;
    // Jobs of others may run beside it.
    let own = told["jobs"].as_array().and_then(|jobs| jobs.iter().find(|job| job["name"] == "odd").cloned());
    let own = own.with_context(|| told.to_string())?;
    let now = command(stage, &["checkpoint", "odd", "--json"]);
    good(stage, now, "checkpoint")?;
    let pid = own["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("pid")?;
    super::stage::signal(pid, rustix::process::Signal::KILL);
    stage.until_counted("count", 60)?;
    let now = command(stage, &["stop", "odd"]);
    good(stage, now, "stop")?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    let now = command(stage, &["list", "odd", "--json"]);
    let said = good(stage, now, "list")?;
    let told: serde_json::Value = serde_json::from_str(&said.out)?;
    ensure!(told["store"].as_str().is_some_and(|store| store.contains('\u{fffd}')), "{told}");
    let restore = command(stage, &["restore", "odd", "--detach", "--stdio", "null"]);
    good(stage, restore, "restore")?;
    stage.end_all()
}
