//! The files behind mappings, and those that a process is made of: its program, its working directory, its root.
//!
//! A mapping's file is opened through `/proc/PID/map_files`, which leads to the very inode whatever its name; without the
//! right to do so (`CAP_CHECKPOINT_RESTORE`) through a descriptor of the tree or by path, with its identity checked.
//! Shared memory that then still cannot be opened is read where it is mapped.

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::clone::{self, Original};
use super::contents::{self, InodeRecord, Life, Met, Uses};
use super::keep::{self, Case};
use super::windows::Window;
use super::{data, directory, regfile, reopen};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::Pid;
use crate::model::{self, ObjectId};
use crate::procfs::{self, MapLine};
use crate::restore::Restore;
use crate::segments;
use crate::survey::Survey;

/// The link of a mapping's file.
pub(crate) fn link(pid: Pid, line: &MapLine) -> PathBuf {
    procfs::path(pid, &name(line))
}

/// Its name below `/proc/PID`.
fn name(line: &MapLine) -> String {
    format!("map_files/{:x}-{:x}", line.range.start, line.range.end)
}

fn owner(pid: Pid, line: &MapLine) -> Owner {
    Owner { pid: Some(pid), path: Some(model::path_of(&line.name)), ..Owner::default() }
}

/// Whether a line is of shared anonymous memory, as the kernel names it or as a restore without root has made it.
fn anonymous(line: &MapLine) -> bool {
    const NAMES: [&[u8]; 2] = [b"/dev/zero (deleted)", b"/memfd:dev/zero (deleted)"];
    line.shared() && NAMES.contains(&line.name.as_slice()) && line.device.0 == 0
}

/// What stands in the way of a mapping's file. Looks only.
pub(crate) fn survey(survey: &mut Survey<'_>, pid: Pid, line: &MapLine) {
    // Those have a look of their own, and numbers that other files may have as well.
    if line.segment().is_some() || !survey.seen.insert((line.device, line.inode)) {
        return;
    }
    let stat = procfs::stat_through(pid, &name(line)).ok();
    let found = obstacle(pid, line, stat);
    let held = || survey.with_inode(line.inode).next().is_some();
    let reachable =
        anonymous(line) || stat.is_some() || by_path(line).is_some() || by_exe(pid, line).is_some() || held();
    match found {
        Some(refusal) => survey.refuse(refusal),
        // A process that has ended meanwhile has nothing to be reached.
        None if !reachable && procfs::stat(pid).is_ok() && line.shared() => survey.refuse(unreachable(pid, line)),
        None if !reachable && procfs::stat(pid).is_ok() => survey.note(seen_in_memory(pid, line)),
        None => large(survey, pid, line),
    }
}

/// A file that is written through a shared mapping, and too large to be kept.
fn large(survey: &mut Survey<'_>, pid: Pid, line: &MapLine) {
    let files = &survey.request.files;
    let path = model::path_of(&line.name);
    if !line.shared() || !line.has(b"mw") {
        return;
    }
    let Some((_, stat)) = by_path(line) else { return };
    if data::path_on_tmpfs(&path) {
        return;
    }
    let uses = Uses { write: true, overwrite: true, in_place: true, ..Uses::default() };
    let case = Case { life: Life::Named, path: &path, size: keep::stored(&stat), uses, tmpfs: false };
    if !keep::beyond(&case, files) {
        return;
    }
    let original = Original { path: &path, room: case.size, overwritten: true, needed: true };
    if let Err(why) = clone::is_possible(survey, &path, original) {
        let refusal = keep::beyond_limit(owner(pid, line), files.limit, why);
        survey.refuse(refusal);
    }
}

fn unreachable(pid: Pid, line: &MapLine) -> Refusal {
    let cause = "its name is gone, and this user may not open it through the mapping";
    regfile::refuse_path("mapping-unreachable", "mapped file", owner(pid, line), cause, "run hdcr as root")
}

/// What is known of a private mapping's file is what the program sees of it.
fn seen_in_memory(pid: Pid, line: &MapLine) -> Refusal {
    let cause = "its name is gone, and this user may not open it through the mapping: of what it holds all pages that are mapped are \
                 kept, as they are seen in memory, at each checkpoint";
    regfile::refuse_path(
        "mapping-from-memory",
        "mapped file",
        owner(pid, line),
        cause,
        "run hdcr as root to have it read once",
    )
}

