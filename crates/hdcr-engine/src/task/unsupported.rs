//! What hangs on a task, cannot be put back, and therefore stands in the way: looked for while the program runs.
//!
//! Not to be seen from outside at all: landlock(7) domains and I/O port permissions (`docs/resources.md`).

use std::fs;
use std::path::Path;

use hdcr_sys::kcmp::{self, Kind};

use super::{TaskView, execmem, namespaces};
use crate::error::{Error, Owner, Refusal};
use crate::ids::Pid;
use crate::procfs;
use crate::resource::directory;
use crate::semaphores;
use crate::survey::Survey;

/// Attributes of a security module that a thread set for what it makes later.
const MODULE_ATTRIBUTES: [&str; 4] = ["exec", "fscreate", "keycreate", "sockcreate"];

/// What each thread may have.
pub(super) fn of_thread(survey: &mut Survey<'_>, task: &TaskView) {
    let tracer = task.status.number("TracerPid").unwrap_or(0);
    // Looked at under the freeze, a thread of this process may be the tracer.
    let own = |tracer: u64| Path::new(&format!("/proc/self/task/{tracer}")).exists();
    let traced_by_us = *survey.common.tracers.entry(tracer).or_insert_with(|| own(tracer));
    for refusal in from_status(task, traced_by_us || survey.request.unseen) {
        survey.refuse(refusal);
    }
    if survey.request.unseen && tracer != 0 {
        let cause =
            format!("process {tracer} traces it; the restored program has no tracer, and the breakpoints of that one");
        survey.note(task.refuse("tracer-left", "task", &cause, "remove breakpoints before the checkpoint"));
    }
    namespaces::survey(survey, task);
    core_cookie(survey, task);
}

/// What a process may have.
pub(super) fn of_process(survey: &mut Survey<'_>, task: &TaskView) {
    if is_32_bit(task.pid) {
        let cause = "its program is not a 64-bit one";
        survey.refuse(task.refuse("task-32-bit", "process", cause, "run a 64-bit build of the program"));
    }
    leader(survey, task);
    directories(survey, task);
    labels(survey, task);
    undo(survey, task);
    landlock(survey, task);
    cgroup(survey, task);
    frozen(survey, task);
}

/// What `status` tells.
fn from_status(task: &TaskView, traced_by_us: bool) -> Vec<Refusal> {
    let mut found = Vec::new();
    let status = &task.status;
    if status.number("Seccomp").unwrap_or(0) != 0 {
        let cause = "its system calls are filtered, and a filter would see those of the checkpoint too";
        let remedy = "run the program without a sandbox (docker: --security-opt seccomp=unconfined)";
        found.push(task.refuse("seccomp-filter", "seccomp", cause, remedy));
    }
    if let Some(tracer) = status.number("TracerPid").filter(|tracer| *tracer != 0 && !traced_by_us) {
        let cause = format!("process {tracer} traces it, and a task has one tracer only");
        let mut refusal = task.refuse("task-traced", "task", &cause, "detach the debugger (or strace) first");
        refusal.owner.tracer = i32::try_from(tracer).ok().map(Pid);
        found.push(refusal);
    }
    if status.get("x86_Thread_features").is_some_and(|features| !features.is_empty()) {
        let cause = "it runs with a shadow stack, which cannot be made again from outside";
        found.push(task.refuse("shadow-stack", "task", cause, "run the program with shadow stacks off"));
    }
    let mask = status.get("untag_mask").and_then(|mask| u64::from_str_radix(mask.trim_start_matches("0x"), 16).ok());
    if mask.is_some_and(|mask| mask != u64::MAX) {
        let cause = "it uses tagged addresses, which are not supported yet";
        found.push(task.refuse("tagged-addresses", "address space", cause, "run the program without them"));
    }
    found
}

/// A core scheduling cookie is a random number: another one would say something else.
fn core_cookie(survey: &mut Survey<'_>, task: &TaskView) {
    if hdcr_sys::task_attribute::has_core_cookie(task.tid.0) {
        let cause = "whom it may share a processor core with cannot be put back";
        let remedy = "run it without core scheduling";
        survey.refuse(task.refuse("core-scheduling", "core scheduling cookie", cause, remedy));
    }
}

/// Whether a process's program is an ELF file that is not of class 64.
fn is_32_bit(pid: Pid) -> bool {
    use std::io::Read;
    let mut head = [0; 5];
    let read = fs::File::open(procfs::path(pid, "exe")).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head.starts_with(b"\x7fELF") && head.last() != Some(&2)
}

