//! Files that the tree only reads, looked at when it runs again: programs, libraries, input.
//!
//! Their digests, and the contents of programs that no package brings back, cost more than all the rest of a small
//! capture and need no stop: nobody is expected to change them. When one changes in between, that shows in its times, and
//! nothing is said of it: a restore then goes by its size and time alone. One that has only grown is taken for one that is
//! appended to, as a log is: what it held in the stop is what it begins with.
//!
//! So are files that the tree only writes at their ends: what they held in the stop is what they begin with.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use hdcr_image::{ContentKey, ImageReader, ImageWriter, Record, Sink, StoreError, Tag};
use rustix::fs::Stat;

use super::contents::{self, InodeRecord, facts};
use super::unchanged::{self, Known};
use super::{data, keep, patient};
use crate::error::{Error, Result};
use crate::mechanism::Deadline;
use crate::model::{self, ObjectId};
use crate::restore::StoredFrame;
use crate::stored;

/// What an image holds of a file that is only read, besides its [`InodeRecord`], under the same id.
#[derive(Clone, PartialEq, prost::Message)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent fact, read by name")]
pub(crate) struct LateRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) digest: Vec<u8>,
    #[prost(bool, tag = "2")]
    pub(crate) sampled: bool,
    #[prost(bool, tag = "3")]
    pub(crate) contents: bool,
    /// The contents are a file that images have in common, whose key is the digest.
    #[prost(bool, tag = "4")]
    pub(crate) in_common: bool,
    /// They would have been kept so, but there was no room.
    #[prost(bool, tag = "5")]
    pub(crate) left_out: bool,
}

impl LateRecord {
    /// Under which key the contents lie that images have in common.
    pub(crate) fn key(&self) -> Option<ContentKey> {
        let key = <[u8; 32]>::try_from(self.digest.as_slice()).ok().filter(|_| self.in_common)?;
        Some(ContentKey(key))
    }
}

impl Record for LateRecord {
    const TAG: Tag = Tag(0x021b);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Under which key the contents of an object lie that the image has in common with others, if they do.
pub(crate) fn key(frames: &BTreeMap<(u16, ObjectId), StoredFrame>, id: ObjectId) -> Result<Option<ContentKey>> {
    if !frames.contains_key(&(LateRecord::TAG.0, id)) {
        return Ok(None);
    }
    Ok(stored::one::<LateRecord>(frames, id)?.key())
}

/// The files that are the contents of objects, with their lengths in bytes.
pub(crate) fn in_common(
    frames: &BTreeMap<(u16, ObjectId), StoredFrame>,
) -> Result<BTreeMap<ObjectId, (ContentKey, u64)>> {
    let mut all = BTreeMap::new();
    for id in stored::ids(frames, LateRecord::TAG) {
        if let Some(key) = key(frames, id)? {
            all.insert(id, (key, stored::one::<InodeRecord>(frames, id)?.size));
        }
    }
    Ok(all)
}

/// The paths of files whose contents are not kept, as there was no room.
pub(crate) fn left_out(frames: &BTreeMap<(u16, ObjectId), StoredFrame>) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for id in stored::ids(frames, LateRecord::TAG) {
        if stored::one::<LateRecord>(frames, id)?.left_out {
            all.push(model::path_of(&stored::one::<InodeRecord>(frames, id)?.path));
        }
    }
    Ok(all)
}

/// Refuses an image of which contents that it has in common with others are gone, or are not what was kept.
pub(crate) fn verify(image: &ImageReader, frames: &BTreeMap<(u16, ObjectId), StoredFrame>) -> Result<()> {
    for (id, (key, size)) in in_common(frames)? {
        let found = image.content_of(&key, size)?.and_then(|file| ContentKey::of(file).ok());
        if found != Some(key) {
            let path = stored::one::<InodeRecord>(frames, id)?.path;
            let path = model::path_of(&path);
            return Err(Error::Unsound(format!(
                "{}: what is kept of its contents is not what it held",
                path.display()
            )));
        }
    }
    Ok(())
}

