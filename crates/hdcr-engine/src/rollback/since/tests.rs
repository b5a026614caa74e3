//! Directories of files as a job left them, and as they were.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::checkpoint::FileRequest;
use crate::resource::scene::{self, Image};

struct Place(tempfile::TempDir);

impl Place {
    /// Not below `/tmp`, which is volatile.
    fn new(files: &[(&str, &str)]) -> Self {
        let place = Self(tempfile::Builder::new().prefix("hdcr-since-").tempdir_in("/var/tmp").unwrap());
        fs::create_dir(place.path("in")).unwrap();
        place.write(files);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path("in").join(name)
    }

    fn write(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
            fs::write(self.at(name), text).unwrap();
        }
    }

    fn identity(&self, name: &str) -> Identity {
        let handle = hdcr_sys::handle::of(reopen::look(&self.at(name)).unwrap());
        handle.map(|handle| [&handle.kind.to_ne_bytes(), handle.bytes.as_slice()].concat()).unwrap_or_default()
    }

    fn newer(&self, name: &str) -> Newer {
        Newer { at: self.at(name), directory: self.at(name).is_dir(), further: false, identity: self.identity(name) }
    }

    fn moved(&self, at: &str, home: &str) -> Moved {
        Moved { at: self.at(at), home: self.at(home), identity: self.identity(at) }
    }

    /// Every file with its text, in order.
    fn files(&self) -> String {
        let mut found = Vec::new();
        let mut todo = vec![self.path("in")];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let kind = path.symlink_metadata().unwrap().file_type();
                if kind.is_dir() {
                    todo.push(path);
                } else {
                    let name = path.strip_prefix(self.path("in")).unwrap().display().to_string();
                    let text = || fs::read_to_string(&path).unwrap();
                    let text = if kind.is_file() { text() } else { format!("{:?}", fs::read_link(&path)) };
                    found.push(format!("{name}={text}"));
                }
            }
        }
        found.sort();
        found.join(" ")
    }

    fn capture(&self, touched: &[&str]) -> Image {
        let touched = touched.iter().map(|name| self.at(name)).collect();
        scene::capture(&[], FileRequest { limit: 1000, touched, ..FileRequest::default() }, |_| {}).1
    }

    /// Restores; the codes of the notes.
    fn roll_back(&self, image: &Image, since: Option<&Since>) -> String {
        let before = self.files();
        let mut cx = self.restored(image, since);
        cx.plan.prepare(cx.contents).unwrap();
        cx.plan.apply(image).unwrap();
        // It fails at the very end: all is as it was.
        drop(cx);
        assert_eq!(self.files(), before);
        let mut cx = self.restored(image, since);
        let notes: Vec<&str> = std::mem::take(&mut cx.notes).iter().map(|note| note.code).collect();
        scene::finish(cx);
        notes.join(" ")
    }

    fn restored<'a>(&self, image: &'a Image, since: Option<&Since>) -> Restore<'a> {
        let mut cx = scene::restore(image, &self.path("journal"), &[]);
        if let Some(since) = since {
            names(&mut cx, &Since { shelter: self.at("."), ..since.clone() }).unwrap();
        }
        contents(&mut cx, since).unwrap();
        cx
    }
}

fn nothing() -> Since {
    Since { aside: ".hdcr-aside-job-1".into(), ..Since::default() }
}

#[test]
fn a_data_base_loses_its_stale_journal_and_gets_its_pages_back() {
    let place = Place::new(&[("db", "pages"), ("log", "one\n"), ("theirs", "1")]);
    let image = place.capture(&["db", "log", "theirs"]);
    place.write(&[("db", "half written"), ("db-journal", "hot"), ("log", "one\ntwo\n"), ("theirs", "2")]);
    let since =
        Since { newer: vec![place.newer("db-journal")], written: vec![place.at("db"), place.at("log")], ..nothing() };
    assert_eq!(place.roll_back(&image, Some(&since)), "rollback-aside");
    assert_eq!(place.files(), ".hdcr-aside-job-1/db-journal=hot db=pages log=one\n theirs=2");
    // Without a watch, whatever the tree has worked on comes back.
    place.write(&[("db", "x"), ("log", "one\ntwo\n")]);
    assert_eq!(place.roll_back(&image, None), "");
    assert_eq!(place.files(), ".hdcr-aside-job-1/db-journal=hot db=pages log=one\n theirs=1");
}

