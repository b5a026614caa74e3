//! The job whose memory changes, and the links that its keeper makes.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::faults::dice::Dice;
use crate::modes::stage::{LIMIT, Stage, shell, signal, with_command};
use crate::wait;

/// Exit status of a job that was checkpointed and ended on request.
const PAUSED: i32 = 75;
const NAME: &str = "chain";

/// A job under a keeper.
#[derive(Debug)]
pub(super) struct Job {
    keeper: Child,
    folder: PathBuf,
}

/// How it runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) every: &'a str,
    /// A rule that is left out.
    pub(super) blind: Option<&'a str>,
}

/// A committed image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) increment: bool,
}

impl Job {
    /// Begins it, or goes on from its last link.
    pub(super) fn start(stage: &mut Stage<'_>, guest: &Path, way: &Way<'_>) -> Result<Self> {
        let folder = stage.folder.clone();
        fs::remove_file(folder.join("status.go.1")).ok();
        let guest = guest.canonicalize()?;
        let guest = guest.to_str().context("a path that is text")?;
        let status = folder.join("status");
        let status = status.to_str().context("a path that is text")?;
        // With rounds before the stop, and without.
        let options = ["run", "--name", NAME, "--every", way.every, "--increments", "on", "--keep", "60", "--"];
        let command: Vec<&str> = options.into_iter().chain([guest, status, "1"]).collect();
        let says = File::create(folder.join("says"))?;
        let mut keeper = stage.command(stage.hdcr());
        keeper
            .args(&command)
            .stdout(says.try_clone()?)
            .stderr(says)
            .envs(way.blind.map(|rule| ("HDCR_TRIAL_BLIND", rule)));
        let keeper = stage.spawn(&mut keeper)?;
        Ok(Self { keeper, folder })
    }

    fn images(&self) -> PathBuf {
        self.folder.join("store/jobs").join(NAME)
    }

    /// The number of the newest link; 0 when there is none.
    pub(super) fn newest(&self) -> u64 {
        let entries = fs::read_dir(self.images()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).max().unwrap_or(0)
    }

    /// Waits for a link of this number.
    pub(super) fn until(&mut self, stage: &Stage<'_>, number: u64) -> Result<()> {
        wait::until(&format!("link {number}"), LIMIT, || {
            if let Some(status) = self.keeper.try_wait()? {
                anyhow::bail!("the job ended with {}: {}", shell(status), stage.text("says").trim());
            }
            Ok((self.newest() >= number).then_some(()))
        })
    }

    /// Kills the process that makes the images, at a random moment of its work; false when it ends by itself meanwhile.
    pub(super) fn kill_the_maker(&self, dice: &mut Dice) -> Result<bool> {
        let makers = || with_command(&self.folder, |line| line.ends_with(" __worker"));
        // After a kill the next one has to begin first.
        wait::until("somebody who makes images", LIMIT, || Ok((!makers().is_empty()).then_some(())))?;
        let moment = Instant::now() + Duration::from_micros(dice.below(12_000));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        let makers = makers();
        for maker in &makers {
            signal(*maker, Signal::KILL);
        }
        // Else the next checkpoint that is asked for may be given to one that still dies of it.
        makers.iter().try_for_each(|maker| wait::gone(*maker, LIMIT))?;
        ensure!(makers.len() <= 1, "{} workers at once", makers.len());
        Ok(!makers.is_empty())
    }

    /// Fills the disk of the store, lets some links fail, and makes room again. Who makes them lives on.
    pub(super) fn fill_the_disk(&self, stage: &Stage<'_>, dice: &mut Dice) -> Result<()> {
        let ballast = self.folder.join("store/ballast");
        let mut file = File::create(&ballast)?;
        let piece = vec![1; 1 << 16];
        while file.write_all(&piece).is_ok() {}
        let failed = stage.text("says").matches("without a new checkpoint").count();
        let until = Instant::now() + Duration::from_millis(50 + dice.below(400));
        wait::until("a link that fails, or time", LIMIT, || {
            let more = stage.text("says").matches("without a new checkpoint").count() > failed;
            Ok((more || Instant::now() > until).then_some(()))
        })?;
        Ok(fs::remove_file(&ballast)?)
    }

    /// One more link, then the program is killed.
    pub(super) fn pause(&mut self, stage: &mut Stage<'_>) -> Result<()> {
        stage.expect(0, &["checkpoint", NAME, "--kill"])?;
        let status = shell(wait::end_of(&mut self.keeper, "the keeper", LIMIT)?);
        ensure!(status == PAUSED, "the job ended with {status}: {}", stage.text("says").trim());
        Ok(())
    }

    /// Restores a link; the guest then checks its memory, and ends with 0 when no word is wrong.
    pub(super) fn try_link(&self, stage: &mut Stage<'_>, number: u64) -> Result<()> {
        let (go, result) = (self.folder.join("status.go.1"), self.folder.join("status.result"));
        fs::remove_file(&result).ok();
        fs::write(&go, "0")?;
        let name = format!("{NAME}@{number}");
        stage.expect(0, &["verify", &name])?;
        stage.expect(0, &["restore", &name]).with_context(|| format!("link {number}"))?;
        let verdict = fs::read_to_string(&result)?;
        ensure!(verdict.starts_with("pass"), "link {number}: {}", verdict.trim());
        Ok(fs::remove_file(&go)?)
    }
}

/// All links that there are, oldest first.
pub(super) fn links(stage: &mut Stage<'_>) -> Result<Vec<Link>> {
    let said = stage.expect(0, &["list", NAME, "--json"])?;
    let told: Value = serde_json::from_str(said.out.trim()).context("no JSON")?;
    let all = told["checkpoints"].as_array().with_context(|| format!("no checkpoints in {told}"))?;
    let link = |entry: &Value| {
        let name = entry["snapshot"].as_str().unwrap_or_default();
        let number = name.rsplit_once('@').and_then(|(_, number)| number.parse().ok());
        let number = number.with_context(|| format!("no number in {entry}"))?;
        Ok(Link { number, increment: entry["base"].is_string() })
    };
    all.iter().map(link).collect()
}

/// Removes a link: the others need nothing of it.
pub(super) fn remove(stage: &mut Stage<'_>, number: u64) -> Result<()> {
    stage.expect(0, &["rm", &format!("{NAME}@{number}")])?;
    Ok(())
}