/// `stat` is what its link leads to, if this user may follow it.
fn obstacle(pid: Pid, line: &MapLine, stat: Option<Stat>) -> Option<Refusal> {
    let refuse = |code, object: &str, cause: &str, remedy: &str| {
        Some(regfile::refuse_path(code, object, owner(pid, line), cause, remedy))
    };
    if line.name.starts_with(b"/[aio]") {
        return refuse("aio", "context of io_setup", "requests in the kernel cannot be seen", "run without it");
    }
    if line.name.first() != Some(&b'/') {
        return refuse("mapping-unknown", "mapping", "it belongs to no file", "unmap it before the checkpoint");
    }
    if let Some((code, what)) = stat.and_then(|_| regfile::refused_fs(&link(pid, line))) {
        return refuse(code, what, "its contents lie in the kernel, not in a file", "unmap it before the checkpoint");
    }
    let stat = stat.or_else(|| by_path(line).map(|(_, stat)| stat))?;
    let device = FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile;
    if device && !zero_device(&stat) {
        return refuse(
            "device-mapped",
            "mapped device",
            "what its driver gives cannot be read",
            "unmap it before the checkpoint",
        );
    }
    None
}

fn zero_device(stat: &Stat) -> bool {
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && number == (1, 5)
}

/// The file at the path of a mapping, if it is the one that is mapped.
fn by_path(line: &MapLine) -> Option<(PathBuf, Stat)> {
    let path = model::path_of(&line.name);
    let stat = rustix::fs::stat(&path).ok()?;
    // The numbers of inodes are those of one file system.
    (stat.st_ino == line.inode && data::is_on(&path, &stat, line.device)).then_some((path, stat))
}

/// The program file, if it is what is mapped: that door is open to the program's user.
fn by_exe(pid: Pid, line: &MapLine) -> Option<(PathBuf, Stat)> {
    let door = procfs::path(pid, "exe");
    let stat = rustix::fs::stat(&door).ok()?;
    let is_it = stat.st_ino == line.inode && procfs::link(pid, "exe").is_ok_and(|link| link == line.name);
    is_it.then_some((door, stat))
}

/// A way to open the file of a mapping, and what it is.
fn find(cx: &Capture<'_>, pid: Pid, line: &MapLine) -> Option<(PathBuf, Stat)> {
    let door = link(pid, line);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if let Ok(file) = rustix::fs::open(&door, flags, Mode::empty()) {
        return Some((door, rustix::fs::fstat(&file).ok()?));
    }
    let (major, minor) = line.device;
    let device = rustix::fs::makedev(major, minor);
    let held = cx.with_inode(line.inode).find(|file| file.view.stat.st_dev == device);
    if let Some(file) = held {
        let door = procfs::path(file.view.pid, &format!("fd/{}", file.view.fd));
        return Some((door, file.view.stat));
    }
    by_path(line).or_else(|| by_exe(pid, line))
}

/// Notes the file behind a mapping, once a file; the object that stands for it.
pub(crate) fn capture(cx: &mut Capture<'_>, pid: Pid, line: &MapLine) -> Result<ObjectId> {
    if let Some(number) = line.segment() {
        return Ok(segments::note(cx, pid, line, number));
    }
    let shared_write = line.shared() && line.has(b"mw");
    let uses = Uses {
        write: shared_write,
        overwrite: shared_write,
        in_place: shared_write,
        read: !line.shared(),
        shared: line.shared(),
        shared_write,
        program: !line.shared(),
        text: !line.shared() && line.perms.contains(&b'x'),
        listed: false,
        touched: false,
    };
    let key = (rustix::fs::makedev(line.device.0, line.device.1), line.inode);
    if let Some(id) = cx.inodes.lines.get(&key).copied()
        && contents::use_again(cx, id, uses)
    {
        return Ok(id);
    }
    if let Some((door, stat)) = find(cx, pid, line) {
        let met = Met { link: &line.name, stat: &stat, door: Some(door), owner: owner(pid, line) };
        let id = contents::note(cx, &met, uses);
        cx.inodes.lines.insert(key, id);
        return Ok(id);
    }
    if anonymous(line) {
        let (major, minor) = line.device;
        let id = contents::note_anonymous(cx, rustix::fs::makedev(major, minor), line);
        let len = line.range.end.saturating_sub(line.range.start);
        contents::note_window(cx, id, Window { pid, at: line.range.start, len, offset: line.offset });
        return Ok(id);
    }
    if line.shared() {
        return Err(Error::refuse(unreachable(pid, line)));
    }
    let id = contents::note_seen(cx, key.0, line, uses);
    let len = line.range.end.saturating_sub(line.range.start);
    contents::note_window(cx, id, Window { pid, at: line.range.start, len, offset: line.offset });
    Ok(id)
}

