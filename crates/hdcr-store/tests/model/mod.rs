//! Plain memory beside a chain of images.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use hdcr_image::{Chain, GroupBuffers, ImageReader, ImageWriter, JobName, Options, PAGE_SIZE, sample};
use hdcr_store::{DirectoryStore, Selector, open_path};

/// Space and number of a page, and its bytes.
pub(crate) type Memory = BTreeMap<(u64, u64), Vec<u8>>;

/// Something that happens to memory.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Pages are written.
    Pages { space: u64, first: u64, count: u64, kind: u8 },
    /// Pages go.
    Forget { space: u64, first: u64, count: u64 },
    /// Pages are what another space has there.
    Alike { space: u64, from: u64, first: u64, count: u64 },
    /// A space gets all that one had which is not kept.
    Bring { space: u64, from: u64 },
}

/// How an image ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// It is committed, and the next one goes on from what the commit gave.
    Commit,
    /// It is committed, and the next one goes on from what is read back.
    Reopen,
    /// Its writer is dropped.
    GiveUp,
    /// It is dropped when it is durable.
    GiveUpLate,
}

/// One image.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) steps: Vec<Step>,
    /// Which spaces are kept, by bits.
    pub(crate) keep: u8,
    pub(crate) end: End,
    /// Which image is removed after it.
    pub(crate) remove: Option<u8>,
    /// Which image it goes on from, if not the last one.
    pub(crate) onto: Option<u8>,
}

pub(crate) struct World {
    store: DirectoryStore,
    chain: Option<Chain>,
    /// Memory at the image that the chain leads from.
    memory: Memory,
    /// What of that is not kept.
    aside: Memory,
    seed: u64,
    images: BTreeMap<u64, Memory>,
}

fn job() -> JobName {
    JobName::new("sim").unwrap()
}

/// The images of a store are whole.
pub(crate) fn check(store: &DirectoryStore) {
    for entry in store.list().unwrap() {
        contents(&entry.path);
    }
}

/// All pages of an image, by single runs and by groups, after its verification.
pub(crate) fn contents(path: &Path) -> Memory {
    let reader = ImageReader::open(open_path(path).unwrap().as_ref()).unwrap();
    reader.verify(&mut |_| ()).unwrap();
    let mut all = Memory::new();
    let mut buffers = GroupBuffers::default();
    for space in reader.spaces() {
        let mut bytes = Vec::new();
        let mut single: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for run in reader.runs(space) {
            reader.read_run(run, &mut bytes).unwrap();
            if run.is_zero() {
                bytes.resize(usize::try_from(run.size()).unwrap(), 0);
            } else {
                single.insert(run.address(), bytes.clone());
            }
            assert_eq!(bytes.len() as u64, run.size());
            for (page, content) in (run.address() / PAGE_SIZE..).zip(bytes.chunks(4096)) {
                assert!(all.insert((space, page), content.to_vec()).is_none());
            }
        }
        for group in reader.groups(space) {
            for (address, bytes) in reader.read_group(space, group, &mut buffers).unwrap() {
                assert_eq!(single.remove(&address).as_deref(), Some(bytes));
            }
        }
        assert!(single.is_empty());
    }
    all
}

impl World {
    pub(crate) fn new(store: DirectoryStore) -> Self {
        Self { store, chain: None, memory: Memory::new(), aside: Memory::new(), seed: 1, images: BTreeMap::new() }
    }

    fn open(&self, sequence: u64) -> Chain {
        let path = self.store.find(&Selector::Snapshot(job(), sequence)).unwrap();
        Chain::open(open_path(&path).unwrap().as_ref()).unwrap()
    }

    pub(crate) fn play(&mut self, round: &Round) {
        let keep: Vec<u64> = (0..3).filter(|space| round.keep >> space & 1 == 1).collect();
        let other =
            round.onto.and_then(|which| self.images.keys().nth(usize::from(which) % self.images.len().max(1)).copied());
        if let Some(other) = other {
            self.chain = Some(self.open(other));
            self.memory = self.images[&other].clone();
        }
        let sink = Box::new(self.store.begin(&job()).unwrap());
        let mut memory = self.memory.clone();
        let mut writer = match self.chain.take() {
            None => {
                memory.clear();
                ImageWriter::first(sink, Options::default()).unwrap()
            }
            Some(chain) => {
                let aside: Vec<u64> = (0..3).filter(|space| !keep.contains(space)).collect();
                ImageWriter::onto_with(sink, Options::default(), chain, (&keep, &aside)).unwrap()
            }
        };
        // So that some are closed and some are written anew.
        writer = writer.with_segments_of(16 << 10).with_shadow_of(48 * 4096);
        self.aside = memory.extract_if(.., |(space, _), _| !keep.contains(space)).collect();
        for step in &round.steps {
            self.step(step, &mut writer, &mut memory);
        }
        for step in &round.steps {
            if let Step::Alike { space, from, first, count } = step {
                copy(&mut memory, *space, *from, &(*first..first + count));
            }
        }
        self.end(round, writer, memory);
        if let Some(remove) = round.remove {
            self.remove(remove);
        }
    }

