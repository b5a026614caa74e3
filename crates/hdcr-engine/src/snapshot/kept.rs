//! Contents that are kept in memory until the tree goes on: buffers that were touched before the stop.
//!
//! A fresh page costs more than copying into it, so what the stop will need is made ready while the program runs.

use std::ops::Range;

use crate::error::Result;
use crate::model::ObjectId;

/// A buffer has at most so many bytes.
const SLAB: usize = 4 << 20;
/// What is made ready beforehand is at most so much: touching it takes time as well.
const READY: usize = 64 << 20;
/// Contents that are kept in all; what is more goes to the sink under the freeze.
const LIMIT: usize = 128 << 20;

/// Where the bytes of a piece are.
#[derive(Debug)]
enum Place {
    Slab(usize, Range<usize>),
    Own(Vec<u8>),
}

/// Kept pieces of objects, in order: later ones replace earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    slabs: Vec<Vec<u8>>,
    /// The slab that is being filled, and how far it is.
    filling: (usize, usize),
    pieces: Vec<(ObjectId, u64, Place)>,
    used: usize,
}

impl Kept {
    /// Makes room for so many bytes and touches it.
    pub(crate) fn make_ready(&mut self, bytes: usize) {
        let there: usize = self.slabs.iter().map(Vec::len).sum();
        let mut left = bytes.min(READY).saturating_sub(there);
        while left > 0 {
            let len = left.min(SLAB).next_multiple_of(PAGE);
            let mut slab = vec![0; len];
            for byte in slab.iter_mut().step_by(PAGE) {
                *byte = 1;
            }
            self.slabs.push(slab);
            left = left.saturating_sub(len);
        }
    }

    /// Lets go of what is kept, but for the buffers that were made ready.
    pub(crate) fn clear(&mut self) {
        let mut room = READY;
        self.slabs.retain(|slab| {
            room = room.saturating_sub(slab.len());
            room > 0
        });
        self.pieces.clear();
        (self.filling, self.used) = ((0, 0), 0);
    }

    /// Whether so many more bytes may be kept.
    pub(crate) fn takes(&self, more: usize) -> bool {
        self.used.saturating_add(more) <= LIMIT
    }

    /// Keeps bytes that lie in memory already.
    pub(crate) fn keep(&mut self, id: ObjectId, at: u64, bytes: Vec<u8>) {
        self.used = self.used.saturating_add(bytes.len());
        self.pieces.push((id, at, Place::Own(bytes)));
    }

    /// Keeps what `read` puts into a buffer: the bytes of these ranges of an object one after another. `read` tells how
    /// many it got; what is behind that is not kept, and comes back.
    pub(crate) fn fill(
        &mut self,
        id: ObjectId,
        ranges: &[Range<u64>],
        read: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<Vec<Range<u64>>> {
        let len = ranges.iter().map(length).sum();
        let (slab, start) = self.room(len);
        let Some(place) = self.slabs.get_mut(slab).and_then(|slab| slab.get_mut(start..start + len)) else {
            return Ok(ranges.to_vec());
        };
        let got = read(place)?;
        self.used = self.used.saturating_add(len);
        let mut done = start;
        let mut lost = Vec::new();
        for range in ranges {
            let end = done.saturating_add(length(range));
            if end <= start.saturating_add(got) {
                self.pieces.push((id, range.start, Place::Slab(slab, done..end)));
            } else {
                lost.push(range.clone());
            }
            done = end;
        }
        Ok(lost)
    }

    /// A slab with this much room, and where in it.
    fn room(&mut self, len: usize) -> (usize, usize) {
        loop {
            let (slab, start) = self.filling;
            match self.slabs.get(slab) {
                Some(there) if there.len() >= start.saturating_add(len) => {
                    self.filling.1 = start.saturating_add(len);
                    return (slab, start);
                }
                Some(_) => self.filling = (slab.saturating_add(1), 0),
                None => self.slabs.push(vec![0; len.max(SLAB)]),
            }
        }
    }

    /// The pieces: object, byte offset or address, bytes.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (ObjectId, u64, &[u8])> {
        self.pieces.iter().map(|(id, at, place)| {
            let bytes = match place {
                Place::Own(bytes) => bytes.as_slice(),
                Place::Slab(slab, range) => {
                    self.slabs.get(*slab).and_then(|s| s.get(range.clone())).unwrap_or_default()
                }
            };
            (*id, *at, bytes)
        })
    }
}

const PAGE: usize = 4096;

/// Bytes of a range.
pub(crate) fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_in_order_and_what_was_not_read_is_told() {
        let mut kept = Kept::default();
        kept.make_ready(10_000);
        kept.keep(ObjectId(1), 0, vec![7; 3]);
        let ranges = [0..4096, 8192..16384];
        let lost = kept.fill(ObjectId(2), &ranges, |into| {
            into.fill(9);
            Ok(into.len())
        });
        assert_eq!(lost.unwrap(), []);
        let lost = kept.fill(ObjectId(2), &ranges, |_| Ok(4096 + 17));
        assert_eq!(lost.unwrap().as_slice(), std::slice::from_ref(&(8192..16384)));
        let all: Vec<_> = kept.pieces().map(|(id, at, bytes)| (id.0, at, bytes.len(), bytes[0])).collect();
        assert_eq!(all[..3], [(1, 0, 3, 7), (2, 0, 4096, 9), (2, 8192, 8192, 9)]);
        assert_eq!((all[3].0, all[3].1, all[3].2, all.len()), (2, 0, 4096, 4));
    }
}
