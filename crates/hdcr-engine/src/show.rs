//! What an image holds, for people: the tree as a table, its open files, and every record in words.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use hdcr_image::hdcr_layout::{DescriptorEntry, Mapping, MappingKind, Registers, TaskState};
use hdcr_image::{ImageReader, List, Record, Tag};

use crate::clock::ClockRecord;
use crate::error::Result;
use crate::flags;
use crate::memory::MmRecord;
use crate::memory::omitted::OmittedRecord;
use crate::memory::vdso::VdsoRecord;
use crate::model::{self, ObjectId};
use crate::openfile::OpenFileRecord;
use crate::plain::plain;
use crate::resource::socket::SocketRecord;
use crate::resource::{
    self, clone, contents, directory, fifo, late, listed, locks, names, pipe, pty, regfile, touched,
};
use crate::segments::{self, SegmentRecord};
use crate::semaphores::{self, SemaphoresRecord};
use crate::snapshot::record::WaysRecord;
use crate::stored::{self, Model};
use crate::task;
use crate::tree::{ProcessRecord, StoredProcess, Tasks, ThreadRecord};

/// A frame of an image in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownFrame {
    /// The object.
    pub id: u64,
    /// The kind.
    pub kind: String,
    /// The record.
    pub text: String,
}

/// The tree and what it has open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Overview {
    /// Parents before children.
    pub processes: Vec<ShownProcess>,
    /// Every open file once.
    pub files: Vec<ShownFile>,
    /// Programs and libraries whose contents it has in common with other images: their lengths in bytes.
    pub programs: Vec<u64>,
    /// Those for which there was no room.
    pub left_out: Vec<PathBuf>,
}

/// A process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownProcess {
    /// Its number.
    pub pid: i32,
    /// Its parent in the tree; `None`: outside.
    pub parent: Option<i32>,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// `running`, `stopped`, `zombie`, or `leader ended`.
    pub state: &'static str,
    /// Living threads.
    pub threads: usize,
    /// Its name, which programs may change.
    pub name: String,
    /// The program file.
    pub program: String,
    /// The working directory.
    pub directory: String,
    /// Mappings, and their sizes together.
    pub mappings: usize,
    /// Bytes of address space.
    pub mapped: u64,
    /// Bytes of its memory that the image holds.
    pub stored: u64,
}

/// An open file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownFile {
    /// The object.
    pub id: u64,
    /// The kind.
    pub kind: String,
    /// Its path, or what its record says.
    pub what: String,
    /// Who has it, and under which number.
    pub holders: Vec<(i32, i32)>,
}

/// The tree of an image.
pub fn overview(image: &ImageReader) -> Result<Overview> {
    let model = stored::read(image)?;
    let names = names(&model)?;
    let mut processes = Vec::new();
    for process in &model.processes {
        processes.push(shown_process(image, &model, process, &names)?);
    }
    let mut holders: BTreeMap<u64, Vec<(i32, i32)>> = BTreeMap::new();
    for (pid, table) in &model.tables {
        for entry in table {
            holders.entry(entry.object).or_default().push((pid.0, entry.fd));
        }
    }
    let mut files = Vec::new();
    for id in stored::ids(&model.frames, OpenFileRecord::TAG) {
        let holders = holders.remove(&id.0).unwrap_or_default();
        files.push(shown_file(&model, id, holders)?);
    }
    let programs = late::in_common(&model.frames)?.into_values().map(|(_, size)| size).collect();
    let left_out = late::left_out(&model.frames)?;
    Ok(Overview { processes, files, programs, left_out })
}

/// Paths of the files that a restore of an image may change: those that its program writes.
pub fn written(image: &ImageReader) -> Result<Vec<PathBuf>> {
    let model = stored::read(image)?;
    let mut paths = Vec::new();
    for id in stored::ids(&model.frames, contents::InodeRecord::TAG) {
        let inode: contents::InodeRecord = stored::one(&model.frames, id)?;
        let is_changed = matches!(inode.keep(), contents::Keep::Contents | contents::Keep::Length);
        if is_changed && inode.life() == contents::Life::Named {
            paths.push(PathBuf::from(OsStr::from_bytes(&inode.path)));
        }
    }
    Ok(paths)
}

