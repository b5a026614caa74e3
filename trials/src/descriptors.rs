//! Descriptors that the starter of the runner left open: guests would inherit them, and a pipe whose other end is
//! outside of the tree is a refusal. Closed by beginning anew behind a shell that closes them.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

/// Whether anything but the three standard ones is open.
pub(crate) fn any_inherited() -> Result<bool> {
    let mut open = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let number: u32 = entry?.file_name().to_string_lossy().parse()?;
        open += u32::from(number > 2);
    }
    // One is the listing itself.
    Ok(open > 1)
}

/// Replaces this process by itself; returns only when that fails.
pub(crate) fn begin_anew() -> anyhow::Error {
    let script = "for f in /proc/$$/fd/*; do n=${f##*/}; [ \"$n\" -gt 2 ] && eval \"exec $n>&-\"; done; exec \"$@\"";
    let program = match std::env::current_exe().context("the runner's own path") {
        Ok(program) => program,
        Err(error) => return error,
    };
    let error = Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(program)
        .arg("--descriptors-closed")
        .args(std::env::args_os().skip(1))
        .exec();
    anyhow::Error::from(error).context("start bash to close inherited descriptors")
}
