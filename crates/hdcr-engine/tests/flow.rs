//! The whole way of the engine, from a running tree to an image and back, over a model in place of ptrace: in order, with
//! the mechanism failing at each of its calls, and with the store failing at each write.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

mod model;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdcr_engine::checkpoint::{
    self, CompressionRequest, EndRequest, FileRequest, Omitted, Request, SnapshotRequest, Stopped,
};
use hdcr_engine::error::Error;
use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Deadline, Parent, Scope};
use hdcr_engine::progress::Progress;
use hdcr_engine::restore::{self, Afterwards, Options, Told};
use hdcr_image::{
    Compression, ImageError, ImageId, ImageReader, Manifest, ManifestFacts, MemoryImage, PartName, Sink, SnapshotId,
    StoreError, WritePart,
};

use crate::model::{Model, Witness};

fn request(witness: &Witness) -> Request {
    Request {
        scope: Scope::Tree(witness.root()),
        by: Deadline(Instant::now() + Duration::from_mins(1)),
        files: FileRequest { limit: 1 << 20, ..FileRequest::default() },
        ends: EndRequest::default(),
        compression: CompressionRequest::Always(Compression::Lz4),
        snapshot: SnapshotRequest::Auto,
        followed: false,
        omitted: Omitted::default(),
        unseen: false,
        blind: None,
        progress: Progress::default(),
    }
}

fn stopped(model: &Model, witness: &Witness, sink: Box<dyn Sink>) -> Result<Stopped, Error> {
    let request = request(witness);
    let by = request.by;
    checkpoint::survey(request)?.prepare(model, sink)?.freeze(model, by)
}

/// All phases of a checkpoint after which the tree goes on.
fn checkpoint(model: &Model, witness: &Witness, sink: Box<dyn Sink>) -> Result<Manifest, Error> {
    let pending = stopped(model, witness, sink)?.capture()?.thaw()?;
    Ok(pending.persist(ManifestFacts::default())?.commit()?.manifest)
}

fn sink(image: &MemoryImage) -> Box<dyn Sink> {
    Box::new(image.sink(ImageId(*b"an image of flow")))
}

/// A witness that has ended, its image, and its log, which has grown since.
fn imaged() -> (Witness, MemoryImage) {
    let (mut witness, image) = (Witness::start(), MemoryImage::new());
    checkpoint(&Model::default(), &witness, sink(&image)).unwrap();
    witness.end();
    OpenOptions::new().append(true).open(witness.log()).unwrap().write_all(b"what came later\n").unwrap();
    (witness, image)
}

fn options() -> Options {
    let null = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
    Options {
        parent: Parent::Caller,
        afterwards: Afterwards::Stays,
        stdio: [null(), null(), null()],
        map_path: Vec::new(),
        by: Deadline(Instant::now() + Duration::from_mins(1)),
        journal: None,
        since: None,
        asked_by: None,
        progress: Progress::default(),
        lazily: None,
        greeting: Vec::new(),
    }
}

/// What the restoring command is told, once and only when all is well.
fn restored(model: &Model, image: &MemoryImage) -> Result<restore::Restored, Error> {
    let mut told = Vec::new();
    let image = Arc::new(ImageReader::open(&image.source().unwrap())?);
    let result = restore::restore(model, &image, &options(), &mut |what| {
        let released = model.state.borrow().released;
        match what {
            Told::Runs(restored) if released => told.push(restored),
            Told::Runs(_) => unreachable!("told before the release"),
            Told::Built | Told::GoesNext(_) => assert!(!released, "told after the release"),
            Told::BeforeAllIsThere(pids) => unreachable!("all memory of {pids:?} is there"),
        }
        Ok(())
    });
    assert_eq!(told.len(), usize::from(result.is_ok()));
    result.map(|filling| {
        assert!(filling.is_none());
        told.remove(0)
    })
}

/// One test at a time: they count what this process has open.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_tree_comes_back_as_it_was_captured() {
    let _alone = alone();
    let (mut witness, image) = (Witness::start(), MemoryImage::new());
    let model = Model::default();
    let manifest = checkpoint(&model, &witness, sink(&image)).unwrap();
    assert_eq!(model.state.borrow().ends, ["thaw"]);
    let [root, child] = witness.tree();
    assert_eq!(manifest.facts.root_pid, root.0);
    let numbers: Vec<i32> = manifest.facts.processes.iter().map(|process| process.pid).collect();
    assert_eq!(numbers, [root.0, child.0]);
    witness.end();
    OpenOptions::new().append(true).open(witness.log()).unwrap().write_all(b"what came later\n").unwrap();

    let model = Model::default();
    let back = restored(&model, &image).unwrap();
    assert_eq!((back.roots, back.processes), (vec![root], 2));
    let state = model.state.borrow();
    assert!(state.released && state.alive == 0);
    // Children before parents, each with the registers that it had.
    let order: Vec<Tid> = state.finals.iter().map(|last| last.tid).collect();
    assert_eq!(order, [child.leader(), root.leader()]);
    for last in &state.finals {
        assert_eq!(last.regs.r15 >> 32, u64::from(last.tid.0.unsigned_abs()));
        assert_eq!((last.xstate.len(), last.signal_mask, last.stopped), (832, 1 << 40, None));
    }
    let (shell, sleep) = (&state.tasks[&root.0], &state.tasks[&child.0]);
    assert_eq!((shell.parent, sleep.parent), (None, Some(root.0)));
    assert!(shell.session && !sleep.session);
    assert_eq!((shell.umask, sleep.umask), (Some(0o027), Some(0o027)));
    assert_eq!(shell.queued, [41]);
    assert_eq!(shell.descriptors.iter().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(sleep.descriptors.iter().copied().collect::<Vec<_>>(), [0, 1, 2, 4, 5]);
    assert!(shell.written.lock().unwrap().len() > 10 && sleep.written.lock().unwrap().len() > 10);
    assert_eq!(fs::read_to_string(witness.log()).unwrap(), "one\n");
}

