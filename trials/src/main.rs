//! The trials: privileged end-to-end runs of guests and real programs under HDCR.
//!
//! The product is a black box here: one binary, its commands, its exit codes. Nothing of its crates is used.

mod bench;
mod chain;
mod demo;
mod faults;
mod golden;
mod guest;
mod inherited;
mod modes;
mod product;
mod program;
mod report;
mod scenario;
mod trial;
mod wait;
mod witness;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::program::Folder;
use crate::report::Report;
use crate::trial::{Mode, Plan};

#[derive(Debug, Parser)]
#[command(about = "Runs the guests of the zoo and real programs under HDCR")]
struct Command {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    place: Place,
    /// Set by the runner itself when it has put off what it inherited.
    #[arg(long, hide = true)]
    begun_anew: bool,
}

/// Where things lie.
#[derive(Debug, Clone, Args)]
struct Place {
    /// The program under trial.
    #[arg(long, global = true, env = "HDCR_BIN")]
    hdcr: Option<PathBuf>,
    /// The folder of the trials' sources.
    #[arg(long, global = true, default_value = "trials")]
    sources: PathBuf,
    /// Where compiled guests are kept.
    #[arg(long, global = true, default_value = "target/zoo")]
    build: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Names the trials and says what each is about.
    List,
    /// Runs guests of the zoo: those named, or all.
    Run(RunArgs),
    /// Runs real programs, killed and rolled back, against an undisturbed run.
    Programs(ProgramArgs),
    /// Kills the tool, tampers with images, lets surroundings fail: nobody may suffer from it.
    Faults(faults::FaultArgs),
    /// Makes images on top of one another at full pace, kills who makes them, and restores links at random.
    Chain(chain::ChainArgs),
    /// Restores the images that versions of the past have left, or adds those of this version.
    Golden(golden::GoldenArgs),
    /// Measures beside CRIU.
    Bench(bench::BenchArgs),
    /// Tells stories of what users of such tools have met.
    Scenarios(ScenarioArgs),
    /// The ways in which HDCR is used: without root, private pids, after a reboot, in the foreground, from scripts.
    Modes(modes::ModeArgs),
    /// Names the Debian packages of the programs that were picked by lot: those named, or all.
    LotPackages {
        /// Programs, by name.
        names: Vec<String>,
    },
    /// The demonstration of the README.
    Demo,
}

#[derive(Debug, Args)]
struct ProgramArgs {
    /// Programs, by name; all when none is named.
    names: Vec<String>,
    /// Those that were picked by lot instead of those that run with every test.
    #[arg(long)]
    lot: bool,
    /// How many times each is killed.
    #[arg(long, default_value_t = 5)]
    kills: u32,
    /// One JSON object a line instead of text.
    #[arg(long)]
    json: bool,
    /// Keep the folders of programs that passed, too.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct ScenarioArgs {
    /// Scenarios, by name or by the beginning of one; all when none is named.
    names: Vec<String>,
    /// One JSON object a line instead of text.
    #[arg(long)]
    json: bool,
    /// Keep the folders of scenarios that passed, too.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Guests, by name or by the beginning of one.
    names: Vec<String>,
    /// Only these modes.
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// At most so many rounds of checkpoint and restore in each trial.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How many times each trial runs.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// How many trials run at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// One JSON object a line instead of text.
    #[arg(long)]
    json: bool,
    /// Keep the folders of trials that passed, too.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let command = Command::parse();
    match run(&command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::complain(&error);
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command) -> Result<bool> {
    if !command.begun_anew && inherited::anything()? {
        return Err(inherited::begin_anew());
    }
    // The orphans of guests and of HDCR come here, see `wait::gone`.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    let zoo = command.place.sources.join("zoo");
    match &command.what {
        What::List => {
            report::list(&guest::find(&zoo, &[])?)?;
            report::list_more("program", &program::list(&command.place.sources)?)?;
            report::list_more("scenario", &scenario::list(&command.place.sources)?)?;
            Ok(true)
        }
        What::Run(args) => run_zoo(&command.place, args),
        What::Programs(args) => run_programs(&command.place, args),
        What::Faults(args) => {
            faults::run(args, command.place.hdcr.as_deref(), &command.place.sources, &command.place.build)
        }
        What::Chain(args) => chain::run(args, &command.place),
        What::Golden(args) => golden::run(args, &command.place),
        What::Bench(args) => {
            bench::run(args, command.place.hdcr.as_deref(), &command.place.sources, &command.place.build)
        }
        What::Scenarios(args) => run_scenarios(&command.place, args),
        What::Modes(args) => modes::run(args, &command.place),
        What::LotPackages { names } => {
            report::print_words(&program::packages(&command.place.sources, names)?)?;
            Ok(true)
        }
        What::Demo => demo::run(&command.place.sources, command.place.hdcr.clone()),
    }
}

fn run_zoo(place: &Place, args: &RunArgs) -> Result<bool> {
    let guests = guest::find(&place.sources.join("zoo"), &args.names)?;
    let mut report = Report::new(args.json);
    let built = guest::build_all(&guests, &place.build)?;
    let plan = Plan {
        hdcr: place.hdcr.clone(),
        modes: args.mode.clone(),
        rounds: args.rounds,
        times: args.repeat,
        jobs: args.jobs.max(1),
        keep: args.keep,
    };
    trial::run_all(&plan, &built, &mut report)?;
    report.close()
}

fn run_programs(place: &Place, args: &ProgramArgs) -> Result<bool> {
    let mut report = Report::new(args.json);
    let wanted = program::Programs {
        sources: place.sources.clone(),
        folder: if args.lot { Folder::Lot } else { Folder::Chosen },
        hdcr: place.hdcr.clone(),
        names: args.names.clone(),
        kills: args.kills,
        keep: args.keep,
        steps: program::Steps { bar: indicatif::ProgressBar::hidden(), aloud: false },
    };
    program::run_all(&wanted, &mut report)?;
    report.close()
}

fn run_scenarios(place: &Place, args: &ScenarioArgs) -> Result<bool> {
    let mut report = Report::new(args.json);
    let wanted = scenario::Scenarios {
        sources: place.sources.clone(),
        hdcr: place.hdcr.clone(),
        names: args.names.clone(),
        keep: args.keep,
    };
    scenario::run_all(&wanted, &mut report)?;
    report.close()
}
