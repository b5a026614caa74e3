//! Which machine a job runs on: a store may be shared by several, and none sees the processes of another.
//!
//! A boot is known by a number that no other boot of any machine has. A job of another boot of this machine died with it;
//! one of another machine may live.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::process;

/// A machine, and a boot of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Host {
    /// machine-id(5); copies of a machine may have the same one.
    #[serde(default)]
    machine: String,
    /// Its name in the network.
    #[serde(default, rename = "host")]
    name: String,
    /// `/proc/sys/kernel/random/boot_id`.
    #[serde(default)]
    boot: String,
}

impl Host {
    /// This one, now.
    pub(crate) fn here() -> Self {
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { machine: machine.trim().to_owned(), name, boot: process::boot() }
    }

    /// Whether it is this machine, in this boot of it.
    pub(crate) fn is_this_boot(&self) -> bool {
        self.boot.is_empty() || self.boot == process::boot()
    }

    /// Whether it is another machine. Of records of old, which do not say, it is not known.
    pub(crate) fn is_elsewhere(&self) -> bool {
        let known = !(self.machine.is_empty() && self.name.is_empty());
        let here = Self::here();
        known && !self.is_this_boot() && (&self.machine, &self.name) != (&here.machine, &here.name)
    }

    /// How people call it.
    pub(crate) fn called(&self) -> &str {
        if self.name.is_empty() { &self.machine } else { &self.name }
    }

    /// Why a job of that machine is left alone here.
    pub(crate) fn refusal(&self, job: &str) -> Failure {
        let host = self.called();
        let message =
            format!("job {job} runs on host {host}, which shares this store, or ran there when that was lost");
        Failure::refused("job-elsewhere", message).remedy(format!(
            "end it there (`hdcr stop {job}` on {host}); when that machine, or the job on it, is gone for good: --take-over"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_of_this_machine_is_not_another_machine() {
        let here = Host::here();
        assert!(here.is_this_boot() && !here.is_elsewhere());
        let boot = "00000000-0000-4000-8000-000000000000".to_owned();
        let before = Host { boot: boot.clone(), ..here.clone() };
        assert!(!before.is_this_boot() && !before.is_elsewhere());
        for other in
            [Host { name: "other".to_owned(), ..before.clone() }, Host { machine: "other".to_owned(), ..before }]
        {
            assert!(other.is_elsewhere(), "{other:?}");
        }
        // A name can be changed while it runs.
        assert!(!Host { name: "other".to_owned(), ..here }.is_elsewhere());
        assert!(!Host { boot, ..Host::default() }.is_elsewhere(), "a record of old");
    }
}
