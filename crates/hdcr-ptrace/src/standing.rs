//! Who has to know that tasks of a program stand still because of this process.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::rc::Rc;

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

    pub(crate) fn begin(&self) -> io::Result<Stand> {
        if self.trees.get() == 0
            && let Some(hears) = &self.hears
        {
            hears.stands()?;
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
