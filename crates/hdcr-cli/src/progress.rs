//! Progress of a long work: counted in numbers that anybody may write, drawn by a thread of its own, so that a terminal
//! that is held up (Ctrl-S) holds up nothing else: the program may stand still meanwhile.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::output::tame;
use crate::slow::{self, PATIENCE};

/// Nothing is drawn of what takes less, and then so often.
const BEAT: Duration = Duration::from_millis(200);

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Doing {
    /// Nothing is touched yet.
    Looking,
    Copying,
    Stopping,
    Reading,
    Writing,
    Settling,
    Filling,
    Verifying,
}

impl Doing {
    fn text(self) -> &'static str {
        match self {
            Self::Looking => "looking at the program",
            Self::Stopping => "stopping the program",
            Self::Copying => "copying the program while it runs",
            Self::Reading => "reading the program",
            Self::Writing => "writing the checkpoint",
            Self::Settling => "making it durable",
            Self::Filling => "filling memory",
            Self::Verifying => "verifying",
        }
    }
}

/// How far it is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) doing: Doing,
    pub(crate) done: u64,
    pub(crate) total: u64,
    /// The round of copying; 0: there are none.
    #[serde(default)]
    pub(crate) round: u32,
}

impl Step {
    /// One that is not counted.
    pub(crate) fn begins(doing: Doing) -> Self {
        Self { doing, done: 0, total: 0, round: 0 }
    }

    /// Whether a share of the whole means anything: what is copied while it changes is copied again.
    pub(crate) fn has_end(self) -> bool {
        self.total > 0 && self.doing != Doing::Copying
    }

    pub(crate) fn text(self) -> String {
        let round = if self.round > 1 { format!(", round {}", self.round) } else { String::new() };
        format!("{}{round}", self.doing.text())
    }
}

#[derive(Debug, Default)]
struct Shared {
    step: Mutex<Option<Step>>,
    /// What the work waits for before it begins.
    waits: Mutex<Option<String>>,
    over: AtomicBool,
}

/// A bar; gone when dropped.
#[derive(Debug, Default)]
pub(crate) struct Bar {
    shared: Arc<Shared>,
    drawer: Option<JoinHandle<()>>,
}

/// Where steps are told; many may have it.
#[derive(Clone, Debug)]
pub(crate) struct Teller(Arc<Shared>);

impl Teller {
    /// How far it is now. Never waits for a terminal.
    pub(crate) fn at(&self, step: Step) {
        if let Ok(mut place) = self.0.step.lock() {
            *place = Some(step);
        }
    }

    /// It waits for this, and has not begun.
    pub(crate) fn waits(&self, what: String) {
        if let Ok(mut place) = self.0.waits.lock() {
            *place = Some(what);
        }
    }
}

/// Finds the processes that are to stop.
pub(crate) type Tree = Box<dyn Fn() -> Vec<i32> + Send>;

impl Bar {
    /// A bar that is drawn on standard error.
    pub(crate) fn drawn() -> Self {
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let drawer = std::thread::Builder::new().name("progress".to_owned()).spawn(move || draw(&seen)).ok();
        Self { shared, drawer }
    }

    /// A line for those who have no terminal, told once when it takes a while.
    pub(crate) fn told(tree: Tree, tell: impl Fn(&str) + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let drawer = std::thread::Builder::new().name("progress".to_owned());
        let drawer = drawer.spawn(move || tell_late(&seen, PATIENCE, &tree, &tell)).ok();
        Self { shared, drawer }
    }

    /// Whether somebody may see it.
    pub(crate) fn is_seen(&self) -> bool {
        self.drawer.is_some()
    }

    /// Where steps are told.
    pub(crate) fn teller(&self) -> Teller {
        Teller(Arc::clone(&self.shared))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        if let Some(drawer) = self.drawer.take() {
            drawer.thread().unpark();
            if drawer.join().is_err() {
                tracing::debug!("the progress could not be drawn");
            }
        }
    }
}

