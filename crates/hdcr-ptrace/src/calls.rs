//! Every call that touches another task goes through here: counted for fault points, its error made into ours.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use hdcr_engine::ids::{Fd, Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{Deadline, MechanismError, Result, Rseq, SigInfo};
use hdcr_engine::regs::Regs;
use hdcr_sys::ptrace::{self, RseqConfiguration, SignalQueue};
use hdcr_sys::wait::{self, Seen, Take};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::faults::Steps;
use crate::registers;
use crate::standing::Standing;

/// Signals that wait in one queue.
const MOST_PENDING: usize = 8192;

/// `NT_X86_XSTATE` (elf.h).
const XSTATE_NOTE: i32 = 0x202;
/// Above any XSAVE area that exists (AMX: 11 KiB).
const XSTATE_ROOM: usize = 64 * 1024;
/// A pidfd of one thread (`O_EXCL`, include/uapi/linux/pidfd.h).
const PIDFD_THREAD: u32 = 0o200;
/// The kernel takes at most this many pieces a call (`IOV_MAX`).
const PIECES: usize = 1024;

/// The calls on other tasks.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) steps: Steps,
    /// Whether calls that are put back can carry since when (`waits`).
    pub(crate) marks: bool,
    pub(crate) standing: Standing,
}

/// What an error number of a call on a task means.
pub(crate) fn failure(operation: &'static str, tid: Tid, errno: Errno) -> MechanismError {
    if matches!(errno, Errno::ESRCH | Errno::ECHILD) {
        return MechanismError::Gone { operation, tid };
    }
    MechanismError::System { operation, tid, source: errno.into() }
}

/// The kernel's words for a registration as the engine's.
pub(crate) fn as_rseq(kernel: RseqConfiguration) -> Rseq {
    Rseq { at: RemotePtr(kernel.pointer), size: kernel.size, signature: kernel.signature }
}

impl Calls {
    fn counted<T>(&self, operation: &'static str, tid: Tid, result: nix::Result<T>) -> Result<T> {
        self.steps.made_one();
        if self.steps.spoiled() {
            return Err(failure(operation, tid, Errno::EIO));
        }
        result.map_err(|errno| failure(operation, tid, errno))
    }

    /// Attaches; the error number is for the caller, who knows what it means.
    pub(crate) fn seize(&self, tid: Tid, options: i32) -> nix::Result<()> {
        let result = ptrace::seize(tid.0, options);
        self.steps.made_one();
        result
    }

    pub(crate) fn interrupt(&self, tid: Tid) -> Result<()> {
        self.counted("interrupting it", tid, ptrace::interrupt(tid.0))
    }

    pub(crate) fn cont(&self, tid: Tid, signal: i32) -> Result<()> {
        self.counted("letting it run", tid, ptrace::cont(tid.0, signal))
    }

    pub(crate) fn cont_to_syscall(&self, tid: Tid, signal: i32) -> Result<()> {
        let result = ptrace::cont_to_syscall(tid.0, signal);
        self.counted("letting it run to a system call", tid, result)
    }

    pub(crate) fn set_options(&self, tid: Tid, options: i32) -> Result<()> {
        let result = ptrace::set_options(tid.0, options);
        self.counted("setting how it is traced", tid, result)
    }

    pub(crate) fn detach(&self, tid: Tid, signal: i32) -> Result<()> {
        self.counted("letting it go", tid, ptrace::detach(tid.0, signal))
    }

    pub(crate) fn registers(&self, tid: Tid) -> Result<Regs> {
        let got = self.counted("reading its registers", tid, ptrace::registers(tid.0))?;
        Ok(registers::from_kernel(&got))
    }

    pub(crate) fn set_registers(&self, tid: Tid, regs: &Regs) -> Result<()> {
        let result = ptrace::set_registers(tid.0, &registers::to_kernel(regs));
        self.counted("setting its registers", tid, result)
    }

    pub(crate) fn signal_mask(&self, tid: Tid) -> Result<u64> {
        self.counted("reading its signal mask", tid, ptrace::signal_mask(tid.0))
    }

    pub(crate) fn set_signal_mask(&self, tid: Tid, mask: u64) -> Result<()> {
        let result = ptrace::set_signal_mask(tid.0, mask);
        self.counted("setting its signal mask", tid, result)
    }

    pub(crate) fn stop_siginfo(&self, tid: Tid) -> Result<SigInfo> {
        self.counted("reading its signal", tid, ptrace::stop_siginfo(tid.0))
    }

    pub(crate) fn event_message(&self, tid: Tid) -> Result<u64> {
        let result = ptrace::event_message(tid.0);
        self.counted("reading its event", tid, result)
    }

    /// `None` when the kernel cannot tell (before Linux 5.13) or nothing is registered.
    pub(crate) fn rseq(&self, tid: Tid) -> Result<Option<RseqConfiguration>> {
        let result = match ptrace::rseq_configuration(tid.0) {
            Err(Errno::EIO | Errno::EINVAL) => Ok(RseqConfiguration::default()),
            other => other,
        };
        let got = self.counted("reading its rseq registration", tid, result)?;
        Ok((got.pointer != 0).then_some(got))
    }

