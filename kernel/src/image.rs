//! Reading an image that the module wrote: untrusted, so each frame is checked before anything is made of it.
// SPDX-License-Identifier: GPL-2.0-only

use hdcr_layout::{ALONE_VERSION, FrameHeader, Header, Layout, PartKind};

use crate::answer::{Errno, Result};
use crate::frames::check_sum;
use crate::glue::File;
use crate::table::Table;

/// The most bytes of frames.
const FRAMES: u64 = 256 << 20;

/// Where a frame lies.
#[derive(Clone, Copy)]
struct Place {
    tag: u16,
    id: u64,
    start: usize,
    length: usize,
}

/// The frames of an image, and its file for the pages.
pub(crate) struct Image {
    bytes: Table<u8>,
    places: Table<Place>,
    pub(crate) file: File,
}

/// Whatever is wrong with an image.
fn odd<E>(_: E) -> Errno {
    Errno::INVAL
}

impl Image {
    /// Reads and checks all frames.
    pub(crate) fn read(file: File) -> Result<Self> {
        let mut head = [0; Header::SIZE];
        file.read(&mut head, 0)?;
        let (header, _) = Header::decode(&head).map_err(odd)?;
        let length = file.size().checked_sub(header.generation).ok_or(Errno::INVAL)?;
        let is_ours = header.kind == PartKind::Alone && header.version == ALONE_VERSION && header.number == 0;
        if !is_ours || length > FRAMES {
            return Err(Errno::INVAL);
        }
        let mut bytes = Table::<u8>::filled(usize::try_from(length).map_err(odd)?)?;
        file.read(&mut bytes, header.generation)?;
        let mut places = Table::new();
        let mut start = 0;
        while start < bytes.len() {
            let rest = bytes.get(start..).unwrap_or_default();
            let place = checked(rest, start)?;
            start = place.start + place.length;
            places.push(place)?;
        }
        Ok(Self { bytes, places, file })
    }

    fn body(&self, place: &Place) -> &[u8] {
        self.bytes.get(place.start..place.start + place.length).unwrap_or_default()
    }

    /// The frame of a kind about an object.
    pub(crate) fn frame(&self, tag: u16, id: u64) -> Result<&[u8]> {
        let place = self.places.iter().find(|place| (place.tag, place.id) == (tag, id));
        place.map(|place| self.body(place)).ok_or(Errno::INVAL)
    }

    /// All frames of a kind.
    pub(crate) fn frames(&self, tag: u16) -> impl Iterator<Item = &[u8]> {
        self.places.iter().filter(move |place| place.tag == tag).map(|place| self.body(place))
    }

    /// The one record in a frame.
    pub(crate) fn record<T: Layout>(&self, id: u64) -> Result<T> {
        let body = self.frame(T::TAG, id)?;
        let (record, used) = T::decode(body).map_err(odd)?;
        if used == body.len() { Ok(record) } else { Err(Errno::INVAL) }
    }

    /// The records of a frame, one after another.
    pub(crate) fn records<T: Layout>(&self, id: u64) -> Result<impl Iterator<Item = Result<T>>> {
        let body = self.frame(T::TAG, id)?;
        if body.len() % T::SIZE != 0 {
            return Err(Errno::INVAL);
        }
        Ok(body.chunks(T::SIZE).map(|bytes| T::decode(bytes).map(|(record, _)| record).map_err(odd)))
    }
}

/// The first frame of what is left.
fn checked(rest: &[u8], at: usize) -> Result<Place> {
    let (header, used) = FrameHeader::decode(rest).map_err(odd)?;
    let length = header.length as usize;
    let body = rest.get(used..used.checked_add(length).ok_or(Errno::INVAL)?).ok_or(Errno::INVAL)?;
    let head = rest.first_chunk::<{ FrameHeader::SIZE }>().ok_or(Errno::INVAL)?;
    if header.version != 1 || check_sum(head, body) != header.xxh3 {
        return Err(Errno::INVAL);
    }
    Ok(Place { tag: header.tag, id: header.id, start: at + used, length })
}
