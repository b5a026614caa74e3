//! The agent: a thread of the library that the keeper asks before each checkpoint. It is begun with the first hook or
//! section, and only under a keeper; it takes no signal of the program.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::ffi;
use crate::hooks::{After, Veto};
use crate::link::{Heard, Link};
use crate::process::{self, Process};
use crate::wire::{Answer, Ask};

/// Hooks of the program run on it.
const STACK: usize = 1 << 20;

/// Whether there is one.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    runs: AtomicBool,
}

/// Begins it, if there is none and there is a keeper.
pub(crate) fn begin() {
    let process = process::this();
    if process.agent.runs.swap(true, Ordering::SeqCst) {
        return;
    }
    let begun = process.connect().and_then(|link| link.send(&Ask::Attend {}).ok().map(|()| link));
    let spawned = begun.map(|link| {
        let builder = std::thread::Builder::new().name("hdcr-agent".to_owned()).stack_size(STACK);
        ffi::without_signals(|| builder.spawn(move || attend(process, link)))
    });
    // Without a thread or a keeper nobody is asked, and checkpoints are taken all the same.
    if !matches!(spawned, Some(Ok(_))) {
        process.agent.runs.store(false, Ordering::SeqCst);
    }
}

/// Whether this is the agent's own thread: what is called in a hook must not wait for the agent.
pub(crate) fn is_this_thread() -> bool {
    ffi::is_agent()
}

/// Answers the keeper, and the next one after a restore, until there is none.
fn attend(process: &'static Process, first: Link) {
    ffi::become_agent();
    let mut link = first;
    while let Some(next) = one_keeper(process, &link) {
        link = next;
    }
    process.agent.runs.store(false, Ordering::SeqCst);
}

/// Until this keeper is gone; the connection to the next one.
fn one_keeper(process: &'static Process, link: &Link) -> Option<Link> {
    let mut round = None;
    let mut until = None;
    loop {
        match link.wait(until) {
            Ok(Heard::Said(Answer::Prepare { round: number, within_ms, hold_ms })) => {
                resume(process, &mut round, After::Nothing);
                let now = Instant::now();
                let by = now + Duration::from_millis(within_ms);
                let answer = prepare(process, number, by);
                round = matches!(answer, Ask::Ready { .. }).then_some(number);
                until = round.and(by.checked_add(Duration::from_millis(hold_ms)));
                if link.send(&answer).is_err() {
                    resume(process, &mut round, After::Nothing);
                }
            }
            Ok(Heard::Said(Answer::Resume { round: number, captured })) => {
                let how = if captured { After::Captured } else { After::Nothing };
                if round == Some(number) {
                    resume(process, &mut round, how);
                    until = None;
                }
            }
            Ok(Heard::Said(Answer::Restored(greeting))) => {
                process.greeted(&greeting);
                process.hooks.restored(&greeting.restored);
                // Whoever goes on now and asks for the next checkpoint must not overtake this.
                process.regions.renew();
                let next = again(process);
                process.sections.open();
                return next;
            }
            Ok(Heard::Said(Answer::Welcome(_) | Answer::Continued { .. } | Answer::Failed(_) | Answer::Omitted {})) => {
            }
            // The keeper stands still, and the program must not.
            Ok(Heard::Nothing) => {
                resume(process, &mut round, After::Nothing);
                until = None;
            }
            Ok(Heard::Ended) | Err(_) => {
                resume(process, &mut round, After::Nothing);
                return again(process);
            }
        }
    }
}

fn again(process: &'static Process) -> Option<Link> {
    let link = process.connect()?;
    link.send(&Ask::Attend {}).ok().map(|()| link)
}

/// Makes the program ready: first nobody is in a section, then the hooks run.
fn prepare(process: &'static Process, round: u64, by: Instant) -> Ask {
    // A hook may not have the whole time.
    let half = Instant::now() + by.saturating_duration_since(Instant::now()) / 2;
    if let Err(text) = process.sections.close(half) {
        return Ask::Veto { round, permanent: false, code: 0, text };
    }
    match process.hooks.before() {
        Ok(()) => Ask::Ready { round },
        Err(Veto { permanent, code, text }) => {
            process.hooks.after(After::Nothing);
            process.sections.open();
            let text = text.chars().take(200).collect();
            Ask::Veto { round, permanent, code, text }
        }
    }
}

/// The program goes on.
fn resume(process: &'static Process, round: &mut Option<u64>, how: After) {
    if round.take().is_some() {
        process.hooks.after(how);
        process.sections.open();
    }
}
