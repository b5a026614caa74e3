//! Requests of `ptrace(2)`, by number, as the kernel takes them (no glibc in between).
//!
//! Every request here writes at most into memory that this file owns, so all of them are safe to call; what they do to
//! the other task is the caller's business.
#![expect(unsafe_code, reason = "raw system calls")]

use std::ffi::c_void;
use std::mem::size_of;

use libc::{c_long, c_uint, iovec, user_regs_struct};
use nix::Result;
use nix::errno::Errno;

/// A stop by `PTRACE_INTERRUPT`, of a task born traced, or a group stop (`include/uapi/linux/ptrace.h`).
pub const EVENT_STOP: i32 = 128;

const GET_RSEQ_CONFIGURATION: c_uint = 0x420f;
const PEEKSIGINFO_SHARED: u32 = 1;

/// What `PTRACE_GET_RSEQ_CONFIGURATION` tells (`struct ptrace_rseq_configuration`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RseqConfiguration {
    /// Address of the thread's `struct rseq`, 0 when none is registered.
    pub pointer: u64,
    /// Its registered size.
    pub size: u32,
    /// The signature before abort handlers.
    pub signature: u32,
    /// Always 0.
    pub flags: u32,
    /// Always 0.
    pub pad: u32,
}

/// # Safety
/// `addr` and `data` must be what the request wants: numbers, or addresses of memory that it may read or write.
unsafe fn request(op: c_uint, tid: i32, addr: usize, data: usize) -> Result<c_long> {
    // SAFETY: the caller vouches for the two words; the rest are numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_ptrace, c_long::from(op), tid, addr, data) })
}

fn number(op: c_uint, tid: i32, data: usize) -> Result<()> {
    // SAFETY: the requests made through here take no address of this process.
    unsafe { request(op, tid, 0, data) }.map(drop)
}

fn signal_word(signal: i32) -> usize {
    usize::try_from(signal).unwrap_or(0)
}

/// Attaches without stopping. `options` are `PTRACE_O_*` bits.
pub fn seize(tid: i32, options: i32) -> Result<()> {
    let options = usize::try_from(options).map_err(|_| Errno::EINVAL)?;
    number(libc::PTRACE_SEIZE, tid, options)
}

