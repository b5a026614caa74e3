//! The flags of mappings, as `/proc/PID/smaps` tells them: only together with a walk over all pages (30 ms a GiB).
//!
//! They are read while the program runs, and in the stop it is enough that the mappings are the same. From one image of a
//! series to the next they are read again when the mappings are not the same, and when they are a second old.

use std::time::{Duration, Instant};

use crate::ids::Pid;
use crate::procfs::{self, MapLine};

use super::space::maps;

/// For so long flags are taken for the same while the mappings are.
const FRESH: Duration = Duration::from_secs(1);

/// The mappings of one process with their flags.
#[derive(Debug, Default)]
pub(crate) struct Flags(Option<(Instant, Vec<MapLine>)>);

impl Flags {
    /// Its mappings with their flags, as of now or of a moment ago; none when they cannot be read.
    pub(crate) fn look(&mut self, pid: Pid) -> &[MapLine] {
        let still = self.0.as_ref().is_some_and(|(when, lines)| {
            when.elapsed() < FRESH && maps(pid).is_ok_and(|now| with_known_flags(now, lines).is_some())
        });
        if !still {
            let lines = procfs::read(pid, "smaps").ok().and_then(|text| procfs::parse_smaps(&text));
            self.0 = Some((Instant::now(), lines.unwrap_or_default()));
        }
        self.known()
    }

    /// A mapping is another one than it was: all are read again.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }

    /// What was read last.
    pub(crate) fn known(&self) -> &[MapLine] {
        self.0.as_ref().map_or(&[], |(_, lines)| lines.as_slice())
    }
}

/// The flag that a followed mapping has and its program knows nothing of.
const OURS: [u8; 2] = *b"uw";

/// The mappings of a followed process as they are now, with the flags that they had a moment ago. `None`: one is new, and its
/// flags are not known.
pub(crate) fn with_known_flags(now: Vec<MapLine>, known: &[MapLine]) -> Option<Vec<MapLine>> {
    let mut lines = now;
    for line in &mut lines {
        // Both in the order of addresses.
        let before = known.binary_search_by_key(&line.range.start, |before| before.range.start).ok()?;
        let before = known.get(before)?;
        let same = before.range.end <= line.range.end
            && (before.perms, before.offset, before.device, before.inode)
                == (line.perms, line.offset, line.device, line.inode)
            && before.name == line.name;
        if !same {
            return None;
        }
        line.vm_flags.clone_from(&before.vm_flags);
        line.protection_key = before.protection_key;
    }
    without_ours(&mut lines);
    Some(lines)
}

/// Takes our own flag off the mappings of a followed process.
pub(crate) fn without_ours(lines: &mut [MapLine]) {
    for line in lines {
        line.vm_flags.retain(|code| *code != OURS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(start: u64, end: u64, flags: &[[u8; 2]]) -> MapLine {
        MapLine {
            range: start..end,
            perms: *b"rw-p",
            offset: 0,
            device: (0, 0),
            inode: 0,
            name: Vec::new(),
            vm_flags: flags.to_vec(),
            protection_key: 0,
        }
    }

    #[test]
    fn known_flags_are_taken_over_and_new_mappings_are_told() {
        let known = [line(1, 5, &[*b"rd", *b"uw"]), line(7, 9, &[*b"hg"])];
        let now = vec![line(1, 6, &[]), line(7, 9, &[])];
        let found = with_known_flags(now, &known).unwrap();
        assert_eq!(found, [line(1, 6, &[*b"rd"]), line(7, 9, &[*b"hg"])]);
        assert_eq!(with_known_flags(vec![line(2, 5, &[])], &known), None);
        assert_eq!(with_known_flags(vec![line(7, 8, &[])], &known), None);
    }
}
