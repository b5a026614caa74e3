//! What a job did, in one line, and what a rollback has to do about it.

use super::*;

fn id(text: &str) -> Identity {
    text.as_bytes().to_vec()
}

fn look(size: u64, changed: u64) -> Look {
    Look { size, modified: Duration::from_secs(changed), changed: Duration::from_secs(changed) }
}

/// Words: `f<>g` exchanged, `+f` created, `+d/` a directory, `-f`, `~f` written, `f>g` renamed (`f>>g` over something, `f>?g` not known),
/// `of` seen unchanged, `!f` somebody else, `*` events lost. The checkpoint is at second 100.
fn tell(table: &mut Table, story: &str) {
    for word in story.split_whitespace() {
        let path = |text: &str| Path::new("/").join(text.trim_end_matches('/'));
        let kind = |text: &str| if text.ends_with('/') { Kind::Directory } else { Kind::File };
        let side = |text: &str| Side { path: path(text), kind: kind(text), identity: id("i") };
        let event = if let Some((one, other)) = word.split_once("<>") {
            Event::Exchanged(side(one), side(other))
        } else if let Some((from, to)) = word.split_once('>') {
            let (to, replaced) = match to.split_at(1) {
                (">", to) => (to, Replaced::Yes),
                ("?", to) => (to, Replaced::Unknown),
                _ => (to, Replaced::No),
            };
            Event::Renamed { from: path(from), to: path(to), kind: kind(from), replaced, identity: id("i") }
        } else {
            let (verb, name) = word.split_at(1);
            match verb {
                "+" => Event::Created(path(name), kind(name), id("i")),
                "-" => Event::Removed(path(name), kind(name)),
                "~" => Event::Written(path(name), Some(look(9, 200))),
                "=" => Event::Written(path(name), Some(look(5, 50))),
                "o" => Event::Seen(path(name), look(5, 50)),
                "!" => Event::Foreign(path(name)),
                "^" => Event::ForeignGone(path(name)),
                "u" => Event::Unsure(path(name)),
                _ => Event::Lost,
            }
        };
        table.tell(&event);
    }
}

fn words(changes: &Changes) -> String {
    let name = |path: &Path| path.strip_prefix("/").unwrap().display().to_string();
    let mut words = Vec::new();
    words.extend(changes.new.iter().map(|new| format!("aside {}", name(&new.at))));
    words.extend(changes.moved.iter().map(|moved| format!("{}>{}", name(&moved.at), name(&moved.home))));
    words.extend(changes.directories.iter().map(|path| format!("mkdir {}", name(path))));
    words.extend(changes.lost.iter().map(|path| format!("lost {}", name(path))));
    words.extend(changes.written.iter().map(|path| format!("written {}", name(path))));
    words.extend(changes.lengths.iter().map(|length| format!("{}={}", name(&length.path), length.size)));
    words.extend(changes.doubtful.iter().map(|(path, doubt)| format!("{doubt:?} {}", name(path))));
    words.extend(changes.incomplete.then(|| "incomplete".to_owned()));
    words.join(", ")
}

fn check(story: &str, expected: &str) {
    let mut table = Table::default();
    table.mark(1, Duration::from_secs(100));
    tell(&mut table, story);
    assert_eq!(words(&table.since(1).unwrap()), expected, "{story}");
}

#[test]
fn what_is_made_goes_and_what_is_written_is_named() {
    check("", "");
    check("+a ~a", "aside a");
    check("+a ~a -a", "");
    check("~a", "written a");
    check("=a", "");
    check("oa ~a", "written a, a=5");
    check("~a oa", "written a, a=5");
    check("~a -a", "lost a");
    check("-a", "lost a");
    check("-a +a ~a", "aside a, lost a");
    check("-a +a -a", "lost a");
    check("+a *", "aside a, incomplete");
}

#[test]
fn renamed_files_come_home() {
    check("a>b", "b>a");
    check("a>b b>c ~c", "c>a, written a");
    check("a>b b>a", "");
    check("+t ~t t>a", "aside a");
    check("+t ~t t>>a", "aside a, lost a");
    check("+t ~t t>?a", "Replaced a");
    check("~a +t t>?a", "aside a, lost a");
    check("a>b +a ~a", "aside a, b>a");
    check("b>c a>b +a", "aside a, b>a, c>b");
    check("a>>b", "b>a, lost b");
    check("a>b -b", "lost a");
}

