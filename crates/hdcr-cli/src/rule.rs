//! `hdcr __rule`: runs the command of an algorithm outside of the keeper (`--algorithm exec:COMMAND`), and starts it again
//! when it ends.
//!
//! It stands beside the job, below nobody of it: what is below a keeper is its program. Between the command's pipes and the
//! keeper it passes lines, each a packet of its own, so that nothing that the command does or leaves undone holds up the
//! keeper. When the keeper is gone it ends, with all that the command has begun.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use hdcr::algorithm::line::LONGEST_ANSWER;
use hdcr::{Heard, Link};
use hdcr_policy::restart::Death;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::foreground::{KILL_LIMIT, tell};
use crate::process::{self, Change, kill_all_below, next_change};
use crate::signals::Signals;

/// The hidden `__rule`.
#[derive(Debug, clap::Args)]
pub(crate) struct RuleArgs {
    /// This is the first of two processes
    #[arg(long)]
    pub(crate) first: bool,
    /// What a shell runs
    #[arg(last = true, required = true)]
    pub(crate) command: String,
}

/// What a keeper says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum ToRule {
    /// To be written to the command.
    Line(String),
    /// The command is to be ended and started again.
    Again {},
}

/// What it is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum FromRule {
    /// The command runs, below this process.
    Began { own: i32 },
    /// It has written this line.
    Line(String),
    /// And this one on standard error.
    Said(String),
    /// It has ended; it is started again after a pause.
    Ended { how: String, pause: Duration },
}

/// The first pause; each is twice as long as the one before.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_mins(1);
/// A command that has run for so long begins with the first pause again.
const STEADY: Duration = Duration::from_mins(5);
/// When nobody needs it any more, a command has so long to end by itself.
const GRACE: Duration = Duration::from_millis(500);
/// What is kept of a line on standard error.
const SHOWN: usize = 1000;

/// Starts the process that runs the command, beside this one; the way to it.
///
/// To be called before this process becomes a reaper: nobody below this one may be its parent.
pub(crate) fn start(command: &str) -> Result<Link> {
    let doing = || Failure::system::<rustix::io::Errno>("making a pair of sockets");
    let made = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (near, far): (OwnedFd, OwnedFd) = made.map_err(doing())?;
    let mut first = process::this_program();
    first.args(crate::output::verbosity()).args(["__rule", "--first", "--", command]);
    first.stdin(Stdio::from(far)).stdout(Stdio::null());
    let status = first.status().map_err(Failure::system("starting the process that runs the algorithm"))?;
    tracing::debug!(%status, "the algorithm has its process");
    Ok(Link::from(near))
}

/// The way that the process outside of a pid namespace has made, by the number of its descriptor.
pub(crate) fn inherited(number: i32) -> Result<Link> {
    let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    let found = own.and_then(|own| pidfd_getfd(own, number, PidfdGetfdFlags::empty()));
    let found = found.map_err(Failure::system("finding the way to the algorithm"))?;
    // The one that was inherited is for nobody else.
    hdcr_sys::close_range::close_on_exec_from(3).map_err(Failure::system("keeping descriptors to this process"))?;
    Ok(Link::from(found))
}

/// Lets the next process of this program have it; the word of its command line that names it.
pub(crate) fn bequeath(link: &Link) -> Result<OsString> {
    rustix::io::fcntl_setfd(link, FdFlags::empty()).map_err(Failure::system("passing on the way to the algorithm"))?;
    Ok(format!("--rule={}", link.as_raw_fd()).into())
}

/// What the first of the two processes does: the second one has no parent among the living but the reaper of all.
pub(crate) fn step_aside(command: &str) -> Result<()> {
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "the algorithm stays in its session");
    }
    let mut second = process::this_program();
    second.args(crate::output::verbosity()).args(["__rule", "--", command]);
    second.stdin(Stdio::inherit()).stdout(Stdio::null()).stderr(Stdio::null());
    second.spawn().map_err(Failure::system("starting the process that runs the algorithm"))?;
    Ok(())
}

