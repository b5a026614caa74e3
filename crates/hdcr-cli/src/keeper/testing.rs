//! A keeper for tests of single steps: its job has not begun.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use hdcr_image::JobName;
use hdcr_policy::restart::Rules;

use super::work::{Errand, Work};
use super::{Given, Keeper, Plan};
use crate::channel::Channel;
use crate::commands::restore::descriptors;
use crate::door::Door;
use crate::host::Host;
use crate::job::{Held, Record, Start, State};
use crate::kinds::{Every, Increments, Keep, Lazy, StdioTarget, Then};
use crate::output::Output;
use crate::registry::Registry;
use crate::settings::Files;
use crate::worker::Worker;

/// Its store and its socket lie in the folder.
pub(super) fn keeper(folder: &Path) -> Keeper {
    let name = JobName::new("sim").unwrap();
    let (store, jobs) = (folder.join("store"), folder.join("running"));
    let record = Record {
        command: vec!["sim".into()],
        directory: folder.to_owned(),
        state: State::Running,
        status: None,
        after: 0,
        main: 0,
        main_born: 0,
        host: Host::default(),
        private_pids: false,
        returned: 0,
        went_back: None,
    };
    let registry = Registry::open(&jobs).unwrap();
    let given = Given {
        output: Output { json: false, quiet: true, verbose: 0 },
        held: Held::take(&store, &name).unwrap(),
        record,
        listener: registry.listen(&name, &store).unwrap(),
        door: Door::open(&registry, &name).unwrap(),
        jobs,
        stdio: descriptors(&StdioTarget::Null).unwrap(),
        outside: None,
        rule: None,
    };
    let plan = Plan {
        name,
        store,
        every: Every::Fixed(Duration::from_hours(1)),
        algorithm: None,
        timeout: Duration::from_mins(1),
        restore_timeout: None,
        keep: Keep::of(None, None, None),
        budget: None,
        increments: Increments::Auto,
        lazy: Lazy::Never,
        rules: Rules { on: BTreeSet::new(), restarts: 5, slack: Duration::from_secs(1) },
        files: Files::default(),
        start: Start::Anew,
    };
    Keeper::new(plan, given).unwrap()
}

/// A checkpoint that is as late as can be; the worker's end of its channel.
pub(super) fn late_work(keeper: &mut Keeper) -> Channel {
    let (worker, far) = Worker::of_test();
    let errand = Errand::Checkpoint { at: Duration::ZERO, then: Then::GoOn, thawed: true, askers: Vec::new() };
    keeper.work = Some(Work::new(worker, errand, Duration::ZERO));
    far
}
