//! Copies of the pages that the last increments stored whole, so that of a page that comes again only changed lines need
//! be stored. Bounded: what was not written for longest goes first.

use std::collections::{BTreeMap, HashMap};

use hdcr_layout::PageRunEntry;

use crate::delta;
use crate::number::size;
use crate::pack::PAGE;

type Key = (u64, u64);

/// A page as it was stored.
struct Copy {
    bytes: Vec<u8>,
    /// Where: a run of one page, at no address.
    run: PageRunEntry,
    stamp: u64,
}

/// All copies.
pub(crate) struct Shadow {
    copies: HashMap<Key, Copy>,
    /// Least recently written first.
    order: BTreeMap<u64, Key>,
    stamp: u64,
    limit: u64,
    /// Copies taken since the image was begun; more than the limit would push out each other.
    taken: u64,
}

impl Default for Shadow {
    fn default() -> Self {
        Self { copies: HashMap::new(), order: BTreeMap::new(), stamp: 0, limit: 64 << 20, taken: 0 }
    }
}

impl std::fmt::Debug for Shadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shadow").field("copies", &self.copies.len()).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Shadow {
    /// Takes as many bytes of copies from now on.
    pub(crate) fn limit(&mut self, bytes: u64) {
        self.limit = bytes;
        while self.bytes(0) > bytes && self.forget_oldest().is_some() {}
    }

    /// Another image is begun.
    pub(crate) fn renew(&mut self) {
        self.taken = 0;
    }

    /// Which lines of a page differ from its copy, and where that is stored; `None` when there is none.
    pub(crate) fn compare(&mut self, key: Key, page: &[u8]) -> Option<(u64, PageRunEntry)> {
        let copy = self.copies.get_mut(&key)?;
        self.order.remove(&copy.stamp);
        self.stamp = self.stamp.saturating_add(1);
        copy.stamp = self.stamp;
        self.order.insert(self.stamp, key);
        Some((delta::changed(&copy.bytes, page), copy.run))
    }

    /// Keeps a copy of a page that was stored whole.
    pub(crate) fn keep(&mut self, key: Key, page: &[u8], run: PageRunEntry) {
        let mut room = self.forget(key);
        if self.taken >= self.limit {
            return;
        }
        while self.bytes(1) > self.limit {
            match self.forget_oldest() {
                Some(bytes) => room = Some(bytes),
                None => return,
            }
        }
        let mut bytes = room.unwrap_or_else(|| Vec::with_capacity(PAGE));
        bytes.clear();
        bytes.extend_from_slice(page);
        self.stamp = self.stamp.saturating_add(1);
        self.taken = self.taken.saturating_add(size(PAGE));
        self.order.insert(self.stamp, key);
        self.copies.insert(key, Copy { bytes, run, stamp: self.stamp });
    }

    /// Keeps only copies that are stored where this holds.
    pub(crate) fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        let order = &mut self.order;
        self.copies.retain(|_, copy| {
            let stays = keep(copy.run.segment);
            if !stays {
                order.remove(&copy.stamp);
            }
            stays
        });
    }

    fn bytes(&self, more: usize) -> u64 {
        size(self.copies.len().saturating_add(more)).saturating_mul(size(PAGE))
    }

    fn forget(&mut self, key: Key) -> Option<Vec<u8>> {
        let copy = self.copies.remove(&key)?;
        self.order.remove(&copy.stamp);
        Some(copy.bytes)
    }

    fn forget_oldest(&mut self) -> Option<Vec<u8>> {
        let (_, key) = self.order.pop_first()?;
        self.copies.remove(&key).map(|copy| copy.bytes)
    }
}

#[cfg(test)]
mod tests {
    use hdcr_layout::Codec;

    use super::*;

    fn run(segment: u32) -> PageRunEntry {
        PageRunEntry {
            address: 0,
            offset: 64,
            generation: 1,
            xxh3: 0,
            pages: 1,
            segment,
            length: 4096,
            codec: Codec::Plain,
            stored: 1,
            skip: 0,
            reserved: 0,
        }
    }

    #[test]
    fn what_was_not_written_for_longest_goes_first() {
        let mut shadow = Shadow::default();
        shadow.limit(3 * 4096);
        for page in 0..3 {
            shadow.keep((1, page), &[1; 4096], run(u32::try_from(page).unwrap()));
        }
        let mut other = [1; 4096];
        (other[0], other[4095]) = (2, 2);
        assert_eq!(shadow.compare((1, 0), &other), Some((1 | 1 << 63, run(0))));
        shadow.keep((1, 3), &other, run(3));
        assert_eq!(shadow.compare((1, 3), &other), None, "it would push out others of this image");
        shadow.renew();
        shadow.keep((1, 3), &other, run(3));
        assert_eq!(shadow.compare((1, 1), &other), None);
        assert_eq!(shadow.compare((1, 3), &other), Some((0, run(3))));
        shadow.retain(|segment| segment != 3);
        assert_eq!((shadow.compare((1, 3), &other), shadow.order.len()), (None, 2));
        shadow.limit(0);
        assert!(shadow.copies.is_empty() && shadow.order.is_empty());
    }
}
