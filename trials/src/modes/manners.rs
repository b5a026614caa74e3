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
