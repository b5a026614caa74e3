//! Files that are written at their ends, cut, removed, renamed and begun anew.

use super::*;

#[test]
fn a_log_is_cut_back_and_another_file_gives_way() {
    let place = Place::new();
    let path = place.write("log", "one\n");
    let file = open_with(&path, OFlags::WRONLY | OFlags::APPEND);
    let (ids, image) = scene::capture(&[&file], limit(), |_| {});
    rustix::io::write(&file, b"two\n").unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let again = scene::make(&mut cx, ids[0]).unwrap();
    assert_eq!(link_of(&again), path);
    scene::finish(cx);
    assert_eq!(place.text("log"), "one\n");
    // Rotated: the old inode is found under its new name.
    rustix::io::write(&file, b"two\n").unwrap();
    fs::rename(&path, place.path("log.1")).unwrap();
    place.write("log", "other\n");
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let again = scene::make(&mut cx, ids[0]).unwrap();
    assert_eq!(link_of(&again), place.path("log.1"));
    scene::finish(cx);
    assert_eq!((place.text("log.1").as_str(), place.text("log").as_str()), ("one\n", "other\n"));
    fs::remove_file(place.path("log.1")).unwrap();
    drop((file, again));
    for (now, told) in [(Some("other\n"), "rollback-replaced"), (Some("o"), "rollback-replaced"), (None, "")] {
        match now {
            Some(text) => drop(place.write("log", text)),
            None => fs::remove_file(&path).unwrap(),
        }
        let mut cx = scene::restore(&image, &place.journal(), &[]);
        scene::make(&mut cx, ids[0]).unwrap();
        assert_eq!(cx.notes.first().map_or("", |note| note.code), told);
        scene::finish(cx);
        assert_eq!(place.text("log"), "one\n");
    }
}

/// What an image holds of it is its length: who only writes it goes on, who reads it or writes it in place does not.
#[test]
fn a_log_that_no_image_holds_is_begun_anew() {
    let place = Place::new();
    let path = place.path("log");
    let none = || FileRequest { limit: 0, ..FileRequest::default() };
    for (flags, goes_on) in [
        (OFlags::WRONLY | OFlags::APPEND, ["other\n", "o", ""].as_slice()),
        (OFlags::WRONLY, &[""]),
        (OFlags::RDWR | OFlags::APPEND, &[]),
        (OFlags::RDWR, &[]),
    ] {
        for (now, code) in [("other\n", "file-replaced"), ("o", "file-shorter"), ("", "file-missing")] {
            place.write("log", "one\n");
            let file = open_with(&path, flags);
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).unwrap();
            // In place, and larger than the limit: it is not what is asked for here.
            let files = FileRequest { policies: vec![(path.clone(), FilePolicy::Truncate)], ..none() };
            let (ids, image) = scene::capture(&[&file], files, |_| {});
            drop(file);
            fs::remove_file(&path).unwrap();
            if !now.is_empty() {
                place.write("log", now);
            }
            let obstacles = obstacles(image.frames(), &[], &[]).unwrap();
            let mut cx = scene::restore(&image, &place.journal(), &[]);
            let made = scene::make(&mut cx, ids[0]);
            if !goes_on.contains(&now) {
                assert_eq!((code_of(&made.unwrap_err()), obstacles.len()), (code, 1), "{flags:?} {now:?}");
                continue;
            }
            assert_eq!((cx.notes[0].code, obstacles.len()), ("rollback-lost", 0), "{flags:?} {now:?}");
            scene::finish(cx);
            // As is done for all open files in the end.
            let made = made.unwrap();
            rustix::fs::fcntl_setfl(&made, flags & OFlags::APPEND).unwrap();
            rustix::io::write(&made, b"two\n").unwrap();
            // Its head is in the image of what may be written anywhere.
            let at = if flags.contains(OFlags::APPEND) { now.to_owned() } else { "one\n".to_owned() };
            assert_eq!(place.text("log"), at + "two\n");
        }
    }
    // Cut while it is open.
    place.write("log", "one\n");
    let file = open_with(&path, OFlags::WRONLY);
    let files = FileRequest { policies: vec![(path.clone(), FilePolicy::Truncate)], ..none() };
    let (ids, image) = scene::capture(&[&file], files, |_| {});
    file.try_clone().map(File::from).unwrap().set_len(1).unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    scene::make(&mut cx, ids[0]).unwrap();
    assert_eq!(cx.notes[0].code, "rollback-lost");
    scene::finish(cx);
    assert_eq!(place.text("log"), "o");
}

/// What somebody else has written into a log since it was cut is not lost when the log gets what it held.
#[test]
fn lines_of_others_in_a_log_that_was_cut_are_kept() {
    let place = Place::new();
    let path = place.write("log", "one\n");
    let file = open_with(&path, OFlags::WRONLY | OFlags::APPEND);
    let (ids, image) = scene::capture(&[&file], limit(), |_| {});
    for theirs in ["x\n", "of somebody else\n"] {
        fs::write(&path, theirs).unwrap();
        let mut cx = scene::restore(&image, &place.journal(), &[]);
        scene::make(&mut cx, ids[0]).unwrap();
        let [note] = cx.notes.as_slice() else { panic!("{:?}", cx.notes) };
        let kept = PathBuf::from(note.cause.rsplit(' ').next().unwrap());
        assert_eq!(note.code, "rollback-cut");
        scene::finish(cx);
        assert_eq!((place.text("log").as_str(), fs::read_to_string(kept).unwrap().as_str()), ("one\n", theirs));
    }
}

/// One that was only renamed is the program's still, also when nothing lies where it was.
#[test]
fn a_log_that_was_renamed_goes_on_where_it_is() {
    let place = Place::new();
    let path = place.write("log", "one\n");
    let file = open_with(&path, OFlags::WRONLY | OFlags::APPEND);
    let (ids, image) = scene::capture(&[&file], limit(), |_| {});
    rustix::io::write(&file, b"two\n").unwrap();
    fs::rename(&path, place.path("log.1")).unwrap();
    let mut cx = scene::restore(&image, &place.journal(), &[]);
    let again = scene::make(&mut cx, ids[0]).unwrap();
    assert_eq!(link_of(&again), place.path("log.1"));
    scene::finish(cx);
    assert_eq!((place.text("log.1").as_str(), place.names()), ("one\n", vec!["log.1".to_owned()]));
}

/// Read behind the stop: what was written over in between is seen, what was only added does not matter.
#[test]
fn what_a_log_held_is_read_when_the_program_runs_again() {
    let place = Place::new();
    let path = place.write("log", &"one\n".repeat(100_000));
    let file = open_with(&path, OFlags::WRONLY | OFlags::APPEND);
    let other = open_with(&path, OFlags::WRONLY);
    for (at, text, kept) in [(400_000, "two\n", true), (200_000, "XXXX", false), (0, "XXXX", false)] {
        place.write("log", &"one\n".repeat(100_000));
        let (ids, image) = scene::capture_then(
            &[&file],
            limit(),
            |_| {},
            || {
                rustix::io::pwrite(&other, text.as_bytes(), at).unwrap();
            },
        );
        let record = stored::one::<crate::resource::regfile::RegFileRecord>(image.frames(), ids[0]).unwrap();
        let inode = stored::ids(image.frames(), InodeRecord::TAG).into_iter().find(|id| record.leads_to(*id)).unwrap();
        assert_eq!(record_of(image.frames(), inode).unwrap().contents, kept, "{at}");
    }
}
