//! Reading files whose file systems may take their time, for ever perhaps: a server on the network, a process (FUSE).
//!
//! Whoever waits there sleeps where no signal reaches it, and a tracer that sleeps so cannot let anybody go. So such a file
//! is read by a thread of its own, which is left to itself when it has not come back in time; the thread that holds the
//! program never waits for a disk that is not of this machine.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Instant;

use super::data;
use crate::error::{Error, Result};
use crate::mechanism::Deadline;

/// Takes a piece of a file.
type Each<'a> = &'a mut dyn FnMut(u64, Vec<u8>) -> Result<()>;

/// File systems of this machine by their magic numbers (`<linux/magic.h>`, and those of ZFS and bcachefs): they answer as
/// fast as a disk does.
const LOCAL: [u64; 15] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x9584_58f6, // hugetlbfs
    0x794c_7630, // overlay
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
    0xca45_1a4e, // bcachefs
    0x7371_7368, // squashfs
    0xe0f5_e1e2, // EROFS
    0x9660,      // ISO 9660
    0x4d44,      // FAT
    0x9fa0,      // proc
];

fn is_local(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| LOCAL.contains(&data::magic(&fs)))
}

/// How pieces of a file are read.
type How = fn(&OwnedFd, u64, &Path, Each<'_>) -> Result<()>;

/// [`data::read`], until then.
pub(crate) fn read(file: &OwnedFd, size: u64, subject: &Path, by: Deadline, each: Each<'_>) -> Result<()> {
    pieces(data::read, (file, size, subject), by, each)
}

/// [`data::read_small`], until then.
pub(crate) fn read_small(file: &OwnedFd, size: u64, subject: &Path, by: Deadline, each: Each<'_>) -> Result<()> {
    pieces(data::read_small, (file, size, subject), by, each)
}

/// [`data::edges`], until then.
pub(crate) fn edges(file: &OwnedFd, size: u64, subject: &Path, by: Deadline, each: Each<'_>) -> Result<()> {
    pieces(data::edges, (file, size, subject), by, each)
}

fn pieces(how: How, (file, size, subject): (&OwnedFd, u64, &Path), by: Deadline, each: Each<'_>) -> Result<()> {
    if is_local(file) {
        return how(file, size, subject, each);
    }
    let whole = subject.to_owned();
    apart(file, subject, by, each, move |file, put| how(file, size, &whole, put))
}

/// A digest of a file ([`data::digest`], [`data::sample`]), until then.
pub(crate) fn look(
    how: fn(&OwnedFd, u64, &Path) -> Result<Vec<u8>>,
    (file, size, subject): (&OwnedFd, u64, &Path),
    by: Deadline,
) -> Result<Vec<u8>> {
    if is_local(file) {
        return how(file, size, subject);
    }
    let whole = subject.to_owned();
    apart(file, subject, by, &mut |_, _| Ok(()), move |file, _| how(file, size, &whole))
}

/// Whether an error says that a file system has not answered in time.
pub(crate) fn is_late(error: &Error) -> bool {
    matches!(error, Error::System { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
}

fn late(subject: &Path) -> Error {
    let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "its file system has not answered in time");
    Error::System { operation: "reading a file", subject: subject.display().to_string(), source }
}

/// What the thread has to say.
enum Said<T> {
    Piece(u64, Vec<u8>),
    Done(Result<T>),
}

fn apart<T: Send + 'static>(
    file: &OwnedFd,
    subject: &Path,
    by: Deadline,
    each: Each<'_>,
    work: impl FnOnce(&OwnedFd, Each<'_>) -> Result<T> + Send + 'static,
) -> Result<T> {
    /// Pieces that are read ahead.
    const AHEAD: usize = 4;
    let failed = || Error::system::<std::io::Error>("reading a file", subject.display());
    let file = file.try_clone().map_err(failed())?;
    let (sender, said) = sync_channel(AHEAD);
    let whole = subject.to_owned();
    let thread = move || {
        let put = |sender: &SyncSender<Said<T>>, what| sender.send(what).map_err(|_| late(&whole));
        let done = work(&file, &mut |at, bytes| put(&sender, Said::Piece(at, bytes)));
        // Nobody may be waiting any more.
        drop(put(&sender, Said::Done(done)));
    };
    drop(std::thread::Builder::new().name("file".into()).spawn(thread).map_err(failed())?);
    loop {
        match said.recv_timeout(by.0.saturating_duration_since(Instant::now())) {
            Ok(Said::Piece(at, bytes)) => each(at, bytes)?,
            Ok(Said::Done(done)) => return done,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Err(late(subject)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    fn in_a_while(milliseconds: u64) -> Deadline {
        Deadline(Instant::now() + Duration::from_millis(milliseconds))
    }

    #[test]
    fn who_does_not_answer_is_waited_for_up_to_a_moment() {
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        let (answer, waits) = channel::<()>();
        let mut pieces = Vec::new();
        let result = apart(
            &file,
            Path::new("/x"),
            in_a_while(20),
            &mut |at, _| {
                pieces.push(at);
                Ok(())
            },
            move |_, put| {
                put(5, Vec::new())?;
                // Until the test is over.
                waits.recv().ok();
                Ok(())
            },
        );
        let error = result.unwrap_err();
        assert!(is_late(&error), "{error}");
        assert_eq!(pieces, [5]);
        drop(answer);
    }

    #[test]
    fn what_a_thread_reads_is_what_the_file_holds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, vec![7; 3 << 20]).unwrap();
        let file = OwnedFd::from(std::fs::File::open(&path).unwrap());
        let (mut near, mut far) = (Vec::new(), Vec::new());
        let by = in_a_while(60_000);
        read(&file, 3 << 20, &path, by, &mut |at, bytes| {
            near.push((at, bytes));
            Ok(())
        })
        .unwrap();
        let whole = path.clone();
        let by_thread = move |file: &OwnedFd, put: Each<'_>| data::read(file, 3 << 20, &whole, put);
        apart(
            &file,
            &path,
            by,
            &mut |at, bytes| {
                far.push((at, bytes));
                Ok(())
            },
            by_thread,
        )
        .unwrap();
        assert_eq!(near, far);
        assert_eq!(far.len(), 3);
        let digest = look(data::digest, (&file, 3 << 20, &path), by).unwrap();
        assert_eq!(digest, data::digest(&file, 3 << 20, &path).unwrap());
        let missing = apart(&file, &path, by, &mut |_, _| Ok(()), |_, _| Err::<(), _>(Error::Unsound("x".into())));
        assert!(!is_late(&missing.unwrap_err()));
    }
}
