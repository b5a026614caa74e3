//! The program `hdcrd`: the agent of a host for one member of a parallel job.
//!
//! It is the program `hdcr` that lies beside it, which knows how to be one.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use std::io::Write as _;

fn main() -> ExitCode {
    let beside = std::env::current_exe().map(|own| own.with_file_name("hdcr"));
    let error = match beside {
        Ok(hdcr) => Command::new(hdcr).arg("__agent").args(std::env::args_os().skip(1)).exec(),
        Err(error) => error,
    };
    // Nobody is left to be told when that fails.
    writeln!(std::io::stderr(), "hdcrd: the program hdcr beside this one cannot be run: {error}").ok();
    ExitCode::from(71)
}