/// Further names of a file that was there go, those that are all the names of one go aside, and what was written under them
/// comes back, or is named.
#[test]
fn further_names_go_and_what_was_written_under_them_comes_back() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root finds files by their handles");
        return;
    }
    let place = Place::new(&[("own", "own"), ("data", "first"), ("bare", "bare")]);
    let image = place.capture(&["own", "data"]);
    for (from, to) in [("own", "lock"), ("data", "d/x"), ("data", "y"), ("bare", "z")] {
        fs::create_dir_all(place.at("d")).unwrap();
        fs::hard_link(place.at(from), place.at(to)).unwrap();
    }
    place.write(&[("y", "second"), ("bare", "other"), ("new", "new")]);
    fs::hard_link(place.at("new"), place.at("new.too")).unwrap();
    let further = |name: &str| Newer { further: true, ..place.newer(name) };
    let newer = vec![
        further("lock"),
        further("d/x"),
        further("y"),
        further("z"),
        place.newer("d"),
        further("new"),
        further("new.too"),
    ];
    let relinked = vec![(place.at("y"), place.identity("y")), (place.at("z"), place.identity("z"))];
    let since = Since { newer, relinked, ..nothing() };
    let mut codes: Vec<String> = place.roll_back(&image, Some(&since)).split(' ').map(str::to_owned).collect();
    codes.sort();
    assert_eq!(codes.concat(), format!("{}rollback-written", "rollback-aside".repeat(7)));
    assert_eq!(place.files(), ".hdcr-aside-job-1/new.too=new .hdcr-aside-job-1/new=new bare=other data=first own=own");
    let names = |name: &str| rustix::fs::stat(place.at(name)).unwrap().st_nlink;
    assert_eq!(["own", "data", "bare"].map(names), [1; 3]);
}

/// A program keeps the file of before under a second name, and renames the next one over the first.
#[test]
fn a_file_gets_its_second_names_back() {
    let place = Place::new(&[("state", "first"), ("other", "o")]);
    fs::hard_link(place.at("state"), place.at("old")).unwrap();
    fs::hard_link(place.at("other"), place.at("more")).unwrap();
    let image = place.capture(&["old", "state", "more", "other"]);
    place.write(&[("new", "second")]);
    fs::rename(place.at("new"), place.at("state")).unwrap();
    for name in ["other", "more"] {
        fs::remove_file(place.at(name)).unwrap();
    }
    let lost = ["more", "other", "state"].map(|name| place.at(name)).to_vec();
    let since = Since { newer: vec![place.newer("state")], lost, ..nothing() };
    assert_eq!(place.roll_back(&image, Some(&since)), "rollback-aside");
    assert_eq!(place.files(), ".hdcr-aside-job-1/state=second more=o old=first other=o state=first");
    assert_eq!(place.identity("state"), place.identity("old"));
}

#[test]
fn what_the_image_does_not_hold_is_cut_or_named() {
    let place = Place::new(&[("log", "one\n"), ("gone", "x"), ("over", "aa")]);
    let image = place.capture(&[]);
    place.write(&[("log", "one\ntwo\n"), ("over", "bb")]);
    fs::remove_file(place.at("gone")).unwrap();
    let length = |name: &str, size| Length { path: place.at(name), size, modified: (1_000_000_000, 0), kept: false };
    let since = Since {
        lost: vec![place.at("gone")],
        written: vec![place.at("log"), place.at("over"), place.at("temporary")],
        lengths: vec![length("log", 4), length("over", 2)],
        ..nothing()
    };
    assert_eq!(place.roll_back(&image, Some(&since)), "rollback-lost rollback-written rollback-written");
    assert_eq!(place.files(), "log=one\n over=bb");
}

#[test]
fn renamed_files_come_home_whatever_lies_there() {
    let place = Place::new(&[("a", "a"), ("b", "b"), ("log", "old"), ("d/x", "x")]);
    let image = place.capture(&["log", "d/x"]);
    let rename = |from: &str, to: &str| fs::rename(place.at(from), place.at(to)).unwrap();
    rename("a", "c");
    rename("b", "a");
    rename("c", "b");
    rename("log", "log.1");
    place.write(&[("log", "new"), ("log.1", "old and more"), ("n/1", "1")]);
    rename("d", "e");
    rename("e/x", "n/x");
    let since = Since {
        newer: vec![place.newer("n"), place.newer("log")],
        moved: vec![
            place.moved("a", "b"),
            place.moved("b", "a"),
            place.moved("log.1", "log"),
            place.moved("n/x", "d/x"),
            place.moved("e", "d"),
        ],
        written: vec![place.at("log")],
        ..nothing()
    };
    assert_eq!(place.roll_back(&image, Some(&since)), "rollback-aside rollback-aside");
    assert_eq!(place.files(), ".hdcr-aside-job-1/log=new .hdcr-aside-job-1/n/1=1 a=a b=b d/x=x log=old");
}

