//! What the image says about how each mapping was read, and why so. No restore needs it.

use hdcr_image::{Record, Tag};

use crate::model;

/// How the pages of a mapping were read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Way {
    /// In the stop.
    Copy = 0,
    /// While the program ran; in the stop only what it had written since.
    Ahead = 1,
    /// From a copy of the process, when the program ran again.
    Fork = 2,
}

/// Why a mapping was read in the stop, or from a copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Why {
    /// It was not: it was followed.
    Followed = 0,
    /// It is small.
    Small = 1,
    /// It came, moved or grew after the last round.
    New = 2,
    /// The kernel does not follow it.
    Impossible = 3,
    /// A userfaultfd of the program's own follows it.
    Taken = 4,
    /// It shows a file, and may only be read.
    OnlyRead = 5,
    /// That was asked for.
    Asked = 6,
    /// It wrote faster than it could be copied ahead.
    Fast = 7,
    /// A copy of the process does not get it.
    NotInherited = 8,
}

impl Why {
    fn words(self) -> &'static str {
        match self {
            Self::Followed => "its writes were followed",
            Self::Small => "it is small",
            Self::New => "it came, moved or grew after the last round",
            Self::Impossible => "the kernel does not follow it",
            Self::OnlyRead => "it shows a file and may only be read",
            Self::Asked => "that was asked for",
            Self::Fast => "it was written faster than it could be copied ahead",
            Self::NotInherited => "a copy of the process does not get it",
            Self::Taken => "a userfaultfd of the program's own follows it",
        }
    }
}

/// How one mapping was read.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MappingWay {
    #[prost(uint64, tag = "1")]
    pub(crate) start: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) end: u64,
    #[prost(enumeration = "Way", tag = "3")]
    pub(crate) way: i32,
    #[prost(enumeration = "Why", tag = "4")]
    pub(crate) why: i32,
    /// Pages that were copied in the stop.
    #[prost(uint64, tag = "5")]
    pub(crate) pages: u64,
}

/// How the mappings of one address space were read. Its id is that of the address space.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WaysRecord {
    #[prost(message, repeated, tag = "1")]
    pub(crate) mappings: Vec<MappingWay>,
    /// Rounds before the stop.
    #[prost(uint32, tag = "2")]
    pub(crate) rounds: u32,
}

impl Record for WaysRecord {
    const TAG: Tag = Tag(0x0112);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl WaysRecord {
    /// In words, a mapping a line.
    pub(crate) fn words(&self) -> String {
        let line = |mapping: &MappingWay| {
            let way = match mapping.way() {
                Way::Copy => "in the stop",
                Way::Ahead => "ahead",
                Way::Fork => "from a copy of the process",
            };
            let (start, end, pages, why) = (mapping.start, mapping.end, mapping.pages, mapping.why().words());
            format!("{start:#x}-{end:#x} {way} ({why}), {pages} pages in the stop")
        };
        let lines: Vec<String> = self.mappings.iter().map(line).collect();
        format!("{} rounds before the stop\n        {}", self.rounds, lines.join("\n        "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_says_why() {
        let mapping = MappingWay { start: 0x1000, end: 0x3000, way: Way::Copy.into(), why: Why::New.into(), pages: 2 };
        let record = WaysRecord { mappings: vec![mapping], rounds: 3 };
        assert_eq!(WaysRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        let words = "3 rounds before the stop\n        0x1000-0x3000 in the stop (it came, moved or grew after the last \
                     round), 2 pages in the stop";
        assert_eq!(record.words(), words);
    }
}
