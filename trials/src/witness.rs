//! The second witness: what /proc says about a tree, as a flat list that two looks are compared by.
//!
//! The guest judges its own state; this sees what a guest cannot or does not look at. Inode numbers of pipes,
//! sockets and deleted files change in a restore by right: they become numbers by first appearance, so that
//! *sharing* is still compared.

mod descriptors;
mod fields;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Everything seen, keyed by task and entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Witness {
    pub(crate) entries: BTreeMap<String, String>,
    pub(crate) pids: Vec<u32>,
    identities: BTreeMap<String, usize>,
    at_work: bool,
}

/// Files that are compared as they are.
const WHOLE: [&str; 10] = [
    "cmdline",
    "environ",
    "auxv",
    "limits",
    "personality",
    "oom_score_adj",
    "coredump_filter",
    "timerslack_ns",
    "timers",
    "cgroup",
];

/// Looks until a tree is taken for at rest, and how many are given to one of which a task runs all the time.
const LOOKS: usize = 200;
const LOOKS_AT_WORK: usize = 10;

impl Witness {
    /// Looks at `root` and its descendants when they are at rest: the one that says "ready" does not know whether
    /// another is still at its work, with a file open for a moment. Two looks one after the other are the same, in
    /// what is compared, and no task was at work in either; a program that always works needs only be the same.
    pub(crate) fn at_rest(root: u32, except: &[String]) -> Result<Witness> {
        let mut last = Witness::look(root)?;
        for look in 1..LOOKS {
            let next = Witness::look(root)?;
            let at_work = last.at_work || next.at_work;
            if last.differences(&next, except).is_empty() && (!at_work || look >= LOOKS_AT_WORK) {
                return Ok(next);
            }
            last = next;
        }
        anyhow::bail!("the processes of {root} did not come to rest in {LOOKS} looks")
    }

    /// Looks at `root` and all its descendants.
    pub(crate) fn look(root: u32) -> Result<Witness> {
        let mut seen = Witness { pids: tree(root)?, ..Witness::default() };
        for pid in seen.pids.clone() {
            seen.process(pid, pid == root);
        }
        Ok(seen)
    }

    fn process(&mut self, pid: u32, is_root: bool) {
        let own = PathBuf::from(format!("/proc/{pid}"));
        for (name, value) in fields::stat(&own.join("stat"), is_root) {
            self.put(pid, &format!("stat/{name}"), value);
        }
        // A leader that has ended before its threads has nothing to show; a living thread has.
        let dead = |tid: &String| self.entries.get(&format!("{tid}/stat/state")).is_some_and(|state| state == "Z");
        let home = match names(&own.join("task")).into_iter().find(|tid| *tid != pid.to_string()) {
            Some(thread) if dead(&pid.to_string()) => PathBuf::from(format!("/proc/{thread}")),
            _ => own,
        };
        for name in WHOLE {
            let text = fs::read(home.join(name));
            let text = text.map(|t| String::from_utf8_lossy(&t).replace('\0', "\\0"));
            self.put(pid, name, text.unwrap_or_else(|e| format!("{:?}", e.kind())));
        }
        for name in ["cwd", "root", "exe"] {
            self.put(pid, name, link(&home.join(name)));
        }
        for name in names(&home.join("ns")) {
            self.put(pid, &format!("ns/{name}"), link(&home.join("ns").join(&name)));
        }
        for tid in names(&home.join("task")) {
            let task = home.join("task").join(&tid);
            for (name, value) in fields::status(&task.join("status"), is_root) {
                self.put(pid, &format!("task/{tid}/{name}"), value);
            }
            self.at_work |= fields::at_work(&task.join("stat"));
            for (name, value) in fields::scheduling(&task.join("stat")) {
                self.put(pid, &format!("task/{tid}/{name}"), value);
            }
        }
        self.mappings(pid, &home);
        for number in names(&home.join("fd")) {
            let (link, info) = descriptors::look(&home, &number);
            let link = self.by_identity(link);
            self.put(pid, &format!("fd/{number}"), format!("{link} {info}"));
        }
    }

