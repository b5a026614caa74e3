//! Surroundings of a user that are not as they should be: what is said, and that it is said in one clear way.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::stage::{LIMIT, Stage, counting, needs_root};
use crate::product::utf8;
use crate::wait;

/// A usual configuration file that cannot be read is told of once, and hinders nobody; one that was asked for does.
pub(crate) fn settings(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    fs::create_dir_all(stage.path(".config/hdcr"))?;
    let usual = stage.path(".config/hdcr/config.toml");
    fs::write(&usual, "[run]\nevery = \"41s\"\n")?;
    fs::set_permissions(&usual, fs::Permissions::from_mode(0o0))?;
    stage.become_user()?;
    for arguments in [&["list"][..], &["ps"], &["run", "--name", "trouble-settings", "--", "true"]] {
        let said = stage.expect(0, arguments)?;
        ensure!(said.err.matches("config.toml").count() == 1, "{arguments:?} says {}", said.err);
        ensure!(said.err.starts_with("hdcr: warning: ") && !said.err.contains('\u{1b}'), "{}", said.err);
    }
    let said = stage.expect(0, &["list", "--json"])?;
    ensure!(said.err.is_empty(), "with --json: {}", said.err);
    stage.expect(71, &["--config", utf8(&usual)?, "list"])?.names(&["config.toml", "Permission denied"])?;
    Ok(())
}

/// What is not there is called so.
pub(crate) fn nothing(stage: &mut Stage<'_>) -> Result<()> {
    for command in ["check", "show", "verify", "restore"] {
        let said = stage.expect(69, &[command, "./nosuch"])?;
        ensure!(!said.err.contains("vanished"), "{command}: {}", said.err);
        said.names(&["nosuch", "no file or directory"])?;
    }
    stage.expect(69, &["check", "nosuch"])?.names(&["no process, no running job, no checkpoint"])?;
    stage.expect(69, &["check", "999999999"])?.names(&["there is no process 999999999"])?;
    fs::write(stage.path("text"), "no image")?;
    stage.expect(65, &["check", "./text"])?.names(&["/text"])
}

/// A path that the kernel cannot tell, and the limits of the shell that restores.
pub(crate) fn limits(stage: &mut Stage<'_>) -> Result<()> {
    let deep = "for (1..25) { mkdir \"d\" x 200; chdir \"d\" x 200 } open F, \">$ENV{HOME}/deep\"; close F; sleep 1000";
    let program = stage.program(&format!("exec perl -e '{deep}'"))?;
    wait::until("the deep directory", LIMIT, || Ok(stage.path("deep").exists().then_some(())))?;
    let pid = program.id().to_string();
    for arguments in [&["check", &pid][..], &["checkpoint", &pid, "-o", "image"]] {
        stage.expect(69, arguments)?.names(&["[path-too-long] path of cwd"])?;
    }
    stage.end_all()?;
    let program = stage.program(&counting("count", 100_000))?;
    stage.until_counted("count", 3)?;
    stage.expect(0, &["checkpoint", &program.id().to_string(), "--kill", "-o", "image"])?;
    wait::gone(program.id(), LIMIT)?;
    stage.end_all()?;
    let hdcr = utf8(stage.hdcr())?.to_owned();
    let mut command = stage.command("sh");
    command.args([
        "-c",
        &format!("ulimit -S -v 60000; ulimit -S -f 4; exec {hdcr} restore ./image --detach --json --stdio null"),
    ]);
    let said = stage.end_of(command, "hdcr restore under a limit")?;
    let told: Value = serde_json::from_str(said.err.trim())?;
    ensure!(said.status == 0 && told["pid"].is_u64(), "{}", said.both());
    let lines = fs::read_to_string(format!("/proc/{}/limits", told["pid"]))?;
    let own = lines.lines().find(|line| line.starts_with("Max address space")).unwrap_or_default();
    ensure!(own.contains("unlimited"), "the limit of the shell came into the program: {own}");
    stage.end_all()
}
