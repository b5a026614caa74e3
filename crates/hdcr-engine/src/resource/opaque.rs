//! Kernel objects behind descriptors that cannot be made again: refused by name, before anything is stopped.

use std::os::fd::OwnedFd;

use hdcr_image::{Record, Tag};

use super::{FileKind, FileView};
use crate::capture::Capture;
use crate::error::{Error, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::survey::Survey;

pub(crate) struct Opaque;

/// Never in an image.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OpaqueRecord {}

impl Record for OpaqueRecord {
    const TAG: Tag = Tag(0x02fe);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The start of a link, the code and the name.
const KNOWN: &[(&str, &str, &str)] = &[
    ("anon_inode:[io_uring]", "io-uring", "io_uring instance"),
    ("anon_inode:[userfaultfd]", "userfaultfd", "userfaultfd"),
    ("anon_inode:[perf_event]", "perf-event", "perf event"),
    ("anon_inode:[fanotify]", "fanotify", "fanotify group"),
    ("anon_inode:bpf", "bpf", "BPF object"),
    ("anon_inode:[bpf", "bpf", "BPF object"),
    ("anon_inode:btf", "bpf", "BPF type information"),
    ("anon_inode:landlock-ruleset", "landlock", "Landlock ruleset"),
    ("anon_inode:[landlock-ruleset]", "landlock", "Landlock ruleset"),
    ("anon_inode:seccomp", "seccomp-notify", "seccomp listener"),
    ("anon_inode:[seccomp", "seccomp-notify", "seccomp listener"),
    ("anon_inode:kvm", "kvm", "KVM object"),
    ("anon_inode:[kvm", "kvm", "KVM object"),
    ("anon_inode:[fscontext]", "mount-context", "mount in the making"),
    ("anon_inode:", "anonymous-inode", "kernel object without a name"),
    ("cgroup:[", "namespace-file", "namespace"),
    ("ipc:[", "namespace-file", "namespace"),
    ("mnt:[", "namespace-file", "namespace"),
    ("net:[", "namespace-file", "namespace"),
    ("pid:[", "namespace-file", "namespace"),
    ("time:[", "namespace-file", "namespace"),
    ("user:[", "namespace-file", "namespace"),
    ("uts:[", "namespace-file", "namespace"),
];

fn known(view: &FileView) -> Option<&'static (&'static str, &'static str, &'static str)> {
    KNOWN.iter().find(|(start, ..)| view.starts_with(start))
}

fn refusal(view: &FileView) -> Refusal {
    let (_, code, name) = known(view).copied().unwrap_or(("", "anonymous-inode", "kernel object"));
    view.refuse(code, name, "its state in the kernel cannot be read and made again", "close it before the checkpoint")
}

impl FileKind for Opaque {
    type Record = OpaqueRecord;

    fn claims(view: &FileView) -> bool {
        known(view).is_some()
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        survey.refuse(refusal(view));
        Ok(())
    }

    fn capture(_cx: &mut Capture<'_>, view: &FileView, _file: &OwnedFd) -> Result<OpaqueRecord> {
        Err(Error::refuse(refusal(view)))
    }

    fn restore(_cx: &mut Restore<'_>, id: ObjectId, _record: OpaqueRecord) -> Result<OwnedFd> {
        Err(Error::Unsound(format!("{id} is a kernel object that no checkpoint holds")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::testing;

    #[test]
    fn each_is_refused_under_its_own_code() {
        for (link, code) in [
            ("anon_inode:[io_uring]", "io-uring"),
            ("anon_inode:[perf_event]", "perf-event"),
            ("anon_inode:bpf-map", "bpf"),
            ("anon_inode:[something new]", "anonymous-inode"),
            ("net:[4026531840]", "namespace-file"),
        ] {
            assert_eq!(refusal(&testing::view(link, 2)).code, code);
            assert!(Opaque::claims(&testing::view(link, 2)));
        }
        assert!(!Opaque::claims(&testing::view("/net:[1]", 2)));
    }
}
