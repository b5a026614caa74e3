//! Room in an address space: a checkpoint maps a little in each process for a moment, and the limits of the program must
//! leave that much.
//!
//! Whether locked memory has room cannot be known: nothing shows whether what is mapped next is locked
//! (`mlockall(MCL_FUTURE)`). There the mechanism says [`crate::mechanism::MechanismError::NoRoom`].

use super::PAGE;
use crate::batch::{Arg, Batch, CALL_ROOM};
use crate::error::{Error, Refusal, Result};
use crate::mechanism::{CODE_ROOM, NEW_MAPPINGS, THREAD_ROOM};
use crate::procfs::{self, Limits, MapLine};
use crate::survey::Survey;
use crate::task::{Site, TASKS, TaskView};
use crate::text;

/// What a program without a word in `/proc/sys/vm/max_map_count` may have (`DEFAULT_MAX_MAP_COUNT`).
const USUAL_MAPPINGS: usize = 65_530;

/// What is mapped for a moment, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Need {
    all: u64,
    /// Of that, what can be written to: it counts as data.
    writable: u64,
}

/// Refuses a process whose limits leave too little. `threads` are its own, the speaker first.
pub(crate) fn survey(survey: &mut Survey<'_>, threads: &[&TaskView], lines: &[MapLine]) -> Result<()> {
    let Some(speaker) = threads.first().filter(|_| !lines.is_empty()) else {
        // A process at its end has given its memory back already.
        return Ok(());
    };
    let most = *survey.own.most_mappings.get_or_insert_with(most_mappings);
    let mappings = lines.iter().filter(|line| line.name != b"[vsyscall]").count();
    if mappings.saturating_add(NEW_MAPPINGS) > most {
        survey.refuse(no_mapping(speaker, most));
    }
    if !lines.iter().any(|line| line.name == b"[vdso]") && text::unused_end(speaker.pid, CODE_ROOM).is_none() {
        // In the middle of execve(2), or it was just then: the vdso is the last thing that is mapped.
        let begins = !has_entry(&procfs::read(speaker.pid, "auxv")?);
        if begins || procfs::read(speaker.pid, "maps")?.windows(6).any(|name| name == b"[vdso]") {
            let subject = format!("process {}", speaker.pid);
            return Err(Error::Changed { subject, what: "it is just beginning another program".to_owned() });
        }
        let cause = "it has no vdso, and no text with room at its end, from which a checkpoint makes its calls";
        survey.refuse(speaker.refuse("no-code-room", "address space", cause, "run it with its vdso, or link it anew"));
    }
    let text = procfs::read(speaker.pid, "limits")?;
    let limits = procfs::parse_limits(&String::from_utf8_lossy(&text));
    survey.shown.texts.keep(speaker.pid, "limits", text);
    let number = |key: &str| speaker.status.number(key).map_or(0, |kilobytes| kilobytes.saturating_mul(1024));
    // It is asked what a checkpoint would ask, but only where it may matter.
    let near = (threads.len() as u64).saturating_mul(1 << 16).saturating_add(1 << 16);
    if short(&limits, (number("VmSize"), number("VmData")), Need { all: near, writable: near }).is_none() {
        return Ok(());
    }
    let need = need_of(threads);
    if let Some((what, needed)) = short(&limits, (number("VmSize"), number("VmData")), need) {
        let cause = format!(
            "its limit ({what}) leaves less than the {} KiB that a checkpoint needs there for a moment",
            needed / 1024
        );
        survey.refuse(speaker.refuse("no-room", "address space", &cause, &remedy(speaker)));
    }
    Ok(())
}

/// Whether an auxiliary vector (`auxv` in proc(5)) tells where the program begins: the kernel writes it at the end of an exec.
fn has_entry(auxv: &[u8]) -> bool {
    const AT_ENTRY: u64 = 9;
    let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
    let (words, _) = auxv.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs.iter().any(|[key, value]| word(key) == AT_ENTRY && word(value) != 0)
}

