//! Tasks and their general registers.

use crate::cursor::{fixed_layout, stored_enum};
use crate::tag;

stored_enum! {
    /// How a task stood.
    TaskState: u32 {
        /// It ran, or waited in a call.
        Running = 1,
        /// In a group stop.
        Stopped = 2,
        /// Ended, and not yet waited for.
        Zombie = 3,
        /// A leader that ended while other threads of its process live.
        DeadLeader = 4,
    }
}

fixed_layout! {
    /// One thread, or a process that is a zombie. Numbers are those of the tree's own pid namespace.
    Task, tag tag::TASK, version 1, check Task::check, {
        /// The thread.
        tid: i32,
        /// Its process.
        tgid: i32,
        /// The process that it is a child of; 0 when that lies outside of the tree.
        ppid: i32,
        /// Its process group.
        pgid: i32,
        /// Its session.
        sid: i32,
        /// The signal to the parent at its end.
        exit_signal: i32,
        /// What `wait` shows of a zombie or a dead leader, as the kernel keeps it; 0 for others.
        exit_status: i32,
        /// How it stood.
        state: TaskState,
        /// Bits whose meaning the engine gives.
        flags: u32,
        /// Its name, ended by a zero byte.
        comm: [u8; 16],
    }
}

impl Task {
    fn check(&self) -> Result<(), (&'static str, u64)> {
        let numbers = [("tid", self.tid), ("tgid", self.tgid)];
        let odd = numbers.into_iter().find(|number| number.1 <= 0);
        odd.map_or(Ok(()), |(field, value)| Err((field, u64::from(value.unsigned_abs()))))
    }
}

fixed_layout! {
    /// General registers of an x86-64 thread, in the order of `struct user_regs_struct`.
    Registers, tag tag::REGISTERS, version 1, check |_| Ok(()), {
        /// The registers, `r15` first and `gs` last.
        words: [u64; 27],
    }
}
