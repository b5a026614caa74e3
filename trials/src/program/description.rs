//! What a file of `trials/programs` says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// One real program.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    #[serde(skip)]
    pub(crate) name: String,
    pub(crate) about: String,
    /// The Debian packages that it needs, for what is not in the list of the tests.
    #[serde(default)]
    pub(crate) packages: Vec<String>,
    /// Programs that must be there.
    #[serde(default)]
    pub(crate) needs: Vec<String>,
    /// A module of python3 that must be there.
    #[serde(default)]
    pub(crate) python_module: Option<String>,
    /// What runs under HDCR, in a folder of its own.
    pub(crate) command: Vec<String>,
    /// Files that lie in the folder before.
    #[serde(default)]
    pub(crate) files: BTreeMap<String, String>,
    /// A script that runs before the program.
    #[serde(default)]
    pub(crate) setup: String,
    /// A script that runs beside the program before the first kill; a checkpoint follows it.
    #[serde(default)]
    pub(crate) begin: String,
    /// A script that runs beside the program after the last kill; it must bring the program to its end.
    #[serde(default)]
    pub(crate) finish: String,
    /// Files that must be the same as after the undisturbed run.
    pub(crate) results: Vec<String>,
    /// Time between checkpoints.
    #[serde(default = "half_a_second")]
    pub(crate) every: String,
    /// Further options of `hdcr run`.
    #[serde(default)]
    pub(crate) options: Vec<String>,
}

/// Which programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Folder {
    /// Those that run with every test.
    Chosen,
    /// Those that were picked by lot.
    Lot,
}

impl Folder {
    fn name(self) -> &'static str {
        match self {
            Folder::Chosen => "programs",
            Folder::Lot => "lot",
        }
    }
}

fn half_a_second() -> String {
    "500ms".to_owned()
}

/// The descriptions with these names in a folder of the sources; all when none is wanted.
pub(crate) fn find(sources: &Path, folder: Folder, names: &[String]) -> Result<Vec<Description>> {
    let mut all = Vec::new();
    let folder = sources.join(folder.name());
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            let text = fs::read_to_string(&path)?;
            let mut one: Description = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
            one.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            all.push(one);
        }
    }
    all.retain(|d| names.is_empty() || names.contains(&d.name));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(!all.is_empty(), "no program is named {}", names.join(", "));
    Ok(all)
}

impl Description {
    /// The first needed program that is not there.
    pub(crate) fn missing(&self) -> Option<&str> {
        let folders = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/games"];
        let is_there = |name: &str| folders.iter().any(|f| Path::new(f).join(name).exists());
        let missing = self.needs.iter().find(|name| !is_there(name));
        missing.or(self.python_module.as_ref().filter(|module| !has_module(module))).map(String::as_str)
    }

    /// Starts the program, behind `before` when it runs under HDCR. Its output is a file in its folder.
    pub(crate) fn start(&self, place: &Path, before: &[&str]) -> Result<Child> {
        let words = before.iter().copied().chain(self.command.iter().map(String::as_str));
        let words: Vec<&str> = words.collect();
        let (program, arguments) = words.split_first().context("a program has a command")?;
        let out = File::options().append(true).create(true).open(place.join("stdout"))?;
        let err = File::create(place.join("../stderr"))?;
        Command::new(program)
            .args(arguments)
            .current_dir(place)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")
            .env("HOME", place)
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("start {program}"))
    }
}

/// Asks the system's own python3, not one that a user has put before it.
fn has_module(name: &str) -> bool {
    let asked = Command::new("/usr/bin/python3").args(["-c", &format!("import {name}")]).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_descriptions_are_sound() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in [Folder::Chosen, Folder::Lot] {
            let all = find(sources, folder, &[]).unwrap();
            assert!(all.iter().all(|d| !d.command.is_empty() && !d.results.is_empty()));
        }
    }
}
