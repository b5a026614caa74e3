//! What the machine can do at all: copying memory, writing and reading files. Measured in the same run.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, fadvise, fsync};
use serde::Serialize;

const MIB: usize = 1 << 20;
/// What is copied, written and read.
const SIZE: usize = 256 * MIB;

/// Speeds in GiB/s.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Limits {
    /// One thread, into memory that is there.
    pub(super) copy: f64,
    /// One thread, into fresh memory: what a page fault costs.
    pub(super) copy_fresh: f64,
    /// A new file in memory.
    pub(super) tmpfs_write: f64,
    pub(super) tmpfs_read: f64,
    /// A new file on disk, until it is durable.
    pub(super) disk_write: f64,
    /// That file, no longer cached.
    pub(super) disk_read: f64,
    /// What a checkpoint cannot do without.
    #[serde(flatten)]
    pub(super) checkpoint: Checkpoint,
    /// What a restore cannot do without.
    #[serde(flatten)]
    pub(super) restore: Restore,
}

/// Memory of a process that works read by one thread, and a file in memory written over, in GiB of that memory a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Checkpoint {
    /// `process_vm_readv`, into memory that is there.
    pub(super) other_read: f64,
    pub(super) tmpfs_over: f64,
    /// All read, and half of it written over a file.
    pub(super) both: f64,
}

/// Fresh memory of a process that does nothing else, filled from a file in memory by two threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Restore {
    /// Huge pages, where the machine gives them.
    pub(super) fill_huge: f64,
    /// Pages of 4 KiB, by `UFFDIO_COPY`.
    pub(super) fill_small: f64,
}

/// By `trials/bench/copying.c`.
fn copying(program: &Path, file: &Path) -> Result<(Checkpoint, Restore)> {
    let out = Command::new(program).arg(file).output().context("start it")?;
    ensure!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    told(&String::from_utf8_lossy(&out.stdout)).context("what it says")
}

fn told(text: &str) -> Option<(Checkpoint, Restore)> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line?.trim().parse().ok()
    };
    let checkpoint = Checkpoint { other_read: value("read ")?, tmpfs_over: value("over ")?, both: value("both ")? };
    Some((checkpoint, Restore { fill_huge: value("huge ")?, fill_small: value("small ")? }))
}

impl Limits {
    /// Each with its name.
    pub(super) fn named(&self) -> [(&'static str, f64); 11] {
        [
            ("memcpy, one thread", self.copy),
            ("memcpy into fresh memory", self.copy_fresh),
            ("write a new file, tmpfs", self.tmpfs_write),
            ("read, tmpfs", self.tmpfs_read),
            ("write a new file, disk, durable", self.disk_write),
            ("read, disk, not cached", self.disk_read),
            ("read of a process that works", self.checkpoint.other_read),
            ("write over a file, tmpfs", self.checkpoint.tmpfs_over),
            ("both, half of it written", self.checkpoint.both),
            ("fresh huge pages, from tmpfs", self.restore.fill_huge),
            ("fresh small pages, from tmpfs", self.restore.fill_small),
        ]
    }

    /// Measures once; `program` is `trials/bench/copying.c`, compiled.
    pub(super) fn measure(memory: &Path, disk: &Path, program: &Path) -> Result<Self> {
        let source: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at * 7 % 251).unwrap_or(0)).collect();
        let mut target = vec![1_u8; SIZE];
        let (copy, ()) = speed(|| {
            target.copy_from_slice(&source);
            black_box(&mut target);
            Ok(())
        })?;
        let (copy_fresh, _fresh) = speed(|| Ok(black_box(source.clone())))?;
        let (tmpfs_write, ()) = speed(|| write(&memory.join("limit"), &source, false))?;
        let (tmpfs_read, ()) = speed(|| read(&memory.join("limit"), &mut target))?;
        let (disk_write, ()) = speed(|| write(&disk.join("limit"), &source, true))?;
        forget(&disk.join("limit"))?;
        let (disk_read, ()) = speed(|| read(&disk.join("limit"), &mut target))?;
        fs::remove_file(memory.join("limit"))?;
        fs::remove_file(disk.join("limit"))?;
        drop((source, target));
        let (checkpoint, restore) = copying(program, &memory.join("limit"))?;
        Ok(Self { copy, copy_fresh, tmpfs_write, tmpfs_read, disk_write, disk_read, checkpoint, restore })
    }
}

fn speed<T>(act: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let begun = Instant::now();
    let result = act()?;
    let gib = 256.0 / 1024.0;
    Ok((gib / begun.elapsed().as_secs_f64(), result))
}

fn write(path: &Path, bytes: &[u8], durable: bool) -> Result<()> {
    let mut file = File::create(path)?;
    for piece in bytes.chunks(MIB) {
        file.write_all(piece)?;
    }
    if durable {
        fsync(&file)?;
    }
    Ok(())
}

fn forget(path: &Path) -> Result<()> {
    Ok(fadvise(File::open(path)?.as_fd(), 0, None, Advice::DontNeed)?)
}

fn read(path: &Path, into: &mut [u8]) -> Result<()> {
    let mut file = File::open(path)?;
    for piece in into.chunks_mut(MIB) {
        file.read_exact(piece)?;
    }
    Ok(())
}

/// Medians over all rounds.
pub(super) fn median(all: &[Limits]) -> Option<Limits> {
    let of = |get: fn(&Limits) -> f64| {
        let mut values: Vec<f64> = all.iter().map(get).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(Limits {
        copy: of(|limits| limits.copy)?,
        copy_fresh: of(|limits| limits.copy_fresh)?,
        tmpfs_write: of(|limits| limits.tmpfs_write)?,
        tmpfs_read: of(|limits| limits.tmpfs_read)?,
        disk_write: of(|limits| limits.disk_write)?,
        disk_read: of(|limits| limits.disk_read)?,
        checkpoint: Checkpoint {
            other_read: of(|limits| limits.checkpoint.other_read)?,
            tmpfs_over: of(|limits| limits.checkpoint.tmpfs_over)?,
            both: of(|limits| limits.checkpoint.both)?,
        },
        restore: Restore {
            fill_huge: of(|limits| limits.restore.fill_huge)?,
            fill_small: of(|limits| limits.restore.fill_small)?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_without_is_told() {
        let checkpoint = Checkpoint { other_read: 1.5, tmpfs_over: 2.0, both: 1.0 };
        let restore = Restore { fill_huge: 2.5, fill_small: 3.0 };
        assert_eq!(told("read 1.5\nover 2.0\nboth 1.0\nhuge 2.5\nsmall 3.0\n"), Some((checkpoint, restore)));
        assert_eq!(told("read 1.5\nover x\nboth 1.0\nhuge 2.5\nsmall 3.0\n"), None);
        assert_eq!(told(""), None);
    }
}
