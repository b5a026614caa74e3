//! What becomes of frozen programs when the one who froze them dies, and when he kills them.
#![expect(unsafe_code, reason = "callers that are killed")]

use std::os::unix::process::ExitStatusExt;

use hdcr_abi::scope;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use crate::Test;
use crate::access::{freeze, session};
use crate::board::{Target, nap, until};

pub(crate) const TESTS: [Test; 4] = [
    ("callers/killed_while_it_is_frozen", || killed(false)),
    ("callers/killed_while_others_hold_the_descriptor", || killed(true)),
    ("callers/killed_at_any_moment", killed_at_any_moment),
    ("callers/kill", kills),
];

/// A caller that does something and then waits for its death.
fn caller(body: impl FnOnce()) -> Pid {
    // SAFETY: the child does what `body` does, then waits for its death; other threads of this process only wait.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            body();
            loop {
                nix::unistd::pause();
            }
        }
        ForkResult::Parent { child } => child,
    }
}

fn killed(has_heir: bool) {
    let target = Target::start("tree", 6);
    for _ in 0..5 {
        let (mut told, mut tells) = std::io::pipe().unwrap();
        let pid = caller(|| {
            let mut session = session();
            freeze(&mut session, scope::TREE, target.id());
            let heir = has_heir.then(|| caller(|| ())).map_or(0, Pid::as_raw);
            std::io::Write::write_all(&mut tells, &heir.to_ne_bytes()).unwrap();
            Box::leak(Box::new(session));
        });
        let mut heir = [0; 4];
        std::io::Read::read_exact(&mut told, &mut heir).unwrap();
        target.stands_still(|| ());
        kill(pid, Signal::SIGKILL).unwrap();
        waitpid(pid, None).unwrap();
        target.goes_on();
        if has_heir {
            kill(Pid::from_raw(i32::from_ne_bytes(heir)), Signal::SIGKILL).unwrap();
        }
    }
}

/// A caller that freezes, reads and lets go all the time.
fn killed_at_any_moment() {
    let threads = Target::start("threads", 8);
    let memory = Target::start("memory", 1);
    for round in 0..60_u32 {
        let pid = caller(|| {
            let mut session = session();
            let path = std::env::temp_dir().join("copied");
            let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
            loop {
                freeze(&mut session, scope::TREE, threads.id());
                session.tasks().unwrap();
                session.thaw().unwrap();
                freeze(&mut session, scope::TREE, memory.id());
                let all = hdcr_abi::Range { start: memory.board.get(1), length: 1024 * 4096 };
                session.pages(memory.pid(), &[all], std::os::fd::AsFd::as_fd(&file), 0).unwrap();
                session.thaw().unwrap();
            }
        });
        for _ in 0..round % 20 {
            nap();
        }
        kill(pid, Signal::SIGKILL).unwrap();
        waitpid(pid, None).unwrap();
        threads.goes_on();
        until("the memory is worked on", {
            let before = memory.board.get(0);
            let memory = &memory;
            move || memory.board.get(0) > before + 1
        });
        memory.is_right();
    }
}

fn kills() {
    for kind in ["threads", "tree", "spinners"] {
        let mut target = Target::start(kind, 5);
        let mut session = session();
        freeze(&mut session, scope::TREE, target.id());
        let before = target.counts();
        session.kill().unwrap();
        assert_eq!(target.end().signal(), Some(libc::SIGKILL));
        assert_eq!(target.counts(), before, "{kind}");
        assert!(session.kill().is_err());
    }
}
