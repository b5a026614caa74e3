//! The tool dies by `SIGKILL` in a checkpoint, in one that kills its target, and in a restore.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::faults::dice::Dice;
use crate::faults::subject::{Kind, Life, Subject, end_all, family};
use crate::faults::table::Row;
use crate::faults::tool::{Death, Ended, Tool};

/// After so many kills in a restore one is left to its end.
const THROUGH: u32 = 10;
/// So many calls at the end are looked at closely.
const ENDING: u64 = 20;

/// Which command is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Checkpoint,
    CheckpointKill,
    Restore,
}

impl Act {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Act::Checkpoint => "checkpoint",
            Act::CheckpointKill => "checkpoint --kill",
            Act::Restore => "restore",
        }
    }
}

/// One guest and one command, killed again and again.
#[derive(Debug)]
pub(crate) struct Series<'a> {
    tool: &'a Tool,
    subject: Subject,
    dice: &'a mut Dice,
    row: Row,
    /// The newest image that is known to be whole.
    image: PathBuf,
    count: u32,
}

/// Kills one command `kills` times: one half after calls spread over all that it makes, the other at random moments.
pub(crate) fn series(act: Act, kind: &Kind, tool: &Tool, kills: u32, dice: &mut Dice) -> Result<Row> {
    let folder = tool.folder.join(format!("{}-{}", kind.name, act.name().replace([' ', '-'], "")));
    let subject = Subject::start(kind, &folder)?;
    let row = Row::new(format!("{}, {}", act.name(), kind.name));
    let image = folder.join("image.0");
    let mut series = Series { tool, subject, dice, row, image, count: 0 };
    let result = series.all(act, kills);
    let ended = end_all();
    if let Err(error) = result {
        series.row.loss(format!("{error:#}"));
    }
    ended?;
    fs::remove_dir_all(&folder)?;
    Ok(series.row)
}

