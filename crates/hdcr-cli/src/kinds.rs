//! Values of the command line that have a form of their own, each read by one `FromStr`.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// `--on`: a further reason for a rollback.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Condition(pub(crate) hdcr_policy::restart::Condition);

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use hdcr_policy::restart::Condition as Rule;
        let wrong = || format!("\"{text}\" is not exit:STATUS, exit:any, signal:NAME or signal:any");
        let rule = match text.split_once(':').ok_or_else(wrong)? {
            ("exit", "any") => Rule::AnyFailure,
            ("exit", status) => Rule::Exit(status.parse::<u8>().map_err(|_| wrong())?.into()),
            ("signal", "any") => Rule::AnySignal,
            ("signal", name) => Rule::Signal(signal_number(name).ok_or_else(wrong)?),
            _ => return Err(wrong()),
        };
        Ok(Self(rule))
    }
}

/// `--every`: the time from one checkpoint to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Every {
    /// By what checkpoints cost and how often the program fails.
    Auto,
    /// Just this.
    Fixed(Duration),
}

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            text => crate::duration::parse(text).map(Self::Fixed).map_err(|why| format!("{why}; or auto")),
        }
    }
}

impl std::fmt::Display for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => write!(f, "auto (chosen by what one costs, and by crashes)"),
            Self::Fixed(time) => write!(f, "{}", crate::duration::show(*time)),
        }
    }
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `--budget`: a share such as `10%`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Share(pub(crate) hdcr_policy::interval::Budget);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse().ok());
        let budget = number.and_then(hdcr_policy::interval::Budget::percent);
        budget.map(Self).ok_or_else(|| format!("\"{text}\" is not a share from 1% to 100%"))
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which checkpoints of a job are kept (`--keep`, `--keep-for`, `--keep-size`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Keep {
    pub(crate) count: Option<usize>,
    pub(crate) time: Option<Duration>,
    pub(crate) bytes: Option<u64>,
}

impl Keep {
    /// What was asked for; three when nothing was.
    pub(crate) fn of(count: Option<NonZeroUsize>, time: Option<Duration>, bytes: Option<u64>) -> Self {
        let default = if time.is_none() && bytes.is_none() { Some(3) } else { None };
        Self { count: count.map(NonZeroUsize::get).or(default), time, bytes }
    }
}

/// `--keep`: at least one is kept, else there is nothing to go back to.
pub(crate) fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.trim().parse().map_err(|_| format!("\"{text}\" is not a whole number from 1 on"))
}

/// The number of a signal by its name, with or without `SIG`, or by its number.
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    Signal::from_str(&full).ok().map(|signal| signal as i32)
}

/// The name of a signal by its number.
pub(crate) fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

/// `--map-path OLD=NEW`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct PathMap {
    /// Prefix in the image.
    #[serde(with = "crate::paths")]
    pub(crate) old: PathBuf,
    /// What it is now.
    #[serde(with = "crate::paths")]
    pub(crate) new: PathBuf,
}

impl PathMap {
    /// Reads one; paths need not be text.
    pub(crate) fn read(words: &OsStr) -> Result<Self, String> {
        let bytes = words.as_bytes();
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let at = bytes.iter().position(|byte| *byte == b'=');
        match at.and_then(|at| Some((path(bytes.get(..at)?), path(bytes.get(at + 1..)?)))) {
            Some((old, new)) if old.is_absolute() && new.is_absolute() => Ok(Self { old, new }),
            _ => Err(format!("\"{}\" is not OLD=NEW with two absolute paths", words.display())),
        }
    }
}

/// `--stdio`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum StdioTarget {
    /// Those of the restoring command.
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    /// Output appended to a file, input from `/dev/null`.
    File(PathBuf),
}

impl From<OsString> for StdioTarget {
    fn from(words: OsString) -> Self {
        match words.to_str() {
            Some("inherit") => Self::Inherit,
            Some("null") => Self::Null,
            _ => Self::File(PathBuf::from(words)),
        }
    }
}

/// What becomes of the contents of a file (`--file-policy`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FilePolicy {
    /// Written files are saved when small, appended ones cut back, files only read verified.
    Auto,
    /// Saved, whatever the size.
    Content,
    /// Cut back to the length at the checkpoint.
    Truncate,
    /// Must be unchanged.
    Verify,
    /// Opened again as it is.
    Ignore,
}

/// `PATH=POLICY`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct FilePolicyRule {
    /// Prefix.
    #[serde(with = "crate::paths")]
    pub(crate) path: PathBuf,
    /// What becomes of files there.
    pub(crate) policy: FilePolicy,
}

