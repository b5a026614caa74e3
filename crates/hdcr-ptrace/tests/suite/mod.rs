//! What every mechanism must do, written against the trait alone.

mod nursery;
mod scene;
mod scenes;

pub(crate) use nursery::{
    nursery_dies_when_dropped, nursery_makes_a_tree, stopped_and_leaderless, timed_call_begins_again,
};

pub(crate) use scenes::{
    held_by_another, pending_signals_stay, refusals, rseq_sections_abort, signals_all_taken, stopped_job_stays_stopped,
    storms, the_dead, vfork_in_progress, waits_begin_anew, waits_end, whole_tree,
};

use std::time::{Duration, Instant};

use hdcr_engine::batch::{Arg, Batch};
use hdcr_engine::ids::{Pid, RemotePtr};
use hdcr_engine::mechanism::{Deadline, Followed, Frozen, Mechanism, Pages, Scope, Written};

use crate::guests::{Guest, Link, Outcome};

/// More than any step takes; a trial that needs it has failed.
pub(crate) fn soon() -> Deadline {
    Deadline(Instant::now() + Duration::from_secs(20))
}

fn ensure(holds: bool, what: &str) -> Outcome<()> {
    if holds { Ok(()) } else { Err(what.into()) }
}

fn freeze(mechanism: &dyn Mechanism, pid: Pid) -> Outcome<Box<dyn Frozen>> {
    Ok(mechanism.freeze(Scope::Tree(pid), soon())?)
}

/// A process stops, is seen, and goes on.
pub(crate) fn freeze_and_thaw(mechanism: &dyn Mechanism) -> Outcome<()> {
    [Link::Dynamic, Link::Static].into_iter().try_for_each(|linked| freeze_and_thaw_one(mechanism, linked))
}

fn freeze_and_thaw_one(mechanism: &dyn Mechanism, linked: Link) -> Outcome<()> {
    let mut guest = Guest::start("s", linked)?;
    for _ in 0..20 {
        let frozen = freeze(mechanism, guest.target)?;
        let [process] = frozen.processes() else {
            return Err("not one process".into());
        };
        ensure(process.threads == [guest.target.leader()], "threads")?;
        let regs = frozen.regs(guest.target.leader())?;
        ensure(regs.cs == 0x33 && regs.ip != 0, "registers")?;
        ensure(frozen.xstate(guest.target.leader())?.len() > 512, "xstate")?;
        let mut byte = [0; 16];
        frozen.read(guest.target, RemotePtr(regs.ip & !15), &mut byte)?;
        ensure(byte != [0; 16], "memory")?;
        frozen.thaw()?;
        guest.works()?;
    }
    guest.end()
}

/// Calls with data, chained results, errors that end a batch, and large batches.
pub(crate) fn batch_results(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut guest = Guest::start("r", Link::Dynamic)?;
    let pid = guest.target;
    let mut frozen = freeze(mechanism, pid)?;
    let mut batch = Batch::new();
    let getpid = batch.call(libc::SYS_getpid, &[]);
    let name = batch.c_string(b"batch");
    let memfd = batch.call(libc::SYS_memfd_create, &[Arg::Data(name), 0.into()]);
    let text = batch.bytes(b"hello");
    batch.call(libc::SYS_write, &[Arg::Result(memfd), Arg::Data(text), 5.into()]);
    let stat = batch.room(144);
    batch.call(libc::SYS_fstat, &[Arg::Result(memfd), Arg::Data(stat)]);
    let duplicate = batch.call(libc::SYS_dup3, &[Arg::Result(memfd), 77.into(), 0.into()]);
    batch.call(libc::SYS_close, &[Arg::Result(memfd)]);
    let wrong = batch.try_call(libc::SYS_close, &[(-1).into()]);
    let last = batch.call(libc::SYS_close, &[99.into()]);
    batch.call(libc::SYS_getpid, &[]);
    let work = [(pid.leader(), batch)];
    let replies = frozen.run(&work)?;
    let [replies] = replies.as_slice() else {
        return Err("not one reply".into());
    };
    ensure(replies.result(getpid) == Some(i64::from(pid.0)), "getpid")?;
    ensure(replies.word(stat + 48) == Some(5), "size by fstat")?;
    ensure(replies.result(duplicate) == Some(77), "dup3")?;
    ensure(replies.result(wrong) == Some(-9), "an error gone over")?;
    ensure(replies.failure(&work[0].1) == Some((last, 9)), "the error that ends")?;
    let here = frozen.descriptor(pid, hdcr_engine::ids::Fd(77))?;
    ensure(nix::sys::stat::fstat(&here)?.st_size == 5, "duplicate")?;
    ensure(frozen.own_ranges(pid).len() <= 1, "own ranges")?;
    large_batches(frozen.as_mut(), pid)?;
    let mut close = Batch::new();
    close.call(libc::SYS_close, &[77.into()]);
    frozen.run(&[(pid.leader(), close)])?;
    frozen.thaw()?;
    guest.works()?;
    guest.end()
}

