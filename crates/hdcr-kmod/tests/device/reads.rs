//! What is read of frozen programs, compared with what `/proc` shows and what the programs put there.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use hdcr_abi::{RANGES, Range, TaskRow, mapping_flag, register_set, scope, stand};
use hdcr_kmod::{Mapping, Session, SessionError};

use crate::Test;
use crate::access::{freeze, session};
use crate::board::Target;
use crate::target::{PAGES, filling};

pub(crate) const TESTS: [Test; 6] = [
    ("reads/tasks", tasks),
    ("reads/mappings", mappings),
    ("reads/registers", registers),
    ("reads/vector_registers", vector_registers),
    ("reads/pages", pages),
    ("reads/odd_pages_are_refused", odd_pages_are_refused),
];

fn status(tid: i32, word: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{tid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(':')).unwrap().trim().to_owned()
}

fn number(tid: i32, word: &str) -> i32 {
    status(tid, word).split_whitespace().next().unwrap().parse().unwrap()
}

fn check_row(row: &TaskRow) {
    let tid = row.tid;
    assert_eq!(row.tgid, number(tid, "Tgid"));
    assert_eq!(row.ppid, number(tid, "PPid"));
    assert_eq!(row.sid, nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(tid))).unwrap().as_raw());
    assert_eq!(row.pgid, nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(tid))).unwrap().as_raw());
    assert_eq!(row.blocked, u64::from_str_radix(&status(tid, "SigBlk"), 16).unwrap());
    let comm = fs::read_to_string(format!("/proc/{tid}/comm")).unwrap();
    let end = row.comm.iter().position(|byte| *byte == 0).unwrap();
    assert_eq!(row.comm[..end], *comm.trim_end().as_bytes());
    assert_eq!(row.stand, stand::RUNNING);
}

fn tasks() {
    let threads = Target::start("threads", 5);
    let mut session = session();
    let held = freeze(&mut session, scope::TREE, threads.id());
    assert_eq!((held.processes, held.threads), (1, 5));
    let rows = session.tasks().unwrap();
    assert_eq!(rows.len(), 5);
    for row in &rows {
        check_row(row);
        assert_eq!([row.memory, row.files, row.folders, row.actions], [threads.pid(); 4]);
    }
    session.thaw().unwrap();
    threads.goes_on();
    let tree = Target::start("tree", 7);
    freeze(&mut session, scope::TREE, tree.id());
    let rows = session.tasks().unwrap();
    assert_eq!(rows.len(), 7);
    for row in &rows {
        check_row(row);
        assert_eq!([row.memory, row.files, row.folders, row.actions], [row.tid; 4]);
    }
    session.thaw().unwrap();
    tree.goes_on();
}

/// As a line of `/proc/PID/maps` shows it.
fn line_of(mapping: &Mapping) -> String {
    let row = &mapping.row;
    let bit = |has: bool, letter| if has { letter } else { '-' };
    let prot: String = [(1, 'r'), (2, 'w'), (4, 'x')].map(|(mask, c)| bit(row.prot & mask != 0, c)).iter().collect();
    let shared = if row.flags & mapping_flag::SHARED != 0 { 's' } else { 'p' };
    let (major, minor) = ((row.device >> 8) & 0xfff, (row.device & 0xff) | ((row.device >> 12) & 0x000f_ff00));
    let name = String::from_utf8_lossy(&mapping.name);
    let start = format!(
        "{:08x}-{:08x} {prot}{shared} {:08x} {major:02x}:{minor:02x} {}",
        row.start, row.end, row.offset, row.inode
    );
    format!("{start} {name}").trim_end().to_owned()
}

fn mappings() {
    let target = Target::start("threads", 40);
    let mut session = session();
    freeze(&mut session, scope::PROCESS, target.id());
    let found: Vec<String> = session.mappings(target.pid()).unwrap().iter().map(line_of).collect();
    let expected = fs::read_to_string(format!("/proc/{}/maps", target.pid())).unwrap();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected: Vec<String> = expected.lines().filter(|line| !line.contains("[vsyscall]")).map(words).collect();
    assert_eq!(found, expected);
    assert!(found.len() > 40);
    let special: Vec<String> = session
        .mappings(target.pid())
        .unwrap()
        .into_iter()
        .filter(|mapping| mapping.row.flags & mapping_flag::SPECIAL != 0)
        .map(|mapping| String::from_utf8(mapping.name).unwrap())
        .collect();
    assert!(special.contains(&"[vdso]".to_owned()), "{special:?}");
    target.goes_still_and_on(&mut session);
}

impl Target {
    fn goes_still_and_on(&self, session: &mut Session) {
        self.stands_still(|| session.tasks().unwrap());
        session.thaw().unwrap();
        self.goes_on();
    }
}

