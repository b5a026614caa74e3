//! A command for which a program stands still must not stand still itself.
//!
//! What a terminal's Ctrl-Z asks for (`SIGTSTP` and its kin) waits until the program goes on. `SIGSTOP` cannot wait, so a
//! process beside watches: a command that stands stopped while it holds a program is killed, and the kernel and what lies in
//! the program (`hdcr-ptrace`) let that go on as it was. So it is with `--kill` and `--stop` as well, where the program is held
//! until its image is durable: a checkpoint that comes to no end leaves the program running.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdcr_ptrace::Hears;
use hdcr_sys::twin;
use nix::sys::signal::{SigSet, Signal, raise};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;

use crate::failure::{Class, Failure, Result};
use crate::output::Output;
use crate::process;

/// What a terminal stops its jobs by.
const OF_TERMINALS: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];
/// A command that stands stopped for so long while it holds a program is killed: longer than a debugger or a supervisor stops
/// something for a look, shorter than the patience of whoever talks to the program.
pub(crate) const STOPPED: Duration = Duration::from_secs(1);
/// How often is looked whether it does.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

const STANDS: u8 = 1;
const GOES_ON: u8 = 0;

/// Whether the program stands still.
#[derive(Debug, Default)]
struct Gate {
    stands: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits for the program to go on goes on.
    fn open(&self) {
        *self.lock() = false;
        self.changed.notify_all();
    }

    /// Stops this process as a signal asks for, when no program stands still for it; none is stopped before it goes on.
    fn stop_by(&self, signal: Signal) {
        let mut stands = self.lock();
        while *stands {
            stands = self.changed.wait(stands).unwrap_or_else(PoisonError::into_inner);
        }
        let only = SigSet::from(signal);
        if raise(signal).and_then(|()| only.thread_unblock()).and_then(|()| only.thread_block()).is_err() {
            tracing::debug!("a signal to stop was lost");
        }
    }
}

/// The process beside.
#[derive(Debug)]
struct Beside {
    pid: i32,
    stream: UnixStream,
}

/// Keeps this command upright.
#[derive(Debug)]
pub(crate) struct Upright {
    gate: Arc<Gate>,
    /// None where a trial wants none; why it could not be started, which hinders only who needs it.
    beside: io::Result<Option<Beside>>,
}

impl Upright {
    /// From now on. To be called before there are other threads, which then leave the signals alone as well.
    pub(crate) fn keep(output: Output) -> Result<Self> {
        let signals: SigSet = OF_TERMINALS.into_iter().collect();
        signals.thread_block().map_err(Failure::system("blocking signals"))?;
        let beside = beside(output);
        let gate = Arc::new(Gate::default());
        let theirs = Arc::clone(&gate);
        let waits = move || {
            while let Ok(signal) = signals.wait() {
                theirs.stop_by(signal);
            }
        };
        let thread = std::thread::Builder::new().name("upright".into()).spawn(waits);
        drop(thread.map_err(Failure::system("starting a thread"))?);
        Ok(Self { gate, beside })
    }
}

impl Hears for Upright {
    fn stands(&self) -> io::Result<()> {
        let beside = self.beside.as_ref();
        let beside = beside.map_err(|why| io::Error::other(format!("the process that watches hdcr: {why}")))?;
        // In this order: nothing stops this command from now on, and only then is it watched for being stopped.
        *self.gate.lock() = true;
        let told = beside.as_ref().map_or(Ok(()), |beside| (&beside.stream).write_all(&[STANDS]));
        if told.is_err() {
            self.gate.open();
        }
        told
    }

    fn goes_on(&self) {
        if let Ok(Some(beside)) = &self.beside
            && let Err(error) = (&beside.stream).write_all(&[GOES_ON])
        {
            tracing::debug!(%error, "nobody watches this command any more");
        }
        self.gate.open();
    }
}

