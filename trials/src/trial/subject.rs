//! A guest that runs: started, awaited, triggered, asked for its verdict, and removed to the last process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::guest::Guest;
use crate::trial::Plan;
use crate::wait;

/// Every process of a trial carries this variable with the trial's folder: so the last of them is found.
pub(crate) const MARK: &str = "HDCR_TRIAL";

/// No step of a guest may take longer.
const LIMIT: Duration = Duration::from_mins(1);

/// This kernel has not what the guest is about: a skip, not a failure.
#[derive(Debug)]
pub(crate) struct Lacking;

impl std::fmt::Display for Lacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the kernel lacks it")
    }
}

impl std::error::Error for Lacking {}

/// One running guest.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) folder: PathBuf,
    pub(crate) rounds: u32,
    pub(crate) pid: u32,
    /// Ours to reap, until it is restored.
    pub(crate) is_child: bool,
    pub(crate) refused: Option<String>,
    pub(crate) log: Vec<String>,
    /// Whom it runs as, when not as the runner.
    pub(crate) user: Option<u32>,
    /// Stands before its command, and becomes it.
    pub(crate) prefix: Vec<String>,
    guest: &'a Guest,
    binary: PathBuf,
    child: Option<Child>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(guest: &'a Guest, binary: &Path, folder: &Path, plan: &Plan) -> Result<Self> {
        Self::alone(guest, binary, folder, plan.rounds)
    }

    /// Without a plan: at most so many rounds.
    pub(crate) fn alone(guest: &'a Guest, binary: &Path, folder: &Path, rounds: u32) -> Result<Self> {
        // Guests may change, delete or be refused their program file: each has its own.
        let own = folder.join("guest");
        fs::copy(binary, &own).context("copy the guest")?;
        Ok(Subject {
            folder: folder.to_owned(),
            rounds: guest.rounds.min(rounds).max(1),
            pid: 0,
            is_child: true,
            refused: guest.refused.clone(),
            log: Vec::new(),
            user: None,
            prefix: Vec::new(),
            guest,
            binary: own,
            child: None,
        })
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let out = File::create(self.folder.join("guest.out"))?;
        if self.user.is_some() {
            std::os::unix::fs::fchown(&out, self.user, self.user)?;
        }
        let mut words = self.prefix.iter().map(OsStr::new).chain([self.binary.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
            .args(words)
            .arg(self.folder.join("s"))
            .arg(self.rounds.to_string())
            .current_dir(&self.folder)
            .env(MARK, &self.folder)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        // Busy: a child that another worker is just starting holds the copy open for writing until it executes.
        let child = wait::until("the guest's program file", LIMIT, || match command.spawn() {
            Ok(child) => Ok(Some(child)),
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => Ok(None),
            Err(error) => Err(error).context("start the guest"),
        })?;
        self.pid = child.id();
        self.child = Some(child);
        Ok(())
    }

    /// Entries of the witness that may differ, with the guest's own.
    pub(crate) fn excused(&self) -> Vec<String> {
        let mut words = self.guest.volatile.clone();
        if self.guest.session_outside {
            // The session and group of a starter outside the tree become those of the restorer.
            let outside = ["stat/pgrp", "stat/session", "stat/tty_nr", "stat/tpgid", "NSpgid", "NSsid"];
            words.extend(outside.map(str::to_owned));
        }
        words
    }

    pub(crate) fn await_ready(&mut self, round: u32) -> Result<()> {
        let wanted = format!("ready {round}\n");
        let status = self.folder.join("s");
        wait::until(&format!("round {round} of the guest"), LIMIT, || {
            self.must_be_alive()?;
            let now = fs::read_to_string(&status).unwrap_or_default();
            Ok((now == wanted).then_some(()))
        })
    }

    fn must_be_alive(&mut self) -> Result<()> {
        if let Some(verdict) = self.read_verdict() {
            ensure!(verdict == "pass", "guest: {verdict}");
        }
        if let Some(child) = self.child.as_mut().filter(|_| self.is_child)
            && let Some(status) = child.try_wait()?
        {
            // What a guest says when the kernel lacks what it is about.
            if status.code() == Some(77) {
                return Err(Lacking.into());
            }
            bail!("guest ended early: {status}");
        }
        Ok(())
    }

    fn read_verdict(&self) -> Option<String> {
        let text = fs::read_to_string(self.folder.join("s.result")).ok()?;
        Some(text.trim().to_owned())
    }

    /// Lets the guest go on; it may want to know how long it was away.
    pub(crate) fn go(&self, round: u32, away: Duration) -> Result<()> {
        let new = self.folder.join("go.new");
        fs::write(&new, away.as_millis().to_string()).context("write the trigger")?;
        fs::rename(new, self.folder.join(format!("s.go.{round}")))?;
        Ok(())
    }

    /// Waits until every one of these is gone; the root is reaped here, as it is our child.
    pub(crate) fn await_death(&mut self, pids: &[u32]) -> Result<()> {
        if self.is_child
            && let Some(child) = self.child.as_mut()
        {
            wait::end_of(child, "the killed guest", LIMIT)?;
        }
        pids.iter().try_for_each(|&pid| wait::gone(pid, LIMIT))
    }

    /// The guest's own judgement, and its end.
    pub(crate) fn verdict(&mut self) -> Result<()> {
        let verdict = wait::until("the verdict of the guest", LIMIT, || {
            let verdict = self.read_verdict();
            if verdict.is_none() {
                self.must_be_alive_or_judged()?;
            }
            Ok(verdict)
        })?;
        self.log.push(format!("guest: {verdict}"));
        ensure!(verdict == "pass", "guest: {verdict}");
        match self.child.as_mut().filter(|_| self.is_child) {
            Some(child) => {
                let status = wait::end_of(child, "the end of the guest", LIMIT)?;
                ensure!(status.success(), "guest passed but ended with {status}");
            }
            None => wait::gone(self.pid, LIMIT)?,
        }
        Ok(())
    }

    /// A guest that is gone without a verdict will never give one.
    fn must_be_alive_or_judged(&mut self) -> Result<()> {
        let here = Path::new("/proc").join(self.pid.to_string()).exists();
        let ended = match self.child.as_mut().filter(|_| self.is_child) {
            Some(child) => child.try_wait()?.map(|status| status.to_string()),
            None => (!here).then(|| "gone".to_owned()),
        };
        match ended {
            Some(how) if self.read_verdict().is_none() => bail!("guest left no verdict: {how}"),
            Some(_) | None => Ok(()),
        }
    }

    /// Kills what is left of the trial and reaps the child.
    pub(crate) fn clean(&mut self) -> Result<()> {
        let mark = format!("{MARK}={}", self.folder.display());
        let left = wait::until("the last process of the trial", LIMIT, || {
            let left = marked(&mark);
            for &pid in &left {
                if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                    // It may be gone by itself in the meantime.
                    kill_process(pid, Signal::KILL).ok();
                }
            }
            if let Some(child) = self.child.as_mut() {
                child.try_wait()?;
            }
            Ok(left.is_empty().then_some(()))
        });
        let text = fs::read(self.folder.join("guest.out")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        self.log.extend(text.lines().map(|line| format!("guest said: {line}")));
        left
    }
}

/// The processes of a trial, found by their environment. A zombie has none and is nobody's to kill.
pub(crate) fn marked(mark: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|&b| b == 0).any(|entry| entry == mark.as_bytes())
    })
    .collect()
}
