//! Signal actions and the timers that send signals.

use crate::cursor::fixed_layout;
use crate::tag;

fixed_layout! {
    /// What a process does on a signal.
    SignalAction, tag tag::SIGNAL_ACTION, version 1, check SignalAction::check, {
        /// `SIG_DFL`, `SIG_IGN` or the handler's address.
        handler: u64,
        /// `SA_*`.
        flags: u64,
        /// Address of the code that returns from the handler.
        restorer: u64,
        /// Signals blocked meanwhile, bit n-1 for signal n.
        mask: u64,
        /// The signal, 1 to 64.
        signal: u32,
    }
}

impl SignalAction {
    fn check(&self) -> Result<(), (&'static str, u64)> {
        if !(1..=64).contains(&self.signal) {
            return Err(("signal", u64::from(self.signal)));
        }
        Ok(())
    }
}

fixed_layout! {
    /// An interval timer of `setitimer`.
    Itimer, tag tag::ITIMER, version 1, check Itimer::check, {
        /// Nanoseconds that remain; 0 when it is not armed.
        value_ns: u64,
        /// Nanoseconds between later expiries.
        interval_ns: u64,
        /// `ITIMER_*`.
        which: u32,
    }
}

impl Itimer {
    fn check(&self) -> Result<(), (&'static str, u64)> {
        if self.which > 2 {
            return Err(("timer", u64::from(self.which)));
        }
        Ok(())
    }
}

fixed_layout! {
    /// A timer of `timer_create`.
    PosixTimer, tag tag::POSIX_TIMER, version 1, check |_| Ok(()), {
        /// The `sigev_value` that comes with the signal.
        value: u64,
        /// Nanoseconds that remain, or the absolute time; 0 when it is not armed.
        value_ns: u64,
        /// Nanoseconds between later expiries.
        interval_ns: u64,
        /// The kernel's number of the timer.
        id: i32,
        /// The clock, as `timer_create` takes it.
        clock: i32,
        /// The signal it sends.
        signal: i32,
        /// `SIGEV_*`.
        notify: i32,
        /// The thread it is sent to with `SIGEV_THREAD_ID`, else 0.
        tid: i32,
        /// Expiries that were missed.
        overrun: i32,
        /// Bits whose meaning the engine gives.
        flags: u32,
    }
}
