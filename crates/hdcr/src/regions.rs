//! Memory whose contents no checkpoint keeps: it is there after a restore, and holds zeros.
//!
//! The keeper knows of it as long as the connection lives on which it was told; a restored program tells it anew. Lock: the
//! one of the regions, under which that of what is known of the keeper may be taken.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::link::{Heard, Link};
use crate::outcome::Failed;
use crate::process;
use crate::wire::{Answer, Ask};
use crate::{agent, ffi};

const PAGE: usize = 4096;
/// A checkpoint that is being taken does not know of it yet, and is waited for.
const PATIENCE: Duration = Duration::from_mins(2);
/// As many as fit a packet.
const MOST: usize = 1000;

/// What becomes of memory that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// It can be computed again.
    Excluded,
    /// Nobody else may see it: neither a child nor a core dump has it.
    Secret,
}

/// The regions of a process.
#[derive(Debug, Default)]
pub(crate) struct Regions(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    ranges: Vec<Range<usize>>,
    link: Option<Link>,
}

/// The pages that lie wholly in a range.
fn pages(start: usize, len: usize) -> Option<Range<usize>> {
    let end = start.checked_add(len)? / PAGE * PAGE;
    let start = start.checked_next_multiple_of(PAGE)?;
    (start < end).then_some(start..end)
}

/// Whether all of a range is private memory that shows no file, by the text of `/proc/self/maps`.
fn is_private(maps: &str, range: &Range<usize>) -> bool {
    let mut at = range.start;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(place), Some(perms)) = (words.next(), words.next()) else { continue };
        let inode = words.nth(2).unwrap_or_default();
        let Some((start, end)) = place.split_once('-') else { continue };
        let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else { continue };
        if start <= at && at < end {
            if inode != "0" || !perms.ends_with('p') {
                return false;
            }
            at = end;
            if at >= range.end {
                return true;
            }
        }
    }
    false
}

impl Regions {
    /// Leaves a range out from the next checkpoint on; one that is being taken has ended when this returns.
    pub(crate) fn leave_out(&self, start: usize, len: usize, kind: Kind) -> Result<(), Failed> {
        if agent::is_this_thread() {
            return Err(Failed::in_the_way("in-hook", "a hook of the program asks for it"));
        }
        let range = pages(start, len).ok_or_else(|| Failed::in_the_way("no-page", "there is no whole page in it"))?;
        // Names of files need not be text.
        let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
        let maps = String::from_utf8_lossy(&maps);
        let private = is_private(&maps, &range) && (kind == Kind::Excluded || ffi::keep_from_children(&range));
        if !private {
            let message = "only private memory that shows no file can be left out";
            return Err(Failed::in_the_way("not-private", message));
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.ranges.len() >= MOST {
            return Err(Failed::in_the_way("too-many-regions", "so many parts of memory cannot be left out"));
        }
        state.ranges.push(range.clone());
        agent::begin();
        let told = state.tell();
        if told.is_err() {
            state.ranges.retain(|other| *other != range);
        }
        told
    }

    /// Keeps it again.
    pub(crate) fn keep(&self, start: usize, len: usize) -> Result<(), Failed> {
        let Some(range) = pages(start, len) else { return Ok(()) };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.ranges = state.ranges.iter().flat_map(|other| without(other, &range)).collect();
        if state.link.is_some() { state.tell() } else { Ok(()) }
    }

    /// Tells the keeper again after a restore.
    pub(crate) fn renew(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.ranges.is_empty() {
            state.link = None;
            // Until it is told again, the keeper goes by what the image says.
            state.tell().ok();
        }
    }
}

/// What of a range is not in another one.
fn without(range: &Range<usize>, out: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let parts = [range.start..range.end.min(out.start), range.start.max(out.end)..range.end];
    parts.into_iter().filter(|part| part.start < part.end)
}

impl State {
    fn tell(&mut self) -> Result<(), Failed> {
        let ranges = self.ranges.iter().map(|range| (range.start as u64, range.end as u64)).collect();
        let ask = Ask::Omit { ranges };
        let mut failed = Failed::absent();
        for _ in 0..process::TRIES {
            let link = match self.link.take() {
                Some(link) => link,
                None => process::this().connect().ok_or_else(Failed::absent)?,
            };
            match link.send(&ask).and_then(|()| link.wait(Some(Instant::now() + PATIENCE))) {
                Ok(Heard::Said(Answer::Omitted {})) => {
                    self.link = Some(link);
                    return Ok(());
                }
                Ok(Heard::Said(Answer::Failed(refused))) => return Err(refused),
                Ok(Heard::Said(Answer::Restored(greeting))) => process::this().greeted(&greeting),
                Ok(Heard::Said(_) | Heard::Nothing | Heard::Ended) => failed = Failed::gone(),
                Err(error) => failed = Failed::unheard(&error),
            }
        }
        Err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_count() {
        assert_eq!(pages(1, 3 * PAGE), Some(PAGE..3 * PAGE));
        assert_eq!(pages(1, PAGE), None);
        assert_eq!(pages(usize::MAX - 1, 1), None);
        assert!(without(&(1..9), &(3..5)).eq([1..3, 5..9]) && without(&(3..5), &(1..9)).count() == 0);
    }

    #[test]
    fn what_others_have_a_part_in_is_told_by_the_list_of_mappings() {
        let maps = "1000-3000 rw-p 00000000 00:00 0 \n3000-4000 rw-p 00000000 00:00 0 [heap]\n\
                    4000-5000 rw-s 00000000 00:01 77 /dev/zero (deleted)\n6000-7000 r--p 00000000 08:01 5 /lib/x\n";
        assert!(is_private(maps, &(0x1000..0x4000)) && is_private(maps, &(0x2000..0x3000)));
        for others in [0x3000..0x5000, 0x5000..0x6000, 0x6000..0x7000] {
            assert!(!is_private(maps, &others), "{others:?}");
        }
    }
}