#[test]
fn what_was_exchanged_comes_home_with_all_that_is_in_it() {
    let place =
        Place::new(&[("a", "a"), ("b", "b"), ("c", "c"), ("f", "f"), ("d/x", "x"), ("d/y", "y"), ("e/x", "ex")]);
    let image = place.capture(&["a", "b", "d/x"]);
    let exchange = |one: &str, other: &str| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        let (one, other) = (place.at(one), place.at(other));
        rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags).unwrap();
    };
    exchange("a", "b");
    exchange("b", "c");
    exchange("d", "f");
    exchange("f", "e");
    fs::rename(place.at("f/x"), place.at("f/z")).unwrap();
    exchange("e/y", "e/x");
    place.write(&[("a", "bb"), ("e/y", "xx"), ("e/new", "n")]);
    let since = Since {
        newer: vec![place.newer("e/new")],
        moved: vec![
            place.moved("a", "b"),
            place.moved("b", "c"),
            place.moved("c", "a"),
            place.moved("d", "f"),
            place.moved("e", "d"),
            place.moved("f", "e"),
            place.moved("f/z", "e/x"),
            place.moved("e/x", "d/y"),
            place.moved("e/y", "d/x"),
        ],
        written: vec![place.at("b"), place.at("d/x")],
        ..nothing()
    };
    assert_eq!(place.roll_back(&image, Some(&since)), "rollback-aside");
    assert_eq!(place.files(), ".hdcr-aside-job-1/new=n a=a b=b c=c d/x=x d/y=y e/x=ex f=f");
}

#[test]
fn directories_come_home_whatever_was_made_in_them_and_where_they_were() {
    let place = Place::new(&[("d/x", "x"), ("d/s/y", "y"), ("g/z", "z"), ("h/w", "w")]);
    let image = place.capture(&["d/s/y"]);
    let rename = |from: &str, to: &str| fs::rename(place.at(from), place.at(to)).unwrap();
    rename("d", "e");
    fs::remove_dir_all(place.at("e/s")).unwrap();
    place.write(&[("d/n", "n"), ("e/m/n", "m"), ("h/n/o", "o")]);
    rename("e/x", "d/x");
    rename("g/z", "z");
    fs::remove_dir(place.at("g")).unwrap();
    rename("h", "g");
    let since = Since {
        newer: vec![place.newer("d"), place.newer("e/m"), place.newer("g/n")],
        moved: vec![place.moved("d/x", "d/x"), place.moved("e", "d"), place.moved("g", "h"), place.moved("z", "g/z")],
        directories: vec![place.at("d/s"), place.at("g")],
        lost: vec![place.at("d/s/y")],
        ..nothing()
    };
    let codes = place.roll_back(&image, Some(&since));
    assert_eq!(codes, "rollback-directory rollback-aside rollback-directory rollback-aside rollback-aside");
    let (aside, home) =
        (".hdcr-aside-job-1/d/n=n .hdcr-aside-job-1/m/n=m .hdcr-aside-job-1/n/o=o", "d/s/y=y d/x=x g/z=z h/w=w");
    assert_eq!(place.files(), format!("{aside} {home}"));
}

#[test]
fn removed_directories_are_made_again() {
    let place = Place::new(&[("d/e/x", "x"), ("d/y", "y")]);
    let image = place.capture(&["d/e/x"]);
    fs::remove_dir_all(place.at("d")).unwrap();
    let since = Since {
        directories: vec![place.at("d"), place.at("d/e")],
        lost: vec![place.at("d/e/x"), place.at("d/y")],
        ..nothing()
    };
    assert_eq!(place.roll_back(&image, Some(&since)), "rollback-directory rollback-directory rollback-lost");
    assert_eq!(place.files(), "d/e/x=x");
}

