//! The command line: every word of it, with the texts of `--help`.

pub(crate) mod job;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};

use crate::algorithm::Choice;
use crate::duration;
use crate::kinds::{
    Compress, Condition, EndPolicy, Every, FilePolicyRule, Increments, Lazy, MechanismChoice, PathMap, Share, Snapshot,
    StdioTarget, at_least_one,
};

/// Printed after the help of the whole program.
const AFTER_HELP: &str = "\
First steps:
  hdcr doctor                    what this machine and this user can do
  hdcr run --name sim -- ./sim   run it, checkpoint it, roll back its crashes
  hdcr checkpoint sim            one more checkpoint, now
  hdcr stop sim                  end it for good (kill -9 would be rolled back)
  hdcr restore sim               bring it back from its last checkpoint

Exit status:
  0   done
  64  wrong usage or configuration
  65  corrupt image
  69  refused; what stands in the way is listed, nothing was touched
  70  fault of hdcr
  71  the system failed (a call, a disk, a missing right)
  75  it changed while it was looked at, or it was checkpointed and ended
  126, 127  run: the program cannot be executed, or is not there

`hdcr run` and `hdcr restore` return the status of the program itself: its own, or 128+n when signal n killed it.

Settings: /etc/hdcr/config.toml, then ~/.config/hdcr/config.toml, then the environment, then flags; the last one wins.";

/// Checkpoint running Linux programs and roll them back after a crash.
///
/// A checkpoint either saves everything it claims, or refuses with a list of what stands in the way and leaves the
/// program running. A program under HDCR runs at full speed until it is checkpointed.
#[derive(Debug, Parser)]
#[command(name = "hdcr", version, after_help = AFTER_HELP, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What all commands understand.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of all commands")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Common {
    /// Print one JSON object on standard output (run and restore: on standard error), also for an error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but results and errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Say more; twice: each phase with its duration, and what was chosen; three times: trace
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Where checkpoints lie [default: /var/lib/hdcr for root, else ~/.local/state/hdcr]
    #[arg(long, global = true, value_name = "DIR", env = "HDCR_STORE", value_hint = ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// Use a store, or as root an image, that others own or can write: they can then act with your rights
    #[arg(long, global = true)]
    pub(crate) trust_store: bool,
    /// Read this configuration file instead of the usual ones
    #[arg(long, global = true, value_name = "FILE", env = "HDCR_CONFIG", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Part of hdcr itself: this is the first process of a pid namespace, and reports to this file
    #[arg(long, global = true, hide = true, value_name = "FILE")]
    pub(crate) inside: Option<PathBuf>,
    /// Part of hdcr itself: the descriptor that leads to the algorithm
    #[arg(long, global = true, hide = true, value_name = "FD")]
    pub(crate) rule: Option<i32>,
    /// Part of hdcr itself: the process meant has this pid here, in the namespaces that were entered for it
    #[arg(long, global = true, hide = true, value_name = "PID")]
    pub(crate) entered: Option<i32>,
    /// Part of hdcr itself: this command was started by one that leads a process group and waits for it
    #[arg(long, global = true, hide = true)]
    pub(crate) apart: bool,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program, checkpoint it in the background, roll it back when it crashes
    Run(Box<RunArgs>),
    /// Take a checkpoint of a running program, whoever started it
    Checkpoint(CheckpointArgs),
    /// Bring a program back from a checkpoint
    Restore(RestoreArgs),
    /// Say what stands in the way of a checkpoint or a restore; touches nothing
    Check(CheckArgs),
    /// List the jobs that run under hdcr, and programs restored by hand
    #[command(after_help = "\
PID is the number to be used where this is read. EVERY is the time between checkpoints; a `!` after the state says that \
the last one failed, `stopped` that the program was (by SIGSTOP; `kill -CONT PID` lets it go on), and `orphan!` that the keeper was killed while its program runs on. `by hand` is a program that \
`hdcr restore` brought back from the store: it has no keeper, and nobody rolls it back.

Examples:
  hdcr ps
  hdcr ps --json              for scripts: pid, keeper, and more")]
    Ps,
    /// End a job for good
    Stop(StopArgs),
    /// List the checkpoints in the store
    List(ListArgs),
    /// Show what a checkpoint holds
    Show(ShowArgs),
    /// Read all of a checkpoint and say whether it is whole
    #[command(after_help = "\
