//! Namespaces of tasks: who is in another one than HDCR, or would start something there, stands in the way.

use std::fs;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::TaskView;
use crate::ids::{Pid, Tid};
use crate::procfs;
use crate::survey::Survey;

/// The links of `/proc/PID/ns`, without those of time.
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "user", "uts"];
/// The links of `/proc/PID/ns` that lead to clocks.
const CLOCKS: [&str; 2] = ["time", "time_for_children"];

/// Those of them that all threads of a process have in common. A thread cannot be made into another user or pid namespace
/// (`copy_process`), a process enters another user namespace only while it has a single thread (`ksys_unshare`,
/// `userns_install`), it never leaves its own pid namespace, and its clocks change only while it has a single thread
/// (`timens_install`) or by a fork without `CLONE_VM` (`copy_namespaces`). Any thread may have the others to itself, by
/// unshare(2).
const OF_PROCESS: [&str; 3] = ["pid", "user", "time"];

/// Links of `ns`, by name.
type Named = Vec<(&'static str, Vec<u8>)>;

/// The links of a task's `ns`.
#[derive(Clone, Default, Debug)]
pub(crate) struct Links {
    own: Named,
    /// Those of its process.
    common: Arc<Named>,
}

impl Links {
    /// Reads those that a thread may have to itself, each once: with hundreds of threads they are a good part of the look
    /// under the freeze.
    pub(crate) fn of_thread(pid: Pid, tid: Tid) -> Self {
        let names = NAMESPACES.into_iter().chain(CLOCKS);
        Self { own: read(pid, tid, names.filter(|name| !OF_PROCESS.contains(name))), common: Arc::default() }
    }

    /// Reads those that all threads of a process have in common, by any of them.
    pub(crate) fn of_process(pid: Pid, tid: Tid) -> Arc<Named> {
        Arc::new(read(pid, tid, OF_PROCESS.into_iter()))
    }

    /// With what its process has.
    pub(crate) fn with(self, common: Arc<Named>) -> Self {
        Self { common, ..self }
    }

    fn get(&self, name: &str) -> Option<&Vec<u8>> {
        self.own.iter().chain(self.common.iter()).find(|(known, _)| *known == name).map(|(_, link)| link)
    }
}

/// Reads links by a descriptor of their directory.
fn read(pid: Pid, tid: Tid, names: impl Iterator<Item = &'static str>) -> Named {
    let path = format!("/proc/{pid}/task/{tid}/ns");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(path, flags, Mode::empty()) else { return Vec::new() };
    let link = |name| Some((name, rustix::fs::readlinkat(&directory, name, Vec::new()).ok()?.into_bytes()));
    names.filter_map(link).collect()
}

/// What each thread may have; the whole tree is in ours.
pub(super) fn survey(survey: &mut Survey<'_>, task: &TaskView) {
    namespaces(survey, task);
    clocks(survey, task);
    children_to_come(survey, task);
}

fn namespaces(survey: &mut Survey<'_>, task: &TaskView) {
    for name in NAMESPACES {
        let own = survey.own.namespaces.entry(name).or_insert_with(|| {
            let own = fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
            Some(std::os::unix::ffi::OsStringExt::into_vec(own.into_os_string()))
        });
        let Some(theirs) = task.namespaces.get(name).filter(|theirs| Some(*theirs) != own.as_ref()) else { continue };
        let parents = procfs::link(task.stat.ppid, &format!("ns/{name}")).ok();
        let inherited = survey.pids.contains(&task.stat.ppid) && task.leads() && parents.as_ref() == Some(theirs);
        // Of a whole tree in another namespace its root alone is named.
        if inherited {
            continue;
        }
        let cause = format!("it is in another {name} namespace than hdcr");
        let remedy = "run hdcr in the same namespaces (nsenter), or the program without its own";
        survey.refuse(task.refuse("namespace", "namespace", &cause, remedy));
    }
}

/// The tree may have clocks of its own (a restore after a reboot gives it such), but all of it the same ones, and so its
/// children to come.
fn clocks(survey: &mut Survey<'_>, task: &TaskView) {
    let Some(theirs) = task.namespaces.get("time") else { return };
    let first = survey.first;
    if survey.common.clock.is_none() {
        let link = |root| if root == task.pid { Some(theirs.clone()) } else { procfs::link(root, "ns/time").ok() };
        survey.common.clock = first.and_then(link);
    }
    let of_root = survey.common.clock.as_ref();
    let differs =
        [task.namespaces.get("time_for_children"), of_root].into_iter().flatten().any(|other| other != theirs);
    if differs {
        let cause = "it, or what it starts next, is in another time namespace than the rest of the program";
        let remedy = "run the whole program in one time namespace";
        survey.refuse(task.refuse("namespace", "namespace", cause, remedy));
    }
}

/// After `unshare(CLONE_NEWPID)` a task stays where it is, and its next child begins a pid namespace: until then its link
/// cannot be read at all.
fn children_to_come(survey: &mut Survey<'_>, task: &TaskView) {
    let Some(theirs) = task.namespaces.get("pid") else { return };
    if task.namespaces.get("pid_for_children") != Some(theirs) && is_there(task.pid, task.tid) {
        let cause = "what it starts next is in another pid namespace";
        let remedy = "run the program without namespaces of its own";
        survey.refuse(task.refuse("namespace", "namespace", cause, remedy));
    }
}

/// Whether a task has not given up its namespaces. One that ends has no `pid_for_children` either, and keeps `pid` until it is
/// waited for (kernel/exit.c `do_exit`, fs/proc/namespaces.c).
fn is_there(pid: Pid, tid: Tid) -> bool {
    !read(pid, tid, ["uts"].into_iter()).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_ended_starts_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid(child.id().cast_signed());
        let waited = rustix::process::Pid::from_raw(pid.0).unwrap();
        let exited = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(waited), exited).unwrap();
        let has = |name| !read(pid, pid.leader(), [name].into_iter()).is_empty();
        assert!(has("pid") && !has("pid_for_children"));
        assert!(!is_there(pid, pid.leader()));
        child.wait().unwrap();
        let own = Pid(std::process::id().cast_signed());
        assert!(is_there(own, own.leader()));
    }
}
