//! System V semaphores that a tree uses: their values go back with its memory.
//!
//! A set belongs to nobody, and nothing says who may use it; what the kernel remembers of each semaphore is the process that
//! changed it last. A set is taken for the tree's when one of its processes is among those, and nobody else who lives. A set
//! that outsiders use as well is named and left alone, at the checkpoint and at the restore.
//!
//! Values are put back by processes of the tree, each those that it had changed last: so the next checkpoint sees the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use hdcr_image::{Record, Tag};
use hdcr_sys::semaphores::{self, Rights};
use nix::libc;

use crate::batch::Arg;
use crate::began::Began;
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::model::{self, ObjectId};
use crate::procfs;
use crate::restore::{Restore, StoredFrame};
use crate::stored::{self, Model};
use crate::survey::Survey;
use crate::task::Stage;

/// What is kept of all sets; one in an image.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SemaphoresRecord {
    /// Numbers of sets mean something as long as this system runs, and in this namespace only.
    #[prost(bytes = "vec", tag = "1")]
    boot: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    namespace: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    sets: Vec<SetRecord>,
}

/// What is kept of a set.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SetRecord {
    #[prost(int32, tag = "1")]
    id: i32,
    #[prost(int32, tag = "2")]
    key: i32,
    #[prost(uint32, tag = "3")]
    mode: u32,
    #[prost(uint32, tag = "4")]
    uid: u32,
    #[prost(uint32, tag = "5")]
    gid: u32,
    #[prost(uint32, repeated, tag = "6")]
    values: Vec<u32>,
    /// Who changed each of them last, 0: nobody.
    #[prost(int32, repeated, tag = "7")]
    users: Vec<i32>,
}

impl Record for SemaphoresRecord {
    const TAG: Tag = Tag(0x0105);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// So many semaphores are looked at in sets of strangers, who may have made them by the ten thousand: a call for each.
const MOST: usize = 1 << 16;
/// And so many in sets of users of the tree.
const MOST_OWN: usize = 1 << 20;
/// The highest value of a semaphore (`SEMVMX`).
const HIGHEST: u32 = 32_767;

/// A set as `/proc/sysvipc/sem` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Row {
    key: i32,
    id: i32,
    mode: u32,
    count: usize,
    uid: u32,
    gid: u32,
    /// When a value, the owner or the mode was changed last.
    changed: i64,
}

fn parse(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (key, id) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let mode = u32::from_str_radix(words.next()?, 8).ok()?;
        let (count, uid, gid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let (_cuid, _cgid) = (words.next()?, words.next()?);
        let (operation, change): (i64, i64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Row { key, id, mode, count, uid, gid, changed: operation.max(change) })
    };
    text.lines().skip(1).filter_map(row).collect()
}

fn rows() -> Vec<Row> {
    parse(&String::from_utf8_lossy(&procfs::at_once("/proc/sysvipc/sem").unwrap_or_default()))
}

/// Who changed each semaphore of a set last. `None`: it is gone, or not for this user, and then not for the tree's either.
fn users_of(row: &Row) -> Option<Vec<i32>> {
    (0..row.count).map(|number| semaphores::last_process(row.id, i32::try_from(number).ok()?).ok()).collect()
}

/// Whose a set is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// Not the tree's.
    None,
    /// The tree's alone, as far as anybody knows.
    Own,
    /// This process outside uses it as well.
    Shared(Pid),
    /// A process of the tree has the number of a user that ended before it began.
    Former(Pid),
}

fn use_of(users: &[i32], changed: i64, tree: &Began, lives: &dyn Fn(Pid) -> bool) -> Use {
    let users = || users.iter().copied().filter(|user| *user != 0).map(Pid);
    if !users().any(|user| tree.did(user, changed)) {
        return users().find(|user| tree.has(*user)).map_or(Use::None, Use::Former);
    }
    users().find(|user| !tree.has(*user) && lives(*user)).map_or(Use::Own, Use::Shared)
}

/// Whether there is such a process, also one that is not shown.
pub(crate) fn lives(pid: Pid) -> bool {
    procfs::stat(pid).is_ok() || procfs::hidden(pid)
}

/// Who owns what processes of a tree make.
fn owners_of(tree: &BTreeSet<Pid>) -> BTreeSet<u32> {
    tree.iter().filter_map(|pid| rustix::fs::stat(format!("/proc/{pid}")).ok()).map(|stat| stat.st_uid).collect()
}

