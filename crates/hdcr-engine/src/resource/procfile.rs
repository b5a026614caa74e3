//! Open files and directories below `/proc`, `/sys` and the cgroup file system: opened again by path.
//!
//! Captured: path, flags, offset. What such a file showed at its opening is not captured: a program that reads on sees
//! the present. Files of a process of the tree are opened again by the task that holds them, when that process exists.
//! Refused: files of processes outside the tree, the kernel log, files that are held by several processes and belong to
//! one of the tree.

use std::os::fd::OwnedFd;
use std::path::Path;

use hdcr_image::{Record, Tag};
use nix::libc;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};

use super::{FileKind, FileView, contents, data, regfile};
use crate::batch::Arg;
use crate::capture::Capture;
use crate::error::{Error, Refusal, Result};
use crate::ids::{Fd, Pid};
use crate::model::{self, ObjectId};
use crate::openfile;
use crate::restore::Restore;
use crate::survey::Survey;
use crate::task::Stage;

pub(crate) struct ProcFile;

/// What is kept of it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcFileRecord {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
    #[prost(uint32, tag = "2")]
    flags: u32,
    #[prost(uint64, tag = "3")]
    offset: u64,
    /// For a file of a process of the tree: the process that holds it, else 0.
    #[prost(int32, tag = "4")]
    holder: i32,
    /// Its descriptors there that are kept over an exec, and those that are not.
    #[prost(int32, repeated, tag = "5")]
    kept: Vec<i32>,
    #[prost(int32, repeated, tag = "6")]
    closed: Vec<i32>,
}