#[test]
fn a_file_of_somebody_else_is_never_moved() {
    let place = Place::new(&[("mine", "1"), ("old", "2"), ("shared", "3")]);
    let image = place.capture(&["shared"]);
    fs::rename(place.at("old"), place.at("new")).unwrap();
    let since = Since {
        newer: vec![place.newer("mine")],
        moved: vec![place.moved("new", "old")],
        written: vec![place.at("shared")],
        doubtful: vec![(place.at("shared"), "somebody else has worked on it too")],
        ..nothing()
    };
    for name in ["mine", "new"] {
        fs::write(place.at("other"), "theirs").unwrap();
        fs::rename(place.at("other"), place.at(name)).unwrap();
    }
    place.write(&[("shared", "both")]);
    assert_eq!(place.roll_back(&image, Some(&since)), "rollback-doubtful rollback-left rollback-left");
    assert_eq!(place.files(), "mine=theirs new=theirs shared=both");
}

fn changed_of(place: &Place, name: &str) -> Duration {
    let stat = rustix::fs::stat(place.at(name)).unwrap();
    changed((stat.st_ctime, stat.st_ctime_nsec))
}

/// A program that is killed with whoever watches it has replaced one of its new files in its last moment.
#[test]
fn what_was_put_in_the_place_of_a_new_file_in_the_last_moment_goes_with_it() {
    let place = Place::new(&[("old", "1")]);
    let image = place.capture(&["old"]);
    place.write(&[("new", "first")]);
    let newer = vec![place.newer("new")];
    place.write(&[("next", "second")]);
    fs::rename(place.at("next"), place.at("new")).unwrap();
    let changed = changed_of(&place, "new");
    let since = |heard| Since { newer: newer.clone(), incomplete: true, heard, ..nothing() };
    let left = since(changed.checked_sub(Duration::from_mins(1)));
    assert_eq!(place.roll_back(&image, Some(&left)), "rollback-incomplete rollback-left", "long after");
    assert_eq!(place.files(), "new=second old=1");
    assert_eq!(place.roll_back(&image, Some(&since(None))), "rollback-incomplete rollback-left");
    let heard = since(changed.checked_sub(Duration::from_millis(1)));
    assert_eq!(place.roll_back(&image, Some(&heard)), "rollback-incomplete rollback-aside");
    assert_eq!(place.files(), ".hdcr-aside-job-1/new=second old=1");
}

#[test]
fn what_may_be_of_the_last_moment_is_named() {
    let place = Place::new(&[("old", "1"), ("held", "2"), ("before", "3")]);
    let image = place.capture(&["old"]);
    place.write(&[("new", "first"), ("unheard", "x"), (".new.hdcr-new-6", "y"), ("held", "4")]);
    let changed = changed_of(&place, "unheard");
    let since = |heard| Since {
        newer: vec![place.newer("new")],
        written: vec![place.at("held")],
        incomplete: true,
        heard,
        ..nothing()
    };
    let told = |heard| {
        let mut cx = place.restored(&image, Some(&since(heard)));
        let notes = std::mem::take(&mut cx.notes);
        let paths = notes.into_iter().filter(|note| note.code == "rollback-unheard").filter_map(|note| note.owner.path);
        paths.collect::<Vec<_>>()
    };
    let mut unheard = told(Some(changed));
    // Whatever lies there since that moment, it was not there long before.
    unheard.retain(|path| *path != place.at("before"));
    assert_eq!(unheard, [place.at("unheard")]);
    assert!(told(changed.checked_sub(Duration::from_mins(1))).is_empty(), "long after");
    assert!(told(changed.checked_add(Duration::from_mins(1))).is_empty(), "long before");
    assert!(told(None).is_empty());
}

