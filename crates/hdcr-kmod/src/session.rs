//! One open descriptor of the device.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use hdcr_abi::{
    CallRow, Calls, Capture, Freeze, Hello, Kill, LONGEST_NS, MappingRow, Mappings, Pages, PointerRow, Range,
    Registers, Request, Restore, Signals, TaskRow, Tasks, Thaw, VERSION, Waiting, hold,
};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::call::{self, Call};

/// Room for the rows of mappings of one call.
const ROWS: usize = 64 << 10;

/// The most signals that a queue is listed of.
const SIGNALS: usize = 8192;

/// A session failed to do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// There is no such device, or it may not be opened.
    #[error("cannot open the device of the kernel module")]
    Open(#[source] io::Error),
    /// The module speaks another version.
    #[error("the kernel module does not speak version {VERSION}")]
    Version,
    /// Not all tasks could be stopped; none is.
    #[error("thread {culprit} was not stopped: {}", word(*hold))]
    Freeze {
        /// One of [`hold`].
        hold: u32,
        /// Who was in the way, or 0.
        culprit: i32,
        /// The kernel's state bits of that thread.
        state: u32,
        /// The error number of the call.
        #[source]
        source: io::Error,
    },
    /// Something of a program is in no image of the module's, or cannot be restored.
    #[error("{operation} is not possible: obstacle {number}")]
    Obstacle {
        /// What was asked for.
        operation: &'static str,
        /// One of [`hdcr_abi::obstacle`].
        number: u32,
        /// The thread that has it; in a restore the first process, a zombie if it was made; or 0.
        task: i32,
        /// The error number of the call.
        #[source]
        source: io::Error,
    },
    /// A call failed.
    #[error("{operation} failed in the kernel module")]
    Call {
        /// What was asked for.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The module answered what cannot be.
    #[error("the kernel module gave an odd answer to {operation}")]
    Odd {
        /// What was asked for.
        operation: &'static str,
    },
}

impl SessionError {
    /// The error number of the call, if it was one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open(source)
            | Self::Freeze { source, .. }
            | Self::Obstacle { source, .. }
            | Self::Call { source, .. } => source.raw_os_error(),
            Self::Version | Self::Odd { .. } => None,
        }
    }
}

/// What a number of [`hold`] means.
fn word(number: u32) -> &'static str {
    match number {
        hold::NONE => "nothing is known to be in the way",
        hold::SLEEPS => "it waits in the kernel and cannot be woken",
        hold::VFORK => "it waits for its vfork child, which is not in the scope",
        hold::TRACED => "it stands in a stop of a tracer",
        hold::LATE => "it did not answer before the deadline",
        hold::OTHER_SESSION => "another session holds it",
        hold::NOT_PERMITTED => "not permitted to trace it",
        hold::UNSUPPORTED => "it is the caller, or serves the kernel",
        hold::TOO_MANY => "new tasks come faster than they can be stopped",
        _ => "for a reason that this build does not know",
    }
}

/// What a freeze got hold of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Processes, zombies among them.
    pub processes: u32,
    /// Threads that are alive.
    pub threads: u32,
    /// How often the tasks of the system were looked through.
    pub rounds: u32,
    /// How long it took in the kernel.
    pub took: Duration,
}

/// What was made again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The first process, a child of the caller.
    pub root: i32,
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
}

/// A mapping with its name: a path, a word in brackets, or nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// All but the name.
    pub row: MappingRow,
    /// The name.
    pub name: Vec<u8>,
}

/// System calls that a frozen thread is to make, and the bytes that they read and write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rows {
    /// The calls, in order.
    pub calls: Vec<CallRow>,
    /// The bytes.
    pub data: Vec<u8>,
    /// Which of them become addresses of others.
    pub pointers: Vec<PointerRow>,
}

/// A session: at most one freeze. Dropping it thaws, and so does the death of the process that opened it.
#[derive(Debug)]
pub struct Session {
    device: OwnedFd,
    hello: Hello,
}