/// A file that is still to be read.
#[derive(Debug)]
pub(crate) struct LateFile {
    pub(crate) id: ObjectId,
    /// Nothing: it is opened by its path, as the tree does not hold it.
    pub(crate) file: Option<OwnedFd>,
    pub(crate) path: PathBuf,
    /// As it was under the freeze.
    pub(crate) stat: Stat,
    /// Its contents are kept.
    pub(crate) contents: bool,
    /// They are kept for all images of a store once, where that can be.
    pub(crate) in_common: bool,
    /// The tree has it mapped shared: its times do not tell of all that is written.
    pub(crate) shared: bool,
    /// It is written at its end: sample and middle of what it held in the stop.
    pub(crate) begins: Option<(Vec<u8>, Vec<u8>)>,
    /// When to give up.
    pub(crate) by: Deadline,
}

/// What has become of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    None,
    Grown,
    Other,
}

impl LateFile {
    /// Whether the times of its file tell whether it has changed.
    fn keeps_times(&self) -> bool {
        let fs = || self.file.as_ref().map_or_else(|| rustix::fs::statfs(&self.path), rustix::fs::fstatfs);
        !self.shared && fs().is_ok_and(|fs| unchanged::keeps_times(&fs))
    }

    /// Reads it; `put` stores pieces of contents. `None`: it has changed meanwhile, or its file
    /// system does not answer.
    pub(crate) fn read(&self, put: &mut dyn FnMut(u64, Vec<u8>) -> Result<()>) -> Result<Option<LateRecord>> {
        let size = self.stat.st_size.cast_unsigned();
        let opened = if self.file.is_none() { contents::open_quietly(&self.path) } else { None };
        let Some(file) = self.file.as_ref().or(opened.as_ref()) else { return Ok(None) };
        let read_whole = self.contents || size <= keep::DIGEST_ALL && !keep::of_the_system(&self.path);
        let whole = read_whole && self.begins.is_none();
        let mut kept = (whole && self.contents).then(data::Digest::default);
        if self.contents {
            let mut both = |at: u64, bytes: Vec<u8>| {
                if let Some(kept) = &mut kept {
                    kept.add(at, &bytes, size);
                }
                put(at, bytes)
            };
            if let Err(error) = patient::read_small(file, size, &self.path, self.by, &mut both) {
                return if patient::is_late(&error) { Ok(None) } else { Err(error) };
            }
        }
        let look = if whole { data::digest } else { data::sample };
        let digest = match kept {
            Some(kept) => kept.finish(size),
            None => match patient::look(look, (file, size, &self.path), self.by) {
                Err(error) if patient::is_late(&error) => return Ok(None),
                other => other?,
            },
        };
        let record = LateRecord { digest, sampled: !whole, contents: self.contents, ..LateRecord::default() };
        if let Some((sample, middle)) = &self.begins {
            let now = match patient::look(data::middle, (file, size, &self.path), self.by) {
                Err(error) if patient::is_late(&error) => return Ok(None),
                other => other?,
            };
            return Ok(Some(record).filter(|record| record.digest == *sample && now == *middle));
        }
        Ok(match self.change(file)? {
            Change::None => Some(record),
            // A log that somebody appends to all the time is known by what it began with. That is no proof of what it held,
            // which another file would be made of.
            Change::Grown => Some(LateRecord { contents: false, ..record }),
            Change::Other => None,
        })
    }

    /// What has become of it since the freeze.
    fn change(&self, file: &OwnedFd) -> Result<Change> {
        let now = rustix::fs::fstat(file).map_err(Error::system("looking at a file", self.path.display()))?;
        // The inode may lose a name meanwhile: that is no change of what it holds.
        let same = |stat: &Stat| InodeRecord { ctime: 0, ctime_ns: 0, ..facts(stat) };
        if same(&now) == same(&self.stat) && now.st_size == self.stat.st_size {
            return Ok(Change::None);
        }
        Ok(if now.st_size > self.stat.st_size { Change::Grown } else { Change::Other })
    }

