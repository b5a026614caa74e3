//! Images that are not as they were written: a flipped bit, a cut, swapped parts, another version, forged records.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::faults::dice::Dice;
use crate::faults::forge::Bundle;
use crate::faults::kills::{nothing_lives, text};
use crate::faults::subject::{Kind, Life, Subject, end_all};
use crate::faults::table::Row;
use crate::faults::tool::{Death, Tool};

/// A program whose image is tampered with.
#[derive(Debug)]
pub(crate) struct Tampered<'a> {
    tool: &'a Tool,
    subject: Subject,
    folder: PathBuf,
    bundle: Bundle,
    /// The parts of the same program's image in a store.
    parts: PathBuf,
}

/// What may come of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    /// An error only.
    Refusal,
    /// An error, or the program as it was.
    RefusalOrRight,
    /// Whatever the image says, but nothing half and nothing rude.
    Anything,
}

impl<'a> Tampered<'a> {
    /// Two images of one program, which is gone then.
    pub(crate) fn new(kind: &Kind, tool: &'a Tool) -> Result<Self> {
        let folder = tool.folder.join("tampered");
        let subject = Subject::start(kind, &folder)?;
        let image = folder.join("whole");
        let parts = folder.join("parts");
        let pid = subject.pid.to_string();
        fs::create_dir(&parts)?;
        tool.must(&["checkpoint", &pid, "-o", text(&parts)?])?;
        tool.must(&["checkpoint", &pid, "-o", text(&image)?, "--kill"])?;
        ensure!(subject.life() == Life::Gone, "the killed guest lives");
        let bundle = Bundle::read(fs::read(&image)?)?;
        let tampered = Tampered { tool, subject, folder, bundle, parts };
        tampered.still_good(&image)?;
        tampered.still_good(&tampered.parts)?;
        Ok(tampered)
    }

    /// The images themselves can be restored.
    fn still_good(&self, image: &Path) -> Result<()> {
        self.tool.must(&["restore", text(image)?, "--detach"])?;
        ensure!(self.subject.life() == Life::Works, "the untouched image does not work");
        end_all()
    }

    /// Restores a tampered image and judges what came of it. True when it was refused.
    fn judge(&self, image: &Path, what: &str, allowed: Allowed, row: &mut Row) -> Result<bool> {
        let ended = self.tool.run(&["restore", text(image)?, "--detach", "--timeout", "10s"], Death::Never)?;
        row.kills += 1;
        if let Some(rude) = ended.misbehaves() {
            row.rudeness(format!("{what}: {rude}"));
        }
        if ended.was_killed() {
            row.rudeness(format!("{what}: the worker died: {}", ended.text.trim()));
        }
        if !ended.success() {
            if !ended.text.contains("\"error\"") {
                row.rudeness(format!("{what}: no error was told: {}", ended.text.trim()));
            }
            if !nothing_lives() {
                row.half(format!("{what}: refused, and something lives"));
                end_all()?;
            }
            return Ok(true);
        }
        match allowed {
            Allowed::Refusal => row.err(format!("{what}: restored")),
            Allowed::RefusalOrRight => {
                let life = self.subject.life();
                if life != Life::Works {
                    row.err(format!("{what}: restored, and {life:?}"));
                }
            }
            Allowed::Anything => {}
        }
        end_all()?;
        Ok(false)
    }

    /// One bit flipped at random places of the file, the directory and its parts.
    pub(crate) fn flipped(&self, times: u32, dice: &mut Dice) -> Result<Row> {
        let mut row = Row::new("one bit flipped");
        let image = self.folder.join("flipped");
        let mut refused = 0;
        for round in 0..times {
            let what;
            if round % 4 == 3 {
                what = self.flip_part(dice)?;
                refused += u32::from(self.judge(&self.parts, &what.0, Allowed::RefusalOrRight, &mut row)?);
                fs::write(what.1, what.2)?;
                continue;
            }
            let mut bytes = self.bundle.bytes().to_vec();
            // Every second flip hits a record, the manifest or the directory, which are small beside the pages.
            let at = if round % 2 == 0 { self.place_in_parts(dice)? } else { dice.below(bytes.len() as u64) };
            let at = usize::try_from(at)?;
            let bit = dice.below(8);
            flip(&mut bytes, at, bit);
            fs::write(&image, &bytes)?;
            let what = format!("bit {bit} of byte {at}");
            refused += u32::from(self.judge(&image, &what, Allowed::RefusalOrRight, &mut row)?);
        }
        row.note(format!("{refused} refused, {} restored right", row.kills - refused));
        Ok(row)
    }

