//! Two tools with one way to be asked: a checkpoint that ends the program, and a restore that detaches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bench::criu::Criu;
use crate::wait;

/// A tool that is measured.
#[derive(Debug, Clone)]
pub(crate) enum Rival {
    Hdcr(PathBuf),
    Criu(Criu),
}

/// What one command cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) wall_us: u64,
    /// How long the program stood still, as the tool tells it.
    pub(crate) stopped_us: Option<u64>,
    pub(crate) peak_kib: u64,
    pub(crate) image_bytes: u64,
}

/// What is to be checkpointed, and where to.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) pid: u32,
    /// A file for HDCR, a directory for CRIU; what is there is removed.
    pub(crate) image: &'a Path,
    /// Whether the program ends with it.
    pub(crate) ends: bool,
    /// HDCR finds an image there.
    pub(crate) over: bool,
}

impl Rival {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Rival::Hdcr(_) => "hdcr",
            Rival::Criu(_) => "criu",
        }
    }

    /// Writes an image; `folder` is for what is kept beside it.
    pub(crate) fn checkpoint(&self, request: &Request<'_>, folder: &Path, measure: &Path) -> Result<Cost> {
        let pid = request.pid.to_string();
        let image = request.image;
        if !(request.over && matches!(self, Rival::Hdcr(_))) {
            remove(image)?;
        }
        match self {
            Rival::Hdcr(binary) => {
                let mut command = vec![text(binary)?, "checkpoint", &pid, "-o", text(image)?, "--json"];
                command.extend(request.ends.then_some("--kill"));
                let (mut cost, out) = run(&command, folder, measure)?;
                cost.image_bytes = fs::metadata(image)?.len();
                cost.stopped_us = serde_json::from_str::<serde_json::Value>(out.trim())?["stopped_us"].as_u64();
                Ok(cost)
            }
            Rival::Criu(criu) => {
                fs::create_dir(image)?;
                let mut command = criu.command();
                command.extend(["dump", "-t", &pid, "-D", text(image)?, "-o", "log"].map(str::to_owned));
                command.extend((!request.ends).then(|| "--leave-running".to_owned()));
                let (mut cost, _) = run(&command, folder, measure)?;
                let files = fs::read_dir(image)?.flatten().filter(|entry| entry.file_name() != "log");
                cost.image_bytes = files.filter_map(|entry| entry.metadata().ok()).map(|m| m.len()).sum();
                cost.stopped_us = frozen_time(image);
                Ok(cost)
            }
        }
    }

    /// Brings the program of an image back.
    pub(crate) fn restore(&self, image: &Path, folder: &Path, measure: &Path) -> Result<Cost> {
        let command: Vec<String> = match self {
            Rival::Hdcr(binary) => {
                let words = [text(binary)?, "restore", text(image)?, "--detach", "--stdio", "null"];
                words.map(str::to_owned).to_vec()
            }
            Rival::Criu(criu) => {
                let mut command = criu.command();
                command.extend(["restore", "-D", text(image)?, "-d", "-o", "restore-log"].map(str::to_owned));
                command
            }
        };
        run(&command, folder, measure).map(|(cost, _)| cost)
    }

    /// The same with memory that comes when the program runs; CRIU is restored as ever.
    pub(crate) fn restore_lazily(&self, image: &Path, folder: &Path, measure: &Path) -> Result<Cost> {
        let Rival::Hdcr(binary) = self else { return self.restore(image, folder, measure) };
        let command = [text(binary)?, "restore", text(image)?, "--detach", "--stdio", "null", "--lazy", "auto"];
        run(&command, folder, measure).map(|(cost, _)| cost)
    }
}

/// Waits until nobody is left who fills the memory of what was restored in a folder.
pub(crate) fn filled(folder: &Path) -> Result<()> {
    const LIMIT: Duration = Duration::from_mins(2);
    let mark = format!("HDCR_STORE={}", folder.join("store").display());
    let fills = |path: &Path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "page-standby")
            && fs::read(path.join("environ"))
                .is_ok_and(|all| all.split(|byte| *byte == 0).any(|e| e == mark.as_bytes()))
    };
    wait::until("all memory of a program", LIMIT, || {
        let is_left = fs::read_dir("/proc")?.flatten().any(|entry| fills(&entry.path()));
        Ok((!is_left).then_some(()))
    })
}

/// What CRIU's own statistics say: the field `frozen_time` (2) of the message for a checkpoint (1).
fn frozen_time(image: &Path) -> Option<u64> {
    let bytes = fs::read(image.join("stats-dump")).ok()?;
    // Two magic numbers and the length of the message stand before it.
    let mut rest = bytes.get(12..)?;
    if *rest.first()? != 0x0a {
        return None;
    }
    rest = rest.get(2..)?;
    while let Some((key, after)) = rest.split_first() {
        let (value, after) = varint(after)?;
        if *key == 0x10 {
            return Some(value);
        }
        rest = after;
    }
    None
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0)?;
    let (number, rest) = bytes.split_at_checked(end + 1)?;
    Some((number.iter().rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f)), rest))
}

fn run<S: AsRef<str>>(command: &[S], folder: &Path, measure: &Path) -> Result<(Cost, String)> {
    let told = folder.join("cost");
    let out = folder.join("out");
    let file = fs::File::create(&out)?;
    let status = Command::new(measure)
        .arg(&told)
        .args(command.iter().map(AsRef::as_ref))
        .env("HDCR_STORE", folder.join("store"))
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .context("start the measuring program")?;
    let out = fs::read_to_string(&out).unwrap_or_default();
    let told = fs::read_to_string(&told)?;
    let numbers: Vec<u64> = told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let words: Vec<&str> = command.iter().map(AsRef::as_ref).collect();
    let [0, nanoseconds, peak_kib] = numbers[..] else {
        anyhow::bail!("{}: {told} {}", words.join(" "), out.trim());
    };
    ensure!(status.success(), "the measuring program failed");
    Ok((Cost { wall_us: nanoseconds / 1000, peak_kib, ..Cost::default() }, out))
}

/// Removes a file or a directory, if there is one.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)?;
    } else if path.exists() {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
