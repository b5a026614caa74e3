//! The ways to say which tasks are meant.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hdcr_abi::scope;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::Test;
use crate::access::{freeze, in_child, session};
use crate::board::{Target, until};

pub(crate) const TESTS: [Test; 5] = [
    ("scopes/process_alone", process_alone),
    ("scopes/session_and_group", session_and_group),
    ("scopes/orphans_of_a_session", orphans_of_a_session),
    ("scopes/below_the_caller", below_the_caller),
    ("scopes/cgroup", cgroup),
];

/// The members of what was frozen.
fn members(kind: u32, id: u64) -> Vec<i32> {
    let mut session = session();
    freeze(&mut session, kind, id);
    session.tasks().unwrap().iter().map(|row| row.tid).collect()
}

fn process_alone() {
    let target = Target::start("tree", 7);
    assert_eq!(members(scope::PROCESS, target.id()), [target.pid()]);
    target.goes_on();
}

fn session_and_group() {
    let target = Target::start("tree", 7);
    let all = members(scope::TREE, target.id());
    assert_eq!(all.len(), 7);
    assert_eq!(members(scope::SESSION, target.id()), all);
    assert_eq!(members(scope::GROUP, target.id()), all);
    let child = u64::try_from(all[1]).unwrap();
    assert!(members(scope::TREE, child).len() < 7);
    target.goes_on();
}

fn orphans_of_a_session() {
    let target = Target::start("tree", 7);
    let all = members(scope::TREE, target.id());
    // A child with children of its own.
    let parent = |tid: i32| {
        let text = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap();
        text.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse::<i32>().unwrap()
    };
    let middle = all.iter().map(|tid| parent(*tid)).find(|tid| *tid != target.pid() && all.contains(tid)).unwrap();
    let orphans: Vec<i32> = all.iter().copied().filter(|tid| parent(*tid) == middle).collect();
    nix::sys::signal::kill(Pid::from_raw(middle), Signal::SIGKILL).unwrap();
    until("its children are orphans", || orphans.iter().all(|tid| parent(*tid) != middle));
    let found = members(scope::TREE, target.id());
    assert!(orphans.iter().all(|orphan| found.contains(orphan)), "{orphans:?} {found:?}");
    // The dead one is a zombie, as its parent does not wait for it.
    assert!(found.contains(&middle));
}

fn below_the_caller() {
    assert!(in_child(|| {
        let targets = [Target::start("threads", 2), Target::start("tree", 3)];
        let me = u64::from(std::process::id());
        let found = members(scope::BELOW, me);
        let expected = found.contains(&targets[0].pid()) && found.contains(&targets[1].pid()) && found.len() == 5;
        targets.iter().for_each(Target::goes_on);
        expected && !found.contains(&i32::try_from(me).unwrap())
    }));
}

fn cgroup() {
    let root = Path::new("/sys/fs/cgroup");
    if !root.join("cgroup.procs").exists() {
        mount(Some("none"), root, Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
    }
    let outer = root.join(format!("hdcr-{}", std::process::id()));
    let inner = outer.join("inner");
    fs::create_dir_all(&inner).unwrap();
    let (first, second) = (Target::start("threads", 2), Target::start("threads", 3));
    let outsider = Target::start("threads", 1);
    fs::write(outer.join("cgroup.procs"), first.pid().to_string()).unwrap();
    fs::write(inner.join("cgroup.procs"), second.pid().to_string()).unwrap();
    let id = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(members(scope::CGROUP, id(&outer)).len(), 5);
    assert_eq!(members(scope::CGROUP, id(&inner)).len(), 3);
    let mut session = session();
    freeze(&mut session, scope::CGROUP, id(&outer));
    first.stands_still(|| second.stands_still(|| outsider.goes_on()));
    drop(session);
    first.goes_on();
    second.goes_on();
    drop((first, second));
    for folder in [&inner, &outer] {
        until("the cgroup is empty", || fs::remove_dir(folder).is_ok());
    }
}
