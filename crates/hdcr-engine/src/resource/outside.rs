//! Ends that lead out of the tree: what becomes of a pipe, a socket or a terminal whose other end somebody else holds.
//!
//! An end that is held as descriptor 0, 1 or 2 by some process of the tree, with every other opening of the same pipe,
//! socket or terminal, is a standard stream: it becomes that of the restoring command. For the others see
//! [`crate::checkpoint::EndPolicy`]. Not a kind of its own: the kinds ask here when they find that their peer is outside.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;
use rustix::fs::{Mode, OFlags};

use super::FileView;
use crate::batch::Arg;
use crate::capture::Capture;
use crate::checkpoint::EndPolicy;
use crate::error::{Error, Refusal, Result};
use crate::ids::{Fd, Pid};
use crate::model::ObjectId;
use crate::restore::Restore;
use crate::survey::Survey;
use crate::task::Stage;

/// Set terminal settings at once (`TCSETS2`, asm-generic/ioctls.h).
const TCSETS2: i32 = 0x402c_542b;

/// [`OutsideRecord::stream`] of a terminal that is no standard stream: whichever of them is a terminal.
pub(crate) const TERMINAL: u32 = 4;

/// What is kept of an end that leads out of the tree.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OutsideRecord {
    /// 0, 1, 2: this standard stream of the restoring command. [`TERMINAL`]: its terminal.
    #[prost(uint32, tag = "1")]
    pub(crate) stream: u32,
    /// Settings of the terminal (`struct termios2`), when it was one.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) termios: Vec<u8>,
    /// Access mode, `O_RDONLY`, `O_WRONLY` or `O_RDWR`.
    #[prost(uint32, tag = "3")]
    pub(crate) access: u32,
}

/// What becomes of an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// A standard stream of the restoring command.
    Stream(u32),
    /// What the policy says.
    Policy(EndPolicy),
}

/// The standard stream among the descriptors of one pipe, socket or terminal: the lowest number.
pub(crate) fn stream(holders: impl Iterator<Item = (Pid, Fd)>) -> Option<u32> {
    holders.filter_map(|(_, fd)| u32::try_from(fd.0).ok()).filter(|number| *number <= 2).min()
}

/// Fate of an end under the freeze: of this open file first, then of all that lead to the same thing.
pub(crate) fn fate(cx: &Capture<'_>, view: &FileView) -> Fate {
    let own = cx.behind(view.pid, view.fd).and_then(|file| stream(file.holders.iter().copied()));
    let same = cx.with_inode(view.stat.st_ino).filter(|file| same_object(&file.view, view));
    let any = own.or_else(|| stream(same.flat_map(|file| file.holders.iter().copied())));
    any.map_or(Fate::Policy(cx.request.ends.default), Fate::Stream)
}

/// What an end of a pipe or a FIFO is called.
pub(crate) const PIPE: &str = "pipe";

/// The refusal of an end that the policy does not allow.
pub(crate) fn refusal(view: &FileView, what: &str, cause: &str) -> Refusal {
    // A pipe has no name by which its peer is found again.
    let remedy = if what == PIPE {
        "close it before the checkpoint, take the peer into the tree, or say with --ends close that a restore closes it"
    } else {
        "close it before the checkpoint, take the peer into the tree, or say with --ends close|reconnect what a restore does with it"
    };
    view.refuse("outside-end", what, cause, remedy)
}

/// Tells the survey of an end that leads out of the tree.
pub(crate) fn report(survey: &mut Survey<'_>, view: &FileView, what: &str, cause: &str) {
    let same = survey.with_inode(view.stat.st_ino).filter(|other| same_object(other, view));
    match (stream(same.map(|other| (other.pid, other.fd))), survey.request.ends.default) {
        (Some(number), _) => {
            let becomes = format!("becomes standard stream {number} of the restoring command");
            survey.note(view.refuse("outside-stream", what, cause, &becomes));
        }
        // The other end may be on its way in a socket, which only the capture finds out.
        (None, EndPolicy::Refuse) if survey.files.iter().any(carries_files) => {}
        (None, EndPolicy::Refuse) => survey.refuse(refusal(view, what, cause)),
        (None, EndPolicy::Reconnect) if what == PIPE => survey.refuse(refusal(view, what, cause)),
        (None, EndPolicy::Close) => {
            survey.note(view.refuse("outside-closed", what, cause, "is closed after a restore"));
        }
        (None, EndPolicy::Reconnect) => {
            let becomes = "is connected to its peer's name again after a restore, and closed where that fails";
            survey.note(view.refuse("outside-reconnected", what, cause, becomes));
        }
    }
}

