//! `hdcr restore`: a program back from a checkpoint, in the foreground or detached.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_policy::restart::Death;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::Pid;
use serde::Serialize;

use super::{Surrounding, beside};
use crate::asking;
use crate::by_hand::{self, JobTurn};
use crate::cli::RestoreArgs;
use crate::duration;
use crate::failure::{Class, Failure, Obstacle, Result};
use crate::foreground::{self, Errand, Outcome};
use crate::job::{self, Record, State, is_held, peek, refuse_elsewhere};
use crate::keeper::remembered;
use crate::kinds::{Lazy, StdioTarget};
use crate::namespace::{self, Outside};
use crate::output::{Report, counted};
use crate::parts;
use crate::process::{self, Change, shell_status};
use crate::settings::{absolute, restore_time};
use crate::signals::Signals;
use crate::task::{Greeting, Place, RestoreTask, Restored};
use crate::told::Since;
use crate::trust;

/// Said when the user asked for a lazy restore and there was none.
const NOT_LAZY: &str = "note: [not-lazy] all memory was put in before the program ran: there was none that could come later, \
     or this user may not follow it (CAP_SYS_PTRACE)";

pub(crate) fn run(at: &Surrounding<'_>, args: &RestoreArgs) -> Result<u8> {
    if args.detach && at.inside.is_none() {
        if at.apart {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
                .map_err(Failure::system("tying the command to the one that started it"))?;
        } else if rustix::process::getpgrp() == rustix::process::getpid() {
            return apart();
        }
    }
    let place = place(at, &args.image)?;
    let journals = journals(at, &place)?;
    if at.inside.is_none() {
        trust::image(&place, at.trusts)?;
    }
    let manifest = parts::manifest(&place)?;
    can_write_pid(args.pidfile.as_deref())?;
    // Until the program is written down.
    let turn = if at.inside.is_none() { refuse_running(at, &place, args)? } else { None };
    beside::refuse(at, args, &place)?;
    if at.inside.is_none() && (args.new_pids || !namespace::may_choose_pids()) {
        return in_namespace(at, args, &place, manifest.facts.processes.len(), turn);
    }
    let signals = Signals::take()?;
    let root = manifest.facts.root_pid;
    let mut written = Ok(());
    tied_to_outside(at, Some(rustix::process::Signal::KILL))?;
    let mut runs = |restored: &Restored| {
        if let Err(failure) = tied_to_outside(at, None) {
            tracing::warn!(%failure, "the program ends with the command that restored it");
        }
        // Whoever kills this command from here on leaves a program that is known.
        if let (Ok(main), None) = (main_of(restored, root), &at.inside) {
            by_hand::runs(&place, main);
            written = write_pid(args.pidfile.as_deref(), main);
        }
    };
    let (restored, filler) = match bring_back(at, args, (&place, &journals), &signals, &mut runs)? {
        Outcome::Interrupted(signal) => return Ok(shell_status(Death::Signal(signal))),
        Outcome::Runs(restored, filler) => (restored, filler),
    };
    written?;
    at.output.notes(&restored.notes);
    if args.lazy == Lazy::Always && !restored.filling {
        at.output.note(NOT_LAZY);
    }
    let main = main_of(&restored, root)?;
    let running = Running::of(main, restored);
    let ended_already = at.inside.as_ref().map(|report| tell_outside(report, main, args.detach)).transpose()?.flatten();
    drop(turn);
    if args.detach && at.inside.is_none() {
        leave_session(main);
        at.output.result_aside(&running);
        return Ok(0);
    }
    at.output.detail(&running.text());
    let accompany = || foreground::accompany(main, &signals, at.output, at.inside.as_ref(), filler);
    let status = shell_status(ended_already.map_or_else(accompany, Ok)?);
    if at.inside.is_none() {
        by_hand::has_ended(&place);
        at.output.object_aside(&Running { status: Some(status), ..running });
    }
    Ok(status)
}

/// The process that a restore is judged by: the first one of the program, or who has come after it.
fn main_of(restored: &Restored, root: i32) -> Result<i32> {
    let main = restored.roots.iter().find(|pid| **pid == root).or(restored.roots.first()).copied();
    main.ok_or_else(|| Failure::new(Class::Corrupt, "no-root", "the checkpoint holds no living process"))
}

