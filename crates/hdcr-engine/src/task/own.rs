//! What the restoring process itself is and may: its tasks start with all of that.

use std::fs;

use crate::error::{Error, Result};
use crate::procfs::{self, KeyValues, Stat};

/// Capabilities (`<linux/capability.h>`).
pub(super) const CAP_SYS_NICE: u64 = 1 << 23;
pub(super) const CAP_SYS_RESOURCE: u64 = 1 << 24;

fn read(name: &str) -> Result<Vec<u8>> {
    procfs::at_once(&format!("/proc/self/{name}")).map_err(Error::system("reading /proc", format!("self, {name}")))
}

fn odd(name: &str) -> Error {
    Error::Changed { subject: format!("/proc/self/{name}"), what: "it cannot be read".to_owned() }
}

/// Its `status`.
pub(super) fn status() -> Result<KeyValues> {
    Ok(KeyValues::parse(&read("status")?))
}

/// Its `stat`.
pub(super) fn stat() -> Result<Stat> {
    procfs::parse_stat(&read("stat")?).ok_or_else(|| odd("stat"))
}

/// Its process number.
pub(super) fn pid() -> crate::ids::Pid {
    crate::ids::Pid(rustix::process::getpid().as_raw_nonzero().get())
}

/// A number in a file.
pub(super) fn number(name: &str) -> Result<i32> {
    String::from_utf8_lossy(&read(name)?).trim().parse().map_err(|_| odd(name))
}

/// Whether it has a capability over the whole system: one in a user namespace of its own does not count.
pub(super) fn rules_system(capability: u64) -> Result<bool> {
    let held = status()?.hex("CapEff").unwrap_or(0) & capability != 0;
    Ok(held && is_whole(&String::from_utf8_lossy(&read("uid_map")?)))
}

/// Whether a `uid_map` is that of the first user namespace.
fn is_whole(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether its groups may be set; not in a user namespace that somebody without rights made.
pub(super) fn may_set_groups() -> bool {
    !fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny"))
}

/// The numbers that mean a user or a group here, as first number and count: in a user namespace most mean nobody.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers(Vec<(u32, u32)>);

impl Numbers {
    /// Of users (`uid_map`) or of groups (`gid_map`).
    pub(super) fn of(name: &str) -> Result<Self> {
        Ok(Self::parse(&String::from_utf8_lossy(&read(name)?)))
    }

    pub(super) fn parse(map: &str) -> Self {
        let ranges = map.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (first, count) = (words.next()?, words.nth(1)?);
            Some((first.parse().ok()?, count.parse().ok()?))
        });
        Self(ranges.collect())
    }

    /// Whether a number is one of them.
    pub(super) fn have(&self, number: u32) -> bool {
        self.0.iter().any(|(first, count)| number.checked_sub(*first).is_some_and(|place| place < *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_map() {
        let numbers = Numbers::parse("         0       1000          1\n      2000     100000      65536\n");
        assert!(numbers.have(0) && numbers.have(2000) && numbers.have(67_535));
        assert!(!numbers.have(1) && !numbers.have(67_536) && !numbers.have(u32::MAX));
        assert!(Numbers::of("uid_map").unwrap().have(rustix::process::getuid().as_raw()));
    }

    #[test]
    fn a_namespace_of_its_own_is_not_the_system() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("      1000       1000          1\n"));
        assert!(!is_whole(""));
    }

    #[test]
    fn it_can_be_asked() {
        assert!(status().is_ok() && stat().is_ok() && number("oom_score_adj").is_ok());
        assert!(number("status").is_err());
    }
}
