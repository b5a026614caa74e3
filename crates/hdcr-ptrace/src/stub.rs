//! The code that runs in other tasks: position independent, no stack, and it heals its thread when nobody traces it.
//!
//! Two blocks of code, each followed by its own control block: *once* makes the call whose arguments are in the registers,
//! and a second one with what that gave; *batch* works through a table of calls. Both end in a signal sent to themselves, chosen so that it means
//! nothing to the program: a traced thread stops at it, an untraced one (the tracer died) does not notice it and goes on
//! into the heal, which loads every register and the signal mask of the program from the control block.
//!
//! A child made by the call `clone` of a table has one way to go: it takes a name, gives up all descriptors and ends. That is
//! its heal, and its tracer stops it at its end, where its memory is still whole.
//!
//! Nothing is written but the table: code and control blocks lie in memory that the program itself cannot write.
//!
//! Never an `int3`, never a single step: both kill the thread when the tracer is dead. Plain loads instead of
//! `rt_sigreturn`: floating point and vector registers are never touched, and the kernel's restart block lives.
#![expect(unsafe_code, reason = "machine code of ours is copied from where the assembler put it")]

use core::arch::global_asm;

use hdcr_engine::regs::Regs;

/// Length of the *once* code and its control block.
pub(crate) const ONCE_LEN: usize = ONCE_CODE_LEN + CONTROL_LEN;
const _: () = assert!(ONCE_LEN as u64 <= hdcr_engine::mechanism::CODE_ROOM, "what the engine counts with");
/// Where the control block of *once* begins.
pub(crate) const ONCE_CODE_LEN: usize = 0x100;
/// Distance between the *batch* blocks of two threads.
pub(crate) const BATCH_STRIDE: usize = 1024;
const _: () = assert!(BATCH_STRIDE <= hdcr_engine::mechanism::THREAD_ROOM, "what the engine counts with");
/// The name of a child that a batch has made: what is left of one whose tracer was killed is known by it.
pub(crate) const CHILD_NAME: &[u8] = b"hdcr-snapshot";
/// Where the control block of *batch* begins.
pub(crate) const BATCH_CODE_LEN: usize = 0x200;
/// Length of a control block.
pub(crate) const CONTROL_LEN: usize = 192;

