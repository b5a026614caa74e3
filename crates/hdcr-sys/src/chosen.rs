//! System V objects under a number that was chosen (`/proc/sys/kernel/shm_next_id`, `sem_next_id`: `ipc/util.c`).
//!
//! The kernel gives a wanted number to whoever makes the next object of the kind in the namespace, and forgets it. Another
//! process can come between the wish and the making, and another restore can wish for something else: it is tried again.

use std::io;

/// Where the number of the next segment is wished for.
pub(crate) const SEGMENT: &str = "/proc/sys/kernel/shm_next_id";
/// Likewise of the next set of semaphores.
pub(crate) const SEMAPHORES: &str = "/proc/sys/kernel/sem_next_id";

/// Each try fails only when somebody else comes in between, within a few microseconds.
const TRIES: u32 = 100;

/// Makes an object under the number `wanted`, where that is free: the answer is another number where it is not.
pub(crate) fn under(
    wish: &str,
    wanted: i32,
    make: impl Fn() -> io::Result<i32>,
    remove: impl Fn(i32) -> io::Result<()>,
) -> io::Result<i32> {
    let mut tries = 0;
    loop {
        tries += 1;
        std::fs::write(wish, wanted.to_string())?;
        let number = make()?;
        if number == wanted || tries == TRIES {
            return Ok(number);
        }
        remove(number)?;
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::segments;
    use crate::semaphores::{self, Rights};

    /// Whether numbers can be chosen here; what is made meets nobody else's.
    fn is_alone() -> bool {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).is_ok()
            && std::fs::OpenOptions::new().write(true).open(super::SEGMENT).is_ok()
    }

    /// Many that come back at once, and one that makes and removes its own all the time.
    fn in_a_crowd(make: fn(i32) -> i32, remove: fn(i32), disturb: fn()) {
        if !is_alone() {
            return;
        }
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    disturb();
                }
            });
            let restores: Vec<_> = (0..3)
                .map(|place| {
                    scope.spawn(move || {
                        for round in 0..200 {
                            let wanted = 0x1_8000 * (round + 1) + 100 + place;
                            assert_eq!(make(wanted), wanted);
                            remove(wanted);
                        }
                    })
                })
                .collect();
            let ends: Vec<_> = restores.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            is_over.store(true, Ordering::Relaxed);
            for end in ends {
                end.unwrap();
            }
        });
    }

    #[test]
    fn segments_get_their_numbers_in_a_crowd() {
        let disturb = || segments::remove(segments::make(libc::IPC_PRIVATE, 1, None).unwrap()).unwrap();
        let make = |wanted| segments::make(libc::IPC_PRIVATE, 1, Some(wanted)).unwrap();
        in_a_crowd(make, |id| segments::remove(id).unwrap(), disturb);
    }

    #[test]
    fn semaphores_get_their_numbers_in_a_crowd() {
        const RIGHTS: Rights = Rights { uid: 0, gid: 0, mode: 0o600 };
        let make = |wanted| semaphores::make(libc::IPC_PRIVATE, 1, RIGHTS, wanted).unwrap();
        in_a_crowd(
            make,
            |id| semaphores::remove(id).unwrap(),
            || {
                // One without a wish.
                semaphores::take_number();
            },
        );
    }
}
