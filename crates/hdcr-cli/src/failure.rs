//! Why a command failed, as it is told to people, to scripts and between our own processes; and the exit status of each kind.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::output::{counted, escaped};

/// What the user can do about it; fixes the exit status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    /// The command line or the configuration is wrong.
    Usage,
    /// It cannot be done; nothing was touched.
    Refused,
    /// The program or the store changed while it was looked at; trying again may work.
    Changed,
    /// The system failed.
    Failed,
    /// The image is not what was written.
    Corrupt,
    /// A fault of HDCR's own.
    Internal,
    /// The program of `hdcr run` is there and cannot be executed.
    NotExecutable,
    /// The program of `hdcr run` is not there.
    NoProgram,
}

impl Class {
    /// The exit status, after sysexits(3) where it has one.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::Corrupt => 65,
            Self::Refused => 69,
            Self::Internal => 70,
            Self::Failed => 71,
            Self::Changed => 75,
            Self::NotExecutable => 126,
            Self::NoProgram => 127,
        }
    }
}

/// One thing that stands in the way, or that a user should know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Obstacle {
    /// Stable code.
    pub(crate) code: String,
    /// What it is.
    pub(crate) object: String,
    /// Which process holds it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pid: Option<i32>,
    /// Which descriptor.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) fd: Option<i32>,
    /// Which path.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) path: Option<String>,
    /// Why it stands in the way.
    pub(crate) cause: String,
    /// What can be done.
    pub(crate) remedy: String,
}

impl Obstacle {
    /// The text, with the holders as they are given.
    fn of(&self, holders: &str) -> String {
        // A name with a line feed in it would be a line of its own.
        let tame = |text: &str| escaped(text, char::is_control);
        let holders = if holders.is_empty() { String::new() } else { format!(" ({})", tame(holders)) };
        let remedy = if self.remedy.is_empty() { String::new() } else { format!("\n      {}", self.remedy) };
        format!("[{}] {}{holders}: {}{remedy}", self.code, tame(&self.object), self.cause)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid.map(|pid| format!("pid {pid}"));
        let fd = self.fd.map(|fd| format!("fd {fd}"));
        let holder: Vec<String> = [pid, fd, self.path.clone()].into_iter().flatten().collect();
        f.write_str(&self.of(&holder.join(", ")))
    }
}

/// Notes as they are told one after another: many of one code in one line, unless each is wanted.
pub(crate) fn told(notes: &[Obstacle], each: bool) -> Vec<String> {
    if each { notes.iter().map(ToString::to_string).collect() } else { told_once(notes) }
}

/// How many things there are, however many hold each.
pub(crate) fn told_apart(obstacles: &[Obstacle]) -> usize {
    things(obstacles).len()
}

/// Obstacles by the thing that each is about.
fn things(obstacles: &[Obstacle]) -> Vec<Vec<&Obstacle>> {
    let same = |a: &Obstacle, b: &Obstacle| {
        let known = |o: &Obstacle| o.pid.is_some() && o.path.is_some();
        let is_same = |o: &Obstacle, p: &Obstacle| (&o.code, &o.object, &o.path) == (&p.code, &p.object, &p.path);
        known(a) && known(b) && is_same(a, b) && (&a.cause, &a.remedy) == (&b.cause, &b.remedy)
    };
    let mut groups: Vec<Vec<&Obstacle>> = Vec::new();
    for obstacle in obstacles {
        match groups.iter_mut().find(|group| group.first().is_some_and(|first| same(first, obstacle))) {
            Some(group) => group.push(obstacle),
            None => groups.push(vec![obstacle]),
        }
    }
    groups
}

/// All that is to be told, with what holds of several holders of one thing told once.
pub(crate) fn told_once(obstacles: &[Obstacle]) -> Vec<String> {
    /// A tree of a thousand processes has as many holders of its terminal.
    const HOLDERS: usize = 4;
    /// More of one code are not read one by one.
    const SINGLY: usize = 20;
    let mut groups = things(obstacles);
    let mut told = Vec::new();
    while let Some(first) = groups.first().and_then(|group| group.first().copied()) {
        let is_alike = |group: &Vec<&Obstacle>| group.first().is_some_and(|other| other.code == first.code);
        let alike: Vec<Vec<&Obstacle>> = groups.extract_if(.., |group| is_alike(group)).collect();
        if alike.len() > SINGLY {
            told.push(together(&alike.concat()));
            continue;
        }
        told.extend(alike.iter().map(|group| match group.as_slice() {
            [] => String::new(),
            [alone] => alone.to_string(),
            [first, ..] => first.of(&holders(group, HOLDERS)),
        }));
    }
    told
}