/// Whoever says of a rename that it has replaced nothing may be wrong.
#[test]
fn a_file_that_was_worked_on_is_replaced_whatever_is_said() {
    let mut table = Table::default();
    tell(&mut table, "+a ~a +b -b");
    table.mark(1, Duration::from_secs(100));
    tell(&mut table, "+t t>a +t t>b");
    assert_eq!(words(&table.since(1).unwrap()), "aside a, aside b, lost a");
    check("a>b c>a", "a>c, b>a");
}

#[test]
fn directories_carry_what_is_in_them() {
    check("+d/ +d/x ~d/x", "aside d");
    check("d/>e ~e/x", "e>d, written d/x");
    check("~d/x d/>e", "e>d, written d/x");
    check("+d/x d/>e +e/y", "aside e/x, aside e/y, e>d");
    check("-d/x -d/", "mkdir d, lost d/x");
    check("a>d/a +d/b d/>e/", "aside e/b, e>d, e/a>a");
    check("+d/ a>d/a", "aside d, d/a>a");
    check("d/>e +d/ e/x>d/x", "aside d, d/x>d/x, e>d");
    check("d/>e +d/ e/x>d/x d/x>e/x", "aside d, e>d");
    check("d/>e e/x>x x>e/x e/>d", "");
}

#[test]
fn what_is_exchanged_comes_home() {
    check("a<>b", "a>b, b>a");
    check("a<>b b<>a", "");
    check("a<>b b<>c", "a>b, b>c, c>a");
    check("a<>b ~a", "a>b, b>a, written b");
    check("+t ~t t<>a", "aside a, t>a");
    check("+t ~t t<>a -t", "aside a, lost a");
    check("+t t<>a t<>a", "aside t");
    check("a<>b -b", "a>b, lost a");
    check("a<>b a>c", "b>a, c>b");
    check("a>t b>a c>b t>c", "a>b, b>c, c>a");
    check("d/<>f ~f/x +f/new", "aside f/new, d>f, f>d, written d/x");
    check("d/<>e/ ~d/x d/x>y", "d>e, e>d, y>e/x, written e/x");
    check("+d/new e/x>e/y d/<>e/", "aside e/new, d>e, d/y>e/x, e>d");
    check("+d/new e/x>e/y d/<>e/ d/<>e/", "aside d/new, e/y>e/x");
    check("+n/ +n/x n/<>d/", "aside d, n>d");
}

#[test]
fn what_is_exchanged_is_known_by_its_name() {
    let mut table = Table::default();
    tell(&mut table, "~a ~d/x +e/ +e/y d/<>a");
    assert_eq!(table.touched(), ["/d", "/e/y", "/a/x"].map(Path::new));
    tell(&mut table, "a/<>e/");
    assert_eq!(table.touched(), ["/d", "/a/y", "/e/x"].map(Path::new));
}

#[test]
fn what_others_touch_is_left_alone() {
    check("!a", "");
    check("+a !a", "Foreign a");
    check("~a !a", "Foreign a");
    check("!a ~a", "written a");
    check("-a !a", "lost a, Foreign a");
    check("+a ^a", "Foreign a");
    check("!a ^a", "");
    // What somebody else puts into a directory of the job is not moved away with it.
    check("+d/ +d/a", "aside d");
    check("+d/ +d/a !d/theirs", "aside d/a, Foreign d/theirs, Foreign d");
    check("+d/ +d/a !d/theirs ^d/theirs", "aside d");
    check("+d/ +d/e/ +d/f/ +d/f/a !d/e/theirs", "aside d/f, Foreign d/e/theirs, Foreign d, Foreign d/e");
    check("+d/ !d/theirs d/>e/", "Foreign e/theirs, Foreign e");
    check("+d/ +d/a !d/a", "Foreign d/a, Foreign d");
    check("+d/ ud/any", "aside d");
    check("+d/ +d/a ud/a", "Foreign d/a, Foreign d");
    check("+a ua", "Foreign a");
}