impl FilePolicyRule {
    /// Reads one; the path need not be text.
    pub(crate) fn read(words: &OsStr) -> Result<Self, String> {
        let bytes = words.as_bytes();
        let wrong =
            || format!("\"{}\" is not PATH=POLICY with auto, content, truncate, verify or ignore", words.display());
        let at = bytes.iter().rposition(|byte| *byte == b'=').filter(|at| *at > 0).ok_or_else(wrong)?;
        let policy = match bytes.get(at + 1..).unwrap_or_default() {
            b"auto" => FilePolicy::Auto,
            b"content" => FilePolicy::Content,
            b"truncate" => FilePolicy::Truncate,
            b"verify" => FilePolicy::Verify,
            b"ignore" => FilePolicy::Ignore,
            _ => return Err(wrong()),
        };
        Ok(Self { path: PathBuf::from(OsStr::from_bytes(bytes.get(..at).unwrap_or_default())), policy })
    }
}

/// What becomes of an end (a pipe, a socket) whose other end lies outside of the program (`--ends`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EndPolicy {
    /// It stands in the way of a checkpoint
    #[default]
    Refuse,
    /// After a restore it is closed
    Close,
    /// After a restore a socket is connected to its peer's name again; a pipe stands in the way
    Reconnect,
}

/// How memory is read (`--snapshot`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Snapshot {
    /// Processes above 16 MiB as by `precopy`, and by `fork` what they write too fast for that; others as by `stop`
    #[default]
    Auto,
    /// While the program runs; in the stop only what it has written since
    Precopy,
    /// From a copy-on-write child that each process makes in the stop, while the program runs again
    Fork,
    /// All of it while the program stands still
    Stop,
}

/// What stops the program and asks it (`--mechanism`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MechanismChoice {
    /// By `ptrace`; by `kernel` where a debugger holds the program and the module is loaded
    #[default]
    Auto,
    /// ptrace(2)
    Ptrace,
    /// The kernel module (docs/kernel.md)
    Kernel,
}

/// How pages are compressed (`--compress`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compress {
    /// As brings them to the store the soonest: each way is tried now and then while they are written
    #[default]
    Auto,
    /// Not at all
    None,
    /// By LZ4
    Lz4,
    /// By Zstandard, for the smallest image
    Zstd,
}

/// Whether checkpoints are made on top of one another (`--increments`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Increments {
    /// When they come every 10 seconds or faster, or when a whole one takes more than a twentieth of the time between two
    #[default]
    Auto,
    /// Always: the program is followed all the time, and each holds anew only what was written since the one before
    On,
    /// Never: each is a whole one
    Off,
}

/// Whether memory may come when the program runs already (`--lazy`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Lazy {
    /// Large memory of processes above 16 MiB
    Auto,
    /// All memory that can
    Always,
    /// None: all of it is there before the program runs
    #[default]
    Never,
}

/// What becomes of a program after its checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Then {
    /// It goes on.
    #[default]
    GoOn,
    /// It is killed.
    Kill,
    /// It stays stopped.
    Stop,
}

#[cfg(test)]
mod tests {
    use hdcr_policy::restart::Condition as Rule;

    use super::*;

    #[test]
    fn conditions_are_read() {
        for (text, rule) in [
            ("exit:75", Rule::Exit(75)),
            ("exit:any", Rule::AnyFailure),
            ("signal:TERM", Rule::Signal(15)),
            ("signal:sigsegv", Rule::Signal(11)),
            ("signal:9", Rule::Signal(9)),
            ("signal:any", Rule::AnySignal),
        ] {
            assert_eq!(text.parse(), Ok(Condition(rule)), "{text}");
        }
        for text in ["", "exit", "exit:", "exit:256", "exit:-1", "signal:NOPE", "signal:0", "signal:65", "crash:1"] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }

    #[test]
    fn rules_for_paths_are_read() {
        let map = PathMap::read(OsStr::new("/a/b=/c")).unwrap();
        assert_eq!((map.old, map.new), (PathBuf::from("/a/b"), PathBuf::from("/c")));
        let rule = FilePolicyRule::read(OsStr::new("/a=b=ignore")).unwrap();
        assert_eq!((rule.path, rule.policy), (PathBuf::from("/a=b"), FilePolicy::Ignore));
        for (map, rule) in [("a=/b", "/a=keep"), ("/a", "=auto")] {
            assert!(PathMap::read(OsStr::new(map)).is_err() && FilePolicyRule::read(OsStr::new(rule)).is_err());
        }
    }
    #[test]
    fn paths_need_not_be_text() {
        use clap::Parser as _;
        let raw = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        let map = raw(b"/n\xff=/m\xfe");
        let words =
            [raw(b"hdcr"), raw(b"restore"), raw(b"sim"), raw(b"--map-path"), map, raw(b"--stdio"), raw(b"/o\xfd")];
        let crate::cli::Command::Restore(args) = crate::cli::Cli::try_parse_from(words).unwrap().command else {
            unreachable!("another command");
        };
        assert_eq!(args.map_path, [PathMap { old: raw(b"/n\xff").into(), new: raw(b"/m\xfe").into() }]);
        assert_eq!(args.stdio, Some(StdioTarget::File(raw(b"/o\xfd").into())));
        let words = [raw(b"hdcr"), raw(b"check"), raw(b"1"), raw(b"--file-policy"), raw(b"/p\xfc=ignore")];
        assert!(crate::cli::Cli::try_parse_from(words).is_ok());
    }
}