impl Drop for Upright {
    fn drop(&mut self) {
        let Ok(Some(beside)) = &self.beside else { return };
        // It may still be on its way to its first look, which nobody needs any more.
        process::signal(beside.pid, Signal::SIGKILL as i32);
        if let Err(error) = rustix::process::waitpid(Pid::from_raw(beside.pid), WaitOptions::empty()) {
            tracing::debug!(%error, "the process beside");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "trials stop a command and want it to stay")]
fn beside(output: Output) -> io::Result<Option<Beside>> {
    if std::env::var_os("HDCR_TRIAL_UNWATCHED").is_some() {
        return Ok(None);
    }
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    let pid = twin::start(far.as_fd(), || {
        let Err(failure) = watch() else { return 0 };
        output.failure(&failure, true);
        i32::from(failure.class.status())
    })?;
    Ok(Some(Beside { pid, stream: near }))
}

/// What the process beside does: until the end of its command it looks, while a program stands still, whether the command is
/// stopped.
fn watch() -> Result<()> {
    // Whoever stops the group or session of the command stops it alone.
    rustix::process::setsid().ok();
    let command = rustix::process::getppid();
    let command = command.ok_or_else(|| Failure::refused("hdcr-stopped", "it is a part of a command"))?;
    let handle = pidfd_open(command, PidfdFlags::empty()).map_err(Failure::system("watching a command"))?;
    let stream = rustix::io::dup(rustix::stdio::stdin()).map_err(Failure::system("watching a command"))?;
    let mut stream = UnixStream::from(stream);
    let mut stopped = Stopped::default();
    let mut stands = false;
    loop {
        let limit = Timespec::try_from(LOOK).unwrap_or_default();
        let said = poll(&mut [PollFd::new(&stream, PollFlags::IN)], stands.then_some(&limit)).unwrap_or_default();
        if said > 0 {
            let mut words = [0; 64];
            match stream.read(&mut words) {
                Ok(len @ 1..) => stands = words.get(len - 1) == Some(&STANDS),
                Ok(0) | Err(_) => return Ok(()),
            }
        }
        if !stands {
            stopped = Stopped::default();
        } else if stopped.too_long(command) {
            let killed = pidfd_send_signal(&handle, rustix::process::Signal::KILL);
            killed.map_err(Failure::system("ending a command that is stopped"))?;
            return Err(failure());
        }
    }
}

/// What is said of one that was killed.
pub(crate) fn failure() -> Failure {
    let message =
        "this hdcr was stopped (SIGSTOP) while the program stood still for it; it was ended, and the program goes on";
    Failure::new(Class::Changed, "hdcr-stopped", message).remedy("try again")
}

/// Since when a process is seen stopped, and how much it had worked by then.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stopped(Option<(Instant, i64)>);

impl Stopped {
    /// Looks at it; whether it has been so for too long.
    pub(crate) fn too_long(&mut self, pid: Pid) -> bool {
        let stat = process::stat(pid.as_raw_nonzero().get());
        self.0 = stat.and_then(|stat| Self::next(self.0, stat.state, work(&stat), Instant::now()));
        self.0.is_some_and(|(since, _)| since.elapsed() >= STOPPED)
    }

    /// By a debugger as well; but one that a tracer lets run from call to call works on between the looks.
    fn next(before: Option<(Instant, i64)>, state: u8, work: i64, now: Instant) -> Option<(Instant, i64)> {
        let since = before.filter(|(_, worked)| *worked == work).unwrap_or((now, work));
        matches!(state, b'T' | b't').then_some(since)
    }
}

/// The processor time that a process has used.
fn work(stat: &hdcr_engine::procfs::Stat) -> i64 {
    [14, 15].into_iter().filter_map(|field| stat.field(field)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One whose process beside has ended, or hears nothing that is looked at.
    #[expect(clippy::zombie_processes, reason = "its drop waits for it")]
    fn upright(gate: &Arc<Gate>, stream: UnixStream) -> Upright {
        let process = std::process::Command::new("true").spawn().unwrap();
        let beside = Beside { pid: process.id().cast_signed(), stream };
        Upright { gate: Arc::clone(gate), beside: Ok(Some(beside)) }
    }

    #[test]
    fn without_a_process_beside_nothing_is_stopped() {
        let failed = Upright { gate: Arc::default(), beside: Err(io::ErrorKind::OutOfMemory.into()) };
        assert!(failed.stands().unwrap_err().to_string().contains("out of memory"));
        assert!(failed.stands().is_err() && !*failed.gate.lock());
        // Nor where it has died itself.
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let alone = upright(&Arc::default(), near);
        assert!(alone.stands().is_err() && !*alone.gate.lock());
    }

    /// A command that is being stopped by a terminal says nothing of a program that stands, until it goes on.
    #[test]
    fn who_is_being_stopped_holds_nobody() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let gate = Arc::<Gate>::default();
        let stopping = gate.lock();
        let (said, hears) = std::sync::mpsc::channel();
        let upright = upright(&gate, near);
        let thread = std::thread::spawn(move || {
            said.send(nix::unistd::gettid()).unwrap();
            upright.stands().unwrap();
            upright
        });
        let tid: nix::unistd::Pid = hears.recv().unwrap();
        let asleep = || process::stat(tid.as_raw()).is_some_and(|stat| stat.state == b'S');
        for _ in 0..1_000_000 {
            if asleep() {
                break;
            }
            std::thread::yield_now();
        }
        let mut word = [0];
        assert!(far.read(&mut word).is_err(), "told before the command could not be stopped any more");
        drop(stopping);
        let upright = thread.join().unwrap();
        assert_eq!(far.read(&mut word).unwrap(), 1);
        assert!(word == [STANDS] && *gate.lock());
        upright.goes_on();
        assert!(far.read(&mut word).unwrap() == 1 && word == [GOES_ON] && !*gate.lock());
    }

    #[test]
    fn who_stands_is_told_from_who_is_traced() {
        let (first, later) = (Instant::now(), Instant::now() + STOPPED);
        let stands = Stopped::next(None, b't', 5, first);
        assert_eq!(stands, Some((first, 5)));
        assert_eq!(Stopped::next(stands, b'T', 5, later), stands);
        assert_eq!(Stopped::next(stands, b't', 6, later), Some((later, 6)));
        assert_eq!(Stopped::next(stands, b'R', 5, later), None);
    }
}