#[test]
fn whatever_fails_in_a_checkpoint_the_tree_goes_on_and_nothing_is_committed() {
    let _alone = alone();
    let witness = Witness::start();
    let before = open_descriptors();
    let calls = {
        let model = Model::default();
        checkpoint(&model, &witness, sink(&MemoryImage::new())).unwrap();
        model.state.borrow().calls.len()
    };
    assert!(calls > 20, "{calls} calls");
    for at in 0..calls {
        let (model, image) = (Model::failing(at), MemoryImage::new());
        let result = checkpoint(&model, &witness, sink(&image));
        let state = model.state.borrow();
        let name = state.calls.get(at).copied();
        assert!(state.failed && result.is_err(), "call {at}, {name:?}: {result:?}");
        assert_eq!((state.alive, &state.ends), (0, &Vec::<&str>::new()), "call {at}, {name:?}: dropped, and so thawed");
        assert!(image.parts().is_none(), "call {at}, {name:?}: an image");
        assert_eq!(state.calls.len(), at + 1, "call {at}, {name:?}: it went on");
    }
    assert_eq!(open_descriptors(), before);
}

#[test]
fn every_phase_that_is_dropped_thaws() {
    let _alone = alone();
    let witness = Witness::start();
    let image = MemoryImage::new();
    let model = Model::default();
    drop(stopped(&model, &witness, sink(&image)).unwrap());
    assert_eq!(model.state.borrow().alive, 0);
    drop(stopped(&model, &witness, sink(&image)).unwrap().capture().unwrap());
    assert_eq!(model.state.borrow().alive, 0);
    let (pending, held) = stopped(&model, &witness, sink(&image)).unwrap().capture().unwrap().hold();
    assert_eq!(model.state.borrow().alive, 1);
    let durable = pending.persist(ManifestFacts::default()).unwrap();
    drop(held);
    assert_eq!(model.state.borrow().alive, 0);
    durable.abort().unwrap();
    assert!(model.state.borrow().ends.is_empty() && image.parts().is_none());
}

#[test]
fn a_tree_that_is_held_is_killed_after_its_image_is_there() {
    let _alone = alone();
    let (witness, image) = (Witness::start(), MemoryImage::new());
    let model = Model::default();
    let (pending, held) = stopped(&model, &witness, sink(&image)).unwrap().capture().unwrap().hold();
    pending.persist(ManifestFacts::default()).unwrap().commit().unwrap();
    assert!(model.state.borrow().ends.is_empty() && image.parts().is_some());
    held.kill().unwrap();
    assert_eq!((model.state.borrow().alive, model.state.borrow().ends.clone()), (0, vec!["kill"]));
}

#[test]
fn a_tree_that_cannot_be_followed_is_read_in_the_stop() {
    let _alone = alone();
    let (witness, image) = (Witness::start(), MemoryImage::new());
    let model = Model::default();
    let request = Request { snapshot: SnapshotRequest::Ahead, ..request(&witness) };
    let by = request.by;
    let prepared = checkpoint::survey(request).unwrap().prepare(&model, sink(&image)).unwrap();
    let pending = prepared.freeze(&model, by).unwrap().capture().unwrap().thaw().unwrap();
    let manifest = pending.persist(ManifestFacts::default()).unwrap().commit().unwrap().manifest;
    assert!(manifest.facts.snapshot.starts_with("copy (process "), "{}", manifest.facts.snapshot);
    assert!(model.state.borrow().calls.contains(&"follow") && manifest.pages.stored_pages > 0);
}