/// The command with its pipes.
struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<ChildStdout>,
    errors: Option<ChildStderr>,
    line: Vec<u8>,
    error_line: Vec<u8>,
    since: Instant,
}

/// What the second process does, until the keeper is gone.
pub(crate) fn serve(command: &str) -> Result<()> {
    process::take_name();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(Failure::system("becoming the reaper of the algorithm"))?;
    let signals = Signals::take()?;
    let copy = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
    let link = Link::from(copy.map_err(Failure::system("taking over standard input"))?);
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    rustix::stdio::dup2_stdin(null.map_err(Failure::system("opening /dev/null"))?)
        .map_err(Failure::system("letting go of standard input"))?;
    Ushering { command, link, signals, running: None, next: Some(Instant::now()), pause: FIRST }.until_gone()
}

struct Ushering<'a> {
    command: &'a str,
    link: Link,
    signals: Signals,
    running: Option<Running>,
    /// When it is started.
    next: Option<Instant>,
    pause: Duration,
}

impl Ushering<'_> {
    fn until_gone(mut self) -> Result<()> {
        loop {
            if self.next.is_some_and(|next| Instant::now() >= next) {
                self.begin();
            }
            let mut fds = vec![self.link.as_fd()];
            if let Some(running) = &self.running {
                fds.extend(running.output.iter().map(AsFd::as_fd));
                fds.extend(running.errors.iter().map(AsFd::as_fd));
            }
            let left = self.next.map(|next| next.saturating_duration_since(Instant::now()));
            self.signals.wait(&mut fds, left)?;
            while self.signals.next().is_some() {}
            if !self.hear() {
                return self.part();
            }
            self.read();
            while let Some((pid, change)) = next_change() {
                let is_it = self.running.as_ref().is_some_and(|running| running.child.id().cast_signed() == pid);
                if let (true, Change::Ended(death)) = (is_it, change) {
                    self.read();
                    self.ended(&tell(death));
                }
            }
        }
    }

    fn tell(&self, what: &FromRule) {
        if let Err(error) = self.link.send(what) {
            tracing::debug!(%error, "the keeper does not hear");
        }
    }

    fn begin(&mut self) {
        self.next = None;
        match self.spawn() {
            Ok(running) => {
                self.running = Some(running);
                self.tell(&FromRule::Began { own: std::process::id().cast_signed() });
            }
            Err(failure) => self.ended(&failure.to_string()),
        }
    }

    fn spawn(&self) -> Result<Running> {
        let mut command = process::this_program();
        command.arg("__program");
        command.args(self.signals.to_unblock().iter().map(|number| format!("--unblock={number}")));
        command.args(["--", "/bin/sh", "-c", self.command]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(Failure::system("starting the algorithm"))?;
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ends = input.iter().map(AsFd::as_fd).chain(output.iter().map(AsFd::as_fd));
        for end in ends.chain(errors.iter().map(AsFd::as_fd)) {
            rustix::io::ioctl_fionbio(end, true).map_err(Failure::system("making a pipe that nobody waits for"))?;
        }
        let (line, error_line) = (Vec::new(), Vec::new());
        Ok(Running { child, input, output, errors, line, error_line, since: Instant::now() })
    }

    /// Hears the keeper; false when it is gone.
    fn hear(&mut self) -> bool {
        loop {
            match self.link.hear::<ToRule>() {
                Ok(Heard::Nothing) => return true,
                Ok(Heard::Said(ToRule::Line(line))) => self.write(&line),
                Ok(Heard::Said(ToRule::Again {})) => self.end("it was ended for that"),
                Ok(Heard::Ended) | Err(_) => return false,
            }
        }
    }

    /// A line for the command. One that does not read what it has asked for is as good as dead.
    fn write(&mut self, line: &str) {
        let Some(input) = self.running.as_mut().and_then(|running| running.input.as_mut()) else { return };
        let text = format!("{line}\n");
        if !matches!(input.write(text.as_bytes()), Ok(written) if written == text.len()) {
            self.end("it does not read");
        }
    }

    /// What the command has written.
    fn read(&mut self) {
        let Some(running) = &mut self.running else { return };
        let (lines, fits) = lines(&mut running.output, &mut running.line, LONGEST_ANSWER);
        let (said, _) = lines_cut(&mut running.errors, &mut running.error_line);
        for line in said {
            self.tell(&FromRule::Said(line));
        }
        for line in lines {
            self.tell(&FromRule::Line(line));
        }
        if !fits {
            self.end("it writes a line that is too long");
        }
    }

    /// Ends the command, and says why.
    fn end(&mut self, how: &str) {
        if self.running.is_some() {
            self.ended(how);
        }
    }

    /// The command has ended, or is to end; nothing is left of it.
    fn ended(&mut self, how: &str) {
        if self.running.take().is_some_and(|running| running.since.elapsed() >= STEADY) {
            self.pause = FIRST;
        }
        if let Err(failure) = kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {}) {
            tracing::debug!(%failure, "the algorithm does not end");
        }
        self.tell(&FromRule::Ended { how: how.to_owned(), pause: self.pause });
        self.next = Some(Instant::now() + self.pause);
        self.pause = self.pause.saturating_mul(2).min(LONGEST);
    }

    /// The keeper is gone: the command is told so by the end of its input, and has a moment.
    fn part(mut self) -> Result<()> {
        let end = Instant::now() + GRACE;
        if let Some(running) = &mut self.running {
            running.input = None;
            let pid = running.child.id().cast_signed();
            let is_over = |(ended, change): (i32, Change)| ended == pid && matches!(change, Change::Ended(_));
            while Instant::now() < end && !next_change().is_some_and(is_over) {
                self.signals.wait(&mut [], Some(Duration::from_millis(20)))?;
                while self.signals.next().is_some() {}
            }
        }
        kill_all_below(&self.signals, KILL_LIMIT, &mut |_: i32, _: Death| {})
    }
}

