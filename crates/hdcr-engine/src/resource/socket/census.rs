//! What the kernel says of the UNIX sockets of a tree. Asked about one, it looks through all that there are: a few are asked about
//! one by one, and for many they are listed once.

use std::collections::BTreeMap;

use hdcr_sys::sock_diag::{Diagnosis, UnixSocket};

use crate::error::{Error, Result};

/// So many are asked about one by one: a listing costs as much, whatever the tree has of all that the machine has.
const FEW: usize = 32;

/// UNIX sockets by inode, as they were when the first of many was asked about.
#[derive(Debug, Default)]
pub(crate) struct Census {
    asked: usize,
    listed: Option<BTreeMap<u32, UnixSocket>>,
}

impl Census {
    /// The socket with an inode; `None` when there is none.
    pub(super) fn ask(&mut self, inode: u64) -> Result<Option<UnixSocket>> {
        self.look_up(inode, list, ask)
    }

    fn look_up(
        &mut self,
        inode: u64,
        list: impl FnOnce() -> Result<BTreeMap<u32, UnixSocket>>,
        alone: impl FnOnce(u64) -> Result<Option<UnixSocket>>,
    ) -> Result<Option<UnixSocket>> {
        self.asked = self.asked.saturating_add(1);
        if self.asked > FEW {
            let listed = self.listed.get_or_insert_with(|| {
                list().unwrap_or_else(|error| {
                    tracing::debug!(%error, "UNIX sockets are asked about one by one");
                    BTreeMap::new()
                })
            });
            if let Some(seen) = u32::try_from(inode).ok().and_then(|inode| listed.get(&inode)) {
                return Ok(Some(seen.clone()));
            }
        }
        // One that is younger than the listing, or was left out of it.
        alone(inode)
    }
}

fn kernel() -> Result<Diagnosis> {
    Diagnosis::open().map_err(Error::system("opening sock_diag", "UNIX sockets"))
}

fn list() -> Result<BTreeMap<u32, UnixSocket>> {
    kernel()?.unix_all().map_err(Error::system("asking sock_diag", "all UNIX sockets"))
}

/// The socket with an inode as it is now.
pub(super) fn ask(inode: u64) -> Result<Option<UnixSocket>> {
    let number = u32::try_from(inode).map_err(|_| Error::Unsound(format!("inode {inode} of a socket")))?;
    kernel()?.unix(number).map_err(Error::system("asking sock_diag", format!("UNIX socket {inode}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn socket(kind: u8) -> UnixSocket {
        UnixSocket { kind, ..UnixSocket::default() }
    }

    #[test]
    fn many_sockets_are_listed_once() {
        let (lists, alone) = (Cell::new(0), Cell::new(0));
        let mut census = Census::default();
        for inode in 0..10_000 {
            let list = || {
                lists.set(lists.get() + 1);
                Ok((0..9_999).map(|inode| (inode, socket(1))).collect())
            };
            let one = |_| {
                alone.set(alone.get() + 1);
                Ok(Some(socket(2)))
            };
            let seen = census.look_up(inode, list, one).unwrap().unwrap();
            let expected = if (FEW as u64..9_999).contains(&inode) { 1 } else { 2 };
            assert_eq!(seen.kind, expected, "{inode}");
        }
        assert_eq!((lists.get(), alone.get()), (1, FEW + 1));
    }

    #[test]
    fn what_cannot_be_listed_is_asked_about_one_by_one() {
        let mut census = Census::default();
        for inode in 0..100 {
            let failing = || Err(Error::Unsound("no listing".to_owned()));
            assert_eq!(census.look_up(inode, failing, |_| Ok(Some(socket(3)))).unwrap(), Some(socket(3)));
        }
        assert!(census.look_up(7, || Ok(BTreeMap::new()), |_| Ok(None)).unwrap().is_none());
    }
}