    /// Has its contents kept where images have them in common. `None`: they are not.
    fn share(&self, sink: &mut dyn Sink) -> Result<Option<LateRecord>> {
        let size = self.stat.st_size.cast_unsigned();
        if !self.in_common || size == 0 || sink.room_in_common().is_none() {
            return Ok(None);
        }
        let opened = if self.file.is_none() { contents::open_quietly(&self.path) } else { None };
        let Some(file) = self.file.as_ref().or(opened.as_ref()) else { return Ok(None) };
        let digest = match patient::look(data::digest, (file, size, &self.path), self.by) {
            Err(error) if patient::is_late(&error) => return Ok(None),
            other => other?,
        };
        let record = LateRecord { digest, in_common: true, ..LateRecord::default() };
        let Some(key) = record.key() else { return Ok(None) };
        let kept = sink.take_in_common(&key, size) || self.copy(file, size, sink) == Some(key);
        Ok((kept && self.change(file)? == Change::None).then_some(record))
    }

    /// Copies it; its key. An image can do without, so a full disk is no error here.
    fn copy(&self, file: &OwnedFd, size: u64, sink: &mut dyn Sink) -> Option<ContentKey> {
        let file = file.try_clone().map(File::from).ok()?;
        let told = |error: &StoreError| tracing::warn!(%error, path = %self.path.display(), "contents are not kept");
        sink.keep_in_common(&file, size).inspect_err(told).ok().flatten()
    }
}

/// Stores all of them, each with its record. `next`: what the image holds already that the next one of the series may take
/// over; what of these it may comes to it. `now`, in seconds, is before any is read.
pub(crate) fn store(
    files: &[LateFile],
    writer: &mut ImageWriter,
    known: &Known,
    next: Known,
    now: i64,
) -> Result<Known> {
    store_by(LateFile::keeps_times, files, writer, known, (next, now))
}

fn store_by(
    keeps: fn(&LateFile) -> bool,
    files: &[LateFile],
    writer: &mut ImageWriter,
    known: &Known,
    (mut next, now): (Known, i64),
) -> Result<Known> {
    // What there is no room for in the end are the largest.
    let mut files: Vec<&LateFile> = files.iter().collect();
    files.sort_by_key(|file| file.stat.st_size);
    for file in files {
        let judged = keeps(file);
        let as_before = if judged { known.late(&file.stat) } else { None };
        let as_before = as_before.filter(|(_, record)| record.in_common || record.contents == file.contents);
        let taken = as_before.map(|(from, record)| taken_over(writer, file, (from, record))).transpose()?;
        let as_before = as_before.filter(|_| taken == Some(true));
        let record = match as_before {
            Some((_, record)) => Some(record.clone()),
            None => anew(writer, file)?,
        };
        let Some(record) = record else { continue };
        let body = record.encode().map_err(|error| Error::Unsound(error.to_string()))?;
        writer.frame(LateRecord::TAG, LateRecord::VERSION, file.id.0, &body)?;
        if as_before.is_some() {
            next.goes_on(&file.stat, file.id, Some(record));
        } else if judged {
            next.add(&file.stat, file.id, Some(record), now);
        }
    }
    Ok(next)
}

/// Whether the image now holds what the one before does.
fn taken_over(writer: &mut ImageWriter, file: &LateFile, (from, record): (ObjectId, &LateRecord)) -> Result<bool> {
    match record.key() {
        Some(key) => Ok(writer.in_common().take_in_common(&key, file.stat.st_size.cast_unsigned())),
        None => Ok(!record.contents || writer.bring(file.id.0, from.0)?),
    }
}

