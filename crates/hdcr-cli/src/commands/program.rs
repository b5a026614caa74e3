//! `hdcr __program`: the last step before the user's program, in the process that becomes it.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt as _;

use nix::errno::Errno;

use crate::failure::{Class, Failure, chain};
use crate::job;
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
    let Some(program) = command.first() else { return Failure::usage("there is no program to run") };
    let words = command.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<Vec<_>, _>>();
    let (Ok(words), Ok(path)) = (words, CString::new(program.as_bytes())) else {
        return Failure::usage("a word of the command has a NUL in it");
    };
    // Not by the standard library, which sets SIGPIPE to its default.
    hdcr_sys::dispositions::give_back();
    let error = match nix::unistd::execvp(&path, &words) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    let class = if error == Errno::ENOENT { Class::NoProgram } else { Class::NotExecutable };
    let cause = std::io::Error::from(error);
    Failure::new(
        class,
        "exec",
        format!("{} cannot be run: {}", job::show(std::slice::from_ref(program)), chain(&cause)),
    )
}
