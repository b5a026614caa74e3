//! What is kept of the contents of a file: by the policy that was asked for, the use that the tree makes of it, its size,
//! and where it lies.

use std::path::Path;

use super::clone::NoClone;
use super::contents::{Keep, Life, Uses};
use rustix::fs::Stat;

use crate::checkpoint::{FilePolicy, FileRequest};
use crate::error::{Owner, Refusal};

/// Whether a path lies where packages put files: those can be had again, so their contents are not kept.
pub(crate) fn of_the_system(path: &Path) -> bool {
    ["/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt"].iter().any(|top| path.starts_with(top))
}

/// Whether a path lies where a reboot removes files.
pub(crate) fn volatile(path: &Path, on_tmpfs: bool) -> bool {
    on_tmpfs || ["/tmp", "/run", "/dev/shm"].iter().any(|top| path.starts_with(top))
}

/// The policy of a path: that of the longest prefix.
pub(crate) fn policy_of(files: &FileRequest, path: &Path) -> FilePolicy {
    let fits = files.policies.iter().filter(|(prefix, _)| path.starts_with(prefix));
    fits.max_by_key(|(prefix, _)| prefix.components().count()).map_or(FilePolicy::Auto, |(_, policy)| *policy)
}

/// How much is kept of files of one kind, all together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rooms {
    /// Programs and libraries from outside the system's directories.
    pub(crate) programs: u64,
    /// Files that the tree has worked on and does not hold.
    pub(crate) touched: u64,
    /// Files that are only written at their ends: what they hold is needed when one is gone by the time of a roll-back.
    pub(crate) appended: u64,
}

impl Rooms {
    /// For a limit on one file.
    pub(crate) fn new(limit: u64) -> Self {
        Self { programs: limit.min(32 << 20), touched: limit, appended: limit.min(8 << 20) }
    }
}

/// Files that are only read are digested as a whole up to this size, else by a sample.
pub(crate) const DIGEST_ALL: u64 = 1 << 20;

/// What becomes of the contents of one inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Decision {
    pub(crate) keep: Keep,
    pub(crate) contents: bool,
}

impl Decision {
    const fn new(keep: Keep, contents: bool) -> Self {
        Self { keep, contents }
    }

    /// What is done with a file of which there is a clone: what is only written at its end is cut back as long as it begins as
    /// it did.
    pub(crate) fn with_clone(self, uses: Uses) -> Self {
        let keep = if uses.write && !uses.overwrite { self.keep } else { Keep::Contents };
        Self { keep, contents: true }
    }
}

/// The facts by which [`decide`] decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case<'a> {
    pub(crate) life: Life,
    pub(crate) path: &'a Path,
    /// What it takes on its disk: holes are not stored.
    pub(crate) size: u64,
    pub(crate) uses: Uses,
    pub(crate) tmpfs: bool,
}

/// What a file takes on its disk, in bytes, and never more than its length.
pub(crate) fn stored(stat: &Stat) -> u64 {
    const BLOCK: u64 = 512;
    stat.st_blocks.cast_unsigned().saturating_mul(BLOCK).min(stat.st_size.cast_unsigned())
}

/// Whether the tree writes a file in place, nothing was said about it, and it is too large to be kept: a roll-back could not
/// bring back what is written over, and the program would go on with contents that its memory does not know.
pub(crate) fn beyond(case: &Case<'_>, files: &FileRequest) -> bool {
    let Case { life, path, size, uses, tmpfs } = *case;
    let listed = uses.listed || files.always.iter().any(|top| path.starts_with(top));
    let named = matches!(life, Life::Named | Life::Elsewhere);
    let kept = listed || (uses.shared && tmpfs) || policy_of(files, path) != FilePolicy::Auto;
    named && uses.in_place && !kept && size > files.limit
}

/// Whether a file is kept as a clone where that can be: of which else nothing but its length would be kept, though nobody has
/// said so.
pub(crate) fn may_be_cloned(case: &Case<'_>, decided: Decision, files: &FileRequest) -> bool {
    decided == Decision::new(Keep::Length, false) && policy_of(files, case.path) == FilePolicy::Auto
}

/// A limit, in the largest unit that shows it whole.
fn shown(limit: u64) -> String {
    match limit {
        limit if limit % (1 << 20) == 0 => format!("{} MiB", limit >> 20),
        limit if limit % (1 << 10) == 0 => format!("{} KiB", limit >> 10),
        limit => format!("{limit} bytes"),
    }
}

