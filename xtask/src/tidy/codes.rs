//! Rules about the codes of refusals, notes and failures: each has a row in `docs/errors.md`, and each row a code.

use std::collections::BTreeMap;

use crate::tidy::Source;

const ROWS: &str = "docs/errors.md";
const CRATES: [&str; 4] =
    ["crates/hdcr-engine/src/", "crates/hdcr-ptrace/src/", "crates/hdcr-cli/src/", "crates/hdcr/src/"];

/// Words in the form of a code that are none: names and keys of files in `/proc`, names of flags and attributes.
const NO_CODES: [&str; 13] = [
    "eventfd-count",
    "eventfd-semaphore",
    "fail-nth",
    "fhandle-type",
    "file-limit",
    "file-policy",
    "hdcr-agent",
    "hdcr-member",
    "hdcr-snapshot",
    "kebab-case",
    "key-users",
    "make-it-fail",
    "tty-index",
];

/// What stands before a code of one word.
const BEFORE: [&str; 7] =
    ["code: ", "refuse(", "refused(", "refuse_path(", "note(", "Self::new(class, ", "CODE: &str = "];

pub(super) fn described(sources: &[Source]) -> Vec<String> {
    let rows: Vec<&str> = sources.iter().find(|s| s.path == ROWS).map_or(Vec::new(), |s| codes_of(&s.text));
    let (mut words, mut codes) = (BTreeMap::new(), BTreeMap::new());
    for source in sources.iter().filter(|s| s.is("rs") && CRATES.iter().any(|c| s.path.starts_with(c))) {
        for (word, before) in words_of(code_of(source)) {
            words.insert(word, &source.path);
            if is_code(word, &before) {
                codes.insert(word, &source.path);
            }
        }
    }
    let missing = codes.iter().filter(|(code, _)| !rows.contains(code));
    let missing = missing.map(|(code, path)| format!("{path}: code `{code}` has no row in {ROWS}"));
    let idle = rows.iter().filter(|row| !words.contains_key(*row));
    missing.chain(idle.map(|row| format!("{ROWS}: no source has a code `{row}`"))).collect()
}

/// The codes of the first columns of all tables.
fn codes_of(text: &str) -> Vec<&str> {
    let cells = text.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// A source without its tests.
fn code_of(source: &Source) -> &str {
    if source.path.ends_with("/tests.rs") {
        return "";
    }
    source.text.split("\n#[cfg(test)]").next().unwrap_or_default()
}

/// Every literal of small letters, digits and hyphens, with what stands before it, in one line.
fn words_of(text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text.get(at..).and_then(|rest| rest.find('"')).map(|place| at + place) {
        let rest = text.get(start + 1..).unwrap_or_default();
        let length = rest.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-');
        at = start + 1;
        if let Some(length) = length.filter(|length| *length > 0 && rest.as_bytes().get(*length) == Some(&b'"')) {
            let before: Vec<&str> = text.get(..start).unwrap_or_default().rsplitn(3, '\n').collect();
            let before = before.into_iter().take(2).rev().map(str::trim).collect::<Vec<_>>().join(" ");
            found.push((rest.get(..length).unwrap_or_default(), before.replace("( ", "(")));
            at = start + length + 2;
        }
    }
    found
}

fn is_code(word: &str, before: &str) -> bool {
    let line = before.trim_end();
    if line.contains("//") || NO_CODES.contains(&word) {
        return false;
    }
    let hyphened = word.contains('-') && !word.starts_with('-') && !word.ends_with('-');
    let named = BEFORE.iter().any(|mark| line.ends_with(mark.trim_end()));
    let classed = line.rsplit_once("Class::").is_some_and(|(_, class)| {
        class.strip_suffix(',').is_some_and(|class| class.chars().all(|c| c.is_ascii_alphabetic()))
    });
    hyphened || named || classed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(code: &str, rows: &str) -> Vec<String> {
        let sources = [Source::new("crates/hdcr-cli/src/a.rs", code), Source::new(ROWS, rows)];
        described(&sources)
    }

    #[test]
    fn a_code_without_its_row_and_a_row_without_its_code_are_named() {
        let found =
            complaints("view.refuse(\n    \"kvm\", \"x\");\nlet c = \"io-uring\";", "| `bpf`, `io-uring` | | |");
        let code = "crates/hdcr-cli/src/a.rs: code `kvm` has no row in docs/errors.md".to_owned();
        assert_eq!(found, [code, "docs/errors.md: no source has a code `bpf`".to_owned()]);
    }

    #[test]
    fn every_way_to_give_a_code_is_seen_and_nothing_else() {
        for code in [
            "code: \"x\"",
            "Failure::refused(\"x\", y)",
            "Failure::new(Class::Failed, \"x\", y)",
            "note(\n \"x\",",
            "const CODE: &str = \"x\";",
            "(\"a-x\", None)",
        ] {
            assert_eq!(complaints(code, "").len(), 1, "{code}");
        }
        let none = "key(\"eventfd-count\"); \"x\".len(); \"A b-c\"; \"rw-\"; // \"a-b\"\n#[cfg(test)] code: \"x\"";
        assert_eq!(complaints(none, ""), Vec::<String>::new());
    }
}