/// Tells what is being done when it is not over after its time.
fn tell_late(shared: &Shared, patience: Duration, tree: &Tree, tell: &impl Fn(&str)) {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if shared.over.load(Ordering::Acquire) {
            return;
        }
        if left.is_zero() {
            break;
        }
        std::thread::park_timeout(left);
    }
    let step = shared.step.lock().ok().and_then(|step| *step);
    let waits = shared.waits.lock().ok().and_then(|waits| waits.clone());
    let doing = match (step, waits) {
        (Some(step), _) => slow::doing(step, tree),
        (None, Some(waits)) => format!("waiting: {waits}"),
        (None, None) => "waiting for an answer".to_owned(),
    };
    tell(&format!("not done after {}: {doing}", duration::show(patience)));
}

/// Draws until it is over.
fn draw(shared: &Shared) {
    let mut bar: Option<ProgressBar> = None;
    loop {
        std::thread::park_timeout(BEAT);
        if shared.over.load(Ordering::Acquire) {
            break;
        }
        let step = shared.step.lock().ok().and_then(|step| *step);
        let waits = shared.waits.lock().ok().and_then(|waits| waits.clone());
        if let (None, Some(waits)) = (step, waits) {
            let bar = bar.get_or_insert_with(new_bar);
            bar.set_style(style(Step::begins(Doing::Looking)));
            bar.set_message(tame(&format!("waiting: {waits}")));
            bar.tick();
        }
        if let Some(step) = step {
            let bar = bar.get_or_insert_with(new_bar);
            bar.set_style(style(step));
            bar.set_message(step.text());
            bar.set_length(step.total);
            bar.set_position(step.done);
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn new_bar() -> ProgressBar {
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10))
}

/// A bar where one can know how much is left, else how much is done.
fn style(step: Step) -> ProgressStyle {
    let template = match step {
        step if step.has_end() => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        Step { done: 0, .. } => "{msg} ({elapsed})",
        _ => "{msg}: {bytes}, {bytes_per_sec} ({elapsed})",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_ends_with_its_owner_and_takes_steps_from_anybody() {
        let bar = Bar::drawn();
        let teller = bar.teller();
        teller.at(Step { doing: Doing::Reading, done: 1, total: 2, round: 0 });
        drop(bar);
        teller.at(Step { doing: Doing::Reading, done: 2, total: 2, round: 0 });
        assert!(!Bar::default().is_seen());
    }

    /// What is told of work that is late at once.
    fn told_late(change: impl Fn(&Teller)) -> Vec<String> {
        let shared = Arc::new(Shared::default());
        change(&Teller(Arc::clone(&shared)));
        let told = Mutex::new(Vec::new());
        let tell = |text: &str| told.lock().unwrap().push(text.to_owned());
        tell_late(&shared, Duration::ZERO, &(Box::new(Vec::new) as Tree), &tell);
        told.into_inner().unwrap()
    }

    #[test]
    fn who_has_no_terminal_is_told_once_what_it_waits_for() {
        let writing = Step { doing: Doing::Writing, done: 1 << 20, total: 2 << 20, round: 0 };
        let told = told_late(|teller| teller.at(writing));
        assert_eq!(told, ["not done after 0 s: writing the checkpoint, 1.0 MiB of 2.0 MiB"]);
        assert_eq!(told_late(|teller| teller.waits("X".to_owned())), ["not done after 0 s: waiting: X"]);
        let over = |teller: &Teller| teller.0.over.store(true, Ordering::Release);
        assert!(told_late(over).is_empty(), "it is done");
    }

    #[test]
    fn what_is_copied_again_has_no_share_and_a_round() {
        let step = |doing, total, round| Step { doing, done: 1, total, round };
        let copied = step(Doing::Copying, 2, 3);
        assert!(!copied.has_end() && copied.text() == "copying the program while it runs, round 3");
        assert_eq!(step(Doing::Copying, 2, 1).text(), "copying the program while it runs");
        assert!(step(Doing::Reading, 2, 0).has_end() && !step(Doing::Settling, 0, 0).has_end());
    }
}
