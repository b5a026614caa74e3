//! The engine's registers and the kernel's.

use hdcr_engine::regs::Regs;
use libc::user_regs_struct;

macro_rules! same_fields {
    ($($ours:ident = $kernel:ident),* $(,)?) => {
        /// The kernel's struct as the engine's.
        pub(crate) fn from_kernel(kernel: &user_regs_struct) -> Regs {
            Regs { $($ours: kernel.$kernel),* }
        }

        /// The engine's struct as the kernel's.
        pub(crate) fn to_kernel(regs: &Regs) -> user_regs_struct {
            user_regs_struct { $($kernel: regs.$ours),* }
        }
    };
}

same_fields! {
    r15 = r15, r14 = r14, r13 = r13, r12 = r12, bp = rbp, bx = rbx, r11 = r11, r10 = r10, r9 = r9, r8 = r8,
    ax = rax, cx = rcx, dx = rdx, si = rsi, di = rdi, orig_ax = orig_rax, ip = rip, cs = cs, flags = eflags,
    sp = rsp, ss = ss, fs_base = fs_base, gs_base = gs_base, ds = ds, es = es, fs = fs, gs = gs,
}

/// `orig_ax` of a thread that is in no system call.
pub(crate) const NO_CALL: u64 = u64::MAX;

/// `restart_syscall`.
pub(crate) const RESTART_SYSCALL: u64 = 219;

/// What the kernel leaves in `ax` of an interrupted call (linux/errno.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Interrupted {
    /// Not in a call, or the call is done.
    No,
    /// `-ERESTARTSYS`, `-ERESTARTNOINTR`, `-ERESTARTNOHAND`: the call is made again.
    Again,
    /// `-ERESTART_RESTARTBLOCK`: goes on through the kernel's restart block.
    Block,
}

/// How the call that the thread was in stands.
pub(crate) fn interrupted(regs: &Regs) -> Interrupted {
    // The kernel looks at the sign of the whole word (arch/x86/kernel/signal.c `handle_signal`).
    if regs.orig_ax.cast_signed() < 0 {
        return Interrupted::No;
    }
    match regs.ax.cast_signed() {
        -514..=-512 => Interrupted::Again,
        -516 => Interrupted::Block,
        _ => Interrupted::No,
    }
}

/// The thread before its `syscall` instruction, about to make the call `nr`.
pub(crate) fn before_call(regs: &Regs, nr: u64) -> Regs {
    Regs { ip: regs.ip.wrapping_sub(2), ax: nr, orig_ax: NO_CALL, ..*regs }
}

/// What a thread must hold to go on without the kernel's own restart at a signal return.
pub(crate) fn restarted_by_hand(regs: &Regs, restart_block: RestartBlock) -> Regs {
    match (interrupted(regs), restart_block) {
        (Interrupted::No, _) => *regs,
        (Interrupted::Block, RestartBlock::Kept) => before_call(regs, RESTART_SYSCALL),
        (Interrupted::Again, _) | (Interrupted::Block, RestartBlock::Lost) => before_call(regs, regs.orig_ax),
    }
}

/// Whether the kernel still holds a thread's restart block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RestartBlock {
    /// `restart_syscall` goes on with what remains.
    Kept,
    /// A later timed call, a handler or a new task has destroyed it.
    Lost,
}

/// A `poll` without a time limit: the only call with a restart block that has no end.
pub(crate) fn waits_for_ever(regs: &Regs) -> bool {
    const POLL: u64 = 7;
    // The limit is an `int` of milliseconds: its sign is bit 31.
    regs.orig_ax == POLL && regs.dx & (1 << 31) != 0
}
