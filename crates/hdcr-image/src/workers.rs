//! Compression by several threads. What they give back is appended in the order in which it was handed out, so that the
//! bytes of an image are the same however many there are.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use hdcr_layout::Codec;
use xxhash_rust::xxh3::xxh3_64;

use crate::compress::{Compression, Compressor};
use crate::error::ImageError;

/// Compressed pages.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The pages themselves; they are what is stored when the codec is plain.
    pub(crate) bytes: Vec<u8>,
    pub(crate) codec: Codec,
    stored: Vec<u8>,
    pub(crate) xxh3: u64,
}

impl Packed {
    /// What is to be stored.
    pub(crate) fn stored(&self) -> &[u8] {
        if self.codec == Codec::Plain { &self.bytes } else { &self.stored }
    }
}

/// What a thread will give back.
pub(crate) type Ticket = Receiver<Result<Packed, ImageError>>;

struct Job {
    bytes: Vec<u8>,
    reply: SyncSender<Result<Packed, ImageError>>,
}

/// Threads that compress. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    jobs: SyncSender<Job>,
    /// Buffers that came back.
    buffers: Vec<Vec<u8>>,
    /// Jobs that may be under way.
    pub(crate) depth: usize,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts so many threads; `None` when not even one can be had.
    pub(crate) fn start(compression: Compression, threads: usize) -> Option<Self> {
        let depth = threads.saturating_mul(4);
        let (jobs, received) = sync_channel::<Job>(depth);
        let received = Arc::new(Mutex::new(received));
        let start = |_| {
            let received = Arc::clone(&received);
            let work = move || work(compression, &received);
            thread::Builder::new().name("hdcr-pack".to_owned()).spawn(work).is_ok()
        };
        let started = (0..threads).map(start).filter(|started| *started).count();
        (started > 0).then(|| Self { jobs, buffers: Vec::new(), depth })
    }

    /// Hands pages out.
    pub(crate) fn hand_out(&mut self, bytes: &[u8]) -> Result<Ticket, ImageError> {
        let mut own = self.buffers.pop().unwrap_or_default();
        own.clear();
        own.extend_from_slice(bytes);
        let (reply, ticket) = sync_channel(1);
        self.jobs.send(Job { bytes: own, reply }).map_err(|_| gone())?;
        Ok(ticket)
    }

    /// Takes a buffer back.
    pub(crate) fn take_back(&mut self, bytes: Vec<u8>) {
        if self.buffers.len() < self.depth {
            self.buffers.push(bytes);
        }
    }
}

/// A thread that compresses has ended before its time.
pub(crate) fn gone() -> ImageError {
    ImageError::Compress(std::io::Error::other("a thread that compresses has ended"))
}

fn work(compression: Compression, jobs: &Mutex<Receiver<Job>>) {
    let mut compressor = Compressor::new(compression);
    loop {
        let Ok(Job { bytes, reply }) = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv() else { return };
        let packed = match &mut compressor {
            Ok(compressor) => pack(compressor, bytes),
            Err(_) => Err(gone()),
        };
        // Whoever asked may have given up.
        reply.send(packed).ok();
    }
}

fn pack(compressor: &mut Compressor, bytes: Vec<u8>) -> Result<Packed, ImageError> {
    let packed = compressor.compress(&bytes)?.map(|(codec, stored)| (codec, stored.to_vec()));
    let (codec, stored) = packed.unwrap_or((Codec::Plain, Vec::new()));
    let xxh3 = xxh3_64(if codec == Codec::Plain { &bytes } else { &stored });
    Ok(Packed { bytes, codec, stored, xxh3 })
}
