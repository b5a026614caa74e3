//! One file a command: values in, one call of an engine, store or keeper, one value printed.

pub(crate) mod beside;
pub(crate) mod check;
pub(crate) mod checkpoint;
pub(crate) mod doctor;
pub(crate) mod job;
pub(crate) mod list;
pub(crate) mod pin;
pub(crate) mod program;
pub(crate) mod prune;
pub(crate) mod ps;
pub(crate) mod restore;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod show;
pub(crate) mod stop;
pub(crate) mod texts;
pub(crate) mod verify;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _};

use crate::cli::Cli;
use crate::failure::{Class, Failure, Result};
use crate::output::{Output, written};
use crate::registry::Registry;
use crate::settings::Settings;
use crate::trust;

/// What every command is given.
#[derive(Debug)]
pub(crate) struct Surrounding<'a> {
    /// How results are told.
    pub(crate) output: Output,
    /// Configuration, environment and flags.
    pub(crate) settings: &'a Settings,
    /// This is the first process of a private pid namespace, and reports here.
    pub(crate) inside: Option<File>,
    /// The number of the descriptor that leads to whoever runs an algorithm.
    pub(crate) rule: Option<i32>,
    /// The pid here of the process that is meant, when this command runs in namespaces that were entered for it.
    pub(crate) entered: Option<i32>,
    /// This command was started for one that leads a process group.
    pub(crate) apart: bool,
    /// The user trusts whoever can write to the store.
    pub(crate) trusts: bool,
}

impl Surrounding<'_> {
    /// Refuses a store that others may have written. Within a namespace whoever has entered it has done so.
    pub(crate) fn trusted_store(&self) -> Result<()> {
        if self.inside.is_some() || self.entered.is_some() {
            return Ok(());
        }
        trust::store(&self.settings.store, self.trusts)
    }

    /// The jobs that run.
    pub(crate) fn registry(&self) -> Result<Registry> {
        Registry::open(&self.settings.surroundings.jobs())
    }
}

/// Commands that are parts of hdcr itself are nothing that a user has meant.
fn propose_nothing_hidden(error: &mut clap::Error) {
    let kind = ContextKind::SuggestedSubcommand;
    let hidden = |name: &String| name.starts_with("__");
    let proposed = match error.remove(kind) {
        Some(ContextValue::String(name)) => (!hidden(&name)).then_some(ContextValue::String(name)),
        Some(ContextValue::Strings(names)) => {
            let names: Vec<String> = names.into_iter().filter(|name| !hidden(name)).collect();
            (!names.is_empty()).then_some(ContextValue::Strings(names))
        }
        other => other,
    };
    if let Some(proposed) = proposed {
        error.insert(kind, proposed);
    }
}

/// The word of the command line that is the command, when it is one.
fn command_of(words: &[OsString]) -> Option<clap::Command> {
    let mut program = Cli::command();
    program.build();
    let found = words.iter().skip(1).find_map(|word| program.find_subcommand(word.to_str()?)).cloned();
    found.filter(|command| !command.is_hide_set())
}

/// The command line as it is given; a variable of the environment that is set to nothing is none.
pub(crate) fn read() -> std::result::Result<Cli, clap::Error> {
    fn heed(command: clap::Command) -> clap::Command {
        let heed_one = |option: clap::Arg| {
            let is_empty = option.get_env().and_then(variable).is_some_and(|value| value.is_empty());
            if is_empty { option.env(clap::builder::Resettable::Reset) } else { option }
        };
        command.mut_args(heed_one).mut_subcommands(heed)
    }
    let mut found = heed(Cli::command()).try_get_matches()?;
    Cli::from_arg_matches_mut(&mut found)
}

#[expect(clippy::disallowed_methods, reason = "options are read from the environment here")]
fn variable(name: &std::ffi::OsStr) -> Option<OsString> {
    std::env::var_os(name)
}