/// What is alike, in one line: how much there is, the first ones, and why.
fn together(alike: &[&Obstacle]) -> String {
    const NAMED: usize = 4;
    let Some(first) = alike.first() else { return String::new() };
    let holder = |one: &&Obstacle| match (&one.path, one.pid, one.fd) {
        (Some(path), ..) => path.clone(),
        (None, Some(pid), Some(fd)) => format!("pid {pid}, fd {fd}"),
        (None, Some(pid), None) => format!("pid {pid}"),
        (None, None, _) => one.object.clone(),
    };
    let mut named: Vec<String> = Vec::new();
    for name in alike.iter().map(holder) {
        if named.len() < NAMED && !named.contains(&name) {
            named.push(name);
        }
    }
    let is_same = alike.iter().all(|other| other.cause == first.cause);
    let all = Obstacle {
        object: format!("{} times {}", alike.len(), first.object),
        cause: if is_same { first.cause.clone() } else { format!("the first of them: {}", first.cause) },
        ..(*first).clone()
    };
    all.of(&format!("{}, ...; --json or -v names all", named.join(", ")))
}

/// `pid 7, fd 0, 1, 2; pid 8, fd 0`, and how many more there are.
fn holders(group: &[&Obstacle], most: usize) -> String {
    let mut by_pid: Vec<(i32, Vec<String>)> = Vec::new();
    for obstacle in group {
        let pid = obstacle.pid.unwrap_or(0);
        let fd = obstacle.fd.map(|fd| fd.to_string());
        match by_pid.iter_mut().find(|(known, _)| *known == pid) {
            Some((_, fds)) => fds.extend(fd),
            None => by_pid.push((pid, fd.into_iter().collect())),
        }
    }
    let more = by_pid.len().saturating_sub(most);
    let told = by_pid.iter().take(most).map(|(pid, fds)| match fds.as_slice() {
        [] => format!("pid {pid}"),
        fds => format!("pid {pid}, fd {}", fds.join(", ")),
    });
    let told = told.chain((more > 0).then(|| format!("and {}", counted(more, "more process", "more processes"))));
    let path = group.first().and_then(|first| first.path.clone());
    told.chain(path).collect::<Vec<_>>().join("; ")
}

/// A failed command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What the user can do about it.
    pub(crate) class: Class,
    /// Stable code (`docs/errors.md`).
    pub(crate) code: String,
    /// What happened, with its causes.
    pub(crate) message: String,
    /// What to do, when there is something to say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) remedy: Option<String>,
    /// Everything that stands in the way.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) refusals: Vec<Obstacle>,
}

/// Result of a command or a part of it.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure in one sentence.
    pub(crate) fn new(class: Class, code: &str, message: impl Into<String>) -> Self {
        Self { class, code: code.to_owned(), message: message.into(), remedy: None, refusals: Vec::new() }
    }

    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, "usage", message)
    }

    /// It cannot be done.
    pub(crate) fn refused(code: &str, message: impl Into<String>) -> Self {
        Self::new(Class::Refused, code, message)
    }

    /// For `map_err`: a call of the system failed while something was done.
    pub(crate) fn system<E: StdError>(doing: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::new(Class::Failed, "system", format!("{doing}: {}", chain(&error)))
    }

    /// Adds what to do about it.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Says what was being done when it happened.
    pub(crate) fn during(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

/// An error with all its causes, each said once.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    without_numbers(&text)
}