/// The first process of a namespace ends with the command outside, and everybody in the namespace with it, as long as the program
/// does not run: what it has done to files is put back by the next one.
fn tied_to_outside(at: &Surrounding<'_>, signal: Option<rustix::process::Signal>) -> Result<()> {
    if at.inside.is_none() {
        return Ok(());
    }
    rustix::process::set_parent_process_death_signal(signal)
        .map_err(Failure::system("tying the namespace to the command that made it"))
}

/// Tells the command outside of our pid namespace, which then may end; how the program has ended, if it has by now.
fn tell_outside(report: &File, main: i32, detach: bool) -> Result<Option<Death>> {
    let mut early = None;
    if detach {
        let_go_of_stdio()?;
        early = leave_session(main);
    }
    namespace::tell_ready(report, main)?;
    Ok(early)
}

/// Restores into a private pid namespace, through a command of its own there.
fn in_namespace(
    at: &Surrounding<'_>,
    args: &RestoreArgs,
    place: &Place,
    processes: usize,
    mut turn: Option<JobTurn>,
) -> Result<u8> {
    let mut runs = None;
    let status = namespace::outside(std::env::args_os().skip(1), &mut |pid| {
        by_hand::runs(place, pid);
        turn.take();
        write_pid(args.pidfile.as_deref(), pid)?;
        let running = Running { pid, processes, restore_us: None, calls: None, status: None, notes: Vec::new() };
        if args.detach {
            at.output.result_aside(&running);
            return Ok(Outside::Leaves);
        }
        runs = Some(running);
        Ok(Outside::Waits)
    })?;
    if let Some(running) = runs {
        by_hand::has_ended(place);
        at.output.object_aside(&Running { status: Some(status), ..running });
    }
    Ok(status)
}

/// Does the same in a child. Whoever leads a process group cannot leave its session while others are in that group, as the
/// rest of a pipeline is.
fn apart() -> Result<u8> {
    let mut command = process::this_program();
    command.arg("--apart").args(std::env::args_os().skip(1));
    let mut child = command.spawn().map_err(Failure::system("starting hdcr in a process of its own"))?;
    let status = child.wait().map_err(Failure::system("waiting for the restore"))?;
    let death = status.signal().map_or_else(|| Death::Exit(status.code().unwrap_or(0)), Death::Signal);
    Ok(shell_status(death))
}

/// The groups of the program lose their parent in this session when this process ends: then the kernel would end those
/// with stopped processes by `SIGHUP`. A parent in another session is none that they lose. All who have ended are reaped: how the
/// program has, if it is among them.
fn leave_session(main: i32) -> Option<Death> {
    let mut early = None;
    let group = process::stat(main).and_then(|stat| Pid::from_raw(stat.pgid));
    // Only who is in the group of another, and leaves none of his own behind, not even of zombies, can make a session.
    while let Some((pid, change)) = process::next_change() {
        if let Change::Ended(death) = change
            && pid == main
        {
            early = Some(death);
        }
    }
    if let Err(error) = rustix::process::setpgid(None, group) {
        tracing::trace!(%error, "the program is of another session");
    }
    let left = rustix::process::setsid();
    if let Err(error) = left {
        tracing::debug!(%error, "the restoring command stays in the session of the program");
    }
    early
}

/// Where the roll-back of files keeps what it replaces: in the store; for an image by path where this user can have none,
/// beside the sockets of running jobs.
fn journals(at: &Surrounding<'_>, place: &Place) -> Result<PathBuf> {
    let own = at.settings.journals();
    let usable = at.trusted_store().and_then(|()| job::make_private(&own));
    let Err(failure) = usable else { return Ok(own) };
    if matches!(place, Place::Store { .. }) || failure.class != Class::Failed {
        return Err(failure);
    }
    tracing::debug!(%failure, "there is no store for what a roll-back of files replaces");
    // Refused where it is somebody else's.
    at.registry()?;
    Ok(at.settings.surroundings.jobs().with_file_name("rollback"))
}

