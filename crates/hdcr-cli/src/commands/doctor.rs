//! `hdcr doctor`: what this machine, kernel and user can do, feature by feature, and what follows.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hdcr_kmod::Presence;
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use super::Surrounding;
use crate::failure::{Class, Result};
use crate::namespace;
use crate::output::Report;
use crate::parts;
use crate::table::Table;

/// How a feature stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Good,
    /// Something works less well.
    Limited,
    /// Something does not work at all.
    Missing,
}

/// A feature.
#[derive(Debug, Serialize)]
struct Finding {
    feature: &'static str,
    state: State,
    found: String,
    /// What follows when it is not good.
    #[serde(skip_serializing_if = "Option::is_none")]
    follows: Option<String>,
}

#[derive(Debug, Serialize)]
struct Examined {
    findings: Vec<Finding>,
}

impl Report for Examined {
    fn text(&self) -> String {
        let row = |finding: &Finding| {
            let state = match finding.state {
                State::Good => "ok",
                State::Limited => "limited",
                State::Missing => "MISSING",
            };
            vec![state.to_owned(), finding.feature.to_owned(), finding.found.clone()]
        };
        let rows: Vec<Vec<String>> = self.findings.iter().map(row).collect();
        let mut lines = vec![Table::new(&["STATE", "FEATURE", "FOUND"], rows).text(None)];
        let bad = self.findings.iter().filter_map(|finding| Some((finding.feature, finding.follows.as_ref()?)));
        lines.extend(bad.map(|(feature, follows)| format!("{feature}: {follows}")));
        lines.join("\n")
    }
}

fn finding(feature: &'static str, state: State, found: impl Into<String>, follows: &str) -> Finding {
    let follows = (state != State::Good).then(|| follows.to_owned());
    Finding { feature, state, found: found.into(), follows }
}

fn either(good: bool, bad: State) -> State {
    if good { State::Good } else { bad }
}

fn yes(good: bool) -> &'static str {
    if good { "yes" } else { "no" }
}

/// Exit status 0 when all that HDCR cannot do without is there.
pub(crate) fn run(at: &Surrounding<'_>) -> Result<u8> {
    let mut findings = vec![machine(), kernel(), user(at)];
    findings.extend(tracing_rights());
    findings.extend(pids());
    findings.extend(mechanism());
    findings.push(module(parts::module()));
    findings.extend(places(at));
    let missing = findings.iter().any(|finding| finding.state == State::Missing);
    at.output.result(&Examined { findings })?;
    Ok(if missing { Class::Refused.status() } else { 0 })
}

fn machine() -> Finding {
    let arch = std::env::consts::ARCH;
    finding("architecture", either(arch == "x86_64", State::Missing), arch, "only x86_64 is supported so far")
}

fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    finding(
        "kernel",
        either(version >= (5, 13), State::Missing),
        release,
        "Linux 5.13 or newer is needed; 6.1 and newer are tested",
    )
}

fn user(at: &Surrounding<'_>) -> Finding {
    let root = at.settings.surroundings.root;
    let found = if root { "root".to_owned() } else { format!("uid {}", at.settings.surroundings.uid) };
    let follows =
        "an ordinary user handles own programs only, and runs and restores them in a private user and pid namespace";
    finding("user", either(root, State::Limited), found, follows)
}

fn tracing_rights() -> Vec<Finding> {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let has = |capability| effective.contains(capability);
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
    let yama = yama.as_deref().map_or("none", str::trim).to_owned();
    let open = matches!(yama.as_str(), "none" | "0") || (yama != "3" && has(CapabilitySet::SYS_PTRACE));
    let filtered = fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .any(|line| line.starts_with("Seccomp:") && !line.ends_with('0'));
    let resource = has(CapabilitySet::SYS_RESOURCE);
    let watch = parts::can_watch();
    vec![
        finding(
            "tracing",
            either(open, if yama == "3" { State::Missing } else { State::Limited }),
            format!("yama scope {yama}"),
            "only programs started by `hdcr run` can be checkpointed; `sysctl kernel.yama.ptrace_scope=0`, or root, lifts that (not from 3)",
        ),
        finding(
            "seccomp filter on hdcr",
            either(!filtered, State::Limited),
            yes(filtered),
            "a container's filter may forbid ptrace or namespaces; give it more rights",
        ),
        finding(
            "raise limits",
            either(resource, State::Limited),
            yes(resource),
            "without CAP_SYS_RESOURCE a hard limit above that of the restoring user is refused",
        ),
        finding(
            "watch changed files",
            either(watch, State::Limited),
            yes(watch),
            "fanotify takes CAP_SYS_ADMIN; without it only open files and those of --files are rolled back",
        ),
    ]
}