#[test]
fn what_stands_in_the_way_is_found_before_the_freeze() {
    let _alone = alone();
    let witness = Witness::start();
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut holder = Command::new("sleep").arg("3600").stdin(Stdio::null()).stderr(reader).spawn().unwrap();
    let scope = Scope::Tree(Pid(holder.id().try_into().unwrap()));
    let model = Model::default();
    let surveyed = checkpoint::survey(Request { scope, ..request(&witness) }).unwrap();
    let named: Vec<&str> = surveyed.notes().iter().chain(surveyed.refusals()).map(|refusal| refusal.code).collect();
    if !surveyed.refusals().is_empty() {
        assert!(matches!(surveyed.prepare(&model, sink(&MemoryImage::new())), Err(Error::Refused(_))));
    }
    assert!(model.state.borrow().calls.is_empty());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(!named.is_empty(), "a pipe that leads out is named");
}

#[test]
fn whatever_fails_in_a_restore_nothing_lives_and_files_are_as_they_were() {
    let _alone = alone();
    let (witness, image) = imaged();
    let log = fs::read(witness.log()).unwrap();
    let calls = {
        let model = Model::default();
        restored(&model, &image).unwrap();
        OpenOptions::new().append(true).open(witness.log()).unwrap().write_all(b"what came later\n").unwrap();
        model.state.borrow().calls.len()
    };
    assert_eq!(fs::read(witness.log()).unwrap(), log);
    assert!(calls > 20, "{calls} calls");
    let before = open_descriptors();
    for at in 0..calls {
        let model = Model::failing(at);
        let result = restored(&model, &image);
        let state = model.state.borrow();
        let name = state.calls.get(at).copied();
        assert!(state.failed && result.is_err(), "call {at}, {name:?}: {result:?}");
        assert!(!state.released && state.alive == 0, "call {at}, {name:?}: something lives");
        assert_eq!(fs::read(witness.log()).unwrap(), log, "call {at}, {name:?}: the log");
    }
    assert_eq!(open_descriptors(), before);
}

/// Every system call of the new tasks that matters: too many to try all of them in every run.
#[test]
fn whatever_call_fails_in_a_new_task_nothing_lives_and_files_are_as_they_were() {
    const STRIDE: usize = 11;
    let _alone = alone();
    let (witness, image) = imaged();
    let log = fs::read(witness.log()).unwrap();
    for at in (0..).step_by(STRIDE) {
        let model = Model::failing_call(at);
        let result = restored(&model, &image);
        let state = model.state.borrow();
        if state.failed {
            assert!(matches!(result, Err(Error::Call { .. })), "system call {at}: {result:?}");
            assert!(!state.released && state.alive == 0, "system call {at}: something lives");
            assert_eq!(fs::read(witness.log()).unwrap(), log, "system call {at}: the log");
            continue;
        }
        // Its failure does not matter, or there is no such call: it is restored.
        assert!(result.is_ok() && state.released, "system call {at}: {result:?}");
        fs::write(witness.log(), &log).unwrap();
        if state.system_calls <= at {
            assert!(at > 100, "{at} system calls");
            return;
        }
    }
}

/// A sink that fails at the n-th of its operations.
#[derive(Debug)]
struct Failing {
    inner: Box<dyn Sink>,
    left: Arc<AtomicIsize>,
}

#[derive(Debug)]
struct FailingPart {
    inner: Box<dyn WritePart>,
    left: Arc<AtomicIsize>,
}

fn spend(left: &AtomicIsize) -> Result<(), StoreError> {
    if left.fetch_sub(1, Ordering::Relaxed) == 0 {
        return Err(StoreError::new("writing", "a part".to_owned(), std::io::ErrorKind::StorageFull.into()));
    }
    Ok(())
}

impl Sink for Failing {
    fn snapshot(&self) -> &SnapshotId {
        self.inner.snapshot()
    }

    fn part(&mut self, name: PartName) -> Result<Box<dyn WritePart>, StoreError> {
        spend(&self.left)?;
        Ok(Box::new(FailingPart { inner: self.inner.part(name)?, left: Arc::clone(&self.left) }))
    }

    fn persist(&mut self, manifest: &[u8]) -> Result<(), StoreError> {
        spend(&self.left)?;
        self.inner.persist(manifest)
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        spend(&self.left)?;
        self.inner.commit()
    }

    fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.inner.abort()
    }
}

impl WritePart for FailingPart {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        spend(&self.left)?;
        self.inner.write(bytes)
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        spend(&self.left)?;
        self.inner.close()
    }
}

#[test]
fn whatever_fails_in_the_store_the_tree_goes_on_and_nothing_is_committed() {
    let _alone = alone();
    let witness = Witness::start();
    for at in 0..10_000 {
        let (model, image) = (Model::default(), MemoryImage::new());
        let left = Arc::new(AtomicIsize::new(at));
        let result = checkpoint(&model, &witness, Box::new(Failing { inner: sink(&image), left }));
        assert_eq!(model.state.borrow().alive, 0, "operation {at}");
        match result {
            Ok(_) => {
                assert!(image.parts().is_some() && at > 5, "{at} operations");
                return;
            }
            Err(Error::Image(ImageError::Store(_))) => assert!(image.parts().is_none(), "operation {at}: an image"),
            Err(other) => panic!("operation {at}: {other}"),
        }
    }
    panic!("it never came to its end");
}