    pub(crate) fn xstate(&self, tid: Tid) -> Result<Vec<u8>> {
        let result = ptrace::register_set(tid.0, XSTATE_NOTE, XSTATE_ROOM);
        self.counted("reading its xstate", tid, result)
    }

    pub(crate) fn set_xstate(&self, tid: Tid, xstate: &[u8]) -> Result<()> {
        let result = ptrace::set_register_set(tid.0, XSTATE_NOTE, xstate);
        self.counted("setting its xstate", tid, result)
    }

    pub(crate) fn is_in_32_bit_call(&self, tid: Tid) -> Result<bool> {
        self.counted("asking for its system call", tid, ptrace::is_in_32_bit_call(tid.0))
    }

    pub(crate) fn pending(&self, tid: Tid, queue: SignalQueue) -> Result<Vec<SigInfo>> {
        let mut all = Vec::new();
        loop {
            let offset = u64::try_from(all.len()).unwrap_or(u64::MAX);
            let result = ptrace::pending(tid.0, queue, offset);
            let some = self.counted("reading its pending signals", tid, result)?;
            if some.is_empty() {
                return Ok(all);
            }
            all.extend(some);
            // Each look walks the queue from its beginning, while the program stands still.
            if all.len() > MOST_PENDING {
                return Err(MechanismError::Unsupported { tid, kind: "flooded with signals (more than 8192 wait)" });
            }
        }
    }

    /// Looks at a task. `Gone` when it is none of ours any more.
    pub(crate) fn look(&self, tid: Tid) -> Result<Seen> {
        let result = wait::look(tid.0, Take::Leave);
        // How often nothing is seen is chance, so such looks are no fault points.
        if result != Ok(Seen::Nothing) {
            return self.counted("waiting for it", tid, result);
        }
        Ok(Seen::Nothing)
    }

    /// Collects a dead task. Whether there was anything to collect is told.
    pub(crate) fn collect(&self, tid: Tid) -> Seen {
        let result = wait::look(tid.0, Take::Collect);
        self.steps.made_one();
        result.unwrap_or(Seen::Nothing)
    }

    pub(crate) fn kill(&self, pid: Pid, signal: i32) -> Result<()> {
        let result = Signal::try_from(signal).and_then(|signal| kill(nix::unistd::Pid::from_raw(pid.0), signal));
        self.counted("sending it a signal", pid.leader(), result)
    }

    pub(crate) fn signal_thread(&self, pid: Pid, tid: Tid, signal: i32) -> Result<()> {
        let result = hdcr_sys::task::signal_thread(pid.0, tid.0, signal);
        self.counted("sending it a signal", tid, result)
    }

    /// Reads memory word by word, which needs no more than being its tracer.
    pub(crate) fn peek_words(&self, tid: Tid, at: u64, into: &mut [u8]) -> Result<()> {
        let mut at = at;
        let mut rest = into;
        while !rest.is_empty() {
            let (word_at, skip, len) = word_around(at, rest.len());
            let word = self.counted("reading its memory", tid, ptrace::peek(tid.0, word_at))?;
            let bytes = word.to_le_bytes();
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(bytes.get(skip..skip + len).unwrap_or(&[]));
            at += u64::try_from(len).unwrap_or(0);
            rest = later;
        }
        Ok(())
    }