fn remedy(task: &TaskView) -> String {
    format!("raise its limit (`prlimit --pid {}`), or let it give memory back", task.pid)
}

/// The refusal of a process that may have no more mappings.
pub(crate) fn no_mapping(task: &TaskView, most: usize) -> Refusal {
    let cause = format!("it has all the mappings that it may have ({most}), and a checkpoint needs a few for a moment");
    task.refuse("no-room", "address space", &cause, "raise the sysctl vm.max_map_count, or let it unmap something")
}

pub(crate) fn most_mappings() -> usize {
    let text = procfs::at_once("/proc/sys/vm/max_map_count").unwrap_or_default();
    String::from_utf8_lossy(&text).trim().parse().unwrap_or(USUAL_MAPPINGS)
}

/// What the first batch of a capture takes, by asking the kinds.
fn need_of(threads: &[&TaskView]) -> Need {
    let mut tables = 0;
    for (index, task) in threads.iter().enumerate() {
        let mut batch = Batch::new();
        batch.call(nix::libc::SYS_brk, &[Arg::Value(0)]);
        for kind in TASKS.iter().filter(|kind| kind.site == Site::Thread || index == 0) {
            drop((kind.ask)(task, &mut batch));
        }
        let data = batch.data.len().saturating_add(CALL_ROOM);
        tables += batch.calls.len().saturating_mul(CALL_ROOM).saturating_add(data) as u64;
    }
    let blocks = (threads.len() as u64).saturating_mul(THREAD_ROOM as u64);
    let writable = tables.next_multiple_of(PAGE);
    // One more page for the question whether new memory is locked.
    Need { all: blocks.next_multiple_of(PAGE) + writable + PAGE, writable }
}

/// Which limit leaves too little, and how much is needed. `now`: bytes in all, and of data.
fn short(limits: &Limits, (all, data): (u64, u64), need: Need) -> Option<(&'static str, u64)> {
    let limit = |name: &str| limits.get(name).copied().unwrap_or_default();
    let leaves = |limit: Option<u64>, now: u64, need: u64| {
        limit.is_none_or(|limit| now.saturating_add(need) <= limit & !(PAGE - 1))
    };
    let (space, _) = limit("Max address space");
    if !leaves(space, all, need.all) {
        return Some(("RLIMIT_AS", need.all));
    }
    let (soft, hard) = limit("Max data size");
    // With a soft limit of 0 the hard one counts (mm/mmap.c `may_expand_vm`).
    let of_data = if soft == Some(0) { hard } else { soft };
    (!leaves(of_data, data, need.writable)).then_some(("RLIMIT_DATA", need.writable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_has_begun_has_an_entry() {
        assert!(has_entry(&procfs::at_once("/proc/self/auxv").unwrap()));
        for none in [&[][..], &[0; 16], &[9, 0, 0], &[[9, 0, 0, 0, 0, 0, 0, 0], [0; 8]].concat()] {
            assert!(!has_entry(none));
        }
    }

    fn check(limit: &str, soft: u64, expected: Option<&'static str>) {
        let mut limits = Limits::from([("Max address space".to_owned(), (None, None))]);
        limits.insert(limit.to_owned(), (Some(soft), Some(1 << 20)));
        let need = Need { all: 0x6000, writable: 0x4000 };
        assert_eq!(short(&limits, (0x1_0000, 0x8000), need).map(|(name, _)| name), expected, "{limit} {soft:#x}");
    }

    #[test]
    fn limits_that_leave_too_little_are_found() {
        check("Max address space", 0x1_6000, None);
        check("Max address space", 0x1_5fff, Some("RLIMIT_AS"));
        check("Max data size", 0xc000, None);
        check("Max data size", 0xbfff, Some("RLIMIT_DATA"));
        check("Max data size", 0, None);
    }
}