/// Whole lines that a pipe has, as far as they go; false when one is longer than that.
fn lines(from: &mut Option<ChildStdout>, kept: &mut Vec<u8>, longest: usize) -> (Vec<String>, bool) {
    let mut found = Vec::new();
    let fits = take(from, kept, longest, &mut |line| found.push(String::from_utf8_lossy(line).into_owned()));
    (found, fits)
}

/// The same of standard error, where a line that is too long is cut.
fn lines_cut(from: &mut Option<ChildStderr>, kept: &mut Vec<u8>) -> (Vec<String>, bool) {
    let mut found = Vec::new();
    let mut cut = |line: &[u8]| found.push(String::from_utf8_lossy(line.get(..SHOWN).unwrap_or(line)).into_owned());
    let fits = take(from, kept, SHOWN, &mut cut);
    if !fits {
        cut(&std::mem::take(kept));
    }
    (found, fits)
}

/// Reads what there is, at most so much that nobody is kept waiting; `each` gets every whole line.
fn take<R: std::io::Read>(
    from: &mut Option<R>,
    kept: &mut Vec<u8>,
    longest: usize,
    each: &mut dyn FnMut(&[u8]),
) -> bool {
    const READS: usize = 16;
    let mut bytes = [0; 4096];
    for _ in 0..READS {
        let Some(pipe) = from else { return true };
        match pipe.read(&mut bytes) {
            Ok(0) => *from = None,
            Ok(count) => {
                kept.extend(bytes.get(..count).unwrap_or_default());
                while let Some(end) = kept.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = kept.drain(..=end).collect();
                    each(line.get(..end).unwrap_or_default());
                }
                if kept.len() > longest {
                    return false;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
            Err(_) => *from = None,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_bounded() {
        let mut kept = Vec::new();
        let mut found = Vec::new();
        let mut each = |line: &[u8]| found.push(line.to_vec());
        assert!(take(&mut Some(&b"one\ntw"[..]), &mut kept, 8, &mut each));
        assert!(take(&mut Some(&b"o\n\nrest"[..]), &mut kept, 8, &mut each));
        assert!(!take(&mut Some(&b" is too long"[..]), &mut kept, 8, &mut each));
        assert_eq!(found, [&b"one"[..], b"two", b""]);
    }
}
