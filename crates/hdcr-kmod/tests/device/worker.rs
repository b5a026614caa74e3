//! What a thread of a target does: counts, and checks that its registers and its thread-local memory are as they were.
#![expect(unsafe_code, reason = "registers are held in assembly")]

use std::arch::asm;
use std::cell::Cell;

use crate::board::{Board, nap};

thread_local! {
    static MINE: Cell<u64> = const { Cell::new(0) };
}

/// What the worker does between two checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pace {
    /// Nothing: it never calls the kernel.
    Spin,
    /// Sleeps for a moment.
    Nap,
}

/// Works for ever.
pub(crate) fn work(board: &Board, number: usize, pace: Pace) -> ! {
    let pattern = [0x1111_1111_1111_1111_u64; 4].map(|word| word.wrapping_mul(number as u64 + 1));
    MINE.set(pattern[0]);
    let has_avx = std::arch::is_x86_feature_detected!("avx");
    board.ready();
    loop {
        let is_right = if has_avx { hold_wide(&pattern) } else { hold_narrow(&pattern) };
        if !is_right || MINE.get() != pattern[0] {
            board.wrong();
        }
        board.count(number);
        if pace == Pace::Nap {
            nap();
        }
    }
}

/// Keeps the pattern in vector registers for a while. False: it is not there any more.
fn hold_wide(pattern: &[u64; 4]) -> bool {
    let mut found = [[0_u64; 4]; 2];
    // SAFETY: it reads `pattern`, writes `found`, and names every register that it changes; AVX is there.
    unsafe {
        asm!(
            "vmovdqu ymm3, [{from}]", "vmovdqu ymm14, [{from}]",
            "2:", "pause", "dec {spins}", "jnz 2b",
            "vmovdqu [{to}], ymm3", "vmovdqu [{to} + 32], ymm14", "vzeroupper",
            from = in(reg) pattern, to = in(reg) &raw mut found, spins = inout(reg) 2000_u64 => _,
            out("ymm3") _, out("ymm14") _,
        );
    }
    found == [*pattern; 2]
}

/// The same with the registers that every processor has.
fn hold_narrow(pattern: &[u64; 4]) -> bool {
    let mut found = [0_u64; 4];
    // SAFETY: it reads `pattern`, writes `found`, and names every register that it changes.
    unsafe {
        asm!(
            "movdqu xmm3, [{from}]", "movdqu xmm14, [{from} + 16]",
            "2:", "pause", "dec {spins}", "jnz 2b",
            "movdqu [{to}], xmm3", "movdqu [{to} + 16], xmm14",
            from = in(reg) pattern, to = in(reg) &raw mut found, spins = inout(reg) 2000_u64 => _,
            out("xmm3") _, out("xmm14") _,
        );
    }
    found == *pattern
}
