//! What was heard and waits for its turn, and the table that it is told to. Each step is logged, so that another keeper can
//! take it again ([`Queue::again`]).

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdcr_policy::touched::{Event, Identity, Kind, Replaced, Table};

use super::steps::{Made, Step};

/// So many events of a process that follow a rename are looked at.
const NEAR: usize = 8;
/// Those that there are by then are enough.
const AMONG_THREADS: Duration = Duration::from_millis(50);

/// Something that is waiting for its turn in the table.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Heard {
    pub(super) pid: i32,
    pub(super) at: Instant,
    /// Which file it is about.
    pub(super) file: Identity,
    pub(super) what: What,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum What {
    Event(Event),
    /// A file has got or lost a name; perhaps by a removal that was heard before.
    Names {
        removed: bool,
    },
}

/// The steps since the log was begun.
#[derive(Clone, Debug, Default)]
enum Log {
    /// They do not tell all: the table was replaced.
    #[default]
    Broken,
    Steps(Vec<Step>),
}

/// What waits, and the table.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Heard>,
    table: Table,
    log: Log,
}

impl Queue {
    /// As it was written down: a table, and the steps since, what waited then the first. Nothing will come any more.
    pub(super) fn again(table: Table, steps: impl Iterator<Item = Step>) -> Table {
        let mut queue = Self { table, ..Self::default() };
        for step in steps {
            queue.take(step);
        }
        queue.settle(None);
        queue.table
    }

    /// What is heard goes through here, now and when it is read again.
    fn take(&mut self, step: Step) {
        match &step {
            Step::Heard(pid, file, what) => {
                let (pid, file, what) = (*pid, file.clone(), what.clone());
                self.waiting.push_back(Heard { pid, at: Instant::now(), file, what });
            }
            Step::Amended(place, event) => {
                if let Some(heard) = self.waiting.get_mut(*place) {
                    heard.what = What::Event(event.clone());
                }
            }
            Step::Told(known) => {
                if let Some(Heard { what: What::Event(mut event), .. }) = self.waiting.pop_front() {
                    if let Event::Renamed { replaced, .. } = &mut event {
                        *replaced = *known;
                    }
                    self.table.tell(&event);
                }
            }
            Step::Mark(number, at) => self.table.mark(*number, *at),
            Step::Renumber(from, to) => self.table.rename_mark(*from, *to),
            Step::Keep(numbers) => self.table.keep(numbers),
            Step::Placed(made) => {
                let made: Vec<_> = made.iter().map(|Made(path, identity)| (path.clone(), identity.clone())).collect();
                self.table.placed(&made);
            }
            Step::Lost => self.table.tell(&Event::Lost),
        }
        if let Log::Steps(steps) = &mut self.log {
            steps.push(step);
        }
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    pub(super) fn waiting(&self) -> &VecDeque<Heard> {
        &self.waiting
    }

    /// The table is another one from here on.
    pub(super) fn replace(&mut self, change: impl FnOnce(&mut Table)) {
        self.log = Log::Broken;
        change(&mut self.table);
    }

    /// Nothing waits any more.
    pub(super) fn clear(&mut self) {
        self.log = Log::Broken;
        self.waiting.clear();
    }

    /// What is there now is written down: steps count from here.
    pub(super) fn begin_log(&mut self) {
        self.log = Log::Steps(Vec::new());
    }

    /// Whether the steps since the log was begun tell all.
    pub(super) fn is_logged(&self) -> bool {
        matches!(self.log, Log::Steps(_))
    }

    /// The steps since they were taken last.
    pub(super) fn take_log(&mut self) -> Vec<Step> {
        match &mut self.log {
            Log::Broken => Vec::new(),
            Log::Steps(steps) => std::mem::take(steps),
        }
    }

    pub(super) fn hear(&mut self, pid: i32, file: &Identity, what: What) {
        self.take(Step::Heard(pid, file.clone(), what));
    }

    /// Something that waits is another thing than it was taken for.
    pub(super) fn amend(&mut self, place: usize, event: Event) {
        self.take(Step::Amended(place, event));
    }

    pub(super) fn mark(&mut self, number: u64, at: Duration) {
        self.take(Step::Mark(number, at));
    }

    pub(super) fn renumber(&mut self, from: u64, to: u64) {
        self.take(Step::Renumber(from, to));
    }

    pub(super) fn keep(&mut self, numbers: &[u64]) {
        self.take(Step::Keep(numbers.to_vec()));
    }

    pub(super) fn placed(&mut self, made: &[(PathBuf, Identity)]) {
        let made = made.iter().map(|(path, identity)| Made(path.clone(), identity.clone()));
        self.take(Step::Placed(made.collect()));
    }

    /// Tells at once that events were lost.
    pub(super) fn lost(&mut self) {
        self.take(Step::Lost);
    }

    /// A look at a file, which only counts as long as this keeper lives.
    pub(super) fn seen(&mut self, event: &Event) {
        self.table.tell(event);
    }

    /// Hands what waits to the table, in order, up to a rename that was not long ago: what follows it from the same
    /// process tells whether it has replaced something. `None`: the job stands still.
    pub(super) fn settle(&mut self, long_ago: Option<Instant>) {
        while let Some(first) = self.waiting.front() {
            let over = long_ago.is_none_or(|long_ago| first.at <= long_ago);
            let mut known = Replaced::Unknown;
            if let What::Event(Event::Renamed { replaced, .. }) = &first.what {
                known = *replaced;
                if known == Replaced::Unknown {
                    known = self.replaced(over);
                }
                if known == Replaced::Unknown {
                    return;
                }
            }
            self.take(Step::Told(known));
        }
    }

    /// Whether the rename whose turn it is has replaced something. The file that was replaced has lost
    /// a name right after it, without another event about that file: a link or a removal has one. Other threads of the
    /// process may come between.
    fn replaced(&self, over: bool) -> Replaced {
        let Some(Heard { pid, at, what, .. }) = self.waiting.front() else { return Replaced::Unknown };
        let after: Vec<&Heard> = self.waiting.iter().skip(1).filter(|heard| heard.pid == *pid).take(NEAR).collect();
        // That of a removal is to come.
        let half = after.last().is_none_or(|last| matches!(last.what, What::Names { removed: false }));
        let enough = over || after.len() == NEAR || !half && at.elapsed() > AMONG_THREADS;
        if !enough {
            return Replaced::Unknown;
        }
        if matches!(what, What::Event(Event::Renamed { kind: Kind::Directory, .. })) {
            // Of that it would have been heard ([`super::Watch::hear_directory`]).
            return Replaced::No;
        }
        let (mut renames, mut losses) = (1, 0);
        let mut rest = after.as_slice();
        while let Some((heard, behind)) = rest.split_first() {
            rest = behind;
            let is_name = |next: &&Heard| {
                matches!(
                    &next.what,
                    What::Event(Event::Created(..) | Event::Linked(..) | Event::Removed(..) | Event::Unsure(_))
                ) && next.file == heard.file
            };
            match &heard.what {
                What::Event(Event::Renamed { kind: Kind::File, .. }) => renames += 1,
                // One behind an overlay.
                What::Event(Event::Unsure(_)) if heard.file.is_empty() => renames += 1,
                // At the end the other event may be still to come.
                What::Names { removed: false } => {
                    losses += u32::from((!rest.is_empty() || over && after.len() < NEAR) && !rest.iter().any(is_name));
                }
                What::Event(_) | What::Names { removed: true } => {}
            }
            // Those of later renames come last.
            if losses == renames {
                return Replaced::Yes;
            }
        }
        Replaced::No
    }
}
