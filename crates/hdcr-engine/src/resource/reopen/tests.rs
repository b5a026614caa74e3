//! Files of this process, captured, changed, and made again.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use rustix::fs::MemfdFlags;

use super::*;
use crate::checkpoint::{FilePolicy, FileRequest};
use crate::error::Class;
use crate::resource::scene;
use crate::resource::{backing, directory, listed, touched};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// Not below `/tmp`, which is volatile.
    fn new() -> Self {
        Self { directory: tempfile::Builder::new().prefix("hdcr-files-").tempdir_in("/var/tmp").unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn journal(&self) -> PathBuf {
        self.path("journal")
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Names of files, those of the journal left out.
    fn names(&self) -> Vec<String> {
        let all = data::names(self.directory.path()).unwrap();
        all.into_iter().map(|name| String::from_utf8(name).unwrap()).filter(|name| name != "journal").collect()
    }
}

fn limit() -> FileRequest {
    FileRequest { limit: 1 << 20, ..FileRequest::default() }
}

fn open_with(path: &Path, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).unwrap()
}

fn link_of(file: impl AsFd) -> PathBuf {
    fs::read_link(data::door(file)).unwrap()
}

fn all_of(file: OwnedFd) -> String {
    let mut file = File::from(file);
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn code_of(error: &Error) -> &'static str {
    assert_eq!(error.class(), Class::Refused, "{error}");
    let Error::Refused(refusals) = error else { panic!("{error}") };
    refusals.0[0].code
}

#[test]
fn a_written_file_rolls_back_and_keeps_its_inode() {
    let place = Place::new();
    let path = place.write("data", "0123456789");
    let file = open_with(&path, OFlags::RDWR);
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(4)).unwrap();
    let twin = open_with(&path, OFlags::RDONLY);
    let (ids, image) = scene::capture(&[&file, &twin], limit(), |_| {});
    rustix::io::pwrite(&file, b"XXXXXXXXXXXXXXXXXX", 2).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let (again, twin) = (scene::make(&mut cx, ids[0]).unwrap(), scene::make(&mut cx, ids[1]).unwrap());
    assert!(place.text("data").contains("XX"), "nothing is written before the end");
    scene::finish(cx);
    assert_eq!(place.text("data"), "0123456789");
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(rustix::fs::tell(&again).unwrap(), 4);
    assert_eq!(rustix::fs::fcntl_getfl(&twin).unwrap() & OFlags::RWMODE, OFlags::RDONLY);
    assert_eq!(place.names(), ["data"]);
}

#[test]
fn what_another_file_holds_is_not_overwritten_without_a_copy() {
    let place = Place::new();
    let path = place.write("data", "0123456789");
    let file = open_with(&path, OFlags::RDWR);
    let (ids, image) = scene::capture(&[&file], limit(), |_| {});
    let back = |code: &str| {
        let mut cx = scene::restore(&image, &place.journal(), &[]);
        scene::make(&mut cx, ids[0]).unwrap();
        let notes: Vec<_> = cx.notes.iter().map(|note| (note.code, note.cause.clone())).collect();
        assert_eq!(notes.iter().map(|note| note.0).collect::<Vec<_>>(), [code]);
        scene::finish(cx);
        notes[0].1.rsplit(' ').next().unwrap().to_owned()
    };
    // The file itself lives on under another name: it goes back, and the other one is left alone.
    fs::rename(&path, place.path("moved")).unwrap();
    place.write("moved", "newer");
    place.write("data", "of another program");
    back("rollback-moved");
    assert_eq!((place.text("data").as_str(), place.text("moved").as_str()), ("of another program", "0123456789"));
    // It is gone: the other one gives way, and is kept.
    drop(file);
    fs::remove_file(place.path("moved")).unwrap();
    let kept = back("rollback-replaced");
    assert_eq!(place.text("data"), "0123456789");
    assert_eq!(fs::read_to_string(kept).unwrap(), "of another program");
}

#[test]
fn two_files_that_became_one_are_not_written_into_each_other() {
    let place = Place::new();
    let (data, log) = (place.write("data", "0123456789"), place.write("log", "one\n"));
    let files = [&open_with(&data, OFlags::RDWR), &open_with(&log, OFlags::RDWR)];
    let (ids, image) = scene::capture(&files, limit(), |_| {});
    fs::remove_file(&log).unwrap();
    fs::write(&data, "newer").unwrap();
    fs::hard_link(&data, &log).unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    scene::make(&mut cx, ids[0]).unwrap();
    assert!(scene::make(&mut cx, ids[1]).is_err_and(|error| code_of(&error) == "file-replaced"));
    drop(cx);
    assert_eq!(place.text("data"), "newer");
}