impl Session {
    /// Opens the device and agrees on a version.
    pub fn open(device: &Path) -> Result<Self, SessionError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = open(device, flags, Mode::empty()).map_err(|error| SessionError::Open(error.into()))?;
        let mut hello = Hello { head: Hello::HEAD, oldest: VERSION, newest: VERSION, ..Hello::default() };
        hello.call(device.as_fd()).map_err(|error| match error {
            Errno::PROTO => SessionError::Version,
            other => failed("the handshake", other),
        })?;
        Ok(Self { device, hello })
    }

    /// What the module can do: bits of [`hdcr_abi::feature`].
    pub fn features(&self) -> u64 {
        self.hello.features
    }

    /// Bytes of the XSAVE area of a thread.
    pub fn xstate_size(&self) -> u32 {
        self.hello.xstate_size
    }

    /// Stops all tasks of a scope or none. `scope` is one of [`hdcr_abi::scope`], `flags` of [`hdcr_abi::freeze_flag`].
    pub fn freeze(&mut self, scope: u32, id: u64, within: Duration, flags: u32) -> Result<Held, SessionError> {
        let within_ns = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        let mut request = Freeze { head: Freeze::HEAD, scope, id, within_ns, ..Freeze::default() };
        request.head.flags = flags;
        match request.call(self.device()) {
            Ok(()) => Ok(Held {
                processes: request.processes,
                threads: request.threads,
                rounds: request.rounds,
                took: Duration::from_nanos(request.took_ns),
            }),
            Err(error) => Err(SessionError::Freeze {
                hold: request.hold,
                culprit: request.culprit,
                state: request.culprit_state,
                source: error.into(),
            }),
        }
    }

    /// Lets all go on.
    pub fn thaw(&mut self) -> Result<(), SessionError> {
        Thaw { head: Thaw::HEAD }.call(self.device()).map_err(|error| failed("thaw", error))
    }

    /// Kills all; none of them runs another instruction.
    pub fn kill(&mut self) -> Result<(), SessionError> {
        Kill { head: Kill::HEAD }.call(self.device()).map_err(|error| failed("kill", error))
    }

    /// What is frozen, by rising thread number.
    pub fn tasks(&self) -> Result<Vec<TaskRow>, SessionError> {
        let mut rows = Vec::new();
        loop {
            let mut request = Tasks { head: Tasks::HEAD, ..Tasks::default() };
            let aim = |request: &mut Tasks, at, room| (request.at, request.room) = (at, room);
            let done = call::into(&mut request, self.device(), &mut rows, aim);
            done.map_err(|error| failed("the list of tasks", error))?;
            let count = request.count as usize;
            if count <= rows.len() {
                rows.truncate(count);
                return Ok(rows);
            }
            rows.resize(count, TaskRow::default());
        }
    }

    /// The mappings of a frozen thread, by rising address.
    pub fn mappings(&self, tid: i32) -> Result<Vec<Mapping>, SessionError> {
        let operation = "the list of mappings";
        let mut all = Vec::new();
        let mut bytes = vec![0_u8; ROWS];
        let mut from = 0;
        loop {
            let mut request = Mappings { head: Mappings::HEAD, tid, from, ..Mappings::default() };
            let aim = |request: &mut Mappings, at, room| (request.at, request.room) = (at, room);
            call::into(&mut request, self.device(), &mut bytes, aim).map_err(|error| failed(operation, error))?;
            let rows = bytes.get(..request.used as usize).and_then(|rows| read_mappings(rows, request.count));
            all.extend(rows.ok_or(SessionError::Odd { operation })?);
            if request.from == 0 {
                return Ok(all);
            }
            if request.from <= from {
                return Err(SessionError::Odd { operation });
            }
            from = request.from;
        }
    }

    /// One of [`hdcr_abi::register_set`] of a frozen thread, at most `room` bytes.
    pub fn registers(&self, tid: i32, set: u32, room: usize) -> Result<Vec<u8>, SessionError> {
        let mut bytes = vec![0_u8; room];
        let mut request = Registers { head: Registers::HEAD, tid, set, ..Registers::default() };
        let aim = |request: &mut Registers, at, room| (request.at, request.room) = (at, room);
        call::into(&mut request, self.device(), &mut bytes, aim).map_err(|error| failed("registers", error))?;
        bytes.truncate(request.used as usize);
        Ok(bytes)
    }

    /// Has a parked thread make system calls on itself; how many were made. Results and data are put where they came from.
    pub fn calls(&self, tid: i32, rows: &mut Rows, within: Duration) -> Result<usize, SessionError> {
        let within_ns = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX).min(LONGEST_NS);
        let mut request = Calls { head: Calls::HEAD, tid, within_ns, ..Calls::default() };
        let made = call::of_calls(&mut request, self.device(), rows);
        made.map_err(|error| failed("calls made by a frozen thread", error))?;
        Ok(request.made as usize)
    }

    /// The signals that wait in the queue of a frozen thread, or in that of its process, oldest first.
    pub fn signals(&self, tid: i32, shared: bool) -> Result<Vec<[u8; 128]>, SessionError> {
        let mut rows: Vec<[u8; 128]> = Vec::new();
        loop {
            let shared = u32::from(shared);
            let mut request = Signals { head: Signals::HEAD, tid, shared, ..Signals::default() };
            let aim = |request: &mut Signals, at, room| (request.at, request.room) = (at, room);
            let done = call::into(&mut request, self.device(), &mut rows, aim);
            done.map_err(|error| failed("the list of signals", error))?;
            let count = request.count as usize;
            if count <= rows.len() {
                rows.truncate(count);
                return Ok(rows);
            }
            if rows.len() >= SIGNALS {
                return Err(failed("the list of signals", Errno::OVERFLOW));
            }
            // Others may come meanwhile.
            rows.resize((count + 16).min(SIGNALS), [0; 128]);
        }
    }

    /// The call that a frozen thread is interrupted in, if the kernel keeps its time.
    pub fn waiting(&self, tid: i32) -> Result<Waiting, SessionError> {
        let mut request = Waiting { head: Waiting::HEAD, tid, ..Waiting::default() };
        request.call(self.device()).map_err(|error| failed("what a call waits for", error))?;
        Ok(request)
    }

    /// Writes memory of a frozen thread to a regular file from an offset on; how many bytes.
    pub fn pages(&self, tid: i32, ranges: &[Range], file: BorrowedFd<'_>, offset: u64) -> Result<u64, SessionError> {
        let mut request = Pages { head: Pages::HEAD, tid, fd: file.as_raw_fd(), offset, ..Pages::default() };
        let aim = |request: &mut Pages, at, count| (request.ranges, request.count) = (at, count);
        call::of(&mut request, self.device(), ranges, aim).map_err(|error| failed("the copy of memory", error))?;
        Ok(request.written)
    }

    /// Writes an image of all that is frozen into an empty regular file; how many bytes.
    /// `flags` are of [`hdcr_abi::capture_flag`].
    pub fn capture(&mut self, file: BorrowedFd<'_>, flags: u32) -> Result<u64, SessionError> {
        let mut request = Capture { head: Capture::HEAD, fd: file.as_raw_fd(), ..Capture::default() };
        request.head.flags = flags;
        match request.call(self.device()) {
            Ok(()) => Ok(request.written),
            Err(error) => Err(SessionError::Obstacle {
                operation: "a capture",
                number: request.obstacle,
                task: request.culprit,
                source: error.into(),
            }),
        }
    }

    /// Makes the tree of an image again, as a child of this process, and lets it go.
    pub fn restore(&mut self, file: BorrowedFd<'_>, within: Duration) -> Result<Restored, SessionError> {
        let within_ns = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        let mut request = Restore { head: Restore::HEAD, fd: file.as_raw_fd(), within_ns, ..Restore::default() };
        match request.call(self.device()) {
            Ok(()) => Ok(Restored { root: request.root, processes: request.processes, threads: request.threads }),
            Err(error) => Err(SessionError::Obstacle {
                operation: "a restore",
                number: request.obstacle,
                task: request.root,
                source: error.into(),
            }),
        }
    }

    /// The open device.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn failed(operation: &'static str, error: Errno) -> SessionError {
    SessionError::Call { operation, source: error.into() }
}