global_asm!(
    r#"
    .pushsection .rodata.hdcr_stub,"a",@progbits

    /* Offsets in a control block: 0 unused, 8 process, 16 thread, 24 signal, 32 mask, 40 flags, 48.. registers,
       168 sp, 176 ip, 184 all ones. */
    .macro hdcr_rendezvous ctl, here
    mov \ctl+8(%rip), %rdi
    mov \ctl+16(%rip), %rsi
    mov \ctl+24(%rip), %rdx
    mov $234, %eax                      /* tgkill */
    syscall
\here:
    mov $14, %eax                       /* rt_sigprocmask: block all */
    mov $0, %edi
    lea \ctl+184(%rip), %rsi
    mov $0, %edx
    mov $8, %r10d
    syscall
    lea \ctl+40(%rip), %rsp
    popfq                               /* mov and lea keep the flags from here on */
    mov \ctl+168(%rip), %rsp
    mov $14, %eax                       /* rt_sigprocmask: the program's own mask */
    mov $2, %edi
    lea \ctl+32(%rip), %rsi
    mov $0, %edx
    mov $8, %r10d
    syscall
    mov \ctl+48(%rip), %r15
    mov \ctl+56(%rip), %r14
    mov \ctl+64(%rip), %r13
    mov \ctl+72(%rip), %r12
    mov \ctl+80(%rip), %rbp
    mov \ctl+88(%rip), %rbx
    mov \ctl+96(%rip), %r11
    mov \ctl+104(%rip), %r10
    mov \ctl+112(%rip), %r9
    mov \ctl+120(%rip), %r8
    mov \ctl+128(%rip), %rax
    mov \ctl+136(%rip), %rcx
    mov \ctl+144(%rip), %rdx
    mov \ctl+152(%rip), %rsi
    mov \ctl+160(%rip), %rdi
    jmp *\ctl+176(%rip)
    .endm

    /* Code generation may put their users into another object of this crate. */
    .globl hdcr_once, hdcr_once_here, hdcr_batch, hdcr_batch_here
    .hidden hdcr_once, hdcr_once_here, hdcr_batch, hdcr_batch_here

    .balign 64
hdcr_once:
    syscall
    mov %rax, %rbp
    test %ebx, %ebx                     /* the second call, if there is one and the first succeeded */
    jz 1f
    cmp $-4095, %rax
    jae 1f
    lea (%rax,%r12), %rdi
    mov %r13, %rsi
    mov %r14, %rdx
    mov %ebx, %eax
    syscall
    mov %rax, %rbx
1:  hdcr_rendezvous hdcr_once_ctl, hdcr_once_here
    .org hdcr_once + 0x100
hdcr_once_ctl:
    .org hdcr_once + 0x1c0

    .balign 64
hdcr_batch:
    mov %rbx, %r13
1:  cmp %r12, %rbx
    jae 9f
    movzbl 64(%rbx), %ebp               /* first argument taken from a result */
    test %ebp, %ebp
    jz 2f
    movzwl 68(%rbx), %ecx
    imul $80, %rcx, %rcx
    mov 56(%r13,%rcx), %rax
    mov %rax, (%rbx,%rbp,8)
2:  movzbl 65(%rbx), %ebp               /* second one */
    test %ebp, %ebp
    jz 3f
    movzwl 70(%rbx), %ecx
    imul $80, %rcx, %rcx
    mov 56(%r13,%rcx), %rax
    mov %rax, (%rbx,%rbp,8)
3:  mov (%rbx), %rax
    mov 8(%rbx), %rdi
    mov 16(%rbx), %rsi
    mov 24(%rbx), %rdx
    mov 32(%rbx), %r10
    mov 40(%rbx), %r8
    mov 48(%rbx), %r9
    syscall
    mov %rax, 56(%rbx)
    testb $2, 66(%rbx)
    jz 5f
    test %rax, %rax
    jz hdcr_batch_child
5:  testb $1, 66(%rbx)
    jz 4f
    cmp $-4095, %rax
    jae 9f
4:  add $80, %rbx
    jmp 1b
9:  hdcr_rendezvous hdcr_batch_ctl, hdcr_batch_here
hdcr_batch_child:
    mov $157, %eax                      /* prctl: a name */
    mov $15, %edi
    lea hdcr_batch_name(%rip), %rsi
    syscall
    mov $436, %eax                      /* close_range: all, of a table of its own */
    mov $0, %edi
    mov $-1, %esi
    mov $2, %edx
    syscall
    mov $231, %eax                      /* exit_group */
    mov $0, %edi
    syscall
    hlt
hdcr_batch_name:
    .asciz "hdcr-snapshot"
    .org hdcr_batch + 0x200
hdcr_batch_ctl:
    .org hdcr_batch + 0x2c0
    .popsection
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static hdcr_once: [u8; ONCE_CODE_LEN];
    static hdcr_once_here: u8;
    static hdcr_batch: [u8; BATCH_CODE_LEN];
    static hdcr_batch_here: u8;
}

/// The *once* code.
pub(crate) fn once_code() -> &'static [u8; ONCE_CODE_LEN] {
    // SAFETY: the assembler put that many bytes there, in a section that is never written.
    unsafe { &hdcr_once }
}

/// The *batch* code.
pub(crate) fn batch_code() -> &'static [u8; BATCH_CODE_LEN] {
    // SAFETY: the assembler put that many bytes there, in a section that is never written.
    unsafe { &hdcr_batch }
}

/// Where in *once* a thread stands at the rendezvous.
pub(crate) fn once_rendezvous() -> u64 {
    distance(&raw const hdcr_once_here, (&raw const hdcr_once).cast())
}