/// Too large to be kept: its length, its head and its tail are; of what lies between some blocks tell whether it changed.
#[test]
fn the_head_and_the_tail_of_a_large_file_come_back() {
    let place = Place::new();
    let path = place.write("wave", &"0123456789abcdef".repeat(64 << 10));
    let file = open_with(&path, OFlags::WRONLY);
    rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).unwrap();
    let request = FileRequest { limit: 64 << 10, ..FileRequest::default() };
    let (ids, image) = scene::capture(&[&file], request, |_| {});
    let before = fs::read(&path).unwrap();
    let write_over = |at: u64| {
        rustix::io::pwrite(&file, b"patched", at).unwrap();
        rustix::io::write(&file, b"more").unwrap();
    };
    for at in [5, (1 << 20) - 9] {
        write_over(at);
        let mut cx = scene::restore(&image, &place.journal(), &[]);
        let again = scene::make(&mut cx, ids[0]).unwrap();
        scene::finish(cx);
        assert!(fs::read(&path).unwrap() == before, "patched at {at}");
        assert_eq!(rustix::fs::tell(&again).unwrap(), 1 << 20);
    }
    // A restore that fails leaves the newer bytes.
    write_over(5);
    let newer = fs::read(&path).unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    scene::make(&mut cx, ids[0]).unwrap();
    cx.plan.prepare(cx.contents).unwrap();
    cx.plan.apply(cx.contents).unwrap();
    assert!(fs::read(&path).unwrap() == before);
    drop(cx);
    assert!(fs::read(&path).unwrap() == newer);
    // The whole file was written anew, by somebody else.
    fs::write(&path, "another".repeat(256 << 10)).unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    assert_eq!(code_of(&scene::make(&mut cx, ids[0]).unwrap_err()), "file-replaced");
    drop(cx);
    fs::remove_file(&path).unwrap();
    fs::write(&path, [b"patched", &before[7..]].concat()).unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    assert_eq!(code_of(&scene::make(&mut cx, ids[0]).unwrap_err()), "file-replaced");
}

#[test]
fn a_file_that_is_only_read_is_verified() {
    let place = Place::new();
    let path = place.write("input", "text");
    let file = open_with(&path, OFlags::RDONLY);
    let (ids, image) = scene::capture(&[&file], limit(), |_| {});
    let make = || {
        let mut cx = scene::restore(&image, &place.journal(), &[]);
        let made = scene::make(&mut cx, ids[0]);
        assert!(cx.plan.actions().is_empty());
        made
    };
    make().unwrap();
    place.write("input", "text");
    make().unwrap();
    place.write("input", "text and more");
    make().unwrap();
    place.write("input", "tExt");
    assert_eq!(code_of(&make().unwrap_err()), "file-changed");
    let ignore = FileRequest { policies: vec![(path, FilePolicy::Ignore)], ..limit() };
    let (ids, image) = scene::capture(&[&file], ignore, |_| {});
    place.write("input", "other");
    scene::make(&mut scene::restore(&image, &place.journal(), &[]), ids[0]).unwrap();
}