    /// Writes memory word by word, which needs no more than being its tracer.
    pub(crate) fn poke_words(&self, tid: Tid, at: u64, bytes: &[u8]) -> Result<()> {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (word_at, skip, len) = word_around(at, rest.len());
            let mut word = [0; 8];
            if len < 8 {
                self.peek_words(tid, word_at, &mut word)?;
            }
            let (now, later) = rest.split_at(len);
            if let Some(to) = word.get_mut(skip..skip + len) {
                to.copy_from_slice(now);
            }
            let result = ptrace::poke(tid.0, word_at, u64::from_le_bytes(word));
            self.counted("writing its memory", tid, result)?;
            at += u64::try_from(len).unwrap_or(0);
            rest = later;
        }
        Ok(())
    }

    /// A duplicate, here, of a descriptor of the process that the thread belongs to.
    pub(crate) fn duplicate(&self, pid: Pid, tid: Tid, fd: Fd) -> Result<OwnedFd> {
        // A leader that has ended has no descriptors any more; then by the thread (Linux 6.9).
        let flags = if tid == pid.leader() { PidfdFlags::empty() } else { PidfdFlags::from_bits_retain(PIDFD_THREAD) };
        let result = rustix::process::Pid::from_raw(tid.0)
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|tid| pidfd_open(tid, flags))
            .and_then(|pidfd| pidfd_getfd(pidfd, fd.0, PidfdGetfdFlags::empty()));
        let result = result.map_err(|errno| Errno::from_raw(errno.raw_os_error()));
        self.counted("duplicating its descriptor", tid, result)
    }

    /// Opens a process's memory; it stays that memory whatever the process's credentials become.
    pub(crate) fn open_memory(&self, pid: Pid, tid: Tid) -> Result<File> {
        let path = format!("/proc/{pid}/task/{tid}/mem");
        let opened = OpenOptions::new().read(true).write(true).open(path);
        self.steps.made_one();
        opened.map_err(|source| io_failure("opening its memory", tid, source))
    }

    /// Writes through the file of [`Self::open_memory`], also where the mappings forbid it.
    pub(crate) fn force(&self, memory: &File, tid: Tid, at: u64, bytes: &[u8]) -> Result<()> {
        let written = memory.write_all_at(bytes, at);
        self.steps.made_one();
        written.map_err(|source| io_failure("writing its memory", tid, source))
    }

    /// Reads through the file of [`Self::open_memory`], also where the mappings forbid it.
    pub(crate) fn peek(&self, memory: &File, tid: Tid, at: u64, into: &mut [u8]) -> Result<()> {
        let read = memory.read_exact_at(into, at);
        self.steps.made_one();
        read.map_err(|source| io_failure("reading its memory", tid, source))
    }

    /// Reads readable memory; how many bytes were had may be fewer.
    pub(crate) fn read_some(&self, tid: Tid, at: RemotePtr, into: &mut [u8]) -> nix::Result<usize> {
        let remote = piece(at, into.len())?;
        let pid = nix::unistd::Pid::from_raw(tid.0);
        let result = process_vm_readv(pid, &mut [IoSliceMut::new(into)], &[remote]);
        self.steps.made_one();
        result
    }

    /// Reads all of some readable memory.
    pub(crate) fn read(&self, tid: Tid, at: RemotePtr, into: &mut [u8]) -> Result<()> {
        let wanted = into.len();
        match self.read_some(tid, at, into) {
            Ok(got) if got == wanted => Ok(()),
            Ok(_) => Err(failure("reading its memory", tid, Errno::EFAULT)),
            Err(errno) => Err(failure("reading its memory", tid, errno)),
        }
    }

    /// Writes all pieces to writable memory.
    pub(crate) fn write(&self, tid: Tid, pieces: &[(RemotePtr, &[u8])]) -> nix::Result<()> {
        let result = write_pieces(tid, pieces);
        self.steps.made_one();
        result
    }
}

/// Writes all pieces to writable memory, from whichever thread.
pub(crate) fn write_pieces(tid: Tid, pieces: &[(RemotePtr, &[u8])]) -> nix::Result<()> {
    let pid = nix::unistd::Pid::from_raw(tid.0);
    for some in pieces.chunks(PIECES) {
        let wanted: usize = some.iter().map(|(_, bytes)| bytes.len()).sum();
        let local: Vec<_> = some.iter().map(|(_, bytes)| IoSlice::new(bytes)).collect();
        let remote = some.iter().map(|(at, bytes)| piece(*at, bytes.len())).collect::<nix::Result<Vec<_>>>()?;
        if process_vm_writev(pid, &local, &remote)? != wanted {
            return Err(Errno::EFAULT);
        }
    }
    Ok(())
}

/// The aligned word that holds an address, how far in it lies, and how many of the wanted bytes are in that word.
fn word_around(at: u64, wanted: usize) -> (u64, usize, usize) {
    let word_at = at & !7;
    let skip = usize::try_from(at - word_at).unwrap_or(0);
    (word_at, skip, wanted.min(8 - skip))
}

fn piece(at: RemotePtr, len: usize) -> nix::Result<RemoteIoVec> {
    let base = usize::try_from(at.0).map_err(|_| Errno::EFAULT)?;
    Ok(RemoteIoVec { base, len })
}

fn io_failure(operation: &'static str, tid: Tid, source: std::io::Error) -> MechanismError {
    match source.raw_os_error() {
        Some(errno) => failure(operation, tid, Errno::from_raw(errno)),
        None => MechanismError::System { operation, tid, source },
    }
}

/// Waiting for other tasks without a blocking call, so that a deadline holds: first turns given away, then short sleeps.
#[derive(Debug)]
pub(crate) struct Patience {
    by: Deadline,
    turns: u32,
}

impl Patience {
    /// Turns given away before the first sleep: some hundred microseconds.
    const EAGER: u32 = 400;

    pub(crate) fn until(by: Deadline) -> Self {
        Self { by, turns: 0 }
    }

    /// Something happened: eager again.
    pub(crate) fn renew(&mut self) {
        self.turns = 0;
    }

    /// Waits a little. False when the deadline has passed.
    pub(crate) fn wait(&mut self) -> bool {
        self.turns = self.turns.saturating_add(1);
        if self.turns <= Self::EAGER {
            std::thread::yield_now();
            // The clock is read now and then only; a turn is a microsecond or a few.
            return !self.turns.is_multiple_of(64) || Instant::now() < self.by.0;
        }
        let doubled = (self.turns - Self::EAGER).min(5);
        std::thread::sleep(Duration::from_micros(30 << doubled));
        Instant::now() < self.by.0
    }
}
