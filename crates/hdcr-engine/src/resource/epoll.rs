//! `epoll(7)`: which files are watched, under which number, for what.
//!
//! Captured: every member with its number, events and data; members whose descriptor was closed or reused while the file
//! lives on elsewhere in the tree; instances watched by instances; members that have fired and are off (`EPOLLONESHOT`).
//! An edge-triggered member that is ready fires once more. Not captured: the order in which ready members are reported.
//! Reads: `/proc/PID/fdinfo`, `kcmp(2)` (`KCMP_EPOLL_TFD`, since Linux 4.13). A member is kept by its file and its number,
//! so it is added here while the file has that number here.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use hdcr_image::{Record, Tag};
use hdcr_sys::kcmp::{self, EpollSlot};
use nix::libc;
use rustix::event::{Timespec, epoll};

use super::{FileKind, FileView, outside, pidfd, signalfd};
use crate::batch::Arg;
use crate::capture::{Capture, OpenFile};
use crate::error::{Error, Refusal, Result};
use crate::ids::{Fd, Pid};
use crate::procfs;
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::survey::Survey;
use crate::task::Stage;

const ONESHOT: u32 = 1 << 30;
/// Bits that stay when a member with `EPOLLONESHOT` has fired (fs/eventpoll.c `EP_PRIVATE_BITS`).
const PRIVATE: u32 = 0xf << 28;

pub(crate) struct Epoll;

/// What is kept of an epoll instance.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EpollRecord {
    #[prost(message, repeated, tag = "1")]
    members: Vec<Member>,
}

/// A watched file.
#[derive(Clone, PartialEq, prost::Message)]
struct Member {
    /// The open file.
    #[prost(uint64, tag = "1")]
    file: u64,
    /// Number under which it was added.
    #[prost(int32, tag = "2")]
    number: i32,
    #[prost(uint32, tag = "3")]
    events: u32,
    #[prost(uint64, tag = "4")]
    data: u64,
}

impl Record for EpollRecord {
    const TAG: Tag = Tag(0x0263);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// A line of fdinfo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Line {
    number: i32,
    events: u32,
    data: u64,
    inode: u64,
}

/// Parses `3 events: 19 data: 4d pos:0 ino:1b5c5 sdev:f`, what follows `tfd:`.
fn parse(text: &str) -> Option<Line> {
    let (number, rest) = text.trim().split_once("events:")?;
    let (events, rest) = rest.split_once("data:")?;
    let (data, rest) = rest.split_once("pos:")?;
    let (_, rest) = rest.split_once("ino:")?;
    let (inode, _) = rest.split_once("sdev:")?;
    Some(Line {
        number: number.trim().parse().ok()?,
        events: u32::from_str_radix(events.trim(), 16).ok()?,
        data: u64::from_str_radix(data.trim(), 16).ok()?,
        inode: u64::from_str_radix(inode.trim(), 16).ok()?,
    })
}

fn lines(view: &FileView) -> Result<Vec<Line>> {
    let all = view.info.lines.all("tfd").map(|text| parse(text).ok_or_else(|| model::unreadable(view, "tfd")));
    all.collect()
}

fn lost(view: &FileView, line: Line) -> Refusal {
    let cause =
        format!("it watches a file, added as descriptor {}, that no process of the tree holds any more", line.number);
    view.refuse("epoll-member", "epoll instance", &cause, "take the member out, or keep its file open in the tree")
}

impl FileKind for Epoll {
    type Record = EpollRecord;

    fn claims(view: &FileView) -> bool {
        view.is("anon_inode:[eventpoll]")
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        for line in lines(view)? {
            if survey.with_inode(line.inode).next().is_none() && !survey.files.iter().any(outside::carries_files) {
                survey.refuse(lost(view, line));
            }
        }
        Ok(())
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, _file: &OwnedFd) -> Result<EpollRecord> {
        let mut members: Vec<Member> = Vec::new();
        let owner = procfs::door(view.pid);
        for line in lines(view)? {
            let before = members.iter().filter(|member| member.number == line.number).count();
            let slot = EpollSlot {
                epoll: view.fd.0.unsigned_abs(),
                number: line.number.unsigned_abs(),
                before: u32::try_from(before).unwrap_or(u32::MAX),
            };
            let mut member = None;
            // All anonymous files have one inode: the one that has the number now is nearly always the one.
            let likely = cx.behind(view.pid, Fd(line.number)).filter(|file| file.view.stat.st_ino == line.inode);
            for file in likely.into_iter().chain(cx.with_inode(line.inode)) {
                let holder = procfs::door(file.view.pid);
                if told(kcmp::is_epoll_member(holder, file.view.fd.0, owner, slot), view)? {
                    member = Some(file);
                    break;
                }
            }
            let file = member.ok_or_else(|| Error::refuse(lost(view, line)))?;
            refuse_unreachable(cx, view, file, line)?;
            members.push(Member { file: file.id.0, number: line.number, events: line.events, data: line.data });
        }
        Ok(EpollRecord { members })
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, _record: EpollRecord) -> Result<OwnedFd> {
        cx.late.push((add_members, id));
        epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::system("epoll_create", id))
    }
}

