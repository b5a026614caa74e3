//! Reading and parsing `/proc/PID` (proc(5)). Every parser takes bytes and trusts none of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::process::PidfdFlags;

use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::{Fd, Pid, Tid};
use crate::mechanism::MechanismError;

mod door;
mod kin;

pub use door::{door, survivor};
pub use kin::{Threads, below, children, listed, threads};

/// Why a look at a task failed: it has ended, it is not ours to look at, or the system failed.
fn failed(operation: &'static str, task: i32, name: &str) -> impl FnOnce(io::Error) -> Error {
    move |source| {
        // That a link may not be read is what the kernel says of a task, too, that ended after its name was looked up.
        let unsure = matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
        let gone = source.raw_os_error() == Some(libc::ESRCH)
            || unsure && !PathBuf::from(format!("/proc/{task}")).exists() && !hidden(Pid(task))
            || source.kind() == io::ErrorKind::PermissionDenied && ends(task);
        if gone {
            return MechanismError::Gone { tid: Tid(task), operation }.into();
        }
        if source.kind() == io::ErrorKind::PermissionDenied || unsure && hidden(Pid(task)) {
            return MechanismError::NotPermitted { tid: Tid(task) }.into();
        }
        Error::System { operation, subject: format!("task {task}, {name}"), source }
    }
}

/// Whether a task has ended or is about to: it has given its memory back. From then on its files in `/proc` belong to root.
fn ends(task: i32) -> bool {
    // Read of any user; the first number is the size of its memory.
    let size = at_once(&format!("/proc/{task}/statm"));
    size.is_ok_and(|text| text.starts_with(b"0 ")) || !PathBuf::from(format!("/proc/{task}")).exists()
}

/// Files of one record: the kernel makes the whole of it for the first read, so a read that does not fill its room has got
/// all of it (`fs/seq_file.c`); and those below `fdinfo`. Of others, such as `children`, a short read is not the end.
const ONE_RECORD: [&str; 9] =
    ["stat", "status", "statm", "comm", "wchan", "limits", "cgroup", "timens_offsets", "auxv"];

/// Reads a file of `/proc` whose size nothing tells, with as few calls as can be: `fs::read` asks for its size and place
/// first, begins with a few bytes, and each read of such a file may cost as much as its making.
pub fn at_once(path: &str) -> io::Result<Vec<u8>> {
    const USUAL: usize = 4096;
    let one_record =
        path.rsplit('/').next().is_some_and(|name| ONE_RECORD.contains(&name)) || path.contains("/fdinfo/");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = vec![0; USUAL];
    let mut len = 0;
    loop {
        let got = match rustix::io::read(&file, bytes.get_mut(len..).unwrap_or_default()) {
            Err(rustix::io::Errno::INTR) => continue,
            got => got?,
        };
        len += got;
        if got == 0 || one_record && len < bytes.len() {
            bytes.truncate(len);
            return Ok(bytes);
        }
        if len == bytes.len() {
            bytes.resize(2 * len, 0);
        }
    }
}

/// `PIDFD_THREAD` (Linux 6.9): a pidfd of a thread that is no leader.
pub(crate) fn pidfd_thread() -> PidfdFlags {
    PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned())
}

/// Whether this is the state of what is left of a task.
pub fn dead(state: u8) -> bool {
    matches!(state, b'Z' | b'X')
}

/// Asks by the process's own number, and once more by its first living thread when the leader turns out to have ended.
fn by_door<T>(pid: Pid, ask: impl Fn(i32) -> io::Result<T>, empty: impl Fn(&T) -> bool) -> io::Result<T> {
    let answer = ask(pid.0);
    if answer.as_ref().is_ok_and(|answer| !empty(answer)) {
        return answer;
    }
    match door(pid) {
        same if same == pid.0 => answer,
        other => ask(other),
    }
}

/// Reads a file of `/proc/PID`.
pub fn read(pid: Pid, name: &str) -> Result<Vec<u8>> {
    by_door(pid, |door| at_once(&format!("/proc/{door}/{name}")), Vec::is_empty).map_err(failed(
        "reading /proc",
        pid.0,
        name,
    ))
}

