//! What only an image that the kernel module wrote by itself has: elsewhere these facts are records of the engine's.

use crate::cursor::{Field, Input, Output, fixed_layout};
use crate::tag;

/// Words that a process got in its auxiliary vector, zeros behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Words(pub [u64; Words::COUNT]);

impl Words {
    /// More than any kernel gives.
    pub const COUNT: usize = 64;
}

impl Field for Words {
    const SIZE: usize = <[u64; Words::COUNT] as Field>::SIZE;
    fn put(&self, out: &mut Output<'_>) -> Result<(), crate::LayoutError> {
        self.0.put(out)
    }
    fn take(input: &mut Input<'_>, field: &'static str) -> Result<Self, crate::LayoutError> {
        Field::take(input, field).map(Self)
    }
}

fixed_layout! {
    /// The whole tree, in the one frame of its kind.
    Tree, tag tag::TREE, version 1, check Tree::check, {
        /// XXH3 of what a restored process has from whoever restores it: credentials, limits, and the like.
        surroundings: u64,
        /// Bytes of the XSAVE area of each thread.
        xstate_size: u32,
        /// Processes.
        processes: u32,
        /// Threads.
        threads: u32,
        /// Zero.
        reserved: u32,
    }
}

impl Tree {
    fn check(&self) -> Result<(), (&'static str, u64)> {
        if self.processes == 0 || self.processes > self.threads {
            return Err(("processes", u64::from(self.processes)));
        }
        if self.reserved != 0 {
            return Err(("reserved word", u64::from(self.reserved)));
        }
        Ok(())
    }
}

fixed_layout! {
    /// Where things lie in an address space.
    Space, tag tag::SPACE, version 1, check |_| Ok(()), {
        /// The program: a [`crate::PathFile`].
        program: u64,
        /// The current folder: a [`crate::PathFile`].
        folder: u64,
        /// `start_code`, `end_code`, `start_data`, `end_data`, `start_brk`, `brk`, `start_stack`, `arg_start`, `arg_end`,
        /// `env_start`, `env_end`, as the kernel calls them.
        marks: [u64; 11],
        /// The auxiliary vector.
        auxiliary: Words,
    }
}

fixed_layout! {
    /// What the kernel knows of a thread beside its registers.
    Thread, tag tag::THREAD, version 1, check |_| Ok(()), {
        /// Blocked signals, bit n-1 for signal n.
        blocked: u64,
        /// The alternate signal stack.
        stack_at: u64,
        /// Its size.
        stack_size: u64,
        /// Where the kernel writes 0 at its end; 0: nowhere.
        clear_tid: u64,
        /// Head of the robust futex list.
        robust_list: u64,
        /// Address of its `struct rseq`; 0: none.
        rseq: u64,
        /// The registered size of that.
        rseq_size: u32,
        /// The signature before each abort handler.
        rseq_signature: u32,
        /// `SS_*`.
        stack_flags: u32,
        /// Zero.
        reserved: u32,
    }
}

fixed_layout! {
    /// A pipe with both ends in the tree. What is in it follows in the frame.
    Pipe, tag tag::PIPE, version 1, check |_| Ok(()), {
        /// The end that is read from; 0: nobody holds it.
        reader: u64,
        /// The end that is written to; 0: nobody holds it.
        writer: u64,
        /// `O_*` of the reader.
        reader_flags: u32,
        /// `O_*` of the writer.
        writer_flags: u32,
    }
}
