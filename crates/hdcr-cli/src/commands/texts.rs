//! `hdcr completions` and the manual pages: both are made from the command line's own description.

use clap::CommandFactory as _;

use crate::cli::{Cli, CompletionsArgs, ManpageArgs};
use crate::failure::{Failure, Result};
use crate::output::Output;

pub(crate) fn completions(args: &CompletionsArgs) -> Result<u8> {
    let mut bytes = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hdcr", &mut bytes);
    Output::raw(&bytes)?;
    Ok(0)
}

pub(crate) fn manpage(args: &ManpageArgs) -> Result<u8> {
    let made = clap_mangen::generate_to(Cli::command(), &args.directory);
    made.map_err(Failure::system(format_args!("writing manual pages into {}", args.directory.display())))?;
    Ok(0)
}
