//! The program `hdcr`: checkpoint and rollback-recovery of process trees.
//!
//! Commands are read (`cli.rs`), settings found (`settings.rs`), and one file of `commands/` does the work; the concrete
//! mechanism and store are chosen in `parts.rs` alone.

mod algorithm;
mod asking;
mod busy;
mod by_hand;
mod channel;
mod classes;
mod cli;
mod commands;
mod door;
mod duration;
mod failure;
mod filling;
mod foreground;
mod host;
mod job;
mod keeper;
mod kinds;
mod machine;
mod names;
mod namespace;
mod orphan;
mod output;
mod parallel;
mod parts;
mod paths;
mod process;
mod progress;
mod registry;
mod rule;
mod settings;
mod shortage;
mod signals;
mod slow;
mod standby;
mod table;
mod task;
mod terminal;
mod told;
mod trust;
mod upright;
mod worker;

use std::process::ExitCode;

use cli::{Cli, Command};
use commands::Surrounding;
use failure::Result;
use output::Output;
use settings::Settings;

fn main() -> ExitCode {
    let cli = match commands::read() {
        Ok(cli) => cli,
        Err(error) => return commands::usage(error),
    };
    let output = Output { json: cli.common.json, quiet: cli.common.quiet, verbose: cli.common.verbose };
    output::trace(output);
    let aside = matches!(
        cli.command,
        Command::Run(_)
            | Command::Restore(_)
            | Command::Agent(_)
            | Command::Worker
            | Command::Program(_)
            | Command::Rule(_)
    ) || matches!(&cli.command, Command::Job(args) if matches!(args.what, cli::job::JobCommand::Run(_)));
    match run(cli, output) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            output.failure(&failure, aside);
            ExitCode::from(failure.class.status())
        }
    }
}

/// Does what the command line says; the exit status.
fn run(cli: Cli, output: Output) -> Result<u8> {
    // These know nothing of settings, so that a bad configuration cannot hinder them.
    if let Command::Worker = &cli.command {
        return worker::work().map(|()| 0);
    }
    if let Command::Program(args) = &cli.command {
        return Err(commands::program::become_it(&args.command, &args.unblock));
    }
    if let Command::Rule(args) = &cli.command {
        let done = if args.first { rule::step_aside(&args.command) } else { rule::serve(&args.command) };
        return done.map(|()| 0);
    }
    let settings = Settings::read(&cli.common, cli.command.needs_store())?;
    let inside = cli.common.inside.as_deref().map(namespace::inside).transpose()?;
    let at = Surrounding {
        output,
        settings: &settings,
        inside,
        entered: cli.common.entered,
        apart: cli.common.apart,
        rule: cli.common.rule,
        trusts: cli.common.trust_store,
    };
    let status = match cli.command {
        Command::Run(args) => commands::run::run(&at, &args),
        Command::Checkpoint(args) => commands::checkpoint::run(&at, &args),
        Command::Restore(args) => commands::restore::run(&at, &args),
        Command::Check(args) => commands::check::run(&at, &args),
        Command::Ps => commands::ps::run(&at),
        Command::Stop(args) => commands::stop::run(&at, &args),
        Command::List(args) => commands::list::run(&at, &args),
        Command::Show(args) => commands::show::run(&at, &args),
        Command::Verify(args) => commands::verify::run(&at, &args),
        Command::Pin(args) => commands::pin::pin(&at, &args),
        Command::Unpin(args) => commands::pin::unpin(&at, &args),
        Command::Rm(args) => commands::rm::run(&at, &args),
        Command::Prune(args) => commands::prune::run(&at, &args),
        Command::Doctor => commands::doctor::run(&at),
        Command::Job(args) => commands::job::run(&at, &args),
        Command::Agent(args) => parallel::agent::enter(&at, &args),
        Command::Completions(args) => commands::texts::completions(&args),
        Command::Manpage(args) => commands::texts::manpage(&args),
        Command::Probe => commands::doctor::probe(&at),
        Command::Worker | Command::Program(_) | Command::Rule(_) => Ok(0),
    };
    if at.inside.is_some() {
        namespace::wait_for_entered();
    }
    status
}
