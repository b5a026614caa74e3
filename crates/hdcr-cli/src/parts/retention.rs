//! Which checkpoints of a job go: after each new one, and by hand.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use hdcr_image::{ImageReader, JobName};
use hdcr_policy::retention::{self, Limits, Stored};
use hdcr_store::{DirectoryStore, Selector};
use rustix::time::ClockId;

use super::store;
use crate::failure::Result;
use crate::kinds::Keep;
use crate::machine;
use crate::process;

/// The pinned checkpoints of a job. Where that cannot be read, all are taken for pinned: the store itself refuses to remove those
/// that are.
fn pins(store: &DirectoryStore, job: &JobName, numbers: &[u64]) -> BTreeSet<u64> {
    store.pins(job).map_or_else(|_| numbers.iter().copied().collect(), |pins| pins.into_keys().collect())
}

/// What a decision has to know of a checkpoint. Only what a limit is about is looked at.
fn stored(store: &DirectoryStore, job: &JobName, number: u64, keep: &Keep) -> Stored {
    let now = machine::now(ClockId::Realtime);
    let age = || {
        let source = store.source(&Selector::Snapshot(job.clone(), number)).ok()?;
        let made = ImageReader::manifest_of(&source).ok()?.facts.clocks.realtime_ns;
        Some(Duration::from_nanos(u64::try_from(now.saturating_sub(made)).unwrap_or(0)))
    };
    // What an image needs of the one before it has as well: none is kept for another one's sake.
    Stored {
        age: keep.time.and_then(|_| age()).unwrap_or_default(),
        parts: keep.bytes.and_then(|_| store.files(job, number).ok()).unwrap_or_default(),
        ..Stored::default()
    }
}

fn limits(keep: &Keep) -> Limits {
    let Keep { count, time, bytes } = *keep;
    Limits { count, age: time, bytes }
}

/// Removes what is named and what the policy gives up, first what is not of the line of the present life. The new checkpoint is safe, so a
/// failure here is only told.
pub(super) fn give_up(root: &Path, job: &JobName, keep: &Keep, line: &[u64], named: &[u64]) -> Vec<u64> {
    let store = store(root);
    let Ok(mut numbers) = store.sequences(job) else { return Vec::new() };
    let pins = pins(&store, job, &numbers);
    let retire = |number: &u64| {
        store
            .retire(job, *number)
            .inspect_err(|error| tracing::warn!(%error, number, "an old checkpoint could not be removed"))
            .is_ok()
    };
    let mut removed: Vec<u64> = numbers
        .iter()
        .copied()
        .filter(|number| named.contains(number) && !pins.contains(number))
        .filter(retire)
        .collect();
    numbers.retain(|number| !removed.contains(number));
    let left = |number: &u64| Stored {
        left: !line.contains(number),
        pinned: pins.contains(number),
        ..stored(&store, job, *number, keep)
    };
    let all: Vec<Stored> = numbers.iter().map(left).collect();
    let gone = retention::give_up(&all, &limits(keep));
    removed.extend(gone.into_iter().filter_map(|place| numbers.get(place).copied()).filter(retire));
    removed
}

/// In which order checkpoints are given up for room: first what is not of the line of the present life, then that line, but for its
/// last one, without which there is no way back.
fn in_order(numbers: &[u64], line: &[u64]) -> Vec<u64> {
    let is_of_it = |number: &&u64| line.contains(number);
    let own: Vec<u64> = numbers.iter().filter(is_of_it).copied().collect();
    let others = numbers.iter().filter(|number| !is_of_it(number)).copied();
    match own.split_last() {
        Some((_, older)) => others.chain(older.iter().copied()).collect(),
        None => numbers.split_last().map(|(_, older)| older.to_vec()).unwrap_or_default(),
    }
}

