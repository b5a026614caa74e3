//! The command line of parallel jobs: `hdcr job`, and `hdcrd`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueHint};

use super::FileArgs;
use crate::duration;
use crate::parallel::seat::Launcher;

/// `hdcr job`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each member runs the same command, with its number in HDCR_MEMBER (from 0) and their count in HDCR_MEMBERS, below an agent of its own. All are stopped, read and let go together; a checkpoint is committed when that of each member is on the disk, and not at all otherwise. When a member is killed or an agent is lost, all go back to the last committed checkpoint and go on from there.

Run with the same name and command, a job goes on that has not ended, also after kill -9 of the command itself.

Not there yet: connections (TCP) between members are refused at the checkpoint; members exchange data by files.

Examples:
  hdcr job run --members 4 --every 5s -- ./simulate
  hdcr job status simulate
  hdcr job checkpoint simulate
  hdcr job abort simulate")]
pub(crate) struct JobArgs {
    #[command(subcommand)]
    pub(crate) what: JobCommand,
}

/// What is to be done with a parallel job.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Run a parallel job, or go on with one
    Run(Box<JobRunArgs>),
    /// Say how a job is, member by member
    #[command(after_help = "\
Examples:
  hdcr job status sim
  hdcr job status sim --json")]
    Status(JobNameArgs),
    /// List the parallel jobs of the store
    #[command(after_help = "\
Examples:
  hdcr job list")]
    List,
    /// Take a checkpoint of all members, and wait until it is committed
    #[command(after_help = "\
Examples:
  hdcr job checkpoint sim")]
    Checkpoint(JobNameArgs),
    /// End a job for good, also one whose coordinator is gone
    #[command(after_help = "\
Examples:
  hdcr job abort sim")]
    Abort(JobNameArgs),
}

/// A job by its name.
#[derive(Debug, Args)]
pub(crate) struct JobNameArgs {
    /// Name of the job
    #[arg(id = "job", value_name = "NAME")]
    pub(crate) name: String,
}

/// `hdcr job run`.
#[derive(Debug, Args)]
#[command(after_help = "\
The job ends when all members have ended with status 0, or at once when one ends with another status, which is then that of this command. A member that is killed by a signal brings all back to the last checkpoint; before the first one, the job begins anew.

Ended by a signal (Ctrl-C), this command ends all members, and the same command goes on from the last checkpoint; after kill -9 of this command the members run on, and the same command takes them over.

Members see the same files, by the same paths. Files that a member has open are rolled back with it, others only when they are named with --files.

Examples:
  hdcr job run --members 4 --every 5s --name sim -- ./simulate --steps 1000
  hdcr job run --launcher manual --listen 10.0.0.1:7000 --members 2 -- ./simulate
  hdcrd --join 10.0.0.1:7000 --member 1 \\
        --credentials /shared/hdcr/parallel/simulate/agent.json")]
pub(crate) struct JobRunArgs {
    /// Name of the job [default: that of the command]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How many members the job has
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) members: u32,
    /// Time from one checkpoint to the next, such as 500ms, 30s, 5m [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) every: Option<Duration>,
    /// Who starts the agents of the members
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    pub(crate) launcher: Launcher,
    /// Where the coordinator listens, such as 10.0.0.1:7000: an address that the hosts of all agents can reach
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// An agent that is away so long, such as 30s, is lost: what it ran is brought back by another one
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) patience: Option<Duration>,
    /// How many times to roll back without a new checkpoint before giving up [default: 5]
    #[arg(long, value_name = "N")]
    pub(crate) restarts: Option<u32>,
    /// Longest time that members may stand still for a checkpoint, such as 30s or 2m [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// Output and errors of each member go to a file of its own in this directory, DIR/N.out [default: where those of its
    /// agent go]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: Option<PathBuf>,
    /// Begin anew although the job has not ended
    #[arg(long)]
    pub(crate) fresh: bool,
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// The program of each member with its arguments
    #[arg(last = true, required = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// `hdcrd`.
#[derive(Debug, Args)]
#[command(after_help = "\
Runs one member of a parallel job on this host, under the coordinator that `hdcr job run` is. The store has to be at the same path on all hosts.

Examples:
  hdcrd --join 10.0.0.1:7000 --member 1 \\
        --credentials /shared/hdcr/parallel/sim/agent.json")]
pub(crate) struct AgentArgs {
    /// What `hdcr job run` has made for agents: parallel/NAME/agent.json in the store
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) credentials: PathBuf,
    /// Which member it runs
    #[arg(long, value_name = "N")]
    pub(crate) member: u32,
    /// Where the coordinator listens [default: where the store says]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) join: Option<String>,
}