/// What can be added by a process only that holds both, and is held by none.
fn refuse_unreachable(cx: &Capture<'_>, view: &FileView, file: &OpenFile, line: Line) -> Result<()> {
    let by_process = signalfd::SignalFd::claims(&file.view) || pidfd::PidFd::claims(&file.view);
    if !by_process {
        return Ok(());
    }
    let numbers = |holders: &[(Pid, Fd)]| holders.iter().map(|(pid, fd)| (*pid, fd.0)).collect::<Vec<_>>();
    let instance = cx.behind(view.pid, view.fd).map(|file| numbers(&file.holders)).unwrap_or_default();
    match adder(&instance, &numbers(&file.holders), line.number) {
        Some(_) => Ok(()),
        None => Err(Error::refuse(lost(view, line))),
    }
}

/// `ENOENT`: the instance has no such member (any more). What else the kernel does not tell is an error, not a no.
fn told(answer: std::io::Result<bool>, view: &FileView) -> Result<bool> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        answer => answer.map_err(Error::system("looking for a member of epoll", format!("pid {}, fd {}", view.pid, view.fd))),
    }
}

/// Adds the members, those that are off first, as long as nothing else can fire.
fn add_members(cx: &mut Restore<'_>, id: ObjectId) -> Result<()> {
    let mut record: EpollRecord = cx.record(id)?;
    let instance = cx.open_file(id)?.try_clone().map_err(Error::system("dup", id))?;
    record.members.sort_by_key(|member| !off(member));
    for member in &record.members {
        let file = ObjectId(member.file);
        if cx.has::<pidfd::PidFdRecord>(file) || cx.has::<signalfd::SignalFdRecord>(file) {
            add_inside(cx, id, file, member)?;
            continue;
        }
        let file = cx.open_file(file)?.try_clone().map_err(Error::system("dup", id))?;
        add(&instance, file.as_fd(), member).map_err(Error::system("adding a member to an epoll instance", id))?;
    }
    Ok(())
}

/// Who can add a member: a process that holds both, best under the number of old; and its numbers of the instance and the
/// file.
fn adder(instances: &[(Pid, i32)], files: &[(Pid, i32)], number: i32) -> Option<(Pid, i32, i32)> {
    let with = |wanted: &dyn Fn(i32) -> bool| {
        let mut pairs = instances.iter().flat_map(|(pid, epoll)| files.iter().map(move |file| (*pid, *epoll, *file)));
        let found = pairs.find(|(pid, _, (holder, fd))| pid == holder && wanted(*fd));
        found.map(|(pid, epoll, (_, fd))| (pid, epoll, fd))
    };
    with(&|fd| fd == number).or_else(|| with(&|_| true))
}

/// Lets a process of the tree add a member: a pidfd leads to nobody before the processes exist, and a signalfd wakes for the
/// signals of whoever added it (`fs/signalfd.c`, `signalfd_poll` waits at `current->sighand`). Which of several that share
/// both added it cannot be seen; the first one is the parent.
fn add_inside(cx: &mut Restore<'_>, instance: ObjectId, file: ObjectId, member: &Member) -> Result<()> {
    let holders = |id| cx.holders.get(&id).map(Vec::as_slice).unwrap_or_default();
    let (pid, epoll, fd) = adder(holders(instance), holders(file), member.number).ok_or_else(|| {
        Error::Unsound(format!("no process holds both {instance} and {file}, which it watches as {}", member.number))
    })?;
    let taken = cx.holders.values().flatten().any(|holder| *holder == (pid, member.number));
    let batch = cx.batch(Stage::InTable, pid.leader());
    let number = Arg::from(member.number);
    // Under another number than of old: it is given that one for the moment, and who has it is kept meanwhile.
    let moved = fd != member.number;
    let aside = (moved && taken).then(|| batch.call("keeping a descriptor", libc::SYS_dup, &[number]));
    let close_on_exec = aside.map(|_| batch.call("flags of a descriptor", libc::SYS_fcntl, &[number, Arg::from(libc::F_GETFD)]));
    if moved {
        batch.call("placing a member", libc::SYS_dup2, &[Arg::from(fd), number]);
    }
    // struct epoll_event is packed on x86-64.
    let at = batch.bytes(&[&member.events.to_ne_bytes()[..], &member.data.to_ne_bytes()].concat());
    let args = [Arg::from(epoll), Arg::from(libc::EPOLL_CTL_ADD), number, Arg::Data(at)];
    batch.call("adding a member to an epoll instance", libc::SYS_epoll_ctl, &args);
    match aside.zip(close_on_exec) {
        Some((aside, flags)) => {
            batch.call("placing a descriptor back", libc::SYS_dup2, &[Arg::Result(aside), number]);
            batch.call("flags of a descriptor", libc::SYS_fcntl, &[number, Arg::from(libc::F_SETFD), Arg::Result(flags)]);
            batch.call("closing a descriptor", libc::SYS_close, &[Arg::Result(aside)]);
        }
        None if moved => {
            batch.call("closing a member's number", libc::SYS_close, &[number]);
        }
        None => {}
    }
    Ok(())
}