/// Rows of mappings, each with its name and zeros up to a multiple of 8.
fn read_mappings(mut bytes: &[u8], count: u32) -> Option<Vec<Mapping>> {
    let mut all = Vec::new();
    for _ in 0..count {
        let (row, rest) = bytes.split_at_checked(size_of::<MappingRow>())?;
        let wide = |at: usize| row.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        let narrow = |at: usize| row.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let row = MappingRow {
            start: wide(0)?,
            end: wide(8)?,
            offset: wide(16)?,
            inode: wide(24)?,
            device: narrow(32)?,
            prot: narrow(36)?,
            flags: narrow(40)?,
            name: narrow(44)?,
        };
        let length = row.name as usize;
        let (name, after) = rest.split_at_checked(length.next_multiple_of(8))?;
        all.push(Mapping { row, name: name.get(..length)?.to_vec() });
        bytes = after;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_mappings_are_read_and_cut_ones_are_not() {
        let mut bytes = Vec::new();
        for word in [0x1000_u64, 0x3000, 0x5000, 7] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [8_u32, 5, 1, 3] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(b"/ab\0\0\0\0\0");
        let row =
            MappingRow { start: 0x1000, end: 0x3000, offset: 0x5000, inode: 7, device: 8, prot: 5, flags: 1, name: 3 };
        let expected = vec![Mapping { row, name: b"/ab".to_vec() }];
        assert_eq!(read_mappings(&bytes, 1), Some(expected));
        for length in 0..bytes.len() {
            assert_eq!(read_mappings(&bytes[..length], 1), None, "{length}");
        }
        assert_eq!(read_mappings(&bytes, 2), None);
        assert_eq!(read_mappings(&bytes, 0), Some(Vec::new()));
    }

    #[test]
    fn a_device_that_is_not_there_is_said_to_be() {
        let error = Session::open(Path::new("/dev/none/hdcr")).unwrap_err();
        assert!(matches!(error, SessionError::Open(_)), "{error:?}");
    }

    #[test]
    fn a_file_that_is_not_the_device_is_refused() {
        let error = Session::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, SessionError::Call { .. }), "{error:?}");
    }
}
