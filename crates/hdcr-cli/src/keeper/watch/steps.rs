//! What the keeper writes down of its watch: the table in parts, and the steps of its queue. A line of JSON each.

use std::path::PathBuf;
use std::time::Duration;

use hdcr_policy::touched::{Before, Event, Identity, Kind, Look, Now, Past, Replaced, Side};
use serde::{Deserialize, Serialize};

use super::queue::{Heard, What};

/// A step of the queue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) enum Step {
    /// Something was heard of a process and a file.
    Heard(i32, Identity, #[serde(with = "WhatLine")] What),
    /// What waits at this place is something else.
    Amended(usize, #[serde(with = "EventLine")] Event),
    /// The first of what waits has its turn.
    Told(#[serde(with = "ReplacedLine")] Replaced),
    Mark(u64, Duration),
    Renumber(u64, u64),
    Keep(Vec<u64>),
    Placed(Vec<Made>),
    Lost,
}

/// A name and the file that has it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Made(#[serde(with = "crate::paths")] pub(super) PathBuf, pub(super) Identity);

#[derive(Serialize, Deserialize)]
#[serde(remote = "What")]
enum WhatLine {
    Event(#[serde(with = "EventLine")] Event),
    Names { removed: bool },
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Event")]
enum EventLine {
    Created(#[serde(with = "crate::paths")] PathBuf, #[serde(with = "KindLine")] Kind, Identity),
    Linked(#[serde(with = "crate::paths")] PathBuf, Identity),
    Written(#[serde(with = "crate::paths")] PathBuf, #[serde(with = "changed")] Option<Look>),
    Removed(#[serde(with = "crate::paths")] PathBuf, #[serde(with = "KindLine")] Kind),
    Renamed {
        #[serde(with = "crate::paths")]
        from: PathBuf,
        #[serde(with = "crate::paths")]
        to: PathBuf,
        #[serde(with = "KindLine")]
        kind: Kind,
        #[serde(with = "ReplacedLine")]
        replaced: Replaced,
        identity: Identity,
    },
    Exchanged(#[serde(with = "SideLine")] Side, #[serde(with = "SideLine")] Side),
    Seen(#[serde(with = "crate::paths")] PathBuf, #[serde(with = "LookLine")] Look),
    Foreign(#[serde(with = "crate::paths")] PathBuf),
    ForeignGone(#[serde(with = "crate::paths")] PathBuf),
    Unsure(#[serde(with = "crate::paths")] PathBuf),
    Lost,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Kind")]
enum KindLine {
    File,
    Directory,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Replaced")]
enum ReplacedLine {
    Yes,
    No,
    Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Side")]
struct SideLine {
    #[serde(with = "crate::paths")]
    path: PathBuf,
    #[serde(with = "KindLine")]
    kind: Kind,
    identity: Identity,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Look")]
struct LookLine {
    size: u64,
    modified: Duration,
    changed: Duration,
}

/// A look that may not have been had.
mod changed {
    use hdcr_policy::touched::Look;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Line(#[serde(with = "super::LookLine")] Look);

    #[expect(clippy::ref_option, reason = "the shape that serde asks for")]
    pub(super) fn serialize<S: Serializer>(look: &Option<Look>, to: S) -> Result<S::Ok, S::Error> {
        look.map(Line).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Look>, D::Error> {
        Ok(Option::<Line>::deserialize(from)?.map(|line| line.0))
    }
}

/// Something that waited when the table was written down.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Waited(i32, Identity, #[serde(with = "WhatLine")] What);

impl From<&Heard> for Waited {
    fn from(heard: &Heard) -> Self {
        Self(heard.pid, heard.file.clone(), heard.what.clone())
    }
}

impl From<Waited> for Step {
    fn from(Waited(pid, file, what): Waited) -> Self {
        Self::Heard(pid, file, what)
    }
}

/// What is known since a checkpoint.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct PastLine {
    pub(super) number: u64,
    at: Duration,
    incomplete: bool,
    before: Vec<BeforeAt>,
    now: Vec<NowAt>,
    #[serde(with = "crate::paths::list")]
    written: Vec<PathBuf>,
    lost: Vec<KindAt>,
    #[serde(default)]
    further: Vec<(Identity, u64)>,
    #[serde(default)]
    relinked: Vec<Made>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct BeforeAt(#[serde(with = "crate::paths")] PathBuf, #[serde(with = "BeforeLine")] Before);

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct NowAt(#[serde(with = "crate::paths")] PathBuf, #[serde(with = "NowLine")] Now);

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct KindAt(#[serde(with = "crate::paths")] PathBuf, #[serde(with = "KindLine")] Kind);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Before")]
enum BeforeLine {
    Nothing,
    Something,
    Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Now")]
enum NowLine {
    Old(#[serde(with = "crate::paths")] PathBuf, Identity),
    New(#[serde(with = "KindLine")] Kind, Identity),
    Nothing,
    Foreign,
}

impl From<Past> for PastLine {
    fn from(past: Past) -> Self {
        Self {
            number: past.number,
            at: past.at,
            incomplete: past.incomplete,
            before: past.before.into_iter().map(|(path, before)| BeforeAt(path, before)).collect(),
            now: past.now.into_iter().map(|(path, now)| NowAt(path, now)).collect(),
            written: past.written,
            lost: past.lost.into_iter().map(|(path, kind)| KindAt(path, kind)).collect(),
            further: past.further,
            relinked: past.relinked.into_iter().map(|(path, identity)| Made(path, identity)).collect(),
        }
    }
}

impl From<PastLine> for Past {
    fn from(line: PastLine) -> Self {
        Self {
            number: line.number,
            at: line.at,
            incomplete: line.incomplete,
            before: line.before.into_iter().map(|BeforeAt(path, before)| (path, before)).collect(),
            now: line.now.into_iter().map(|NowAt(path, now)| (path, now)).collect(),
            written: line.written,
            lost: line.lost.into_iter().map(|KindAt(path, kind)| (path, kind)).collect(),
            further: line.further,
            relinked: line.relinked.into_iter().map(|Made(path, identity)| (path, identity)).collect(),
        }
    }
}