/// Writes are seen while a program runs, and nothing of it stays behind.
pub(crate) fn writes_are_followed(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut guest = Guest::start("sn", Link::Dynamic)?;
    let pid = guest.target;
    let descriptors = || Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count());
    let before = descriptors()?;
    let mut frozen = freeze(mechanism, pid)?;
    let mut batch = Batch::new();
    let size = 64 * 4096_u64;
    let made = batch.call(libc::SYS_mmap, &[0.into(), size.into(), 3.into(), 0x22.into(), (-1).into(), 0.into()]);
    let replies = frozen.run(&[(pid.leader(), batch)])?;
    let at = replies.first().and_then(|replies| replies.result(made)).map_or(0, i64::cast_unsigned);
    let mut watch = frozen.follow(pid)?;
    frozen.thaw()?;
    ensure(descriptors()? == before, "a descriptor stayed")?;
    let all = at..at + size;
    ensure(watch.written(&all)? == Written::Unfollowed, "followed unasked")?;
    ensure(watch.follow(&all)? == Followed::Yes, "not followed")?;
    let Written::Pages(_) = watch.take_written(&all)? else { return Err("not followed".into()) };
    ensure(watch.written(&all)? == Written::Pages(Vec::new()), "written by nobody")?;
    let mut frozen = freeze(mechanism, pid)?;
    let mut batch = Batch::new();
    batch.call(libc::SYS_getrandom, &[(at + 8 * 4096).into(), 16.into(), 0.into()]);
    frozen.run(&[(pid.leader(), batch)])?;
    watch.renew()?;
    let page = at + 8 * 4096..at + 9 * 4096;
    ensure(watch.written(&all)? == Written::Pages(vec![page.clone()]), "the kernel's write for it")?;
    let (mut here, mut there) = (vec![0; 4096], vec![0; 4096]);
    ensure(watch.read(&[page], &mut here)? == 4096, "read")?;
    frozen.read(pid, RemotePtr(at + 8 * 4096), &mut there)?;
    ensure(here == there && here != vec![0; 4096], "contents")?;
    let mut batch = Batch::new();
    batch.call(libc::SYS_munmap, &[at.into(), size.into()]);
    frozen.run(&[(pid.leader(), batch)])?;
    let last = frozen.follow(pid)?;
    frozen.thaw()?;
    drop(watch);
    guest.works()?;
    last.must_be_the_same()?;
    guest.end()?;
    ensure(last.must_be_the_same().is_err(), "an address space that is gone is taken for another one's")
}

/// The children of the first thread, as the kernel lists them.
fn children(pid: Pid) -> Outcome<Vec<i32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}

/// A copy stays as it was while the program goes on, holds nothing else, and nothing of it stays behind, whether it is given
/// up in the stop or later.
pub(crate) fn copies_stay(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut guest = Guest::start("sn", Link::Dynamic)?;
    let pid = guest.target;
    let before = children(pid)?;
    let mut frozen = freeze(mechanism, pid)?;
    let mut batch = Batch::new();
    let size = 64 * 4096_u64;
    let made = batch.call(libc::SYS_mmap, &[0.into(), size.into(), 3.into(), 0x22.into(), (-1).into(), 0.into()]);
    let replies = frozen.run(&[(pid.leader(), batch)])?;
    let at = replies.first().and_then(|replies| replies.result(made)).map_or(0, i64::cast_unsigned);
    let page = at + 8 * 4096..at + 9 * 4096;
    let mut batch = Batch::new();
    batch.call(libc::SYS_getrandom, &[page.start.into(), 4096.into(), 0.into()]);
    frozen.run(&[(pid.leader(), batch.clone())])?;
    let (mut old, mut new) = (vec![0; 4096], vec![0; 4096]);
    frozen.read(pid, RemotePtr(page.start), &mut old)?;
    drop(frozen.fork(pid)?);
    let twin = frozen.fork(pid)?;
    frozen.run(&[(pid.leader(), batch)])?;
    frozen.read(pid, RemotePtr(page.start), &mut new)?;
    ensure(old != new, "it was not written")?;
    frozen.thaw()?;
    let copies: Vec<i32> = children(pid)?.into_iter().filter(|child| !before.contains(child)).collect();
    let [copy] = copies.as_slice() else { return Err(format!("copies: {copies:?}").into()) };
    ensure(std::fs::read_dir(format!("/proc/{copy}/fd"))?.count() == 0, "it has descriptors")?;
    guest.works()?;
    ensure(twin.filled(&(at..at + size), Pages::Filled)? == [page.clone()], "filled")?;
    twin.read(RemotePtr(page.start), &mut new)?;
    ensure(old == new, "the copy has changed")?;
    drop(twin);
    ensure(children(pid)? == before, "a child stayed")?;
    let mut frozen = freeze(mechanism, pid)?;
    let mut batch = Batch::new();
    batch.call(libc::SYS_munmap, &[at.into(), size.into()]);
    frozen.run(&[(pid.leader(), batch)])?;
    frozen.thaw()?;
    guest.works()?;
    guest.end()
}

