//! The way out of pages: read by one thread, packed and written by another, with a bounded queue in between.
//!
//! When the store is slow the queue fills, and whoever reads waits: while the tree runs as long as it takes, in the stop up to
//! the deadline and no longer, though the store hang for ever.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdcr_image::{ImageError, ImageWriter};

use super::kept::length;
use super::pace::{CompressionRequest, Pace};
use crate::error::{Error, Result};
use crate::mechanism::Deadline;
use crate::model::ObjectId;
use crate::progress::Meter;

/// Loads on their way; each has at most 1 MiB. No more than stays in a processor's cache from the reading to the writing.
const QUEUE: usize = 8;
/// How long the end of a given-up image is waited for, so that nothing of it stays in the store.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at a full queue or at a thread that comes to its end.
const STEP: Duration = Duration::from_micros(200);

/// What is on its way.
#[derive(Debug)]
enum Load {
    /// Pages of an object: ranges, and their bytes one after another.
    Pages(u64, Vec<Range<u64>>, Vec<u8>),
    /// These are not to be in the image.
    Forget(u64, Range<u64>),
    /// These a space holds alike with another one.
    Alike(Vec<(ObjectId, ObjectId, Range<u64>)>),
}

/// The one that came back last is used first: it is in the cache.
type Buffers = Arc<Mutex<Vec<Vec<u8>>>>;

type Work = std::result::Result<ImageWriter, ImageError>;

/// An image that is written by a thread of its own.
#[derive(Debug)]
pub(crate) struct Outlet {
    queue: Option<SyncSender<Load>>,
    thread: Option<JoinHandle<Work>>,
    /// Buffers that came back: a fresh one costs as much as what it is for.
    empty: Buffers,
    /// Until when a full queue is waited for; `None`: as long as it takes.
    by: Option<Deadline>,
    /// The thread takes nothing more: in the stop it would only take the processor away from what the program waits for.
    held: Arc<AtomicBool>,
    /// Who is told of what is sent, while the program runs.
    meter: Option<Meter>,
    /// Bytes of pages that were sent.
    sent: u64,
}

impl Outlet {
    /// Begins the thread.
    pub(crate) fn begin(writer: ImageWriter, compression: CompressionRequest) -> Result<Self> {
        let (queue, loads) = sync_channel(QUEUE);
        let empty = Buffers::default();
        let back = Arc::clone(&empty);
        let held = Arc::new(AtomicBool::new(false));
        let holds = Arc::clone(&held);
        let thread = std::thread::Builder::new().name("writer".to_owned());
        let thread = thread
            .spawn(move || write(writer, Pace::of(compression), (&loads, &back), &holds))
            .map_err(Error::system("starting a thread", "what writes the image"))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), empty, by: None, held, meter: None, sent: 0 })
    }

    /// The stop begins, or ends with `None`: in it a full queue is waited for until then, and nothing is written before the
    /// queue is full.
    pub(crate) fn until(&mut self, by: Option<Deadline>) {
        self.by = by;
        self.hold(by.is_some());
    }

    /// Keeps the thread from its work, or lets it go on.
    fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
        if let (false, Some(thread)) = (held, &self.thread) {
            thread.thread().unpark();
        }
    }

    /// What is sent is told to this meter from now on; with `None` to nobody.
    pub(crate) fn tell(&mut self, meter: Option<Meter>) {
        self.meter = meter;
    }

    /// What is sent from now on belongs to the next round.
    pub(crate) fn next_round(&self) {
        if let Some(meter) = &self.meter {
            meter.next_round();
        }
    }

    /// A buffer of this length; what is in it means nothing.
    pub(crate) fn buffer(&mut self, len: usize) -> Vec<u8> {
        let empty = self.empty.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = empty.unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// Sends pages: ranges of an object, and their bytes one after another.
    pub(crate) fn pages(&mut self, space: u64, ranges: Vec<Range<u64>>, bytes: Vec<u8>) -> Result<()> {
        if let Some(meter) = &self.meter {
            meter.add(bytes.len());
        }
        self.sent = self.sent.saturating_add(bytes.len() as u64);
        self.send(Load::Pages(space, ranges, bytes))
    }

    /// Sends pages in a row.
    pub(crate) fn piece(&mut self, space: u64, at: u64, bytes: Vec<u8>) -> Result<()> {
        let end = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        self.pages(space, std::iter::once(at..end).collect(), bytes)
    }

    /// Bytes of pages that were sent so far, those that came again counted again.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Takes pages out again that were sent before.
    pub(crate) fn forget(&mut self, space: u64, range: Range<u64>) -> Result<()> {
        self.send(Load::Forget(space, range))
    }

    /// Says what spaces hold alike with others.
    pub(crate) fn alike(&mut self, alike: Vec<(ObjectId, ObjectId, Range<u64>)>) -> Result<()> {
        self.send(Load::Alike(alike))
    }

    fn send(&mut self, load: Load) -> Result<()> {
        let mut load = load;
        while let Some(queue) = &self.queue {
            match queue.try_send(load) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back)) => {
                    load = back;
                    self.hold(false);
                }
                Err(TrySendError::Disconnected(_)) => return Err(self.why_it_ended()),
            }
            if self.by.is_some_and(|by| Instant::now() >= by.0) {
                let source = std::io::ErrorKind::TimedOut.into();
                let subject = "the store, which did not take the contents of the stopped program in time".to_owned();
                return Err(Error::System { operation: "writing", subject, source });
            }
            std::thread::sleep(STEP);
        }
        Err(Error::Unsound("an image is written that has ended".to_owned()))
    }

    /// The thread has ended, which it does by itself only when writing fails.
    fn why_it_ended(&mut self) -> Error {
        self.queue = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => error.into(),
            _ => Error::Unsound("the thread that writes the image died".to_owned()),
        }
    }

    /// Waits until all is written; the image goes on from there.
    pub(crate) fn end(mut self) -> Result<ImageWriter> {
        self.until(None);
        self.queue = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(work)) => Ok(work?),
            _ => Err(Error::Unsound("the thread that writes the image died".to_owned())),
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.until(None);
        self.queue = None;
        let Some(thread) = self.thread.take() else { return };
        let by = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < by {
            std::thread::sleep(STEP);
        }
        if thread.is_finished() && thread.join().is_err() {
            tracing::warn!("the thread that writes the image died");
        }
    }
}