/// The sets that are looked at for those of a tree, and how many are not. The sets of its users come first, and then the
/// small ones: strangers must not hide them behind theirs.
fn looked_at(mut rows: Vec<Row>, owners: &BTreeSet<u32>) -> (Vec<Row>, usize) {
    let all = rows.len();
    let is_own = |row: &Row| owners.contains(&row.uid);
    rows.sort_by_key(|row| (!is_own(row), row.count));
    let (mut own, mut others) = (MOST_OWN, MOST);
    rows.retain(|row| {
        let left = if is_own(row) { &mut own } else { &mut others };
        let rest = left.checked_sub(row.count);
        *left = rest.unwrap_or(0);
        rest.is_some()
    });
    let unseen = all - rows.len();
    (rows, unseen)
}

/// How many sets there are.
pub(crate) fn count() -> usize {
    rows().len()
}

/// The sets that a tree uses, with who changed them last; also how many could not be looked at.
fn of_tree(tree: &BTreeSet<Pid>) -> (Vec<(Row, Vec<i32>, Use)>, usize) {
    let rows = rows();
    if rows.is_empty() {
        return (Vec::new(), 0);
    }
    let owners = owners_of(tree);
    let tree = Began::of(tree);
    let mut found = Vec::new();
    let (rows, unseen) = looked_at(rows, &owners);
    for row in rows {
        let Some(users) = users_of(&row) else { continue };
        match use_of(&users, row.changed, &tree, &lives) {
            Use::None => {}
            whose @ (Use::Own | Use::Shared(_) | Use::Former(_)) => found.push((row, users, whose)),
        }
    }
    found.sort_by_key(|(row, _, _)| row.id);
    (found, unseen)
}

fn note(code: &'static str, id: i32, cause: String, remedy: &str) -> Refusal {
    let object = format!("System V semaphores {id}");
    Refusal { code, object, owner: Owner::default(), cause, remedy: remedy.to_owned() }
}

fn outside(id: i32, cause: String) -> Refusal {
    note("semaphore-outside", id, cause, "know that a restore leaves them as they are")
}

fn shared(id: i32, user: Pid) -> Refusal {
    outside(id, format!("process {user}, which is not of the tree, uses them as well"))
}

fn unlooked(sets: usize) -> Refusal {
    Refusal {
        code: "semaphores-unseen",
        object: format!("{sets} sets of System V semaphores"),
        owner: Owner::default(),
        cause: format!(
            "there are more than {MOST} semaphores of other users, or {MOST_OWN} of the program's, and not all are looked at"
        ),
        remedy: "know that a restore leaves those as they are; ipcrm(1) removes what nobody needs".to_owned(),
    }
}

fn former(user: Pid) -> String {
    format!("process {user} that used them ended before the one of the tree began that has its number now")
}

/// Names the sets that stay as they are.
pub(crate) fn survey(survey: &mut Survey<'_>) {
    if *survey.common.sets.get_or_insert_with(count) == 0 {
        survey.shown.no_semaphores = true;
        return;
    }
    let (found, unseen) = of_tree(survey.pids);
    if unseen > 0 {
        survey.note(unlooked(unseen));
    }
    for (row, _, whose) in found {
        match whose {
            Use::None | Use::Own => {}
            Use::Shared(user) => survey.note(shared(row.id, user)),
            Use::Former(user) => survey.note(outside(row.id, former(user))),
        }
    }
}

/// This system as long as it runs, and this IPC namespace.
pub(crate) fn place() -> (Vec<u8>, Vec<u8>) {
    let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let own = Pid(rustix::process::getpid().as_raw_nonzero().get());
    (boot, procfs::link(own, "ns/ipc").unwrap_or_default())
}

/// Keeps the values of the sets that nobody else uses.
pub(crate) fn capture(cx: &mut Capture<'_>) -> Result<()> {
    if cx.seen.no_semaphores {
        return Ok(());
    }
    let tree = cx.frozen.processes().iter().map(|process| process.pid).collect();
    let mut sets = Vec::new();
    for (row, users, _) in of_tree(&tree).0.into_iter().filter(|(_, _, whose)| *whose == Use::Own) {
        let Ok(values) = semaphores::values(row.id, row.count) else { continue };
        let values = values.into_iter().map(u32::from).collect();
        sets.push(SetRecord { id: row.id, key: row.key, mode: row.mode, uid: row.uid, gid: row.gid, values, users });
    }
    if sets.is_empty() {
        return Ok(());
    }
    let (boot, namespace) = place();
    cx.frame(ObjectId(0), &SemaphoresRecord { boot, namespace, sets })
}

