//! A mechanism that stops nobody: it keeps a model of the tasks that it would make, and fails when it is told to.
//!
//! What the engine reads in `/proc` it reads of a witness, real processes that wait and do nothing; registers, signal
//! queues and the answers to system calls are the model's own.

mod frozen;
mod kernel;
mod nursery;
mod witness;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use hdcr_engine::ids::Tid;
use hdcr_engine::mechanism::{
    Capabilities, Deadline, Final, Frozen, Mechanism, MechanismError, Nursery, Result, Scope,
};

pub(crate) use self::witness::Witness;

/// A task that the model has made.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelTask {
    pub(crate) parent: Option<i32>,
    pub(crate) mapped: Vec<(Range<u64>, u64)>,
    /// Pages, which several threads may put in at once.
    pub(crate) written: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
    pub(crate) descriptors: BTreeSet<u64>,
    pub(crate) session: bool,
    pub(crate) group: Option<u64>,
    pub(crate) umask: Option<u64>,
    pub(crate) queued: Vec<u64>,
    pub(crate) ended: bool,
}

/// What has happened, and when something is to fail.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Calls of the mechanism so far, by name.
    pub(crate) calls: Vec<&'static str>,
    /// The call that fails, counted from 0.
    pub(crate) fail_at: Option<usize>,
    /// System calls in batches of the nursery so far.
    pub(crate) system_calls: usize,
    /// The system call that fails, counted from 0, unless its failure would not matter.
    pub(crate) fail_call: Option<usize>,
    /// Whether a failure that was asked for has come.
    pub(crate) failed: bool,
    /// Stopped trees and nurseries that have not been dropped.
    pub(crate) alive: usize,
    /// How stopped trees came to their end.
    pub(crate) ends: Vec<&'static str>,
    pub(crate) tasks: BTreeMap<i32, ModelTask>,
    pub(crate) finals: Vec<Final>,
    pub(crate) released: bool,
}

impl State {
    /// Counts a call; an error when it is the one that fails.
    fn call(&mut self, operation: &'static str, tid: Tid) -> Result<()> {
        assert!(!self.released, "{operation} after the release");
        let number = self.calls.len();
        self.calls.push(operation);
        if self.fail_at == Some(number) {
            self.failed = true;
            let source = io::Error::from_raw_os_error(5);
            return Err(MechanismError::System { operation, tid, source });
        }
        Ok(())
    }
}

/// The mechanism. Clones share their state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) state: Rc<RefCell<State>>,
    capabilities: Capabilities,
}

impl Model {
    /// One whose call with this number fails.
    pub(crate) fn failing(at: usize) -> Self {
        let model = Self::default();
        model.state.borrow_mut().fail_at = Some(at);
        model
    }

    /// One in whose nursery the system call with this number fails.
    pub(crate) fn failing_call(at: usize) -> Self {
        let model = Self::default();
        model.state.borrow_mut().fail_call = Some(at);
        model
    }
}

impl Mechanism for Model {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn freeze(&self, scope: Scope, _by: Deadline) -> Result<Box<dyn Frozen>> {
        let (Scope::Tree(root) | Scope::Below(root)) = scope;
        self.state.borrow_mut().call("freeze", root.leader())?;
        Ok(Box::new(frozen::Still::new(Rc::clone(&self.state), root)))
    }

    fn nursery(&self, avoid: &[Range<u64>], _by: Deadline) -> Result<Box<dyn Nursery>> {
        self.state.borrow_mut().call("nursery", Tid(0))?;
        Ok(Box::new(nursery::Cradle::new(Rc::clone(&self.state), avoid)))
    }
}