/// Asks a seized task to stop.
pub fn interrupt(tid: i32) -> Result<()> {
    number(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Lets a stopped task run, with a signal or 0.
pub fn cont(tid: i32, signal: i32) -> Result<()> {
    number(libc::PTRACE_CONT, tid, signal_word(signal))
}

/// Lets a stopped task run up to the next border of a system call.
pub fn cont_to_syscall(tid: i32, signal: i32) -> Result<()> {
    number(libc::PTRACE_SYSCALL, tid, signal_word(signal))
}

/// Lets a stopped task go for good, with a signal or 0.
pub fn detach(tid: i32, signal: i32) -> Result<()> {
    number(libc::PTRACE_DETACH, tid, signal_word(signal))
}

/// Other options (`PTRACE_O_*`) for a stopped task.
pub fn set_options(tid: i32, options: i32) -> Result<()> {
    let options = usize::try_from(options).map_err(|_| Errno::EINVAL)?;
    number(libc::PTRACE_SETOPTIONS, tid, options)
}

fn filled<T>(op: c_uint, tid: i32, addr: usize, mut value: T) -> Result<T> {
    let to: *mut T = &raw mut value;
    // SAFETY: the requests made through here write at most size_of::<T>() bytes, to a live local.
    unsafe { request(op, tid, addr, to.expose_provenance()) }?;
    Ok(value)
}

fn given<T>(op: c_uint, tid: i32, addr: usize, value: &T) -> Result<()> {
    let from: *const T = value;
    // SAFETY: the requests made through here only read size_of::<T>() bytes of a live value.
    unsafe { request(op, tid, addr, from.expose_provenance()) }.map(drop)
}

/// The general registers.
pub fn registers(tid: i32) -> Result<user_regs_struct> {
    // SAFETY: all-zero is a value of this struct of integers.
    let zero: user_regs_struct = unsafe { std::mem::zeroed() };
    filled(libc::PTRACE_GETREGS, tid, 0, zero)
}

/// Puts the general registers in.
pub fn set_registers(tid: i32, registers: &user_regs_struct) -> Result<()> {
    given(libc::PTRACE_SETREGS, tid, 0, registers)
}

/// The blocked signals; of a task in a call with a temporary mask (`ppoll`) its true mask.
pub fn signal_mask(tid: i32) -> Result<u64> {
    filled(libc::PTRACE_GETSIGMASK, tid, size_of::<u64>(), 0)
}

/// Puts the blocked signals in.
pub fn set_signal_mask(tid: i32, mask: u64) -> Result<()> {
    given(libc::PTRACE_SETSIGMASK, tid, size_of::<u64>(), &mask)
}

/// The `siginfo_t` of the signal-delivery stop that the task is in.
pub fn stop_siginfo(tid: i32) -> Result<[u8; 128]> {
    filled(libc::PTRACE_GETSIGINFO, tid, 0, [0; 128])
}

/// The number that came with the last event stop.
pub fn event_message(tid: i32) -> Result<u64> {
    filled(libc::PTRACE_GETEVENTMSG, tid, 0, 0)
}

/// A word of the task's memory, also where its mappings forbid reading.
pub fn peek(tid: i32, at: u64) -> Result<u64> {
    let at = usize::try_from(at).map_err(|_| Errno::EFAULT)?;
    filled(libc::PTRACE_PEEKDATA, tid, at, 0)
}

/// Writes a word of the task's memory, also where its mappings forbid writing.
pub fn poke(tid: i32, at: u64, word: u64) -> Result<()> {
    let at = usize::try_from(at).map_err(|_| Errno::EFAULT)?;
    let word = usize::try_from(word).map_err(|_| Errno::EINVAL)?;
    // SAFETY: both words are numbers; `at` is an address of the other task.
    unsafe { request(libc::PTRACE_POKEDATA, tid, at, word) }.map(drop)
}

/// The rseq registration of the task (Linux 5.13).
pub fn rseq_configuration(tid: i32) -> Result<RseqConfiguration> {
    filled(GET_RSEQ_CONFIGURATION, tid, size_of::<RseqConfiguration>(), RseqConfiguration::default())
}

/// Whether the call that the stopped task is in was made as one of a 32-bit program, by `int 0x80` (Linux 5.3).
pub fn is_in_32_bit_call(tid: i32) -> Result<bool> {
    // `AUDIT_ARCH_I386` (linux/audit.h); the architecture is the second word of the answer, after the kind of stop.
    const I386: u32 = 0x4000_0003;
    let [_, arch] = filled(libc::PTRACE_GET_SYSCALL_INFO, tid, size_of::<[u32; 2]>(), [0u32; 2])?;
    Ok(arch == I386)
}

fn note_word(note: i32) -> Result<usize> {
    usize::try_from(note).map_err(|_| Errno::EINVAL)
}

/// A register set (`NT_*`) of at most `room` bytes.
pub fn register_set(tid: i32, note: i32, room: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; room];
    let vector = iovec { iov_base: bytes.as_mut_ptr().cast::<c_void>(), iov_len: bytes.len() };
    let vector = filled(libc::PTRACE_GETREGSET, tid, note_word(note)?, vector)?;
    bytes.truncate(vector.iov_len);
    Ok(bytes)
}

/// Puts a register set in.
pub fn set_register_set(tid: i32, note: i32, bytes: &[u8]) -> Result<()> {
    let vector = iovec { iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(), iov_len: bytes.len() };
    // The kernel writes the length it took back into the vector, hence `filled`.
    filled(libc::PTRACE_SETREGSET, tid, note_word(note)?, vector).map(drop)
}

/// Which queue of pending signals is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SignalQueue {
    /// The thread's own.
    Thread,
    /// The process's.
    Shared,
}

#[repr(C)]
struct PeekArguments {
    offset: u64,
    flags: u32,
    count: i32,
}

/// Pending signals from `offset` on, at most 16, oldest first; none left when empty.
pub fn pending(tid: i32, queue: SignalQueue, offset: u64) -> Result<Vec<[u8; 128]>> {
    const AT_ONCE: usize = 16;
    let mut infos = [[0u8; 128]; AT_ONCE];
    let arguments = PeekArguments {
        offset,
        flags: match queue {
            SignalQueue::Thread => 0,
            SignalQueue::Shared => PEEKSIGINFO_SHARED,
        },
        count: 16,
    };
    let from: *const PeekArguments = &raw const arguments;
    let to = infos.as_mut_ptr();
    // SAFETY: the kernel reads one PeekArguments and writes at most `count` infos of 128 bytes; both outlive the call.
    let got = unsafe { request(libc::PTRACE_PEEKSIGINFO, tid, from.expose_provenance(), to.expose_provenance()) }?;
    let got = usize::try_from(got).unwrap_or(0).min(AT_ONCE);
    Ok(infos.into_iter().take(got).collect())
}