#[test]
fn each_checkpoint_counts_by_itself_and_a_rollback_rewinds_the_older_ones() {
    let mut table = Table::default();
    table.mark(1, Duration::from_secs(100));
    tell(&mut table, "+a ~log");
    table.mark(2, Duration::from_secs(100));
    tell(&mut table, "+b a>c");
    assert_eq!(words(&table.since(1).unwrap()), "aside b, aside c, written log");
    assert_eq!(words(&table.since(2).unwrap()), "aside b, c>a");
    assert_eq!(table.since(3), None);
    assert_eq!(table.touched(), [Path::new("/c"), Path::new("/b"), Path::new("/log")]);
    table.roll_back(2);
    assert_eq!(words(&table.since(2).unwrap()), "");
    assert_eq!(words(&table.since(1).unwrap()), "aside a, written log");
    assert_eq!(table.touched(), [Path::new("/log"), Path::new("/a")]);
    table.keep(&[2]);
    assert_eq!(table.since(1), None);
    assert!(table.knows(Path::new("/log")) && !table.knows(Path::new("/x")));
}

/// A look that found nothing says nothing: of a removal or a rename is heard.
#[test]
fn what_was_written_and_not_seen_is_there_until_its_removal_is_told() {
    let mut table = Table::default();
    table.mark(1, Duration::from_secs(100));
    let path = |name: &str| PathBuf::from(name);
    table.tell(&Event::Created(path("/d"), Kind::Directory, vec![1]));
    table.tell(&Event::Created(path("/d/c"), Kind::File, vec![2]));
    table.tell(&Event::Written(path("/d/c"), None));
    let (from, to, kind, replaced) = (path("/d"), path("/e"), Kind::Directory, Replaced::No);
    table.tell(&Event::Renamed { from, to, kind, replaced, identity: vec![1] });
    assert_eq!(table.touched(), [path("/e/c")]);
    table.tell(&Event::Removed(path("/e/c"), Kind::File));
    table.tell(&Event::Written(path("/e/c"), None));
    assert_eq!(table.touched(), Vec::<PathBuf>::new());
}

#[test]
fn what_a_rollback_has_made_anew_is_of_the_job_for_older_checkpoints() {
    let mut table = Table::default();
    let made = |name: &str, identity: u8| Event::Created(PathBuf::from(name), Kind::File, vec![identity]);
    table.mark(1, Duration::from_secs(100));
    table.tell(&made("/a", 1));
    table.mark(2, Duration::from_secs(100));
    table.tell(&Event::Removed(PathBuf::from("/a"), Kind::File));
    table.roll_back(2);
    table.placed(&[(PathBuf::from("/a"), vec![7])]);
    for _ in 0..2 {
        let new = table.since(1).unwrap().new;
        assert_eq!(new, [New { at: PathBuf::from("/a"), kind: Kind::File, identity: vec![7], further: false }]);
        table.roll_back(2);
    }
}

/// It was made after the first checkpoint, renamed after the second, and replaced after the third. A roll-back to the third
/// makes it anew, one to the second takes it back to its first name, and for the first it is new there, and still the same.
#[test]
fn what_a_rollback_has_made_anew_is_known_under_its_earlier_names() {
    let mut table = Table::default();
    let path = |name: &str| PathBuf::from(name);
    let made = |name: &str, identity: u8| Event::Created(path(name), Kind::File, vec![identity]);
    let renamed = |from: &str, to: &str, identity: u8, replaced| Event::Renamed {
        from: path(from),
        to: path(to),
        kind: Kind::File,
        replaced,
        identity: vec![identity],
    };
    table.mark(1, Duration::from_secs(100));
    table.tell(&made("/c", 1));
    table.mark(2, Duration::from_secs(100));
    table.tell(&renamed("/c", "/g", 1, Replaced::No));
    table.tell(&made("/c", 2));
    table.mark(3, Duration::from_secs(100));
    table.tell(&made("/g.tmp", 3));
    table.tell(&renamed("/g.tmp", "/g", 3, Replaced::Yes));
    assert_eq!(table.since(3).unwrap().lost, [path("/g")]);
    table.roll_back(3);
    table.placed(&[(path("/g"), vec![7])]);
    let moved = table.since(2).unwrap().moved;
    assert_eq!(moved, [Moved { at: path("/g"), home: path("/c"), identity: vec![7] }]);
    table.roll_back(2);
    table.placed(&[]);
    let new = table.since(1).unwrap().new;
    assert_eq!(new, [New { at: path("/c"), kind: Kind::File, identity: vec![7], further: false }]);
}

