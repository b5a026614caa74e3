//! Roll-backs whose process is killed at each of its steps, one step after the other, and repairs and settlements likewise.
//!
//! It is a process of its own each time, this test program once more: what a destructor would still do is not done.

#![expect(clippy::disallowed_methods, reason = "the process that dies is told by its environment what to do")]

use std::cell::Cell;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use super::tests::{AFTER, BEFORE, CHANGED, Scene};
use super::*;

/// In the process that dies: what it does, and where.
const WHAT: &str = "HDCR_TEST_DEATH_IN";
const WHERE: &str = "HDCR_TEST_DEATH_AT";

/// In the process that dies: at which step.
const WHEN: &str = "HDCR_TEST_DEATH_WHEN";

/// Not at a step, but in the middle of a file.
const FILLING: &str = "filling";

/// More steps than any of them has.
const MOST: u32 = 1_000;

/// Which step of a process is its last.
#[derive(Debug)]
pub(crate) struct Fate(Cell<Option<u32>>);

impl Default for Fate {
    fn default() -> Self {
        Self(Cell::new(std::env::var(WHEN).ok().and_then(|when| when.parse().ok())))
    }
}

impl Fate {
    /// A step is about to be done, and is not if it is the one to die at.
    pub(crate) fn step(&self) {
        self.0.set(self.0.get().map(|left| left.saturating_sub(1)));
        if self.0.get() == Some(0) {
            die();
        }
    }

    /// A file is half written.
    pub(crate) fn filling() {
        if std::env::var(WHEN).is_ok_and(|when| when == FILLING) {
            die();
        }
    }
}

fn die() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

/// What the processes do that the other tests of this file kill; of itself nothing.
#[test]
fn victim() {
    let Ok(what) = std::env::var(WHAT) else { return };
    let scene = Scene::of(std::env::var_os(WHERE).unwrap().into());
    let journal = scene.path("journal");
    match what.as_str() {
        "rollback" | "together" => {
            let mut plan = plan(&scene);
            plan.together = what == "together";
            plan.prepare(&scene.kept).unwrap();
            plan.apply(&scene.kept).unwrap();
            plan.steps.fate.step();
            // The moment in which the tree would be let go: whoever began the restore has been told.
            std::fs::create_dir(scene.path("let_go")).unwrap();
            plan.finish().unwrap();
        }
        "repair" => assert!(repair(&journal).unwrap()),
        "settle" => settle(&journal).unwrap(),
        other => panic!("{other}"),
    }
}

/// A scene with a directory in which there is one thing of each kind that [`Scene::plan`] has not.
fn scene() -> Scene {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("more")).unwrap();
    std::fs::write(scene.path("more/old"), b"in the way").unwrap();
    std::fs::write(scene.path("more/shared"), b"mine, theirs").unwrap();
    if is_root() {
        std::fs::hard_link(scene.path("more/shared"), scene.path("more/second")).unwrap();
    }
    scene
}

/// Others cannot find a file again that has lost a name.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything that a roll-back can do.
fn plan(scene: &Scene) -> Plan {
    let mut plan = scene.plan();
    let (old, shared) = (scene.path("more/old"), scene.path("more/shared"));
    plan.make_directory(&scene.path("more/missing"), 0o700).unwrap();
    let to = data::free_beside(&old, "old", || plan.number());
    plan.move_away(&old, &to).unwrap();
    let place = plan.place_of_newer(&shared).unwrap();
    if is_root() {
        let (second, file) = (scene.path("more/second"), crate::resource::reopen::look(&shared).unwrap());
        assert!(plan.will_unname(&second, &file).unwrap());
        plan.sync().unwrap();
        plan.unname(&second, &file).unwrap();
    }
    let Target::Open(file) = scene.open("more/shared") else { panic!() };
    let file = Target::named(&file, &shared).unwrap();
    let cut = Action::Cut { path: shared, file, size: 4, changed: CHANGED };
    plan.add(cut, Newer::Stay(place)).unwrap();
    plan
}