/// Two names of one file, of which one goes: it is the same file again, whichever it was, also after both were made anew.
#[test]
fn names_of_a_file_are_of_one_file_again() {
    for gone in ["one", "two"] {
        let place = Place::new(&[("one", "text")]);
        fs::hard_link(place.at("one"), place.at("two")).unwrap();
        let image = place.capture(&["one", "two"]);
        let identity = place.identity("one");
        let without = |names: &[&str]| Since { lost: names.iter().map(|name| place.at(name)).collect(), ..nothing() };
        let is_right = |round: &str| {
            assert_eq!(place.files(), "one=text two=text", "{gone}, {round}");
            assert_eq!(place.identity("one"), place.identity("two"), "{gone}, {round}");
        };
        fs::remove_file(place.at(gone)).unwrap();
        assert_eq!(place.roll_back(&image, Some(&without(&[gone]))), "", "{gone}");
        is_right("one removed");
        assert_eq!(place.identity("one"), identity, "the one that stayed");
        for name in ["one", "two"] {
            fs::remove_file(place.at(name)).unwrap();
        }
        assert_eq!(place.roll_back(&image, Some(&without(&["one", "two"]))), "");
        is_right("both removed");
        fs::remove_file(place.at(gone)).unwrap();
        assert_eq!(place.roll_back(&image, Some(&without(&[gone]))), "", "{gone}, once more");
        is_right("one removed once more");
        // Another one in its place.
        place.write(&[("new", "newer")]);
        fs::rename(place.at("new"), place.at(gone)).unwrap();
        let replaced = Since { newer: vec![place.newer(gone)], ..without(&[gone]) };
        assert_eq!(place.roll_back(&image, Some(&replaced)), "rollback-aside");
        fs::remove_dir_all(place.at(".hdcr-aside-job-1")).unwrap();
        is_right("one replaced");
    }
}

#[test]
fn what_was_written_under_a_second_name_goes_back() {
    for written in ["one", "two"] {
        let place = Place::new(&[("one", "text")]);
        fs::hard_link(place.at("one"), place.at("two")).unwrap();
        let image = place.capture(&["one", "two"]);
        place.write(&[(written, "other")]);
        let since = Since { written: vec![place.at(written)], ..nothing() };
        assert_eq!(place.roll_back(&image, Some(&since)), "");
        assert_eq!(place.files(), "one=text two=text", "{written}");
        assert_eq!(place.identity("one"), place.identity("two"));
    }
}

/// `ln -sfn`, and links that are removed with all that is around them.
#[test]
fn symbolic_links_and_fifos_come_back() {
    let place = Place::new(&[("one", "1"), ("two", "2")]);
    let link = |target: &str, name: &str| symlink(target, place.at(name)).unwrap();
    fs::create_dir(place.at("d")).unwrap();
    link("one", "latest");
    link("gone", "dangling");
    link("../x", "d/removed");
    rustix::fs::mknodat(rustix::fs::CWD, place.at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::set_permissions(place.at("fifo"), fs::Permissions::from_mode(0o622)).unwrap();
    let image = place.capture(&["latest", "dangling", "d/removed", "fifo", "one"]);
    link("two", "new");
    fs::rename(place.at("new"), place.at("latest")).unwrap();
    for name in ["dangling", "d/removed", "fifo"] {
        fs::remove_file(place.at(name)).unwrap();
    }
    fs::remove_dir(place.at("d")).unwrap();
    let lost = ["latest", "dangling", "d/removed", "fifo"].map(|name| place.at(name)).to_vec();
    let directories = vec![place.at("d")];
    let since = Since { newer: vec![place.newer("latest")], lost, directories, ..nothing() };
    let leads = |name: &str| fs::read_link(place.at(name)).unwrap().display().to_string();
    assert_eq!(place.roll_back(&image, Some(&since)), "rollback-aside rollback-directory");
    assert_eq!(["latest", "dangling", "d/removed"].map(leads), ["one", "gone", "../x"]);
    assert_eq!(leads(".hdcr-aside-job-1/latest"), "two");
    let fifo = rustix::fs::lstat(place.at("fifo")).unwrap();
    assert_eq!((FileType::from_raw_mode(fifo.st_mode), fifo.st_mode & 0o7777), (FileType::Fifo, 0o622));
    // Without a watch, too; what is not a name alone stays.
    fs::remove_file(place.at("latest")).unwrap();
    link("two", "latest");
    fs::remove_file(place.at("dangling")).unwrap();
    place.write(&[("dangling", "text")]);
    assert_eq!(place.roll_back(&image, None), "rollback-left");
    assert_eq!((leads("latest"), fs::read_to_string(place.at("dangling")).unwrap()), ("one".into(), "text".into()));
}

/// Below what the user named, whoever has changed them.
#[test]
fn named_links_come_back() {
    let place = Place::new(&[("d/one", "1")]);
    symlink("one", place.at("d/latest")).unwrap();
    let files = FileRequest { limit: 1000, always: vec![place.at("d")], ..FileRequest::default() };
    let image = scene::capture(&[], files, |_| {}).1;
    fs::remove_file(place.at("d/latest")).unwrap();
    assert_eq!(place.roll_back(&image, Some(&nothing())), "");
    assert_eq!(fs::read_link(place.at("d/latest")).unwrap(), Path::new("one"));
}