/// Reads a file that the image before does not hold as it is.
fn anew(writer: &mut ImageWriter, file: &LateFile) -> Result<Option<LateRecord>> {
    if let Some(record) = file.share(writer.in_common())? {
        return Ok(Some(record));
    }
    let record = file.read(&mut |at, bytes| Ok(writer.pages(file.id.0, at, &bytes)?))?;
    let would_be = file.in_common && writer.in_common().room_in_common().is_some();
    Ok(record.map(|record| LateRecord { left_out: would_be && !record.contents, ..record }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_changed_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let by = Deadline(std::time::Instant::now() + std::time::Duration::from_mins(1));
        let met = |id: u64| LateFile {
            id: ObjectId(id),
            file: None,
            path: path.clone(),
            stat: rustix::fs::stat(&path).unwrap(),
            contents: true,
            in_common: false,
            shared: false,
            begins: None,
            by,
        };
        let put = |files: &[LateFile], writer: &mut ImageWriter, known: &Known, now: i64| {
            store_by(|_| true, files, writer, known, (Known::default(), now))
        };
        let image = hdcr_image::MemoryImage::new();
        let sink = |number: u8| Box::new(image.sink(hdcr_image::ImageId([number; 16])));
        let options = hdcr_image::Options::default();
        let mut writer = ImageWriter::first(sink(1), options).unwrap();
        let changed = rustix::fs::stat(&path).unwrap().st_ctime;
        let fresh = put(&[met(3)], &mut writer, &Known::default(), changed + 1).unwrap();
        assert!(fresh.objects().is_empty(), "it may be changed again in this very moment");
        let known = put(&[met(3)], &mut writer, &Known::default(), changed + 3).unwrap();
        assert_eq!(known.objects(), [3]);
        let chain = writer.finish(hdcr_image::ManifestFacts::default()).unwrap().chain.unwrap();
        let mut writer = ImageWriter::onto_with(sink(2), options, chain, (&[], &known.objects())).unwrap();
        let mut gone = met(5);
        gone.path = directory.path().join("gone");
        let as_before = put(&[gone], &mut writer, &known, changed + 3).unwrap();
        assert_eq!(as_before.objects(), [5], "it was not read");
        std::fs::write(&path, vec![8; 10_001]).unwrap();
        let mut other = met(6);
        other.path = directory.path().join("gone");
        assert!(
            put(&[other], &mut writer, &known, changed + 30).unwrap().objects().is_empty(),
            "it was taken for the old one"
        );
        writer.finish(hdcr_image::ManifestFacts::default()).unwrap();
        let reader = ImageReader::open(&hdcr_image::MemorySource::new(image.parts().unwrap())).unwrap();
        let spaces: Vec<u64> = reader.spaces().collect();
        let mut bytes = Vec::new();
        reader.read_run(&reader.runs(5)[0], &mut bytes).unwrap();
        assert!(spaces == [5] && bytes.starts_with(&[7; 10_000]) && bytes[10_000] == 0);
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, "text").unwrap();
        let file = OwnedFd::from(File::open(&path).unwrap());
        let stat = rustix::fs::fstat(&file).unwrap();
        let by = Deadline(std::time::Instant::now() + std::time::Duration::from_mins(1));
        let late = LateFile {
            id: ObjectId(1),
            file: Some(file),
            path: path.clone(),
            stat,
            contents: true,
            in_common: false,
            shared: false,
            begins: None,
            by,
        };
        let mut pieces = 0;
        let record = late.read(&mut |_, _| {
            pieces += 1;
            Ok(())
        });
        let record = record.unwrap().unwrap();
        assert_eq!((record.digest, pieces), (blake3::hash(b"text").as_bytes().to_vec(), 1));
        // One that has grown is known by what it held before.
        std::fs::write(&path, "text and more").unwrap();
        let record = late.read(&mut |_, _| Ok(())).unwrap().unwrap();
        assert_eq!((record.digest, record.contents), (blake3::hash(b"text").as_bytes().to_vec(), false));
        std::fs::write(&path, "tex").unwrap();
        assert_eq!(late.read(&mut |_, _| Ok(())).unwrap(), None);
    }
}
