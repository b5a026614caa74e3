//! What the keeper of a job says and does when things go wrong.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::stage::{LIMIT, Stage, counting, needs_root, shell, signal, with_command};
use crate::wait;

/// A crash is told once, with what it costs; `--quiet` says nothing.
pub(crate) fn told(stage: &mut Stage<'_>) -> Result<()> {
    for quiet in [false, true] {
        let name = if quiet { "q" } else { "x" };
        fs::remove_file(stage.path("count")).ok();
        let script = counting("count", 60);
        let mut arguments = vec!["run", "--name", name, "--every", "1h", "--", "sh", "-c", &script];
        if quiet {
            arguments.insert(0, "--quiet");
        }
        let mut job = stage.start(&arguments, "says")?;
        stage.until_counted("count", 5)?;
        stage.expect(0, &["checkpoint", name])?;
        stage.expect(69, &["rm", &format!("{name}@1")])?.names(&["last-checkpoint", "--force"])?;
        stage.until_counted("count", 15)?;
        let program = with_command(&stage.folder, |command| command.starts_with("sh -c"));
        signal(*program.first().context("no program")?, Signal::KILL);
        let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
        ensure!(status == 7, "the job ended with {status}");
        stage.counted("count", 60)?;
        let says = stage.text("says");
        let told = says.matches("job x: killed by SIGKILL; rolled back to x@1 (").count();
        let cost = says.contains("of work repeated; restart 1 of 5)");
        ensure!(if quiet { says.is_empty() } else { told == 1 && cost }, "it says {says}");
    }
    // What roll-backs have kept goes with the job.
    let kept = stage.path("store/.rollback/x");
    fs::create_dir_all(&kept)?;
    fs::write(kept.join("newer-1-says"), "newer")?;
    for other in ["nobody", "q@9"] {
        stage.expect(69, &["rm", "x", other])?.names(&["no checkpoint"])?;
    }
    stage.expect(0, &["list", "x"])?.names(&["x@1"])?;
    stage.expect(0, &["rm", "x"])?.names(&["removed x@1"])?;
    ensure!(!kept.exists(), "what its roll-back has kept is still there");
    Ok(())
}

/// Somebody has the number of the program when the job is to go on: the keeper waits, and goes on when it is free.
pub(crate) fn waits(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let script = counting("count", 100);
    let run = ["run", "--name", "w", "--every", "1h", "--", "sh", "-c", &script];
    let mut job = stage.start(&run, "says")?;
    stage.until_counted("count", 5)?;
    let program = *with_command(&stage.folder, |command| command.starts_with("sh -c")).first().context("no program")?;
    stage.expect(0, &["checkpoint", "w", "--kill"])?;
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 75, "a job that is checkpointed and ended has status {status}");
    let mut holder = wait::until("a process with the number of the program", LIMIT, || {
        fs::write("/proc/sys/kernel/ns_last_pid", (program - 1).to_string())?;
        let mut holder = stage.spawn(stage.command("sleep").arg("1000"))?;
        if holder.id() == program {
            return Ok(Some(holder));
        }
        holder.kill()?;
        holder.wait()?;
        Ok(None)
    })?;
    let mut job = stage.start(&run, "says.2")?;
    stage.until_said("says.2", "job w waits up to 30 s for its process numbers")?;
    stage.until_said("says.2", "[pid-taken]")?;
    stage.expect(0, &["ps"])?.names(&["restoring"])?;
    holder.kill()?;
    holder.wait()?;
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 7, "the job ended with {status}: {}", stage.text("says.2"));
    stage.counted("count", 100)
}

/// Somebody has the address of the program when the job is to go on: the keeper waits, and goes on when it is free.
pub(crate) fn waits_for_address(stage: &mut Stage<'_>) -> Result<()> {
    let script = "import socket, time\ns = socket.create_server(('127.0.0.1', 0))\nport = s.getsockname()[1]\n\
                  open('port', 'w').write(str(port))\nf = open('count', 'w', buffering=1)\n\
                  for i in range(1, 101):\n    print(i, file=f)\n    time.sleep(0.02)\n\
                  raise SystemExit(7 if s.getsockname()[1] == port else 1)\n";
    fs::write(stage.path("server.py"), script)?;
    let run = ["run", "--name", "a", "--every", "1h", "--", "python3", "server.py"];
    let mut job = stage.start(&run, "says")?;
    stage.until_counted("count", 5)?;
    stage.expect(0, &["checkpoint", "a", "--kill"])?;
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 75, "a job that is checkpointed and ended has status {status}");
    let holder = TcpListener::bind(("127.0.0.1", stage.text("port").parse()?)).context("take the port")?;
    let mut job = stage.start(&run, "says.2")?;
    stage.until_said("says.2", "job a waits up to 130 s for its network addresses")?;
    stage.until_said("says.2", "[port-taken]")?;
    drop(holder);
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 7, "the job ended with {status}: {}", stage.text("says.2"));
    stage.counted("count", 100)
}
