//! System V shared memory (`shmget(2)`, `shmat(2)`): segments that a tree uses.
//!
//! A segment is an object like a file, with contents of its own; the mappings that show it name it. It belongs to the tree
//! when processes of the tree have it attached and nobody else has, or when nobody has and one of them made it or was the
//! last to use it, and had begun by then: numbers come again. A segment that others have attached as well is refused: it could not go back without them.
//!
//! Captured: number, key, size, owner, mode, whether it is locked (`SHM_LOCK`) and marked for removal (`IPC_RMID`), who used
//! it last, contents. Not captured: who made it (`shm_cpid`, `cuid`, `cgid`) and the times: these become the restore's.

mod capture;
mod restore;

use std::collections::BTreeMap;

use hdcr_image::{Record, Tag};

pub(crate) use self::capture::{Met, capture, note};
pub(crate) use self::restore::{Made, check, fill, here, make};
use crate::began::Began;
use crate::error::{Owner, Refusal};
use crate::ids::Pid;
use crate::model;
use crate::procfs::{self, MapLine};
use crate::semaphores::lives;
use crate::survey::Survey;

/// What is kept of a segment; its contents are those of the same object.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SegmentRecord {
    /// Numbers of segments mean something as long as this system runs, and in this namespace only.
    #[prost(bytes = "vec", tag = "1")]
    boot: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    namespace: Vec<u8>,
    #[prost(int32, tag = "3")]
    id: i32,
    #[prost(int32, tag = "4")]
    key: i32,
    /// The key that it was made with, which shows in the names of its mappings: one that is marked for removal has lost it.
    #[prost(int32, tag = "5")]
    first_key: i32,
    /// With [`MARKED`] and [`LOCKED`].
    #[prost(uint32, tag = "6")]
    mode: u32,
    #[prost(uint32, tag = "7")]
    uid: u32,
    #[prost(uint32, tag = "8")]
    gid: u32,
    #[prost(uint64, tag = "9")]
    size: u64,
    /// Who attached it or let go of it last.
    #[prost(int32, tag = "10")]
    user: i32,
}

impl Record for SegmentRecord {
    const TAG: Tag = Tag(0x0106);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// It is removed when the last process lets go of it (`SHM_DEST`).
const MARKED: u32 = 0o1000;
/// Its pages stay in memory (`SHM_LOCKED`).
const LOCKED: u32 = 0o2000;

/// A segment as `/proc/sysvipc/shm` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Row {
    key: i32,
    id: i32,
    mode: u32,
    size: u64,
    creator: i32,
    user: i32,
    attached: u64,
    uid: u32,
    gid: u32,
    /// When it was made, or its owner or mode were changed.
    changed: i64,
    /// When it was attached or let go of last.
    used: i64,
}

fn parse(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (key, id) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let mode = u32::from_str_radix(words.next()?, 8).ok()?;
        let (size, creator) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let (user, attached) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let (uid, gid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let (_cuid, _cgid) = (words.next()?, words.next()?);
        let (attach, detach): (i64, i64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let changed = words.next()?.parse().ok()?;
        Some(Row { key, id, mode, size, creator, user, attached, uid, gid, changed, used: attach.max(detach) })
    };
    text.lines().skip(1).filter_map(row).collect()
}

fn rows() -> Vec<Row> {
    parse(&String::from_utf8_lossy(&procfs::at_once("/proc/sysvipc/shm").unwrap_or_default()))
}

/// Whose a segment is that nobody has attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// Not the tree's.
    None,
    /// The tree's.
    Own,
    /// This process outside made it or was the last to use it.
    Shared(Pid),
    /// A process of the tree has the number of one that made it or used it last, and that ended before that one began.
    Former(Pid),
}

fn use_of(row: &Row, tree: &Began, lives: &dyn Fn(Pid) -> bool) -> Use {
    let users = [(row.creator, row.changed), (row.user, row.used)].map(|(user, when)| (Pid(user), when));
    let users = || users.into_iter().filter(|(user, _)| user.0 != 0);
    if !users().any(|(user, when)| tree.did(user, when)) {
        return users().find(|(user, _)| tree.has(*user)).map_or(Use::None, |(user, _)| Use::Former(user));
    }
    users().find(|(user, _)| !tree.has(*user) && lives(*user)).map_or(Use::Own, |(user, _)| Use::Shared(user))
}

impl MapLine {
    /// The number of the segment of System V shared memory that it shows: such a file has it as its inode (ipc/shm.c), and
    /// the key with which it was made as its name.
    pub(crate) fn segment(&self) -> Option<i32> {
        let key = self.name.strip_prefix(b"/SYSV")?.strip_suffix(b" (deleted)")?;
        let is = key.len() == 8 && key.iter().all(u8::is_ascii_hexdigit) && self.shared() && self.device.0 == 0;
        if is { i32::try_from(self.inode).ok() } else { None }
    }
}

/// How often each segment is attached by some processes: every mapping counts.
fn attachments<'a>(lines: impl Iterator<Item = &'a MapLine>) -> BTreeMap<i32, u64> {
    let mut counts = BTreeMap::new();
    for number in lines.filter_map(MapLine::segment) {
        *counts.entry(number).or_default() += 1;
    }
    counts
}

fn refusal(code: &'static str, id: i32, cause: String, remedy: &str) -> Refusal {
    let object = format!("System V shared memory {id}");
    Refusal { code, object, owner: Owner::default(), cause, remedy: remedy.to_owned() }
}

