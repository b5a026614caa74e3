//! Descriptors and mappings as /proc shows them, with what identifies an object set apart from what describes it.

use std::fs;
use std::path::Path;

/// A name and, where the number in it says only which object, that number apart.
pub(super) type Named = (String, Option<String>);

/// Lines of fdinfo that measure or identify: numbers of mounts and inodes, time that runs.
const PASSING: [&str; 7] = ["mnt_id", "ino", "it_value", "ticks", "eventfd-id", "size", "count"];

/// What descriptor `number` leads to, and the facts of its fdinfo in one line.
pub(super) fn look(home: &Path, number: &str) -> (Named, String) {
    let to = fs::read_link(home.join("fd").join(number));
    let to = to.map_or_else(|e| format!("{:?}", e.kind()), |to| to.to_string_lossy().into_owned());
    let info = fs::read_to_string(home.join("fdinfo").join(number)).unwrap_or_default();
    (target(&to), facts(&info))
}

/// `pipe:[77]` is a pipe, and 77 is which.
fn target(link: &str) -> Named {
    if let Some((kind, number)) = link.split_once(":[").filter(|(k, _)| *k != "anon_inode") {
        return (kind.to_owned(), Some(number.trim_end_matches(']').to_owned()));
    }
    // A file of O_TMPFILE is called by its inode.
    let nameless =
        link.rsplit_once("/#").and_then(|(directory, rest)| Some((directory, rest.strip_suffix(" (deleted)")?)));
    if let Some((directory, number)) = nameless.filter(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit())) {
        return (format!("{directory}/# (deleted)"), Some(number.to_owned()));
    }
    (shown(link), None)
}

/// A name without the directory of its own that a restore needs where another file has the place of a removed one.
pub(super) fn shown(name: &str) -> String {
    let lasting = |part: &&str| !part.starts_with(".hdcr-copy-");
    if name.ends_with(" (deleted)") {
        name.split('/').filter(lasting).collect::<Vec<_>>().join("/")
    } else {
        name.to_owned()
    }
}

fn facts(info: &str) -> String {
    let lines = info.lines().filter_map(|line| line.split_once(':'));
    let kept = lines.filter(|(name, _)| !PASSING.contains(name)).map(|(name, value)| {
        let value = match name {
            "tfd" => before(value, "pos:"),
            // The number in the list of all locks of the machine says nothing about this one.
            "lock" => value.split_once(':').map_or(value, |(_, rest)| rest),
            _ => value,
        };
        format!("{name}:{}", value.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    // The members of an epoll are shown by where their files lie in the kernel's memory: an order of no meaning.
    let (mut members, mut facts): (Vec<_>, Vec<_>) = kept.partition(|fact| fact.starts_with("tfd:"));
    members.sort();
    facts.extend(members);
    facts.join("; ")
}

fn before<'a>(text: &'a str, mark: &str) -> &'a str {
    text.split_once(mark).map_or(text, |(head, _)| head)
}

/// A header line of smaps: range, protection and offset, and the file with its identity apart.
pub(super) fn mapping(line: &str) -> Option<(String, String, Named)> {
    let mut words = line.split_whitespace();
    let range = words.next()?;
    let is_header = range.contains('-') && !range.ends_with(':');
    let (prot, offset, dev, inode) = (words.next()?, words.next()?, words.next()?, words.next()?);
    if !is_header {
        return None;
    }
    let name = shown(&words.collect::<Vec<_>>().join(" "));
    let facts = format!("{prot} {offset}");
    // An object without a lasting name is made anew by a restore.
    let passing = name.ends_with("(deleted)");
    let file = if passing { (name, Some(format!("{dev} {inode}"))) } else { (format!("{dev} {inode} {name}"), None) };
    Some((range.to_owned(), facts, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_split_from_their_number() {
        assert_eq!(target("pipe:[77]"), ("pipe".into(), Some("77".into())));
        assert_eq!(target("/dev/null"), ("/dev/null".into(), None));
        assert_eq!(target("/a/#12 (deleted)"), ("/a/# (deleted)".into(), Some("12".into())));
        assert_eq!(target("/a/.hdcr-copy-3/b (deleted)"), ("/a/b (deleted)".into(), None));
        assert_eq!(target("/a/#1b (deleted)"), ("/a/#1b (deleted)".into(), None));
        assert_eq!(target("anon_inode:[eventfd]"), ("anon_inode:[eventfd]".into(), None));
    }

    #[test]
    fn passing_facts_are_left_out() {
        let info =
            "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t9\ntfd:        5 events:       19 data: 7  pos:0 ino:1 sdev:f\n";
        assert_eq!(facts(info), "pos:0; flags:02; tfd:5 events: 19 data: 7");
    }

    #[test]
    fn deleted_files_are_named_by_first_appearance() {
        let line = "7f00-7f01 rw-s 00000000 00:01 1234   /memfd:x (deleted)";
        let (range, facts, file) = mapping(line).unwrap();
        assert_eq!((range.as_str(), facts.as_str()), ("7f00-7f01", "rw-s 00000000"));
        assert_eq!(file, ("/memfd:x (deleted)".into(), Some("00:01 1234".into())));
        assert!(mapping("Size:                  4 kB").is_none());
        assert!(mapping("VmFlags: rd wr mr mw me ac").is_none());
    }
}