impl Record for ProcFileRecord {
    const TAG: Tag = Tag(0x0214);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The process that a path below `/proc` belongs to.
fn process_of(link: &[u8]) -> Option<Pid> {
    let rest = link.strip_prefix(b"/proc/")?;
    let word = rest.split(|b| *b == b'/').next()?;
    std::str::from_utf8(word).ok()?.parse().ok().map(Pid)
}

/// Files of `/proc/PID` and `/proc/PID/task/TID` that remember nothing for whoever has them open, or only whose they are.
/// Directories of it are told by their type.
const OF_PROCESS: &[&str] = &[
    "arch_status", "auxv", "autogroup", "cgroup", "children", "clear_refs", "cmdline", "comm", "coredump_filter",
    "cpu_resctrl_groups", "cpuset", "environ", "fail-nth", "gid_map", "io", "ksm_merging_pages", "ksm_stat", "latency",
    "limits", "loginuid", "make-it-fail", "maps", "mem", "mountinfo", "mounts", "mountstats", "numa_maps", "oom_adj",
    "oom_score", "oom_score_adj", "pagemap", "patch_state", "personality", "projid_map", "sched", "schedstat",
    "seccomp_cache", "sessionid", "setgroups", "smaps", "smaps_rollup", "stack", "stack_depth", "stat", "statm",
    "status", "syscall", "timens_offsets", "timers", "timerslack_ns", "uid_map", "wchan",
];
/// Likewise of `/proc/PID`: whole directories.
const BELOW_PROCESS: &[&str] = &["attr", "fdinfo", "net"];
/// Files of `/proc` itself: tables that are read.
const OF_MACHINE: &[&str] = &[
    "bootconfig", "buddyinfo", "cgroups", "cmdline", "config.gz", "consoles", "cpuinfo", "crypto", "devices",
    "diskstats", "dma", "execdomains", "fb", "filesystems", "interrupts", "iomem", "ioports", "kallsyms", "key-users",
    "keys", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "loadavg", "locks", "mdstat", "meminfo", "misc",
    "modules", "pagetypeinfo", "partitions", "sched_debug", "schedstat", "slabinfo", "softirqs", "stat", "swaps",
    "timer_list", "uptime", "version", "version_signature", "vmallocinfo", "vmstat", "zoneinfo",
];
/// Whole directories of `/proc`.
const BELOW_MACHINE: &[&str] = &["fs", "irq", "pressure", "sys", "sysvipc", "tty"];
/// The names of `/proc/pressure`; in a control group they end in `.pressure`.
const PRESSURE: &str = ".pressure";

/// Why a file below `/proc` or `/sys` cannot be opened again as it is, with the code for it.
fn obstacle(link: &[u8], writes: bool, directory: bool, magic: u64) -> Option<(&'static str, &'static str)> {
    const GONE: &str = "what was read from it, or what it stood for, cannot be had again";
    const UNKNOWN: &str = "what the kernel remembers of an open file of this kind is not known";
    const TRIGGER: &str = "a pressure trigger may have been written to it, and the kernel does not show it";
    let Ok(path) = std::str::from_utf8(link) else { return Some(("pseudo-file", UNKNOWN)) };
    if path.ends_with(" (deleted)") {
        return Some(("pseudo-file", GONE));
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    if writes && (path.starts_with("/proc/pressure/") || name.ends_with(PRESSURE)) {
        return Some(("pressure-trigger", TRIGGER));
    }
    let known = match magic {
        PROC if directory => true,
        PROC => known_of_proc(path),
        // Attributes; that a value has changed since it was read last (poll) is told by the next change.
        SYSFS | CGROUP | CGROUP2 => name != "cgroup.event_control",
        TMPFS => directory,
        _ => false,
    };
    if known { None } else { Some(("pseudo-file", if magic == PROC { GONE_OR_UNKNOWN } else { UNKNOWN })) }
}

const GONE_OR_UNKNOWN: &str =
    "what was read from it cannot be had again, or what the kernel remembers of it is not known";
/// `<linux/magic.h>`.
const PROC: u64 = 0x9fa0;
const SYSFS: u64 = 0x6265_6572;
const CGROUP: u64 = 0x0027_e0eb;
const CGROUP2: u64 = 0x6367_7270;
const TMPFS: u64 = 0x0102_1994;

fn known_of_proc(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/proc/") else { return true };
    let words: Vec<&str> = rest.split('/').collect();
    let is_number = |word: &&str| word.parse::<u32>().is_ok();
    match words.as_slice() {
        [pid, "task", tid, name, more @ ..] if is_number(pid) && is_number(tid) => of_process(name, more),
        [pid, name, more @ ..] if is_number(pid) => of_process(name, more),
        // Channels of the RPC caches and of the NFS server hold a reader's place.
        ["fs", "nfsd", ..] => false,
        [top, _, ..] => BELOW_MACHINE.contains(top),
        [name] => OF_MACHINE.contains(name),
        [] => true,
    }
}

fn of_process(name: &str, more: &[&str]) -> bool {
    match more {
        [] => OF_PROCESS.contains(&name),
        ["rpc", ..] => false,
        _ => BELOW_PROCESS.contains(&name),
    }
}

impl FileKind for ProcFile {
    type Record = ProcFileRecord;

    fn claims(view: &FileView) -> bool {
        let below = |top: &str| view.is(top) || view.starts_with(&format!("{top}/"));
        below("/proc") || below("/sys")
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        let writes = !path_only(view) && regfile::flags_of(view) & 0o3 != 0;
        let directory = FileType::from_raw_mode(view.stat.st_mode) == FileType::Directory;
        let magic = rustix::fs::statfs(door(view)).map(|fs| data::magic(&fs));
        let magic = magic.map_err(Error::system("looking at a file of the kernel", model::path_of(&view.link).display()))?;
        let obstacle = obstacle(&view.link, writes, directory, magic);
        if let Some((code, cause)) = obstacle {
            survey.refuse(view.refuse(code, "file of the kernel", cause, "close it before the checkpoint"));
        } else if let Some(pid) = process_of(&view.link) {
            if !survey.pids.contains(&pid) {
                let cause = format!("it belongs to process {pid}, which is not in the tree");
                survey.refuse(view.refuse("proc-of-stranger", "file of /proc", &cause, "close it before the checkpoint"));
            } else if held_by_others(survey, view)? {
                survey.refuse(shared(view));
            }
        }
        Ok(())
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, _file: &OwnedFd) -> Result<ProcFileRecord> {
        let mut record = ProcFileRecord {
            path: view.link.clone(),
            flags: regfile::flags_of(view),
            offset: view.info.pos,
            ..ProcFileRecord::default()
        };
        if process_of(&view.link).is_none() {
            return Ok(record);
        }
        let holders =
            cx.behind(view.pid, view.fd).map_or_else(|| vec![(view.pid, view.fd)], |file| file.holders.clone());
        if holders.iter().any(|(pid, _)| *pid != view.pid) {
            return Err(Error::refuse(shared(view)));
        }
        record.holder = view.pid.0;
        for (pid, Fd(number)) in holders {
            let info = crate::procfs::fd_info(pid, Fd(number))?;
            let closed = info.flags & u64::from(OFlags::CLOEXEC.bits()) != 0;
            if closed { record.closed.push(number) } else { record.kept.push(number) }
        }
        Ok(record)
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: ProcFileRecord) -> Result<OwnedFd> {
        let path = contents::checked_path(&record.path)?;
        if !["/proc", "/sys"].iter().any(|root| path.starts_with(root)) {
            return Err(Error::Unsound(format!("{} is no file of the kernel", path.display())));
        }
        if record.holder != 0 {
            return in_the_task(cx, id, &record);
        }
        let flags = OFlags::from_bits_retain(record.flags & regfile::AT_OPEN) | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(Error::system("opening a file of the kernel", path.display()))?;
        if record.offset != 0 && !flags.contains(OFlags::PATH) {
            rustix::fs::seek(&file, SeekFrom::Start(record.offset))
                .map_err(Error::system("setting a file's offset", path.display()))?;
        }
        Ok(file)
    }
}

fn path_only(view: &FileView) -> bool {
    regfile::flags_of(view) & OFlags::PATH.bits() != 0
}

fn shared(view: &FileView) -> Refusal {
    let cause = "several processes share it, and it belongs to one of the tree";
    view.refuse("proc-file-shared", "file of /proc", cause, "close it before the checkpoint")
}

/// Whether another process has the same open file.
fn held_by_others(survey: &Survey<'_>, view: &FileView) -> Result<bool> {
    for other in survey.with_inode(view.stat.st_ino).filter(|other| other.pid != view.pid && other.link == view.link) {
        let order = openfile::compare((view.pid, view.fd), (other.pid, other.fd));
        match order {
            Ok(order) if order.is_eq() => return Ok(true),
            Ok(_) => {}
            // Closed meanwhile: the look under the freeze counts.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => {}
            Err(source) => {
                let subject = format!("pid {}, fd {}", view.pid, view.fd);
                return Err(Error::System { operation: "comparing descriptors", subject, source });
            }
        }
    }
    Ok(false)
}

fn door(view: &FileView) -> std::path::PathBuf {
    crate::procfs::path(view.pid, &format!("fd/{}", view.fd))
}

/// Gives a stand-in, and has the task open the file when all processes exist.
fn in_the_task(cx: &mut Restore<'_>, id: ObjectId, record: &ProcFileRecord) -> Result<OwnedFd> {
    let batch = cx.batch(Stage::InTable, Pid(record.holder).leader());
    let path = batch.bytes(&[&record.path[..], b"\0"].concat());
    let flags = u64::from(record.flags | OFlags::CLOEXEC.bits());
    let opened = batch.call(
        "opening a file of /proc",
        libc::SYS_openat,
        &[Arg::from(libc::AT_FDCWD), Arg::Data(path), Arg::Value(flags)],
    );
    if record.offset != 0 {
        let offset = Arg::Value(record.offset);
        batch.try_call(
            "setting a file's offset",
            libc::SYS_lseek,
            &[Arg::Result(opened), offset, Arg::from(libc::SEEK_SET)],
        );
    }
    let numbers = record
        .kept
        .iter()
        .map(|number| (number, 0))
        .chain(record.closed.iter().map(|number| (number, libc::O_CLOEXEC)));
    for (number, flags) in numbers {
        batch.call(
            "placing a file of /proc",
            libc::SYS_dup3,
            &[Arg::Result(opened), Arg::from(*number), Arg::from(flags)],
        );
    }
    batch.call("closing a file of /proc", libc::SYS_close, &[Arg::Result(opened)]);
    let place = Path::new("/dev/null");
    rustix::fs::open(place, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::system("opening a stand-in", id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_and_owners_are_seen() {
        let record = ProcFileRecord {
            path: b"/proc/12/fd".to_vec(),
            flags: 0o200_000,
            offset: 3,
            holder: 12,
            kept: vec![4],
            closed: vec![5],
        };
        assert_eq!(ProcFileRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        assert_eq!(process_of(b"/proc/12/fd"), Some(Pid(12)));
        assert_eq!(process_of(b"/proc/12"), Some(Pid(12)));
        assert_eq!(process_of(b"/proc/meminfo"), None);
        assert_eq!(process_of(b"/process/1"), None);
    }

    #[test]
    fn what_remembers_something_for_its_opener_is_not_opened_again_in_silence() {
        let code = |link: &str, writes, magic| {
            obstacle(link.as_bytes(), writes, false, magic).map_or("", |(code, _)| code)
        };
        for known in ["/proc/meminfo", "/proc/7/status", "/proc/7/task/8/comm", "/proc/7/net/tcp", "/proc/sys/kernel/hostname"]
        {
            assert_eq!(code(known, true, PROC), "", "{known}");
        }
        for odd in ["/proc/kmsg", "/proc/kcore", "/proc/mtrr", "/proc/7/net/rpc/x/channel", "/proc/fs/nfsd/x", "/proc/bus/pci/0"]
        {
            assert_eq!(code(odd, false, PROC), "pseudo-file", "{odd}");
        }
        assert_eq!(code("/proc/pressure/memory", false, PROC), "");
        assert_eq!(code("/proc/pressure/memory", true, PROC), "pressure-trigger");
        assert_eq!(code("/sys/fs/cgroup/a/cpu.pressure", true, CGROUP2), "pressure-trigger");
        assert_eq!(code("/sys/fs/cgroup/a/cpu.max", true, CGROUP2), "");
        assert_eq!(code("/sys/devices/system/cpu/online", false, SYSFS), "");
        assert_eq!(code("/sys/fs/selinux/access", true, 0xf97c_ff8c), "pseudo-file");
        assert_eq!(code("/sys/class/net/x (deleted)", false, SYSFS), "pseudo-file");
    }
}