/// All files are as before, or all as after the roll-back.
fn expect(scene: &Scene, after: bool, context: &str) {
    scene.expect_in(if after { AFTER } else { BEFORE }, context);
    let entries = std::fs::read_dir(scene.path("more")).unwrap().map(|entry| entry.unwrap().path());
    let mut more: Vec<_> = entries
        .map(|path| (path.file_name().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap_or_default()))
        .collect();
    more.sort();
    let both = "mine, theirs";
    let before = [("old", "in the way"), ("second", both), ("shared", both)];
    let wanted: &[_] = if after { &[("missing", ""), ("shared", "mine")] } else { &before };
    let wanted = wanted.iter().filter(|(name, _)| is_root() || *name != "second");
    let wanted: Vec<_> = wanted.map(|(name, text)| ((*name).into(), (*text).to_owned())).collect();
    assert_eq!(more, wanted, "{context}");
}

/// Runs one in a process that dies at that step; `false` when it came to its end before.
fn dies(what: &str, scene: &Scene, when: impl std::fmt::Display) -> bool {
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "rollback::deaths::victim", "--nocapture"]);
    victim.env(WHAT, what).env(WHERE, scene.path("")).env(WHEN, when.to_string());
    let ended = victim.output().unwrap();
    assert!(ended.status.success() || ended.status.signal() == Some(9), "{what} at step {when}: {ended:?}");
    !ended.status.success()
}

/// What whoever finds it does, and how the files are then.
fn found(scene: &Scene, context: &str) {
    let journal = scene.path("journal");
    if scene.path("let_go").exists() {
        settle(&journal).unwrap();
        expect(scene, true, context);
    } else {
        repair(&journal).unwrap();
        expect(scene, false, context);
    }
    assert!(!has_died_in(&journal), "{context}");
}

#[test]
fn a_death_at_any_step_leaves_the_files_before_or_after() {
    dies_everywhere("rollback", 40);
}

#[test]
fn so_does_a_death_of_one_with_so_many_files_that_the_disk_is_waited_for_once() {
    dies_everywhere("together", 35);
}

fn dies_everywhere(what: &str, steps: u32) {
    let mut after = 0;
    for when in 1..MOST {
        let scene = scene();
        if !dies(what, &scene, when) {
            expect(&scene, true, "");
            assert!(when > steps && after > 5, "{when} steps, {after} of them since it was let go");
            return;
        }
        after += u32::from(scene.path("let_go").exists());
        found(&scene, &format!("{what} died at step {when}"));
        // And the next one finds nothing in its way.
        if !scene.path("let_go").exists() {
            assert!(!dies(what, &scene, MOST), "after a death at step {when}");
            expect(&scene, true, "");
        }
    }
    panic!("no end");
}

/// The last step before the program is let go, by a scene of its own.
fn last_before_let_go() -> u32 {
    (1..MOST)
        .find(|when| {
            let scene = scene();
            dies("rollback", &scene, *when);
            scene.path("let_go").exists()
        })
        .unwrap()
        - 1
}

#[test]
fn a_death_in_the_middle_of_a_file_leaves_it_as_it_was() {
    let scene = scene();
    assert!(dies("rollback", &scene, FILLING));
    assert_eq!(std::fs::read(scene.path("data")).unwrap()[..3], *b"old");
    found(&scene, "died in the middle of a file");
}

#[test]
fn a_repair_that_dies_at_any_step_is_repaired() {
    let last = last_before_let_go();
    for when in 1..MOST {
        let scene = scene();
        assert!(dies("rollback", &scene, last));
        scene.expect(AFTER);
        if !dies("repair", &scene, when) {
            expect(&scene, false, "");
            assert!(when > 15, "{when} steps");
            return;
        }
        found(&scene, &format!("the repair died at step {when}"));
    }
    panic!("no end");
}

#[test]
fn a_settlement_that_dies_at_any_step_is_settled() {
    let first = last_before_let_go() + 1;
    for when in 1..MOST {
        let scene = scene();
        assert!(dies("rollback", &scene, first));
        if !dies("settle", &scene, when) {
            expect(&scene, true, "");
            assert!(when > 5, "{when} steps");
            return;
        }
        found(&scene, &format!("the settlement died at step {when}"));
    }
    panic!("no end");
}