/// What else of this running system a restore of an image overwrites, which no path names: System V objects that are here
/// still.
pub fn overwritten(image: &ImageReader) -> Result<Vec<String>> {
    let model = stored::read(image)?;
    Ok([segments::here(&model)?, semaphores::here(&model)?].concat())
}

fn names(model: &Model) -> Result<BTreeMap<i32, String>> {
    let tasks: Tasks = stored::one(&model.frames, ObjectId(0))?;
    let named = tasks.0.iter().filter(|task| task.tid == task.tgid);
    Ok(named.map(|task| (task.tgid, String::from_utf8_lossy(&task.comm).trim_end_matches('\0').to_owned())).collect())
}

fn shown_process(
    image: &ImageReader,
    model: &Model,
    process: &StoredProcess,
    names: &BTreeMap<i32, String>,
) -> Result<ShownProcess> {
    let mm = ObjectId(process.record.mm);
    let mappings =
        if mm.0 == 0 { Vec::new() } else { stored::one::<List<Mapping>>(&model.frames, mm).map(|List(all)| all)? };
    let size = |mapping: &Mapping| mapping.end.saturating_sub(mapping.start);
    let stored = image.runs(mm.0).iter().filter(|run| mm.0 != 0 && !run.is_zero()).map(hdcr_image::PageRun::size);
    Ok(ShownProcess {
        pid: process.pid.0,
        parent: process.parent.map(|(pid, _)| pid.0),
        group: process.pgid,
        session: process.sid,
        state: match process.state {
            TaskState::Running => "running",
            TaskState::Stopped => "stopped",
            TaskState::Zombie => "zombie",
            TaskState::DeadLeader => "leader ended",
        },
        threads: process.threads.len(),
        name: names.get(&process.pid.0).cloned().unwrap_or_default(),
        program: path_of(model, process.record.exe),
        directory: path_of(model, process.record.cwd),
        mappings: mappings.len(),
        mapped: mappings.iter().map(size).sum(),
        stored: stored.sum(),
    })
}

/// The path of a file or a directory of the image; empty: it has none.
fn path_of(model: &Model, id: u64) -> String {
    let id = ObjectId(id);
    let inode = stored::one::<contents::InodeRecord>(&model.frames, id).map(|record| record.path);
    let path = inode.or_else(|_| stored::one::<directory::PlaceRecord>(&model.frames, id).map(|place| place.path));
    path.map(|path| String::from_utf8_lossy(&path).into_owned()).unwrap_or_default()
}

fn shown_file(model: &Model, id: ObjectId, holders: Vec<(i32, i32)>) -> Result<ShownFile> {
    let common: OpenFileRecord = stored::one(&model.frames, id)?;
    let tag = u16::try_from(common.kind).unwrap_or(0);
    let kind = resource::kind_with(Tag(tag));
    let name = kind.map_or("unknown", |kind| kind.name);
    let frame = model.frames.get(&(tag, id));
    let place = stored::one::<regfile::RegFileRecord>(&model.frames, id).map(|file| path_of(model, file.inode));
    let place = place.or_else(|_| {
        stored::one::<directory::DirectoryRecord>(&model.frames, id).map(|directory| path_of(model, directory.place))
    });
    let place = place.or_else(|_| stored::one::<SocketRecord>(&model.frames, id).map(|socket| socket.summary()));
    let text = kind.zip(frame).map(|(kind, frame)| (kind.show)(frame.version, &frame.body)).unwrap_or_default();
    let what = place.ok().filter(|path| !path.is_empty()).unwrap_or_else(|| in_words(name, &text));
    Ok(ShownFile { id: id.0, kind: name.to_owned(), what, holders })
}

/// A record of a kind as people read it.
fn in_words(kind: &str, debug: &str) -> String {
    plain(&flags::in_words(kind, &readable(debug)))
}