/// Restores the image as children of this process.
fn bring_back(
    at: &Surrounding<'_>,
    args: &RestoreArgs,
    (place, journals): (&Place, &Path),
    signals: &Signals,
    runs: &mut dyn FnMut(&Restored),
) -> Result<Outcome> {
    let manifest = parts::manifest(place)?;
    let needed = parts::numbers_needed(place)?;
    if at.inside.is_some() {
        namespace::next_pid_after(needed.last().copied().unwrap_or(0).saturating_add(64));
    }
    let task = RestoreTask {
        place: place.clone(),
        journals: journals.to_owned(),
        map_path: args.map_path.clone(),
        since: known_of_files(place)?,
        timeout: restore_time(at.settings.restore_timeout(args.timeout), manifest.total_size()),
        detach: args.detach,
        lazy: args.lazy,
        progress: false,
        by_gates: None,
        greeting: Greeting::by_hand(returns(place)?),
    };
    let stdio = descriptors(args.stdio.as_ref().unwrap_or(&StdioTarget::Inherit))?;
    if let Place::Store { root, job, .. } = place {
        remembered::job_lives_alone(root, &parts::job_name(job)?);
    }
    foreground::restore(Errand { task, stdio, needed: &needed }, signals, at.output, runs)
}

/// How often the job has been brought back, this time included, as far as its record tells.
fn returns(place: &Place) -> Result<u64> {
    let Place::Store { root, job, .. } = place else { return Ok(1) };
    let record = peek(root, &parts::job_name(job)?).ok().flatten();
    Ok(record.map_or(0, |record| record.returned).saturating_add(1))
}

/// What the keeper of a job that has not ended by itself knew that is to be undone.
fn known_of_files(place: &Place) -> Result<Option<Since>> {
    let Place::Store { root, job, number } = place else { return Ok(None) };
    let name = parts::job_name(job)?;
    let goes_on = peek(root, &name)?.is_some_and(|record| record.state != State::Ended);
    let aside = || (format!(".hdcr-aside-{name}-{number}"), root.clone());
    Ok(if goes_on { remembered::read(root, &name).of(*number, aside) } else { None })
}

/// Leaves standard input, output and error to others: this process stays only as the first one of its namespace.
fn let_go_of_stdio() -> Result<()> {
    let doing = || Failure::system::<rustix::io::Errno>("letting go of standard input, output and error");
    let [input, output, error] = descriptors(&StdioTarget::Null)?;
    rustix::stdio::dup2_stdin(input).map_err(doing())?;
    rustix::stdio::dup2_stdout(output).map_err(doing())?;
    rustix::stdio::dup2_stderr(error).map_err(doing())
}

/// A program that runs again, as `--detach` tells it; or that has run, as `--json` tells it.
#[derive(Debug, Serialize)]
struct Running {
    pid: i32,
    processes: usize,
    restore_us: Option<u64>,
    calls: Option<u64>,
    /// What it returned in the foreground.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u8>,
    /// What a user should know; those of a restore within a pid namespace are told there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<Obstacle>,
}

impl Running {
    fn of(pid: i32, restored: Restored) -> Self {
        let Restored { processes, total_us, calls, notes, .. } = restored;
        Self { pid, processes, restore_us: Some(total_us), calls: Some(calls), status: None, notes }
    }
}

impl Report for Running {
    fn text(&self) -> String {
        let took = self.restore_us.map(|us| format!(", {}", duration::show(Duration::from_micros(us))));
        let processes = counted(self.processes, "process", "processes");
        format!("runs as pid {}: {processes}{}", self.pid, took.unwrap_or_default())
    }
}

/// The image that a user means; a path is made absolute, because it travels to another process.
pub(crate) fn place(at: &Surrounding<'_>, text: &OsStr) -> Result<Place> {
    match parts::resolve(&at.settings.store, text)? {
        Place::Path(path) => Ok(Place::Path(absolute(&path)?)),
        in_store @ Place::Store { .. } => Ok(in_store),
    }
}

