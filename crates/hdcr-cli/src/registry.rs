//! The jobs that run now: one socket a keeper, one line of JSON for a request, one for its answer.
//!
//! Only the same user and root can connect: the directory is private. A socket whose keeper is gone is swept by whoever
//! finds it.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_image::JobName;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::job::make_private;
use crate::kinds::Then;
use crate::progress::Step;
use crate::settings::Files;
use crate::task::{Checkpointed, Target};

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
    /// The keeper has heard the request and will answer it.
    Accepted,
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
    /// The keeper, as it is numbered where this is read.
    pub(crate) keeper: i32,
    /// The first process of the program, as it is numbered where this is read; `None` while there is none.
    pub(crate) pid: Option<i32>,
    /// Its number in the pid namespace of the job, when that has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid_inside: Option<i32>,
    pub(crate) private_pids: bool,
    /// `running`, `restoring` or `ending`.
    pub(crate) phase: String,
    pub(crate) command: String,
    #[serde(with = "crate::paths")]
    pub(crate) store: PathBuf,
    /// Seconds that the program has run, counted along its checkpoints.
    pub(crate) ran_s: u64,
    /// From one checkpoint to the next, now.
    pub(crate) every_s: f64,
    /// It was chosen by what checkpoints cost and how often the program crashes.
    #[serde(default)]
    pub(crate) every_auto: bool,
    /// The algorithm that decides when.
    #[serde(default)]
    pub(crate) algorithm: Option<String>,
    /// What it has decided last.
    #[serde(default)]
    pub(crate) decided: Option<String>,
    pub(crate) restarts: u32,
    pub(crate) restarts_allowed: u32,
    /// Its newest checkpoint.
    pub(crate) newest: Option<u64>,
    /// Seconds since then.
    pub(crate) newest_age_s: Option<u64>,
    /// Why the last checkpoint failed, if it did.
    pub(crate) trouble: Option<String>,
    /// What the last checkpoint took its time for, if that was longer than the interval.
    #[serde(default)]
    pub(crate) slow: Option<String>,
    /// What the checkpoint that is at work does, if that takes a while.
    #[serde(default)]
    pub(crate) at_work: Option<String>,
}

/// The directory with the sockets.
#[derive(Debug)]
pub(crate) struct Registry {
    directory: PathBuf,
    open: fs::File,
}

/// Times that a lock is tried for, and the pause between two: nobody holds it for longer than some calls.
const TRIES: usize = 400;
const PAUSE: Duration = Duration::from_millis(5);

impl Registry {
    /// Opens the directory, making it when it is missing.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        make_private(directory)?;
        let doing = || Failure::system::<std::io::Error>(format!("opening {}", directory.display()));
        let open = fs::File::open(directory).map_err(doing())?;
        let owner = open.metadata().map_err(doing())?;
        if owner.uid() != rustix::process::geteuid().as_raw() || owner.mode() & 0o022 != 0 {
            return Err(strange(&format!("{} belongs to, or can be written by, somebody else", directory.display())));
        }
        Ok(Self { directory: directory.to_owned(), open })
    }

    /// A path to an entry that is short enough for a socket address, however long the directory's is.
    pub(crate) fn address(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{file}", self.open.as_raw_fd()))
    }

    /// The path of an entry, as others know it.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// Alone with the directory: nobody sweeps while somebody begins to listen. `None`: somebody has it for too long.
    fn alone(&self) -> Option<fs::File> {
        let own = fs::File::open(self.address(".")).ok()?;
        for _ in 0..TRIES {
            if own.try_lock().is_ok() {
                return Some(own);
            }
            std::thread::sleep(PAUSE);
        }
        None
    }

    /// Begins to listen as a job of a store.
    pub(crate) fn listen(&self, name: &JobName, store: &Path) -> Result<Listener> {
        let doing = || Failure::system::<std::io::Error>(format!("listening in {}", self.directory.display()));
        let _alone = self.alone();
        if matches!(self.connect_to(name.as_str())?, Connected::To(_)) {
            return Err(Failure::refused(
                "job-runs",
                format!("a job {name} is running already, perhaps with another store"),
            )
            .remedy("see `hdcr ps`, or take another --name"));
        }
        // It appears under its name when it listens already: until then a connection would be refused, as by a dead one.
        let first = format!(".{name}.{}", std::process::id());
        remove(&self.address(&first))?;
        let listener = UnixListener::bind(self.address(&first)).map_err(doing())?;
        listener.set_nonblocking(true).map_err(doing())?;
        let place = self.address(&format!("{name}.store"));
        let mut file = tempfile::NamedTempFile::new_in(self.address(".")).map_err(doing())?;
        file.write_all(store.as_os_str().as_bytes()).map_err(doing())?;
        file.persist(&place).map_err(|error| doing()(error.error))?;
        fs::rename(self.address(&first), self.address(&format!("{name}.sock"))).map_err(doing())?;
        let path = self.directory.join(format!("{name}.sock"));
        let identity = fs::symlink_metadata(&path).map(|found| (found.dev(), found.ino())).map_err(doing())?;
        Ok(Listener { socket: listener, path, identity })
    }

    fn connect_to(&self, name: &str) -> Result<Connected> {
        match UnixStream::connect(self.address(&format!("{name}.sock"))) {
            Ok(stream) => Ok(Connected::To(stream)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Connected::Nobody),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Connected::Dead),
            Err(error) => Err(Failure::system(format_args!("asking the keeper of job {name}"))(error)),
        }
    }

    /// Connects to the keeper of a job; `None` when there is none. Sweeps what a dead keeper left.
    pub(crate) fn connect(&self, name: &str) -> Result<Option<UnixStream>> {
        match self.connect_to(name)? {
            Connected::To(stream) => return Ok(Some(stream)),
            Connected::Nobody => return Ok(None),
            Connected::Dead => {}
        }
        let Some(_alone) = self.alone() else { return Ok(None) };
        match self.connect_to(name)? {
            Connected::To(stream) => Ok(Some(stream)),
            Connected::Nobody => Ok(None),
            Connected::Dead => remove(&self.address(&format!("{name}.sock"))).map(|()| None),
        }
    }

    /// Names with this ending, in order.
    fn with_ending(&self, ending: &str) -> Result<Vec<String>> {
        let doing = || Failure::system::<std::io::Error>(format!("listing {}", self.directory.display()));
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(doing())? {
            let file = entry.map_err(doing())?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(ending)).filter(|name| !name.starts_with('.'));
            names.extend(name.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Names of all jobs that may be running.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        self.with_ending(".sock")
    }

    /// Names of all jobs that ran, and whose keeper may have died without a word.
    pub(crate) fn remembered(&self) -> Result<Vec<String>> {
        self.with_ending(".store")
    }

    /// The store of a job that runs, or that ran when its keeper died.
    pub(crate) fn store_of(&self, name: &str) -> Option<PathBuf> {
        let bytes = fs::read(self.address(&format!("{name}.store"))).ok()?;
        Some(PathBuf::from(OsString::from_vec(bytes)))
    }

    /// Nothing of a job is left that has to be remembered.
    pub(crate) fn forget(&self, name: &str) {
        let Some(_alone) = self.alone() else { return };
        if matches!(self.connect_to(name), Ok(Connected::Nobody | Connected::Dead)) {
            for ending in ["store", "sock", "control"] {
                if let Err(failure) = remove(&self.address(&format!("{name}.{ending}"))) {
                    tracing::debug!(%failure, "a dead job is still remembered");
                }
            }
        }
    }
}