/// A current or root directory that belongs to a process: it is not there yet when the restored one needs it.
fn directories(survey: &mut Survey<'_>, task: &TaskView) {
    for name in ["cwd", "root"] {
        let link = match procfs::link(task.pid, name) {
            Ok(link) => link,
            // Its path cannot be told.
            Err(Error::Refused(refusals)) => {
                refusals.0.into_iter().for_each(|refusal| survey.refuse(refusal));
                continue;
            }
            // A process that ends meanwhile has none.
            Err(_) => continue,
        };
        let of_process = link.strip_prefix(b"/proc/").is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit));
        if of_process {
            let cause = format!("its {name} is {}", String::from_utf8_lossy(&link));
            let remedy = "let it change to another directory before the checkpoint";
            survey.refuse(task.refuse("proc-directory", "directory of /proc", &cause, remedy));
        } else {
            directory::survey_link(survey, task.pid, (name, &link));
        }
    }
}

/// Descriptors of a process whose leader has ended are reached by a thread, which takes `PIDFD_THREAD` (Linux 6.9).
fn leader(survey: &mut Survey<'_>, task: &TaskView) {
    let ended = task.tid != task.pid.leader();
    let Some(tid) = rustix::process::Pid::from_raw(task.tid.0).filter(|_| ended) else { return };
    if rustix::process::pidfd_open(tid, procfs::pidfd_thread()).is_err_and(|errno| errno == rustix::io::Errno::INVAL) {
        let cause = "its first thread has ended before the others, and this kernel (before 6.9) leads to none of them";
        let remedy = "let the first thread wait for the others (pthread_join) instead of ending";
        survey.refuse(task.refuse("dead-leader", "process", cause, remedy));
    }
}

/// Labels of a security module: `SELinux`, `AppArmor`, Smack.
fn labels(survey: &mut Survey<'_>, task: &TaskView) {
    let label = |file: &str| procfs::at_once(file).ok().filter(|label| !label.is_empty());
    let theirs = label(&format!("/proc/{}/attr/current", task.tid));
    survey.shown.texts.keep(task.pid, "attr/current", theirs.clone().unwrap_or_default());
    let Some(theirs) = theirs else { return };
    if label("/proc/self/attr/current").is_some_and(|own| own != theirs) {
        let text = String::from_utf8_lossy(&theirs).trim_end_matches(['\0', '\n']).to_owned();
        let cause = format!("its label is {text}; the restored program has that of the restoring command");
        survey.note(task.refuse("security-label", "security module", &cause, "restore under the same label"));
    }
    if execmem::forbidden(&theirs) {
        let cause =
            "its policy forbids it executable memory of its own (execmem), from which a checkpoint makes its calls";
        let remedy = "allow it to the program's domain, or run the program in another one (runcon)";
        survey.refuse(task.refuse("executable-memory", "security module", cause, remedy));
    }
    for name in MODULE_ATTRIBUTES {
        if label(&format!("/proc/{}/attr/{name}", task.tid)).is_some() {
            let cause = format!("it has set a label for what it makes later (attr/{name})");
            survey.refuse(task.refuse("security-attribute", "security module", &cause, "let it clear the label first"));
        }
    }
}

/// Adjustments of System V semaphores that its end would make (`SEM_UNDO`). Only whether there is a list of them shows, by
/// comparison with this thread, which has none; where no semaphore exists it does not matter.
fn undo(survey: &mut Survey<'_>, task: &TaskView) {
    let sets = *survey.common.sets.get_or_insert_with(semaphores::count);
    let own = nix::unistd::gettid().as_raw();
    // Each thread that is started gives its starter a list; ours is given up.
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_SYSVSEM).is_err() {
        return;
    }
    // A task that cannot be compared has ended meanwhile.
    if sets == 0 || !kcmp::kcmp(own, task.tid.0, Kind::SysvSem).is_ok_and(std::cmp::Ordering::is_ne) {
        return;
    }
    // Every process that ever had a thread has the list, and keeps it over an exec: mostly an empty one.
    let cause = "whether it has System V semaphores adjusted at its end (SEM_UNDO) is not to be seen";
    survey.note(task.refuse("sem-undo-unknown", "semaphore adjustments", cause, "know that they would be lost"));
}

/// Nothing shows a Landlock domain, but only a task that has given up new privileges may enter one (or one that has
/// `CAP_SYS_ADMIN`, and then hardly does).
fn landlock(survey: &mut Survey<'_>, task: &TaskView) {
    if task.status.number("NoNewPrivs") == Some(1) {
        let cause = "whether it has restricted itself by landlock(7) is not to be seen";
        let remedy = "know that the restored program would run without that restriction";
        survey.note(task.refuse("landlock-unknown", "sandbox", cause, remedy));
    }
}

/// The control groups of a root of the tree, when they are not those of hdcr.
fn cgroup(survey: &mut Survey<'_>, task: &TaskView) {
    let groups = |who: &str| procfs::at_once(&format!("/proc/{who}/cgroup")).ok();
    let Some(theirs) = groups(&task.tid.to_string()) else { return };
    let is_root = !survey.pids.contains(&task.stat.ppid);
    let differs = is_root && *survey.own.groups.get_or_insert_with(|| groups("self").unwrap_or_default()) != theirs;
    survey.shown.texts.keep(task.pid, "cgroup", theirs);
    if differs {
        survey.note(Refusal {
            code: "cgroup-restorers",
            object: "control group".to_owned(),
            owner: Owner { pid: Some(task.pid), ..Owner::default() },
            cause: "the restored program belongs to the control group of the restoring command".to_owned(),
            remedy: "start the restore in the control group that it should have (systemd-run)".to_owned(),
        });
    }
}