fn pids() -> Vec<Finding> {
    let choose = namespace::may_choose_pids();
    let probe = Command::new("/proc/self/exe")
        .arg("__probe")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let private = probe.is_ok_and(|status| status.success());
    let follows = if choose {
        "restore --new-pids does not work, so a pid in use stands in the way of a restore"
    } else {
        "nothing can be restored by this user: allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
         kernel.apparmor_restrict_unprivileged_userns=0), or grant CAP_CHECKPOINT_RESTORE"
    };
    let none = if choose { State::Limited } else { State::Missing };
    vec![
        finding(
            "choose pids",
            either(choose, State::Limited),
            yes(choose),
            "run and restore use a private pid namespace for this user",
        ),
        finding("private pid namespace", either(private, none), yes(private), follows),
    ]
}

fn mechanism() -> Vec<Finding> {
    let found = parts::capabilities();
    let timers = fs::File::open("/proc/timer_list").is_ok();
    vec![
        finding(
            "rseq",
            either(found.rseq_configuration, State::Limited),
            yes(found.rseq_configuration),
            "programs with restartable sequences (glibc 2.35 and newer) are refused",
        ),
        finding(
            "suspend seccomp",
            either(found.suspend_seccomp, State::Limited),
            yes(found.suspend_seccomp),
            "programs under a seccomp filter are refused",
        ),
        finding(
            "duplicate descriptors",
            either(found.duplicate_descriptors, State::Missing),
            yes(found.duplicate_descriptors),
            "pidfd_getfd(2) is needed: Linux 5.6, and no filter against it",
        ),
        finding(
            "remaining time of calls",
            either(timers, State::Limited),
            yes(timers),
            "/proc/timer_list cannot be read: an interrupted sleep or poll begins its time anew",
        ),
    ]
}

/// The kernel module, which nothing but `--mechanism kernel` needs.
fn module(presence: Presence) -> Finding {
    const LOAD: &str = "checkpoints are made by ptrace alone; docs/kernel.md tells how the module is built and loaded";
    let (state, found, follows) = match presence {
        Presence::Ready(features) => {
            let lacking = hdcr_kmod::lacking(features);
            let found = if lacking.is_empty() {
                format!("version {}", hdcr_abi::VERSION)
            } else {
                format!("version {}, without {}", hdcr_abi::VERSION, lacking.join(", "))
            };
            (either(lacking.is_empty(), State::Limited), found, "what it looks up in this kernel was not found")
        }
        Presence::Absent => (State::Limited, "not loaded".to_owned(), LOAD),
        Presence::Closed => {
            let found = "loaded, but not for this user".to_owned();
            (State::Limited, found, "run hdcr as root, or as a member of the group of /dev/hdcr")
        }
        Presence::Misfit => {
            let found = format!("of another version than {}", hdcr_abi::VERSION);
            (State::Limited, found, "load the module that belongs to this hdcr; until then ptrace is used")
        }
        Presence::Odd(error) => {
            (State::Limited, crate::failure::chain(&error), "ptrace is used; look at `dmesg` for what the module says")
        }
    };
    finding("kernel module", state, found, follows)
}

fn places(at: &Surrounding<'_>) -> Vec<Finding> {
    let store = &at.settings.store;
    let space = nearest(store)
        .and_then(|path| rustix::fs::statvfs(path).ok())
        .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let writable = nearest(store).is_some_and(|path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok());
    let free = space.map_or_else(|| "?".to_owned(), crate::duration::show_size);
    let registry = at.registry();
    let jobs = at.settings.surroundings.jobs();
    vec![
        finding(
            "store",
            either(writable, State::Missing),
            format!("{}, {free} free", store.display()),
            "it cannot be written: name another one with --store",
        ),
        finding(
            "running jobs",
            either(registry.is_ok(), State::Missing),
            jobs.display().to_string(),
            "the directory cannot be used, so `hdcr run` does not work",
        ),
    ]
}

/// The path, or the nearest one above it that exists.
fn nearest(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

/// The hidden `__probe`: whether a private pid namespace can be made; harms nothing.
pub(crate) fn probe(at: &Surrounding<'_>) -> Result<u8> {
    if at.inside.is_some() {
        return Ok(0);
    }
    namespace::outside(std::iter::once("__probe".into()), &mut |_| Ok(namespace::Outside::Waits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_told_of_and_never_needed() {
        assert_eq!(module(Presence::Ready(u64::MAX)).state, State::Good);
        for presence in [Presence::Absent, Presence::Closed, Presence::Misfit, Presence::Ready(0)] {
            let told = module(presence);
            assert!(told.state == State::Limited && told.follows.is_some());
        }
    }

    #[test]
    fn what_is_good_has_no_consequence() {
        let told = |state| serde_json::to_string(&finding("store", state, "/s", "it cannot be written")).unwrap();
        assert!(!told(State::Good).contains("cannot"));
        assert!(told(State::Missing).contains("\"follows\":\"it cannot be written\""));
    }
}