Examples:
  hdcr verify sim             the newest checkpoint of a job
  hdcr verify sim@12
  hdcr verify ./sim.hdcr      exit status 0: whole, 65: damaged")]
    Verify(ImageArgs),
    /// Keep checkpoints until they are unpinned
    Pin(crate::commands::pin::PinArgs),
    /// Let go of pinned checkpoints
    Unpin(crate::commands::pin::UnpinArgs),
    /// Remove checkpoints
    Rm(RmArgs),
    /// Remove old checkpoints: all but so many, or of so long, or what is too much
    Prune(crate::commands::prune::PruneArgs),
    /// Say what this machine, kernel and user can do, and what follows
    #[command(after_help = "\
Examples:
  hdcr doctor                 feature by feature; touches nothing
  hdcr doctor --json")]
    Doctor,
    /// Run a parallel job: several members that are checkpointed at one instant and go back together
    Job(Box<job::JobArgs>),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  hdcr completions bash > /usr/share/bash-completion/completions/hdcr
  hdcr completions zsh > /usr/local/share/zsh/site-functions/_hdcr
  hdcr completions fish > ~/.config/fish/completions/hdcr.fish")]
    Completions(CompletionsArgs),
    /// Write the manual pages into a directory
    #[command(after_help = "\
Examples:
  hdcr manpage /usr/local/share/man/man1      then: man hdcr, man hdcr-run")]
    Manpage(ManpageArgs),
    /// Part of hdcr itself: tries whether a private pid namespace can be made
    #[command(name = "__probe", hide = true)]
    Probe,
    /// Part of hdcr itself: makes one checkpoint or restore for the process at the other end of standard input
    #[command(name = "__worker", hide = true)]
    Worker,
    /// The agent of a member of a parallel job; `hdcrd` is its name for people
    #[command(name = "__agent", hide = true, override_usage = "hdcrd [OPTIONS] --credentials <FILE> --member <N>")]
    Agent(job::AgentArgs),
    /// Part of hdcr itself: becomes the program
    #[command(name = "__program", hide = true)]
    Program(ProgramArgs),
    /// Part of hdcr itself: runs the command of an algorithm for the keeper at the other end of standard input
    #[command(name = "__rule", hide = true)]
    Rule(crate::rule::RuleArgs),
}

/// `hdcr run`.
#[derive(Debug, Args)]
#[command(after_help = "\
A job ends when its program ends by itself (any exit status) or by a signal that asks for it (HUP, INT, QUIT, PIPE, \
TERM). Any other death by a signal (SEGV, ABRT, KILL, out of memory) is a crash: all of its processes are killed and it \
goes back to its newest checkpoint, after the same crash once more to the one before, until --restarts is used up. \
A shell turns the crash of its command into an exit status; --on exit:137 makes it a crash again.

Run with the same name and command, a job goes on from its newest checkpoint when it was ended from outside: by a signal \
that asks for it (Ctrl-C), with its machine, by `hdcr checkpoint NAME --kill`, or when it was given up. One that ended by \
itself, or by `hdcr stop`, begins anew. What the program has sent to others (a terminal, a socket) after the checkpoint is sent again after a rollback.

Examples:
  hdcr run --every 5m -- ./simulate --steps 1000000
  hdcr run --name sim --keep 5 --on exit:75 --files results/ -- ./simulate
  hdcr run --algorithm on-notice:grace=60s -- ./simulate")]