/// Removes a checkpoint whose clones take room, when all that can go together could make up for what is lacking: its number, and
/// whether the next one may go as well. Those that are not of the present life may, as they can have their blocks in common with one
/// another; of that life's own each must have made room.
pub(super) fn give_up_clones(root: &Path, job: &JobName, line: &[u64], lacking: u64) -> Option<(u64, bool)> {
    /// File systems may show what was freed a little later.
    const STEP: Duration = Duration::from_millis(50);
    const STEPS: usize = 120;
    let store = store(root);
    let numbers = store.sequences(job).ok()?;
    let pins = pins(&store, job, &numbers);
    let mut order = in_order(&numbers, line);
    order.retain(|number| !pins.contains(number));
    let with_clones = |number: &u64| Some((*number, store.clones(job, *number).ok().filter(|bytes| *bytes > 0)?));
    let all: Vec<(u64, u64)> = order.iter().filter_map(with_clones).collect();
    if all.iter().map(|(_, bytes)| bytes).fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)) < lacking {
        return None;
    }
    let (number, _) = *all.first()?;
    let before = store.room().ok()?;
    store
        .retire(job, number)
        .inspect_err(|error| tracing::warn!(%error, number, "an old checkpoint could not be removed"))
        .ok()?;
    let more = (0..STEPS).any(|step| {
        if step > 0 {
            std::thread::sleep(STEP);
        }
        store.room().is_ok_and(|room| room > before)
    });
    Some((number, more || !line.contains(&number)))
}

/// What goes when somebody prunes a job, oldest first, and what would go if it could.
pub(crate) fn plan(
    root: &Path,
    job: &JobName,
    keep: &Keep,
    pinned: &dyn Fn(u64) -> bool,
) -> Result<(Vec<u64>, Vec<u64>)> {
    let store = store(root);
    let numbers = store.sequences(job)?;
    let all: Vec<Stored> = numbers.iter().map(|number| stored(&store, job, *number, keep)).collect();
    let named = |places: Vec<usize>| -> BTreeSet<u64> {
        places.into_iter().filter_map(|place| numbers.get(place).copied()).collect()
    };
    let wanted = named(retention::give_up(&all, &limits(keep)));
    let with_pin = |(one, number): (&Stored, &u64)| {
        let pinned = wanted.contains(number) && pinned(*number);
        Stored { pinned, ..one.clone() }
    };
    let held: Vec<Stored> = all.iter().zip(&numbers).map(with_pin).collect();
    let gone = named(retention::give_up(&held, &limits(keep)));
    // The newest stays whatever is asked for.
    let newest = numbers.last().zip(all.last());
    let newest = newest.filter(|(_, one)| keep.time.is_some_and(|time| one.age > time)).map(|(number, _)| *number);
    let back = wanted.difference(&gone).copied().chain(newest).collect();
    Ok((gone.into_iter().collect(), back))
}

/// The bytes that only these checkpoints of a job take.
pub(crate) fn freed(root: &Path, job: &JobName, gone: &[u64]) -> u64 {
    let store = store(root);
    let files = |number: &u64| store.files(job, *number).unwrap_or_default();
    let numbers = store.sequences(job).unwrap_or_default();
    let kept: BTreeSet<u64> =
        numbers.iter().filter(|number| !gone.contains(number)).flat_map(files).map(|(file, _)| file).collect();
    let lost: BTreeSet<(u64, u64)> = gone.iter().flat_map(files).filter(|(file, _)| !kept.contains(file)).collect();
    lost.iter().map(|(_, bytes)| bytes).sum()
}

/// The process that reads a checkpoint: the memory of a program is still being filled from it, or it is being restored.
pub(crate) fn reader(root: &Path, job: &JobName, number: u64) -> Option<i32> {
    let directory = store(root).find(&Selector::Snapshot(job.clone(), number)).ok()?;
    let directory = fs::canonicalize(directory).ok()?;
    let own = std::process::id().cast_signed();
    let reads = |pid: &i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|path| path.starts_with(&directory) && path != directory)
    };
    process::all().into_iter().filter(|pid| *pid != own).find(reads)
}

/// The oldest checkpoint of a job that goes on from this one: it keeps what it needs of it.
pub(crate) fn goes_on_from(root: &Path, job: &JobName, number: u64) -> Option<u64> {
    let store = store(root);
    let is_based = |other: &u64| {
        let base = store.source(&Selector::Snapshot(job.clone(), *other)).ok();
        let base = base.and_then(|source| ImageReader::manifest_of(&source).ok()?.facts.base);
        base.and_then(|base| base.place).is_some_and(|(of, at)| of == *job && at == number)
    };
    store.sequences(job).ok()?.into_iter().find(|other| *other > number && is_based(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_of_the_present_life_is_never_given_up_for_room() {
        assert_eq!(in_order(&[1, 2, 3, 4, 5], &[1, 2, 3]), [4, 5, 1, 2]);
        assert_eq!(in_order(&[1, 2, 3], &[1, 2, 3]), [1, 2]);
        assert!(in_order(&[7], &[7]).is_empty());
        // Nothing is known of it: the newest.
        assert_eq!(in_order(&[1, 2], &[]), [1]);
    }
}
