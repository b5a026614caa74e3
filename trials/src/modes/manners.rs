//! What commands say while one waits for them, and what they say to those who have mistyped.

use anyhow::{Result, ensure};

use super::stage::{LIMIT, Stage, shell, with_command};
use crate::wait;

/// `check --wait` is asked of a job that is still to begin; a name that stays unknown is refused when its time is over.
pub(crate) fn check_waits(stage: &mut Stage<'_>) -> Result<()> {
    let mut check = stage.start(&["check", "later", "--wait", "50s"], "check")?;
    let command = format!("{} check later", stage.hdcr().display());
    stage.only(&command)?;
    stage.start(&["run", "--name", "later", "--every", "1h", "--", "sleep", "1000"], "says")?;
    let status = shell(wait::end_of(&mut check, "check", LIMIT)?);
    let said = stage.text("check");
    ensure!(status == 0 && said.contains("checkpoint of 1 process is possible"), "{status}: {said}");
    stage.expect(69, &["check", "never", "--wait", "100ms"])?.names(&["never is no process", "no-such-checkpoint"])?;
    stage.expect(69, &["check", "999999999", "--wait", "50s"])?.names(&["no-such-process"])?;
    stage.expect(0, &["stop", "later"])?;
    stage.end_all()
}

/// What is merely slow says what it waits for: another hdcr, a thread that does not stop; once, on standard error, and
/// neither to programs nor to who wants to hear nothing.
pub(crate) fn slow(stage: &mut Stage<'_>) -> Result<()> {
    // A parent sleeps in the kernel until its vfork child has gone.
    stage.program("exec perl -e 'syscall(58) or sleep 1000; sleep 1000'")?;
    let parent = wait::until("a vfork child", LIMIT, || {
        let all = with_command(&stage.folder, |command| command.starts_with("perl"));
        let parent = all.iter().copied().find(|pid| state(*pid) == Some('D'));
        Ok(parent.filter(|_| all.len() == 2))
    })?;
    let pid = parent.to_string();
    let given_up = ["checkpoint", &pid, "-o", "image", "--timeout", "4s"];
    let said = stage.expect(71, &given_up)?;
    let words =
        format!("not done after 3.0 s: stopping the program: thread {pid} of process {pid} (perl) does not stop");
    ensure!(said.err.matches(&words).count() == 1, "{}", said.err);
    said.names(&["[late]"])?;
    let mut quiet = Vec::new();
    for (option, says) in [("--json", "json"), ("--quiet", "quiet")] {
        quiet.push((stage.start(&[&given_up[..], &[option]].concat(), says)?, says));
    }
    for (mut child, says) in quiet {
        wait::end_of(&mut child, says, LIMIT)?;
        ensure!(!stage.text(says).contains("not done after"), "{}", stage.text(says));
    }
    stage.end_all()?;
    // A job whose checkpoints take longer than the time between them.
    let script = "open F, q(/dev/urandom); read F, $all, 48 << 20; sleep 1000";
    let options =
        ["run", "-v", "--name", "large", "--every", "10ms", "--increments", "off", "--", "perl", "-e", script];
    stage.start(&options, "says")?;
    stage.until_said("says", "longer than the 10.0 ms between two")?;
    let said = stage.expect(0, &["ps"])?;
    said.names(&["large: the last checkpoint took ", "longer than the 10.0 ms between two"])?;
    let told = stage.text("says").matches("longer than").count();
    ensure!(told == 1, "told {told} times: {}", stage.text("says"));
    stage.expect(0, &["stop", "large"])?;
    stage.end_all()
}

/// The letter of `/proc/PID/stat`.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim().chars().next()
}

