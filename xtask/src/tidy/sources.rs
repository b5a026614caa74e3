//! Rules about single files: length, first line, names, what they may not contain.

use crate::tidy::Source;

/// The wall for Rust; guests are smaller still, as each shows one thing.
const LINES: [(&str, usize); 3] = [("rs", 600), ("c", 300), ("h", 300)];

/// Words that name nothing, and words of other tools for what has a word here.
const FORBIDDEN: [&str; 16] = [
    "common", "context", "dump", "dumper", "helper", "helpers", "load", "manager", "master", "misc", "parasite",
    "save", "slave", "util", "utils", "stuff",
];

/// What makes a static mutable.
const MUTABLE: [&str; 8] =
    ["Atomic", "Cell<", "LazyLock<", "Mutex<", "OnceLock<", "RefCell<", "RwLock<", "UnsafeCell<"];

pub(super) fn short(sources: &[Source]) -> Vec<String> {
    let too_long = |source: &Source| {
        let (_, wall) = LINES.iter().find(|(ending, _)| source.is(ending))?;
        let lines = source.text.lines().count();
        (lines > *wall).then(|| format!("{} has {lines} lines, {wall} are the wall", source.path))
    };
    sources.iter().filter_map(too_long).collect()
}

pub(super) fn documented(sources: &[Source]) -> Vec<String> {
    let silent = |source: &&Source| source.is("rs") && !source.text.trim_start().starts_with("//!");
    let silent = sources.iter().filter(silent);
    silent.map(|source| format!("{} does not begin with `//!`", source.path)).collect()
}

/// What the library knows of the process that it is linked into, of which there is one.
const OF_THE_PROCESS: &str = "crates/hdcr/src/ffi.rs";

/// A test may build its guest once and keep the path.
pub(super) fn no_mutable_statics(sources: &[Source]) -> Vec<String> {
    let product = sources.iter().filter(|source| !source.path.contains("/tests/") && source.path != OF_THE_PROCESS);
    let product: Vec<Source> = product.cloned().collect();
    of_lines(&product, |line| {
        let item = line.trim_start();
        let item = item.strip_prefix("pub ").or_else(|| item.strip_prefix("pub(crate) ")).unwrap_or(item);
        let kind = item.strip_prefix("static ")?;
        let is_mutable = kind.starts_with("mut ") || MUTABLE.iter().any(|m| kind.contains(m));
        is_mutable.then(|| "a mutable static".to_owned())
    })
}

pub(super) fn named_well(sources: &[Source]) -> Vec<String> {
    let files = sources.iter().filter_map(|source| {
        let word = forbidden_word(&source.path)?;
        Some(format!("{}: the name {word} says nothing", source.path))
    });
    let modules = of_lines(sources, |line| {
        let item = line.trim_start();
        let item = item.strip_prefix("pub ").or_else(|| item.strip_prefix("pub(crate) ")).unwrap_or(item);
        let name = item.strip_prefix("mod ")?.trim_end_matches([';', '{', ' ']);
        Some(format!("the module name {} says nothing", forbidden_word(name)?))
    });
    files.chain(modules).collect()
}

fn forbidden_word(path: &str) -> Option<&str> {
    path.split(['/', '_', '-', '.']).find(|word| FORBIDDEN.contains(word))
}

pub(super) fn no_machine_paths(sources: &[Source]) -> Vec<String> {
    // Put together here, so that this file does not break its own rule.
    let roots = [["/wo", "rk/"], ["/ro", "ot/"], ["/tmp/tar", "get"], ["/ho", "me/user"]].map(|p| p.concat());
    let complaint = |source: &Source| {
        let line = source.text.lines().position(|l| roots.iter().any(|root| l.contains(root)))?;
        Some(format!("{}:{}: a path of one machine", source.path, line + 1))
    };
    sources.iter().filter_map(complaint).collect()
}

pub(super) fn no_ignored_tests(sources: &[Source]) -> Vec<String> {
    of_lines(sources, |line| line.trim_start().starts_with("#[ignore").then(|| "an ignored test".to_owned()))
}

/// In files of tests, and behind the line where the tests of a file begin.
pub(super) fn no_sleeping_tests(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|s| s.is("rs") && !s.path.starts_with("xtask/src/tidy/")) {
        let mut in_tests = source.path.contains("/tests/");
        for (number, line) in source.text.lines().enumerate() {
            in_tests |= line.starts_with("#[cfg(test)]");
            if in_tests && (line.contains("::sleep(") || line.contains(" sleep(")) {
                complaints.push(format!("{}:{}: a test sleeps", source.path, number + 1));
            }
        }
    }
    complaints
}

/// A complaint about each line of Rust for which `look` has one.
fn of_lines(sources: &[Source], look: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|s| s.is("rs")) {
        for (number, line) in source.text.lines().enumerate() {
            complaints.extend(look(line).map(|why| format!("{}:{}: {why}", source.path, number + 1)));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&[Source]) -> Vec<String>, path: &str, text: &str, expected: &[&str]) {
        assert_eq!(rule(&[Source::new(path, text)]), expected);
    }

    #[test]
    fn length() {
        check(short, "a.rs", &"x\n".repeat(600), &[]);
        check(short, "a.rs", &"x\n".repeat(601), &["a.rs has 601 lines, 600 are the wall"]);
        check(short, "a.md", &"x\n".repeat(601), &[]);
    }

    #[test]
    fn first_line() {
        check(documented, "a.rs", "//! A.\n", &[]);
        check(documented, "a.rs", "use b;\n", &["a.rs does not begin with `//!`"]);
        check(documented, "a.c", "int b;\n", &[]);
    }

    #[test]
    fn statics() {
        check(no_mutable_statics, "a.rs", "static NAMES: [&str; 1] = [\"\"];\n", &[]);
        check(no_mutable_statics, OF_THE_PROCESS, "static N: AtomicU32 = x;\n", &[]);
        check(no_mutable_statics, "a.rs", "pub static N: AtomicU32 = x;\n", &["a.rs:1: a mutable static"]);
        check(no_mutable_statics, "a.rs", "\n  static mut N: u32 = 0;\n", &["a.rs:2: a mutable static"]);
    }

    #[test]
    fn names() {
        check(named_well, "src/payload.rs", "mod reload;\n", &[]);
        check(named_well, "src/mm_utils.rs", "", &["src/mm_utils.rs: the name utils says nothing"]);
        check(named_well, "a.rs", "pub(crate) mod helper {\n", &["a.rs:1: the module name helper says nothing"]);
    }

    #[test]
    fn machine_paths() {
        check(no_machine_paths, "a.md", "see docs/x\n", &[]);
        let text = ["\nin /wo", "rk/x\n"].concat();
        check(no_machine_paths, "a.md", &text, &["a.md:2: a path of one machine"]);
    }

    #[test]
    fn sleeping() {
        let text = "fn a() { sleep(x) }\n#[cfg(test)]\nmod tests { fn b() { thread::sleep(x) } }\n";
        check(no_sleeping_tests, "a.rs", text, &["a.rs:3: a test sleeps"]);
        check(no_sleeping_tests, "a/tests/b.rs", "thread::sleep(x)", &["a/tests/b.rs:1: a test sleeps"]);
    }

    #[test]
    fn ignored() {
        check(no_ignored_tests, "a.rs", "#[test]\n  #[ignore = \"slow\"]\n", &["a.rs:2: an ignored test"]);
    }
}
