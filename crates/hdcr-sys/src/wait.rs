//! Looking at children and tracees with `waitid(2)`, without taking the report away unless that is asked for.
//!
//! A report that was taken is lost to everybody else: a signal-delivery stop that was taken swallows its signal when the
//! tracer dies (kernel/signal.c `ptrace_stop`). So tracers look (`WNOWAIT`) and take only what is dead.
#![expect(unsafe_code, reason = "raw system calls")]

use nix::Result;
use nix::errno::Errno;

/// What a look found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The task runs, or is not there to be waited for yet.
    Nothing,
    /// A trace stop: signal in the low byte, event above it.
    Stopped(i32),
    /// The task is dead: it exited with this code.
    Exited(i32),
    /// The task is dead: this signal killed it.
    Killed(i32),
}

/// Whether the report stays or goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Take {
    /// It stays, for the next look or for the parent.
    Leave,
    /// It is collected; a dead task is reaped or handed on to its real parent.
    Collect,
}

/// Looks at one task (thread or process) that this process traces or has cloned; never blocks. `ECHILD`: not ours.
pub fn look(tid: i32, take: Take) -> Result<Seen> {
    let id = libc::id_t::try_from(tid).map_err(|_| Errno::EINVAL)?;
    let mut options = libc::WNOHANG | libc::__WALL | libc::WEXITED;
    // A collecting look is for the dead only: a stop report is never to be taken.
    options |= match take {
        Take::Leave => libc::WSTOPPED | libc::WNOWAIT,
        Take::Collect => 0,
    };
    // SAFETY: all-zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let to = &raw mut info;
    // SAFETY: `to` is a live siginfo_t, the rest are numbers.
    Errno::result(unsafe { libc::waitid(libc::P_PID, id, to, options) })?;
    // SAFETY: waitid fills the SIGCHLD fields; with WNOHANG and nothing to report they are zero.
    if unsafe { info.si_pid() } == 0 {
        return Ok(Seen::Nothing);
    }
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    Ok(match info.si_code {
        libc::CLD_EXITED => Seen::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => Seen::Killed(status),
        _ => Seen::Stopped(status),
    })
}
