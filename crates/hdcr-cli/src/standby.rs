//! The process that stands by while a program runs whose memory is still being filled, so that the death of the page server
//! cannot make zeros of what is missing.
//!
//! It is a clone of the server with the same table of descriptors: whatever leads to a program's missing pages stays open when
//! the server is killed, and who touches one waits. Then it ends the tree, also who was cloned meanwhile: whoever touches a
//! missing page is told of by its thread. It lets go only when no address space is left in which one could be missing. The
//! server ends the tree in the same way when the one that stands by is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use hdcr_sys::page_faults::{self, Message, PageFaults};
use hdcr_sys::sharing::{Who, exit_at_once, fork_sharing_files};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;

use crate::failure::{Class, Failure, Result};
use crate::process;

/// How often a clone is tried anew because its number is one that the image needs.
const TRIES: usize = 8;
/// How often is looked for who is left.
const BEAT: Duration = Duration::from_millis(10);
/// The message that nothing is missing any more; others are numbers of processes.
const DISMISSED: i32 = 0;
/// What an address space can have.
const ALL: std::ops::Range<u64> = 0x1_0000..0x7fff_ffff_e000;

/// The process that stands by, as the server sees it.
#[derive(Debug)]
pub(crate) struct Standby {
    pid: i32,
    process: OwnedFd,
    writer: PipeWriter,
    /// The other process reads from it: there is one table of descriptors.
    _reader: PipeReader,
    _server: OwnedFd,
    known: Vec<i32>,
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

impl Standby {
    /// Makes one whose number is not in `avoid`. This process must not have threads yet.
    pub(crate) fn begin(avoid: &BTreeSet<i32>) -> Result<Self> {
        let (reader, writer) = std::io::pipe().map_err(Failure::system("making a pipe"))?;
        let own = std::process::id().cast_signed();
        let server = open(own).ok_or_else(|| Failure::new(Class::Failed, "system", "opening the page server"))?;
        let mut in_the_way = Vec::new();
        let found = loop {
            match fork_sharing_files().map_err(Failure::system("starting the process that stands by"))? {
                Who::Child => stand_by(&server, &reader),
                Who::Parent(pid) if avoid.contains(&pid) && in_the_way.len() < TRIES => in_the_way.push(pid),
                Who::Parent(pid) => break pid,
            }
        };
        in_the_way.into_iter().for_each(end);
        let process = open(found);
        let process = process.ok_or_else(|| Failure::new(Class::Internal, "worker-died", "nobody stands by"))?;
        Ok(Self { pid: found, process, writer, _reader: reader, _server: server, known: Vec::new() })
    }

    /// Becomes readable when it has died.
    pub(crate) fn process(&self) -> Result<OwnedFd> {
        self.process.try_clone().map_err(Failure::system("watching the process that stands by"))
    }

    /// Tells it of the processes that are about to run.
    pub(crate) fn tell(&mut self, pids: &[i32]) -> Result<()> {
        self.known = pids.to_vec();
        let bytes: Vec<u8> = pids.iter().flat_map(|pid| pid.to_ne_bytes()).collect();
        self.writer.write_all(&bytes).map_err(Failure::system("telling the process that stands by"))
    }

    /// Ends the tree from here.
    pub(crate) fn end_tree(&self) {
        end_tree(&mut self.known.iter().filter_map(|pid| Some((*pid, open(*pid)?))).collect());
    }

    /// Lets it go: nothing is missing any more, or nobody is left who could miss it.
    pub(crate) fn dismiss(mut self) {
        if self.writer.write_all(&DISMISSED.to_ne_bytes()).is_err() {
            process::signal(self.pid, Signal::SIGKILL as i32);
        }
        reap(self.pid);
    }
}

fn end(pid: i32) {
    process::signal(pid, Signal::SIGKILL as i32);
    reap(pid);
}

fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid)
        && rustix::process::waitpid(Some(pid), WaitOptions::empty()).is_err()
    {
        tracing::trace!("it was reaped already");
    }
}

