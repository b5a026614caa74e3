//! How memory is read: while the program runs as far as that is possible, the rest in the stop.
//!
//! *Ahead*: the writes of a large process are followed; its pages are protected and copied slice by slice while it runs,
//! and what it writes meanwhile is copied again, round by round, until little is left. The stop then copies the last
//! pages into memory that was touched before. *Copy*: everything is read in the stop; for small processes, for memory that
//! others can write too, and wherever writes cannot be followed. *Fork*: a child of the process holds what it had at the stop, and
//! is read when the program runs again; where copying ahead does not come to an end, or on demand.
//!
//! What following does not see, and the rule for each:
//! - pages that vanish together with their page table (`MADV_DONTNEED` of 2 MiB and more, a huge page): each block of 2 MiB that was
//!   copied is asked for once more in the stop (`space.rs`);
//! - private pages of a file mapping that go back to the file's: which pages are private is asked again in the stop;
//! - shared memory changed by `write(2)`, a hole, another process: always read in the stop, whole;
//! - a moved, new or grown mapping, a child of `fork`, another program after `exec`: such a mapping is not followed, which
//!   the kernel says when it is scanned; all of it is read;
//! - memory that a device writes to (`O_DIRECT`, begun before the page was copied): a process with such a file is not
//!   followed.

pub(crate) mod ahead;
pub(crate) mod choice;
pub(crate) mod early;
pub(crate) mod flags;
pub(crate) mod forked;
pub(crate) mod kept;
pub(crate) mod outlet;
pub(crate) mod pace;
pub(crate) mod pageset;
pub(crate) mod pieces;
pub(crate) mod record;
pub(crate) mod series;
pub(crate) mod space;
pub(crate) mod spare;
