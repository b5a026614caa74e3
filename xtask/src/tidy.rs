//! The rules about the sources that no compiler checks; each a pure function from text to complaints.

mod codes;
mod edges;
mod resources;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::check::Counts;
use crate::shell::say;

/// A file of the project: its path from the root, and its text.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    #[cfg(test)]
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    pub(crate) fn is(&self, ending: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|e| e == ending)
    }
}

type Rule = (&'static str, fn(&[Source]) -> Vec<String>);

const RULES: [Rule; 11] = [
    ("crates use only what the table of edges allows", edges::edges),
    ("files are short", sources::short),
    ("each file says what it is", sources::documented),
    ("no mutable statics", sources::no_mutable_statics),
    ("no forbidden names", sources::named_well),
    ("no paths of one machine", sources::no_machine_paths),
    ("no test is ignored", sources::no_ignored_tests),
    ("no test sleeps", sources::no_sleeping_tests),
    ("resources do not know the mechanism", resources::mechanism_blind),
    ("each code has a row, and each row a code", codes::described),
    ("each resource has a guest and a row", resources::shown),
];

/// Prints what is broken; counts rules.
pub(crate) fn report(root: &Path) -> Result<Counts> {
    let sources = read(root)?;
    let mut counts = Counts::default();
    for (rule, check) in RULES {
        let complaints = check(&sources);
        for complaint in &complaints {
            say(&format!("tidy: {rule}: {complaint}"))?;
        }
        counts.passed += u32::from(complaints.is_empty());
        counts.failed += u32::from(!complaints.is_empty());
    }
    say(&format!("tidy: {} rules hold, {} are broken", counts.passed, counts.failed))?;
    Ok(counts)
}

/// Endings of the files that people write here.
const WRITTEN: [&str; 9] = ["rs", "toml", "c", "h", "md", "sh", "py", "yml", "S"];

fn read(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let is_ours = !name.starts_with("target") && !name.starts_with(".git");
                folders.extend(is_ours.then(|| path.clone()));
            } else if is_written(&path) {
                let relative = path.strip_prefix(root)?.to_string_lossy().into_owned();
                let text = fs::read_to_string(&path).with_context(|| format!("read {relative}"))?;
                sources.push(Source { path: relative, text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn is_written(path: &Path) -> bool {
    let ending = path.extension().map(PathBuf::from).unwrap_or_default();
    WRITTEN.iter().any(|w| ending.as_os_str() == *w)
}