/// Reads a file of `/proc/PID/task/TID`.
pub fn read_thread(pid: Pid, tid: Tid, name: &str) -> Result<Vec<u8>> {
    at_once(&format!("/proc/{pid}/task/{tid}/{name}")).map_err(failed("reading /proc", tid.0, name))
}

/// Reads a link of `/proc/PID`; its bytes need not be UTF-8. The kernel tells no path above its `PATH_MAX`: who has one is
/// refused.
pub fn link(pid: Pid, name: &str) -> Result<Vec<u8>> {
    let read = by_door(pid, |door| fs::read_link(format!("/proc/{door}/{name}")), |_| false)
        .map(|path| path.into_os_string().into_vec());
    read.map_err(|error| {
        if error.raw_os_error() == Some(libc::ENAMETOOLONG) {
            Error::refuse(too_long(pid, name))
        } else {
            failed("reading a link of /proc", pid.0, name)(error)
        }
    })
}

fn too_long(pid: Pid, name: &str) -> Refusal {
    Refusal {
        code: "path-too-long",
        object: format!("path of {name}"),
        owner: Owner { pid: Some(pid), ..Owner::default() },
        cause: "it is longer than the kernel can tell".to_owned(),
        remedy: "let the program work in a directory with a shorter path".to_owned(),
    }
}

/// The path under which `/proc` gives a process's own file of that name.
pub fn path(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", door(pid)))
}

/// `stat(2)` through a link of `/proc/PID`.
pub(crate) fn stat_through(pid: Pid, name: &str) -> io::Result<rustix::fs::Stat> {
    by_door(pid, |door| Ok(rustix::fs::stat(format!("/proc/{door}/{name}"))?), |_| false)
}

/// Numbers of the entries of a directory such as `/proc/PID/fd`, in order; of threads see [`threads`].
pub fn numbers(pid: Pid, directory: &str) -> Result<Vec<i32>> {
    by_door(pid, |door| numbers_in(&format!("/proc/{door}/{directory}")), Vec::is_empty).map_err(failed(
        "listing /proc",
        pid.0,
        directory,
    ))
}

fn numbers_in(directory: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether there is a process that `/proc` does not show to this user (its mount option `hidepid`).
pub fn hidden(pid: Pid) -> bool {
    // In this order: one that ends in between is not hidden.
    let shown = fs::exists(format!("/proc/{pid}")).unwrap_or(false);
    !shown && nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), None) != Err(nix::errno::Errno::ESRCH)
}

/// Whether `/proc` shows this user a process: its `stat`, which anybody may read who sees it.
pub(crate) fn is_shown(pid: Pid) -> bool {
    rustix::fs::stat(format!("/proc/{pid}/stat")).is_ok()
}

/// Every process that `/proc` shows, with its session and group.
pub(crate) fn bands() -> Vec<(Pid, Stat)> {
    processes().into_iter().filter_map(|pid| Some((pid, stat(pid).ok()?))).collect()
}

/// Every process that `/proc` shows.
pub fn processes() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid).collect()
}

/// The fields of `/proc/PID/stat` that we use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    /// The command name, at most 15 bytes.
    pub comm: Vec<u8>,
    /// `R`, `S`, `D`, `Z`, `T`, ...
    pub state: u8,
    /// Parent.
    pub ppid: Pid,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Controlling terminal's device number, 0: none.
    pub tty: u64,
    /// Foreground group of that terminal.
    pub tty_pgrp: i32,
    /// All numbers from field 4 (ppid) on, for [`Stat::field`].
    pub numbers: Vec<i64>,
}

impl Stat {
    /// Field by its number in proc(5), from 4 on. Values above `i64::MAX` are wrapped.
    pub fn field(&self, number: usize) -> Option<i64> {
        self.numbers.get(number.checked_sub(4)?).copied()
    }
}

