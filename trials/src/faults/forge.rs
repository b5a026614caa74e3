//! Images with wrong contents and right checksums, made from a whole one after `docs/format.md`.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use xxhash_rust::xxh3::xxh3_64;

use crate::faults::dice::Dice;

const HEADER: usize = 64;
const TRAILER: usize = 56;
const ENTRY: usize = 24;
const FRAME_HEAD: usize = 24;
const MANIFEST_HEAD: usize = 104;
const MANIFEST: u32 = 1;
const FRAMES: u32 = 2;
/// The tag of a frame of the page index.
const INDEX: u16 = 1;

/// A bundle taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    bytes: Vec<u8>,
    manifest: Range<usize>,
    /// Pieces of the part with the records, in order.
    frames: Vec<Range<usize>>,
}

/// A frame within the part.
#[derive(Debug, Clone)]
struct Frame {
    tag: u16,
    id: [u8; 8],
    body: Range<usize>,
}

impl Bundle {
    pub(crate) fn read(bytes: Vec<u8>) -> Result<Self> {
        let trailer = bytes.len().checked_sub(TRAILER).context("too short for a trailer")?;
        let at = usize::try_from(number(&bytes, trailer)?)?;
        let length = usize::try_from(number(&bytes, trailer + 8)?)?;
        let directory = bytes.get(at..at + length).context("no directory")?;
        let mut manifest = None;
        let mut frames = Vec::new();
        for entry in directory.chunks(ENTRY) {
            let kind = u32::try_from(number(entry, 0)? & 0xffff_ffff)?;
            let from = usize::try_from(number(entry, 8)?)?;
            let piece = from..from + usize::try_from(number(entry, 16)?)?;
            match kind {
                MANIFEST => {
                    ensure!(manifest.is_none(), "a manifest in two pieces");
                    manifest = Some(piece);
                }
                FRAMES => frames.push(piece),
                _ => {}
            }
        }
        Ok(Bundle { manifest: manifest.context("no manifest")?, frames, bytes })
    }

