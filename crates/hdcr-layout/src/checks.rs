//! Every record: there and back, at every length, and with every odd byte.

extern crate std;
use std::vec;
use std::vec::Vec;

use crate::{
    Codec, DescriptorEntry, FrameHeader, Header, Itimer, Layout, LayoutError, LogRecord, Mapping, MappingKind,
    PageRunEntry, PartKind, PathFile, Pipe, PosixTimer, Registers, SignalAction, Space, Task, TaskState, Thread, Tree,
    Words,
};

/// There and back; too little room and each shorter input are errors; no changed byte panics, and what is still read
/// is written as exactly the bytes it was read from.
macro_rules! check {
    ($kind:ty, $size:expr, $record:expr) => {{
        let record: $kind = $record;
        let mut bytes = vec![0xff_u8; $size + 3];
        assert_eq!(record.encode(&mut bytes), Ok($size));
        assert_eq!(&bytes[$size..], &[0xff; 3], "nothing behind the record is touched");
        assert_eq!(<$kind>::decode(&bytes), Ok((record, $size)));
        for len in 0..$size {
            assert!(matches!(<$kind>::decode(&bytes[..len]), Err(LayoutError::Short { .. })), "{len}");
            assert!(matches!(record.encode(&mut bytes.clone()[..len]), Err(LayoutError::NoRoom { .. })));
        }
        for at in 0..$size {
            for change in 1..=255_u8 {
                let mut odd: Vec<u8> = bytes[..$size].to_vec();
                odd[at] ^= change;
                if let Ok((read, used)) = <$kind>::decode(&odd) {
                    assert_ne!(read, record);
                    let mut again = vec![0; used];
                    assert_eq!(read.encode(&mut again), Ok(used));
                    assert_eq!(again, odd[..used]);
                }
            }
        }
    }};
}

#[test]
fn container_blocks() {
    let header = Header { version: 1, kind: PartKind::Pages, image: [7; 16], number: 3, generation: 9 };
    check!(Header, Header::SIZE, header);
    check!(FrameHeader, FrameHeader::SIZE, FrameHeader { tag: 300, version: 2, length: 17, id: 1 << 40, xxh3: 5 });
    check!(PageRunEntry, 52, stored_run());
    check!(LogRecord, 64, LogRecord::Put { space: 1 << 40, run: stored_run() });
    check!(LogRecord, 64, LogRecord::Cut { space: 7, start: 0x1000, end: 1 << 50 });
}

#[test]
fn cuts_of_nothing_are_refused() {
    for (start, end) in [(1, 0x1000), (0, 0xfff), (0x1000, 0x1000), (0x2000, 0x1000)] {
        let mut bytes = [0; LogRecord::SIZE];
        LogRecord::Cut { space: 0, start, end }.encode(&mut bytes).unwrap();
        assert!(matches!(LogRecord::decode(&bytes), Err(LayoutError::Invalid { .. })), "{start} {end}");
    }
}

fn stored_run() -> PageRunEntry {
    PageRunEntry {
        address: 0x7fff_0000_0000,
        offset: 64,
        generation: 1,
        xxh3: 0xdead,
        pages: 3,
        segment: 0,
        length: 900,
        codec: Codec::Lz4,
        stored: 5,
        skip: 2,
        reserved: 0,
    }
}

#[test]
fn impossible_runs_are_refused() {
    let refused = |change: fn(&mut PageRunEntry)| {
        let mut run = stored_run();
        change(&mut run);
        let mut bytes = [0; PageRunEntry::SIZE];
        run.encode(&mut bytes).unwrap();
        assert!(matches!(PageRunEntry::decode(&bytes), Err(LayoutError::Invalid { .. })), "{run:?}");
    };
    refused(|run| run.address = 0x1001);
    refused(|run| run.address = u64::MAX - 0xfff);
    refused(|run| run.pages = 0);
    refused(|run| run.pages = 4);
    refused(|run| run.stored = 257);
    refused(|run| run.length = 0);
    refused(|run| run.length = 5 * 4096);
    refused(|run| run.offset = u64::MAX);
    refused(|run| run.codec = Codec::Zero);
    refused(|run| run.codec = Codec::Plain);
    refused(|run| (run.codec, run.length) = (Codec::Delta, 52));
    refused(|run| (run.codec, run.length) = (Codec::PackedDelta, 5 * 4096));
}

