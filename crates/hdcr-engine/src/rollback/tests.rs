//! Roll-backs that end well, fail, or die.

use std::fs::File;

use super::*;

#[derive(Debug)]
pub(super) struct Kept(Vec<u8>);

impl Contents for Kept {
    fn pieces(&self, _id: ObjectId) -> Vec<(u64, u64)> {
        vec![(0, self.0.len() as u64)]
    }

    fn zeros(&self, _id: ObjectId) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn read(&self, _id: ObjectId, each: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let (first, rest) = self.0.split_at(3);
        each(0, first)?;
        deaths::Fate::filling();
        each(3, rest)
    }
}

pub(super) struct Scene {
    directory: PathBuf,
    pub(super) kept: Kept,
    /// Who removes it in the end.
    owner: Option<tempfile::TempDir>,
}

pub(super) const CHANGED: Changed = Changed { seconds: 1_000_000_000, nanoseconds: 5 };

impl Scene {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("data"), b"new data, longer than before").unwrap();
        std::fs::write(directory.path().join("log"), b"one\ntwo\nthree\n").unwrap();
        std::fs::write(directory.path().join("data-journal"), b"hot").unwrap();
        let mut scene = Self::of(directory.path().to_owned());
        scene.owner = Some(directory);
        scene
    }

    /// One that is there, and stays.
    pub(super) fn of(directory: PathBuf) -> Self {
        let mut page = b"old data".to_vec();
        page.resize(4096, 0);
        Self { directory, kept: Kept(page), owner: None }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn open(&self, name: &str) -> Target {
        Target::Open(File::options().read(true).write(true).open(self.path(name)).unwrap().into())
    }

    pub(super) fn plan(&self) -> Plan {
        let mut plan = Plan::at(&self.path("journal")).unwrap();
        let id = ObjectId(1);
        plan.add(
            Action::Contents { path: self.path("data"), file: self.open("data"), id, size: 8, changed: CHANGED },
            Newer::Go,
        )
        .unwrap();
        plan.add(Action::Cut { path: self.path("log"), file: self.open("log"), size: 8, changed: CHANGED }, Newer::Go)
            .unwrap();
        let from = self.path(".gone.hdcr-new-9");
        plan.will_make(&from, None).unwrap();
        std::fs::write(&from, b"back").unwrap();
        plan.add(Action::Place { path: self.path("gone"), from }, Newer::Go).unwrap();
        plan.add(Action::Aside { path: self.path("data-journal"), to: self.path("aside") }, Newer::Go).unwrap();
        plan
    }

    /// Every file with its contents, the journal's directory left out.
    fn files(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap());
        let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
        let mut all: Vec<_> = files
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap()))
            .collect();
        all.sort();
        all
    }

    pub(super) fn expect(&self, wanted: &[(&str, &str)]) {
        self.expect_in(wanted, "");
    }

    pub(super) fn expect_in(&self, wanted: &[(&str, &str)], context: &str) {
        let wanted: Vec<_> = wanted.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(self.files(), wanted, "{context}");
    }
}

pub(super) const BEFORE: &[(&str, &str)] =
    &[("data", "new data, longer than before"), ("data-journal", "hot"), ("log", "one\ntwo\nthree\n")];
pub(super) const AFTER: &[(&str, &str)] =
    &[("aside", "hot"), ("data", "old data"), ("gone", "back"), ("log", "one\ntwo\n")];