/// A job that runs is not restored beside itself: its files would be rolled back under it. A keeper that is about to end
/// is waited for. With the turn of who brings it back.
fn refuse_running(at: &Surrounding<'_>, place: &Place, args: &RestoreArgs) -> Result<Option<JobTurn>> {
    const LOOKS: usize = 100;
    const PAUSE: Duration = Duration::from_millis(20);
    let Place::Store { root, job, .. } = place else { return Ok(None) };
    let name = parts::job_name(job)?;
    let turn = if args.new_pids { None } else { Some(JobTurn::take(root, &name)?) };
    let record = peek(root, &name)?;
    if !args.take_over {
        refuse_elsewhere(record.as_ref(), &name)?;
    }
    if args.new_pids {
        return Ok(None);
    }
    by_hand::refuse_beside(root, &name, args.take_over).map_err(|failure| match &*failure.code {
        "job-runs" => failure
            .remedy(format!("end it first (`hdcr stop {job}`), or take --new-pids for a second one with other files")),
        _ => failure,
    })?;
    let program = record.filter(Record::program_lives).map(|record| record.main);
    let runs = || -> Result<bool> {
        let status = asking::status(&at.registry()?, job, Duration::from_secs(1))?;
        Ok(status.is_some_and(|status| status.store == *root && status.phase != "ending"))
    };
    let at_once = program.is_some() || (is_held(root, &name) && runs().unwrap_or(false));
    let ends = |_| {
        let ended = !is_held(root, &name);
        if !ended {
            std::thread::sleep(PAUSE);
        }
        ended
    };
    if !at_once && (0..LOOKS).any(ends) {
        return Ok(turn);
    }
    let message = match program {
        Some(pid) => format!("the program of job {job} runs, as pid {pid}"),
        None => format!("job {job} is running already"),
    };
    let remedy = format!("end it first (`hdcr stop {job}`), or take --new-pids for a second one with other files");
    Err(Failure::refused("job-runs", message).remedy(remedy))
}

/// Standard input, output and error for what led out of the tree.
pub(crate) fn descriptors(target: &StdioTarget) -> Result<[OwnedFd; 3]> {
    let opened = |path: &Path, flags: OFlags| {
        let mode = Mode::RUSR | Mode::WUSR;
        open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, mode)
            .map_err(Failure::system(format_args!("opening {}", path.display())))
    };
    let copy =
        |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(Failure::system("duplicating a standard descriptor"));
    let null = Path::new("/dev/null");
    Ok(match target {
        StdioTarget::Inherit => {
            [copy(rustix::stdio::stdin())?, copy(rustix::stdio::stdout())?, copy(rustix::stdio::stderr())?]
        }
        StdioTarget::Null => {
            [opened(null, OFlags::RDONLY)?, opened(null, OFlags::WRONLY)?, opened(null, OFlags::WRONLY)?]
        }
        StdioTarget::File(path) => {
            let output = opened(path, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)?;
            let error =
                rustix::io::fcntl_dupfd_cloexec(&output, 3).map_err(Failure::system("duplicating the output file"))?;
            [opened(null, OFlags::RDONLY)?, output, error]
        }
    })
}

/// Finds out before anything runs that there would be no place to say its pid.
fn can_write_pid(path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let doing = || Failure::system::<std::io::Error>(format!("writing {}", path.display()));
    let whole = absolute(path)?;
    if whole.is_dir() {
        return Err(doing()(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    if !is_pid_file(&whole) {
        let message = format!("{} is there already and holds no pid; it would be lost", path.display());
        return Err(Failure::refused("bad-target", message).remedy("name another file for the pid, or remove that one"));
    }
    let parent = whole.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        let message = format!("writing {}: there is no directory {}", path.display(), parent.display());
        return Err(Failure::new(Class::Failed, "system", message));
    }
    tempfile::NamedTempFile::new_in(parent).map(drop).map_err(doing())
}

/// Whether a file may be replaced by one with a pid: it holds nothing else, or is not there.
fn is_pid_file(path: &Path) -> bool {
    /// No pid is longer.
    const LONGEST: u64 = 24;
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() <= LONGEST => std::fs::read(path).is_ok_and(|bytes| {
            let text = bytes.trim_ascii();
            text.iter().all(u8::is_ascii_digit)
        }),
        Ok(_) => false,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Writes the pid file, whole or not at all.
fn write_pid(path: Option<&Path>, pid: i32) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let doing = || Failure::system::<std::io::Error>(format!("writing {}", path.display()));
    let path = absolute(path)?;
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/"))).map_err(doing())?;
    writeln!(file, "{pid}").map_err(doing())?;
    file.persist(&path).map_err(|error| doing()(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pid_is_replaced_by_a_pid() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        can_write_pid(Some(&path)).unwrap();
        for (text, may) in
            [("", true), ("4711\n", true), ("results", false), ("47 11", false), (&"1".repeat(99), false)]
        {
            std::fs::write(&path, text).unwrap();
            let refused = can_write_pid(Some(&path)).err();
            assert_eq!(refused.as_ref().map(|failure| &*failure.code), (!may).then_some("bad-target"), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
