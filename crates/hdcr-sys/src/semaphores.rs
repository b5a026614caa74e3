//! System V semaphores (`semget(2)`, `semctl(2)`): sets that other processes use, looked at and made again.
#![expect(unsafe_code, reason = "semctl(2) is variadic and has no safe wrapper")]

use std::io;

use crate::chosen;

fn done(answer: libc::c_int) -> io::Result<i32> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// The value of each semaphore of a set; `count` is how many it has.
pub fn values(id: i32, count: usize) -> io::Result<Vec<u16>> {
    // The kernel writes as many as the set has, which nobody can change: only another set under this number has more.
    let mut values = vec![0_u16; count.max(MOST)];
    // SAFETY: GETALL writes at most as many values as a set may have (`MOST`), and the vector has room for them.
    done(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) })?;
    values.truncate(count);
    Ok(values)
}

/// Semaphores that a set may have (`SEMMSL`, include/uapi/linux/sem.h).
const MOST: usize = 32_000;

/// The process that changed a semaphore of a set last, 0: none that is to be seen.
pub fn last_process(id: i32, number: i32) -> io::Result<i32> {
    // SAFETY: GETPID takes no further argument.
    done(unsafe { libc::semctl(id, number, libc::GETPID) })
}

/// Who owns a set, and what others may do with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The nine bits of a mode.
    pub mode: u16,
}

/// Makes a set that was not there, and gives its number. `wanted` is the number that it is to have, where this process may
/// say so.
pub fn make(key: i32, count: i32, rights: Rights, wanted: i32) -> io::Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | i32::from(rights.mode);
    let make = || {
        // SAFETY: the call takes numbers alone.
        done(unsafe { libc::semget(key, count, flags) }).inspect_err(|_| take_number())
    };
    let id = chosen::under(chosen::SEMAPHORES, wanted, make, remove)?;
    // SAFETY: an all-zero semid_ds is a valid one.
    let mut set: libc::semid_ds = unsafe { std::mem::zeroed() };
    (set.sem_perm.uid, set.sem_perm.gid, set.sem_perm.mode) = (rights.uid, rights.gid, rights.mode);
    // SAFETY: IPC_SET reads one semid_ds of our own.
    let owned = done(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw const set) });
    if owned.is_err() || id != wanted {
        remove(id)?;
    }
    owned.map(|_| id)
}

/// The number that was asked for is given to the next set, whoever makes it: to one of ours, then, which goes at once.
pub(crate) fn take_number() {
    // SAFETY: the call takes numbers alone.
    if let Ok(id) = done(unsafe { libc::semget(libc::IPC_PRIVATE, 1, libc::IPC_CREAT | 0o600) }) {
        remove(id).ok();
    }
}

/// Removes a set.
pub fn remove(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no further argument.
    done(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_made_under_its_number_and_looked_at() {
        let rights = Rights { uid: 0, gid: 0, mode: 0o600 };
        // Where this may not be said, there is nothing to be tried.
        let Ok(id) = make(libc::IPC_PRIVATE, 3, rights, 32_768 * 9 + 77) else { return };
        if id != 32_768 * 9 + 77 {
            return;
        }
        assert_eq!(values(id, 3).unwrap(), [0, 0, 0]);
        assert_eq!(last_process(id, 0).unwrap(), 0);
        remove(id).unwrap();
        assert!(values(id, 3).is_err());
    }
}
