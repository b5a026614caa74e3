//! Sizes, places and numbers, which no version may change.

use core::mem::offset_of;

use crate::{
    CallRow, Calls, Capture, Freeze, Head, Hello, Kill, MappingRow, Mappings, Pages, PointerRow, Range, Registers,
    Request, Restore, Signals, TaskRow, Tasks, Thaw, Waiting,
};

#[test]
fn sizes() {
    assert_eq!(size_of::<Head>(), 8);
    assert_eq!(size_of::<Hello>(), 40);
    assert_eq!(size_of::<Freeze>(), 64);
    assert_eq!(size_of::<Thaw>(), 8);
    assert_eq!(size_of::<Kill>(), 8);
    assert_eq!(size_of::<Tasks>(), 24);
    assert_eq!(size_of::<Mappings>(), 40);
    assert_eq!(size_of::<Registers>(), 32);
    assert_eq!(size_of::<Pages>(), 48);
    assert_eq!(size_of::<Capture>(), 32);
    assert_eq!(size_of::<Restore>(), 40);
    assert_eq!(size_of::<Range>(), 16);
    assert_eq!(size_of::<TaskRow>(), 128);
    assert_eq!(size_of::<MappingRow>(), 48);
    assert_eq!(size_of::<Calls>(), 64);
    assert_eq!(size_of::<Signals>(), 32);
    assert_eq!(size_of::<Waiting>(), 32);
    assert_eq!(size_of::<CallRow>(), 72);
    assert_eq!(size_of::<PointerRow>(), 8);
}

/// Every field lies right behind the one before it and on a multiple of its size, so that there is no padding anywhere.
macro_rules! no_gaps {
    ($kind:ident: $($field:ident),*) => {{
        let mut next = 0;
        let value = $kind::default();
        $(
            assert_eq!(offset_of!($kind, $field), next, stringify!($kind::$field));
            next += size_of_val(&value.$field);
        )*
        assert_eq!(next, size_of::<$kind>(), stringify!($kind));
        assert_eq!(next % 4, 0);
    }};
}

#[test]
fn there_is_no_padding() {
    no_gaps!(Head: size, flags);
    no_gaps!(Hello: head, oldest, newest, version, threads, features, xstate_size, reserved);
    no_gaps!(Freeze: head, scope, reserved, id, within_ns, processes, threads, rounds, hold, culprit, culprit_state, took_ns);
    no_gaps!(Tasks: head, at, room, count);
    no_gaps!(Mappings: head, at, room, tid, from, used, count);
    no_gaps!(Registers: head, at, room, used, tid, set);
    no_gaps!(Pages: head, ranges, count, tid, offset, written, fd, reserved);
    no_gaps!(Capture: head, fd, obstacle, culprit, reserved, written);
    no_gaps!(Restore: head, fd, reserved, within_ns, root, obstacle, processes, threads);
    no_gaps!(Range: start, length);
    no_gaps!(TaskRow: tid, tgid, ppid, pgid, sid, exit_signal, exit_code, stand, memory, files, folders, actions, blocked,
        clear_tid, robust_list, rseq, rseq_size, rseq_signature, stack_at, stack_size, stack_flags, stop_signal, comm);
    no_gaps!(Calls: head, calls, data, pointers, count, size, places, tid, within_ns, made, reserved);
    no_gaps!(Signals: head, at, room, count, tid, shared);
    no_gaps!(Waiting: head, tid, call, rest_ns, ends, reserved);
    no_gaps!(CallRow: nr, args, result, kinds, stops, reserved);
    no_gaps!(PointerRow: place, target);
    no_gaps!(MappingRow: start, end, offset, inode, device, prot, flags, name);
}

#[test]
fn commands() {
    assert_eq!(Hello::COMMAND, 0xc028_d700);
    assert_eq!(Freeze::COMMAND, 0xc040_d701);
    assert_eq!(Thaw::COMMAND, 0xc008_d702);
    assert_eq!(Kill::COMMAND, 0xc008_d703);
    assert_eq!(Tasks::COMMAND, 0xc018_d704);
    assert_eq!(Mappings::COMMAND, 0xc028_d705);
    assert_eq!(Registers::COMMAND, 0xc020_d706);
    assert_eq!(Pages::COMMAND, 0xc030_d707);
    assert_eq!(Capture::COMMAND, 0xc020_d708);
    assert_eq!(Restore::COMMAND, 0xc028_d709);
}

#[test]
fn a_head_names_the_size_of_its_request() {
    assert_eq!(Freeze::HEAD, Head { size: 64, flags: 0 });
    assert_eq!(Thaw::HEAD, Head { size: 8, flags: 0 });
}
