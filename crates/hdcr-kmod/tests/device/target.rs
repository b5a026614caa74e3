//! The programs that are frozen. They end when they are killed.
#![expect(unsafe_code, reason = "forks, and calls that wait in the kernel")]

use std::io::{Read, Write};
use std::os::fd::{IntoRawFd, RawFd};
use std::path::Path;
use std::process::{Command, exit};
use std::thread;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, setsid};

use crate::board::{Board, nap};
use crate::worker::{Pace, work};

/// Becomes a target.
#[expect(clippy::exit, reason = "a program that takes the place of the tests")]
pub(crate) fn run(kind: &str, board: &Path, rest: &[String]) -> ! {
    if kind == "ends" {
        exit(0);
    }
    let board: &'static Board = Box::leak(Box::new(Board::open(board)));
    let count: usize = rest.first().and_then(|count| count.parse().ok()).unwrap();
    let kept = kind.strip_prefix("kept-");
    if kept.is_none() {
        // A test that is killed takes its targets with it.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    setsid().unwrap();
    match kept.unwrap_or(kind) {
        "threads" => threads(board, count, Pace::Nap),
        "spinners" => threads(board, count, Pace::Spin),
        "hidden" => {
            nix::sys::prctl::set_dumpable(false).unwrap();
            threads(board, count, Pace::Nap)
        }
        "tree" => tree(board, count),
        "storm" => storm(board),
        "sleepers" => sleepers(board),
        "vfork" => vfork(board),
        "memory" => memory(board),
        other => panic!("no target {other}"),
    }
}

fn threads(board: &'static Board, count: usize, pace: Pace) -> ! {
    for number in 1..count {
        thread::spawn(move || work(board, number, pace));
    }
    work(board, 0, pace)
}

/// Processes, each the parent of the next two, that hand a token round through pipes. Each counts when it had it.
fn tree(board: &'static Board, count: usize) -> ! {
    let pipes: Vec<_> = (0..count).map(|_| std::io::pipe().unwrap()).collect();
    let mut number = 0;
    let mut child = 1;
    while child <= 2 && number * 2 + child < count {
        // SAFETY: this process has one thread.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                number = number * 2 + child;
                child = 1;
            }
            ForkResult::Parent { .. } => child += 1,
        }
    }
    let mut from = &pipes[number].0;
    let mut to = &pipes[(number + 1) % count].1;
    board.ready();
    if number == 0 {
        to.write_all(&[0; 8]).unwrap();
    }
    let mut before = None;
    loop {
        let mut token = [0; 8];
        from.read_exact(&mut token).unwrap();
        let round = u64::from_ne_bytes(token) + u64::from(number == 0);
        if before.is_some_and(|before| before + 1 != round) {
            board.wrong();
        }
        before = Some(round);
        board.count(number);
        to.write_all(&round.to_ne_bytes()).unwrap();
    }
}

/// A process that forks, one that makes threads, one that executes.
fn storm(board: &'static Board) -> ! {
    for number in 0..2 {
        // SAFETY: this process has one thread.
        if matches!(unsafe { fork() }.unwrap(), ForkResult::Child) {
            board.ready();
            loop {
                // SAFETY: the child only ends, or waits for a child of its own that only ends.
                if number == 0 && matches!(unsafe { fork() }.unwrap(), ForkResult::Child) {
                    // SAFETY: it ends at once.
                    unsafe { libc::_exit(0) };
                }
                if number == 0 {
                    waitpid(None, None).unwrap();
                } else {
                    thread::spawn(nap).join().unwrap();
                }
                board.count(number);
            }
        }
    }
    board.ready();
    loop {
        let status = Command::new("/proc/self/exe").args(["target", "ends", "-", "0"]).status();
        if !status.is_ok_and(|status| status.success()) {
            board.wrong();
        }
        board.count(2);
    }
}

/// Threads that wait in the kernel, and say when a wait ends that should not.
fn sleepers(board: &'static Board) -> ! {
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::empty()).unwrap();
    let epoll = epoll.into_raw_fd();
    for number in 1..5 {
        thread::spawn(move || {
            board.ready();
            sleep_in(number, epoll);
            board.wrong();
        });
    }
    work(board, 0, Pace::Nap)
}

/// The result of the call, if it ever comes back.
fn sleep_in(number: usize, epoll: RawFd) -> i32 {
    let hour = libc::timespec { tv_sec: 3600, tv_nsec: 0 };
    match number {
        // SAFETY: a valid time, and nowhere to write what remains.
        1 => unsafe { libc::nanosleep(&raw const hour, std::ptr::null_mut()) },
        2 => {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            // SAFETY: room for one event.
            unsafe { libc::epoll_wait(epoll, &raw mut event, 1, -1) }
        }
        3 => {
            let (mut reader, writer) = std::io::pipe().unwrap();
            reader.read_exact(&mut [0]).ok();
            drop(writer);
            0
        }
        _ => {
            let mut set = nix::sys::signal::SigSet::empty();
            set.add(nix::sys::signal::Signal::SIGUSR2);
            set.thread_block().unwrap();
            // SAFETY: a valid set, no place for what came, and no time.
            unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), std::ptr::null()) }
        }
    }
}

/// Waits for a child that shares its memory and stands before its exec, where it opens a pipe with a name.
fn vfork(board: &'static Board) -> ! {
    let fifo = std::env::temp_dir().join(format!("fifo-{}", std::process::id()));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    let fifo = std::ffi::CString::new(fifo.into_os_string().into_encoded_bytes()).unwrap();
    board.ready();
    let mut actions = std::mem::MaybeUninit::uninit();
    // SAFETY: room for the list.
    unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) };
    // SAFETY: the list was made, the path ends with a zero.
    unsafe { libc::posix_spawn_file_actions_addopen(actions.as_mut_ptr(), 0, fifo.as_ptr(), libc::O_RDONLY, 0) };
    let words = [c"/proc/self/exe", c"target", c"ends", c"-", c"0"].map(|word| word.as_ptr().cast_mut());
    let all = [words[0], words[1], words[2], words[3], words[4], std::ptr::null_mut()];
    let environment = [std::ptr::null_mut()];
    let mut pid = 0;
    // SAFETY: the list was made, both arrays end with a null.
    let result = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            words[0],
            actions.as_ptr(),
            std::ptr::null(),
            all.as_ptr(),
            environment.as_ptr(),
        )
    };
    if result != 0 || waitpid(nix::unistd::Pid::from_raw(pid), None).is_err() {
        board.wrong();
    }
    work(board, 0, Pace::Nap)
}

/// How many pages the target `memory` has filled.
pub(crate) const PAGES: usize = 4096;

/// What page number `page` is filled with.
pub(crate) fn filling(page: usize) -> u8 {
    u8::try_from(page % 251).unwrap()
}

/// Fills memory, tells where it is in slot 1, and works.
fn memory(board: &'static Board) -> ! {
    let mut bytes = vec![0_u8; (PAGES + 1) * 4096];
    let skip = bytes.as_ptr().align_offset(4096);
    for (page, chunk) in bytes[skip..].chunks_exact_mut(4096).take(PAGES).enumerate() {
        chunk.fill(filling(page));
    }
    let at = bytes[skip..].as_ptr().expose_provenance();
    board.put(1, at as u64);
    Box::leak(bytes.into_boxed_slice());
    work(board, 0, Pace::Nap)
}
