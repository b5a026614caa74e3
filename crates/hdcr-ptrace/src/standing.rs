//! Who has to know that tasks of a program stand still because of this process.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::rc::Rc;

use hdcr_engine::ids::Tid;
use hdcr_engine::mechanism::{MechanismError, Result};

/// Hears when the first task is stopped, and when all go on. What it does meanwhile, the program waits for.
pub trait Hears: fmt::Debug {
    /// Tasks are about to be stopped; none is when this fails.
    fn stands(&self) -> io::Result<()>;
    /// All go on that could be let go.
    fn goes_on(&self);
}

/// What stands, of all that this mechanism has stopped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    hears: Option<Rc<dyn Hears>>,
    trees: Rc<Cell<usize>>,
}

/// A tree stands until this is dropped.
#[derive(Debug)]
pub(crate) struct Stand(Standing);

impl Standing {
    pub(crate) fn heard_by(hears: Rc<dyn Hears>) -> Self {
        Self { hears: Some(hears), trees: Rc::default() }
    }

    pub(crate) fn begin(&self) -> Result<Stand> {
        if self.trees.get() == 0
            && let Some(hears) = &self.hears
        {
            let tid = Tid(nix::unistd::gettid().as_raw());
            let operation = "having hdcr watched";
            hears.stands().map_err(|source| MechanismError::System { operation, tid, source })?;
        }
        self.trees.set(self.trees.get() + 1);
        Ok(Stand(self.clone()))
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        let left = self.0.trees.get().saturating_sub(1);
        self.0.trees.set(left);
        if left == 0
            && let Some(hears) = &self.0.hears
        {
            hears.goes_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[derive(Debug, Default)]
    struct Ear {
        deaf: Cell<bool>,
        heard: RefCell<Vec<&'static str>>,
    }

    impl Hears for Ear {
        fn stands(&self) -> io::Result<()> {
            self.heard.borrow_mut().push("stands");
            if self.deaf.get() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        }

        fn goes_on(&self) {
            self.heard.borrow_mut().push("goes on");
        }
    }

    #[test]
    fn nothing_stands_that_nobody_hears_of() {
        let ear = Rc::new(Ear::default());
        let standing = Standing::heard_by(Rc::<Ear>::clone(&ear));
        ear.deaf.set(true);
        assert!(standing.begin().is_err());
        ear.deaf.set(false);
        let first = standing.begin().unwrap();
        let second = standing.begin().unwrap();
        drop(first);
        drop(second);
        assert_eq!(*ear.heard.borrow(), ["stands", "stands", "goes on"]);
    }
}