/// Parses `stat`. The name may hold anything, also `)` and spaces: it ends at the last `)`.
pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|b| *b == b'(')?;
    let close = text.iter().rposition(|b| *b == b')')?;
    let comm = text.get(open.checked_add(1)?..close)?.to_vec();
    let rest = std::str::from_utf8(text.get(close.checked_add(2)?..)?).ok()?;
    let mut words = rest.split_ascii_whitespace();
    let letter = *words.next()?.as_bytes().first()?;
    let numbers: Vec<i64> = words.map(parse_number).collect::<Option<_>>()?;
    let at = |field: usize| numbers.get(field - 4).copied();
    let small = |field: usize| at(field).and_then(|n| i32::try_from(n).ok());
    Some(Stat {
        comm,
        state: letter,
        ppid: Pid(small(4)?),
        pgid: small(5)?,
        sid: small(6)?,
        tty: at(7)?.cast_unsigned() & 0xffff_ffff,
        tty_pgrp: small(8)?,
        numbers,
    })
}

fn parse_number(word: &str) -> Option<i64> {
    word.parse::<i64>().ok().or_else(|| word.parse::<u64>().ok().map(u64::cast_signed))
}

/// Reads and parses the `stat` of a process.
pub fn stat(pid: Pid) -> Result<Stat> {
    let text = at_once(&format!("/proc/{pid}/stat")).map_err(failed("reading /proc", pid.0, "stat"))?;
    parse_stat(&text)
        .ok_or_else(|| Error::Changed { subject: format!("process {pid}"), what: "unreadable stat".into() })
}

/// The `Key: value` lines of files such as `status` and `fdinfo`. Keys that appear several times keep every value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyValues {
    text: String,
    /// Where keys and values lie in the text.
    pairs: Vec<(Range<usize>, Range<usize>)>,
}

impl KeyValues {
    /// Parses; lines without a colon are kept with an empty key.
    pub fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text).into_owned();
        let mut pairs = Vec::with_capacity(64);
        let mut begin = 0;
        for line in text.split_inclusive('\n') {
            let colon = line.find(':');
            let (key, value) =
                (trimmed(line, 0..colon.unwrap_or(0)), trimmed(line, colon.map_or(0, |at| at + 1)..line.len()));
            if colon.is_some() || !value.is_empty() {
                let place = |range: Range<usize>| begin + range.start..begin + range.end;
                pairs.push((place(key), place(value)));
            }
            begin += line.len();
        }
        Self { text, pairs }
    }

    /// The lines in order, key and value.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let part = |range: &Range<usize>| self.text.get(range.clone()).unwrap_or_default();
        self.pairs.iter().map(move |(key, value)| (part(key), part(value)))
    }

    /// The first value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// All values of a key.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs().filter(move |(k, _)| *k == key).map(|(_, v)| v)
    }

    /// The first value as a decimal number (the first word of it).
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.split_ascii_whitespace().next()?.parse().ok()
    }

    /// The first value as a hexadecimal number.
    pub fn hex(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.get(key)?, 16).ok()
    }

    /// The first value as an octal number.
    pub fn octal(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.get(key)?, 8).ok()
    }

    /// The decimal numbers of a value.
    pub fn list(&self, key: &str) -> Option<Vec<u64>> {
        self.get(key)?.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
    }
}

/// A part of a line without the white space around it.
fn trimmed(line: &str, range: Range<usize>) -> Range<usize> {
    let part = line.get(range.clone()).unwrap_or_default();
    let start = range.start + (part.len() - part.trim_start().len());
    start..start + part.trim().len()
}

/// Reads and parses the `status` of a thread.
pub fn status(pid: Pid, tid: Tid) -> Result<KeyValues> {
    Ok(KeyValues::parse(&read_thread(pid, tid, "status")?))
}

/// One mapping, as `/proc/PID/smaps` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapLine {
    /// Addresses.
    pub range: Range<u64>,
    /// `rwxp` or `rwxs`.
    pub perms: [u8; 4],
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Device of the file.
    pub device: (u32, u32),
    /// Inode of the file, 0: none.
    pub inode: u64,
    /// Name, with `\012` undone; may be empty, `[heap]`, a path, `/memfd:x (deleted)`.
    pub name: Vec<u8>,
    /// Two-letter codes of `VmFlags`.
    pub vm_flags: Vec<[u8; 2]>,
    /// Memory protection key (pkeys(7)), 0: the usual one.
    pub protection_key: u32,
}