#[test]
fn a_removed_file_comes_back_removed_with_its_holes() {
    let place = Place::new();
    let path = place.path("gone");
    let file = open_with(&path, OFlags::RDWR | OFlags::CREATE);
    rustix::io::pwrite(&file, b"end", 50_000_000).unwrap();
    let reader = open_with(&path, OFlags::RDONLY);
    fs::remove_file(&path).unwrap();
    let link = link_of(&file);
    let (ids, image) = scene::capture(&[&file, &reader], limit(), |_| {});
    drop((file, reader));
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let (again, reader) = (scene::make(&mut cx, ids[0]).unwrap(), scene::make(&mut cx, ids[1]).unwrap());
    scene::finish(cx);
    assert_eq!(link_of(&again), link);
    let stat = rustix::fs::fstat(&again).unwrap();
    assert_eq!((stat.st_nlink, stat.st_size, stat.st_blocks < 100), (0, 50_000_003, true));
    rustix::io::pwrite(&again, b"END", 50_000_000).unwrap();
    let mut bytes = [0; 3];
    File::from(reader).read_exact_at(&mut bytes, 50_000_000).unwrap();
    assert_eq!(&bytes, b"END", "one inode");
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn files_without_a_name_and_with_another_name() {
    let place = Place::new();
    let nameless = open_with(place.directory.path(), OFlags::TMPFILE | OFlags::RDWR);
    rustix::io::write(&nameless, b"secret").unwrap();
    place.write("first", "linked");
    let linked = open_with(&place.path("first"), OFlags::RDWR);
    fs::rename(place.path("first"), place.path("second")).unwrap();
    fs::hard_link(place.path("second"), place.path("third")).unwrap();
    fs::remove_file(place.path("second")).unwrap();
    let (ids, image) = scene::capture(&[&nameless, &linked], limit(), |_| {});
    let before = rustix::fs::fcntl_getfl(&nameless).unwrap();
    let link = link_of(&linked);
    drop((nameless, linked));
    place.write("third", "LINKED and more");
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let nameless = scene::make(&mut cx, ids[0]).unwrap();
    let linked = scene::make(&mut cx, ids[1]).unwrap();
    scene::finish(cx);
    assert_eq!(rustix::fs::fcntl_getfl(&nameless).unwrap(), before);
    assert_eq!(rustix::fs::tell(&nameless).unwrap(), 6);
    rustix::fs::linkat(&nameless, "", CWD, place.path("now"), AtFlags::EMPTY_PATH).unwrap();
    assert_eq!(place.text("now"), "secret");
    assert_eq!(link_of(&linked), link);
    assert_eq!((place.text("third").as_str(), all_of(linked).as_str()), ("linked", "linked"));
}

#[test]
fn what_the_tree_wrote_and_lost_is_made_again_at_its_path() {
    let place = Place::new();
    let path = place.write("out", "half");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let file = open_with(&path, OFlags::RDWR);
    let (ids, image) = scene::capture(&[&file], limit(), |_| {});
    drop(file);
    fs::remove_file(&path).unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let again = scene::make(&mut cx, ids[0]).unwrap();
    assert!(!path.exists(), "its name comes last");
    drop(cx);
    assert_eq!(place.names(), Vec::<String>::new(), "a failed restore leaves nothing");
    drop(again);
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let again = scene::make(&mut cx, ids[0]).unwrap();
    scene::finish(cx);
    assert_eq!(link_of(&again), path);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert_eq!((place.text("out").as_str(), place.names().len()), ("half", 1));
}

#[test]
fn tmp_may_have_been_emptied() {
    let top = tempfile::tempdir().unwrap();
    let place = Place::new();
    let directory = top.path().join("a/b");
    fs::create_dir_all(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(directory.join("script"), "echo").unwrap();
    let file = open_with(&directory.join("script"), OFlags::RDONLY);
    let entries = open_with(&directory, OFlags::RDONLY | OFlags::DIRECTORY);
    let (ids, image) = scene::capture(&[&file, &entries], limit(), |_| {});
    fs::remove_dir_all(top.path().join("a")).unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let again = scene::make(&mut cx, ids[0]).unwrap();
    let entries = scene::make(&mut cx, ids[1]).unwrap();
    scene::finish(cx);
    assert_eq!(all_of(again), "echo");
    assert_eq!(link_of(&entries), directory);
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::read_to_string(directory.join("script")).unwrap(), "echo");
}

#[test]
fn a_program_that_was_replaced_runs_on_with_its_old_contents() {
    let place = Place::new();
    let path = place.write("program", "#! old");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let file = open_with(&path, OFlags::RDONLY);
    let mut program = ObjectId(0);
    let (_, image) = scene::capture(&[&file], limit(), |cx| {
        let stat = rustix::fs::fstat(&file).unwrap();
        let link = path.as_os_str().as_bytes();
        let met = contents::Met { link, stat: &stat, door: Some(data::door(&file)), owner: Owner::default() };
        program = contents::note(cx, &met, contents::Uses { program: true, read: true, ..Default::default() });
    });
    drop(file);
    fs::remove_file(&path).unwrap();
    place.write("program", "#! new");
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    backing::restore_path(&mut cx, program).unwrap();
    let opened = open_anew(&mut cx, program, OFlags::RDONLY).unwrap();
    assert_eq!(rustix::fs::fstat(&opened).unwrap().st_mode & 0o777, 0o755);
    assert_eq!(all_of(opened), "#! old");
    scene::finish(cx);
    assert_eq!((place.text("program").as_str(), place.names().len()), ("#! new", 1));
    // Without its permission to be executed.
    place.write("program", "#! old");
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    backing::restore_path(&mut cx, program).unwrap();
    assert_eq!(place.names(), ["program"]);
}

#[test]
fn memory_files_come_back() {
    let place = Place::new();
    let memfd = rustix::fs::memfd_create("a b", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::pwrite(&memfd, b"here", 1 << 30).unwrap();
    let seals = rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW | rustix::fs::SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    let mut anonymous = ObjectId(0);
    let shared = hdcr_sys::anonymous::shared(8192).ok();
    let (ids, image) = scene::capture(&[&memfd], limit(), |cx| {
        let Some(shared) = &shared else { return };
        rustix::io::pwrite(shared, b"there", 5000).unwrap();
        let stat = rustix::fs::fstat(shared).unwrap();
        let owner = Owner::default();
        let met = contents::Met { link: b"/dev/zero (deleted)", stat: &stat, door: Some(data::door(shared)), owner };
        anonymous = contents::note(cx, &met, contents::Uses { shared: true, ..Default::default() });
    });
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let again = scene::make(&mut cx, ids[0]).unwrap();
    assert_eq!(link_of(&again), link_of(&memfd));
    assert_eq!(rustix::fs::fcntl_get_seals(&again).unwrap(), seals);
    let mut bytes = [0; 4];
    File::from(again).read_exact_at(&mut bytes, 1 << 30).unwrap();
    assert_eq!(&bytes, b"here");
    if shared.is_some() {
        let file = File::from(open_anew(&mut cx, anonymous, OFlags::RDWR).unwrap());
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 5000).unwrap();
        assert_eq!((&bytes, file.metadata().unwrap().len()), (b"there", 8192));
        assert_eq!(link_of(&file), Path::new("/dev/zero (deleted)"));
    }
}

#[test]
fn a_file_with_another_name_is_as_it_was_when_the_restore_fails() {
    let place = Place::new();
    place.write("first", "at the checkpoint");
    let file = open_with(&place.path("first"), OFlags::RDWR);
    fs::rename(place.path("first"), place.path("second")).unwrap();
    let (ids, image) = scene::capture(&[&file], limit(), |_| {});
    place.write("second", "newer, and longer than before");
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    scene::make(&mut cx, ids[0]).unwrap();
    cx.plan.prepare(cx.contents).unwrap();
    cx.plan.apply(cx.contents).unwrap();
    assert_eq!(place.text("second"), "at the checkpoint");
    drop(cx);
    assert_eq!(place.text("second"), "newer, and longer than before");
}

#[test]
fn what_nobody_has_watched_is_not_cut_off_without_a_copy() {
    let place = Place::new();
    let path = place.write("log", "one\n");
    let files = FileRequest { touched: vec![path.clone()], limit: 0, ..FileRequest::default() };
    let (_, image) = scene::capture(&[], files, |cx| touched::note(cx, &cx.request.files.touched));
    place.write("log", "one\ntwo\n");
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    cx.unheld = true;
    touched::restore(&mut cx, None).unwrap();
    let kept = cx.notes.iter().find(|note| note.code == "rollback-cut").unwrap().cause.clone();
    scene::finish(cx);
    assert_eq!(place.text("log"), "one\n");
    assert_eq!(fs::read_to_string(kept.rsplit(' ').next().unwrap()).unwrap(), "two\n");
}

#[test]
fn named_files_are_saved_and_what_is_newer_is_moved_aside() {
    let place = Place::new();
    fs::create_dir(place.path("db")).unwrap();
    place.write("db/data", "old");
    place.write("db/gone", "old");
    let always = FileRequest { always: vec![place.path("db")], ..FileRequest::default() };
    let (_, image) = scene::capture(&[], always, |_| {});
    place.write("db/data", "new");
    place.write("db/data-journal", "hot");
    fs::remove_file(place.path("db/gone")).unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    listed::restore(&mut cx).unwrap();
    scene::finish(cx);
    assert_eq!((place.text("db/data").as_str(), place.text("db/gone").as_str()), ("old", "old"));
    let names = data::names(&place.path("db")).unwrap();
    assert!(!names.contains(&b"data-journal".to_vec()), "{names:?}");
    assert_eq!(names.len(), 3);
}

#[test]
fn a_journal_that_is_younger_than_its_database_is_moved_aside() {
    let place = Place::new();
    let path = place.write("db", "old");
    place.write("other", "old");
    place.write("other-wal", "old");
    let files = [&open_with(&path, OFlags::RDWR), &open_with(&place.path("other"), OFlags::RDWR)];
    let (ids, image) = scene::capture(&files, limit(), |_| {});
    place.write("db", "new");
    place.write("db-journal", "hot");
    place.write("other-wal", "new");
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    scene::make(&mut cx, ids[0]).unwrap();
    listed::restore(&mut cx).unwrap();
    scene::finish(cx);
    assert_eq!((place.text("db").as_str(), place.text("other-wal").as_str()), ("old", "old"));
    assert!(!place.path("db-journal").exists());
}

#[test]
fn directories_devices_and_links() {
    let place = Place::new();
    fs::create_dir(place.path("d")).unwrap();
    fs::create_dir(place.path("e")).unwrap();
    for name in ["1", "2", "3"] {
        place.write(&format!("d/{name}"), "");
    }
    std::os::unix::fs::symlink("nowhere", place.path("link")).unwrap();
    let entries = open_with(&place.path("d"), OFlags::RDONLY | OFlags::DIRECTORY);
    let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
    let mut reader = rustix::fs::RawDir::new(&entries, &mut buffer);
    let first = reader.next().unwrap().unwrap().file_name().to_owned();
    let position = rustix::fs::tell(&entries).unwrap();
    let removed = open_with(&place.path("e"), OFlags::PATH | OFlags::DIRECTORY);
    fs::remove_dir(place.path("e")).unwrap();
    let urandom = open_with(Path::new("/dev/urandom"), OFlags::RDONLY);
    let link = open_with(&place.path("link"), OFlags::PATH | OFlags::NOFOLLOW);
    let files = [&entries, &removed, &urandom, &link];
    let (ids, image) = scene::capture(&files, limit(), |_| {});
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let made: Vec<OwnedFd> = ids.iter().map(|id| scene::make(&mut cx, *id).unwrap()).collect();
    scene::finish(cx);
    let links = |files: &[&OwnedFd]| files.iter().map(link_of).collect::<Vec<_>>();
    assert_eq!(links(&made.iter().collect::<Vec<_>>()), links(&files));
    assert_eq!(rustix::fs::tell(&made[0]).unwrap(), position);
    let mut reader = rustix::fs::RawDir::new(&made[0], &mut buffer);
    assert_ne!(reader.next().unwrap().unwrap().file_name().to_owned(), first);
    assert_eq!(rustix::fs::fstat(&made[1]).unwrap().st_nlink, 0);
    assert_eq!(place.names(), ["d", "link"]);
}

#[test]
fn prefixes_are_mapped() {
    let (place, other) = (Place::new(), Place::new());
    let path = place.write("x", "text");
    let file = File::options().write(true).custom_flags(0).open(&path).unwrap();
    let (ids, image) = scene::capture(&[&file.into()], limit(), |_| {});
    other.write("x", "longer text").clone_into(&mut PathBuf::new());
    let map = [(place.directory.path().to_owned(), other.directory.path().to_owned())];
    let mut cx = scene::restore(&image, &place.journal(), &map);
    let mut again = File::from(scene::make(&mut cx, ids[0]).unwrap());
    scene::finish(cx);
    again.write_all(b"T").unwrap();
    assert_eq!((place.text("x").as_str(), other.text("x").as_str()), ("text", "Text"));
}

#[test]
fn the_working_directory_is_noted_once() {
    let place = Place::new();
    let mut ids = Vec::new();
    let (_, image) = scene::capture(&[], limit(), |cx| {
        for name in ["cwd", "root", "cwd"] {
            ids.push(backing::capture_path(cx, scene::own_pid(), name).unwrap());
        }
    });
    assert_eq!(ids[0], ids[2]);
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let number = directory::service(&mut cx, ids[1]).unwrap();
    assert_eq!(fs::read_link(format!("/proc/self/fd/{number}")).unwrap(), Path::new("/"));
}

/// Of 8192 open directories each was held twice, beyond the numbers that there are.
#[test]
fn an_open_directory_is_held_once() {
    let place = Place::new();
    let opened = || OwnedFd::from(File::open(place.directory.path()).unwrap());
    let (one, other) = (opened(), opened());
    let (ids, image) = scene::capture(&[&one, &other], limit(), |_| {});
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let directory = *stored::ids(cx.frames, directory::PlaceRecord::TAG).first().unwrap();
    let first = scene::make(&mut cx, ids[0]).unwrap();
    assert!(cx.parts.is_empty());
    let number = first.as_raw_fd();
    cx.made.insert(ids[0], first);
    let second = scene::make(&mut cx, ids[1]).unwrap();
    assert!(cx.parts.is_empty());
    assert_eq!(directory::service(&mut cx, directory).unwrap(), number);
    assert_eq!(rustix::fs::fstat(&second).unwrap().st_ino, rustix::fs::fstat(&one).unwrap().st_ino);
    drop(cx);
    // One whose number is known to somebody stays.
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let number = directory::service(&mut cx, directory).unwrap();
    scene::make(&mut cx, ids[0]).unwrap();
    assert_eq!(directory::service(&mut cx, directory).unwrap(), number);
}

mod logs;
