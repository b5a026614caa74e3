//! A job in a control group with little memory: its program is the last that is killed for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::stage::{LIMIT, Lacking, Stage, needs_root, shell, signal};
use crate::product::utf8;
use crate::wait;

/// A memory group with a limit, removed at the end.
struct Group(PathBuf);

impl Group {
    fn make(limit: u64) -> Result<Self> {
        let own = format!("hdcr-trial-{}", std::process::id());
        for (root, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let group = Self(Path::new(root).join(&own));
            let made = Path::new(root).join("cgroup.procs").exists() && fs::create_dir(&group.0).is_ok();
            if made && fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Ok(group);
            }
        }
        Err(Lacking("no memory group can be made").into())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

fn score(pid: u32) -> Result<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).context("oom_score_adj")?;
    Ok(text.trim().parse()?)
}

/// Who takes checkpoints would be killed first, keeper and program not; a program that is killed for want of memory is told of
/// as such.
pub(crate) fn starved(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let group = Group::make(768 << 20)?;
    let script = "use Time::HiRes; $| = 1; $x = \"x\" x (32 << 20); open F, \">lives\"; F->autoflush; while (1) { \
        print F \"$$\\n\"; select undef, undef, undef, 0.02; if (-e \"eat\") { $y .= \"y\" x (64 << 20) } }";
    fs::write(stage.path("eater.pl"), script)?;
    let hdcr = utf8(stage.hdcr())?.to_owned();
    let run = format!(
        "echo $$ > {}/cgroup.procs; exec {hdcr} run --name starved --every 100ms --increments on --restarts 2 -- perl eater.pl",
        group.0.display()
    );
    let file = fs::File::create(stage.path("says"))?;
    let mut command = stage.command("sh");
    command.args(["-c", &run]).stdout(file.try_clone()?).stderr(file);
    let mut job = stage.spawn(&mut command)?;
    let result = watch(stage, job.id());
    if result.is_err() {
        job.kill()?;
        job.wait()?;
        stage.end_all()?;
        return result;
    }
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 137, "{status}: {}", stage.text("says"));
    let says = stage.text("says");
    ensure!(says.matches("killed by SIGKILL, out of memory").count() == 2, "{says}");
    Ok(())
}

fn watch(stage: &mut Stage<'_>, keeper: u32) -> Result<()> {
    stage.until_counted("lives", 3)?;
    let program = stage.only("perl eater.pl")?;
    let children = || -> Result<Vec<u32>> {
        let text = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
        Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid != program).collect())
    };
    wait::until("a worker that goes first", LIMIT, || {
        Ok(children()?.iter().any(|pid| score(*pid).is_ok_and(|score| score == 1000)).then_some(()))
    })?;
    stage.expect(0, &["checkpoint", "starved"])?;
    ensure!(score(keeper)? == 0 && score(program)? == 0, "keeper or program goes first");
    signal(program, Signal::KILL);
    stage.until_said("says", "killed by SIGKILL; rolled back")?;
    ensure!(score(stage.only("perl eater.pl")?)? == 0, "the restored program goes first");
    fs::write(stage.path("eat"), "")?;
    Ok(())
}