/// Sets of a tree in the making. Those that were made for it go with it when it does not come to run.
#[derive(Debug, Default)]
pub(crate) struct Made(Vec<i32>);

impl Made {
    /// The tree runs.
    pub(crate) fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for id in &self.0 {
            if let Err(error) = semaphores::remove(*id) {
                tracing::debug!(%error, id, "semaphores of a tree that did not come to run stay");
            }
        }
    }
}

/// Where a set comes back.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Room {
    /// In the one that was left behind.
    There,
    /// It has to be made.
    Free,
    /// Likewise, when one of the same key or number is gone that the program has made since.
    Newer(i32),
    /// Something else is there.
    Taken(Refusal),
}

/// Whether processes of the tree were the last to use a set before they died, and nobody since.
fn is_left(users: &[i32], tree: &BTreeSet<Pid>) -> bool {
    let alive = |pid: Pid| procfs::stat(pid).map_or_else(|_| lives(pid), |stat| !procfs::dead(stat.state));
    let users = || users.iter().copied().filter(|user| *user != 0).map(Pid);
    users().any(|user| tree.contains(&user)) && !users().any(alive)
}

fn room(set: &SetRecord, rows: &[Row], same_place: bool, left: &dyn Fn(&Row) -> bool) -> Room {
    let other = |row: &Row, what| {
        if same_place && row.uid == set.uid && left(row) {
            return Room::Newer(row.id);
        }
        let remedy = "remove it with ipcrm(1) if nobody needs it";
        Room::Taken(note("semaphore-taken", set.id, format!("another set has their {what}"), remedy))
    };
    if let Some(row) = rows.iter().find(|row| row.id == set.id) {
        let alike = same_place && (row.key, row.count) == (set.key, set.values.len());
        return if alike { Room::There } else { other(row, "number") };
    }
    let of_key = rows.iter().find(|row| set.key != libc::IPC_PRIVATE && row.key == set.key);
    of_key.map_or(Room::Free, |row| other(row, "key"))
}

/// The sets of an image, and whether their numbers mean something here.
fn sets(frames: &BTreeMap<(u16, ObjectId), StoredFrame>) -> Result<(Vec<SetRecord>, bool)> {
    if stored::ids(frames, SemaphoresRecord::TAG).is_empty() {
        return Ok((Vec::new(), true));
    }
    let SemaphoresRecord { boot, namespace, sets } = stored::one(frames, ObjectId(0))?;
    sets.iter().try_for_each(sound)?;
    Ok((sets, (boot, namespace) == place()))
}

/// The sets of an image that are here, in words.
pub(crate) fn here(model: &Model) -> Result<Vec<String>> {
    let (sets, same_place) = sets(&model.frames)?;
    let rows = if same_place && !sets.is_empty() { rows() } else { Vec::new() };
    let is_here = |set: &&SetRecord| rows.iter().any(|row| row.id == set.id);
    Ok(sets.iter().filter(is_here).map(|set| format!("System V semaphores {}", set.id)).collect())
}

fn pids_of(model: &Model) -> BTreeSet<Pid> {
    model.processes.iter().map(|process| process.pid).collect()
}

/// Whether this process may say which number the next set gets: nothing is written.
fn may_choose() -> bool {
    fs::OpenOptions::new().write(true).open("/proc/sys/kernel/sem_next_id").is_ok()
}

/// What stands in the way of the sets of an image.
pub(crate) fn check(model: &Model) -> Result<Vec<Refusal>> {
    let (sets, same_place) = sets(&model.frames)?;
    let (rows, tree) = (if sets.is_empty() { Vec::new() } else { rows() }, pids_of(model));
    let left = |row: &Row| users_of(row).is_some_and(|users| is_left(&users, &tree));
    let obstacle = |set: &SetRecord| match room(set, &rows, same_place, &left) {
        Room::There => None,
        Room::Taken(refusal) => Some(refusal),
        Room::Free | Room::Newer(_) if may_choose() => None,
        Room::Free | Room::Newer(_) => Some(lost(set.id, "this user may not choose it")),
    };
    Ok(sets.iter().filter_map(obstacle).collect())
}