fn large_batches(frozen: &mut dyn Frozen, pid: Pid) -> Outcome<()> {
    for calls in [1, 1000, 5000, 20_000, 10] {
        let mut batch = Batch::new();
        for _ in 0..calls {
            batch.call(libc::SYS_getppid, &[]);
        }
        let room = batch.room(calls * 100);
        let replies = frozen.run(&[(pid.leader(), batch)])?;
        let [replies] = replies.as_slice() else {
            return Err("not one reply".into());
        };
        let first = replies.result(0);
        ensure(replies.results.len() == calls, "all calls")?;
        ensure(replies.results.iter().all(|r| Some(*r) == first), "results")?;
        ensure(replies.bytes(room, calls * 100).is_some(), "data")?;
    }
    Ok(())
}

/// All threads stop, each runs batches as itself, each goes on.
pub(crate) fn many_threads(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut guest = Guest::start(&"srpfntF".repeat(8), Link::Dynamic)?;
    for _ in 0..3 {
        let mut frozen = freeze(mechanism, guest.target)?;
        let threads = match frozen.processes() {
            [process] => process.threads.clone(),
            _ => return Err("not one process".into()),
        };
        ensure(threads.len() == 56, "56 threads")?;
        let mut batch = Batch::new();
        batch.call(libc::SYS_gettid, &[]);
        let work: Vec<_> = threads.iter().map(|tid| (*tid, batch.clone())).collect();
        for _ in 0..3 {
            for ((tid, _), replies) in work.iter().zip(frozen.run(&work)?) {
                ensure(replies.results == [i64::from(tid.0)], "gettid")?;
            }
        }
        frozen.thaw()?;
        guest.works()?;
    }
    guest.end()
}

/// Every kind of wait goes on after a freeze with a batch, with no `EINTR` and no short sleep.
pub(crate) fn waits_go_on(mechanism: &dyn Mechanism) -> Outcome<()> {
    for kind in ["s", "r", "p", "f", "F", "n", "t", "e", "L", "N", "C", "W"] {
        let mut guest = Guest::start(kind, Link::Dynamic)?;
        for _ in 0..20 {
            let mut frozen = freeze(mechanism, guest.target)?;
            let mut batch = Batch::new();
            batch.call(libc::SYS_getpid, &[]);
            frozen.run(&[(guest.target.leader(), batch)])?;
            frozen.thaw()?;
            if !["L", "N", "C", "W"].contains(&kind) {
                guest.works()?;
            }
        }
        guest.works()?;
        guest.end()?;
    }
    Ok(())
}

/// What remains of a timed call is told, and looking changes nothing. A second freeze still knows the call.
pub(crate) fn remaining_time(mechanism: &dyn Mechanism) -> Outcome<()> {
    for (kind, nr, most) in [("L", 7, 300), ("N", 35, 300), ("C", 230, 300), ("W", 202, 300)] {
        let mut guest = Guest::start(kind, Link::Dynamic)?;
        let tid = guest.target.leader();
        let mut seen = 0;
        for _ in 0..10 {
            let mut frozen = freeze(mechanism, guest.target)?;
            let call = frozen.timed_call(tid)?;
            let regs = frozen.regs(tid)?;
            if let Some(call) = call {
                ensure(call.nr == nr && regs.orig_ax == nr, &format!("number {} {}", call.nr, regs.orig_ax))?;
                let known = call.remaining_ns.map_or(0, u64::from);
                ensure(known <= most * 1_000_000, "more than all")?;
                seen += u32::from(known > 0);
            }
            let mut batch = Batch::new();
            batch.call(libc::SYS_getpid, &[]);
            frozen.run(&[(tid, batch)])?;
            frozen.thaw()?;
        }
        ensure(seen > 0 || !mechanism.capabilities().timer_list, &format!("never told for {kind}"))?;
        guest.works()?;
        guest.end()?;
    }
    Ok(())
}