fn outside(id: i32, user: Option<Pid>) -> Refusal {
    let who = user.map_or_else(|| "a process that is not to be seen here".to_owned(), |pid| format!("process {pid}"));
    let cause = format!("{who}, which is not of the tree, has it attached as well, and could not go back with it");
    let remedy = "let that process let go of it, or make it part of the tree";
    Refusal { owner: Owner { pid: user, ..Owner::default() }, ..refusal("segment-outside", id, cause, remedy) }
}

/// Refuses segments that others have attached as well, and names those that stay as they are.
pub(crate) fn survey(survey: &mut Survey<'_>, lines: &BTreeMap<Pid, Vec<MapLine>>) {
    let rows = rows();
    survey.shown.no_segments = rows.is_empty();
    for (id, count) in attachments(lines.values().flatten()) {
        match rows.iter().find(|row| row.id == id) {
            None => {
                let cause = "it is not one of those that are to be seen here".to_owned();
                survey.refuse(refusal("segment-unseen", id, cause, "run hdcr where the program runs"));
            }
            Some(row) => {
                let beyond = |line: &&MapLine| line.segment() == Some(id) && line.offset >= row.size;
                if lines.values().flatten().any(|line| beyond(&line)) {
                    let cause = "a mapping of it was made longer than it, and cut at its end".to_owned();
                    survey.refuse(refusal("segment-unseen", id, cause, "let the program unmap what it cannot use"));
                }
                if row.attached > count {
                    refuse_outsiders(survey, id);
                }
            }
        }
    }
    let mut left = rows.iter().filter(|row| row.attached == 0).peekable();
    if left.peek().is_none() {
        return;
    }
    let tree = Began::of(survey.pids);
    for row in left {
        let who = match use_of(row, &tree, &lives) {
            Use::None | Use::Own => continue,
            Use::Shared(user) => format!("process {user}, which is not of the tree, uses it as well"),
            Use::Former(user) => former(user),
        };
        let cause = format!("nobody has it attached, and {who}");
        survey.note(refusal("segment-left", row.id, cause, "know that a restore leaves it as it is"));
    }
}

/// One that the tree took the number of.
fn former(user: Pid) -> String {
    format!("process {user} that used it ended before the one of the tree began that has its number now")
}

/// A tree that runs may have attached it once more between two looks: then nobody else is found.
fn refuse_outsiders(survey: &mut Survey<'_>, id: i32) {
    let maps =
        |pid: Pid| procfs::read(pid, "maps").ok().and_then(|text| procfs::parse_smaps(&text)).unwrap_or_default();
    let others = procfs::processes().into_iter().filter(|pid| !survey.pids.contains(pid));
    let others: Vec<Pid> = others.filter(|pid| maps(*pid).iter().any(|line| line.segment() == Some(id))).collect();
    // A child that has come meanwhile is one of the tree.
    let is_child = |pid: &Pid| procfs::stat(*pid).is_ok_and(|stat| survey.pids.contains(&stat.ppid));
    if let Some(other) = others.iter().copied().find(|pid| !is_child(pid)) {
        survey.refuse(outside(id, Some(other)));
    }
    if !others.is_empty() {
        return;
    }
    let now: Vec<MapLine> = survey.pids.iter().flat_map(|pid| maps(*pid)).collect();
    let own = attachments(now.iter()).get(&id).copied().unwrap_or_default();
    if rows().iter().any(|row| row.id == id && row.attached > own) {
        survey.refuse(outside(id, None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const ROW: Row = Row {
        key: 0x0012_d687,
        id: 32_769,
        mode: 0o2640,
        size: 56,
        creator: 7,
        user: 8,
        attached: 0,
        uid: 65_534,
        gid: 1000,
        changed: 1_795_655_740,
        used: 1_795_655_739,
    };

    #[test]
    fn rows_are_read() {
        let text = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime \
                    dtime ctime rss swap\n\
                    1234567      32769  2640      56     7     8      0 65534  1000 65534     0 1795655739 0 1795655740 4096 0\nodd\n";
        assert_eq!(parse(text), [ROW]);
    }

    #[test]
    fn one_that_nobody_has_attached_is_the_trees_when_it_was_the_last_and_nobody_else_lives() {
        let lives = |pid: Pid| pid == Pid(9);
        let tree = Began::at(&[(7, ROW.changed), (8, ROW.used), (6, ROW.changed + 2)]);
        let whose = |creator, user| use_of(&Row { creator, user, ..ROW }, &tree, &lives);
        assert_eq!(whose(5, 0), Use::None);
        assert_eq!(whose(9, 0), Use::None);
        assert_eq!(whose(7, 0), Use::Own);
        // One that has ended may have been the tree's.
        assert_eq!(whose(5, 8), Use::Own);
        assert_eq!(whose(7, 9), Use::Shared(Pid(9)));
        // The tree has the number of somebody who died before.
        assert_eq!(whose(6, 0), Use::Former(Pid(6)));
        assert_eq!(whose(5, 6), Use::Former(Pid(6)));
        assert_eq!(whose(6, 8), Use::Own);
    }

    #[test]
    fn attachments_are_counted_by_their_names() {
        let text = "7f0000000000-7f0000002000 rw-s 00000000 00:01 5       /SYSV0012d687 (deleted)\n\
                    7f0000003000-7f0000004000 r--s 00003000 00:01 5       /SYSV0012d687 (deleted)\n\
                    7f0000005000-7f0000006000 rw-s 00000000 00:01 5       /dev/zero (deleted)\n\
                    7f0000007000-7f0000008000 rw-s 00000000 00:01 0       /SYSV00000000 (deleted)\n";
        let lines = procfs::parse_smaps(text.as_bytes()).unwrap();
        assert_eq!(attachments(lines.iter()), BTreeMap::from([(5, 2), (0, 1)]));
    }
}