/// A control group that stands still: a task of it does nothing that it is asked for.
fn frozen(survey: &mut Survey<'_>, task: &TaskView) {
    let read = |path: String| {
        procfs::at_once(&path).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    };
    // Where tasks of frozen groups are seen to be: the older freezer stops them in any sleep, the newer one in a signal.
    let channel = || read(format!("/proc/{}/wchan", task.tid));
    if task.stat.state != b'D' && !["get_signal", "do_freezer_trap"].contains(&channel().as_str()) {
        return;
    }
    let mounts = read("/proc/self/mountinfo".to_owned());
    for (state, group) in freezers(&read(format!("/proc/{}/cgroup", task.tid)), &mounts) {
        let told = read(state);
        if told.lines().any(|line| ["FROZEN", "FREEZING", "frozen 1"].contains(&line)) {
            let cause = format!("its control group {group} is frozen, and it does nothing until that is thawed");
            survey.refuse(task.refuse("cgroup-frozen", "control group", &cause, "thaw the control group first"));
        }
    }
}

/// The files that tell whether the control groups of a task are frozen, with the groups.
fn freezers(groups: &str, mounts: &str) -> Vec<(String, String)> {
    let mount = |is_it: &dyn Fn(&str, &str) -> bool| {
        mounts.lines().find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mut kind = kind.split(' ');
            let (name, options) = (kind.next()?, kind.nth(1)?);
            let mut place = place.split(' ').skip(3);
            is_it(name, options).then_some((place.next()?, place.next()?))
        })
    };
    let file = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let (kinds, group) = rest.split_once(':')?;
        let ((root, at), name) = if number == "0" {
            (mount(&|kind, _| kind == "cgroup2")?, "cgroup.events")
        } else if kinds.split(',').any(|kind| kind == "freezer") {
            let is_freezer = |kind: &str, options: &str| kind == "cgroup" && options.split(',').any(|o| o == "freezer");
            (mount(&is_freezer)?, "freezer.state")
        } else {
            return None;
        };
        let below = group.strip_prefix(root.trim_end_matches('/'))?;
        Some((format!("{at}/{}/{name}", below.trim_matches('/')), group.to_owned()))
    };
    groups.lines().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Tid;
    use crate::procfs::KeyValues;

    fn view(status: &str) -> TaskView {
        let stat = procfs::parse_stat(b"17 (a) S 1 17 17 0 -1 0").unwrap();
        TaskView {
            pid: Pid(17),
            tid: Tid(17),
            speaks: true,
            stat,
            status: KeyValues::parse(status.as_bytes()),
            namespaces: namespaces::Links::default(),
        }
    }

    #[test]
    fn what_status_tells_is_refused_by_name() {
        let codes = |status| from_status(&view(status), false).iter().map(|refusal| refusal.code).collect::<Vec<_>>();
        assert_eq!(
            codes("Seccomp:\t0\nTracerPid:\t0\nuntag_mask:\t0xffffffffffffffff\nx86_Thread_features:\t\n"),
            [""; 0]
        );
        assert_eq!(codes("Seccomp:\t2\nTracerPid:\t9\n"), ["seccomp-filter", "task-traced"]);
        assert_eq!(from_status(&view("TracerPid:\t9\n"), false).pop().unwrap().owner.tracer, Some(Pid(9)));
        assert_eq!(
            codes("untag_mask:\t0x7fff\nx86_Thread_features:\tshstk wrss\n"),
            ["shadow-stack", "tagged-addresses"]
        );
    }

    #[test]
    fn this_process_is_a_64_bit_one() {
        assert!(!is_32_bit(Pid(i32::try_from(std::process::id()).unwrap())));
    }

    #[test]
    fn the_freezers_of_a_task_are_found() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                      31 25 0:27 /box /sys/fs/cgroup/unified rw,nosuid shared:1 - cgroup2 cgroup2 rw\n";
        let groups = "9:name=systemd:/x\n6:freezer:/a/b\n0::/box/c\n";
        let found = freezers(groups, mounts);
        let file = |path: &str, group: &str| (path.to_owned(), group.to_owned());
        assert_eq!(
            found,
            [
                file("/sys/fs/cgroup/freezer/a/b/freezer.state", "/a/b"),
                file("/sys/fs/cgroup/unified/c/cgroup.events", "/box/c")
            ]
        );
        assert!(freezers("0::/elsewhere\n", mounts).is_empty() && freezers(groups, "").is_empty());
    }
}