    fn end(&mut self, round: &Round, writer: ImageWriter, memory: Memory) {
        match round.end {
            End::Commit | End::Reopen => {
                let committed = writer.finish(sample::facts()).unwrap();
                let sequence = committed.id.place.unwrap().1;
                self.chain = if round.end == End::Commit { committed.chain } else { Some(self.open(sequence)) };
                self.images.insert(sequence, memory.clone());
                self.memory = memory;
                return;
            }
            End::GiveUp => drop(writer),
            End::GiveUpLate => drop(writer.persist(sample::facts()).unwrap()),
        }
        if let Some((sequence, memory)) = self.images.last_key_value() {
            self.chain = Some(self.open(*sequence));
            self.memory = memory.clone();
        }
    }

    fn step(&mut self, step: &Step, writer: &mut ImageWriter, memory: &mut Memory) {
        match step {
            Step::Pages { space, first, count, kind } => {
                let mut bytes = Vec::new();
                for page in *first..first + count {
                    let before = memory.get(&(*space, page)).cloned();
                    let content = self.content(*kind, before);
                    bytes.extend_from_slice(&content);
                    memory.insert((*space, page), content);
                }
                writer.pages(*space, first * PAGE_SIZE, &bytes).unwrap();
            }
            Step::Forget { space, first, count } => {
                writer.forget(*space, first * PAGE_SIZE..(first + count) * PAGE_SIZE).unwrap();
                memory.retain(|(at, page), _| at != space || !(*first..first + count).contains(page));
            }
            Step::Bring { space, from } => {
                let all = self.aside.iter().filter(|((of, _), _)| of == from);
                let all: Memory = all.map(|((_, page), bytes)| ((*space, *page), bytes.clone())).collect();
                assert_eq!(writer.bring(*space, *from).unwrap(), !all.is_empty());
                memory.extend(all);
            }
            Step::Alike { space, from, first, count } => {
                writer.alike(*space, *from, first * PAGE_SIZE..(first + count) * PAGE_SIZE).unwrap();
            }
        }
    }

    /// Zeroes, one byte, noise; or what was there with few or many changes, or none.
    fn content(&mut self, kind: u8, before: Option<Vec<u8>>) -> Vec<u8> {
        let noise = |seed: &mut u64| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed.to_be_bytes()[0]
        };
        let seed = &mut self.seed;
        match (kind, before) {
            (0, _) => vec![0; 4096],
            (1, _) => vec![noise(seed); 4096],
            (2 | 3, _) | (_, None) => (0..4096).map(|_| noise(seed)).collect(),
            (4, Some(before)) => before,
            (kind, Some(mut before)) => {
                for _ in 0..if kind == 7 { 60 } else { 3 } {
                    let at = usize::from(noise(seed)) * 16;
                    before[at] ^= noise(seed) | 1;
                }
                before
            }
        }
    }

    fn remove(&mut self, which: u8) {
        if self.images.len() < 2 {
            return;
        }
        let sequence = *self.images.keys().nth(usize::from(which) % self.images.len()).unwrap();
        let newest = *self.images.last_key_value().unwrap().0;
        if sequence != newest {
            if which.is_multiple_of(4) {
                self.store.remove(&job(), sequence).unwrap();
            } else {
                self.store.retire(&job(), sequence).unwrap();
            }
            self.images.remove(&sequence);
        }
    }

    pub(crate) fn check_all(&self) {
        let listed: Vec<u64> = self.store.list().unwrap().into_iter().map(|entry| entry.sequence).collect();
        assert_eq!(listed, self.images.keys().copied().collect::<Vec<_>>());
        for (sequence, memory) in &self.images {
            let path = self.store.find(&Selector::Snapshot(job(), *sequence)).unwrap();
            assert!(contents(&path) == *memory, "image {sequence}");
        }
    }
}

fn copy(memory: &mut Memory, space: u64, from: u64, range: &Range<u64>) {
    for page in range.clone() {
        match memory.get(&(from, page)).cloned() {
            Some(content) => memory.insert((space, page), content),
            None => memory.remove(&(space, page)),
        };
    }
}
