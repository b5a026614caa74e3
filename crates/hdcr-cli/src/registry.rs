//! The jobs that run now: one socket a keeper, one line of JSON for a request, one for its answer.
//!
//! Only the same user and root can connect: the directory is private. A socket whose keeper is gone is swept by whoever
//! finds it.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_image::JobName;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::job::make_private;
use crate::kinds::Then;
use crate::progress::Step;
use crate::settings::Files;
use crate::task::{Checkpointed, Target};

/// The longest request or answer.
const LIMIT: u64 = 16 << 20;

/// What a keeper can be asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    /// How it stands.
    Status,
    /// A checkpoint now.
    Checkpoint {
        target: Option<Target>,
        files: Option<Files>,
        timeout: Option<Duration>,
        then: Then,
        #[serde(default)]
        progress: bool,
    },
    /// The end, for good.
    Stop { grace: Duration },
}

/// What it answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    Status(Status),
    /// How far it is; more follows.
    Progress(Step),
    Checkpointed(Checkpointed),
    /// The job has ended with this status.
    Stopped(u8),
    Failed(Failure),
}

/// How a job stands.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) name: String,
    /// The keeper, as it numbers itself.
    pub(crate) keeper: i32,
    /// The first process of the program, as the keeper numbers it.
    pub(crate) pid: i32,
    pub(crate) private_pids: bool,
    /// `running`, `restoring` or `ending`.
    pub(crate) phase: String,
    pub(crate) command: String,
    pub(crate) store: PathBuf,
    /// Seconds that the program has run, counted along its checkpoints.
    pub(crate) ran_s: u64,
    pub(crate) every_s: f64,
    pub(crate) restarts: u32,
    pub(crate) restarts_allowed: u32,
    /// Its newest checkpoint.
    pub(crate) newest: Option<u64>,
    /// Seconds since then.
    pub(crate) newest_age_s: Option<u64>,
    /// Why the last checkpoint failed, if it did.
    pub(crate) trouble: Option<String>,
}

/// The directory with the sockets.
#[derive(Debug)]
pub(crate) struct Registry {
    directory: PathBuf,
    open: fs::File,
}

impl Registry {
    /// Opens the directory, making it when it is missing.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        make_private(directory)?;
        let doing = || Failure::system::<std::io::Error>(format!("opening {}", directory.display()));
        let open = fs::File::open(directory).map_err(doing())?;
        let owner = open.metadata().map_err(doing())?;
        if owner.uid() != rustix::process::geteuid().as_raw() || owner.mode() & 0o022 != 0 {
            return Err(Failure::refused(
                "registry-owner",
                format!("{} belongs to, or can be written by, somebody else", directory.display()),
            ));
        }
        Ok(Self { directory: directory.to_owned(), open })
    }

    /// A path to an entry that is short enough for a socket address, however long the directory's is.
    fn address(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}.sock", self.open.as_raw_fd()))
    }

    /// Begins to listen as a job.
    pub(crate) fn listen(&self, name: &JobName) -> Result<Listener> {
        if self.connect(name.as_str())?.is_some() {
            return Err(Failure::refused("job-runs", format!("a job {name} with another store is running already"))
                .remedy("take another --name"));
        }
        let listener = UnixListener::bind(self.address(name.as_str()));
        let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = listener.map_err(Failure::system(format_args!("listening in {}", self.directory.display())))?;
        Ok(Listener { listener, path: self.directory.join(format!("{name}.sock")) })
    }

    /// Connects to the keeper of a job; `None` when there is none. Sweeps what a dead keeper left.
    pub(crate) fn connect(&self, name: &str) -> Result<Option<UnixStream>> {
        let address = self.address(name);
        match UnixStream::connect(&address) {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => match fs::remove_file(&address) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(Failure::system("removing the socket of a dead keeper")(error))
                }
                _ => Ok(None),
            },
            Err(error) => Err(Failure::system(format_args!("asking the keeper of job {name}"))(error)),
        }
    }

    /// Names of all jobs that may be running, in order.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let doing = || Failure::system::<std::io::Error>(format!("listing {}", self.directory.display()));
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(doing())? {
            let file = entry.map_err(doing())?.file_name();
            names.extend(file.to_str().and_then(|file| file.strip_suffix(".sock")).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Asks the keeper of a job; `None` when there is none.
    pub(crate) fn ask(&self, name: &str, request: &Request, limit: Duration) -> Result<Option<Answer>> {
        Ok(self.ask_known(name, request, limit, &mut |_| {})?.map(|(_, answer)| answer))
    }

    /// Asks the keeper of a job and tells which pid it has here, whatever namespace it lives in. What it tells of its
    /// progress goes to `on_the_way`.
    pub(crate) fn ask_known(
        &self,
        name: &str,
        request: &Request,
        limit: Duration,
        on_the_way: &mut dyn FnMut(Step),
    ) -> Result<Option<(Option<i32>, Answer)>> {
        let Some(stream) = self.connect(name)? else { return Ok(None) };
        let keeper = rustix::net::sockopt::socket_peercred(&stream).ok().map(|who| who.pid.as_raw_nonzero().get());
        let doing = || Failure::system::<std::io::Error>(format!("asking the keeper of job {name}"));
        stream.set_read_timeout(Some(limit)).map_err(doing())?;
        (&stream).write_all(&line(request)?).map_err(doing())?;
        let mut reader = BufReader::new(&stream);
        loop {
            let mut text = String::new();
            reader.by_ref().take(LIMIT).read_line(&mut text).map_err(doing())?;
            if text.is_empty() {
                return Ok(None);
            }
            let answer = serde_json::from_str(&text);
            match answer.map_err(Failure::system(format_args!("reading the answer of the keeper of job {name}")))? {
                Answer::Progress(step) => on_the_way(step),
                answer @ (Answer::Status(_) | Answer::Checkpointed(_) | Answer::Stopped(_) | Answer::Failed(_)) => {
                    return Ok(Some((keeper, answer)));
                }
            }
        }
    }
}

/// One message as a line.
pub(crate) fn line<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message).map_err(Failure::system("encoding a message"))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The socket of a keeper; gone when dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the socket could not be removed");
        }
    }
}

