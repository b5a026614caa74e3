//! Numbers of records as the words that programs and manuals have for them.

/// A flag and its word.
type Word = (u64, &'static str);

/// What a number is.
#[derive(Clone, Copy, Debug)]
enum Meaning {
    /// Flags of open(2).
    Open,
    /// Its access mode alone.
    Access,
    /// Flags of a descriptor.
    Descriptor,
    /// A mode of a file, or a umask.
    Octal,
    /// A set of signals, by bit.
    Signals,
    /// Flags of sigaction(2).
    Action,
    /// Flags of sigaltstack(2).
    AltStack,
    /// Flags of mlockall(2).
    MlockAll,
    /// A set of capabilities.
    Hex,
    /// The number of a signal.
    Signal,
}

const ACCESS: [&str; 4] = ["O_RDONLY", "O_WRONLY", "O_RDWR", "3"];
/// Of x86-64 (`<asm-generic/fcntl.h>`); longer ones before those that they hold.
const OPEN: [Word; 14] = [
    (0o20_200_000, "O_TMPFILE"),
    (0o4_010_000, "O_SYNC"),
    (0o10_000, "O_DSYNC"),
    (0o100, "O_CREAT"),
    (0o200, "O_EXCL"),
    (0o400, "O_NOCTTY"),
    (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"),
    (0o20_000, "O_ASYNC"),
    (0o40_000, "O_DIRECT"),
    (0o200_000, "O_DIRECTORY"),
    (0o400_000, "O_NOFOLLOW"),
    (0o1_000_000, "O_NOATIME"),
    (0o10_000_000, "O_PATH"),
];
/// What the kernel adds to every file, and what belongs to the descriptor.
const SILENT: u64 = 0o100_000 | 0o2_000_000;
const ACTION: [Word; 8] = [
    (1, "SA_NOCLDSTOP"),
    (2, "SA_NOCLDWAIT"),
    (4, "SA_SIGINFO"),
    (0x0400_0000, "SA_RESTORER"),
    (0x0800_0000, "SA_ONSTACK"),
    (0x1000_0000, "SA_RESTART"),
    (0x4000_0000, "SA_NODEFER"),
    (0x8000_0000, "SA_RESETHAND"),
];
const ALT_STACK: [Word; 3] = [(1, "SS_ONSTACK"), (2, "SS_DISABLE"), (0x8000_0000, "SS_AUTODISARM")];
const MLOCK_ALL: [Word; 3] = [(1, "MCL_CURRENT"), (2, "MCL_FUTURE"), (4, "MCL_ONFAULT")];

fn meaning(kind: &str, field: &str) -> Option<Meaning> {
    Some(match (kind, field) {
        ("device" | "regfile" | "open file" | "directory" | "procfile" | "path" | "pathfd", "flags") => Meaning::Open,
        (_, "access") => Meaning::Access,
        ("descriptors", "flags") => Meaning::Descriptor,
        ("sigactions", "flags") => Meaning::Action,
        ("altstack", "flags") => Meaning::AltStack,
        ("mlockall", "flags") => Meaning::MlockAll,
        ("umask", "mask") | ("file" | "directory" | "fifo contents" | "pty pair", "mode") => Meaning::Octal,
        (_, "signal_mask") | ("sigactions" | "signalfd", "mask") => Meaning::Signals,
        ("creds", "inheritable" | "permitted" | "effective" | "bounding" | "ambient" | "secure_bits") => Meaning::Hex,
        ("sigactions", "signal") | ("tasks", "exit_signal") => Meaning::Signal,
        _ => return None,
    })
}

fn joined(mut left: u64, words: &[Word], first: Option<&str>) -> String {
    let mut found: Vec<String> = first.map(str::to_owned).into_iter().collect();
    for (bits, word) in words {
        if left & bits == *bits {
            left &= !bits;
            found.push((*word).to_owned());
        }
    }
    if left != 0 {
        found.push(format!("{left:#x}"));
    }
    if found.is_empty() { "none".to_owned() } else { found.join("|") }
}

fn signal(number: u64) -> String {
    let known = i32::try_from(number).ok().and_then(|number| nix::sys::signal::Signal::try_from(number).ok());
    known.map_or_else(|| number.to_string(), |signal| signal.as_str().to_owned())
}

fn said(meaning: Meaning, number: u64) -> String {
    match meaning {
        Meaning::Open => {
            let access = usize::try_from(number & 3).ok().and_then(|access| ACCESS.get(access)).copied();
            joined(number & !3 & !SILENT, &OPEN, access)
        }
        Meaning::Access => {
            let access = usize::try_from(number & 3).ok().and_then(|access| ACCESS.get(access)).copied();
            joined(number & !3, &[], access)
        }
        Meaning::Descriptor => joined(number, &[(1, "FD_CLOEXEC")], None),
        Meaning::Octal => format!("{number:#05o}"),
        Meaning::Signals if number == 0 => "none".to_owned(),
        Meaning::Signals => {
            let all = (1..=64_u64).filter(|signal| number >> (signal - 1) & 1 == 1);
            all.map(signal).collect::<Vec<_>>().join("|")
        }
        Meaning::Action => joined(number, &ACTION, None),
        Meaning::AltStack => joined(number, &ALT_STACK, None),
        Meaning::MlockAll => joined(number, &MLOCK_ALL, None),
        Meaning::Hex => format!("{number:#x}"),
        Meaning::Signal => signal(number),
    }
}

/// The words of a record, with words for its flags. What stands in quotes is left alone: a name may look like a field.
pub(crate) fn in_words(kind: &str, record: &str) -> String {
    let mut text = String::with_capacity(record.len());
    let mut rest = record;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = end_of_quote(quoted);
            text.push('"');
            text.push_str(quoted.get(..end).unwrap_or(quoted));
            rest = quoted.get(end..).unwrap_or_default();
            continue;
        }
        let length = rest.find('"').unwrap_or(rest.len());
        let (plain, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        text.push_str(&plain_in_words(kind, plain));
        rest = after;
    }
    text
}

/// Where the text after a quote ends, with its closing quote.
fn end_of_quote(text: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn plain_in_words(kind: &str, plain: &str) -> String {
    let mut parts = plain.split(": ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let field = text.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or_default();
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (number, after) = part.split_at_checked(digits).unwrap_or((part, ""));
        let words = meaning(kind, field).zip(number.parse().ok()).map(|(meaning, number)| said(meaning, number));
        text.push_str(": ");
        text.push_str(words.as_deref().unwrap_or(number));
        text.push_str(after);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_by_the_words_of_the_manual() {
        for (kind, record, expected) in [
            ("regfile", "R { inode: 26, flags: 32770 }", "R { inode: 26, flags: O_RDWR }"),
            ("regfile", "R { flags: 1025 }", "R { flags: O_WRONLY|O_APPEND }"),
            ("open file", "R { flags: 1052672 }", "R { flags: O_RDONLY|O_SYNC }"),
            ("open file", "R { flags: 17179869184 }", "R { flags: O_RDONLY|0x400000000 }"),
            ("fifo", "F { fifo: 27, access: 2 }", "F { fifo: 27, access: O_RDWR }"),
            (
                "descriptors",
                "[E { fd: 3, flags: 1 }, E { fd: 4, flags: 0 }]",
                "[E { fd: 3, flags: FD_CLOEXEC }, E { fd: 4, flags: none }]",
            ),
            ("umask", "U { mask: 18 }", "U { mask: 0o022 }"),
            (
                "file",
                "I { path: \"a, mode: 7 \\\" mode: 8\", mode: 33261 }",
                "I { path: \"a, mode: 7 \\\" mode: 8\", mode: 0o100755 }",
            ),
            ("thread", "T { signal_mask: 258, x: 1 }", "T { signal_mask: SIGINT|SIGKILL, x: 1 }"),
            (
                "sigactions",
                "S { handler: 1, flags: 335544324, mask: 0, signal: 2 }",
                "S { handler: 1, flags: SA_SIGINFO|SA_RESTORER|SA_RESTART, mask: none, signal: SIGINT }",
            ),
            ("creds", "C { permitted: 31 }", "C { permitted: 0x1f }"),
            ("sched", "S { flags: 3 }", "S { flags: 3 }"),
            ("cut", "flags: \"", "flags: \""),
        ] {
            assert_eq!(in_words(kind, record), expected, "{kind}");
        }
    }
}