#[test]
fn tasks_and_registers() {
    let task = Task {
        tid: 12,
        tgid: 11,
        ppid: 1,
        pgid: 11,
        sid: 10,
        exit_signal: 17,
        exit_status: 0x8b,
        state: TaskState::DeadLeader,
        flags: 1,
        comm: *b"sleep\0\0\0\0\0\0\0\0\0\0\0",
    };
    check!(Task, 52, task);
    let mut words = [0; 27];
    words[26] = u64::MAX;
    check!(Registers, 216, Registers { words });
}

#[test]
fn mappings() {
    let mapping = Mapping {
        start: 0x1000,
        end: 0x3000,
        offset: 0x5000,
        vm_flags: 1 << 33,
        object: 4,
        prot: 7,
        map_flags: 2,
        kind: MappingKind::PrivateFile,
    };
    check!(Mapping, 52, mapping);
}

#[test]
fn signals_and_timers() {
    let action = SignalAction { handler: 0x4000_1234, flags: 0x0400_0000, restorer: 0x4000, mask: 1 << 63, signal: 64 };
    check!(SignalAction, 36, action);
    check!(Itimer, 20, Itimer { value_ns: 5, interval_ns: 6, which: 2 });
    let timer = PosixTimer {
        value: 1,
        value_ns: 2,
        interval_ns: 3,
        id: 4,
        clock: -6,
        signal: 34,
        notify: 4,
        tid: 8,
        overrun: 9,
        flags: 10,
    };
    check!(PosixTimer, 52, timer);
}

#[test]
fn files_and_descriptors() {
    let file = PathFile { object: 1, offset: 2, flags: 0o2, mode: 0o100_644, path: b"/tmp/a\xffb" };
    check!(PathFile<'_>, 36, file);
    check!(DescriptorEntry, 16, DescriptorEntry { object: 1, fd: 3, flags: 1 });
}

#[test]
fn odd_paths_are_refused() {
    let file = PathFile { object: 1, offset: 2, flags: 0, mode: 0, path: b"a\0b" };
    assert!(matches!(file.encode(&mut [0; 64]), Err(LayoutError::Invalid { .. })));
    let mut bytes = [0; 64];
    PathFile { path: b"x", ..file }.encode(&mut bytes).unwrap();
    for length in [0_u32, 4096, u32::MAX] {
        bytes[24..28].copy_from_slice(&length.to_le_bytes());
        assert!(PathFile::decode(&bytes).is_err(), "{length}");
    }
}

#[test]
fn other_versions_are_refused_by_number() {
    let header = Header { version: 1, kind: PartKind::Frames, image: [1; 16], number: 0, generation: 0 };
    let mut bytes = [0; Header::SIZE];
    header.encode(&mut bytes).unwrap();
    for found in [0, 3] {
        bytes[8] = found;
        assert_eq!(Header::decode(&bytes), Err(LayoutError::Version { found: u32::from(found) }));
    }
    bytes[0] = b'X';
    assert_eq!(Header::decode(&bytes), Err(LayoutError::NotOurs));
}

#[test]
fn what_only_the_kernel_module_writes() {
    check!(Tree, 24, Tree { surroundings: 1 << 60, xstate_size: 832, processes: 2, threads: 3, reserved: 0 });
    let space = Space { program: 1, folder: 2, marks: [3; 11], auxiliary: Words([4; Words::COUNT]) };
    check!(Space, 616, space);
    let thread = Thread {
        blocked: 1,
        stack_at: 2,
        stack_size: 3,
        clear_tid: 4,
        robust_list: 5,
        rseq: 6,
        rseq_size: 7,
        rseq_signature: 8,
        stack_flags: 9,
        reserved: 0,
    };
    check!(Thread, 64, thread);
    check!(Pipe, 24, Pipe { reader: 1, writer: 2, reader_flags: 3, writer_flags: 4 });
}

#[test]
fn trees_without_processes_are_refused() {
    for (processes, threads) in [(0, 0), (0, 1), (3, 2)] {
        let tree = Tree { surroundings: 0, xstate_size: 0, processes, threads, reserved: 0 };
        let mut bytes = [0; Tree::SIZE];
        tree.encode(&mut bytes).unwrap();
        assert!(matches!(Tree::decode(&bytes), Err(LayoutError::Invalid { .. })), "{processes} {threads}");
    }
}