impl MapLine {
    /// Whether `VmFlags` holds a code.
    pub fn has(&self, code: &[u8; 2]) -> bool {
        self.vm_flags.contains(code)
    }

    /// Whether it is mapped shared.
    pub fn shared(&self) -> bool {
        self.perms.last() == Some(&b's')
    }
}

/// Parses `smaps` (or `maps`, then without flags).
pub fn parse_smaps(text: &[u8]) -> Option<Vec<MapLine>> {
    let mut lines: Vec<MapLine> = Vec::new();
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let codes = flags.split(|b| *b == b' ').filter_map(|code| <[u8; 2]>::try_from(code).ok());
            lines.last_mut()?.vm_flags = codes.collect();
        } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
            let key = std::str::from_utf8(key).ok().and_then(|key| key.trim().parse().ok());
            lines.last_mut()?.protection_key = key?;
        } else if line.first().is_some_and(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
            lines.push(parse_map_line(line)?);
        }
    }
    Some(lines)
}

fn parse_map_line(line: &[u8]) -> Option<MapLine> {
    let mut rest = line;
    let mut word = || {
        let start = rest.iter().position(|b| *b != b' ')?;
        rest = rest.get(start..)?;
        let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
        let (head, tail) = rest.split_at(end);
        rest = tail;
        std::str::from_utf8(head).ok()
    };
    let (start, end) = word()?.split_once('-')?;
    let perms = word()?.as_bytes().try_into().ok()?;
    let offset = u64::from_str_radix(word()?, 16).ok()?;
    let (major, minor) = word()?.split_once(':')?;
    let inode = word()?.parse().ok()?;
    let name_start = rest.iter().position(|b| *b != b' ').unwrap_or(rest.len());
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let hex32 = |text: &str| u32::from_str_radix(text, 16).ok();
    Some(MapLine {
        range: hex(start)?..hex(end)?,
        perms,
        offset,
        device: (hex32(major)?, hex32(minor)?),
        inode,
        name: unescape(rest.get(name_start..)?),
        vm_flags: Vec::new(),
        protection_key: 0,
    })
}

/// Undoes the `\ooo` escapes that `/proc` uses for newline and backslash in names.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        let escape = (first == b'\\').then(|| tail.get(..3)).flatten();
        let value = escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        // A backslash itself is not escaped by seq_path, so only the newline is undone.
        if value == Some(b'\n') {
            out.push(b'\n');
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

/// What `/proc/PID/fdinfo/FD` says of every open file, and the lines that only its kind has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FdInfo {
    /// File offset.
    pub pos: u64,
    /// Open and status flags, with `O_CLOEXEC` for this descriptor.
    pub flags: u64,
    /// Mount of the file.
    pub mnt_id: u64,
    /// All lines.
    pub lines: KeyValues,
}

/// Reads `fdinfo` of a descriptor.
pub fn fd_info(pid: Pid, fd: Fd) -> Result<FdInfo> {
    let lines = KeyValues::parse(&read(pid, &format!("fdinfo/{fd}"))?);
    let fields = (|| Some((lines.number("pos")?, lines.octal("flags")?, lines.number("mnt_id")?)))();
    let (pos, flags, mnt_id) = fields
        .ok_or_else(|| Error::Changed { subject: format!("pid {pid}, fd {fd}"), what: "unreadable fdinfo".into() })?;
    Ok(FdInfo { pos, flags, mnt_id, lines })
}

/// Limits by name: soft, hard.
pub type Limits = BTreeMap<String, (Option<u64>, Option<u64>)>;

/// Soft and hard limits by their name in `/proc/PID/limits`; `None` is unlimited.
pub fn limits(pid: Pid) -> Result<Limits> {
    Ok(parse_limits(&String::from_utf8_lossy(&read(pid, "limits")?)))
}

