//! The tool under trial, run once: killed at a chosen moment, or left to its end within a limit.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::faults::subject::signal;
use crate::wait;

/// No command may take longer, whatever happens to it.
const LIMIT: Duration = Duration::from_mins(1);

/// When the tool dies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Death {
    Never,
    /// Right after so many calls on other tasks.
    AfterCalls(u64),
    /// At some moment after its start.
    At(Duration),
    /// Its worker, at some moment; the command itself when there is none.
    Worker(Duration),
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) text: String,
    pub(crate) took: Duration,
}

impl Ended {
    pub(crate) fn success(&self) -> bool {
        self.status.success()
    }

    /// It, or the worker that it had started, died by `SIGKILL`.
    pub(crate) fn was_killed(&self) -> bool {
        self.status.signal() == Some(9) || self.text.contains("worker-died")
    }

    /// What no command may do, whatever it meets.
    pub(crate) fn misbehaves(&self) -> Option<String> {
        if self.text.contains("panicked") {
            return Some(format!("panic: {}", self.text.trim()));
        }
        match self.status.signal() {
            Some(9) | None => None,
            Some(signal) => Some(format!("died by signal {signal}: {}", self.text.trim())),
        }
    }

    /// A number in its JSON answer.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        let of_line = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get(key)?.as_u64();
        self.text.lines().find_map(of_line)
    }
}

/// The binary, and a folder for its store and its output.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) binary: PathBuf,
    pub(crate) folder: PathBuf,
}

/// The worker process of a command. Its other children are the program that it restores.
fn worker_of(command: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{command}/task/{command}/children")).ok()?;
    let works = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"__worker")
    };
    children.split_whitespace().filter_map(|word| word.parse().ok()).find(works)
}

impl Tool {
    pub(crate) fn new(binary: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Tool { binary: binary.to_owned(), folder: folder.to_owned() })
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// Starts a command.
    pub(crate) fn start(&self, arguments: &[&str], death: Death) -> Result<Child> {
        let file = File::create(self.folder.join("hdcr.out"))?;
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .arg("--json")
            .env("HDCR_STORE", self.store())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        if let Death::AfterCalls(calls) = death {
            command.env("HDCR_TRIAL_DIE_AFTER", calls.to_string());
        }
        command.spawn().with_context(|| format!("start {}", self.binary.display()))
    }

    /// Runs a command to its end, however it comes.
    pub(crate) fn run(&self, arguments: &[&str], death: Death) -> Result<Ended> {
        let began = Instant::now();
        let mut child = self.start(arguments, death)?;
        match death {
            Death::Never | Death::AfterCalls(_) => {}
            Death::At(moment) => {
                std::thread::sleep(moment);
                signal(child.id(), Signal::KILL);
            }
            Death::Worker(moment) => {
                std::thread::sleep(moment);
                signal(worker_of(child.id()).unwrap_or(child.id()), Signal::KILL);
            }
        }
        self.end_of(&mut child, arguments, began)
    }

    /// Waits for a command that was started.
    pub(crate) fn end_of(&self, child: &mut Child, arguments: &[&str], began: Instant) -> Result<Ended> {
        let status = wait::end_of(child, &format!("hdcr {}", arguments.join(" ")), LIMIT)?;
        let text = fs::read(self.folder.join("hdcr.out"))?;
        Ok(Ended { status, text: String::from_utf8_lossy(&text).into_owned(), took: began.elapsed() })
    }

    /// A command that nothing hinders.
    pub(crate) fn must(&self, arguments: &[&str]) -> Result<Ended> {
        let ended = self.run(arguments, Death::Never)?;
        anyhow::ensure!(ended.success(), "hdcr {}: {}", arguments.join(" "), ended.text.trim());
        Ok(ended)
    }
}
