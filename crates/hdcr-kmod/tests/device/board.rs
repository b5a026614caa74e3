//! What a target and its test both see: counters in a shared file.
#![expect(unsafe_code, reason = "memory shared between processes")]

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const SLOTS: usize = 1024;
const BYTES: usize = SLOTS * 8;
/// How many workers have come to their work.
const READY: usize = SLOTS - 1;
/// How often a worker found something wrong.
const WRONG: usize = SLOTS - 2;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A page or two of counters.
#[derive(Debug)]
pub(crate) struct Board {
    slots: NonNull<AtomicU64>,
}

// SAFETY: there are only atomic numbers behind it, and they stay mapped as long as it lives.
unsafe impl Sync for Board {}
// SAFETY: as above.
unsafe impl Send for Board {}

impl Board {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(BYTES as u64).unwrap();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { mmap(std::ptr::null_mut(), BYTES, prot, MapFlags::SHARED, &file, 0) }.unwrap();
        Self { slots: NonNull::new(at.cast()).unwrap() }
    }

    fn slot(&self, at: usize) -> &AtomicU64 {
        assert!(at < SLOTS);
        // SAFETY: the file has so many slots.
        let slot = unsafe { self.slots.add(at) };
        // SAFETY: it is mapped, aligned, and every value of it is one.
        unsafe { slot.as_ref() }
    }

    pub(crate) fn count(&self, worker: usize) {
        self.slot(worker).fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn ready(&self) {
        self.slot(READY).fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn wrong(&self) {
        self.slot(WRONG).fetch_add(1, Ordering::SeqCst);
    }

    /// Whether no worker has found anything wrong.
    pub(crate) fn is_right(&self) -> bool {
        self.get(WRONG) == 0
    }

    pub(crate) fn put(&self, slot: usize, value: u64) {
        self.slot(slot).store(value, Ordering::SeqCst);
    }

    pub(crate) fn get(&self, worker: usize) -> u64 {
        self.slot(worker).load(Ordering::SeqCst)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { munmap(self.slots.as_ptr().cast(), BYTES) }.unwrap();
    }
}

/// A running target. Dropping it kills its session.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) board: Board,
    pub(crate) workers: usize,
    child: Child,
    path: PathBuf,
}

impl Target {
    /// Starts a target with so many workers, and waits until all are at their work.
    pub(crate) fn start(kind: &str, workers: usize) -> Self {
        Self::start_as(kind, workers, None)
    }

    /// The same as a user.
    pub(crate) fn start_as(kind: &str, workers: usize, user: Option<u32>) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("board-{}-{number}", std::process::id()));
        let board = Board::open(&path);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("target").arg(kind).arg(&path).arg(workers.to_string()).stdin(Stdio::null());
        if kind.starts_with("kept-") {
            // Nothing of it leads out of it.
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        if let Some(user) = user {
            std::os::unix::fs::chown(&path, Some(user), Some(user)).unwrap();
            command.uid(user).gid(user);
        }
        let child = command.spawn().unwrap();
        let mut target = Self { board, workers, child, path };
        until("the workers are at their work", || target.board.get(READY) == workers as u64);
        if kind.ends_with("sleepers") {
            // The others only wait.
            target.workers = 1;
        }
        target
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn id(&self) -> u64 {
        u64::from(self.child.id())
    }

    pub(crate) fn counts(&self) -> Vec<u64> {
        (0..self.workers).map(|worker| self.board.get(worker)).collect()
    }

    /// Waits until every worker has gone on twice, and none has found anything wrong.
    pub(crate) fn goes_on(&self) {
        let before = self.counts();
        until("every worker goes on", || self.counts().iter().zip(&before).all(|(now, then)| *now > then + 1));
        self.is_right();
    }

    pub(crate) fn is_right(&self) {
        assert!(self.board.is_right(), "a worker found something wrong");
    }

    /// Whether nothing moves while something is done.
    pub(crate) fn stands_still<T>(&self, during: impl FnOnce() -> T) -> T {
        let before = self.counts();
        let result = during();
        until("some time has passed", {
            let began = Instant::now();
            move || began.elapsed() > Duration::from_millis(5)
        });
        assert_eq!(self.counts(), before, "it runs");
        result
    }

    /// Waits for the end; the status as `wait` gives it.
    pub(crate) fn end(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(-self.pid());
        // Both may be gone.
        nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGKILL).ok();
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_file(&self.path).ok();
    }
}

/// Waits until something is true, for a minute at most.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_mins(1), "in vain: until {what}");
        nap();
    }
}

/// Lets others run.
pub(crate) fn nap() {
    nix::poll::poll(&mut [], nix::poll::PollTimeout::from(1_u8)).ok();
}
