//! What a thread has to say to a loop that waits for descriptors: a queue, and a descriptor that tells of it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::failure::{Failure, Result};

/// Both ends of it.
#[derive(Debug)]
pub(super) struct Bell<T> {
    inside: Arc<Inside<T>>,
}

#[derive(Debug)]
struct Inside<T> {
    queue: Mutex<VecDeque<T>>,
    fd: OwnedFd,
}

impl<T> Clone for Bell<T> {
    fn clone(&self) -> Self {
        Self { inside: Arc::clone(&self.inside) }
    }
}

impl<T> Bell<T> {
    pub(super) fn new() -> Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let fd = fd.map_err(Failure::system("making an event descriptor"))?;
        Ok(Self { inside: Arc::new(Inside { queue: Mutex::default(), fd }) })
    }

    /// Says something.
    pub(super) fn ring(&self, what: T) {
        self.inside.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(what);
        // Full is rung as well.
        rustix::io::write(&self.inside.fd, &1_u64.to_ne_bytes()).ok();
    }

    /// What was said and not heard yet.
    pub(super) fn hear(&self) -> VecDeque<T> {
        // Before the queue is looked at: what is said in between rings again.
        rustix::io::read(&self.inside.fd, &mut [0; 8]).ok();
        std::mem::take(&mut *self.inside.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> AsFd for Bell<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inside.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn nothing_that_is_said_is_missed() {
        let bell = Bell::new().unwrap();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let rings = |bell: &Bell<usize>| poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)) == Ok(1);
        assert!(!rings(&bell) && bell.hear().is_empty());
        let far = bell.clone();
        std::thread::spawn(move || (0..1000).for_each(|n| far.ring(n)));
        let mut heard = Vec::new();
        while heard.len() < 1000 {
            poll(&mut [PollFd::new(&bell, PollFlags::IN)], None).unwrap();
            heard.extend(bell.hear());
        }
        assert!(heard.into_iter().eq(0..1000) && !rings(&bell));
    }
}
