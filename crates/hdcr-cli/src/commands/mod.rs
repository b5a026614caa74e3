//! One file a command: values in, one call of an engine, store or keeper, one value printed.

pub(crate) mod beside;
pub(crate) mod check;
pub(crate) mod checkpoint;
pub(crate) mod doctor;
pub(crate) mod list;
pub(crate) mod program;
pub(crate) mod ps;
pub(crate) mod restore;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod show;
pub(crate) mod stop;
pub(crate) mod texts;
pub(crate) mod verify;

use std::fs::File;
use std::io::Write as _;
use std::process::ExitCode;

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
    use clap::error::{ContextKind, ContextValue};
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
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if json {
        let failure = Failure::usage(error.to_string().trim().trim_start_matches("error: ").to_owned());
        Output { json, quiet: true, verbose: 0 }.failure(&failure, false);
    } else if error.print().is_err() {
        tracing::debug!("standard error is closed");
    }
    ExitCode::from(Class::Usage.status())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

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