/// Makes the sets that are gone again, still without their values. The tree is dead, and not born again.
pub(crate) fn make(cx: &mut Restore<'_>, model: &Model) -> Result<()> {
    let (sets, same_place) = sets(cx.frames)?;
    let tree = pids_of(model);
    let left = |row: &Row| users_of(row).is_some_and(|users| is_left(&users, &tree));
    for set in &sets {
        let mut found = room(set, &rows(), same_place, &left);
        // One of its number, and one of its key.
        for _ in 0..2 {
            let Room::Newer(id) = found else { break };
            semaphores::remove(id).map_err(Error::system("removing semaphores", id))?;
            let cause = "the program made them after the checkpoint; they were removed".to_owned();
            cx.notes.push(note("semaphore-newer", id, cause, ""));
            found = room(set, &rows(), same_place, &left);
        }
        match found {
            Room::There => {}
            Room::Taken(refusal) => return Err(Error::refuse(refusal)),
            Room::Free | Room::Newer(_) => {
                make_one(set).map_err(|error| Error::refuse(lost(set.id, &error.to_string())))?;
                cx.semaphores.0.push(set.id);
            }
        }
    }
    Ok(())
}

/// Puts values back. The tree stands still.
pub(crate) fn restore(cx: &mut Restore<'_>, model: &Model) -> Result<()> {
    let (sets, _) = sets(cx.frames)?;
    let tree = pids_of(model);
    let living: BTreeSet<Pid> = model.processes.iter().filter(|p| !p.zombie()).map(|p| p.pid).collect();
    let rows = rows();
    for set in &sets {
        let row = rows.iter().find(|row| row.id == set.id);
        let now = row.and_then(users_of).unwrap_or_default();
        match foreign(set, &now, &tree) {
            Some(user) if !cx.semaphores.0.contains(&set.id) => cx.notes.push(shared(set.id, user)),
            _ => put_back(cx, set, &living),
        }
    }
    Ok(())
}

fn sound(set: &SetRecord) -> Result<()> {
    let sound = set.values.len() == set.users.len() && set.values.iter().all(|value| *value <= HIGHEST);
    if sound { Ok(()) } else { Err(Error::Unsound(format!("semaphores {} with values that cannot be", set.id))) }
}

/// Somebody who uses a set now and is not of the tree; process 0 where that is not to be seen. In a pid namespace of one's
/// own whoever is outside of it reads as 0, and so do the dead processes of the tree and who has never been there.
fn foreign(set: &SetRecord, now: &[i32], tree: &BTreeSet<Pid>) -> Option<Pid> {
    let other = || now.iter().map(|user| Pid(*user)).find(|user| user.0 != 0 && !tree.contains(user) && lives(*user));
    if now.len() == set.users.len() { other() } else { Some(Pid(0)) }
}

fn make_one(set: &SetRecord) -> std::io::Result<()> {
    let mode = u16::try_from(set.mode & 0o777).unwrap_or_default();
    let count = i32::try_from(set.values.len()).unwrap_or_default();
    let id = semaphores::make(set.key, count, Rights { uid: set.uid, gid: set.gid, mode }, set.id)?;
    if id == set.id { Ok(()) } else { Err(std::io::Error::other("the number is in use")) }
}

fn lost(id: i32, cause: &str) -> Refusal {
    let cause = format!("they are gone, and cannot be made again under their number: {cause}");
    note("semaphore-gone", id, cause, "restore as root or with the capability CAP_CHECKPOINT_RESTORE")
}