/// Where in *batch* a thread stands at the rendezvous.
pub(crate) fn batch_rendezvous() -> u64 {
    distance(&raw const hdcr_batch_here, (&raw const hdcr_batch).cast())
}

fn distance(to: *const u8, from: *const u8) -> u64 {
    u64::try_from(to.addr().wrapping_sub(from.addr())).unwrap_or(u64::MAX)
}

/// What a control block holds: who the thread is, and how it goes on when the tracer is dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Control {
    /// Process and thread number as the thread's own pid namespace has them.
    pub(crate) process: i32,
    pub(crate) thread: i32,
    /// The rendezvous signal.
    pub(crate) signal: i32,
    /// The program's own signal mask.
    pub(crate) mask: u64,
    /// The program's own registers, restarted by hand.
    pub(crate) regs: Regs,
}

/// The trap flag: never to be loaded by `popfq`.
pub(crate) const TRAP_FLAG: u64 = 0x100;

impl Control {
    /// The bytes of the block.
    pub(crate) fn encode(&self) -> [u8; CONTROL_LEN] {
        let r = &self.regs;
        let number = |n: i32| i64::from(n).cast_unsigned();
        let words = [
            0,
            number(self.process),
            number(self.thread),
            number(self.signal),
            self.mask,
            r.flags & !TRAP_FLAG,
            r.r15,
            r.r14,
            r.r13,
            r.r12,
            r.bp,
            r.bx,
            r.r11,
            r.r10,
            r.r9,
            r.r8,
            r.ax,
            r.cx,
            r.dx,
            r.si,
            r.di,
            r.sp,
            r.ip,
            u64::MAX,
        ];
        let mut bytes = [0; CONTROL_LEN];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Mask and registers that a block left by a dead tracer holds, on top of what the block does not hold.
    pub(crate) fn adopt(bytes: &[u8; CONTROL_LEN], rest: &Regs) -> (u64, Regs) {
        let mut words = [0u64; CONTROL_LEN / 8];
        for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = from.try_into().map_or(0, u64::from_le_bytes);
        }
        let [_, _, _, _, mask, flags, r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, tail @ ..] = words;
        let [ax, cx, dx, si, di, sp, ip, _] = tail;
        let regs = Regs {
            flags,
            r15,
            r14,
            r13,
            r12,
            bp,
            bx,
            r11,
            r10,
            r9,
            r8,
            ax,
            cx,
            dx,
            si,
            di,
            sp,
            ip,
            orig_ax: crate::registers::NO_CALL,
            ..*rest
        };
        (mask, regs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_block_is_read_back() {
        let regs = Regs {
            r15: 1,
            bp: 2,
            ax: 3,
            di: 4,
            sp: 5,
            ip: 6,
            flags: 0x246,
            orig_ax: crate::registers::NO_CALL,
            cs: 0x33,
            ..Regs::default()
        };
        let control = Control { process: 1, thread: 2, signal: 23, mask: 0xdead, regs };
        let rest = Regs { cs: 0x33, orig_ax: 9, ..Regs::default() };
        assert_eq!(Control::adopt(&control.encode(), &rest), (0xdead, regs));
    }

    #[test]
    fn the_rendezvous_lies_in_the_code() {
        let once = usize::try_from(once_rendezvous()).unwrap();
        let batch = usize::try_from(batch_rendezvous()).unwrap();
        // Both come right after a `syscall` instruction.
        assert_eq!(once_code().get(once - 2..once), Some(&[0x0f, 0x05][..]));
        assert_eq!(batch_code().get(batch - 2..batch), Some(&[0x0f, 0x05][..]));
        assert_eq!(once_code().get(..2), Some(&[0x0f, 0x05][..]));
    }

    #[test]
    fn a_child_takes_the_name_by_which_it_is_known() {
        let name = [CHILD_NAME, b"\0"].concat();
        assert!(batch_code().windows(name.len()).any(|bytes| bytes == name));
    }
}
