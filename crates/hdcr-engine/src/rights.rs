//! With whose rights this process acts on files: while it brings a program's files back, with those of that program.
//!
//! A restore by root finds, makes and rolls back files in directories that belong to the program's user, who may put a link
//! into any of them meanwhile. With the user's own numbers, groups and capabilities the kernel itself sees to it that
//! nothing is reached that the program could not have reached (setfsuid(2), credentials(7)). All calls here change the
//! calling thread only. `docs/adr/0004-files-with-the-rights-of-the-program.md`.

use std::collections::BTreeMap;

use nix::unistd;
use rustix::fs::{Gid, Uid};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Error, Result};
use crate::ids::Pid;

/// The capabilities that count for files: `CAP_FS_SET` of the kernel's `<linux/capability.h>`.
const OF_FILES: u64 = 0x1f | 1 << 9 | 1 << 27 | 1 << 32;
const CAP_DAC_OVERRIDE: u64 = 1 << 1;

/// Numbers, groups and capabilities by which the kernel decides what may be done to a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rights {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// In ascending order.
    pub(crate) groups: Vec<u32>,
    /// Those that count for files.
    pub(crate) capabilities: u64,
}

fn failed(operation: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    Error::system(operation, "this process")
}

fn sets() -> Result<CapabilitySets> {
    rustix::thread::capabilities(None).map_err(failed("asking for capabilities"))
}

impl Rights {
    /// From credentials; `effective` are all effective capabilities.
    pub(crate) fn new(uid: u32, gid: u32, groups: &[u32], effective: u64) -> Self {
        let mut groups = groups.to_vec();
        groups.sort_unstable();
        Self { uid, gid, groups, capabilities: effective & OF_FILES }
    }

    /// Those of this thread now.
    pub(crate) fn now() -> Result<Self> {
        // There is no other way to ask for these two; a number that is none changes nothing.
        let nobody = u32::MAX;
        let (uid, gid) = (unistd::setfsuid(nobody.into()), unistd::setfsgid(nobody.into()));
        let groups = rustix::process::getgroups().map_err(failed("asking for groups"))?;
        let groups: Vec<u32> = groups.into_iter().map(Gid::as_raw).collect();
        Ok(Self::new(uid.as_raw(), gid.as_raw(), &groups, sets()?.effective.bits()))
    }

    /// Those that this process has for its own work.
    fn own() -> Result<Self> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Ok(Self { uid, gid, capabilities: sets()?.permitted.bits() & OF_FILES, ..Self::now()? })
    }

    /// Whether modes of files do not bind it.
    fn is_unbound(&self) -> bool {
        self.capabilities & CAP_DAC_OVERRIDE != 0
    }

    fn put(&self) -> Result<()> {
        let now = Self::now()?;
        if now.groups != self.groups {
            let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
            rustix::thread::set_thread_groups(&groups).map_err(failed("taking the groups of the program"))?;
        }
        unistd::setfsgid(self.gid.into());
        unistd::setfsuid(self.uid.into());
        let CapabilitySets { effective, permitted, inheritable } = sets()?;
        let wanted = (effective.bits() & !OF_FILES) | (permitted.bits() & self.capabilities);
        if wanted != effective.bits() {
            let effective = CapabilitySet::from_bits_retain(wanted);
            rustix::thread::set_capabilities(None, CapabilitySets { effective, permitted, inheritable })
                .map_err(failed("taking the capabilities of the program"))?;
        }
        let now = Self::now()?;
        let same = Self { capabilities: now.capabilities, ..self.clone() } == now;
        // Fewer capabilities than wanted may be all that there are to give.
        if same && now.capabilities & !self.capabilities == 0 {
            return Ok(());
        }
        Err(failed("acting with the rights of the program")(rustix::io::Errno::PERM))
    }
}

/// Acts with other rights until it is dropped.
#[derive(Debug)]
#[must_use = "ends at once when it is not kept"]
pub(crate) struct Turn {
    before: Option<Rights>,
}

impl Turn {
    /// Acts as before.
    pub(crate) const fn none() -> Self {
        Self { before: None }
    }

    /// Acts with these rights.
    pub(crate) fn to(rights: &Rights) -> Result<Self> {
        let before = Rights::now()?;
        if before == *rights {
            return Ok(Self::none());
        }
        // From here on even a change that fails in the middle is taken back.
        let turn = Self { before: Some(before) };
        kept(|| rights.put())?;
        Ok(turn)
    }

    /// Acts with these, if any.
    pub(crate) fn to_some(rights: Option<&Rights>) -> Result<Self> {
        rights.map_or(Ok(Self::none()), Self::to)
    }

    /// Acts with the rights of this process itself: on what is its own, and on what is known by more than a name.
    pub(crate) fn home() -> Result<Self> {
        Self::to(&Rights::own()?)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(before) = self.before.take()
            && let Err(error) = kept(|| before.put())
        {
            tracing::error!(%error, "this process acts with too few rights from here on");
        }
    }
}