/// Notes what a link of `/proc/PID` leads to: `exe`, `cwd` or `root`.
pub(crate) fn capture_path(cx: &mut Capture<'_>, pid: Pid, name: &str) -> Result<ObjectId> {
    if name != "exe" {
        return directory::note_link(cx, pid, name);
    }
    let link = procfs::link(pid, name)?;
    let door = procfs::path(pid, name);
    let stat =
        rustix::fs::stat(&door).map_err(Error::system("looking at the program", model::path_of(&link).display()))?;
    let met = Met { link: &link, stat: &stat, door: Some(door), owner: Owner { pid: Some(pid), ..Owner::default() } };
    Ok(contents::note(cx, &met, Uses { program: true, text: true, read: true, ..Uses::default() }))
}

/// A descriptor to map the file of an object with; it stays ours until the end of the restore.
pub(crate) fn restore(cx: &mut Restore<'_>, id: ObjectId, writable: bool) -> Result<RawFd> {
    reopen::service(cx, id, writable)
}

/// A descriptor for what [`capture_path`] noted: a directory to change to, a program for `PR_SET_MM_EXE_FD`.
pub(crate) fn restore_path(cx: &mut Restore<'_>, id: ObjectId) -> Result<RawFd> {
    if cx.frames.contains_key(&(<InodeRecord as hdcr_image::Record>::TAG.0, id)) {
        let record = reopen::record_of(cx.frames, id)?;
        let opened = reopen::open(cx, id)?;
        let stat = rustix::fs::fstat(&opened.base).map_err(Error::system("looking at the program", id))?;
        if stat.st_mode & 0o111 == 0 {
            return not_executable(cx, id, &record);
        }
        return reopen::service(cx, id, false);
    }
    directory::service(cx, id)
}

/// The kernel takes only what may be executed for `exe` (kernel/sys.c `prctl_set_mm_exe_file`): a private copy does.
fn not_executable(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<RawFd> {
    let copy = reopen::executable(cx, id, record)?;
    let place = data::door(&copy.base);
    let file = rustix::fs::open(&place, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::system("opening a program", id))?;
    let file = cx.lift(file)?;
    let number = file.as_raw_fd();
    cx.parts.entry(id).or_default().push(file);
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_file_system_with_the_same_number_is_another_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = rustix::fs::stat(file.path()).unwrap();
        let line = |device| MapLine {
            name: file.path().as_os_str().as_encoded_bytes().to_vec(),
            inode: stat.st_ino,
            device,
            ..line("7f0000000000-7f0000002000 r--p 00000000 00:01 1 /x\n")
        };
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        assert!(by_path(&line((major, minor))).is_some());
        let layered = data::is_on(file.path(), &stat, (major, minor + 1));
        assert_eq!(by_path(&line((major, minor + 1))).is_some(), layered);
    }

    fn line(text: &str) -> MapLine {
        procfs::parse_smaps(text.as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn kinds_of_mappings_are_told_apart() {
        let text = "7f0000000000-7f0000002000 rw-s 00001000 00:01 1042                       /dev/zero (deleted)\n";
        assert!(anonymous(&line(text)));
        let pid = Pid(i32::try_from(std::process::id()).unwrap());
        let sysv = line("7f0000000000-7f0000002000 rw-s 00000000 00:01 0       /SYSV00000000 (deleted)\n");
        assert_eq!((sysv.segment(), anonymous(&sysv)), (Some(0), false));
        let odd = line("7f0000000000-7f0000002000 rw-s 00000000 00:0f 7       anon_inode:[perf_event]\n");
        assert_eq!(obstacle(pid, &odd, None).unwrap().code, "mapping-unknown");
    }

    #[test]
    fn the_files_behind_our_own_mappings_are_no_obstacle() {
        let pid = Pid(i32::try_from(std::process::id()).unwrap());
        let lines = procfs::parse_smaps(&procfs::read(pid, "smaps").unwrap()).unwrap();
        let files = lines.iter().filter(|line| line.inode != 0);
        assert_eq!(
            files
                .clone()
                .filter_map(|line| obstacle(pid, line, rustix::fs::stat(link(pid, line)).ok()))
                .collect::<Vec<_>>(),
            []
        );
        assert!(files.count() > 0);
    }
}