/// What the process that stands by does. All signals are blocked since before it was made.
fn stand_by(server: &OwnedFd, reader: &PipeReader) -> ! {
    // Its own session: who kills the program's group or session kills it last, if at all.
    let name = CString::new(process::STANDBY);
    if rustix::process::setsid().is_err() || name.is_ok_and(|name| rustix::thread::set_name(&name).is_err()) {
        tracing::trace!("it keeps its session or its name");
    }
    let mut known: BTreeMap<i32, OwnedFd> = BTreeMap::new();
    loop {
        let (server_ended, told) = wait_for(server.as_fd(), reader.as_fd());
        if told {
            let mut bytes = [0; 4];
            let mut reader = reader;
            match reader.read_exact(&mut bytes).map(|()| i32::from_ne_bytes(bytes)) {
                Ok(pid) if pid > DISMISSED => known.extend(open(pid).map(|process| (pid, process))),
                Ok(_) | Err(_) => exit_at_once(0),
            }
        } else if server_ended {
            // Before it told of anybody, nobody ran: the tree in the making died with its tracer.
            if !known.is_empty() {
                end_tree(&mut known);
            }
            exit_at_once(0);
        }
    }
}

/// Waits for the end of the server or a message of it.
fn wait_for(server: BorrowedFd<'_>, reader: BorrowedFd<'_>) -> (bool, bool) {
    let both = [server, reader].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let mut polled = both;
    while poll(&mut polled, None).is_err() {}
    let [server, reader] = polled;
    (!server.revents().is_empty(), !reader.revents().is_empty())
}

/// Kills processes with all below them, and whoever touches a missing page, until none is left. All that leads to missing
/// pages stays open here until then.
fn end_tree(known: &mut BTreeMap<i32, OwnedFd>) {
    // At once, and not killed before it is known who is below them.
    for process in known.values() {
        if let Err(error) = pidfd_send_signal(process, rustix::process::Signal::STOP) {
            tracing::trace!(%error, "a process has ended by itself");
        }
    }
    let mut spaces = page_faults::open_here().unwrap_or_default();
    loop {
        let below: Vec<i32> = known.keys().flat_map(|pid| process::below(*pid)).collect();
        for pid in below {
            if !known.contains_key(&pid) {
                known.extend(open(pid).map(|process| (pid, process)));
            }
        }
        known.retain(|_, process| {
            let mut polled = [PollFd::new(process, PollFlags::IN)];
            let lives = poll(&mut polled, Some(&Timespec::default())) == Ok(0);
            lives && pidfd_send_signal(&*process, rustix::process::Signal::KILL).is_ok()
        });
        let mut born = Vec::new();
        for space in &spaces {
            born.extend(kill_who_touches(space));
        }
        spaces.extend(born);
        spaces.retain(PageFaults::lives);
        if known.is_empty() && spaces.is_empty() {
            return;
        }
        let mut polled: Vec<PollFd<'_>> = spaces.iter().map(|space| PollFd::new(space, PollFlags::IN)).collect();
        let limit = Timespec::try_from(BEAT).unwrap_or_default();
        if let Err(error) = poll(&mut polled, Some(&limit)) {
            tracing::trace!(%error, "waiting for the end of a tree");
        }
    }
}

/// Kills whoever waits for a page; the copies of the address space that were made.
fn kill_who_touches(space: &PageFaults) -> Vec<PageFaults> {
    let mut born = Vec::new();
    // Who was heard of by the server is told of once more.
    if space.wake(&ALL).is_err() {
        tracing::trace!("an address space is gone");
    }
    while let Ok(Some(message)) = space.next() {
        match message {
            Message::Fault { tid, .. } => {
                // A signal to a thread is one to its process when it kills.
                process::signal(tid, Signal::SIGKILL as i32);
            }
            Message::Fork(copy) => born.push(copy),
            Message::Moved { .. } | Message::Removed(_) | Message::Unmapped(_) => {}
        }
    }
    born
}
