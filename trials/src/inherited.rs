//! What the starter of the runner left to it and guests would inherit: open descriptors (a pipe whose other end is outside
//! of the tree is a refusal) and ignored signals (what `nohup` does; a shell cannot trap a signal that it began with
//! ignored, and no terminal can hang it up). The runner begins anew without them.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

/// `SIGPIPE`, which Rust's runtime ignores itself and gives back to programs that it starts.
const PIPE: u64 = 1 << 12;

/// Whether anything but the three standard descriptors is open, or a signal is ignored.
pub(crate) fn anything() -> Result<bool> {
    let mut open = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let number: u32 = entry?.file_name().to_string_lossy().parse()?;
        open += u32::from(number > 2);
    }
    let status = fs::read_to_string("/proc/self/status")?;
    // One is the listing itself.
    Ok(open > 1 || ignored(&status).context("no SigIgn in /proc/self/status")? & !PIPE != 0)
}

/// The set of ignored signals, from the text of `/proc/PID/status`.
fn ignored(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

/// Replaces this process by itself; returns only when that fails.
pub(crate) fn begin_anew() -> anyhow::Error {
    let script = "for f in /proc/$$/fd/*; do n=${f##*/}; [ \"$n\" -gt 2 ] && eval \"exec $n>&-\"; done; exec \"$@\"";
    let program = match std::env::current_exe().context("the runner's own path") {
        Ok(program) => program,
        Err(error) => return error,
    };
    let error = Command::new("env")
        .args(["--default-signal", "bash", "-c", script, "bash"])
        .arg(program)
        .arg("--begun-anew")
        .args(std::env::args_os().skip(1))
        .exec();
    anyhow::Error::from(error).context("start bash to close inherited descriptors")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read() {
        assert_eq!(ignored("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n"), Some(0x1001));
        assert_eq!(ignored("Name:\tx\n"), None);
    }
}