/// After the death of the old processes nobody uses them, and the new ones stand still.
fn put_back(cx: &mut Restore<'_>, set: &SetRecord, living: &BTreeSet<Pid>) {
    let Some(any) = living.first().copied() else { return };
    for (number, (value, user)) in set.values.iter().zip(&set.users).enumerate() {
        let Ok(number) = i32::try_from(number) else { return };
        let task = Some(Pid(*user)).filter(|user| living.contains(user)).unwrap_or(any);
        let args = [Arg::from(set.id), Arg::from(number), Arg::from(libc::SETVAL), Arg::Value((*value).into())];
        cx.batch(Stage::Limits, Tid(task.0)).try_call("putting a semaphore back", libc::SYS_semctl, &args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(users: &[i32]) -> SetRecord {
        let values = users.iter().map(|_| 3).collect();
        SetRecord { id: 98_307, key: 0, mode: 0o600, uid: 1, gid: 2, values, users: users.to_vec() }
    }

    #[test]
    fn the_record_comes_back_as_it_was_and_what_cannot_be_is_refused() {
        let record = SemaphoresRecord { boot: b"a".to_vec(), namespace: b"ipc:[1]".to_vec(), sets: vec![set(&[7, 0])] };
        assert_eq!(SemaphoresRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        assert!(sound(&set(&[7, 0])).is_ok());
        assert!(sound(&SetRecord { values: vec![3], ..set(&[7, 0]) }).is_err());
        assert!(sound(&SetRecord { values: vec![3, HIGHEST + 1], ..set(&[7, 0]) }).is_err());
    }

    #[test]
    fn rows_are_read() {
        let text = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n\
                    -559038737      65540   640          2 65534  1000 65534 65534          0 1795655739\nodd\n";
        let expected = Row {
            key: -559_038_737,
            id: 65_540,
            mode: 0o640,
            count: 2,
            uid: 65_534,
            gid: 1000,
            changed: 1_795_655_739,
        };
        assert_eq!(parse(text), [expected]);
    }

    #[test]
    fn a_set_is_the_trees_when_it_was_the_last_and_nobody_else_lives() {
        let tree = Began::at(&[(7, 100), (8, 90), (6, 102)]);
        let lives = |pid: Pid| pid == Pid(9);
        let whose = |users: &[i32]| use_of(users, 100, &tree, &lives);
        assert_eq!(whose(&[0, 0]), Use::None);
        assert_eq!(whose(&[9, 0]), Use::None);
        assert_eq!(whose(&[7, 0, 8]), Use::Own);
        // One that has ended may have been the tree's.
        assert_eq!(whose(&[7, 5]), Use::Own);
        assert_eq!(whose(&[7, 9]), Use::Shared(Pid(9)));
        // The tree has the number of somebody who died before.
        assert_eq!(whose(&[5, 6]), Use::Former(Pid(6)));
        assert_eq!(whose(&[6, 7]), Use::Own);
    }

    #[test]
    fn who_uses_a_set_now_is_seen_or_not() {
        let tree = BTreeSet::from([Pid(7)]);
        let own = Pid(i32::try_from(std::process::id()).unwrap());
        assert_eq!(foreign(&set(&[7, 0]), &[7, 0], &tree), None);
        assert_eq!(foreign(&set(&[7, 0]), &[7, own.0], &tree), Some(own));
        // Seen from another pid namespace: those who are dead.
        assert_eq!(foreign(&set(&[7, 5]), &[0, 0], &tree), None);
        assert_eq!(foreign(&set(&[7, 0]), &[], &tree), Some(Pid(0)));
    }

    #[test]
    fn strangers_do_not_hide_the_sets_of_a_tree() {
        let row = |id, uid, count| Row { key: 0, id, mode: 0, count, uid, gid: 0, changed: 0 };
        let rows =
            vec![row(0, 65_534, 32_000), row(1, 65_534, 32_000), row(2, 65_534, 1_600), row(3, 7, 3), row(4, 8, 1)];
        let (seen, unseen) = looked_at(rows, &BTreeSet::from([7]));
        assert_eq!(seen.iter().map(|row| row.id).collect::<Vec<_>>(), [3, 4, 2, 0]);
        assert_eq!(unseen, 1);
    }

    #[test]
    fn a_set_of_a_later_life_is_told_from_what_is_somebody_elses() {
        let row = Row { key: 5, id: 98_307, mode: 0o600, count: 2, uid: 1, gid: 2, changed: 1 };
        let set = SetRecord { key: 5, ..set(&[7, 0]) };
        let code = |row: Row, same_place, left| match room(&set, &[row], same_place, &|_| left) {
            Room::There => "there",
            Room::Free => "free",
            Room::Newer(_) => "newer",
            Room::Taken(refusal) => refusal.code,
        };
        assert_eq!(code(row, true, false), "there");
        assert_eq!(code(row, false, true), "semaphore-taken");
        assert_eq!(code(Row { id: 1, key: 6, ..row }, true, true), "free");
        for other in [Row { id: 1, ..row }, Row { key: 6, ..row }, Row { count: 3, ..row }] {
            assert_eq!(code(other, true, true), "newer");
            assert_eq!(code(other, true, false), "semaphore-taken");
            assert_eq!(code(Row { uid: 0, ..other }, true, true), "semaphore-taken");
        }
        let (own, dead) = (std::process::id().cast_signed(), i32::MAX);
        let tree = BTreeSet::from([Pid(own), Pid(dead)]);
        assert!(is_left(&[dead, 0], &tree) && is_left(&[dead, dead - 1], &tree));
        assert!(!is_left(&[dead, own], &tree) && !is_left(&[dead - 1, 0], &tree) && !is_left(&[0, 0], &tree));
    }
}
