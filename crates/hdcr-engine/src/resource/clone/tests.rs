//! Where no clones can be, and images whose clones are not what they should be. That clones work is shown by the trial
//! `reflinks`, on file systems that have them.

use std::io::Write;
use std::sync::Arc;

use hdcr_image::{
    CloneFacts, ImageId, ManifestFacts, MemoryImage, Options, PartName, ReadPart, Sink, SnapshotId, Source, StoreError,
    WritePart,
};

use super::*;
use crate::restore::StoredFrame;

#[test]
fn where_there_are_no_clones_none_are_promised() {
    let mut shared = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    shared.write_all(b"what it held").unwrap();
    let file = OwnedFd::from(shared.reopen().unwrap());
    let how = How { room: u64::MAX, by: Instant::now() + Duration::from_mins(1), flushed: true };
    for home in ["/dev/shm", "/var/tmp", "/proc"] {
        // Nor is it said that only room is lacking.
        assert_eq!(nameless_clone(Path::new(home), &file, how).unwrap_err(), NoClone::Impossible);
    }
    let other = OwnedFd::from(tempfile::tempfile_in("/dev/shm").unwrap());
    rustix::io::pwrite(&other, b"longer than the other one", 0).unwrap();
    assert!(!give_back(&other, &file, 12));
    assert_eq!(rustix::fs::fstat(&other).unwrap().st_size, 12, "what fills it by hand begins with this length");
}

/// Clones beside an image that lies in memory: open files, of which any bytes can be written over.
type Beside = Arc<std::sync::Mutex<BTreeMap<PartName, File>>>;

#[derive(Debug)]
struct SinkBeside(Box<dyn Sink>, Beside);

impl Sink for SinkBeside {
    fn snapshot(&self) -> &SnapshotId {
        self.0.snapshot()
    }

    fn part(&mut self, name: PartName) -> std::result::Result<Box<dyn WritePart>, StoreError> {
        self.0.part(name)
    }

    fn attach(&mut self, name: PartName, file: File) -> std::result::Result<(), StoreError> {
        self.1.lock().unwrap().insert(name, file);
        Ok(())
    }

    fn persist(&mut self, manifest: &[u8]) -> std::result::Result<(), StoreError> {
        self.0.persist(manifest)
    }

    fn commit(self: Box<Self>) -> std::result::Result<(), StoreError> {
        self.0.commit()
    }

    fn abort(self: Box<Self>) -> std::result::Result<(), StoreError> {
        self.0.abort()
    }
}

#[derive(Debug)]
struct SourceBeside(hdcr_image::MemorySource, Beside);

impl Source for SourceBeside {
    fn part(&self, name: PartName) -> std::result::Result<Box<dyn ReadPart>, StoreError> {
        match self.1.lock().unwrap().get(&name) {
            Some(file) => Ok(Box::new(PartBeside(file.try_clone().unwrap()))),
            None => self.0.part(name),
        }
    }
}

#[derive(Debug)]
struct PartBeside(File);

impl ReadPart for PartBeside {
    fn size(&self) -> std::result::Result<u64, StoreError> {
        Ok(self.0.metadata().unwrap().len())
    }

    fn read_at(&self, _offset: u64, _into: &mut [u8]) -> std::result::Result<(), StoreError> {
        unreachable!("a clone is read as a file")
    }

    fn file(&self) -> std::result::Result<Option<File>, StoreError> {
        Ok(Some(self.0.try_clone().unwrap()))
    }
}

const SIZE: usize = 3 << 20;
const HELD: ObjectId = ObjectId(7);

/// What is changed in an image that is right.
#[derive(Clone, Copy, Debug)]
enum Forgery {
    None,
    /// The clone of an object that is no file.
    NoInode,
    /// The clone of a file whose record says that the image has no contents of it.
    NoContents,
    /// One of a file that has another length.
    Length,
    /// Nothing tells what it was.
    Untold,
    /// Something tells of a clone that there is not.
    Missing,
    /// A sample that is not one.
    Sample,
}

/// An image with one clone, and the file that it is.
fn image(forgery: Forgery) -> (ImageReader, File) {
    let memory = MemoryImage::new();
    let beside = Beside::default();
    let sink = SinkBeside(Box::new(memory.sink(ImageId([1; 16]))), Arc::clone(&beside));
    let mut writer = ImageWriter::new(Box::new(sink), Options::default()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    for at in 0..SIZE / 8 {
        file.write_all(&at.to_le_bytes()).unwrap();
    }
    let size = u64::try_from(SIZE).unwrap();
    let mut told = CloneRecord::of(&OwnedFd::from(file.try_clone().unwrap()), size, Path::new("held")).unwrap();
    if matches!(forgery, Forgery::Sample) {
        told.sample = vec![9; 1000];
    }
    let length = if matches!(forgery, Forgery::Length) { size - 1 } else { size };
    let contents = !matches!(forgery, Forgery::NoContents);
    let inode = InodeRecord { path: b"held".into(), size: length, contents, ..InodeRecord::default() };
    put(&mut writer, &inode, if matches!(forgery, Forgery::NoInode) { ObjectId(6) } else { HELD });
    if !matches!(forgery, Forgery::Untold) {
        put(&mut writer, &told, HELD);
    }
    if !matches!(forgery, Forgery::Missing) {
        writer.attach(HELD.0, file.try_clone().unwrap(), size).unwrap();
    }
    writer.finish(ManifestFacts::default()).unwrap();
    let source = SourceBeside(memory.source().unwrap(), beside);
    (ImageReader::open(&source).unwrap(), file)
}

fn put<R: Record>(writer: &mut ImageWriter, record: &R, id: ObjectId) {
    writer.frame(R::TAG, R::VERSION, id.0, &record.encode().unwrap()).unwrap();
}

fn verdict(image: &ImageReader) -> std::result::Result<(), String> {
    let frames = image
        .frames()
        .map(|frame| {
            ((frame.tag.0, ObjectId(frame.id)), StoredFrame { version: frame.version, body: frame.body.to_vec() })
        })
        .collect();
    let model = Model { frames, processes: Vec::new(), tables: BTreeMap::new() };
    match verified(image, model) {
        Ok(_) => Ok(()),
        Err(Error::Unsound(cause)) => Err(cause),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_image_and_its_clones_say_the_same() {
    let (whole, _file) = image(Forgery::None);
    assert_eq!(whole.manifest().clones, [CloneFacts { object: HELD.0, size: SIZE as u64 }]);
    assert_eq!(verdict(&whole), Ok(()));
    for forgery in
        [Forgery::NoInode, Forgery::NoContents, Forgery::Length, Forgery::Untold, Forgery::Missing, Forgery::Sample]
    {
        verdict(&image(forgery).0).expect_err(&format!("{forgery:?}"));
    }
}

/// Its beginning, its end and places between them are looked at, and whether it is shorter. (What it has behind its length is cut off.)
#[test]
fn a_clone_that_was_written_to_is_refused() {
    for at in [0, SIZE - 1, SIZE / 2] {
        let (image, file) = image(Forgery::None);
        rustix::io::pwrite(&file, b"\xff", at as u64).unwrap();
        assert!(verdict(&image).unwrap_err().contains("is not what was cloned"), "a byte at {at}");
    }
    for length in [0, SIZE - 1] {
        let (image, file) = image(Forgery::None);
        file.set_len(length as u64).unwrap();
        verdict(&image).expect_err(&format!("{length} bytes"));
    }
}
