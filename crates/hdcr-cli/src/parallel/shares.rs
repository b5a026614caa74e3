//! What one member has written in one round: an image, and whose programs are in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hdcr_sync::ids::{Epoch, Round, Term};
use hdcr_sync::manifest::{Share, ShareId};
use serde::{Deserialize, Serialize};

use super::room::{Life, damaged, read_json, write_json};
use crate::failure::{Failure, Result};
use crate::job::make_private;

/// A program of the job: the first process of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Program {
    pub(super) member: u32,
    /// Its pid where it runs.
    pub(super) pid: i32,
}

/// How a round is called.
pub(super) fn called(round: Round) -> String {
    format!("{}.{}", round.term.0, round.epoch.0)
}

fn named(name: &str) -> Option<Round> {
    let (term, epoch) = name.split_once('.')?;
    Some(Round { term: Term(term.parse().ok()?), epoch: Epoch(epoch.parse().ok()?) })
}

fn directory(life: &Life, round: Round) -> PathBuf {
    life.file("shares").join(called(round))
}

/// Where the image of a share lies.
pub(super) fn image(life: &Life, id: ShareId) -> PathBuf {
    directory(life, id.round).join(id.member.0.to_string())
}

fn facts(life: &Life, id: ShareId) -> PathBuf {
    directory(life, id.round).join(format!("{}.json", id.member.0))
}

/// Makes room for a share.
pub(super) fn begin(life: &Life, id: ShareId) -> Result<PathBuf> {
    make_private(&directory(life, id.round))?;
    Ok(image(life, id))
}

/// Completes a share whose image is there; what is to be said of it. All of it is synced.
pub(super) fn complete(life: &Life, id: ShareId, programs: &[Program], tasks: usize, bytes: u64) -> Result<Share> {
    write_json(&facts(life, id), &programs)?;
    let round = directory(life, id.round);
    for directory in [round.as_path(), round.parent().unwrap_or(&round)] {
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(Failure::system(format_args!("syncing {}", directory.display())))?;
    }
    let digest = digest(life, id)?;
    Ok(Share {
        member: id.member,
        tasks: u32::try_from(tasks).unwrap_or(u32::MAX),
        bytes,
        digest,
        channels: Vec::new(),
    })
}

/// Of the manifest of the image, which has the digests of all the rest, and of whose programs are in it.
fn digest(life: &Life, id: ShareId) -> Result<[u8; 32]> {
    let mut hash = blake3::Hasher::new();
    for path in [image(life, id).join("manifest"), facts(life, id)] {
        let bytes = fs::read(&path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                return damaged(&path, "it is not there");
            }
            Failure::system(format_args!("reading {}", path.display()))(error)
        })?;
        hash.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(*hash.finalize().as_bytes())
}

/// Refuses a share that is not the one that was committed.
pub(super) fn verify(life: &Life, round: Round, share: &Share) -> Result<()> {
    let id = ShareId { round, member: share.member };
    if digest(life, id)? == share.digest {
        return Ok(());
    }
    Err(damaged(&image(life, id), "it is not what was committed"))
}

/// Whose programs are in a share.
pub(super) fn programs(life: &Life, id: ShareId) -> Result<Vec<Program>> {
    let path = facts(life, id);
    read_json(&path)?.ok_or_else(|| damaged(&path, "it is not there"))
}

/// Removes shares of rounds before `before` but those of `keep`.
pub(super) fn collect(life: &Life, keep: &[Round], before: Round) {
    let Ok(rounds) = fs::read_dir(life.file("shares")) else { return };
    for entry in rounds.flatten() {
        let round = entry.file_name().to_str().and_then(named);
        if round.is_some_and(|round| round < before && !keep.contains(&round)) {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::debug!(%error, "an old share was not removed");
        }
        Ok(()) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use hdcr_image::JobName;
    use hdcr_sync::ids::Member;

    use super::super::room::Room;
    use super::*;

    #[test]
    fn shares_are_what_was_committed_and_old_ones_go() {
        let store = tempfile::tempdir().unwrap();
        let room = Room::of(store.path(), &JobName::new("sim").unwrap());
        let life = room.begin_life().unwrap();
        let round = |epoch| Round { term: Term(2), epoch: Epoch(epoch) };
        let mut made = Vec::new();
        for epoch in 1..=4 {
            let id = ShareId { round: round(epoch), member: Member(0) };
            fs::create_dir(begin(&life, id).unwrap()).unwrap();
            fs::write(image(&life, id).join("manifest"), epoch.to_string()).unwrap();
            made.push(complete(&life, id, &[Program { member: 0, pid: 7 }], 1, 9).unwrap());
        }
        verify(&life, round(3), &made[2]).unwrap();
        assert!(verify(&life, round(3), &made[1]).is_err());
        let id = ShareId { round: round(3), member: Member(0) };
        assert_eq!(programs(&life, id).unwrap(), [Program { member: 0, pid: 7 }]);
        collect(&life, &[round(3), round(2)], round(3));
        let left = |epoch| directory(&life, round(epoch)).exists();
        assert_eq!([1, 2, 3, 4].map(left), [false, true, true, true]);
        fs::write(facts(&life, id), "[]").unwrap();
        assert!(verify(&life, round(3), &made[2]).is_err());
    }
}