/// A connection to a keeper, as the keeper sees it; never waits.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    bytes: Vec<u8>,
    /// It did not take what it was told.
    deaf: bool,
}

/// What a client has said so far.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Not all of a request yet.
    Part,
    /// A request.
    Request(Request),
    /// It went away, or said what is no request.
    Gone,
}

impl Client {
    /// Takes a new connection.
    pub(crate) fn accept(listener: &Listener) -> Option<Self> {
        let (stream, _) = listener.listener.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Self { stream, bytes: Vec::new(), deaf: false })
    }

    /// Reads what is there.
    pub(crate) fn hear(&mut self) -> Heard {
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Heard::Gone,
                Ok(count) => self.bytes.extend_from_slice(piece.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Part,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Heard::Gone,
            }
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let request = serde_json::from_slice(self.bytes.get(..end).unwrap_or_default());
                return request.map_or(Heard::Gone, Heard::Request);
            }
            if self.bytes.len() > 1 << 20 {
                return Heard::Gone;
            }
        }
    }

    /// Tells how far its wish is, if it listens.
    pub(crate) fn tell(&mut self, step: Step) {
        // Half a line would spoil the answer; so short a one goes into a socket that takes anything at all.
        if let Ok(bytes) = line(&Answer::Progress(step))
            && !self.deaf
        {
            self.deaf = !matches!(self.stream.write(&bytes), Ok(count) if count == bytes.len());
        }
    }

    /// Answers and hangs up. A client that does not read within a second gets no answer.
    pub(crate) fn answer(mut self, answer: &Answer) {
        let sent = line(answer).map(|bytes| {
            let blocking = self
                .stream
                .set_nonblocking(false)
                .and_then(|()| self.stream.set_write_timeout(Some(Duration::from_secs(1))));
            blocking.and_then(|()| self.stream.write_all(&bytes))
        });
        if !matches!(sent, Ok(Ok(()))) {
            tracing::debug!("a client did not take its answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_its_answer_pass() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(&directory.path().join("x".repeat(120))).unwrap();
        let name = JobName::new("sim").unwrap();
        let listener = registry.listen(&name).unwrap();
        assert_eq!(registry.names().unwrap(), ["sim"]);
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                registry.ask("sim", &Request::Stop { grace: Duration::from_secs(1) }, Duration::from_secs(30))
            });
            listener.listener.set_nonblocking(false).unwrap();
            let mut client = Client::accept(&listener).unwrap();
            client.stream.set_nonblocking(false).unwrap();
            assert!(matches!(client.hear(), Heard::Request(Request::Stop { .. })));
            client.answer(&Answer::Stopped(143));
            assert_eq!(asked.join().unwrap().unwrap(), Some(Answer::Stopped(143)));
        });
        assert_eq!(registry.listen(&name).unwrap_err().code, "job-runs");
    }

    #[test]
    fn what_a_dead_keeper_left_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path()).unwrap();
        drop(UnixListener::bind(directory.path().join("old.sock")).unwrap());
        assert_eq!(registry.names().unwrap(), ["old"]);
        assert!(registry.connect("old").unwrap().is_none());
        assert!(registry.names().unwrap().is_empty());
        assert!(registry.ask("none", &Request::Status, Duration::from_secs(1)).unwrap().is_none());
    }

    #[test]
    fn nonsense_is_no_request() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut client = Client { stream: near, bytes: Vec::new(), deaf: false };
        far.write_all(b"{\"sta").unwrap();
        assert!(matches!(client.hear(), Heard::Part));
        far.write_all(b"tus\"}\n").unwrap();
        assert!(matches!(client.hear(), Heard::Gone));
    }
}
