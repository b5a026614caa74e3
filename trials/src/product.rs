//! The program under trial, as its user meets it: commands, exit codes, what they print.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::wait;

/// No command of the product may take longer.
const LIMIT: Duration = Duration::from_secs(90);

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) text: String,
    pub(crate) took: Duration,
}

/// The binary and the folder where its output is kept.
#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) binary: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) log: Vec<String>,
}

impl Product {
    /// Runs one command. Output goes to files: a detached program may keep it open.
    pub(crate) fn run(&mut self, arguments: &[&str]) -> Result<Answer> {
        let out = self.folder.join("hdcr.out");
        let file = File::create(&out).context("create the file for the output of hdcr")?;
        let began = Instant::now();
        let mut child = Command::new(&self.binary)
            .args(arguments)
            // A store of the trial's own: nothing of it is left on the machine, nothing of others is met.
            .env("HDCR_STORE", self.folder.join("store"))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .current_dir(&self.folder)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        let what = format!("hdcr {}", arguments.join(" "));
        let ended = wait::end_of(&mut child, &what, LIMIT);
        let took = began.elapsed();
        let text = fs::read(&out).context("read the output of hdcr")?;
        let text = String::from_utf8_lossy(&text).into_owned();
        self.log.push(format!("$ {what}  ({} ms)", took.as_millis()));
        self.log.extend(text.lines().map(str::to_owned));
        let status = ended?;
        self.log.push(format!("-> {status}"));
        Ok(Answer { success: status.success(), text, took })
    }

    /// A command that must succeed.
    pub(crate) fn must(&mut self, arguments: &[&str]) -> Result<Answer> {
        let answer = self.run(arguments)?;
        let verb = arguments.first().copied().unwrap_or_default();
        ensure!(answer.success, "hdcr {verb}: {}", brief(&answer.text));
        Ok(answer)
    }

    /// The processes of an image: others than were seen before the checkpoint when the guest made new ones meanwhile.
    pub(crate) fn pids(&mut self, image: &str) -> Result<Vec<u32>> {
        let answer = self.must(&["show", image, "--json"])?;
        let shown: serde_json::Value = serde_json::from_str(answer.text.trim()).context("the answer of hdcr show")?;
        let named = shown["processes_named"].as_array().context("hdcr show names no processes")?;
        Ok(named.iter().filter_map(|process| process["pid"].as_u64()?.try_into().ok()).collect())
    }

    /// Restores an image in the background; the pid of its root.
    pub(crate) fn restore(&mut self, image: &str) -> Result<(u32, Duration)> {
        let pidfile = self.folder.join("pidfile");
        if pidfile.exists() {
            fs::remove_file(&pidfile)?;
        }
        let path = utf8(&pidfile)?;
        // A guest may open its folder to everybody.
        let answer = self.must(&["restore", image, "--detach", "--pidfile", path, "--trust-store"])?;
        let text = fs::read_to_string(&pidfile).context("read the pidfile of hdcr restore")?;
        let pid = text.trim().parse().context("pid in the pidfile")?;
        Ok((pid, answer.took))
    }
}

/// A path of the trial's own is always text.
pub(crate) fn utf8(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) => Ok(text),
        None => bail!("path {} is not UTF-8", path.display()),
    }
}

/// The last lines that say something.
fn brief(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(3);
    lines.get(from..).unwrap_or_default().join(" / ")
}
