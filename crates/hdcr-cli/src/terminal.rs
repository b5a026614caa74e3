//! The terminal of a foreground command whose program may be in a process group of its own.
//!
//! A program that we start stays in our group, as with strace or nohup: keys reach both, a pipeline stays whole. A program
//! that was restored comes back in the group it had; then the terminal has to be handed over, and a stop goes both ways.
//!
//! In a private pid namespace the group that the terminal comes from has no number: it is 0 there, and nobody inside can
//! name it. So what belongs to that group (to take the terminal back, to stop) is done by the process outside.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

use crate::process;

/// The controlling terminal and the group of the program on it.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// The terminal, when there is one.
    tty: Option<OwnedFd>,
    /// Our group; 0 when its leader has no number in our pid namespace.
    own: Pid,
    /// The group of the program when it is not ours.
    group: Option<Pid>,
}

/// What a stop of the program asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// Nothing more.
    Done,
    /// The process outside of our pid namespace has to stop, and to wake the program afterwards.
    Outside,
}

impl Terminal {
    /// Looks for a controlling terminal.
    pub(crate) fn open() -> Self {
        let tty = rustix::fs::open("/dev/tty", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).ok();
        Self { tty, own: getpgrp(), group: None }
    }

    /// The program runs (again) as this process; hands over the terminal when it is ours to give.
    pub(crate) fn program_is(&mut self, pid: i32) {
        let group = process::stat(pid).map(|stat| Pid::from_raw(stat.pgid));
        self.group = group.filter(|group| group.as_raw() > 0 && *group != self.own);
        self.give(self.own);
    }

    /// A program is about to run again whose roots are children of `parent`, in the group of which this process is, and of which
    /// `foreground` had the terminal: a shell that reads from a terminal which is not its own yet takes that for the end. Later
    /// would be too late for another reason, too: it may have given the terminal to another of its jobs.
    pub(crate) fn hand_over_before(foreground: Option<i32>, parent: i32) {
        let mut background = SigSet::empty();
        background.add(Signal::SIGTTOU);
        let Ok(before) = background.thread_swap_mask(SigmaskHow::SIG_BLOCK) else { return };
        let mut terminal = Self::open();
        let group = foreground.map(Pid::from_raw);
        terminal.group = group.filter(|group| group.as_raw() > 0 && *group != terminal.own);
        terminal.give(terminal.own);
        terminal.take_from_before(parent);
        before.thread_set_mask().ok();
    }

    /// After a roll-back the terminal still has a group of the life that died. That is another one, though its number may be that
    /// of a group of this life: who reads from it is told of an error then (`drivers/tty/n_tty.c` `job_control`).
    fn take_from_before(&self, parent: i32) {
        let (Some(tty), Some(group)) = (&self.tty, self.group) else { return };
        let Ok(now) = tcgetpgrp(tty) else { return };
        if now == self.own || now.as_raw() <= 0 {
            return;
        }
        let below = process::below(parent);
        let is_below = below.into_iter().any(|pid| process::stat(pid).is_some_and(|stat| stat.pgid == now.as_raw()));
        // Somebody else's, to whom the user has given it, has it still.
        if (is_below || !process::group_lives(now.as_raw())) && tcsetpgrp(tty, group).is_err() {
            tracing::debug!("the terminal cannot be given to the program that was brought back");
        }
    }

    /// Whether keys pressed on the terminal reach the program without us.
    pub(crate) fn shares_group(&self) -> bool {
        self.group.is_none()
    }

    /// Gives the terminal to the program's group when `holder` holds it.
    fn give(&self, holder: Pid) {
        if let (Some(tty), Some(group)) = (&self.tty, self.group)
            && tcgetpgrp(tty).is_ok_and(|now| now == holder)
            && tcsetpgrp(tty, group).is_err()
        {
            tracing::debug!("the terminal cannot be handed over");
        }
    }

    /// Takes the terminal back at the end.
    pub(crate) fn take_back(&self) {
        if let (Some(tty), Some(group)) = (&self.tty, self.group)
            && tcgetpgrp(tty).is_ok_and(|now| now == group)
            && tcsetpgrp(tty, self.own).is_err()
        {
            tracing::debug!("the terminal cannot be taken back");
        }
    }

    /// The program was stopped by a signal. With job control this process stops as well, and both go on together.
    pub(crate) fn program_stopped(&self, signal: i32) -> Stop {
        let Some(group) = self.group else {
            self.stop_with_the_group(signal);
            return Stop::Done;
        };
        let by_terminal = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].iter().any(|s| *s as i32 == signal);
        if self.tty.is_none() || !by_terminal {
            return Stop::Done;
        }
        let ours = self.tty.as_ref().is_some_and(|tty| tcgetpgrp(tty).is_ok_and(|now| now == self.own));
        if ours && signal != Signal::SIGTSTP as i32 {
            // It asked for the terminal before it had been handed over.
            self.give(self.own);
        } else if self.own.as_raw() == 0 {
            return Stop::Outside;
        } else {
            self.take_back();
            stop_here();
            self.give(self.own);
        }
        process::signal_group(group.as_raw(), Signal::SIGCONT);
        Stop::Done
    }

    /// The terminal stops the whole group, and this process with it; but for `SIGTTOU` (a program of the background writes, and
    /// `stty tostop`), which this process blocks. Whoever wakes the group wakes both.
    fn stop_with_the_group(&self, signal: i32) {
        let is_ours = |tty: &OwnedFd| tcgetpgrp(tty).is_ok_and(|now| now == self.own);
        if signal == Signal::SIGTTOU as i32
            && self.own.as_raw() > 0
            && self.tty.as_ref().is_some_and(|tty| !is_ours(tty))
        {
            stop_here();
        }
    }

    /// Outside of the pid namespace of the program, which was stopped: this process stops too, and when it goes on, whoever
    /// had the terminal gets it back and is woken.
    pub(crate) fn stop_for(&mut self) {
        let holder = self.tty.as_ref().and_then(|tty| tcgetpgrp(tty).ok());
        self.group = holder.filter(|holder| holder.as_raw() > 0 && *holder != self.own);
        let Some(group) = self.group else { return };
        self.take_back();
        stop_here();
        self.give(self.own);
        process::signal_group(group.as_raw(), Signal::SIGCONT);
    }

    /// Outside of the pid namespace of the program, which has ended: the terminal that nobody inside could give back.
    pub(crate) fn take_from_the_dead(&self) {
        if let Some(tty) = &self.tty
            && let Ok(holder) = tcgetpgrp(tty)
            && holder != self.own
            && !process::group_lives(holder.as_raw())
            && tcsetpgrp(tty, self.own).is_err()
        {
            tracing::debug!("the terminal cannot be taken back");
        }
    }
}

fn stop_here() {
    if raise(Signal::SIGSTOP).is_err() {
        tracing::debug!("this process cannot stop itself");
    }
}
