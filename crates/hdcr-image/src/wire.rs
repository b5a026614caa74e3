//! The manifest as a protobuf message. Field numbers are never reused; `docs/format.md` lists them.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Manifest {
    #[prost(string, tag = "1")]
    pub(crate) hdcr_version: String,
    #[prost(string, tag = "2")]
    pub(crate) architecture: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) cpu_features: Vec<String>,
    #[prost(string, tag = "4")]
    pub(crate) kernel_release: String,
    #[prost(string, tag = "5")]
    pub(crate) boot_id: String,
    #[prost(string, tag = "6")]
    pub(crate) host_name: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) clocks: Option<Clocks>,
    #[prost(string, repeated, tag = "8")]
    pub(crate) needs: Vec<String>,
    #[prost(message, optional, tag = "9")]
    pub(crate) place: Option<Place>,
    #[prost(bytes = "vec", repeated, tag = "10")]
    pub(crate) command: Vec<Vec<u8>>,
    #[prost(int32, tag = "11")]
    pub(crate) root_pid: i32,
    #[prost(message, repeated, tag = "12")]
    pub(crate) processes: Vec<Process>,
    #[prost(message, optional, tag = "13")]
    pub(crate) base: Option<Reference>,
    #[prost(message, repeated, tag = "14")]
    pub(crate) lineage: Vec<Reference>,
    #[prost(string, tag = "15")]
    pub(crate) mechanism: String,
    #[prost(string, tag = "16")]
    pub(crate) snapshot: String,
    #[prost(message, optional, tag = "17")]
    pub(crate) frames: Option<Frames>,
    #[prost(message, repeated, tag = "18")]
    pub(crate) segments: Vec<Segment>,
    #[prost(message, optional, tag = "19")]
    pub(crate) pages: Option<Pages>,
    #[prost(message, optional, tag = "20")]
    pub(crate) log: Option<Log>,
    #[prost(message, repeated, tag = "21")]
    pub(crate) clones: Vec<ClonedFile>,
}

/// In nanoseconds.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Clocks {
    #[prost(int64, tag = "1")]
    pub(crate) realtime: i64,
    #[prost(int64, tag = "2")]
    pub(crate) monotonic: i64,
    #[prost(int64, tag = "3")]
    pub(crate) boottime: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Place {
    #[prost(string, tag = "1")]
    pub(crate) job: String,
    #[prost(uint64, tag = "2")]
    pub(crate) sequence: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Process {
    #[prost(int32, tag = "1")]
    pub(crate) pid: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) comm: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reference {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) image: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub(crate) place: Option<Place>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Frames {
    #[prost(uint64, tag = "1")]
    pub(crate) size: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) count: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) blake3: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Segment {
    #[prost(uint32, tag = "1")]
    pub(crate) number: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) generation: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) size: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) image: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Log {
    #[prost(uint32, tag = "1")]
    pub(crate) number: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) generation: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) size: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) image: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ClonedFile {
    #[prost(uint64, tag = "1")]
    pub(crate) object: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) size: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Pages {
    #[prost(uint64, tag = "1")]
    pub(crate) runs: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) stored: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) zero: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) stored_size: u64,
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) blake3: Vec<u8>,
    #[prost(uint64, tag = "6")]
    pub(crate) added: u64,
}
