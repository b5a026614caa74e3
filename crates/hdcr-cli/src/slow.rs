//! What is said of a checkpoint that is merely slow: what it does, how far it is, and who does not stop.

use std::fs;
use std::time::Duration;

use crate::duration;
use crate::output::counted;
use crate::process;
use crate::progress::{Doing, Step};

/// Nothing is said of what takes less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// What is being done, and how far it is. `tree`: the processes that are to stop, asked for only when that is what it waits
/// for.
pub(crate) fn doing(step: Step, tree: impl FnOnce() -> Vec<i32>) -> String {
    let waits = if step.doing == Doing::Stopping { waits_for(&tree()) } else { None };
    let (done, total) = (duration::show_size(step.done), duration::show_size(step.total));
    match waits {
        Some(waits) => format!("{}: {waits}", step.text()),
        None if step.has_end() => format!("{}, {done} of {total}", step.text()),
        None if step.done > 0 => format!("{}, {done} so far", step.text()),
        None => step.text(),
    }
}

/// A thread that does not stop.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Late {
    tid: i32,
    pid: i32,
    name: String,
    state: char,
    /// Where in the kernel it waits, as far as this user may know.
    place: String,
}

/// Who of these processes does not stop, in words; `None`: all stand still.
fn waits_for(tree: &[i32]) -> Option<String> {
    let mut late: Vec<Late> = tree.iter().flat_map(|pid| threads_of(*pid)).collect();
    // Who sleeps in the kernel holds up more than who runs.
    late.sort_by_key(|thread| (thread.state != 'D', thread.pid, thread.tid));
    told(&late)
}

fn told(late: &[Late]) -> Option<String> {
    let first = late.first()?;
    let place = if first.place.is_empty() { String::new() } else { format!(" in {}", first.place) };
    let more = late.len() - 1;
    let more = if more > 0 { format!(", and {}", counted(more, "more thread", "more threads")) } else { String::new() };
    let Late { tid, pid, name, state, .. } = first;
    Some(format!("thread {tid} of process {pid} ({name}) does not stop: state {state}{place}{more}"))
}

/// The threads of a process that do not stand still.
fn threads_of(pid: i32) -> Vec<Late> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let look = |tid: i32| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/task/{tid}/{file}")).ok();
        let stat = hdcr_engine::procfs::parse_stat(&read("stat")?)?;
        let stands = matches!(stat.state, b't' | b'Z' | b'X');
        let place = read("wchan").map(|place| String::from_utf8_lossy(&place).into_owned()).unwrap_or_default();
        (!stands).then(|| Late {
            tid,
            pid,
            name: String::from_utf8_lossy(&stat.comm).into_owned(),
            state: char::from(stat.state),
            place: if place == "0" { String::new() } else { place },
        })
    };
    threads.flatten().filter_map(|entry| look(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// A process with everything below it.
pub(crate) fn tree_of(pid: i32) -> Vec<i32> {
    std::iter::once(pid).chain(process::below(pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_stop_is_named_and_the_others_counted() {
        let late =
            |tid, state, place: &str| Late { tid, pid: 7, name: "sim".to_owned(), state, place: place.to_owned() };
        assert_eq!(told(&[]), None);
        assert_eq!(
            told(&[late(9, 'D', "nfs_wait")]).unwrap(),
            "thread 9 of process 7 (sim) does not stop: state D in nfs_wait"
        );
        let all = [late(9, 'R', ""), late(10, 'R', ""), late(11, 'S', "")];
        assert_eq!(told(&all).unwrap(), "thread 9 of process 7 (sim) does not stop: state R, and 2 more threads");
    }

    #[test]
    fn threads_of_this_very_process_do_not_stand_still() {
        let own = std::process::id().cast_signed();
        assert!(waits_for(&[own]).unwrap().contains(&format!("of process {own} (")));
        assert_eq!(waits_for(&[i32::MAX]), None);
    }

    #[test]
    fn how_far_it_is_is_told_where_it_is_known() {
        let step = |doing, done, total| Step { doing, done, total, round: 0 };
        let told = |step| doing(step, Vec::new);
        assert_eq!(told(step(Doing::Writing, 1 << 20, 3 << 20)), "writing the checkpoint, 1.0 MiB of 3.0 MiB");
        assert_eq!(told(step(Doing::Copying, 2 << 20, 0)), "copying the program while it runs, 2.0 MiB so far");
        assert_eq!(told(step(Doing::Stopping, 0, 0)), "stopping the program");
        assert_eq!(told(step(Doing::Settling, 0, 0)), "making it durable");
    }
}