/// A file of the checkpoint that is written under a name that it has got since is a changed one, whatever becomes of that name.
#[test]
fn what_is_written_under_a_further_name_is_told() {
    let path = |name: &str| PathBuf::from(name);
    let told = |last: &[Event]| {
        let mut table = Table::default();
        table.mark(1, Duration::from_secs(100));
        table.tell(&Event::Created(path("/made"), Kind::File, vec![8]));
        for (name, identity) in [("/d/x", 7), ("/d/read", 6), ("/d/made", 8)] {
            table.tell(&Event::Linked(path(name), vec![identity]));
        }
        for event in [Event::Written(path("/d/made"), Some(look(9, 200))), Event::Written(path("/d/x"), None)] {
            table.tell(&event);
        }
        for event in last {
            table.tell(event);
        }
        let twin = Table::of(table.past().collect(), table.touched(), table.gone());
        let changes = table.since(1).unwrap();
        assert_eq!(twin.since(1).as_ref(), Some(&changes));
        assert_eq!(changes.relinked, [(path("/d/x"), vec![7])], "{last:?}");
        changes.new.iter().map(|new| (new.at.display().to_string(), new.further)).collect::<Vec<_>>()
    };
    let new = |name: &str, further| (name.to_owned(), further);
    let is = [new("/d/made", false), new("/d/read", true), new("/d/x", true), new("/made", false)];
    assert_eq!(told(&[]), is);
    assert_eq!(told(&[Event::Removed(path("/d/x"), Kind::File)]), [is[0].clone(), is[1].clone(), is[3].clone()]);
    let renamed = Event::Renamed {
        from: path("/d"),
        to: path("/e"),
        kind: Kind::Directory,
        replaced: Replaced::No,
        identity: vec![5],
    };
    assert_eq!(told(&[renamed]).last(), Some(&new("/made", false)));
}

/// Further names in a new directory are not taken along by it.
#[test]
fn further_names_in_a_new_directory_are_told() {
    let mut table = Table::default();
    table.mark(1, Duration::from_secs(100));
    table.tell(&Event::Created(PathBuf::from("/d"), Kind::Directory, vec![1]));
    table.tell(&Event::Linked(PathBuf::from("/d/x"), vec![7]));
    assert_eq!(words(&table.since(1).unwrap()), "aside d/x, aside d");
}

#[test]
fn a_directory_that_was_replaced_comes_back() {
    check("n/>>spool/", "spool>n, mkdir spool");
    check("+n/ +n/x n/>>spool/", "aside spool, mkdir spool");
    check("n/>>spool/ spool/x>spool/y", "spool>n, spool/y>n/x, mkdir spool");
}

#[test]
fn what_is_gone_again_is_forgotten() {
    let mut table = Table::default();
    table.mark(1, Duration::from_secs(100));
    tell(&mut table, "~kept");
    let names = |table: &Table| {
        let marks = table.marks.iter().map(|mark| mark.then.names());
        table.known.names() + marks.sum::<usize>()
    };
    let before = names(&table);
    for number in 0..5000_u64 {
        tell(
            &mut table,
            &format!(
                "+t{number} ~t{number} -t{number} +d{number}/ +d{number}/x d{number}/>e{number}/ -e{number}/x -e{number}/"
            ),
        );
        if number % 100 == 0 {
            // One lives on over a checkpoint, of which every other one counts.
            tell(&mut table, "+over");
            table.mark(number + 2, Duration::from_secs(100));
            tell(&mut table, "-over");
            table.keep(&[1, number + 2]);
        }
    }
    assert!(names(&table) < before + 4, "{} names", names(&table));
    assert_eq!(words(&table.since(1).unwrap()), "written kept");
    assert_eq!(table.touched(), [Path::new("/kept")]);
}

#[test]
fn what_was_known_at_a_checkpoint_is_known_again_after_a_roll_back() {
    let mut table = Table::default();
    let mut then = Vec::new();
    let stories = ["+a +d/ +d/x ~d/x", "-a +b", "d/>e/ ~e/x +c", "-b c<>e/x", "+b ~b -c", "e/>d/ -b"];
    for (number, story) in (1..).zip(stories) {
        table.mark(number, Duration::from_secs(100));
        then.push((number, table.touched()));
        tell(&mut table, story);
    }
    // One in the middle, and the last one, are given up.
    table.keep(&[1, 2, 4, 5]);
    for (number, files) in then.into_iter().rev().filter(|(number, _)| ![3, 6].contains(number)) {
        table.roll_back(number);
        assert_eq!(table.touched(), files, "at {number}");
    }
}