pub(crate) struct RunArgs {
    /// Name of the job [default: made from the command and a number]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Time from one checkpoint to the next, such as 500ms, 30s, 5m, 1h; auto: chosen by what checkpoints cost and how
    /// often the program crashes, between 1s and 1h [default: 30s]
    #[arg(long, value_name = "TIME|auto", env = "HDCR_EVERY")]
    pub(crate) every: Option<Every>,
    /// Who decides when: fixed, young, daly, exact, adaptive, chain, levels, on-notice, on-idle, cooperative, with settings
    /// such as chain:longest=8,mtbf=6h, or exec:COMMAND, one of your own (docs/algorithms.md) [default: fixed, by --every]
    #[arg(long, value_name = "NAME[:KEY=VALUE,...]", env = "HDCR_ALGORITHM")]
    pub(crate) algorithm: Option<Choice>,
    /// How many checkpoints to keep [default: 3, and no limit when another one is given]
    #[arg(long, value_name = "N", env = "HDCR_KEEP", value_parser = at_least_one)]
    pub(crate) keep: Option<NonZeroUsize>,
    /// Give up checkpoints that are older than this, such as 2d; the newest stays
    #[arg(long, value_name = "TIME", env = "HDCR_KEEP_FOR", value_parser = duration::parse)]
    pub(crate) keep_for: Option<Duration>,
    /// Give up the oldest checkpoints until all of the job take no more than this, such as 10G; the newest stays
    #[arg(long, value_name = "SIZE", env = "HDCR_KEEP_SIZE", value_parser = duration::parse_size)]
    pub(crate) keep_size: Option<u64>,
    /// Most of the time that checkpoints may take, such as 10%: the program standing still and the processor time of hdcr
    /// together; when they take more they come less often [default: no limit]
    #[arg(long, value_name = "SHARE", env = "HDCR_BUDGET")]
    pub(crate) budget: Option<Share>,
    /// Whether checkpoints are made on top of one another, so that each takes time and space only for what was written
    /// since the one before [default: auto]
    #[arg(long, value_enum, value_name = "WHEN", env = "HDCR_INCREMENTS")]
    pub(crate) increments: Option<Increments>,
    /// Memory that is put in after a roll-back while the program runs already, as it touches it and behind [default: never]
    #[arg(long, value_enum, value_name = "WHICH", env = "HDCR_LAZY")]
    pub(crate) lazy: Option<Lazy>,
    /// How many times to roll back before giving up [default: 5]
    #[arg(long, value_name = "N", env = "HDCR_RESTARTS")]
    pub(crate) restarts: Option<u32>,
    /// Roll back on this too: exit:STATUS, exit:any, signal:NAME, signal:any, such as
    /// exit:75,signal:TERM (repeat, or separate by commas)
    #[arg(long, value_name = "WHAT", value_delimiter = ',', allow_hyphen_values = false)]
    pub(crate) on: Vec<Condition>,
    /// Begin anew although the job has checkpoints to go on from
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Go on although another machine is said to run the job: it, or the job there, is gone for good
    #[arg(long)]
    pub(crate) take_over: bool,
    /// Longest time for one checkpoint, such as 30s or 2m [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// Give the job a private pid namespace (always so without root), so that its pids are free at every rollback
    #[arg(long)]
    pub(crate) new_pids: bool,
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// The program with its arguments
    #[arg(last = true, required = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// What becomes of file contents.
#[derive(Clone, Debug, Args)]
pub(crate) struct FileArgs {
    /// Always save these files, or all files below these directories (repeat for more)
    #[arg(long = "files", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) always: Vec<PathBuf>,
    /// What to do with files: PATH=auto|content|truncate|verify|ignore; the longest path wins, such as
    /// /data/scratch=ignore (repeat for more)
    #[arg(long = "file-policy", value_name = "PATH=POLICY", value_parser = OsStringValueParser::new().try_map(|words| FilePolicyRule::read(&words)))]
    pub(crate) policies: Vec<FilePolicyRule>,
    /// Largest written file to be saved by policy auto, such as 64M or 1G; larger ones are saved as clones where the store is on
    /// their file system and that has reflinks (XFS, Btrfs) [default: 64M]
    #[arg(long = "file-limit", value_name = "SIZE", value_parser = duration::parse_size)]
    pub(crate) limit: Option<u64>,
    /// What a restore does with pipes and sockets whose other end lies outside (not stdin, stdout, stderr) [default: refuse]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) ends: Option<EndPolicy>,
    /// How memory is read; `hdcr show --records` tells which way each mapping went, and why [default: auto]
    #[arg(long, value_enum, value_name = "WAY", env = "HDCR_SNAPSHOT")]
    pub(crate) snapshot: Option<Snapshot>,
    /// What stops the program and asks it; `hdcr show` tells which it was [default: auto]
    #[arg(long, value_enum, value_name = "WAY", env = "HDCR_MECHANISM")]
    pub(crate) mechanism: Option<MechanismChoice>,
    /// How memory is compressed; `hdcr show` tells how much went which way [default: auto]
    #[arg(long, value_enum, value_name = "WAY", env = "HDCR_COMPRESS")]
    pub(crate) compress: Option<Compress>,
}

/// `hdcr checkpoint`.
#[derive(Debug, Args)]
#[command(after_help = "\
The program goes on running, unless told otherwise. Its whole tree is taken: the process with everything below it.

Examples:
  hdcr checkpoint 4711                 into the store, as job COMMAND-4711
  hdcr checkpoint 4711 -o sim.hdcr     into one file
  hdcr checkpoint sim --kill           a job: once more, then end it;
                                       the same `hdcr run` goes on from there")]
pub(crate) struct CheckpointArgs {
    /// A process, or the name of a job
    #[arg(value_name = "PID|NAME")]
    pub(crate) target: String,
    /// Write to this file, or into this directory, instead of the store
    #[arg(long, short, value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    pub(crate) output: Option<PathBuf>,
    /// Kill the program once the checkpoint is safe on disk; not one instruction is run after it
    #[arg(long, conflicts_with = "stop")]
    pub(crate) kill: bool,
    /// When another hdcr is at work on the program: wait for that, up to this time, such as 10s [default: do not wait]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) wait: Option<Duration>,
    /// Leave the program stopped (as by SIGSTOP) once the checkpoint is safe on disk; `kill -CONT` with the numbers that are told lets it go on
    #[arg(long)]
    pub(crate) stop: bool,
    /// Give up, leaving the program as it was, after this time, such as 30s or 2m [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) files: FileArgs,
}

/// `hdcr restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
In the foreground it behaves like the program: same terminal, signals passed on, exit status returned. An image can be \
restored many times. Files that the program had open go back to what they were at the checkpoint.

Examples:
  hdcr restore sim            the newest checkpoint of a job
  hdcr restore sim@12         another one (see `hdcr list sim`)
  hdcr restore ./sim.hdcr     a file or a directory (with a slash in it)
  hdcr restore sim --detach --pidfile sim.pid --stdio sim.log
  hdcr restore sim --new-pids when its pids are in use")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct RestoreArgs {
    /// A file, a directory, the name of a job, or NAME@ID
    #[arg(value_name = "IMAGE|NAME[@ID]", value_hint = ValueHint::AnyPath)]
    pub(crate) image: std::ffi::OsString,
    /// Return as soon as the program runs
    #[arg(long)]
    pub(crate) detach: bool,
    /// Write the pid of the program here
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) pidfile: Option<PathBuf>,
    /// Restore into a private pid namespace, in which every pid is free
    #[arg(long)]
    pub(crate) new_pids: bool,
    /// With --new-pids: restore a second copy although the first runs and writes the same files, which are rolled back under it
    #[arg(long, requires = "new_pids")]
    pub(crate) force: bool,
    /// Go on although another machine is said to run the job: it, or the job there, is gone for good
    #[arg(long)]
    pub(crate) take_over: bool,
    /// A path of the image is another one now, such as /data=/mnt/data (repeat for more)
    #[arg(long, value_name = "OLD=NEW", value_parser = OsStringValueParser::new().try_map(|words| PathMap::read(&words)))]
    pub(crate) map_path: Vec<PathMap>,
    /// What stdin, stdout and stderr that led out of the program become: inherit, null, or a file [default: inherit]
    #[arg(long, value_name = "inherit|null|FILE", value_hint = ValueHint::FilePath, value_parser = OsStringValueParser::new().map(StdioTarget::from))]
    pub(crate) stdio: Option<StdioTarget>,
    /// Memory that is put in while the program runs already, as it touches it and behind
    #[arg(long, value_enum, default_value = "never")]
    pub(crate) lazy: Lazy,
    /// Give up, leaving nothing behind, after this time, such as 5m [default: 30s, and more for a large image]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
}

