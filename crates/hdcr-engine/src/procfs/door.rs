//! By which number a process is looked at, once its first thread may have ended before the others.

use std::fs;
use std::io;

use super::{dead, parse_stat, read_thread, stat, threads};
use crate::ids::{Pid, Tid};

/// The number by which `/proc` shows what a process holds (memory, descriptors, directories): its own, or that of its
/// first living thread when its leader has ended before the others. Such a leader has nothing any more.
pub fn door(pid: Pid) -> i32 {
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => survivor(pid).map_or(pid.0, |tid| tid.0),
        _ => pid.0,
    }
}

/// The first living thread of a process whose leader has ended before it.
pub fn survivor(pid: Pid) -> Option<Tid> {
    if !stat(pid).is_ok_and(|stat| dead(stat.state)) {
        return None;
    }
    let living = |tid: &Tid| {
        let stat = read_thread(pid, *tid, "stat").ok().and_then(|text| parse_stat(&text));
        stat.is_some_and(|stat| !dead(stat.state))
    };
    let mut tids = threads(pid).ok()?;
    tids.sort_unstable();
    tids.into_iter().find(living)
}