/// The words for it, and why it is not cloned.
pub(crate) fn beyond_limit(owner: Owner, limit: u64, why: NoClone) -> Refusal {
    let cause = format!(
        "it takes more than the {} that are kept of one file, so a roll-back could not bring back what is written over",
        shown(limit)
    );
    let refusal = |code, cause, remedy: &str| Refusal {
        code,
        object: "file that is written in place".to_owned(),
        owner,
        cause,
        remedy: remedy.to_owned(),
    };
    match why {
        NoClone::Impossible => refusal(
            "file-beyond-limit",
            cause,
            "keep it whatever its size with --files PATH, raise --file-limit, have the checkpoints on its file system \
             (--store) if that is one with reflinks, or have it left as it is with --file-policy PATH=ignore",
        ),
        NoClone::Late => refusal(
            "file-beyond-limit",
            format!("{cause}; and a clone of it was not made in time, as its disk is slow"),
            "try again, or give it more time with --timeout",
        ),
        NoClone::Room { lacking } => refusal(
            NO_ROOM,
            format!("{cause}; and with a clone of it the program could miss {lacking} bytes to write over it once"),
            "free so much on its file system: older checkpoints hold what was written over since (`hdcr prune`, a lower --keep)",
        ),
    }
}

/// There is no room for a clone without which there is no checkpoint.
pub const NO_ROOM: &str = "no-room-for-clone";

/// Decides by policy, use, size and place; takes the room for programs and for what is not held.
pub(crate) fn decide(case: &Case<'_>, files: &FileRequest, rooms: &mut Rooms) -> Decision {
    let Case { life, path, size, uses, tmpfs } = *case;
    match life {
        Life::Unlinked if uses.is_text() => return Decision::new(Keep::Unchanged, true),
        Life::Memfd | Life::Anonymous | Life::Unlinked | Life::Nameless => return Decision::new(Keep::Contents, true),
        Life::Device => return Decision::new(Keep::AsItIs, false),
        Life::Named | Life::Elsewhere => {}
    }
    let policy = policy_of(files, path);
    let listed = uses.listed || files.always.iter().any(|top| path.starts_with(top));
    // One that the tree made itself is put back at its place.
    if uses.is_text() && policy != FilePolicy::Verify && !(uses.touched && policy == FilePolicy::Auto) {
        return text(case, files, rooms, listed || policy == FilePolicy::Content);
    }
    match policy {
        FilePolicy::Content => return Decision::new(Keep::Contents, true),
        FilePolicy::Truncate => return Decision::new(Keep::Length, false),
        FilePolicy::Verify => return Decision::new(Keep::Unchanged, false),
        FilePolicy::Ignore => return Decision::new(Keep::AsItIs, false),
        FilePolicy::Auto => {}
    }
    let small = size <= files.limit;
    let volatile = volatile(path, tmpfs);
    if listed || (uses.shared && tmpfs) {
        return Decision::new(Keep::Contents, true);
    }
    if uses.write {
        if small && (uses.overwrite || volatile) {
            return Decision::new(Keep::Contents, true);
        }
        let whole = !uses.overwrite && size <= rooms.appended;
        rooms.appended -= if whole { size } else { 0 };
        return Decision::new(Keep::Length, whole);
    }
    if uses.touched {
        let whole = size <= rooms.touched;
        rooms.touched -= if whole { size } else { 0 };
        return if whole { Decision::new(Keep::Contents, true) } else { Decision::new(Keep::Length, false) };
    }
    if uses.shared && !uses.read {
        // Only mapped shared for reading: what somebody else writes there is meant to be seen.
        return Decision::new(Keep::AsItIs, false);
    }
    read_only(case, files, rooms)
}

/// A program or a library whose contents are `asked` for is kept; another one as long as there is room, if no package brings it
/// back. It is never written: a restore takes a private copy where the file has changed.
fn text(case: &Case<'_>, files: &FileRequest, rooms: &mut Rooms, asked: bool) -> Decision {
    if asked { Decision::new(Keep::Unchanged, true) } else { read_only(case, files, rooms) }
}

/// Whether the contents of a file that is only read are such as many images have in common: programs, libraries, and what a package
/// brings beside them and replaces with them (`locale-archive`), if that is not too large (bytes).
pub(crate) fn is_common(uses: Uses, path: &Path, size: u64) -> bool {
    const BESIDE: u64 = 256 << 20;
    uses.is_text() || uses.program && !uses.write && !uses.shared && of_the_system(path) && size <= BESIDE
}

