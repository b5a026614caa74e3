//! Guests of the trials: compiled once, spoken to through pipes, gone when dropped.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use hdcr_engine::ids::Pid;

/// Whatever goes wrong in a trial.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// How a guest is linked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Link {
    Dynamic,
    Static,
}

/// Compiles a guest of this folder, once a test program.
pub(crate) fn program(
    cell: &'static OnceLock<Result<PathBuf, String>>,
    name: &str,
    link: Link,
) -> Outcome<&'static Path> {
    match cell.get_or_init(|| build(name, link).map_err(|error| error.to_string())) {
        Ok(path) => Ok(path),
        Err(text) => Err(text.clone().into()),
    }
}

fn build(name: &str, link: Link) -> Outcome<PathBuf> {
    // A guest of `cargo xtask kmod test` has no compiler, but the programs.
    let ready = Path::new("/guests").join(name);
    if ready.exists() {
        return Ok(ready);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests").join(name).with_extension("c");
    // Test programs run at the same time, so it appears under its name only when it is whole.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let unfinished = folder.join(format!("{name}-{}-{link:?}", std::process::id()));
    let linked = match link {
        Link::Dynamic => "-no-pie",
        Link::Static => "-static",
    };
    let flags = ["-O1", linked, "-pthread", "-o"];
    let status = Command::new("cc").args(flags).arg(&unfinished).arg(source).status()?;
    if !status.success() {
        return Err("cc failed on the guest".into());
    }
    let program = folder.join(format!("{name}-{link:?}-{}", env!("CARGO_CRATE_NAME")));
    std::fs::rename(unfinished, &program)?;
    Ok(program)
}

/// A running guest: the feeder (our child) and its target.
#[derive(Debug)]
pub(crate) struct Guest {
    feeder: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) target: Pid,
}

impl Guest {
    /// Starts one with a thread for each letter of `kinds`.
    pub(crate) fn start(kinds: &str, linked: Link) -> Outcome<Self> {
        static DYNAMIC: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        static STATIC: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let cell = match linked {
            Link::Dynamic => &DYNAMIC,
            Link::Static => &STATIC,
        };
        let mut feeder = Command::new(program(cell, "guest", linked)?)
            .arg(kinds)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = feeder.stdin.take().ok_or("no stdin")?;
        let answers = BufReader::new(feeder.stdout.take().ok_or("no stdout")?);
        let mut guest = Self { feeder, commands, answers, target: Pid(0) };
        let line = guest.line()?;
        let pid = line.strip_prefix("ready ").ok_or(line.clone())?;
        guest.target = Pid(pid.trim().parse()?);
        Ok(guest)
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line)
    }

    fn ask(&mut self, command: &str, expected: &str) -> Outcome<()> {
        self.commands.write_all(command.as_bytes())?;
        let line = self.line()?;
        if line.starts_with(expected) { Ok(()) } else { Err(format!("guest: {line}").into()) }
    }

    /// Every thread makes turns, and none has found an error.
    pub(crate) fn works(&mut self) -> Outcome<()> {
        self.ask("p", "turns stuck -1 status 0 errors 0")
    }

    /// It ends by itself with all checks passed.
    pub(crate) fn end(mut self) -> Outcome<()> {
        self.ask("q", "end 1 status 0 errors 0")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The target dies with the feeder (parent-death signal).
        drop(self.feeder.kill());
        drop(self.feeder.wait());
    }
}