    fn place_in_parts(&self, dice: &mut Dice) -> Result<u64> {
        let length = self.bundle.bytes().len() as u64;
        let pieces = self.bundle.pieces();
        let pick = usize::try_from(dice.below(pieces.len() as u64 + 1))?;
        Ok(match pieces.get(pick) {
            Some(piece) => piece.start as u64 + dice.below(piece.len() as u64),
            None => length - 1 - dice.below(56 + 24 * 3),
        })
    }

    /// Flips a bit in a file of the directory; what it was, where, and the bytes to be put back.
    fn flip_part(&self, dice: &mut Dice) -> Result<(String, PathBuf, Vec<u8>)> {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.parts)?.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() > 0));
        files.sort();
        let pick = usize::try_from(dice.below(files.len() as u64))?;
        let path = files.swap_remove(pick);
        let old = fs::read(&path)?;
        let mut new = old.clone();
        let at = usize::try_from(dice.below(new.len() as u64))?;
        flip(&mut new, at, dice.below(8));
        fs::write(&path, new)?;
        Ok((format!("byte {at} of {}", path.display()), path, old))
    }

    /// Cut at random places, at both ends.
    pub(crate) fn cut(&self, times: u32, dice: &mut Dice) -> Result<Row> {
        let mut row = Row::new("cut off");
        let image = self.folder.join("cut");
        let bytes = self.bundle.bytes();
        for round in 0..times {
            let length = match round {
                0 => 0,
                1 => 63,
                2 => bytes.len() as u64 - 1,
                _ => dice.below(bytes.len() as u64),
            };
            let length = usize::try_from(length)?;
            let cut = if round % 4 == 3 { bytes.get(length + 1..) } else { bytes.get(..length) };
            fs::write(&image, cut.unwrap_or_default())?;
            self.judge(&image, &format!("cut to {length}"), Allowed::Refusal, &mut row)?;
        }
        Ok(row)
    }

    /// Parts of another image of the same program, missing parts, garbage, huge numbers.
    pub(crate) fn swapped(&self) -> Result<Row> {
        let mut row = Row::new("parts swapped, missing, strange");
        let other = self.folder.join("other");
        self.tool.must(&["restore", text(&self.parts)?, "--detach"])?;
        fs::create_dir(&other)?;
        let pid = self.subject.pid.to_string();
        self.tool.must(&["checkpoint", &pid, "-o", text(&other)?, "--kill"])?;
        ensure!(self.subject.life() == Life::Gone, "the killed guest lives");
        for name in ["manifest", "frames", "pages-0"] {
            let path = self.parts.join(name);
            let old = fs::read(&path)?;
            let mut huge = old.clone();
            if let Some(bytes) = huge.get_mut(64..80) {
                bytes.fill(0xff);
            }
            let changed = [
                ("of another image", Some(fs::read(other.join(name))?)),
                ("missing", None),
                ("empty", Some(Vec::new())),
                ("with huge numbers", Some(huge)),
                ("cut", Some(old.get(..old.len() / 2).unwrap_or_default().to_vec())),
            ];
            for (what, bytes) in changed {
                match bytes {
                    Some(bytes) => fs::write(&path, bytes)?,
                    None => fs::remove_file(&path)?,
                }
                self.judge(&self.parts, &format!("{name} {what}"), Allowed::Refusal, &mut row)?;
                fs::write(&path, &old)?;
            }
        }
        self.still_good(&self.parts)?;
        Ok(row)
    }

    /// Versions of the format that are not this one, with right checksums.
    pub(crate) fn versions(&self) -> Result<Row> {
        let mut row = Row::new("older and newer versions");
        let image = self.folder.join("version");
        for version in [0, 2, 3, u32::MAX] {
            fs::write(&image, self.bundle.of_version(version)?)?;
            self.judge(&image, &format!("version {version}"), Allowed::Refusal, &mut row)?;
        }
        Ok(row)
    }

    /// Records changed at random, with every checksum right.
    pub(crate) fn forged(&self, times: u32, dice: &mut Dice) -> Result<Row> {
        let mut row = Row::new("forged, right checksums");
        let image = self.folder.join("forged");
        let mut refused = 0;
        for _ in 0..times {
            let (bytes, what) = self.bundle.forged(dice)?;
            fs::write(&image, bytes)?;
            for command in [["verify", text(&image)?], ["show", text(&image)?]] {
                if let Some(rude) = self.tool.run(&command, Death::Never)?.misbehaves() {
                    row.rudeness(format!("{} {what}: {rude}", command[0]));
                }
            }
            refused += u32::from(self.judge(&image, &what, Allowed::Anything, &mut row)?);
            if row.rude > 0 && !self.folder.join("rude").exists() {
                fs::copy(&image, self.folder.join("rude"))?;
            }
        }
        row.note(format!("{refused} refused, {} restored as they said", row.kills - refused));
        Ok(row)
    }
}

fn flip(bytes: &mut [u8], at: usize, bit: u64) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << bit;
    }
}