fn registers() {
    let target = Target::start("sleepers", 5);
    let mut session = session();
    freeze(&mut session, scope::PROCESS, target.id());
    let maps = session.mappings(target.pid()).unwrap();
    for row in session.tasks().unwrap() {
        let bytes = session.registers(row.tid, register_set::GENERAL, 4096).unwrap();
        assert_eq!(bytes.len(), 27 * 8);
        let word = |at: usize| u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
        let (ip, sp) = (word(16), word(19));
        let is_in =
            |at: u64, prot| maps.iter().any(|m| (m.row.start..m.row.end).contains(&at) && m.row.prot & prot != 0);
        assert!(is_in(ip, 4), "ip {ip:x}");
        assert!(is_in(sp, 2), "sp {sp:x}");
        assert!(is_in(word(21), 2), "fs base {:x}", word(21));
    }
    let absent = session.registers(1, register_set::GENERAL, 4096).unwrap_err();
    assert!(matches!(absent, SessionError::Call { .. }));
    assert!(session.registers(target.pid(), 3, 4096).is_err());
    target.goes_still_and_on(&mut session);
}

/// Spinners keep their pattern in registers nearly always.
fn vector_registers() {
    let target = Target::start("spinners", 2);
    let mut session = session();
    let mut seen = [false; 2];
    for _ in 0..200 {
        freeze(&mut session, scope::PROCESS, target.id());
        for row in session.tasks().unwrap() {
            let room = session.xstate_size() as usize;
            let bytes = session.registers(row.tid, register_set::XSTATE, room).unwrap();
            assert_eq!(bytes.len(), room);
            // The low half of register 3 in the area's first part.
            let low: [u8; 8] = bytes[160 + 3 * 16..160 + 3 * 16 + 8].try_into().unwrap();
            let mut patterns = (1..=2).map(|number| 0x1111_1111_1111_1111_u64 * number);
            if let Some(at) = patterns.position(|pattern| pattern == u64::from_ne_bytes(low)) {
                seen[at] = true;
            }
        }
        session.thaw().unwrap();
        if seen == [true; 2] {
            break;
        }
    }
    assert_eq!(seen, [true; 2]);
    target.goes_on();
}

fn pages() {
    let target = Target::start("memory", 1);
    let at = target.board.get(1);
    let path = std::env::temp_dir().join(format!("pages-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let mut session = session();
    freeze(&mut session, scope::PROCESS, target.id());
    let whole = Range { start: at, length: PAGES as u64 * 4096 };
    let last = Range { start: at + (PAGES as u64 - 3) * 4096, length: 2 * 4096 };
    let ranges = [last, whole, last];
    let written = session.pages(target.pid(), &ranges, file.as_fd(), 100).unwrap();
    target.goes_still_and_on(&mut session);
    assert_eq!(written, whole.length + 2 * last.length);
    assert_eq!(file.metadata().unwrap().len(), 100 + written);
    let expected = [PAGES - 3, PAGES - 2].into_iter().chain(0..PAGES).chain([PAGES - 3, PAGES - 2]);
    for (place, page) in expected.enumerate() {
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, 100 + place as u64 * 4096).unwrap();
        assert!(bytes.iter().all(|byte| *byte == filling(page)), "page {page} at {place}");
    }
    fs::remove_file(path).unwrap();
}

fn errno(error: SessionError) -> i32 {
    let SessionError::Call { source, .. } = error else {
        panic!("{error}");
    };
    source.raw_os_error().unwrap()
}

fn odd_pages_are_refused() {
    let target = Target::start("memory", 1);
    let start = target.board.get(1);
    let path = std::env::temp_dir().join(format!("odd-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let mut session = session();
    freeze(&mut session, scope::PROCESS, target.id());
    let tid = target.pid();
    let check = |ranges: &[Range], expected: i32| {
        assert_eq!(errno(session.pages(tid, ranges, file.as_fd(), 0).unwrap_err()), expected, "{ranges:?}");
    };
    check(&[Range { start: start + 1, length: 4096 }], libc::EINVAL);
    check(&[Range { start, length: 1 }], libc::EINVAL);
    check(&[Range { start: u64::MAX - 4095, length: 8192 }], libc::EINVAL);
    check(&[Range { start: 0xffff_8880_0000_0000, length: 4096 }], libc::EINVAL);
    check(&[Range { start: 4096, length: 4096 }], libc::EFAULT);
    check(&[Range { start: 0x7fff_ffff_f000, length: 4096 }], libc::EFAULT);
    check(&vec![Range { start, length: 0 }; RANGES as usize + 1], libc::EINVAL);
    assert_eq!(session.pages(tid, &vec![Range { start, length: 0 }; RANGES as usize], file.as_fd(), 0).unwrap(), 0);
    let one = [Range { start, length: 4096 }];
    let (reader, writer) = std::io::pipe().unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let closed_to_writing = File::open(&path).unwrap();
    let appended = File::options().append(true).open(&path).unwrap();
    let closed = closed_to_writing.as_fd();
    for odd in [reader.as_fd(), writer.as_fd(), null.as_fd(), closed, appended.as_fd(), session.device()] {
        assert_eq!(errno(session.pages(tid, &one, odd, 0).unwrap_err()), libc::EBADF);
    }
    assert_eq!(errno(session.pages(tid, &one, file.as_fd(), u64::MAX).unwrap_err()), libc::EINVAL);
    assert_eq!(errno(session.pages(1, &one, file.as_fd(), 0).unwrap_err()), libc::ESRCH);
    target.goes_still_and_on(&mut session);
    assert_eq!(errno(session.pages(tid, &one, file.as_fd(), 0).unwrap_err()), libc::ENODATA);
    fs::remove_file(path).unwrap();
}
