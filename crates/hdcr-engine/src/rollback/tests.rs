//! Roll-backs that end well, fail, or die.

use super::*;

#[derive(Debug)]
struct Kept(Vec<u8>);

impl Contents for Kept {
    fn pieces(&self, _id: ObjectId) -> Vec<(u64, u64)> {
        vec![(0, self.0.len() as u64)]
    }

    fn zeros(&self, _id: ObjectId) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn read(&self, _id: ObjectId, each: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        each(0, &self.0)
    }
}

struct Scene {
    directory: tempfile::TempDir,
    kept: Kept,
}

const CHANGED: Changed = Changed { seconds: 1_000_000_000, nanoseconds: 5 };

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("data"), b"new data, longer than before").unwrap();
        std::fs::write(directory.path().join("log"), b"one\ntwo\nthree\n").unwrap();
        std::fs::write(directory.path().join("data-journal"), b"hot").unwrap();
        let mut page = b"old data".to_vec();
        page.resize(4096, 0);
        Self { directory, kept: Kept(page) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, name: &str) -> OwnedFd {
        File::options().read(true).write(true).open(self.path(name)).unwrap().into()
    }

    fn plan(&self) -> Plan {
        let mut plan = Plan::at(&self.path("journal")).unwrap();
        let id = ObjectId(1);
        plan.add(Action::Contents { path: self.path("data"), file: self.open("data"), id, size: 8, changed: CHANGED });
        plan.add(Action::Cut { path: self.path("log"), file: self.open("log"), size: 8, changed: CHANGED });
        let from = self.path(".gone.hdcr-new-9");
        plan.will_make(&from, None).unwrap();
        std::fs::write(&from, b"back").unwrap();
        let stat = rustix::fs::stat(&from).unwrap();
        plan.add(Action::Place { path: self.path("gone"), from, device: stat.st_dev, inode: stat.st_ino });
        plan.add(Action::Aside { path: self.path("data-journal"), to: self.path("aside") });
        plan
    }

    /// Every file with its contents, the journal's directory left out.
    fn files(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap());
        let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
        let mut all: Vec<_> = files
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap()))
            .collect();
        all.sort();
        all
    }

    fn expect(&self, wanted: &[(&str, &str)]) {
        let wanted: Vec<_> = wanted.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(self.files(), wanted);
    }
}

const BEFORE: &[(&str, &str)] =
    &[("data", "new data, longer than before"), ("data-journal", "hot"), ("log", "one\ntwo\nthree\n")];
const AFTER: &[(&str, &str)] = &[("aside", "hot"), ("data", "old data"), ("gone", "back"), ("log", "one\ntwo\n")];

#[test]
fn files_are_rolled_back_in_place() {
    let scene = Scene::new();
    let inode = rustix::fs::stat(scene.path("data")).unwrap().st_ino;
    let mut plan = scene.plan();
    plan.prepare().unwrap();
    scene.expect(&[BEFORE, &[(".gone.hdcr-new-9", "back")]].concat().tap_sorted());
    plan.apply(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    plan.finish().unwrap();
    scene.expect(AFTER);
    let stat = rustix::fs::stat(scene.path("data")).unwrap();
    assert_eq!((stat.st_ino, stat.st_mtime, stat.st_mtime_nsec), (inode, 1_000_000_000, 5));
    assert_eq!(std::fs::read_dir(scene.path("journal")).unwrap().count(), 0);
    assert!(!repair(&scene.path("journal")).unwrap());
    assert_eq!(std::fs::read_dir(scene.path("journal")).unwrap().count(), 0, "nothing was there to repair");
    scene.expect(AFTER);
}

trait Sorted {
    fn tap_sorted(self) -> Self;
}

impl Sorted for Vec<(&str, &str)> {
    fn tap_sorted(mut self) -> Self {
        self.sort_unstable();
        self
    }
}

#[test]
fn a_dropped_plan_leaves_all_as_it_was() {
    let scene = Scene::new();
    drop(scene.plan());
    scene.expect(BEFORE);
    let mut plan = scene.plan();
    plan.prepare().unwrap();
    plan.apply(&scene.kept).unwrap();
    scene.expect(AFTER);
    drop(plan);
    scene.expect(BEFORE);
}

#[test]
fn the_next_restore_repairs_after_one_that_died() {
    let scene = Scene::new();
    let mut plan = scene.plan();
    plan.prepare().unwrap();
    plan.apply(&scene.kept).unwrap();
    scene.expect(AFTER);
    // As death leaves it: nothing is undone, the lock is gone with the descriptor.
    plan.finished = true;
    drop(plan);
    assert!(repair(&scene.path("journal")).unwrap());
    scene.expect(BEFORE);
    assert!(!repair(&scene.path("journal")).unwrap());
}

#[test]
fn without_a_journal_a_failure_is_still_undone() {
    let scene = Scene::new();
    let mut plan = Plan::default();
    plan.add(Action::Contents {
        path: scene.path("data"),
        file: scene.open("data"),
        id: ObjectId(1),
        size: 8,
        changed: CHANGED,
    });
    plan.prepare().unwrap();
    plan.apply(&scene.kept).unwrap();
    drop(plan);
    scene.expect(BEFORE);
}
