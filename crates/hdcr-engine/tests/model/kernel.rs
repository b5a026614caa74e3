//! What the model answers to system calls in batches.

use hdcr_engine::batch::{Arg, Batch, OnError, Replies};
use nix::libc;

use super::{ModelTask, State};

const NO_SUCH: i64 = -(libc::EINVAL as i64);
const NO_MEMORY: i64 = -(libc::ENOMEM as i64);
const EXISTS: i64 = -(libc::EEXIST as i64);

/// A number in a call's arguments; an offset of the data area stands for its address.
fn word(call: &hdcr_engine::batch::Call, index: usize, results: &[i64]) -> u64 {
    match call.args[index] {
        Arg::Value(value) => value,
        Arg::Data(at) => at as u64,
        Arg::Result(earlier) => results[earlier].cast_unsigned(),
    }
}

/// Answers what a capture asks of a stopped task: like a new process that has set nothing.
pub(crate) fn asked(batch: &Batch) -> Replies {
    let mut replies = Replies { results: Vec::new(), data: batch.data.clone() };
    for call in &batch.calls {
        let first = word(call, 0, &replies.results);
        let result = match call.nr.cast_signed() {
            libc::SYS_brk => 0x5555_0000_0000,
            libc::SYS_mmap => 0x7000_0000_0000,
            libc::SYS_prctl if first == libc::PR_GET_TIMERSLACK as u64 => 50_000,
            libc::SYS_prctl if [40, libc::PR_GET_SECUREBITS as u64].contains(&first) => 0,
            libc::SYS_prctl | libc::SYS_get_thread_area | libc::SYS_arch_prctl => NO_SUCH,
            libc::SYS_keyctl => -i64::from(libc::ENOKEY),
            libc::SYS_io_uring_enter => -i64::from(libc::EINVAL),
            _ => 0,
        };
        replies.results.push(result);
    }
    replies
}

/// Does a batch of a new task: what the model keeps of it is kept, the rest succeeds.
pub(crate) fn done(state: &mut State, tid: i32, batch: &Batch) -> Replies {
    let mut replies = Replies { results: Vec::new(), data: batch.data.clone() };
    for call in &batch.calls {
        let args = std::array::from_fn(|index| word(call, index, &replies.results));
        let task = state.tasks.get_mut(&tid).unwrap();
        let mut result = one(task, tid, call.nr.cast_signed(), args, &batch.data);
        if state.fail_call == Some(state.system_calls) {
            result = NO_MEMORY;
            state.failed |= call.on_error == OnError::Stop;
        }
        state.system_calls += 1;
        replies.results.push(result);
        if (-4095..0).contains(&result) && call.on_error == OnError::Stop {
            break;
        }
    }
    replies
}

fn one(task: &mut ModelTask, tid: i32, nr: i64, args: [u64; 6], data: &[u8]) -> i64 {
    match nr {
        libc::SYS_mmap => return map(task, args),
        libc::SYS_munmap => task.mapped.retain(|(range, _)| range.end <= args[0] || args[0] + args[1] <= range.start),
        libc::SYS_dup3 => {
            task.descriptors.insert(args[1]);
        }
        libc::SYS_close_range => task.descriptors.retain(|fd| *fd < args[0] || args[1] < *fd),
        libc::SYS_setsid => task.session = true,
        libc::SYS_setpgid => task.group = Some(if args[1] == 0 { tid.unsigned_abs().into() } else { args[1] }),
        libc::SYS_umask => task.umask = Some(args[0]),
        libc::SYS_rt_sigqueueinfo | libc::SYS_rt_tgsigqueueinfo => {
            let at = usize::try_from(if nr == libc::SYS_rt_sigqueueinfo { args[2] } else { args[3] }).unwrap();
            task.queued.push(u64::from(u32::from_le_bytes(data[at..at + 4].try_into().unwrap())));
        }
        libc::SYS_getpid | libc::SYS_gettid => return tid.into(),
        _ => {}
    }
    0
}

fn map(task: &mut ModelTask, args: [u64; 6]) -> i64 {
    let range = args[0]..args[0] + args[1];
    if task.mapped.iter().any(|(other, _)| other.start < range.end && range.start < other.end) {
        return EXISTS;
    }
    task.mapped.push((range, args[2]));
    args[0].cast_signed()
}
