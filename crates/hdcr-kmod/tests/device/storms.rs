//! Programs that make tasks all the time.

use hdcr_abi::scope;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Test;
use crate::access::{freeze, session};
use crate::board::Target;

pub(crate) const TESTS: [Test; 2] = [("storms/forks_threads_and_execs", storm), ("storms/killed_while_frozen", killed)];

fn storm() {
    let target = Target::start("storm", 3);
    let mut session = session();
    let mut most = 0;
    for _ in 0..60 {
        let held = freeze(&mut session, scope::TREE, target.id());
        most = most.max(held.rounds);
        assert!(held.processes >= 3, "{held:?}");
        let before = session.tasks().unwrap();
        target.stands_still(|| ());
        assert_eq!(session.tasks().unwrap(), before);
        session.thaw().unwrap();
    }
    assert!(most >= 2);
    target.goes_on();
}

/// Members that are killed while they are frozen end, and are told as dead.
fn killed() {
    for _ in 0..10 {
        let mut target = Target::start("threads", 8);
        let mut session = session();
        freeze(&mut session, scope::TREE, target.id());
        kill(Pid::from_raw(target.pid()), Signal::SIGKILL).unwrap();
        let status = target.end();
        assert!(!status.success());
        let rows = session.tasks().unwrap();
        assert!(rows.iter().all(|row| row.stand == hdcr_abi::stand::DEAD), "{rows:?}");
        session.thaw().unwrap();
    }
}