/// `hdcr check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status 0: possible; 69: refused, with a list of all that stands in the way, by pid, descriptor and path, or there is \
no such process, job or image; 65: what describes the image is damaged; 71: the system failed; 75: it changed while it was looked at, or \
another hdcr is at work on it. The memory that an image holds is not read: `hdcr verify` does that.

Examples:
  hdcr check 4711             could it be checkpointed, with all below it?
  hdcr check sim              the same of a job that runs; of one that does not:
                              could its newest checkpoint be restored?
  hdcr check sim --wait 10s   of a job that is just starting
  hdcr check ./sim.hdcr       could this be restored here and now?")]
pub(crate) struct CheckArgs {
    /// A process or a job (could it be checkpointed?), or an image (could it be restored here and now?)
    #[arg(value_name = "PID|IMAGE", value_hint = ValueHint::AnyPath)]
    pub(crate) target: std::ffi::OsString,
    /// For a process or a job: look again until nothing stands in the way, at most for this time, such as 10s; for a program
    /// that is just starting, or that another hdcr is at work on [default: look once]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) wait: Option<Duration>,
    /// For an image: a path of it is another one now, such as /data=/mnt/data (repeat for more)
    #[arg(long, value_name = "OLD=NEW", value_parser = OsStringValueParser::new().try_map(|words| PathMap::read(&words)))]
    pub(crate) map_path: Vec<PathMap>,
    #[command(flatten)]
    pub(crate) files: FileArgs,
}