    fn mappings(&mut self, pid: u32, home: &Path) {
        let text = fs::read_to_string(home.join("smaps")).unwrap_or_default();
        let (mut header, mut found) = (None, Vec::new());
        for line in text.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                let Some((range, rest)) = header.take() else {
                    continue;
                };
                found.push((range, format!("{rest} {}", flags.trim())));
            } else if let Some(parsed) = descriptors::mapping(line) {
                let (range, facts, identity) = parsed;
                let identity = self.by_identity(identity);
                header = Some((range, format!("{facts} {identity}")));
            }
        }
        for (range, facts) in joined(found) {
            self.put(pid, &format!("maps/{range}"), facts);
        }
    }

    /// Replaces the identity in `name[identity]` by the number of its first appearance.
    fn by_identity(&mut self, (name, identity): (String, Option<String>)) -> String {
        let Some(identity) = identity else {
            return name;
        };
        let next = self.identities.len();
        let number = *self.identities.entry(format!("{name}{identity}")).or_insert(next);
        format!("{name}#{number}")
    }

    fn put(&mut self, pid: u32, name: &str, value: String) {
        self.entries.insert(format!("{pid}/{name}"), value);
    }

    /// What differs, without the entries that contain a word of `except`.
    pub(crate) fn differences(&self, after: &Witness, except: &[String]) -> Vec<String> {
        let keys = self.entries.keys().chain(after.entries.keys());
        let keys: std::collections::BTreeSet<&String> = keys.collect();
        let absent = "absent".to_owned();
        keys.into_iter()
            .filter(|key| !except.iter().any(|word| key.contains(word.as_str())))
            .filter_map(|key| {
                let old = self.entries.get(key).unwrap_or(&absent);
                let new = after.entries.get(key).unwrap_or(&absent);
                (old != new).then(|| format!("{key}: {old:?} became {new:?}"))
            })
            .collect()
    }
}

/// Neighbours that nothing tells apart as one: whether the kernel joins anonymous mappings depends on how they came to lie
/// side by side.
fn joined(mappings: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for (range, facts) in mappings {
        if let (Some((last, before)), Some((start, end))) = (all.last_mut(), range.split_once('-'))
            && *before == facts
            && facts.contains(" 00:00 0  ")
            && let Some((first, _)) = last.split_once('-').filter(|(_, last)| *last == start)
        {
            *last = format!("{first}-{end}");
        } else {
            all.push((range, facts));
        }
    }
    all
}

/// The process and its descendants, parents first.
fn tree(root: u32) -> Result<Vec<u32>> {
    let mut pids = vec![root];
    let mut at = 0;
    while let Some(&pid) = pids.get(at) {
        let tasks = format!("/proc/{pid}/task");
        let mut children: Vec<u32> = Vec::new();
        for tid in names(Path::new(&tasks)) {
            let text = fs::read_to_string(format!("{tasks}/{tid}/children")).unwrap_or_default();
            for child in text.split_whitespace() {
                children.push(child.parse()?);
            }
        }
        children.sort_unstable();
        pids.extend(children);
        at += 1;
    }
    Ok(pids)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort_by_key(|n| (n.len(), n.clone()));
    names
}

fn link(path: &Path) -> String {
    fs::read_link(path).map_or_else(|e| format!("{:?}", e.kind()), |to| descriptors::shown(&to.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_equals_itself() {
        let me = std::process::id();
        let mut one = Witness::default();
        let mut two = Witness::default();
        one.put(me, "limits", "a".to_owned());
        two.put(me, "limits", "b".to_owned());
        assert_eq!(one.differences(&one, &[]), Vec::<String>::new());
        assert_eq!(one.differences(&two, &["limits".to_owned()]), Vec::<String>::new());
        assert_eq!(one.differences(&two, &[]), [format!("{me}/limits: \"a\" became \"b\"")]);
    }

    #[test]
    fn who_looks_is_at_work() {
        assert!(Witness::look(std::process::id()).unwrap().at_work);
    }

    #[test]
    fn identities_keep_sharing() {
        let mut seen = Witness::default();
        let mut pipe = |n: &str| seen.by_identity(("pipe".to_owned(), Some(n.to_owned())));
        assert_eq!((pipe("77"), pipe("5"), pipe("77")), ("pipe#0".into(), "pipe#1".into(), "pipe#0".into()));
    }
}