/// Parses `limits`.
pub(crate) fn parse_limits(text: &str) -> Limits {
    let row = |line: &str| {
        let (name, rest) = line.split_at_checked(26)?;
        let mut words = rest.split_ascii_whitespace();
        let value = |word: &str| if word == "unlimited" { Some(None) } else { word.parse().ok().map(Some) };
        Some((name.trim().to_owned(), (value(words.next()?)?, value(words.next()?)?)))
    };
    text.lines().skip(1).filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_confuse_stat() {
        let stat = parse_stat(b"17 (a) b (c) S 1 17 17 34816 17 4194304 1 18446744073709551615\n").unwrap();
        assert_eq!(stat.comm, b"a) b (c");
        assert_eq!(
            (stat.state, stat.ppid, stat.pgid, stat.sid, stat.tty, stat.tty_pgrp),
            (b'S', Pid(1), 17, 17, 34816, 17)
        );
        assert_eq!(stat.field(11), Some(-1));
    }

    #[test]
    fn a_mapping_with_spaces_in_its_name() {
        let text =
            b"7f0000000000-7f0000002000 rw-s 00001000 00:01 1042                       /memfd:a b\\012c (deleted)\n\
                     Size:                  8 kB\nVmFlags: rd wr sh mr mw me ms sd \n";
        let lines = parse_smaps(text).unwrap();
        let line = lines.first().unwrap();
        assert_eq!(line.range, 0x7f00_0000_0000..0x7f00_0000_2000);
        assert_eq!(line.name, b"/memfd:a b\nc (deleted)");
        assert!(line.shared() && line.has(b"mw") && !line.has(b"ex"));
        assert_eq!((line.offset, line.device, line.inode), (0x1000, (0, 1), 1042));
    }

    #[test]
    fn odd_bytes_are_refused_or_skipped_without_panic() {
        assert_eq!(parse_stat(b"17 (a"), None);
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_smaps(b"zz"), Some(vec![]));
        assert_eq!(parse_smaps(b"12-"), None);
        assert_eq!(parse_smaps(b"VmFlags: rd"), None);
    }

    #[test]
    fn limits_are_read_by_name() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 1048576              files     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n";
        let limits = parse_limits(text);
        assert_eq!(limits.get("Max open files"), Some(&(Some(1024), Some(1_048_576))));
        assert_eq!(limits.get("Max cpu time"), Some(&(None, None)));
    }

    #[test]
    fn a_process_that_ends_in_between_is_not_hidden() {
        use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
        let (current, over) = (AtomicI32::new(1), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if hidden(Pid(current.load(Ordering::Relaxed))) {
                        return false;
                    }
                }
                true
            });
            // A shell makes them: children of this process would hold the descriptors of other tests for a moment.
            let script = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); /bin/true & echo $!; wait; done";
            let mut shell = std::process::Command::new("sh");
            let mut shell = shell.args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
            for line in io::BufRead::lines(io::BufReader::new(shell.stdout.take().unwrap())) {
                current.store(line.unwrap().parse().unwrap(), Ordering::Relaxed);
            }
            shell.wait().unwrap();
            over.store(true, Ordering::Relaxed);
            assert!(watcher.join().unwrap());
        });
    }

    #[test]
    fn a_look_at_a_link_of_a_process_that_has_ended_tells_that_it_has() {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let denied = || io::Error::from_raw_os_error(libc::EACCES);
        // A zombie has no memory any more, and for an ordinary user its files are root's.
        waitid(Id::Pid(nix::unistd::Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        let ended = failed("reading", pid, "exe")(denied());
        assert!(matches!(ended, Error::Mechanism(MechanismError::Gone { .. })), "{ended:?}");
        child.wait().unwrap();
        // The kernel says of the links of a process that it has just reaped that one may not read them.
        let ended = failed("reading", pid, "exe")(denied());
        assert!(matches!(ended, Error::Mechanism(MechanismError::Gone { .. })), "{ended:?}");
        let own = failed("reading", 1, "exe")(denied());
        assert!(matches!(own, Error::Mechanism(MechanismError::NotPermitted { .. })), "{own:?}");
    }
}
