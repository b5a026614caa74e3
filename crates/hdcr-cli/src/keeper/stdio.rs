//! Standard input and output of the program as they were when it began: a program that begins anew reads its input from there,
//! and what it has written to its output is written again.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_policy::touched::{Changes, Length};
use rustix::fs::{FileType, OFlags, SeekFrom, fcntl_getfl, fstat, seek, stat};

/// One of them that is a regular file.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stood {
    /// Which of the three.
    number: usize,
    offset: u64,
    /// What could be written then, by that name.
    written: Option<Output>,
}

/// A file to which the program writes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Output {
    path: PathBuf,
    file: (u64, u64),
    length: u64,
    modified: Duration,
    /// All that the program writes comes behind what was there.
    grows: bool,
}

/// All that are regular files.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct AsBegan(Vec<Stood>);

impl AsBegan {
    /// As they are now.
    pub(crate) fn of(stdio: &[OwnedFd; 3]) -> Self {
        Self(stdio.iter().enumerate().filter_map(|(number, file)| look(number, file)).collect())
    }

    /// What the program has done to them since, as far as nobody has noticed: it never opened them.
    pub(crate) fn add_to(&self, changes: &mut Changes) {
        for output in self.0.iter().filter_map(|stood| stood.written.as_ref()) {
            let Some(now) = stat(&output.path).ok().filter(|now| (now.st_dev, now.st_ino) == output.file) else {
                continue;
            };
            let is_new = changes.new.iter().any(|new| new.at == output.path);
            if is_new || when(&now) == output.modified && now.st_size.cast_unsigned() == output.length {
                continue;
            }
            if !changes.written.contains(&output.path) {
                changes.written.push(output.path.clone());
            }
            changes.lengths.retain(|known| known.path != output.path);
            if output.grows {
                let Output { path, length, modified, .. } = output.clone();
                changes.lengths.push(Length { path, size: length, modified });
            }
        }
    }

    /// The files to which it writes.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().filter_map(|stood| stood.written.as_ref()).map(|output| output.path.as_path())
    }

    /// The program goes on from where they stood.
    pub(crate) fn rewind(&self, stdio: &[OwnedFd; 3]) {
        for stood in &self.0 {
            if let Err(error) = seek(&stdio[stood.number], SeekFrom::Start(stood.offset)) {
                tracing::debug!(%error, "descriptor {} is not set back", stood.number);
            }
        }
    }
}

fn when(stat: &rustix::fs::Stat) -> Duration {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Duration::new(stat.st_mtime.try_into().unwrap_or_default(), nanoseconds)
}

fn look(number: usize, file: &OwnedFd) -> Option<Stood> {
    let stat = fstat(file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let (offset, flags) = (seek(file, SeekFrom::Current(0)).ok()?, fcntl_getfl(file).ok()?);
    let is_output = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
    let path = is_output.then(|| std::fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).ok());
    let length = stat.st_size.cast_unsigned();
    let written = path.flatten().map(|path| Output {
        path,
        file: (stat.st_dev, stat.st_ino),
        length,
        modified: when(&stat),
        grows: flags.contains(OFlags::APPEND) || offset >= length,
    });
    Some(Stood { number, offset, written })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn what_was_written_is_told_and_all_stand_where_they_stood() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::write(at("in"), "0123456789").unwrap();
        fs::write(at("log"), "before").unwrap();
        fs::write(at("over"), "before").unwrap();
        let mut input = File::open(at("in")).unwrap();
        input.read_exact(&mut [0; 3]).unwrap();
        let mut log = File::options().append(true).open(at("log")).unwrap();
        let mut over = File::options().write(true).open(at("over")).unwrap();
        let copy = |file: &File| OwnedFd::from(file.try_clone().unwrap());
        let stdio = [copy(&input), copy(&log), copy(&over)];
        let began = AsBegan::of(&stdio);
        let told = || {
            let mut changes = Changes::default();
            began.add_to(&mut changes);
            changes
        };
        assert_eq!(told(), Changes::default());
        input.read_exact(&mut [0; 4]).unwrap();
        log.write_all(b"more").unwrap();
        over.write_all(b"more").unwrap();
        let changes = told();
        assert_eq!(changes.written, [at("log"), at("over")]);
        // What is overwritten does not come back by a cut.
        assert_eq!(
            changes.lengths.iter().map(|length| (&*length.path, length.size)).collect::<Vec<_>>(),
            [(&*at("log"), 6)]
        );
        began.rewind(&stdio);
        let mut rest = String::new();
        input.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "3456789");
        assert_eq!(seek(&over, SeekFrom::Current(0)).unwrap(), 0);
        // Another file of that name is not the program's output.
        fs::rename(at("log"), at("log.1")).unwrap();
        fs::write(at("log"), "another one").unwrap();
        assert_eq!(told().written, [at("over")]);
    }
}