#[test]
fn files_are_rolled_back_in_place() {
    let scene = Scene::new();
    let inode = rustix::fs::stat(scene.path("data")).unwrap().st_ino;
    let mut plan = scene.plan();
    plan.prepare(&scene.kept).unwrap();
    scene.expect(&[BEFORE, &[(".gone.hdcr-new-9", "back")]].concat().tap_sorted());
    plan.apply(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    plan.finish().unwrap();
    scene.expect(AFTER);
    let stat = rustix::fs::stat(scene.path("data")).unwrap();
    assert_eq!((stat.st_ino, stat.st_mtime, stat.st_mtime_nsec), (inode, 1_000_000_000, 5));
    let left = || std::fs::read_dir(scene.path("journal")).unwrap().count();
    assert_eq!(left(), 1, "the list of what was moved aside");
    assert!(!repair(&scene.path("journal")).unwrap());
    assert_eq!(left(), 1, "nothing was there to repair");
    scene.expect(AFTER);
}

/// What follows the end of a roll-back may fail, and files are rolled back all the same.
#[test]
fn an_error_after_the_end_is_none_of_the_files() {
    let scene = Scene::new();
    let mut plan = scene.plan();
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    // The list of what is left cannot be put here.
    std::fs::create_dir(scene.path("journal/left.list")).unwrap();
    start::end(plan).unwrap();
    repair(&scene.path("journal")).unwrap();
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
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    scene.expect(AFTER);
    drop(plan);
    scene.expect(BEFORE);
}

#[test]
fn the_next_restore_repairs_after_one_that_died() {
    let scene = Scene::new();
    let mut plan = scene.plan();
    plan.prepare(&scene.kept).unwrap();
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
fn what_cannot_be_undone_yet_is_undone_by_the_next_attempt() {
    let scene = Scene::new();
    let mut plan = scene.plan();
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    plan.die();
    let immutable = |word: &str| {
        let done = std::process::Command::new("chattr").arg(word).arg(scene.path("data")).output();
        done.is_ok_and(|done| done.status.success())
    };
    if !immutable("+i") {
        // Only root may, and not on every file system.
        return;
    }
    let first = repair(&scene.path("journal"));
    assert!(immutable("-i"));
    first.unwrap_err();
    assert_eq!(std::fs::read_to_string(scene.path("log")).unwrap(), "one\ntwo\nthree\n", "the others are undone");
    assert!(repair(&scene.path("journal")).unwrap());
    scene.expect(BEFORE);
}

/// With the word of who could not undo it, and with that of the destructor after it.
#[test]
fn what_cannot_be_undone_is_kept_for_who_can() {
    let scene = Scene::new();
    let mut plan = scene.plan();
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    let copy = plan.journal.as_ref().unwrap().copy(1);
    std::fs::rename(&copy, scene.path("journal/away")).unwrap();
    std::fs::create_dir(&copy).unwrap();
    plan.undo().unwrap_err();
    drop(plan);
    std::fs::remove_dir(&copy).unwrap();
    std::fs::rename(scene.path("journal/away"), &copy).unwrap();
    assert!(repair(&scene.path("journal")).unwrap());
    scene.expect(BEFORE);
}

#[test]
fn what_is_kept_for_the_user_is_not_overwritten_by_the_next_copy() {
    let scene = Scene::new();
    let journal = scene.path("journal");
    // As a roll-back leaves it that dies between the end of its journal and the removal of its copies.
    std::fs::create_dir(&journal).unwrap();
    std::fs::write(journal.join("rollback.1"), "kept for the user").unwrap();
    std::fs::hard_link(journal.join("rollback.1"), journal.join("newer-1-log")).unwrap();
    let mut plan = Plan::at(&journal).unwrap();
    let cut = Action::Cut { path: scene.path("log"), file: scene.open("log"), size: 8, changed: CHANGED };
    plan.add(cut, Newer::Go).unwrap();
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    plan.finish().unwrap();
    assert_eq!(std::fs::read_to_string(journal.join("newer-1-log")).unwrap(), "kept for the user");
}

#[test]
fn without_a_journal_a_failure_is_still_undone() {
    let scene = Scene::new();
    let mut plan = Plan::default();
    plan.add(
        Action::Contents {
            path: scene.path("data"),
            file: scene.open("data"),
            id: ObjectId(1),
            size: 8,
            changed: CHANGED,
        },
        Newer::Go,
    )
    .unwrap();
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    drop(plan);
    scene.expect(BEFORE);
}

/// Where each of the steps that begin with these words is, all of them in this order.
fn in_order(steps: &[String], wanted: &[&str]) {
    let mut at = 0;
    for want in wanted {
        let found = steps.iter().skip(at).position(|step| step.starts_with(want));
        at += found.unwrap_or_else(|| panic!("no {want} from step {at} on: {steps:#?}")) + 1;
    }
}

#[test]
fn the_disk_has_what_is_kept_before_a_file_is_touched_and_the_file_before_the_journal_ends() {
    let scene = Scene::new();
    let mut plan = scene.plan();
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    plan.journal.as_mut().unwrap().end(Come::Final, &plan.steps).unwrap();
    let steps = plan.steps.taken.take();
    let journal = "sync rollback.journal";
    in_order(&steps, &["sync rollback.", journal, "sync journal", "write data", "sync data", "end rollback.journal"]);
    in_order(&steps, &["sync rollback.", journal, "cut log", "sync log", "end rollback.journal", journal]);
    // The file that gets its name, and the directory of the names, before the end.
    in_order(&steps, &["write data", "sync gone", "end rollback.journal"]);
    let directory = format!("sync {}", scene.directory.file_name().unwrap().display());
    in_order(&steps, &["sync gone", &directory, "end rollback.journal"]);
    let last_copy = steps.iter().rposition(|step| step.starts_with("sync rollback.") && !step.ends_with("journal"));
    let first_touch = steps.iter().position(|step| step.starts_with("write") || step.starts_with("cut"));
    assert!(last_copy < first_touch, "{steps:#?}");
}

#[test]
fn what_was_undone_is_on_the_disk_before_the_journal_ends() {
    let scene = Scene::new();
    let mut plan = scene.plan();
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    plan.steps.taken.take();
    plan.undo().unwrap();
    let steps = plan.steps.taken.take();
    in_order(&steps, &["sync data", "end rollback.journal"]);
    in_order(&steps, &["sync log", "end rollback.journal"]);
    scene.expect(BEFORE);
}

#[test]
fn another_file_under_the_same_number_is_not_overwritten() {
    let scene = Scene::new();
    let mut plan = scene.plan();
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    // As if the inode's number had come to a file that was born later.
    let entry = plan.done.iter().find(|entry| entry.undo() == Undo::WriteBack && entry.path.ends_with(b"data"));
    let other = Entry { born: 1, handle: Vec::new(), ..entry.unwrap().clone() };
    plan.journal.as_mut().unwrap().add(&other).unwrap();
    plan.done.clear();
    plan.done.push(other);
    plan.undo().unwrap();
    assert_eq!(std::fs::read_to_string(scene.path("data")).unwrap(), "old data");
}

#[test]
fn a_directory_of_somebody_else_is_not_removed_for_ours() {
    let scene = Scene::new();
    let mut plan = Plan::at(&scene.path("journal")).unwrap();
    std::fs::create_dir(scene.path("taken")).unwrap();
    plan.make_directory(&scene.path("taken"), 0o700).unwrap_err();
    plan.make_directory(&scene.path("ours"), 0o700).unwrap();
    plan.make_directory(&scene.path("replaced"), 0o700).unwrap();
    std::fs::rename(scene.path("replaced"), scene.path("elsewhere")).unwrap();
    std::fs::create_dir(scene.path("replaced")).unwrap();
    drop(plan);
    let is_there = |name: &str| scene.path(name).is_dir();
    assert_eq!(["taken", "ours", "replaced"].map(is_there), [true, false, true]);
    assert!(
        std::fs::read_dir(&scene.directory).unwrap().all(|entry| !data::ours(entry.unwrap().file_name().as_bytes()))
    );
}

#[test]
fn what_is_left_for_the_user_stays_for_some_roll_backs() {
    let scene = Scene::new();
    let journal = scene.path("journal");
    let mut places: Vec<[PathBuf; 2]> = Vec::new();
    for round in 0..10 {
        std::fs::write(scene.path("log"), format!("one\ntwo\n{round}\n")).unwrap();
        std::fs::write(scene.path("newer"), round.to_string()).unwrap();
        let mut plan = Plan::at(&journal).unwrap();
        let place = plan.place_of_newer(&scene.path("log")).unwrap();
        let cut = Action::Cut { path: scene.path("log"), file: scene.open("log"), size: 8, changed: CHANGED };
        plan.add(cut, Newer::Stay(place.clone())).unwrap();
        let to = data::free_beside(&scene.path("newer"), "newer", || plan.number());
        plan.add(Action::Aside { path: scene.path("newer"), to: to.clone() }, Newer::Go).unwrap();
        plan.prepare(&scene.kept).unwrap();
        plan.apply(&scene.kept).unwrap();
        plan.finish().unwrap();
        assert_eq!(std::fs::read_to_string(scene.path("log")).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&place).unwrap(), format!("{round}\n"));
        assert_eq!(std::fs::read_to_string(&to).unwrap(), round.to_string());
        places.push([place, to]);
    }
    Plan::at(&journal).unwrap().finish().unwrap();
    let kept: BTreeSet<_> = places.iter().flatten().filter(|place| place.exists()).collect();
    assert_eq!(kept.len(), 16, "two of each of the last eight; a name may be given again");
    assert!(places.iter().skip(2).flatten().all(|place| place.exists()));
    assert_eq!(std::fs::read_dir(&journal).unwrap().count(), 8 + 1, "the parts that were cut off, and the list");
}

#[test]
fn a_socket_of_a_restore_that_died_is_gone_and_the_one_before_is_back() {
    use std::os::unix::net::UnixListener;
    let scene = Scene::new();
    let (ours, theirs) = (scene.path("ours"), scene.path("theirs"));
    drop(UnixListener::bind(&ours).unwrap());
    let before = Witness::at(&ours).unwrap();
    let mut plan = Plan::at(&scene.path("journal")).unwrap();
    let aside = data::free_beside(&ours, "old", || plan.number());
    plan.move_away(&ours, &aside).unwrap();
    plan.will_bind(&ours).unwrap();
    drop(UnixListener::bind(&ours).unwrap());
    plan.will_bind(&theirs).unwrap();
    let stranger = UnixListener::bind(&theirs).unwrap();
    plan.die();
    assert!(repair(&scene.path("journal")).unwrap());
    assert_eq!(Witness::at(&ours).unwrap(), before);
    assert!(!aside.exists());
    assert!(theirs.exists(), "somebody answers there");
    drop(stranger);
    // One that comes to its end leaves neither.
    let mut plan = Plan::at(&scene.path("journal")).unwrap();
    plan.move_away(&ours, &aside).unwrap();
    plan.finish().unwrap();
    assert!(!ours.exists() && !aside.exists());
}

/// Nothing of such a file is open: it is found by its name, must be the same, and is undone whatever its name is then.
#[test]
fn files_that_nobody_holds_are_found_again() {
    let scene = Scene::new();
    let named = |plan: &mut Plan| {
        let Target::Open(file) = scene.open("log") else { panic!() };
        let file = Target::named(&file, &scene.path("log")).unwrap();
        plan.add(Action::Cut { path: scene.path("log"), file, size: 4, changed: CHANGED }, Newer::Go).unwrap();
    };
    let mut plan = Plan::at(&scene.path("journal")).unwrap();
    named(&mut plan);
    plan.prepare(&scene.kept).unwrap();
    plan.apply(&scene.kept).unwrap();
    let length = |name: &str| std::fs::metadata(scene.path(name)).unwrap().len();
    assert_eq!(length("log"), 4);
    if nix::unistd::geteuid().is_root() {
        std::fs::rename(scene.path("log"), scene.path("moved")).unwrap();
        std::fs::write(scene.path("log"), "of another").unwrap();
        drop(plan);
        assert_eq!((length("log"), length("moved")), (10, 14));
    } else {
        drop(plan);
        assert_eq!(length("log"), 14);
    }
    // Another one has come to its name meanwhile: nothing is done to it.
    let mut plan = Plan::at(&scene.path("journal")).unwrap();
    named(&mut plan);
    std::fs::write(scene.path("other"), "of another one").unwrap();
    std::fs::rename(scene.path("other"), scene.path("log")).unwrap();
    assert!(matches!(plan.prepare(&scene.kept), Err(Error::Changed { .. })));
    drop(plan);
    assert_eq!(length("log"), 14);
}