/// Who has mistyped is told what may be meant, and what to write instead.
pub(crate) fn mistyped(stage: &mut Stage<'_>) -> Result<()> {
    stage.start(&["run", "--name", "simulation", "--every", "1h", "--", "sleep", "1000"], "says")?;
    stage.only("sleep 1000")?;
    for command in ["checkpoint", "stop", "check"] {
        stage.expect(69, &[command, "simulatoin"])?.names(&["did you mean simulation?", "hdcr ps"])?;
    }
    stage.expect(0, &["checkpoint", "simulation"])?;
    stage.expect(69, &["checkpoint", "simulation@1"])?.names(&["a job is named without it: simulation"])?;
    stage.expect(0, &["checkpoint", "simulation", "--kill"])?;
    let gone = || Ok(with_command(&stage.folder, |_| true).is_empty().then_some(()));
    wait::until("the end of the job", LIMIT, gone)?;
    stage
        .expect(69, &["checkpoint", "simulation"])?
        .names(&["the newest is simulation@2", "hdcr restore simulation"])?;
    for command in ["show", "verify", "restore", "rm", "list"] {
        stage.expect(69, &[command, "simulaton"])?.names(&["did you mean simulation?", "hdcr list"])?;
        if command != "list" {
            let said = stage.expect(69, &[command, "simulation@7"])?;
            said.names(&["there are simulation@2, simulation@1", "no-such-checkpoint"])?;
            stage.expect(64, &[command, "4711"])?.names(&["4711 is the number of a process", "./4711"])?;
        }
    }
    let program = ["-- before the program: `hdcr run [OPTIONS] -- sleep ...`", "[usage]"];
    stage.expect(64, &["run", "sleep", "10"])?.names(&program)?;
    stage.expect(64, &["run", "--name", "n", "sleep", "10"])?.names(&program)?;
    for (variable, value) in
        [("HDCR_EVERY", "soon"), ("HDCR_LAZY", "perhaps"), ("HDCR_KEEP", "0"), ("HDCR_RESTARTS", "-1")]
    {
        let mut command = stage.command(stage.hdcr());
        command.args(["run", "--", "true"]).env(variable, value);
        let said = stage.end_of(command, &format!("{variable}={value} hdcr run"))?;
        ensure!(said.status == 64, "{}", said.both());
        said.names(&[value, &format!("environment variable {variable}")])?;
    }
    // The shell that starts the command is in the tree.
    for command in ["checkpoint", "check"] {
        let mut inside = stage.command("sh");
        inside.args(["-c", "\"$0\" \"$1\" $$; status=$?; exit $status"]).arg(stage.hdcr()).arg(command);
        let said = stage.end_of(inside, &format!("hdcr {command} $$"))?;
        ensure!(said.status == 69, "{}", said.both());
        said.names(&["holds-caller", "from outside"])?;
    }
    stage.end_all()
}

/// Streams that are full or closed, surroundings with nothing in them: a clear word or none, and never a fault of hdcr.
pub(crate) fn bare(stage: &mut Stage<'_>) -> Result<()> {
    let with_shell = |stage: &mut Stage<'_>, script: &str| {
        let mut shell = stage.command("bash");
        shell.args(["-c", script, "bash"]).arg(stage.hdcr()).env_remove("HDCR_STORE").env_remove("HOME");
        stage.end_of(shell, script)
    };
    for (script, status) in [
        ("\"$1\" frobnicate 2>/dev/full", 64),
        ("\"$1\" --config nowhere list 2>/dev/full", 64),
        ("\"$1\" --store s stop nobody 2>/dev/full >/dev/full", 69),
        ("\"$1\" --store s run -vv --name full -- sh -c 'exit 5' 2>/dev/full", 5),
        ("\"$1\" --store s list <&- >&- 2>&-", 0),
        ("\"$1\" --store s run --name closed -- sh -c 'exit 5' <&- >&- 2>&-", 5),
        ("set -o pipefail; \"$1\" --store s doctor -vv | head -1", 0),
    ] {
        let said = with_shell(stage, script)?;
        ensure!(said.status == status, "{script} ended with {}: {}", said.status, said.both());
    }
    stage.become_user()?;
    for script in
        ["\"$1\" ps", "\"$1\" check $PPID --json; true", "XDG_RUNTIME_DIR=/root \"$1\" ps", "\"$1\" doctor; true"]
    {
        let said = with_shell(stage, script)?;
        ensure!(said.status == 0 && !said.both().contains("HOME"), "{script}: {}", said.both());
    }
    for script in ["\"$1\" list", "\"$1\" run -- true"] {
        let said = with_shell(stage, script)?;
        ensure!(said.status == 64, "{}", said.both());
        said.names(&["neither HOME nor XDG_STATE_HOME is set", "--store"])?;
    }
    let said = with_shell(stage, "\"$1\" --store /proc/none run -- true")?;
    ensure!(said.status == 71, "{}", said.both());
    said.names(&["/proc/none", "name a store that you can write", "[system]"])?;
    ensure!(!said.both().contains("os error"), "{}", said.both());
    stage.end_all()
}
