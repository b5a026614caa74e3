//! CRIU of another Debian release, to be measured beside HDCR: fetched by apt into a folder of its own, run by its own
//! loader. Nothing of the machine is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The release whose CRIU runs on today's kernels.
const RELEASE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// An unpacked CRIU.
#[derive(Debug, Clone)]
pub(crate) struct Criu {
    root: PathBuf,
}

impl Criu {
    /// The one in the folder, fetched when it is not there yet.
    pub(crate) fn get(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let criu = Criu { root: fs::canonicalize(folder)?.join("root") };
        if criu.version().is_err() {
            fetch(&fs::canonicalize(folder)?, &criu.root)?;
        }
        criu.version()?;
        Ok(criu)
    }

    /// The command line without arguments.
    pub(crate) fn command(&self) -> Vec<String> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let libraries = self.root.join(LIBRARIES);
        vec![
            text(libraries.join("ld-linux-x86-64.so.2")),
            "--library-path".to_owned(),
            text(libraries),
            text(self.root.join("usr/sbin/criu")),
        ]
    }

    pub(crate) fn version(&self) -> Result<String> {
        let command = self.command();
        let (program, arguments) = command.split_first().context("no command")?;
        let out = Command::new(program).args(arguments).arg("--version").stdin(Stdio::null()).output()?;
        ensure!(out.status.success(), "criu does not start: {}", String::from_utf8_lossy(&out.stderr).trim());
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok(text.lines().next().unwrap_or_default().trim_start_matches("Version:").trim().to_owned())
    }
}

fn fetch(folder: &Path, root: &Path) -> Result<()> {
    ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing");
    let mirror = mirror()?;
    for part in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(part))?;
    }
    // No package counts as installed: all that is needed is fetched.
    fs::write(folder.join("status"), "")?;
    fs::write(folder.join("sources.list"), format!("deb [signed-by={KEYRING}] {mirror} {RELEASE} main\n"))?;
    apt(folder, &["update", "-qq"])?;
    apt(folder, &["install", "-qq", "--yes", "--no-install-recommends", "--download-only", "criu"])?;
    for entry in fs::read_dir(folder.join("cache/archives"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            let done = Command::new("dpkg-deb").arg("-x").arg(&path).arg(root).status().context("run dpkg-deb")?;
            ensure!(done.success(), "unpack {}", path.display());
        }
    }
    Ok(())
}

fn apt(folder: &Path, arguments: &[&str]) -> Result<()> {
    let at = |name: &str| folder.join(name).display().to_string();
    let options = [
        format!("Dir::Etc::sourcelist={}", at("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State={}", at("state")),
        format!("Dir::State::status={}", at("status")),
        format!("Dir::Cache={}", at("cache")),
    ];
    let options = options.iter().flat_map(|option| ["-o", option.as_str()]);
    let out = Command::new("timeout")
        .args(["300", "apt-get"])
        .args(options)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("run apt-get")?;
    if !out.status.success() {
        bail!("apt-get {}: {}", arguments.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// Where this machine gets Debian from.
fn mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()));
    files.sort();
    let mut texts = files.iter().filter_map(|path| fs::read_to_string(path).ok());
    let found = texts.find_map(|text| mirror_in(&text));
    found.context("no Debian archive is named in /etc/apt")
}

/// The first address of the archive itself, in either form of a sources file.
fn mirror_in(text: &str) -> Option<String> {
    let is_archive = |word: &&str| word.contains("://") && word.trim_end_matches('/').ends_with("/debian");
    let lines = text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    lines.flat_map(str::split_whitespace).find(is_archive).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_found_in_both_forms() {
        let one = "# comment http://x/debian\ndeb [arch=amd64] http://mirror.example/debian bookworm main\n";
        assert_eq!(mirror_in(one).unwrap(), "http://mirror.example/debian");
        let other =
            "Types: deb\nURIs: http://a.example/debian-security\n\nTypes: deb\nURIs: http://b.example/debian/\n";
        assert_eq!(mirror_in(other).unwrap(), "http://b.example/debian/");
        assert_eq!(mirror_in("deb http://c.example/apt stable main\n"), None);
    }
}
