//! The three interval timers of `setitimer(2)`, with the time that remains.
//!
//! A timer of real time is started again when its signal is taken, not when it fires (`posixtimer_rearm_itimer`,
//! kernel/signal.c): while `SIGALRM` is pending it shows no remaining time, though it has an interval. Setting it so would
//! disarm it for good; it is then set to a whole interval.

use hdcr_image::List;
use hdcr_layout::Itimer;
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::Result;
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;

pub(crate) struct Itimers;

/// What is kept: only timers that are set.
pub(crate) type ItimersRecord = List<Itimer>;

/// Size of `struct itimerval`: interval, value, each in seconds and microseconds.
const ITIMERVAL: usize = 32;
const SECOND: u64 = 1_000_000_000;
const MICROSECOND: u64 = 1000;

/// The words of a `struct itimerval` as nanoseconds: interval, value. Longer than 584 years is cut.
fn from_words(words: [u64; 4]) -> (u64, u64) {
    let [interval, interval_micros, value, value_micros] = words;
    let whole = |s: u64, micros: u64| s.saturating_mul(SECOND).saturating_add(micros.saturating_mul(MICROSECOND));
    (whole(interval, interval_micros), whole(value, value_micros))
}

/// The words that start it.
fn to_words(timer: &Itimer) -> [u64; 4] {
    let value = if timer.value_ns == 0 { timer.interval_ns } else { timer.value_ns };
    let split = |ns: u64| (ns / SECOND, ns % SECOND / MICROSECOND);
    let (interval, value) = (split(timer.interval_ns), split(value));
    [interval.0, interval.1, value.0, value.1]
}

impl TaskKind for Itimers {
    type Record = ItimersRecord;
    type Asked = [(u32, usize, usize); 3];
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, batch: &mut Batch) -> Self::Asked {
        [0, 1, 2].map(|which: u32| {
            let value = batch.room(ITIMERVAL);
            (which, value, batch.try_call(libc::SYS_getitimer, &[Arg::Value(which.into()), Arg::Data(value)]))
        })
    }

    fn capture(_cx: &mut Capture<'_>, task: &TaskView, asked: Self::Asked, replies: &Replies) -> Result<ItimersRecord> {
        let mut timers = Vec::new();
        for (which, at, call) in asked {
            super::reply(task, replies, call, "getitimer")?;
            let words =
                (|| Some([replies.word(at)?, replies.word(at + 8)?, replies.word(at + 16)?, replies.word(at + 24)?]))();
            let (interval_ns, value_ns) = from_words(words.ok_or_else(|| model::no_reply(task, "getitimer"))?);
            if value_ns != 0 || interval_ns != 0 {
                timers.push(Itimer { value_ns, interval_ns, which });
            }
        }
        Ok(List(timers))
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: ItimersRecord) -> Result<()> {
        let batch = cx.batch(Stage::Timers, task);
        // A new process has none: fork(2) hands on no timers.
        for timer in &record.0 {
            let new = batch.room(ITIMERVAL);
            for (at, word) in (new..).step_by(8).zip(to_words(timer)) {
                batch.put(at, &word.to_le_bytes());
            }
            let args = [Arg::Value(timer.which.into()), Arg::Data(new), Arg::Value(0)];
            batch.call("starting an interval timer", libc::SYS_setitimer, &args);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdcr_image::Record;

    #[test]
    fn a_timer_hidden_by_its_pending_signal_starts_with_a_whole_interval() {
        let hidden = Itimer { value_ns: 0, interval_ns: 20_000_000, which: 0 };
        assert_eq!(to_words(&hidden), [0, 20_000, 0, 20_000]);
        assert_eq!(from_words([1, 2, 3, 4]), (1_000_002_000, 3_000_004_000));
        assert_eq!(from_words([u64::MAX; 4]), (u64::MAX, u64::MAX));
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = List(vec![Itimer { value_ns: 1_000, interval_ns: 0, which: 2 }]);
        assert_eq!(ItimersRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
