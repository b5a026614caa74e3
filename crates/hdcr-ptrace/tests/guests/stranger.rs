//! Targets of other runtimes: they are asked by a line and answer by one when all their threads have gone on.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::guests::Outcome;

/// A running program of another runtime.
#[derive(Debug)]
pub(crate) struct Stranger {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// The runtimes, and how each is asked whether it is there.
pub(crate) const RUNTIMES: [(&str, &str); 2] = [("go", "version"), ("java", "-version")];

/// Whether a runtime is installed.
pub(crate) fn there(runtime: &str, question: &str) -> bool {
    let asked = Command::new(runtime).arg(question).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

impl Stranger {
    /// Starts the program of a runtime with so many threads beside those of the runtime itself.
    pub(crate) fn start(runtime: &str, threads: u32) -> Outcome<Self> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests");
        let mut command = if runtime == "go" {
            let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("count-go");
            let built =
                Command::new("go").arg("build").arg("-o").arg(&program).arg(sources.join("count.go")).status()?;
            if !built.success() {
                return Err("go build failed".into());
            }
            Command::new(program)
        } else {
            let mut java = Command::new("java");
            java.arg(sources.join("Count.java"));
            java
        };
        let mut child = command.arg(threads.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let commands = child.stdin.take().ok_or("no stdin")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut stranger = Self { child, commands, answers };
        stranger.answer("ready")?;
        Ok(stranger)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answer(&mut self, expected: &str) -> Outcome<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.trim_end() == expected { Ok(()) } else { Err(format!("it says {line:?}").into()) }
    }

    /// All its threads go on.
    pub(crate) fn works(&mut self) -> Outcome<()> {
        self.commands.write_all(b"\n")?;
        self.answer("works")
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