/// What is only read is kept where a reboot removes it, and of programs and libraries what there is room for.
fn read_only(case: &Case<'_>, files: &FileRequest, rooms: &mut Rooms) -> Decision {
    let Case { path, size, tmpfs, uses, .. } = *case;
    let kept = uses.program && !of_the_system(path) && size <= rooms.programs;
    if kept {
        rooms.programs -= size;
    }
    Decision::new(Keep::Unchanged, kept || (volatile(path, tmpfs) && size <= files.limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(path: &str, size: u64, uses: Uses) -> (Keep, bool) {
        let files = FileRequest {
            clones: None,
            own: Vec::new(),
            always: vec!["/home/a/always".into()],
            limit: 1000,
            touched: Vec::new(),
            policies: vec![("/home/b".into(), FilePolicy::Ignore), ("/home/b/c".into(), FilePolicy::Content)],
        };
        let case = Case { life: Life::Named, path: Path::new(path), size, uses, tmpfs: path.starts_with("/dev/shm") };
        let Decision { keep, contents } =
            decide(&case, &files, &mut Rooms { programs: 5000, touched: 3000, appended: 2000 });
        (keep, contents)
    }

    #[test]
    fn what_is_written_in_place_is_kept_or_refused() {
        let in_place = Uses { write: true, overwrite: true, in_place: true, ..Uses::default() };
        let files = FileRequest {
            clones: None,
            own: Vec::new(),
            always: vec!["/a/always".into()],
            limit: 1000,
            touched: Vec::new(),
            policies: vec![("/b".into(), FilePolicy::Ignore)],
        };
        let beyond = |path: &str, size, uses| {
            beyond(&Case { life: Life::Named, path: Path::new(path), size, uses, tmpfs: false }, &files)
        };
        assert!(beyond("/a/x", 1001, in_place));
        assert!(
            !beyond("/a/x", 1000, in_place)
                && !beyond("/a/always/x", 1001, in_place)
                && !beyond("/b/x", 1001, in_place)
        );
        assert!(!beyond("/a/x", 1001, Uses { in_place: false, ..in_place }));
        assert_eq!([64 << 20, 4096, 1001].map(shown), ["64 MiB", "4 KiB", "1001 bytes"]);
    }

    #[test]
    fn the_policy_follows_use_size_and_place() {
        let read = Uses { read: true, ..Uses::default() };
        let append = Uses { write: true, ..Uses::default() };
        let write = Uses { write: true, overwrite: true, ..Uses::default() };
        let program = Uses { program: true, read: true, ..Uses::default() };
        let touched = Uses { touched: true, ..Uses::default() };
        assert_eq!(case("/home/a/x", 3000, touched), (Keep::Contents, true));
        assert_eq!(case("/home/a/x", 3001, touched), (Keep::Length, false));
        let shared = Uses { shared: true, ..Uses::default() };
        assert_eq!(case("/home/a/x", 10, read), (Keep::Unchanged, false));
        assert_eq!(case("/home/a/x", 10, write), (Keep::Contents, true));
        assert_eq!(case("/home/a/x", 2000, append), (Keep::Length, true));
        assert_eq!(case("/home/a/x", 2001, append), (Keep::Length, false));
        assert_eq!(case("/tmp/x", 10, append), (Keep::Contents, true));
        assert_eq!(case("/home/a/x", 1001, write), (Keep::Length, false));
        assert_eq!(case("/home/a/x", 4000, program), (Keep::Unchanged, true));
        assert_eq!(case("/home/a/x", 6000, program), (Keep::Unchanged, false));
        assert_eq!(case("/usr/bin/x", 4000, program), (Keep::Unchanged, false));
        let text = Uses { text: true, ..program };
        assert_eq!(case("/usr/bin/x", 4000, text), (Keep::Unchanged, false));
        assert_eq!(case("/home/a/x", 6000, text), (Keep::Unchanged, false));
        assert_eq!(case("/home/a/always/x", 6000, text), (Keep::Unchanged, true));
        assert_eq!(case("/home/b/x", 10, text), (Keep::Unchanged, true), "no other text comes in its place");
        assert_eq!(case("/home/b/c/x", 6000, text), (Keep::Unchanged, true));
        assert_eq!(case("/home/a/x", 10, Uses { touched: true, ..text }), (Keep::Contents, true));
        assert_eq!(case("/home/b/x", 10, Uses { touched: true, ..text }), (Keep::Unchanged, true));
        assert_eq!(case("/home/a/x", 10, shared), (Keep::AsItIs, false));
        assert_eq!(case("/dev/shm/x", 4000, shared), (Keep::Contents, true));
        assert_eq!(case("/home/a/always/x", 4000, Uses::default()), (Keep::Contents, true));
        assert_eq!(case("/home/b/x", 10, write), (Keep::AsItIs, false));
        assert_eq!(case("/home/b/c/x", 4000, read), (Keep::Contents, true));
    }
}
