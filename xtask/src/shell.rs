//! Running other programs and printing: the edge of the tasks.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

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

    /// Runs a command, shows each line of its output and hands it to `see`.
    pub(crate) fn watch(&self, program: &str, arguments: &[&str], mut see: impl FnMut(&str)) -> Result<bool> {
        let mut child = self
            .command(program, arguments)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let out = child.stdout.take().context("the output of a child")?;
        for line in BufReader::new(out).lines() {
            let line = line?;
            say(&line)?;
            see(&line);
        }
        Ok(child.wait()?.success())
    }

    /// What a command prints, with nothing shown.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let out = self.command(program, arguments).output().with_context(|| format!("start {program}"))?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Builds what the trials need: the product as users get it, and the runner.
    pub(crate) fn build(&self) -> Result<bool> {
        if !self.target.join("release/hdcr").exists() {
            writeln!(io::stderr(), "building hdcr and its trials; the first time this takes some minutes ...")?;
        }
        let product = ["build", "--release", "--package", "hdcr-cli", "--package", "hdcr"];
        let examples = ["build", "--quiet", "--release", "--package", "hdcr", "--examples"];
        let runner = ["build", "--quiet", "--package", "trials"];
        Ok(self.run("cargo", &product)? && self.run("cargo", &examples)? && self.run("cargo", &runner)?)
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
        ensure!(self.build()?, "the build failed");
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
