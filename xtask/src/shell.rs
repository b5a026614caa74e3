//! Running other programs and printing: the edge of the tasks.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A command that has ended has nothing more to say when it has been silent for so long.
const SILENCE: Duration = Duration::from_secs(2);

/// Where commands run and where they build.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) root: PathBuf,
    target: PathBuf,
}

impl Shell {
    pub(crate) fn new(root: &Path, target: &Path) -> Self {
        Shell { root: root.to_owned(), target: root.join(target) }
    }

    /// Where cargo builds.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target).stdin(Stdio::null());
        command
    }

    /// Runs a command with its output shown; true when it succeeded.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<bool> {
        let status = self.command(program, arguments).status().with_context(|| format!("start {program}"))?;
        Ok(status.success())
    }

    /// Runs a command, shows each line of its output and hands it to `see`. When the command has ended and says nothing more
    /// it is over, though somebody that a failed test has left behind may hold its output open.
    pub(crate) fn watch(&self, program: &str, arguments: &[&str], mut see: impl FnMut(&str)) -> Result<bool> {
        let mut child = self
            .command(program, arguments)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let out = child.stdout.take().context("the output of a child")?;
        let (send, lines) = channel();
        thread::spawn(move || BufReader::new(out).lines().try_for_each(|line| send.send(line)));
        loop {
            match lines.recv_timeout(SILENCE) {
                Ok(line) => {
                    let line = line?;
                    say(&line)?;
                    see(&line);
                }
                Err(RecvTimeoutError::Timeout) if child.try_wait()?.is_none() => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(child.wait()?.success())
    }

    /// What a command prints, with nothing shown.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let out = self.command(program, arguments).output().with_context(|| format!("start {program}"))?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Builds what the trials need: the runner, and the product as users get it.
    pub(crate) fn build(&self) -> Result<bool> {
        if !self.target.join("release/hdcr").exists() {
            writeln!(io::stderr(), "building hdcr and its trials; the first time this takes some minutes ...")?;
        }
        Ok(self.build_runner()? && self.build_product()?)
    }

    /// Builds the program, the library and its examples. In one call: what cargo takes together decides with which
    /// features it builds what they share, and calls that differ make each other's work out of date.
    pub(crate) fn build_product(&self) -> Result<bool> {
        let words =
            ["build", "--release", "--package", "hdcr-cli", "--package", "hdcr", "--lib", "--bins", "--examples"];
        self.run("cargo", &words)
    }

    fn build_runner(&self) -> Result<bool> {
        self.run("cargo", &["build", "--package", "trials"])
    }

    /// The runner's binary and the options that tell it where things lie.
    pub(crate) fn runner(&self) -> (String, Vec<String>) {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let options = [
            ("--hdcr", self.target.join("release/hdcr")),
            ("--sources", self.root.join("trials")),
            ("--build", self.target.join("zoo")),
        ];
        let options = options.into_iter().flat_map(|(name, path)| [name.to_owned(), text(path)]);
        (text(self.target.join("debug/trials")), options.collect())
    }

    /// The Debian packages that programs picked by lot need.
    pub(crate) fn lot_packages(&self, names: &[&str]) -> Result<Vec<String>> {
        let (runner, options) = self.runner();
        let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
        all.push("lot-packages");
        all.extend(names);
        Ok(self.output(&runner, &all)?.lines().map(str::to_owned).collect())
    }

    /// Builds, then runs the trials with these arguments.
    pub(crate) fn trials(&self, arguments: &[&str]) -> Result<bool> {
        // What only asks how the runner is called needs nothing else.
        let asks = arguments.iter().any(|word| matches!(*word, "--help" | "-h"));
        ensure!(if asks { self.build_runner()? } else { self.build()? }, "the build failed");
        let (runner, options) = self.runner();
        let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
        all.extend(arguments);
        self.run(&runner, &all)
    }
}

/// One line for the user.
pub(crate) fn say(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}")?;
    Ok(())
}

/// The error that ends a task.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nothing is left to do when standard error is closed.
    writeln!(io::stderr(), "xtask: {error:#}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_left_behind_with_the_output_is_not_waited_for() {
        let shell = Shell::new(Path::new("/"), Path::new("target"));
        let mut seen = Vec::new();
        let script = "sleep 600 & echo $!; exit 3";
        assert!(!shell.watch("sh", &["-c", script], |line| seen.push(line.to_owned())).unwrap());
        assert_eq!(seen.len(), 1);
        Command::new("kill").arg(&seen[0]).status().unwrap();
    }
}