/// A change of these numbers makes a process unreadable and forgets its parent-death signal (`commit_creds` in
/// kernel/cred.c): both are put back.
fn kept(change: impl FnOnce() -> Result<()>) -> Result<()> {
    let dumpable = rustix::process::dumpable_behavior();
    let signal = rustix::process::parent_process_death_signal();
    let done = change();
    if let Ok(dumpable @ (DumpableBehavior::Dumpable | DumpableBehavior::NotDumpable)) = dumpable {
        rustix::process::set_dumpable_behavior(dumpable).map_err(failed("staying readable"))?;
    }
    if let Ok(Some(signal)) = signal {
        rustix::process::set_parent_process_death_signal(Some(signal)).map_err(failed("staying tied to the parent"))?;
    }
    done
}

/// The rights of the processes of a tree; empty when this process has no others to give than its own.
#[derive(Debug, Default)]
pub(crate) struct TreeRights {
    first: Option<Pid>,
    of: BTreeMap<Pid, Rights>,
}

impl TreeRights {
    /// From the rights of each process, the root's first. `may_set_groups`: whether groups can be given at all.
    pub(crate) fn new(of: Vec<(Pid, Rights)>, may_set_groups: bool) -> Result<Self> {
        let wanted = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let own = Rights::own()?;
        if !may_set_groups || !sets()?.effective.contains(wanted) || of.iter().all(|(_, rights)| *rights == own) {
            return Ok(Self::default());
        }
        Ok(Self { first: of.first().map(|(pid, _)| *pid), of: of.into_iter().collect() })
    }

    /// Those of a process.
    pub(crate) fn of(&self, pid: Pid) -> Option<&Rights> {
        self.of.get(&pid)
    }

    /// Those that what several processes share was reached with: the widest of theirs, else those of the root.
    pub(crate) fn of_any(&self, pids: impl Iterator<Item = Pid>) -> Option<&Rights> {
        let mut found: Vec<&Rights> = pids.filter_map(|pid| self.of(pid)).collect();
        found.sort_by_key(|rights| std::cmp::Reverse((rights.is_unbound(), rights.uid == 0)));
        found.first().copied().or_else(|| self.of_root())
    }

    /// Those of the process of the tree that a file of this user belongs to, else those of the root.
    pub(crate) fn of_user(&self, user: Uid) -> Option<&Rights> {
        self.of.values().find(|rights| rights.uid == user.as_raw()).or_else(|| self.of_root())
    }

    /// Those of the root.
    pub(crate) fn of_root(&self) -> Option<&Rights> {
        self.first.and_then(|pid| self.of(pid))
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// A thread of its own: what a test changes does not show in another.
    fn alone(test: fn()) {
        if rustix::process::geteuid().is_root() {
            std::thread::spawn(test).join().unwrap();
        }
    }

    #[test]
    fn a_turn_gives_the_rights_of_a_user_and_takes_them_back() {
        alone(|| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let open = || rustix::fs::open(file.path(), rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
            let (before, dumpable) = (Rights::now().unwrap(), rustix::process::dumpable_behavior().unwrap());
            let user = Rights::new(12345, 12346, &[7, 5], 0);
            {
                let _turn = Turn::to(&user).unwrap();
                assert_eq!(Rights::now().unwrap(), user);
                assert_eq!(open().unwrap_err(), Errno::ACCESS);
                {
                    let _turn = Turn::home().unwrap();
                    assert!(open().is_ok());
                }
                assert_eq!(Rights::now().unwrap(), user);
                assert_eq!(open().unwrap_err(), Errno::ACCESS);
            }
            assert_eq!(Rights::now().unwrap(), before);
            assert!(open().is_ok());
            assert_eq!(rustix::process::dumpable_behavior().unwrap(), dumpable);
        });
    }

    #[test]
    fn who_shares_a_file_gives_it_the_widest_rights() {
        alone(|| {
            let (root, user, other) = (Rights::own().unwrap(), Rights::new(1, 1, &[1], 0), Rights::new(2, 2, &[2], 0));
            let all = vec![(Pid(5), user.clone()), (Pid(6), root.clone()), (Pid(7), other.clone())];
            let tree = TreeRights::new(all, true).unwrap();
            assert_eq!(tree.of_any([Pid(7), Pid(6)].into_iter()), Some(&root));
            assert_eq!(tree.of_any([Pid(7)].into_iter()), Some(&other));
            assert_eq!(tree.of_any(std::iter::empty()), Some(&user));
            assert_eq!(tree.of_user(Uid::from_raw(2)), Some(&other));
            assert_eq!(tree.of_user(Uid::from_raw(9)), Some(&user));
            assert!(TreeRights::new(vec![(Pid(5), root)], true).unwrap().of_root().is_none(), "nothing to change");
        });
    }
}