impl Series<'_> {
    fn all(&mut self, act: Act, kills: u32) -> Result<()> {
        let (calls, took) = self.undisturbed(act)?;
        let by_calls = kills.div_ceil(2);
        for round in 0..kills {
            let death = if round < by_calls {
                Death::AfterCalls(self.call(calls, round, by_calls))
            } else {
                let most = u64::try_from(took.as_micros())?;
                let moment = Duration::from_micros(self.dice.below(most.max(1)));
                if round % 2 == 0 { Death::At(moment) } else { Death::Worker(moment) }
            };
            self.row.kills += 1;
            match act {
                Act::Checkpoint => self.checkpoint(death)?,
                Act::CheckpointKill => self.checkpoint_kill(death)?,
                Act::Restore => self.restore(death)?,
            }
        }
        if act == Act::Restore {
            self.through()?;
        }
        self.no_litter()
    }

    /// Two of three lie spread over all calls; the third is one of the last, where a tree is let go or killed.
    fn call(&mut self, calls: u64, round: u32, rounds: u32) -> u64 {
        if round % 3 == 2 {
            return calls.saturating_sub(self.dice.below(calls.min(ENDING))).max(1);
        }
        let from = calls * u64::from(round) / u64::from(rounds);
        let to = calls * u64::from(round + 1) / u64::from(rounds);
        1 + from + self.dice.below((to - from).max(1))
    }

    fn pid(&self) -> String {
        self.subject.pid.to_string()
    }

    fn new_image(&mut self) -> PathBuf {
        self.count += 1;
        self.subject.folder.join(format!("image.{}", self.count))
    }

    /// How many calls the command makes when nothing happens to it, and how long it takes.
    fn undisturbed(&mut self, act: Act) -> Result<(u64, Duration)> {
        let image = self.image.clone();
        let (pid, path) = (self.pid(), text(&image)?);
        let ended = match act {
            Act::Checkpoint => self.tool.must(&["checkpoint", &pid, "-o", path])?,
            Act::CheckpointKill | Act::Restore => {
                let ended = self.tool.must(&["checkpoint", &pid, "-o", path, "--kill"])?;
                ensure!(self.subject.life() == Life::Gone, "the killed guest lives");
                let restored = self.bring_back()?;
                if act == Act::Restore { restored } else { ended }
            }
        };
        ensure!(self.subject.life() == Life::Works, "the guest does not work after {}", act.name());
        let calls = ended.number("calls").with_context(|| format!("no count of calls: {}", ended.text))?;
        Ok((calls, ended.took))
    }

    /// Restores the newest whole image.
    fn bring_back(&self) -> Result<Ended> {
        self.tool.must(&["restore", text(&self.image)?, "--detach"])
    }

    fn polite(&mut self, ended: &Ended) {
        if let Some(what) = ended.misbehaves() {
            self.row.rudeness(what);
        } else if !ended.success() && !ended.was_killed() {
            self.row.rudeness(format!("failed by itself: {}", ended.text.trim()));
        }
    }

    /// An image that is there must be whole. True when it is there.
    fn whole_if_there(&mut self, image: &Path) -> Result<bool> {
        if !image.exists() {
            return Ok(false);
        }
        let verified = self.tool.run(&["verify", text(image)?], Death::Never)?;
        if !verified.success() {
            self.row.err(format!("an image that is not whole: {}", verified.text.trim()));
        }
        Ok(verified.success())
    }

    fn checkpoint(&mut self, death: Death) -> Result<()> {
        let image = self.new_image();
        let pid = self.pid();
        let into_store = self.count.is_multiple_of(2);
        let path = text(&image)?;
        let arguments: &[&str] = if into_store { &["checkpoint", &pid] } else { &["checkpoint", &pid, "-o", path] };
        let ended = self.tool.run(arguments, death)?;
        self.polite(&ended);
        match self.subject.life() {
            Life::Works => {}
            life @ (Life::Gone | Life::Broken(_)) => {
                self.row.harm(format!("{death:?}: {life:?}"));
                self.anew()?;
            }
        }
        if self.whole_if_there(&image)? {
            fs::remove_file(&image)?;
        }
        if into_store && self.count.is_multiple_of(10) {
            self.store_is_whole()?;
        }
        Ok(())
    }

    /// Everything that the store lists must be whole; then it is removed.
    fn store_is_whole(&mut self) -> Result<()> {
        let jobs = self.tool.store().join("jobs");
        let root = if jobs.is_dir() { jobs } else { self.tool.store() };
        for job in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = job.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || !job.path().is_dir() {
                continue;
            }
            let newest = self.tool.run(&["verify", &name], Death::Never)?;
            if !newest.success() && !newest.text.contains("no-such") && !newest.text.contains("no checkpoint") {
                self.row.err(format!("the store: {}", newest.text.trim()));
            }
        }
        Ok(())
    }

    fn checkpoint_kill(&mut self, death: Death) -> Result<()> {
        let image = self.new_image();
        let pid = self.pid();
        let ended = self.tool.run(&["checkpoint", &pid, "-o", text(&image)?, "--kill"], death)?;
        self.polite(&ended);
        let life = self.subject.life();
        let whole = self.whole_if_there(&image)?;
        if whole {
            fs::remove_file(&self.image).ok();
            self.image = image;
        }
        match life {
            Life::Works => {}
            Life::Gone if whole => self.must_come_back()?,
            Life::Gone => {
                self.row.loss(format!("{death:?}: killed without a whole image"));
                self.anew()?;
            }
            Life::Broken(how) => {
                self.row.half(format!("{death:?}: {how}"));
                self.anew()?;
            }
        }
        Ok(())
    }

    fn must_come_back(&mut self) -> Result<()> {
        let back = self.bring_back();
        match (back, self.subject.life()) {
            (Ok(_), Life::Works) => Ok(()),
            (back, life) => {
                let why = back.err().map_or_else(String::new, |error| format!("{error:#}"));
                self.row.loss(format!("not restored: {why} {life:?}"));
                self.anew()
            }
        }
    }

    fn restore(&mut self, death: Death) -> Result<()> {
        end_all()?;
        let before = self.disturb_files()?;
        let ended = self.tool.run(&["restore", text(&self.image)?, "--detach"], death)?;
        self.polite(&ended);
        match self.subject.life() {
            // The command died when its work was done.
            Life::Works => return Ok(()),
            Life::Gone => {}
            Life::Broken(how) => {
                self.row.half(format!("{death:?}: {how}"));
                end_all()?;
            }
        }
        if ended.success() {
            self.row.loss(format!("{death:?}: restored, and gone"));
        }
        if self.files()? != before {
            self.row.err(format!("{death:?}: files are not as they were"));
        }
        if self.row.kills.is_multiple_of(THROUGH) {
            self.through()?;
        }
        Ok(())
    }

    /// A restore that nobody kills must work after all that happened.
    fn through(&mut self) -> Result<()> {
        end_all()?;
        self.disturb_files()?;
        self.must_come_back()
    }

    /// Output has grown since the checkpoint.
    fn disturb_files(&self) -> Result<Vec<Vec<u8>>> {
        let log = self.subject.folder.join("log");
        if log.exists() {
            let mut bytes = fs::read(&log)?;
            bytes.truncate(1 << 20);
            bytes.extend(b"what came later\n");
            fs::write(&log, bytes)?;
        }
        self.files()
    }

    fn files(&self) -> Result<Vec<Vec<u8>>> {
        let names = ["log", "progress"].map(|name| self.subject.folder.join(name));
        names.iter().filter(|path| path.exists()).map(|path| Ok(fs::read(path)?)).collect()
    }

    /// A new guest with a new image in place of one that suffered.
    fn anew(&mut self) -> Result<()> {
        end_all()?;
        self.subject = Subject::start(&self.subject.kind, &self.subject.folder)?;
        self.image = self.new_image();
        self.tool.must(&["checkpoint", &self.pid(), "-o", text(&self.image)?])?;
        Ok(())
    }

    /// What dead tools left behind is gone after the next command that succeeds.
    fn no_litter(&mut self) -> Result<()> {
        let image = self.new_image();
        let pid = self.pid();
        self.tool.must(&["checkpoint", &pid, "-o", text(&image)?])?;
        let left: Vec<String> = fs::read_dir(&self.subject.folder)?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with("image.") && name != "log" && name != "progress")
            .collect();
        if !left.is_empty() {
            self.row.note(format!("{} unfinished files lie about, such as {}", left.len(), left[0]));
        }
        Ok(())
    }
}

/// Waits until nothing below the runner lives.
pub(crate) fn nothing_lives() -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while !family().is_empty() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// A path of the trial's own is always text.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
