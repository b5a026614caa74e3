//! A program in a certain state.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hdcr_engine::ids::Pid;

use crate::guests::{Link, Outcome, program};

/// A program in a certain state (`scenes.c`); our own child.
#[derive(Debug)]
pub(crate) struct Scene {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) pid: Pid,
    /// The number that it said: the process that came into the state last.
    pub(crate) said: i32,
}

impl Scene {
    pub(crate) fn start(name: &str) -> Outcome<Self> {
        static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        Self::of(program(&PROGRAM, "scenes", Link::Dynamic)?, name)
    }

    /// One that waits for its time to be up (`waits.c`).
    pub(crate) fn that_waits(kind: &str) -> Outcome<Self> {
        static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        Self::of(program(&PROGRAM, "waits", Link::Dynamic)?, kind)
    }

    fn of(program: &Path, name: &str) -> Outcome<Self> {
        let mut child = Command::new(program).arg(name).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let commands = child.stdin.take().ok_or("no stdin")?;
        let mut answers = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let said = line.strip_prefix("ready ").ok_or(line.clone())?.trim().parse()?;
        let pid = Pid(i32::try_from(child.id())?);
        Ok(Self { child, commands, answers, pid, said })
    }

    /// Gives it the line that it waits for.
    pub(crate) fn tell(&mut self) -> Outcome<()> {
        Ok(self.commands.write_all(b"\n")?)
    }

    /// Gives it a number.
    pub(crate) fn tell_number(&mut self, number: usize) -> Outcome<()> {
        Ok(writeln!(self.commands, "{number}")?)
    }

    /// It says that all is well, and ends.
    pub(crate) fn ends_well(mut self) -> Outcome<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line == "ok\n" { Ok(()) } else { Err(format!("scene: {line}").into()) }
    }

    /// Its state letter in `/proc`.
    pub(crate) fn state(&self) -> Outcome<char> {
        state_of(self.pid.0)
    }

    /// Waits until it is in a state.
    pub(crate) fn comes_to(&self, wanted: char) -> Outcome<()> {
        let by = Instant::now() + Duration::from_secs(10);
        while self.state()? != wanted {
            if Instant::now() > by {
                return Err(format!("state {} and not {wanted}", self.state()?).into());
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// The state letter of a process.
pub(crate) fn state_of(pid: i32) -> Outcome<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").ok_or("stat")?;
    Ok(rest.chars().next().ok_or("stat")?)
}

impl Drop for Scene {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