/// `hdcr stop`.
#[derive(Debug, Args)]
#[command(after_help = "\
A program that was restored by hand is ended as well, by its pid or the name of its job. Of a job, a kill -9 of your own would be rolled back. Its checkpoints are kept; `hdcr checkpoint NAME --kill` ends a job that is to \
go on later.

Examples:
  hdcr stop sim               SIGTERM, and SIGKILL after ten seconds
  hdcr stop sim --grace 5m    a program that takes its time to end")]
pub(crate) struct StopArgs {
    /// The job, or a pid that `hdcr ps` shows
    #[arg(value_name = "NAME|PID")]
    pub(crate) name: String,
    /// Time between SIGTERM and SIGKILL, such as 500ms, 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "10s")]
    pub(crate) grace: Duration,
}

/// `hdcr list`.
#[derive(Debug, Args)]
#[command(after_help = "\
SIZE is what all files of the checkpoint occupy; those that it shares with others of its job count for each of them. \
NEW is what was written for this checkpoint alone. It is more than SIZE when memory changed while it was copied: that was \
written again, and what it replaced was given up before the checkpoint was done. FROM is the checkpoint that the program \
was brought back from.

Examples:
  hdcr list                   all checkpoints: ids, age, size, lineage
  hdcr list sim               those of one job
  hdcr list --store /mnt/ck   in another store")]
pub(crate) struct ListArgs {
    /// Only this job
    pub(crate) name: Option<String>,
}

/// `hdcr show`.
#[derive(Debug, Args)]
#[command(after_help = "\
The line `size` has SIZE and NEW of `hdcr list --help`. MAPPED is the address space of a process and the number of its \
mappings, most of which need not be stored: files have it, or it was never touched. HELD is the memory of it that the \
image holds. The line `holds` adds it up with the contents of files and of shared memory, all unpacked; packed, and with \
the records, that is SIZE. Of what `came from` names some may have been removed since.

Examples:
  hdcr show sim               processes and open files of the newest one
  hdcr show sim@12 --records  every record: mappings, limits, all else
  hdcr show ./sim.hdcr --json")]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// Print every record
    #[arg(long)]
    pub(crate) records: bool,
}

/// An image.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// A file, a directory, the name of a job, or NAME@ID
    #[arg(value_name = "IMAGE|NAME[@ID]", value_hint = ValueHint::AnyPath)]
    pub(crate) image: std::ffi::OsString,
}

/// `hdcr rm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hdcr rm sim@12 sim@13       two checkpoints
  hdcr rm sim                 all of a job, and what is remembered of it
                              (its numbers go on if it is run again)

A checkpoint that others go on from can go as well: they keep what they need of it. One from which the memory of a program \
is still being filled (`hdcr restore --lazy`) is refused.")]
pub(crate) struct RmArgs {
    /// NAME@ID for one checkpoint, NAME for all of a job
    #[arg(required = true, value_name = "NAME[@ID]")]
    pub(crate) images: Vec<String>,
    /// Remove a whole job although another machine is said to run the job: it, or the job there, is gone for good
    #[arg(long)]
    pub(crate) take_over: bool,
    /// Remove also the last checkpoint of a running job (until its next one, a crash begins it anew), and one that is being
    /// read: a program whose memory is still to come from it may be killed
    #[arg(long)]
    pub(crate) force: bool,
}

/// `hdcr completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub(crate) shell: clap_complete::Shell,
}

/// `hdcr manpage`.
#[derive(Debug, Args)]
pub(crate) struct ManpageArgs {
    /// Where they go; made when it is missing
    pub(crate) directory: PathBuf,
}

/// The hidden `__program`.
#[derive(Debug, Args)]
pub(crate) struct ProgramArgs {
    /// Signals to be unblocked first
    #[arg(long, value_delimiter = ',')]
    pub(crate) unblock: Vec<i32>,
    /// The program with its arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[cfg(test)]
mod tests;
