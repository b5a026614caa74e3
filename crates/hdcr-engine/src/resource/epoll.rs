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
use rustix::event::{Timespec, epoll};

use super::{FileKind, FileView, outside, pidfd};
use crate::capture::Capture;
use crate::error::{Error, Refusal, Result};
use crate::ids::Fd;
use crate::procfs;
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::survey::Survey;

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
pub(crate) struct Member {
    /// The open file.
    #[prost(uint64, tag = "1")]
    file: u64,
    /// Number under which it was added.
    #[prost(int32, tag = "2")]
    pub(super) number: i32,
    #[prost(uint32, tag = "3")]
    pub(super) events: u32,
    #[prost(uint64, tag = "4")]
    pub(super) data: u64,
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
                    member = Some(file.id);
                    break;
                }
            }
            let file = member.ok_or_else(|| Error::refuse(lost(view, line)))?;
            members.push(Member { file: file.0, number: line.number, events: line.events, data: line.data });
        }
        Ok(EpollRecord { members })
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, _record: EpollRecord) -> Result<OwnedFd> {
        cx.late.push((add_members, id));
        epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::system("epoll_create", id))
    }
}

/// `ENOENT`: the instance has no such member (any more). What else the kernel does not tell is an error, not a no.
fn told(answer: std::io::Result<bool>, view: &FileView) -> Result<bool> {
    match answer {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(false),
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
        if cx.has::<pidfd::PidFdRecord>(file) {
            pidfd::watch(cx, id, file, member)?;
            continue;
        }
        let file = cx.open_file(file)?.try_clone().map_err(Error::system("dup", id))?;
        add(&instance, file.as_fd(), member).map_err(Error::system("adding a member to an epoll instance", id))?;
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
    fn odd_lines_are_refused() {
        let good = "       3 events: 80000019 data:               4d  pos:0 ino:1b5c5 sdev:f";
        assert_eq!(parse(good), Some(Line { number: 3, events: 0x8000_0019, data: 0x4d, inode: 0x1b5c5 }));
        for odd in ["", "3", "3 events: zz data: 1 pos:0 ino:1 sdev:f", "3 events: 1 data: 1"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }
}
