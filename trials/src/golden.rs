//! Golden images: what versions of the past have written is restored by this one. The programs judge themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::Place;
use crate::modes::stage::{LIMIT, Lacking, Said, Stage, needs_root};
use crate::product::utf8;
use crate::report::{Finished, Outcome, Report};
use crate::wait;

/// Where the programs of golden images ran, and therefore the paths in them.
const HOME: &str = "/tmp/hdcr-golden";

/// Which images, and whether new ones are made.
#[derive(Debug, Args)]
pub(crate) struct GoldenArgs {
    /// Images or programs whose name begins with one of these; all when none is named.
    names: Vec<String>,
    /// Adds an image of every program that has none of this version of HDCR.
    #[arg(long)]
    make: bool,
    /// One JSON object a line instead of text.
    #[arg(long)]
    json: bool,
    /// Keep the folders of images that passed, too.
    #[arg(long)]
    keep: bool,
}

/// Restores every image twice; with `--make` adds images first.
pub(crate) fn run(args: &GoldenArgs, place: &Place) -> Result<bool> {
    let folder = fs::canonicalize(place.sources.join("golden")).context("the folder of golden images")?;
    if args.make {
        make(args, place, &folder)?;
    }
    let wanted = |path: &Path| is_wanted(&args.names, path);
    let images: Vec<PathBuf> = files(&folder, "hdcr")?.into_iter().filter(|path| wanted(path)).collect();
    ensure!(!images.is_empty(), "no such image");
    let mut report = Report::new(args.json);
    for image in images {
        report.add(&run_one(&image, args, place)?)?;
    }
    report.close()
}

fn is_wanted(names: &[String], path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    names.is_empty() || names.iter().any(|name| stem.starts_with(name.as_str()))
}

/// The files of a folder with this extension.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut all: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    all.retain(|path| path.extension().is_some_and(|found| found == extension));
    all.sort();
    Ok(all)
}

fn run_one(image: &Path, args: &GoldenArgs, place: &Place) -> Result<Finished> {
    let began = Instant::now();
    let name = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = tempfile::Builder::new().prefix(&format!("hdcr-golden-{name}-")).tempdir()?;
    let mut log = Vec::new();
    let result = match &place.hdcr {
        None => Err(Lacking("no hdcr binary was given").into()),
        Some(hdcr) => {
            let mut stage = Stage::new(hdcr, folder.path(), place)?;
            let result = (0..2).try_for_each(|_| restored(&mut stage, image));
            let cleaned = stage.clean();
            log = stage.log;
            result.and(cleaned)
        }
    };
    let outcome = match result {
        Ok(()) => Outcome::Passed,
        Err(error) if error.is::<Lacking>() => Outcome::Skipped(error.to_string()),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    let is_kept = args.keep || matches!(outcome, Outcome::Failed(_));
    Ok(Finished {
        name,
        mode: "golden".to_owned(),
        outcome,
        milliseconds: began.elapsed().as_millis(),
        checkpoint_milliseconds: Vec::new(),
        restore_milliseconds: Vec::new(),
        folder: is_kept.then(|| folder.keep()),
        log,
    })
}

/// The program goes on in a folder that has nothing but the word to do so: its files and its own binary come from the
/// image, its numbers are free in a pid namespace of its own.
fn restored(stage: &mut Stage<'_>, image: &Path) -> Result<()> {
    needs_root()?;
    let image = utf8(image)?;
    stage.expect(0, &["verify", image])?;
    let home = stage.path("home");
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    fs::create_dir(&home)?;
    fs::write(home.join("go"), "")?;
    let moved = format!("{HOME}={}", home.display());
    let said =
        stage.run(&["restore", image, "--new-pids", "--map-path", &moved, "--stdio", "null", "--trust-store"])?;
    able(&said)?;
    let result = fs::read_to_string(home.join("result")).unwrap_or_default();
    ensure!(said.status == 0 && result == "pass", "status {}, it says {result:?}: {}", said.status, said.both().trim());
    Ok(())
}

/// An image of another kind of processor is refused by name, and rightly.
fn able(said: &Said) -> Result<()> {
    let lacks = said.both().contains("[cpu-features]");
    ensure!(!lacks, Lacking("this processor has not what that of the image had"));
    Ok(())
}

/// Adds images. One that is there stays as it is.
fn make(args: &GoldenArgs, place: &Place, folder: &Path) -> Result<()> {
    let hdcr = place.hdcr.as_deref().context("no hdcr binary was given")?;
    let said = Command::new(hdcr).arg("--version").output().context("ask hdcr for its version")?;
    let said = String::from_utf8(said.stdout)?;
    let version = said.split_whitespace().nth(1).context("hdcr does not tell its version")?;
    for source in files(folder, "c")? {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let image = folder.join(format!("{stem}-{version}.hdcr"));
        if is_wanted(&args.names, &source) && !image.exists() {
            let work = tempfile::Builder::new().prefix("hdcr-golden-make-").tempdir()?;
            let mut stage = Stage::new(hdcr, work.path(), place)?;
            let made = make_one(&mut stage, &source, &image);
            fs::remove_dir_all(HOME).ok();
            made.and(stage.clean()).with_context(|| format!("make {}", image.display()))?;
        }
    }
    Ok(())
}

fn make_one(stage: &mut Stage<'_>, source: &Path, image: &Path) -> Result<()> {
    let home = Path::new(HOME);
    ensure!(!home.exists(), "{HOME} is in the way");
    fs::create_dir(home)?;
    let program = home.join("golden");
    let mut compiler = Command::new("musl-gcc");
    compiler.args(["-static", "-Os", "-s", "-Wall", "-Wextra", "-pthread", "-o"]).arg(&program).arg(source);
    ensure!(compiler.status().context("run musl-gcc")?.success(), "musl-gcc failed");
    // Nothing of this machine is to be in the image: no environment but the mark by which it is ended.
    let mut command = stage.command("setsid");
    let mark = (crate::trial::subject::MARK, utf8(&stage.folder)?.to_owned());
    command.env_clear().env(mark.0, mark.1).arg(&program).current_dir(home);
    let null = || std::process::Stdio::null();
    let mut guest = command.stdout(null()).stderr(null()).spawn().context("start the program")?;
    let said = |name: &str| fs::read_to_string(home.join(name)).unwrap_or_default();
    wait::until("a program of a golden image", LIMIT, || {
        ensure!(said("result").is_empty(), "{}", said("result"));
        Ok((said("ready") == "ready\n").then_some(()))
    })?;
    let policy = format!("{HOME}=content");
    let (pid, new) = (guest.id().to_string(), stage.path("new.hdcr"));
    let arguments = ["checkpoint", &pid, "--kill", "--file-policy", &policy, "-o", utf8(&new)?];
    stage.expect(0, &arguments)?;
    wait::end_of(&mut guest, "the program", LIMIT)?;
    fs::remove_dir_all(home)?;
    restored(stage, &new)?;
    fs::copy(&new, image)?;
    Ok(())
}