/// Every record in words; one that cannot be read says so.
pub fn records(image: &ImageReader) -> Vec<ShownFrame> {
    let mut shown = Vec::new();
    for frame in image.frames() {
        let file = resource::kind_with(frame.tag).map(|kind| (kind.name, (kind.show)(frame.version, frame.body)));
        let task = task::kind_with(frame.tag).map(|kind| (kind.name, (kind.show)(frame.version, frame.body)));
        let own =
            OWN.iter().find(|own| own.tag == frame.tag).map(|own| (own.name, (own.show)(frame.version, frame.body)));
        let unknown =
            || ("object", format!("{} bytes of kind {}, which this hdcr does not know", frame.body.len(), frame.tag));
        let (kind, text) = file.or(task).or(own).unwrap_or_else(unknown);
        shown.push(ShownFrame { id: frame.id, kind: kind.to_owned(), text: in_words(kind, &text) });
    }
    shown
}

/// A record that is neither a kind of open file nor one of a task.
struct Own {
    tag: Tag,
    name: &'static str,
    show: fn(u16, &[u8]) -> String,
}

const fn own<R: Record + Debug>(name: &'static str) -> Own {
    Own { tag: R::TAG, name, show: words::<R> }
}

const OWN: &[Own] = &[
    own::<Tasks>("tasks"),
    own::<Registers>("registers"),
    Own { tag: <List<Mapping> as Record>::TAG, name: "mappings", show: mappings },
    own::<List<DescriptorEntry>>("descriptors"),
    own::<ProcessRecord>("process"),
    own::<ThreadRecord>("thread"),
    own::<MmRecord>("memory"),
    own::<OpenFileRecord>("open file"),
    own::<ClockRecord>("clocks"),
    own::<SemaphoresRecord>("semaphores"),
    own::<SegmentRecord>("shared memory"),
    own::<VdsoRecord>("vdso"),
    Own { tag: <WaysRecord as Record>::TAG, name: "snapshot", show: ways },
    Own { tag: <OmittedRecord as Record>::TAG, name: "memory left out", show: omitted },
    own::<contents::InodeRecord>("file"),
    own::<listed::ListedRecord>("listed files"),
    own::<touched::TouchedRecord>("touched files"),
    own::<names::NamesRecord>("links and FIFOs"),
    own::<late::LateRecord>("file contents"),
    own::<clone::CloneRecord>("clone of a file"),
    own::<directory::PlaceRecord>("directory"),
    own::<locks::LocksRecord>("locks"),
    own::<pipe::PipeRecord>("pipe contents"),
    own::<fifo::FifoRecord>("fifo contents"),
    own::<pty::PtyRecord>("pty pair"),
    own::<resource::socket::ConnectionRecord>("TCP connection"),
];

fn words<R: Record + Debug>(version: u16, body: &[u8]) -> String {
    model::decode::<R>(version, body).map_or_else(|error| error.to_string(), |record| format!("{record:?}"))
}

/// How each mapping was read, and why so.
fn ways(version: u16, body: &[u8]) -> String {
    model::decode::<WaysRecord>(version, body).map_or_else(|error| error.to_string(), |ways| ways.words())
}

/// What the program has asked to leave out.
fn omitted(version: u16, body: &[u8]) -> String {
    model::decode::<OmittedRecord>(version, body).map_or_else(|error| error.to_string(), |omitted| omitted.words())
}