/// Without the number of an error of the system that stands behind its words.
fn without_numbers(text: &str) -> String {
    const BEFORE: &str = " (os error ";
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEFORE) {
        plain.push_str(before);
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        if let Some(tail) = after.get(digits..).and_then(|tail| tail.strip_prefix(')')) {
            rest = tail;
        } else {
            plain.push_str(BEFORE);
            rest = after;
        }
    }
    plain.push_str(rest);
    plain
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for refusal in told_once(&self.refusals) {
            write!(f, "\n  {refusal}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  {}", remedy.replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

impl StdError for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("no space");
        let failure = Failure::system(format_args!("writing {}", "/x"))(inner);
        assert_eq!(failure.to_string(), "writing /x: no space");
        assert_eq!(failure.class.status(), 71);
    }

    #[test]
    fn errors_of_the_system_have_words_and_no_numbers() {
        let error = std::io::Error::from_raw_os_error(13);
        assert_eq!(chain(&error), "Permission denied");
        assert_eq!(without_numbers("a (os error 2): b (os error x) (os error 17)"), "a: b (os error x)");
    }

    /// Exit statuses are told in the README, in the help and in the pages made from it; these are all that there are.
    #[test]
    fn exit_statuses_are_those_that_are_told() {
        use clap::CommandFactory as _;
        const ALL: [(Class, &str); 8] = [
            (Class::Usage, "usage"),
            (Class::Corrupt, "corrupt"),
            (Class::Refused, "refused"),
            (Class::Internal, "internal"),
            (Class::Failed, "failed"),
            (Class::Changed, "changed"),
            (Class::NotExecutable, "notexecutable"),
            (Class::NoProgram, "noprogram"),
        ];
        let readme = include_str!("../../../README.md");
        let rows = readme.lines().skip_while(|line| !line.starts_with("| status |")).skip(2);
        let told: Vec<(u8, &str)> = rows
            .take_while(|line| line.starts_with('|'))
            .map(|row| {
                let mut cells = row.trim_matches('|').split('|').map(str::trim);
                (cells.next().unwrap().parse().unwrap(), cells.next().unwrap())
            })
            .collect();
        let all = ALL.map(|(class, name)| (class.status(), name));
        for (class, name) in ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), name);
        }
        assert_eq!(told, std::iter::once((0, "")).chain(all).collect::<Vec<_>>());
        let help = crate::cli::Cli::command().get_after_help().unwrap().to_string();
        let list = help.lines().skip_while(|line| *line != "Exit status:").skip(1).take_while(|line| !line.is_empty());
        let told: Vec<u8> = list
            .flat_map(|line| {
                line.trim_start().split("  ").next().unwrap().split(", ").map(|text| text.parse().unwrap())
            })
            .collect();
        assert_eq!(told, std::iter::once(0).chain(all.map(|(status, _)| status)).collect::<Vec<_>>());
    }

    #[test]
    fn what_holds_of_many_descriptors_is_told_once() {
        let note = |pid, fd, path: &str| Obstacle {
            code: "outside-terminal".to_owned(),
            object: "terminal".to_owned(),
            pid: Some(pid),
            fd: Some(fd),
            path: Some(path.to_owned()),
            cause: "it lies outside of the tree".to_owned(),
            remedy: "becomes that of the restoring command".to_owned(),
        };
        let mut notes: Vec<Obstacle> = (7..9).flat_map(|pid| [0, 1, 2].map(|fd| note(pid, fd, "/dev/pts/0"))).collect();
        notes.push(note(7, 3, "/dev/pts/1"));
        let told = told_once(&notes);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(crate::output::in_the_way(&notes), "2 objects stand in the way");
        let holders = "[outside-terminal] terminal (pid 7, fd 0, 1, 2; pid 8, fd 0, 1, 2; /dev/pts/0): it lies";
        assert!(told[0].starts_with(holders), "{told:?}");
        assert!(told[1].starts_with("[outside-terminal] terminal (pid 7, fd 3, /dev/pts/1): it lies"), "{told:?}");
        let many: Vec<Obstacle> = (7..107).map(|pid| note(pid, 0, "/dev/pts/0")).collect();
        let told = told_once(&many);
        assert!(told[0].contains("pid 10, fd 0; and 96 more processes; /dev/pts/0)"), "{told:?}");
        assert_eq!(told.len(), 1);
    }

    #[test]
    fn many_of_a_code_are_one_line() {
        let note = |code: &str, number: usize, cause: &str| Obstacle {
            code: code.to_owned(),
            object: "file".to_owned(),
            pid: None,
            fd: None,
            path: Some(format!("/data/{number}\n")),
            cause: cause.to_owned(),
            remedy: "keep it with --files".to_owned(),
        };
        let few: Vec<Obstacle> = (0..20).map(|number| note("rollback-aside", number, "new")).collect();
        assert_eq!(told_once(&few).len(), 20);
        let many = (0..300).map(|number| note("rollback-written", number, "it was written"));
        let all: Vec<Obstacle> = few.into_iter().chain(many).chain([note("rollback-aside", 21, "late")]).collect();
        let told = told_once(&all);
        let written = "[rollback-written] 300 times file (/data/0\\n, /data/1\\n, /data/2\\n, /data/3\\n, ...; \
                       --json or -v names all): it was written\n      keep it with --files";
        assert!(told.len() == 2 && told[1] == written, "{told:?}");
        assert!(
            told[0].starts_with("[rollback-aside] 21 times file (") && told[0].contains("): the first of them: new")
        );
    }

    #[test]
    fn a_failure_survives_the_way_between_our_processes() {
        let mut failure = Failure::refused("io-uring", "1 object stands in the way").remedy("close it");
        failure.refusals.push(Obstacle {
            code: "io-uring".to_owned(),
            object: "io_uring instance".to_owned(),
            pid: Some(7),
            fd: Some(3),
            path: None,
            cause: "its rings are the kernel's".to_owned(),
            remedy: "wait".to_owned(),
        });
        let text = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
        let shown = failure.to_string();
        assert!(shown.contains("[io-uring] io_uring instance (pid 7, fd 3): its rings"), "{shown}");
    }
}