fn write(
    mut writer: ImageWriter,
    mut pace: Pace,
    (loads, back): (&Receiver<Load>, &Buffers),
    held: &AtomicBool,
) -> Work {
    for load in loads {
        while held.load(Ordering::Acquire) {
            std::thread::park();
        }
        match load {
            Load::Forget(space, range) => writer.forget(space, range)?,
            Load::Alike(alike) => {
                for (space, from, range) in alike {
                    writer.alike(space.0, from.0, range)?;
                }
            }
            Load::Pages(space, ranges, bytes) => {
                writer.compress_by(pace.next())?;
                let began = Instant::now();
                let mut rest = bytes.as_slice();
                for range in ranges {
                    let (piece, after) = rest.split_at(length(&range).min(rest.len()));
                    writer.pages(space, range.start, piece)?;
                    rest = after;
                }
                pace.went(began.elapsed(), bytes.len());
                let mut back = back.lock().unwrap_or_else(PoisonError::into_inner);
                if back.len() < QUEUE {
                    back.push(bytes);
                }
            }
        }
    }
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use hdcr_image::{ImageId, Options, PartName, Sink, SnapshotId, StoreError, WritePart};

    use super::*;

    /// A store that waits at every write until it is let go on.
    #[derive(Debug)]
    struct Hanging(SnapshotId, Arc<Mutex<()>>);

    impl Sink for Hanging {
        fn snapshot(&self) -> &SnapshotId {
            &self.0
        }
        fn part(&mut self, _: PartName) -> std::result::Result<Box<dyn WritePart>, StoreError> {
            Ok(Box::new(HangingPart(Arc::clone(&self.1))))
        }
        fn persist(&mut self, _: &[u8]) -> std::result::Result<(), StoreError> {
            Ok(())
        }
        fn commit(self: Box<Self>) -> std::result::Result<(), StoreError> {
            Ok(())
        }
        fn abort(self: Box<Self>) -> std::result::Result<(), StoreError> {
            Ok(())
        }
    }

    #[derive(Debug)]
    struct HangingPart(Arc<Mutex<()>>);

    impl WritePart for HangingPart {
        fn write(&mut self, _: &[u8]) -> std::result::Result<(), StoreError> {
            drop(self.0.lock());
            Ok(())
        }
        fn close(self: Box<Self>) -> std::result::Result<(), StoreError> {
            Ok(())
        }
    }

    fn outlet(gate: &Arc<Mutex<()>>) -> Outlet {
        let sink = Hanging(SnapshotId { image: ImageId([1; 16]), place: None }, Arc::clone(gate));
        Outlet::begin(ImageWriter::new(Box::new(sink), Options::default()).unwrap(), CompressionRequest::Auto).unwrap()
    }

    fn noise(outlet: &mut Outlet, at: u64) -> Result<()> {
        let mut bytes = outlet.buffer(1 << 20);
        let mut seed = at | 1;
        for byte in &mut bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = seed.to_be_bytes()[0];
        }
        outlet.piece(1, at << 20, bytes)
    }

    #[test]
    fn buffers_that_come_back_are_not_hoarded() {
        let gate = Arc::new(Mutex::new(()));
        let mut outlet = outlet(&gate);
        for at in 0..200 {
            outlet.piece(1, at << 20, vec![0; 1 << 12]).unwrap();
        }
        outlet.queue = None;
        let thread = outlet.thread.take().unwrap();
        assert!(thread.join().unwrap().is_ok());
        assert!(outlet.empty.lock().unwrap().len() <= QUEUE);
    }

    #[test]
    fn a_store_that_hangs_is_waited_for_until_the_deadline() {
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        let mut outlet = outlet(&gate);
        outlet.until(Some(Deadline(Instant::now() + Duration::from_millis(50))));
        let sent = (0..200).find_map(|at| noise(&mut outlet, at).err());
        assert!(matches!(sent, Some(Error::System { operation: "writing", .. })), "{sent:?}");
        drop(held);
        assert!(outlet.end().is_ok());
    }
}
