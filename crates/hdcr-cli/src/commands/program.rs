//! `hdcr __program`: the last step before the user's program, in the process that becomes it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::failure::{Class, Failure};
use crate::namespace;
use crate::signals;

/// Executes the program. Returns only when that fails.
pub(crate) fn become_it(command: &[OsString], unblock: &[i32]) -> Failure {
    if let Err(failure) = namespace::drop_capabilities().and_then(|()| signals::unblock(unblock)) {
        return failure;
    }
    // What the caller of `hdcr run` happened to leave open is not the job's: an end that leads out of the tree could not be
    // checkpointed. sudo(8) does the same.
    if let Err(error) = hdcr_sys::close_range::close_on_exec_from(3) {
        return Failure::system("closing inherited descriptors")(error);
    }
    let Some((program, arguments)) = command.split_first() else { return Failure::usage("there is no program to run") };
    let error = Command::new(program).args(arguments).exec();
    let class = if error.kind() == std::io::ErrorKind::NotFound { Class::NoProgram } else { Class::NotExecutable };
    Failure::new(class, "exec", format!("{} cannot be run: {error}", program.display()))
}
