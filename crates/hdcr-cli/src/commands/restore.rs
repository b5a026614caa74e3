//! `hdcr restore`: a program back from a checkpoint, in the foreground or detached.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use super::Surrounding;
use crate::cli::RestoreArgs;
use crate::failure::{Class, Failure, Result};
use crate::foreground::{self, Outcome};
use crate::kinds::StdioTarget;
use crate::namespace::{self, Outside};
use crate::parts;
use crate::process::{born, lives, shell_status};
use crate::settings::absolute;
use crate::signals::Signals;
use crate::task::{Place, RestoreTask};

pub(crate) fn run(at: &Surrounding<'_>, args: &RestoreArgs) -> Result<u8> {
    let place = place(at, &args.image)?;
    let manifest = parts::manifest(&place)?;
    refuse_running(at, &place)?;
    if at.inside.is_none() && (args.new_pids || !namespace::may_choose_pids()) {
        let leaves = if args.detach { Outside::Leaves } else { Outside::Waits };
        return namespace::outside(std::env::args_os().skip(1), &mut |pid| {
            write_pid(args.pidfile.as_deref(), pid)?;
            Ok(leaves)
        });
    }
    let needed: BTreeSet<i32> = manifest.facts.processes.iter().map(|process| process.pid).collect();
    if at.inside.is_some() {
        namespace::next_pid_after(needed.last().copied().unwrap_or(0).saturating_add(64));
    }
    let stdio = descriptors(args.stdio.as_ref().unwrap_or(&StdioTarget::Inherit))?;
    let timeout = at.settings.restore_timeout(args.timeout);
    let task = RestoreTask { place, journals: at.settings.journals(), map_path: args.map_path.clone(), timeout };
    let signals = Signals::take()?;
    let restored = match foreground::restore(&task, &stdio, &needed, &signals)? {
        Outcome::Interrupted(signal) => return Ok(shell_status(hdcr_policy::restart::Death::Signal(signal))),
        Outcome::Runs(restored) => restored,
    };
    drop(stdio);
    let root = manifest.facts.root_pid;
    let main = restored.roots.iter().find(|pid| **pid == root).or(restored.roots.first()).copied();
    let main = main.ok_or_else(|| Failure::new(Class::Corrupt, "no-root", "the checkpoint holds no living process"))?;
    let took = crate::duration::show(std::time::Duration::from_micros(restored.total_us));
    at.output.detail(&format!("{} runs again as pid {main}: {} process(es), {took}", task.place, restored.processes));
    match &at.inside {
        Some(report) => namespace::tell_ready(report, main)?,
        None => write_pid(args.pidfile.as_deref(), main)?,
    }
    if args.detach && at.inside.is_none() {
        at.output.result_aside(&Detached {
            pid: main,
            processes: restored.processes,
            restore_us: restored.total_us,
            calls: restored.calls,
        });
        return Ok(0);
    }
    Ok(shell_status(foreground::accompany(main, &signals, at.output)?))
}

/// What `--detach` tells with `--json` or `-v`.
#[derive(Debug, serde::Serialize)]
struct Detached {
    pid: i32,
    processes: usize,
    restore_us: u64,
    calls: u64,
}

impl crate::output::Report for Detached {
    fn text(&self) -> String {
        format!("runs as pid {}", self.pid)
    }
}

/// The image that a user means; a path is made absolute, because it travels to another process.
pub(crate) fn place(at: &Surrounding<'_>, text: &str) -> Result<Place> {
    match parts::resolve(&at.settings.store, text)? {
        Place::Path(path) => Ok(Place::Path(absolute(&path)?)),
        in_store @ Place::Store { .. } => Ok(in_store),
    }
}

/// A job whose keeper lives is not restored beside itself.
fn refuse_running(at: &Surrounding<'_>, place: &Place) -> Result<()> {
    let Place::Store { root, job, .. } = place else { return Ok(()) };
    let record = crate::job::peek(root, &parts::job_name(job)?)?;
    match record
        .filter(|record| !record.private_pids && lives(record.main) && born(record.main) == Some(record.main_born))
    {
        Some(record) => {
            Err(Failure::refused("job-runs", format!("the program of job {job} runs, as pid {}", record.main)).remedy(
                format!(
                    "end it first: `hdcr stop {job}`{}",
                    if at.inside.is_some() { "" } else { ", or take --new-pids for a second one" }
                ),
            ))
            .or_else(|failure| if at.inside.is_some() { Ok(()) } else { Err(failure) })
        }
        None => Ok(()),
    }
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
