//! What commands say while one waits for them, and what they say to those who have mistyped.

use anyhow::{Result, ensure};

use super::stage::{LIMIT, Stage, shell};
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
