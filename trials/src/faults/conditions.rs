//! Surroundings that fail: a full disk, a store that goes away, a target that dies, is traced, or sleeps uninterruptibly.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::faults::dice::Dice;
use crate::faults::kills::{nothing_lives, text};
use crate::faults::subject::{Kind, Life, Subject, end_all, family, signal};
use crate::faults::table::Row;
use crate::faults::tool::{Death, Ended, Tool};

/// What the conditions need.
#[derive(Debug)]
pub(crate) struct Conditions<'a> {
    pub(crate) tool: &'a Tool,
    pub(crate) kind: &'a Kind,
    /// Compiled: see `trials/faults`.
    pub(crate) tracer: PathBuf,
    pub(crate) vforker: PathBuf,
}

impl Conditions<'_> {
    fn subject(&self) -> Result<Subject> {
        Subject::start(self.kind, &self.tool.folder.join("condition"))
    }

    /// It failed with a clear error and in time, and the program works.
    fn failed_clearly(ended: &Ended, within: Duration, subject: &Subject, row: &mut Row) -> Result<()> {
        row.kills += 1;
        if let Some(rude) = ended.misbehaves() {
            row.rudeness(rude);
        } else if ended.success() {
            row.err(format!("it succeeded: {}", ended.text.trim()));
        } else if !ended.text.contains("\"error\"") {
            row.rudeness(format!("no error was told: {}", ended.text.trim()));
        }
        if ended.took > within {
            row.rudeness(format!("it took {:?}", ended.took));
        }
        harmless(subject, row)
    }

    pub(crate) fn disk_full(&self) -> Result<Row> {
        let mut row = Row::new("disk full");
        let place = self.tool.folder.join("full");
        fs::create_dir_all(&place)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k", "none"])
            .arg(&place)
            .stderr(Stdio::null())
            .status()?;
        if !mounted.success() {
            return Ok(Row::skipped(row.case, "a small tmpfs cannot be mounted"));
        }
        let result = self.on_full_disk(&place, &mut row);
        let unmounted = Command::new("umount").arg(&place).status()?;
        ensure!(unmounted.success(), "umount {} failed", place.display());
        result.map(|()| row)
    }

    fn on_full_disk(&self, place: &Path, row: &mut Row) -> Result<()> {
        let subject = self.subject()?;
        let pid = subject.pid.to_string();
        let limit = Duration::from_secs(30);
        let (image, store) = (place.join("image"), place.join("store"));
        let whole = place.join("directory/");
        for arguments in [
            ["checkpoint", &pid, "-o", text(&image)?, "--kill"].as_slice(),
            ["checkpoint", &pid, "-o", text(&whole)?].as_slice(),
            ["checkpoint", &pid, "--store", text(&store)?, "--kill"].as_slice(),
        ] {
            let ended = self.tool.run(arguments, Death::Never)?;
            Self::failed_clearly(&ended, limit, &subject, row)?;
            let used: u64 = files(place).iter().filter_map(|path| fs::metadata(path).ok()).map(|m| m.len()).sum();
            if image.exists() || used > 4096 {
                row.err(format!("{used} bytes were left behind: {:?}", files(place)));
            }
        }
        end_all()
    }

    /// The store is removed at random moments of a checkpoint.
    pub(crate) fn store_removed(&self, times: u32, dice: &mut Dice) -> Result<Row> {
        let mut row = Row::new("store removed meanwhile");
        let subject = self.subject()?;
        let pid = subject.pid.to_string();
        let store = self.tool.folder.join("fleeting");
        let arguments = ["checkpoint", &pid, "--store", text(&store)?, "--timeout", "10s"];
        let took = self.tool.must(&arguments)?.took;
        let mut failed = 0;
        for _ in 0..times {
            fs::create_dir_all(&store)?;
            let began = Instant::now();
            let mut child = self.tool.start(&arguments, Death::Never)?;
            std::thread::sleep(Duration::from_micros(dice.below(u64::try_from(took.as_micros())?)));
            // What is being written may appear while it is removed: that is the point.
            fs::remove_dir_all(&store).ok();
            let ended = self.tool.end_of(&mut child, &arguments, began)?;
            row.kills += 1;
            failed += u32::from(!ended.success());
            if let Some(rude) = ended.misbehaves() {
                row.rudeness(rude);
            }
            if ended.took > Duration::from_secs(20) {
                row.rudeness(format!("it took {:?}", ended.took));
            }
            harmless(&subject, &mut row)?;
            fs::remove_dir_all(&store).ok();
        }
        row.note(format!("{failed} failed, the others were done before"));
        end_all()?;
        Ok(row)
    }

    /// The target is killed at random moments of a checkpoint.
    pub(crate) fn target_dies(&self, times: u32, dice: &mut Dice) -> Result<Row> {
        let mut row = Row::new("target dies meanwhile");
        let mut took = Duration::from_millis(20);
        let image = self.tool.folder.join("of-a-dying");
        let mut failed = 0;
        for round in 0..times {
            let subject = self.subject()?;
            let pid = subject.pid.to_string();
            let kill = if round % 2 == 0 { &["--kill"][..] } else { &[][..] };
            let arguments = [&["checkpoint", &pid, "-o", text(&image)?, "--timeout", "10s"], kill].concat();
            let began = Instant::now();
            let mut child = self.tool.start(&arguments, Death::Never)?;
            std::thread::sleep(Duration::from_micros(dice.below(u64::try_from(took.as_micros())?)));
            signal(subject.pid, Signal::KILL);
            let ended = self.tool.end_of(&mut child, &arguments, began)?;
            took = ended.took.min(Duration::from_millis(100)).max(Duration::from_millis(5));
            row.kills += 1;
            failed += u32::from(!ended.success());
            if let Some(rude) = ended.misbehaves() {
                row.rudeness(rude);
            }
            if ended.took > Duration::from_secs(20) {
                row.rudeness(format!("it took {:?}", ended.took));
            }
            if !nothing_lives() {
                row.half(format!("{:?}", family()));
                end_all()?;
            }
            if image.exists() {
                let verified = self.tool.run(&["verify", text(&image)?], Death::Never)?;
                if !verified.success() {
                    row.err(format!("an image that is not whole: {}", verified.text.trim()));
                }
                fs::remove_file(&image)?;
            }
        }
        row.note(format!("{failed} failed, the others were done before"));
        Ok(row)
    }

    /// Somebody else traces the target; when the tracer ends all is well again.
    pub(crate) fn traced(&self) -> Result<Row> {
        let mut row = Row::new("target is traced already");
        let subject = self.subject()?;
        let pid = subject.pid.to_string();
        let mut tracer = Command::new(&self.tracer)
            .arg(&pid)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the tracer")?;
        let mut word = [0; 6];
        let attached = tracer.stdout.as_mut().context("no output")?.read_exact(&mut word);
        if attached.is_err() {
            tracer.wait()?;
            end_all()?;
            return Ok(Row::skipped(row.case, "ptrace is not permitted here"));
        }
        let image = self.tool.folder.join("of-a-traced");
        for kill in [&[][..], &["--kill"]] {
            let arguments = [&["checkpoint", &pid, "-o", text(&image)?, "--timeout", "5s"], kill].concat();
            let ended = self.tool.run(&arguments, Death::Never)?;
            row.kills += 1;
            if ended.success() || ended.misbehaves().is_some() || ended.took > Duration::from_secs(10) {
                row.rudeness(format!("{:?}: {}", ended.took, ended.text.trim()));
            } else if !ended.text.contains(&tracer.id().to_string()) {
                row.rudeness(format!("the tracer is not named: {}", ended.text.trim()));
            }
            if let Err(error) = subject.works() {
                row.harm(format!("{error:#}"));
            }
        }
        drop(tracer.stdin.take());
        tracer.wait()?;
        harmless(&subject, &mut row)?;
        self.tool.must(&["checkpoint", &pid, "-o", text(&image)?, "--kill"])?;
        ensure!(subject.life() == Life::Gone, "the killed guest lives");
        Ok(row)
    }

    /// A parent that sleeps until its vfork child ends, which never happens.
    pub(crate) fn uninterruptible(&self) -> Result<Row> {
        let mut row = Row::new("uninterruptible sleep");
        let command = vec![text(&self.vforker)?.to_owned()];
        let kind = Kind { name: "vforker", command, processes: 2, by_file: false };
        let subject = Subject::start(&kind, &self.tool.folder.join("condition"))?;
        ensure!(family().iter().any(|member| member.state == 'D'), "nobody sleeps uninterruptibly");
        let pid = subject.pid.to_string();
        let image = self.tool.folder.join("of-a-sleeper");
        for kill in [&[][..], &["--kill"]] {
            let arguments = [&["checkpoint", &pid, "-o", text(&image)?, "--timeout", "1s"], kill].concat();
            let ended = self.tool.run(&arguments, Death::Never)?;
            Self::failed_clearly(&ended, Duration::from_secs(6), &subject, &mut row)?;
            row.note(ended.text.trim().chars().take(120).collect::<String>());
        }
        end_all()?;
        Ok(row)
    }
}

/// The program works, or the row says how it was harmed.
fn harmless(subject: &Subject, row: &mut Row) -> Result<()> {
    match subject.life() {
        Life::Works => Ok(()),
        life @ (Life::Gone | Life::Broken(_)) => {
            row.harm(format!("{life:?}"));
            end_all()?;
            anyhow::bail!("{}: the guest is harmed: {life:?}", row.case)
        }
    }
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { all.push(entry.path()) }
        }
    }
    all
}