    /// Offsets in the file at which each part has a piece.
    pub(crate) fn pieces(&self) -> Vec<Range<usize>> {
        self.frames.iter().cloned().chain([self.manifest.clone()]).collect()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A copy with some bytes of one record changed, and every checksum right.
    pub(crate) fn forged(&self, dice: &mut Dice) -> Result<(Vec<u8>, String)> {
        let all = frames(&self.part()?)?;
        let bodies: Vec<&Frame> = all.iter().filter(|frame| !frame.body.is_empty()).collect();
        let place = usize::try_from(dice.below(bodies.len() as u64))?;
        let frame = bodies.get(place).context("no frame")?;
        let mut what = String::new();
        let bytes = self.with(frame, |body| {
            what = change(body, dice)?;
            Ok(())
        })?;
        Ok((bytes, format!("record of kind {}: {what}", frame.tag)))
    }

    /// A copy in which the first record of a kind is changed, and every checksum right.
    pub(crate) fn altered(&self, tag: u16, change: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Vec<u8>> {
        let all = frames(&self.part()?)?;
        self.with(all.iter().find(|frame| frame.tag == tag).context("no such record")?, change)
    }

    /// The part with the records, in one piece.
    fn part(&self) -> Result<Vec<u8>> {
        let mut part: Vec<u8> = Vec::new();
        for piece in &self.frames {
            part.extend(self.bytes.get(piece.clone()).context("a piece outside of the file")?);
        }
        Ok(part)
    }

    fn with(&self, frame: &Frame, change: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Vec<u8>> {
        let mut part = self.part()?;
        let old = blake3::hash(&part);
        let frames = frames(&part)?;
        let old_index = index_digest(&part, &frames)?;
        change(part.get_mut(frame.body.clone()).context("a body outside of the part")?)?;
        let head = frame.body.start - FRAME_HEAD;
        let mut sealed = part.get(head..head + 16).context("no head")?.to_vec();
        sealed.extend(part.get(frame.body.clone()).context("no body")?);
        put(&mut part, head + 16, &xxh3_64(&sealed).to_le_bytes())?;
        let new_index = index_digest(&part, &frames)?;
        let mut bytes = self.bytes.clone();
        let mut from = 0;
        for piece in &self.frames {
            put(&mut bytes, piece.start, part.get(from..from + piece.len()).context("a piece")?)?;
            from += piece.len();
        }
        let body = self.manifest.start + MANIFEST_HEAD..self.manifest.end;
        replace(bytes.get_mut(body.clone()).context("no manifest")?, old.as_bytes(), blake3::hash(&part).as_bytes())?;
        replace(bytes.get_mut(body.clone()).context("no manifest")?, &old_index, &new_index)?;
        let mut sealed = bytes.get(self.manifest.start..self.manifest.start + 72).context("no head")?.to_vec();
        sealed.extend(bytes.get(body).context("no manifest")?);
        put(&mut bytes, self.manifest.start + 72, blake3::hash(&sealed).as_bytes())?;
        Ok(bytes)
    }

    /// A copy whose manifest says another version of the format, with a right digest.
    pub(crate) fn of_version(&self, version: u32) -> Result<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        put(&mut bytes, 8, &version.to_le_bytes())?;
        for piece in self.pieces() {
            put(&mut bytes, piece.start + 8, &version.to_le_bytes())?;
        }
        let mut sealed = bytes.get(self.manifest.start..self.manifest.start + 72).context("no head")?.to_vec();
        sealed.extend(bytes.get(self.manifest.start + MANIFEST_HEAD..self.manifest.end).context("no body")?);
        put(&mut bytes, self.manifest.start + 72, blake3::hash(&sealed).as_bytes())?;
        seal_directory(&mut bytes)?;
        Ok(bytes)
    }
}

/// The directory's digest covers the header of the file.
fn seal_directory(bytes: &mut [u8]) -> Result<()> {
    let trailer = bytes.len() - TRAILER;
    let at = usize::try_from(number(bytes, trailer)?)?;
    let mut sealed = bytes.get(..HEADER).context("no header")?.to_vec();
    sealed.extend(bytes.get(trailer..trailer + 16).context("no trailer")?);
    sealed.extend(bytes.get(at..trailer).context("no directory")?);
    put(bytes, trailer + 16, blake3::hash(&sealed).as_bytes())
}

/// Changes that are cruel to a reader: all ones, zeros, one bit, one random byte, a number that is one off.
fn change(body: &mut [u8], dice: &mut Dice) -> Result<String> {
    let at = usize::try_from(dice.below(body.len() as u64))?;
    let kind = dice.below(6);
    let width = usize::try_from(1 + dice.below(8))?;
    let end = (at + width).min(body.len());
    let bytes = body.get_mut(at..end).context("outside of the body")?;
    match kind {
        0 => bytes.fill(0xff),
        1 => bytes.fill(0),
        2 => bytes[0] ^= 1 << dice.below(8),
        3 => bytes.iter_mut().for_each(|byte| *byte = dice.next().to_le_bytes()[0]),
        4 => bytes[0] = bytes[0].wrapping_add(1),
        _ => bytes.reverse(),
    }
    Ok(format!("change {kind} of {} bytes at {at}", end - at))
}

fn frames(part: &[u8]) -> Result<Vec<Frame>> {
    let mut all = Vec::new();
    let mut at = HEADER;
    while at < part.len() {
        let head = part.get(at..at + FRAME_HEAD).context("a cut frame")?;
        let first = number(head, 0)?;
        let length = usize::try_from(first >> 32)?;
        let body = at + FRAME_HEAD..at + FRAME_HEAD + length;
        at = body.end;
        all.push(Frame { tag: u16::try_from(first & 0xffff)?, id: number(head, 8)?.to_le_bytes(), body });
    }
    Ok(all)
}

fn index_digest(part: &[u8], frames: &[Frame]) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    for frame in frames.iter().filter(|frame| frame.tag == INDEX) {
        hasher.update(&frame.id);
        hasher.update(part.get(frame.body.clone()).context("no body")?);
    }
    Ok(*hasher.finalize().as_bytes())
}

fn number(bytes: &[u8], at: usize) -> Result<u64> {
    let bytes = bytes.get(at..at + 8).context("a number outside of the bytes")?;
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) -> Result<()> {
    bytes.get_mut(at..at + new.len()).context("outside of the bytes")?.copy_from_slice(new);
    Ok(())
}

fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) -> Result<()> {
    let at = bytes.windows(old.len()).position(|window| window == old).context("a digest is not in the manifest")?;
    put(bytes, at, new)
}
