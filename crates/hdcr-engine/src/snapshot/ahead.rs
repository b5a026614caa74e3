//! From the first stop, which prepares, to the last one: what is copied in between.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::kept::{Kept, length};
use super::outlet::Outlet;
use super::space::{Last, Space};
use crate::checkpoint::Request;
use crate::error::Result;
use crate::ids::Pid;
use crate::mechanism::{Deadline, Mechanism};
use crate::memory::kin;
use crate::model::ObjectId;
use crate::procfs::{self, MapLine};

/// As few pages as this are read in the stop without another round: that takes some two milliseconds.
const FEW: u64 = 1000;
/// When so many rounds have not sufficed, more will not.
const ROUNDS: u32 = 12;
/// Room for what the stop reads of each page that the last round has copied.
const ROOM: u64 = 3 * 4096;
/// Bytes that go out at once.
const LOAD: usize = 1 << 20;
/// Room for what is never copied ahead.
const REST: u64 = 8 << 20;

/// What was copied before the stop, and what the stop finds prepared.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    spaces: BTreeMap<Pid, Space>,
    /// Buffers for the stop.
    pub(crate) kept: Kept,
    /// Mappings with their flags, as they were just before the stop.
    pub(crate) known: BTreeMap<Pid, Vec<MapLine>>,
    /// Numbers that objects have already.
    pub(crate) next_id: u64,
    /// What an address space holds alike with another one (space, other, where): the image holds it once.
    pub(crate) alike: Vec<(ObjectId, ObjectId, Range<u64>)>,
    /// What the image holds and must not, found in the stop.
    forgotten: Vec<(ObjectId, Range<u64>)>,
    /// How long the tree stood still so that this could begin.
    pub(crate) stood: Duration,
    /// Processes that were to be followed and could not be, and why.
    pub(crate) refused: Vec<String>,
}

impl Ahead {
    /// Begins to follow these processes. They stand still for a moment.
    pub(crate) fn begin(mechanism: &dyn Mechanism, request: &Request, pids: &[Pid], by: Deadline) -> Result<Self> {
        let mut ahead = Self::default();
        let began = Instant::now();
        let mut frozen = mechanism.freeze(request.scope, by)?;
        let alive: Vec<Pid> = frozen
            .processes()
            .iter()
            .filter(|process| !process.threads.is_empty())
            .map(|process| process.pid)
            .collect();
        for pid in pids.iter().filter(|pid| alive.contains(pid)) {
            match frozen.follow(*pid) {
                Ok(watch) => {
                    ahead.next_id += 1;
                    ahead.spaces.insert(*pid, Space::new(*pid, ObjectId(ahead.next_id), watch));
                }
                Err(error) => ahead.refuse(*pid, &error.into()),
            }
        }
        frozen.thaw()?;
        ahead.stood = began.elapsed();
        Ok(ahead)
    }

    fn refuse(&mut self, pid: Pid, error: &crate::error::Error) {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        tracing::info!(pid = pid.0, %error, "its memory is read in the stop");
        self.refused.push(format!("process {pid}: {error}{cause}"));
    }

    /// Copies in rounds until little is left.
    pub(crate) fn rounds(&mut self, out: &mut Outlet) -> Result<()> {
        self.round(out)?;
        let mut before = u64::MAX;
        let mut pages = u64::MAX;
        for _ in 1..ROUNDS {
            pages = self.round(out)?;
            if pages <= FEW || pages > before / 4 * 3 {
                break;
            }
            before = pages;
        }
        self.look_at_mappings();
        pages = pages.min(self.round(out)?.max(FEW));
        self.make_ready(pages.saturating_mul(ROOM).saturating_add(REST));
        Ok(())
    }