/// A line a mapping, as in `/proc/PID/maps`.
fn mappings(version: u16, body: &[u8]) -> String {
    let List(all) = match model::decode::<List<Mapping>>(version, body) {
        Ok(all) => all,
        Err(error) => return error.to_string(),
    };
    let line = |mapping: &Mapping| {
        let bit = |bit, letter| if mapping.prot & bit != 0 { letter } else { '-' };
        let prot: String = [bit(1, 'r'), bit(2, 'w'), bit(4, 'x')].iter().collect();
        let kib = mapping.end.saturating_sub(mapping.start) / 1024;
        let kind = match mapping.kind {
            MappingKind::Anonymous => "anonymous".to_owned(),
            MappingKind::PrivateFile => format!("private file, object {}", mapping.object),
            MappingKind::SharedFile => format!("shared file, object {}", mapping.object),
            MappingKind::SharedMemory => format!("shared memory, object {}", mapping.object),
            MappingKind::Vdso => "vdso".to_owned(),
            MappingKind::Vvar => "vvar".to_owned(),
        };
        format!("\n        {:x}-{:x} {prot} {kib} KiB {kind}", mapping.start, mapping.end)
    };
    std::iter::once(format!("{} mappings", all.len())).chain(all.iter().map(line)).collect()
}

/// Lists that are numbers, whatever they look like.
const NUMBERS: [&str; 10] =
    ["threads", "uids", "gids", "groups", "processors", "nodes", "places", "words", "values", "descriptors"];
/// Bytes that are no text are shown up to this number.
const SHOWN: usize = 16;

/// The words of a record with lists of bytes as the text that they are, or with their number.
fn readable(words: &str) -> String {
    let mut text = String::with_capacity(words.len());
    let mut rest = words;
    while let Some((before, list)) = rest.split_once('[') {
        text.push_str(before);
        let end = list.find(|c: char| !c.is_ascii_digit() && c != ',' && c != ' ').unwrap_or(list.len());
        let inner = list.get(..end).unwrap_or_default();
        let after = list.get(end..).unwrap_or_default();
        let name = before.trim_end().strip_suffix(':').and_then(|head| head.rsplit([' ', '{', '(']).next());
        let bytes: Option<Vec<u8>> = inner.split(", ").map(|number| number.parse().ok()).collect();
        // A list of texts: each is a list in a list.
        let within = before.is_empty() || before == ", ";
        let is_named = name.is_some_and(|name| !NUMBERS.contains(&name));
        let is_text = after.starts_with(']') && (is_named || within);
        if let Some(bytes) = bytes.filter(|_| is_text) {
            text.push_str(&shown_bytes(&bytes));
            rest = after.get(1..).unwrap_or_default();
        } else {
            text.push('[');
            rest = list;
        }
    }
    text.push_str(rest);
    text
}

fn shown_bytes(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let trimmed = bytes.get(..end).unwrap_or_default();
    let printable = |byte: &u8| byte.is_ascii_graphic() || b" \n\t".contains(byte) || *byte >= 0x80;
    match std::str::from_utf8(trimmed) {
        Ok(text) if !trimmed.is_empty() && trimmed.iter().all(printable) => format!("{text:?}"),
        _ if bytes.len() > SHOWN => format!("<{} bytes>", bytes.len()),
        _ => format!("{bytes:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_what_they_are() {
        for (words, expected) in [
            ("R { path: [47, 100, 101], n: 3 }", "R { path: \"/de\", n: 3 }"),
            ("name: [112, 101, 0, 0]", "name: \"pe\""),
            ("threads: [65, 66]", "threads: [65, 66]"),
            ("at: [1, 2, 300]", "at: [1, 2, 300]"),
            ("x: [1, 2]", "x: [1, 2]"),
            ("all: [[47, 97], [47, 98]]", "all: [\"/a\", \"/b\"]"),
            ("x: []", "x: []"),
            ("List([Value { value: [47] }])", "List([Value { value: \"/\" }])"),
            ("cut: [1, 2", "cut: [1, 2"),
        ] {
            assert_eq!(readable(words), expected);
        }
        let long = format!("x: {:?}", vec![0_u8; 40]);
        assert_eq!(readable(&long), "x: <40 bytes>");
    }

    #[test]
    fn every_record_has_a_name() {
        for tag in stored::known().iter().map(|known| known.tag) {
            let kind = resource::kind_with(tag).is_some() || task::kind_with(tag).is_some();
            assert!(kind || OWN.iter().any(|own| own.tag == tag), "{tag}");
        }
    }
}