/// Whether a member has fired and waits to be set anew.
fn off(member: &Member) -> bool {
    member.events & ONESHOT != 0 && member.events & !PRIVATE == 0
}

fn add(instance: &OwnedFd, file: BorrowedFd<'_>, member: &Member) -> std::io::Result<()> {
    let own = rustix::io::fcntl_dupfd_cloexec(instance, member.number.saturating_add(1))?;
    let instance = if instance.as_raw_fd() == member.number { &own } else { instance };
    Ok(hdcr_sys::numbered::with(file, member.number, |placed| add_placed(instance, placed, member))??)
}

fn add_placed(instance: &OwnedFd, placed: BorrowedFd<'_>, member: &Member) -> rustix::io::Result<()> {
    let data = epoll::EventData::new_u64(member.data);
    if !off(member) {
        return epoll::add(instance, placed, data, epoll::EventFlags::from_bits_retain(member.events));
    }
    // It is off only after it has fired: watch for all, and take the event if there is one. What is not ready now keeps a
    // watch for errors, which the kernel adds to every member.
    let all = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::PRI | epoll::EventFlags::RDHUP;
    epoll::add(instance, placed, data, epoll::EventFlags::from_bits_retain(member.events) | all)?;
    let mut room = [std::mem::MaybeUninit::<epoll::Event>::uninit(); 1];
    let (fired, _) = epoll::wait(instance, &mut room, Some(&Timespec::default()))?;
    if fired.is_empty() {
        epoll::modify(instance, placed, data, epoll::EventFlags::from_bits_retain(member.events))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs;
    use crate::resource::scene::own_pid;

    fn seen(instance: &OwnedFd) -> Vec<Line> {
        let info = procfs::fd_info(own_pid(), Fd(instance.as_raw_fd())).unwrap();
        let mut lines: Vec<Line> = info.lines.all("tfd").map(|text| parse(text).unwrap()).collect();
        lines.sort_by_key(|line| line.number);
        lines
    }

    #[test]
    fn members_are_added_under_numbers_that_are_taken_here() {
        let instance = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (r, w) = rustix::pipe::pipe().unwrap();
        let member = |number, events| Member { file: 0, number, events, data: 1 << 40 };
        add(&instance, w.as_fd(), &member(801, ONESHOT)).unwrap();
        add(&instance, r.as_fd(), &member(instance.as_raw_fd(), 1 << 31 | 1)).unwrap();
        add(&instance, r.as_fd(), &member(0, 5)).unwrap();
        let (low, high) = (instance.as_raw_fd(), 801);
        let expected = [(0, 5 | 0x18), (low, 1 << 31 | 0x19), (high, ONESHOT)];
        assert_eq!(seen(&instance).iter().map(|line| (line.number, line.events)).collect::<Vec<_>>(), expected);
        assert!(seen(&instance).iter().all(|line| line.data == 1 << 40));
    }

    #[test]
    fn a_member_is_added_by_who_holds_both_and_best_by_its_number() {
        let (parent, child) = (Pid(7), Pid(8));
        let instances = [(parent, 3), (child, 3)];
        assert_eq!(adder(&instances, &[(parent, 4), (child, 4)], 4), Some((parent, 3, 4)));
        assert_eq!(adder(&instances, &[(parent, 9), (child, 4)], 4), Some((child, 3, 4)));
        assert_eq!(adder(&instances, &[(child, 9)], 4), Some((child, 3, 9)));
        assert_eq!(adder(&[(parent, 3)], &[(child, 4)], 4), None);
    }

    #[test]
    fn odd_lines_are_refused() {
        let good = "       3 events: 80000019 data:               4d  pos:0 ino:1b5c5 sdev:f";
        assert_eq!(parse(good), Some(Line { number: 3, events: 0x8000_0019, data: 0x4d, inode: 0x1b5c5 }));
        for odd in ["", "3", "3 events: zz data: 1 pos:0 ino:1 sdev:f", "3 events: 1 data: 1"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }
}