    /// Touches buffers for so many bytes.
    pub(crate) fn make_ready(&mut self, bytes: u64) {
        self.kept.make_ready(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    /// One round in all processes; one in which it fails is given up.
    fn round(&mut self, out: &mut Outlet) -> Result<u64> {
        let mut pages = 0;
        for (pid, mut space) in std::mem::take(&mut self.spaces) {
            match space.round(out) {
                Ok(more) => {
                    pages += more;
                    self.spaces.insert(pid, space);
                }
                Err(error @ crate::error::Error::Image(_)) => return Err(error),
                Err(error) => {
                    space.give_up(out)?;
                    self.refuse(pid, &error);
                }
            }
        }
        Ok(pages)
    }

    /// Reads what the kernel tells only together with a walk over all pages, so that the stop need not ask for it.
    fn look_at_mappings(&mut self) {
        for pid in self.spaces.keys() {
            let lines = procfs::read(*pid, "smaps").ok().and_then(|text| procfs::parse_smaps(&text));
            self.known.insert(*pid, lines.unwrap_or_default());
        }
    }

    /// How memory was read, for people.
    pub(crate) fn in_words(&self) -> String {
        let way = if self.spaces.is_empty() { "copy" } else { "precopy" };
        match self.refused.first() {
            None => way.to_owned(),
            Some(cause) => format!("{way} ({cause})"),
        }
    }

    /// The object of a followed process's memory.
    pub(crate) fn object(&self, pid: Pid) -> Option<ObjectId> {
        self.spaces.get(&pid).map(|space| space.id)
    }

    /// In the stop: the rest of a followed process. `None`: it is not followed.
    pub(crate) fn last(
        &mut self,
        pid: Pid,
        lines: &[MapLine],
        alike: Option<&kin::Alike>,
        out: Option<&mut Outlet>,
    ) -> Result<Option<super::record::WaysRecord>> {
        let Some(space) = self.spaces.get_mut(&pid) else { return Ok(None) };
        let Last { read, forget, ways } = space.last(lines)?;
        let read = kin::without(read, alike.map(|alike| alike.ranges.as_slice()).unwrap_or_default());
        self.forgotten.extend(forget.into_iter().map(|range| (space.id, range)));
        let mut out = out;
        let bytes: usize = read.iter().map(length).sum();
        if let Some(out) = out.as_deref_mut().filter(|_| !self.kept.takes(bytes)) {
            forget_all(&mut self.forgotten, out)?;
        }
        space.read(&read, &mut self.kept, out)?;
        Ok(Some(ways))
    }

    /// When the tree runs again: ends all following, takes out of the image what must not be in it, and sends what was kept.
    pub(crate) fn settle(&mut self, out: &mut Outlet, sent: &mut dyn FnMut(usize)) -> Result<()> {
        std::mem::take(&mut self.spaces).into_values().for_each(Space::release);
        forget_all(&mut self.forgotten, out)?;
        out.alike(std::mem::take(&mut self.alike))?;
        for (id, at, bytes) in self.kept.pieces() {
            for (piece, from) in bytes.chunks(LOAD).zip((at..).step_by(LOAD)) {
                let mut buffer = out.buffer(piece.len());
                buffer.copy_from_slice(piece);
                out.piece(id.0, from, buffer)?;
                sent(piece.len());
            }
        }
        Ok(())
    }

    /// Takes what was copied of a process out again: it is read in the stop.
    pub(crate) fn give_up(&mut self, pid: Pid, out: &mut Outlet) -> Result<()> {
        self.known.remove(&pid);
        match self.spaces.remove(&pid) {
            Some(space) => space.give_up(out),
            None => Ok(()),
        }
    }
}

fn forget_all(forgotten: &mut Vec<(ObjectId, Range<u64>)>, out: &mut Outlet) -> Result<()> {
    forgotten.drain(..).try_for_each(|(id, range)| out.forget(id.0, range))
}

/// The flag that a followed mapping has and its program knows nothing of.
const OURS: [u8; 2] = *b"uw";

/// The mappings of a followed process as they are now, with the flags that they had a moment ago. `None`: one is new, and its
/// flags are not known.
pub(crate) fn with_known_flags(now: Vec<MapLine>, known: &[MapLine]) -> Option<Vec<MapLine>> {
    let mut lines = now;
    for line in &mut lines {
        let before = known.iter().find(|before| before.range.start == line.range.start)?;
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