/// Whether descriptors wait to be received from a socket (`scm_fds` in fdinfo, since Linux 5.5).
pub(crate) fn carries_files(view: &FileView) -> bool {
    view.info.lines.number("scm_fds").is_some_and(|files| files > 0)
}

/// Whether two descriptors lead to the same pipe, socket or device.
pub(crate) fn same_object(a: &FileView, b: &FileView) -> bool {
    (a.stat.st_dev, a.stat.st_ino, a.stat.st_rdev) == (b.stat.st_dev, b.stat.st_ino, b.stat.st_rdev)
}

/// Makes a standard stream: a duplicate of the restoring command's, or its terminal opened anew, so that flags set by the
/// program do not stay with the user's shell.
pub(crate) fn restore(cx: &mut Restore<'_>, id: ObjectId, record: &OutsideRecord) -> Result<OwnedFd> {
    let holders = cx.holders.get(&id).cloned().unwrap_or_default();
    let primary = match record.stream {
        TERMINAL => cx.stdio.iter().find(|stdio| rustix::termios::isatty(stdio)).or(cx.stdio.first()),
        stream => usize::try_from(stream).ok().and_then(|stream| cx.stdio.get(stream)),
    };
    let primary = primary.ok_or_else(|| Error::Unsound(format!("{id} is standard stream {}", record.stream)))?;
    let file =
        own_stream(primary.as_fd(), record.access).map_err(Error::system("taking over a standard stream", id))?;
    let mut apart = Vec::new();
    for (pid, number) in &holders {
        let stdio = usize::try_from(*number).ok().and_then(|at| cx.stdio.get(at));
        if let Some(stdio) = stdio.filter(|stdio| !same(stdio.as_fd(), primary.as_fd())) {
            let other =
                own_stream(stdio.as_fd(), record.access).map_err(Error::system("taking over a standard stream", id))?;
            apart.push(((*pid, *number), cx.lift(other)?));
        }
    }
    cx.apart.extend(apart);
    let terminal = rustix::termios::isatty(&file);
    if let (Some((pid, number)), true, false) = (holders.first(), terminal, record.termios.is_empty()) {
        let batch = cx.batch(Stage::Last, pid.leader());
        let at = batch.bytes(&record.termios);
        batch.try_call(
            "settings of the terminal",
            libc::SYS_ioctl,
            &[Arg::from(*number), Arg::from(TCSETS2), Arg::Data(at)],
        );
    }
    Ok(file)
}

fn own_stream(stdio: BorrowedFd<'_>, access: u32) -> rustix::io::Result<OwnedFd> {
    if rustix::termios::isatty(stdio) {
        let access = OFlags::from_bits_retain(access & 3);
        let path = format!("/proc/self/fd/{}", stdio.as_raw_fd());
        let flags = access | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        // A terminal of another user (su) cannot be opened, but the descriptor that came with us works.
        if let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok(file);
        }
    }
    rustix::io::fcntl_dupfd_cloexec(stdio, 3)
}

/// Whether two descriptors lead to the same thing.
fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino, a.st_rdev) == (b.st_dev, b.st_ino, b.st_rdev),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_standard_number_counts_and_others_do_not() {
        let at = |numbers: &[i32]| stream(numbers.iter().map(|number| (Pid(7), Fd(*number))));
        assert_eq!(at(&[255, 2, 1, 10]), Some(1));
        assert_eq!(at(&[255, 3]), None);
        assert_eq!(at(&[]), None);
    }

    #[test]
    fn a_pipe_is_taken_over_as_it_is() {
        let (r, _w) = rustix::pipe::pipe().unwrap();
        let own = own_stream(r.as_fd(), 0).unwrap();
        assert!(same(own.as_fd(), r.as_fd()) && own.as_raw_fd() >= 3);
    }
}