/// What is wrong with the command line, in the form of all other failures.
fn wrong(error: &clap::Error, words: &[OsString]) -> Failure {
    let text = error.to_string();
    let mut lines = text.trim().trim_start_matches("error: ").lines();
    let mut message = lines.next().unwrap_or_default().to_owned();
    let rest = lines.skip_while(|line| line.trim().is_empty());
    // What is missing, or could be chosen, stands in lines of their own below.
    let details: Vec<&str> = rest.take_while(|line| line.starts_with("  ")).map(str::trim).collect();
    if message.ends_with(':') {
        message = format!("{message} {}", details.join(", "));
    } else if let [choices] = details.as_slice()
        && choices.starts_with('[')
    {
        message = format!("{message} {choices}");
    }
    // What is said of `--` is meant for values of options; behind the one of `run` stands the program.
    let tips = text.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).map(str::to_owned);
    let tips = tips.filter(|tip| !tip.starts_with("to pass '"));
    let mut remedy: Vec<String> = tips.collect();
    if words.get(1).is_some_and(|word| word == "help") {
        let named = command_of(words).map(|command| format!("`hdcr {} --help`", command.get_name()));
        let remedy = named.unwrap_or_else(|| "`hdcr --help`".to_owned());
        return Failure::usage("there is no command help").remedy(format!("{remedy} tells it"));
    }
    let command = command_of(words);
    if let Some(variable) = command.as_ref().and_then(|command| variable_of(error, command, words)) {
        message = format!("{message} (the value is that of the environment variable {variable})");
    }
    let is_run = command.as_ref().is_some_and(|command| command.get_name() == "run");
    if is_run && !words.iter().any(|word| word == "--") {
        remedy.clear();
        remedy.push(before_the_program(error));
    }
    if let Some(mut command) = command {
        let usage = command.render_usage().to_string();
        remedy.push(format!(
            "{}; `hdcr {} --help` tells more",
            usage.trim().replace("Usage:", "usage:"),
            command.get_name()
        ));
    } else {
        remedy.push("`hdcr --help` lists the commands".to_owned());
    }
    Failure::usage(message).remedy(remedy.join("\n"))
}

/// The environment variable that a wrong value came from.
fn variable_of(error: &clap::Error, command: &clap::Command, words: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = named.split_whitespace().next().filter(|flag| flag.starts_with("--"))?;
    let is_given = |word: &OsString| word.to_str().is_some_and(|word| word.split('=').next() == Some(flag));
    let option = command.get_arguments().find(|option| option.get_long() == flag.get(2..))?;
    let variable = option.get_env()?.to_string_lossy().into_owned();
    (error.kind() == ErrorKind::ValueValidation || error.kind() == ErrorKind::InvalidValue)
        .then_some(variable)
        .filter(|_| !words.iter().any(is_given))
}

/// The program of `run` is not an option of hdcr.
fn before_the_program(error: &clap::Error) -> String {
    let word = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if error.kind() == ErrorKind::UnknownArgument => word.as_str(),
        _ => "PROGRAM",
    };
    format!("write -- before the program: `hdcr run [OPTIONS] -- {word} ...`")
}

/// A command line that is not one: help and version are printed and are no error.
pub(crate) fn usage(mut error: clap::Error) -> ExitCode {
    propose_nothing_hidden(&mut error);
    if !error.use_stderr() {
        let flushed = error.print().and_then(|()| std::io::stdout().flush());
        return match written(flushed) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                Output { json: false, quiet: true, verbose: 0 }.failure(&failure, true);
                ExitCode::from(failure.class.status())
            }
        };
    }
    let words: Vec<OsString> = std::env::args_os().collect();
    let json = words.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    // `hdcr` alone asks what there is.
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && !json {
        if error.print().is_err() {
            tracing::debug!("standard error is closed");
        }
    } else {
        Output { json, quiet: true, verbose: 0 }.failure(&wrong(&error, &words), false);
    }
    ExitCode::from(Class::Usage.status())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn refused(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        wrong(&Cli::try_parse_from(&words).unwrap_err(), &words).to_string()
    }

    #[test]
    fn a_wrong_line_is_told_with_what_to_write() {
        for (line, told) in [
            ("hdcr run sleep 10", "write -- before the program: `hdcr run [OPTIONS] -- sleep ...`"),
            ("hdcr run --name a ./sim --steps 3", "-- ./sim ..."),
            ("hdcr run --name a", "write -- before the program: `hdcr run [OPTIONS] -- PROGRAM ...`"),
            ("hdcr run --evry 3s -- sleep", "a similar argument exists: '--every'"),
            ("hdcr run --every 5 -- sleep", "\"5\" lacks a unit"),
            ("hdcr checkpoint", "were not provided: <PID|NAME>"),
            ("hdcr run --lazy maybe -- sleep", "[possible values: auto, always, never]"),
            ("hdcr restor x", "'restore'"),
            ("hdcr help run", "`hdcr run --help`"),
            ("hdcr help", "`hdcr --help`"),
            ("hdcr run --detach -- sleep", "usage: hdcr run [OPTIONS] -- <CMD>"),
            (
                "hdcr checkpoint 1 --kill --stop",
                "usage: hdcr checkpoint [OPTIONS] <PID|NAME>; `hdcr checkpoint --help`",
            ),
        ] {
            let text = refused(line);
            assert!(text.contains(told) && !text.contains("error:") && !text.contains("tip:"), "{line}: {text}");
        }
    }

    #[test]
    fn only_commands_for_users_are_proposed() {
        for (word, proposed) in [("probe", None), ("worke", None), ("frob", None), ("restor", Some("restore"))] {
            let mut error = Cli::try_parse_from(["hdcr", word]).unwrap_err();
            propose_nothing_hidden(&mut error);
            let text = error.to_string();
            assert!(!text.contains("__"), "{text}");
            assert!(proposed.is_none_or(|proposed| text.contains(proposed)), "{text}");
        }
    }
}