/// Who is at a socket.
#[derive(Debug)]
enum Connected {
    To(UnixStream),
    /// There is no socket.
    Nobody,
    /// There is one that nobody listens to.
    Dead,
}

fn strange(what: &str) -> Failure {
    Failure::refused("registry-owner", what).remedy("remove it, or make it your own with mode 0700")
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::system("removing what a dead keeper has left")(error))
        }
        _ => Ok(()),
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
    pub(crate) socket: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    /// Whether it can still be found under its name.
    pub(crate) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.is_there() {
            return;
        }
        for path in [self.path.with_extension("store"), self.path.clone()] {
            if let Err(error) = fs::remove_file(&path) {
                tracing::debug!(%error, path = %path.display(), "the socket could not be removed");
            }
        }
    }
}

/// A connection to a keeper, as the keeper sees it; never waits.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    bytes: Vec<u8>,
    /// It wants to hear how far it is.
    pub(crate) follows: bool,
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
        let (stream, _) = listener.socket.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Self { stream, bytes: Vec::new(), follows: false, deaf: false })
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

    /// Tells something before the answer, if it listens.
    pub(crate) fn tell(&mut self, answer: &Answer) {
        // Half a line would spoil the answer; so short a one goes into a socket that takes anything at all.
        if let Ok(bytes) = line(answer)
            && !self.deaf
        {
            self.deaf = !matches!(self.stream.write(&bytes), Ok(count) if count == bytes.len());
        }
    }

    /// Whether it still waits for its answer: what nobody waits for any more is not done.
    pub(crate) fn is_there(&self) -> bool {
        let peeked = rustix::net::recv(&self.stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        !matches!(peeked, Ok((_, 0)) | Err(Errno::CONNRESET | Errno::PIPE))
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
impl Client {
    /// One of no listener, and its end of the connection.
    pub(crate) fn of_test() -> (Self, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (Self { stream: near, bytes: Vec::new(), follows: false, deaf: false }, far)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_known_while_it_listens() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(&directory.path().join("x".repeat(120))).unwrap();
        let name = JobName::new("sim").unwrap();
        let listener = registry.listen(&name, Path::new("/a/store")).unwrap();
        assert_eq!(registry.names().unwrap(), ["sim"]);
        assert_eq!(registry.store_of("sim"), Some(PathBuf::from("/a/store")));
        assert_eq!(registry.listen(&name, Path::new("/b")).unwrap_err().code, "job-runs");
        registry.forget("sim");
        assert!(listener.is_there());
        drop(listener);
        assert!(registry.names().unwrap().is_empty() && registry.remembered().unwrap().is_empty());
        assert_eq!(fs::read_dir(&registry.directory).unwrap().count(), 0);
    }

    #[test]
    fn a_socket_that_came_after_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path()).unwrap();
        let name = JobName::new("sim").unwrap();
        let first = registry.listen(&name, Path::new("/a")).unwrap();
        fs::remove_file(directory.path().join("sim.sock")).unwrap();
        assert!(!first.is_there());
        let second = registry.listen(&name, Path::new("/b")).unwrap();
        drop(first);
        assert!(second.is_there() && registry.connect("sim").unwrap().is_some());
    }

    #[test]
    fn what_a_dead_keeper_left_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path()).unwrap();
        drop(UnixListener::bind(directory.path().join("old.sock")).unwrap());
        assert_eq!(registry.names().unwrap(), ["old"]);
        assert!(registry.connect("old").unwrap().is_none());
        assert!(registry.names().unwrap().is_empty());
        assert!(registry.connect("none").unwrap().is_none());
    }

    #[test]
    fn nonsense_is_no_request() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut client = Client { stream: near, bytes: Vec::new(), follows: false, deaf: false };
        far.write_all(b"{\"sta").unwrap();
        assert!(matches!(client.hear(), Heard::Part));
        far.write_all(b"tus\"}\n").unwrap();
        assert!(matches!(client.hear(), Heard::Gone));
    }
}
