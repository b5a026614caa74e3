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
/// The program whose images go on from one another, as the file that holds them is called; the others' are single.
const CHAIN: &str = "chain";
/// Their job.
const JOB: &str = "golden";
/// How many there are: what a job keeps.
const LINKS: u64 = 3;

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
    let mut images = files(&folder, "hdcr")?;
    images.extend(files(&folder, "tar")?);
    images.retain(|path| wanted(path));
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
            let result = (0..2).try_for_each(|_| all_restored(&mut stage, image));
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

/// One image, or each of those that share files.
fn all_restored(stage: &mut Stage<'_>, image: &Path) -> Result<()> {
    needs_root()?;
    if image.extension().is_some_and(|extension| extension == "hdcr") {
        return restored(stage, utf8(image)?);
    }
    let jobs = stage.path("store/jobs");
    if jobs.exists() {
        fs::remove_dir_all(&jobs)?;
    }
    fs::create_dir_all(&jobs)?;
    packed(&["--extract", "--file", utf8(image)?], &jobs)?;
    let images = links(&jobs.join(JOB))?;
    ensure!(images.len() as u64 == LINKS, "{images:?} are its images");
    // The last first: none needs the restore of another.
    images.iter().rev().try_for_each(|image| restored(stage, &format!("{JOB}@{image}")))
}

/// `tar` keeps files of several names as such.
fn packed(arguments: &[&str], within: &Path) -> Result<()> {
    let status = Command::new("tar").args(arguments).current_dir(within).status().context("run tar")?;
    ensure!(status.success(), "tar: {status}");
    Ok(())
}

/// The numbers of a job's images.
fn links(job: &Path) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(job)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The program goes on in a folder that has nothing but the word to do so: its files and its own binary come from the
/// image, its numbers are free in a pid namespace of its own.
fn restored(stage: &mut Stage<'_>, image: &str) -> Result<()> {
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
        let extension = if stem == CHAIN { "tar" } else { "hdcr" };
        let image = folder.join(format!("{stem}-{version}.{extension}"));
        if is_wanted(&args.names, &source) && !image.exists() {
            let work = tempfile::Builder::new().prefix("hdcr-golden-make-").tempdir()?;
            let mut stage = Stage::new(hdcr, work.path(), place)?;
            let made = compiled(&source).and_then(|program| match extension {
                "tar" => make_chain(&mut stage, &program, &image),
                _ => make_one(&mut stage, &program, &image),
            });
            fs::remove_dir_all(HOME).ok();
            made.and(stage.clean()).with_context(|| format!("make {}", image.display()))?;
        }
    }
    Ok(())
}

/// The program, in the only folder where it may run.
fn compiled(source: &Path) -> Result<PathBuf> {
    let home = Path::new(HOME);
    ensure!(!home.exists(), "{HOME} is in the way");
    fs::create_dir(home)?;
    let program = home.join("golden");
    let mut compiler = Command::new("musl-gcc");
    compiler.args(["-static", "-Os", "-s", "-Wall", "-Wextra", "-pthread", "-o"]).arg(&program).arg(source);
    ensure!(compiler.status().context("run musl-gcc")?.success(), "musl-gcc failed");
    Ok(program)
}

/// Waits until the program says that it is so far.
fn ready(is: &str) -> Result<()> {
    let said = |name: &str| fs::read_to_string(Path::new(HOME).join(name)).unwrap_or_default();
    wait::until("a program of a golden image", LIMIT, || {
        ensure!(said("result").is_empty(), "{}", said("result"));
        Ok((said("ready").trim_end() == is).then_some(()))
    })
}

/// A job that is checkpointed after each of its steps; what it keeps is packed.
fn make_chain(stage: &mut Stage<'_>, program: &Path, image: &Path) -> Result<()> {
    let policy = format!("{HOME}=content");
    let options = ["run", "--name", JOB, "--every", "10h", "--increments", "on", "--file-policy", &policy, "--"];
    let mut keeper = stage.command(stage.hdcr());
    keeper.args(options).arg(program).current_dir(HOME);
    // The program has the environment of its keeper, and nothing of this machine is to be in the image.
    for (name, _) in std::env::vars_os() {
        keeper.env_remove(name);
    }
    keeper.env("PATH", "/usr/bin:/bin").env("HOME", &stage.folder).env("HDCR_STORE", stage.path("store"));
    let null = || std::process::Stdio::null();
    let mut keeper = stage.spawn(keeper.stdin(null()).stdout(null()).stderr(null()))?;
    for step in 1..=LINKS + 1 {
        fs::write(Path::new(HOME).join("step"), step.to_string())?;
        ready(&format!("ready {step}"))?;
        let last: &[&str] = if step > LINKS { &["--kill"] } else { &[] };
        stage.expect(0, &[&["checkpoint", JOB], last].concat())?;
    }
    wait::end_of(&mut keeper, "the keeper", LIMIT)?;
    fs::remove_dir_all(HOME)?;
    let jobs = stage.path("store/jobs");
    let images: Vec<String> = links(&jobs.join(JOB))?.iter().map(|link| format!("{JOB}/{link}")).collect();
    let new = stage.path("new.tar");
    let mut arguments =
        vec!["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--file", utf8(&new)?];
    arguments.extend(images.iter().map(String::as_str));
    packed(&arguments, &jobs)?;
    all_restored(stage, &new)?;
    fs::copy(&new, image)?;
    Ok(())
}

fn make_one(stage: &mut Stage<'_>, program: &Path, image: &Path) -> Result<()> {
    let home = Path::new(HOME);
    // Nothing of this machine is to be in the image: no environment but the mark by which it is ended.
    let mut command = stage.command("setsid");
    let mark = (crate::trial::subject::MARK, utf8(&stage.folder)?.to_owned());
    command.env_clear().env(mark.0, mark.1).arg(program).current_dir(home);
    let null = || std::process::Stdio::null();
    let mut guest = command.stdout(null()).stderr(null()).spawn().context("start the program")?;
    ready("ready")?;
    let policy = format!("{HOME}=content");
    let (pid, new) = (guest.id().to_string(), stage.path("new.hdcr"));
    let arguments = ["checkpoint", &pid, "--kill", "--file-policy", &policy, "-o", utf8(&new)?];
    stage.expect(0, &arguments)?;
    wait::end_of(&mut guest, "the program", LIMIT)?;
    fs::remove_dir_all(home)?;
    restored(stage, utf8(&new)?)?;
    fs::copy(&new, image)?;
    Ok(())
}
