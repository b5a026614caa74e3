//! A nursery in which nobody is born: the model notes what each task would be.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use hdcr_engine::batch::{Batch, Replies};
use hdcr_engine::ids::{RemotePtr, Tid};
use hdcr_engine::mechanism::{Birth, End, Final, Nursery, PageTarget, Parent, Result, Rseq};
use nix::libc;

use super::{ModelTask, State, kernel};

/// Numbers of stand-ins, above any that Linux gives.
const NAMELESS: i32 = 1 << 24;
const PAGE: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Cradle {
    state: Rc<RefCell<State>>,
    service: Range<u64>,
}

impl Cradle {
    pub(crate) fn new(state: Rc<RefCell<State>>, avoid: &[Range<u64>]) -> Self {
        state.borrow_mut().alive += 1;
        let end = avoid.iter().map(|range| range.end).filter(|end| *end < 1 << 46).max().unwrap_or(1 << 32);
        let start = end.next_multiple_of(PAGE);
        Self { state, service: start..start + 16 * PAGE }
    }
}

impl Drop for Cradle {
    fn drop(&mut self) {
        self.state.borrow_mut().alive -= 1;
    }
}

/// The memory of a task.
#[derive(Debug)]
struct Pages {
    mapped: Vec<(Range<u64>, u64)>,
    written: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
}

fn pages_of(task: &ModelTask) -> Pages {
    Pages { mapped: task.mapped.clone(), written: Arc::clone(&task.written) }
}

impl PageTarget for Pages {
    fn put(&self, pieces: &[(RemotePtr, &[u8])]) -> Result<()> {
        for (at, bytes) in pieces {
            for (page, address) in bytes.chunks(4096).zip((at.0..).step_by(4096)) {
                let mapping = self.mapped.iter().find(|(range, _)| range.contains(&address));
                let prot = mapping.map_or(0, |(_, prot)| *prot);
                assert!(prot & u64::from(libc::PROT_WRITE.cast_unsigned()) != 0, "{address:#x} cannot be written");
                self.written.lock().unwrap().insert(address, page.to_vec());
            }
        }
        Ok(())
    }
}

impl Nursery for Cradle {
    fn service_region(&self) -> Range<u64> {
        self.service.clone()
    }

    fn birth(&mut self, births: &[Birth]) -> Result<Vec<Tid>> {
        let mut state = self.state.borrow_mut();
        state.call("birth", births[0].tid.unwrap_or(Tid(0)))?;
        let mut made = Vec::new();
        for birth in births {
            let tid = birth.tid.map_or_else(|| NAMELESS + i32::try_from(state.tasks.len()).unwrap(), |tid| tid.0);
            let parent = match birth.parent {
                Parent::Caller | Parent::CallersParent => None,
                Parent::Task(parent) => Some(parent.0),
            };
            assert!(parent.is_none_or(|parent| state.tasks.contains_key(&parent)), "the parent of {tid} is not there");
            let task = ModelTask { parent, ..ModelTask::default() };
            assert!(state.tasks.insert(tid, task).is_none(), "{tid} is born twice");
            made.push(Tid(tid));
        }
        Ok(made)
    }

    fn run(&mut self, work: &[(Tid, Batch)]) -> Result<Vec<Replies>> {
        let mut state = self.state.borrow_mut();
        state.call("run", work[0].0)?;
        Ok(work.iter().map(|(tid, batch)| kernel::done(&mut state, tid.0, batch)).collect())
    }

    fn rseq(&self, tid: Tid) -> Result<Option<Rseq>> {
        self.state.borrow_mut().call("rseq", tid)?;
        Ok(Some(Rseq { at: RemotePtr(0x1000), size: 32, signature: 1 }))
    }

    fn read(&self, tid: Tid, at: RemotePtr, into: &mut [u8]) -> Result<()> {
        let mut state = self.state.borrow_mut();
        state.call("read", tid)?;
        let page = state.tasks[&tid.0].written.lock().unwrap().get(&(at.0 & !(PAGE - 1))).cloned().unwrap_or_default();
        let from = usize::try_from(at.0 % PAGE).unwrap();
        into.fill(0);
        into.iter_mut().zip(page.iter().skip(from)).for_each(|(to, byte)| *to = *byte);
        Ok(())
    }

    fn write(&mut self, tid: Tid, pieces: &[(RemotePtr, &[u8])]) -> Result<()> {
        let mut state = self.state.borrow_mut();
        state.call("write", tid)?;
        pages_of(&state.tasks[&tid.0]).put(pieces)
    }

    fn pages(&mut self, tid: Tid, _fresh: &[Range<u64>]) -> Result<Box<dyn PageTarget>> {
        let mut state = self.state.borrow_mut();
        state.call("pages", tid)?;
        Ok(Box::new(pages_of(&state.tasks[&tid.0])))
    }

    fn end(&mut self, tid: Tid, _end: End) -> Result<()> {
        let mut state = self.state.borrow_mut();
        state.call("end", tid)?;
        state.tasks.get_mut(&tid.0).unwrap().ended = true;
        Ok(())
    }

    fn finish(&mut self, finals: &[Final]) -> Result<()> {
        let mut state = self.state.borrow_mut();
        state.call("finish", Tid(0))?;
        state.finals.extend_from_slice(finals);
        Ok(())
    }

    fn release(self: Box<Self>) -> Result<()> {
        let mut state = self.state.borrow_mut();
        state.call("release", Tid(0))?;
        state.released = true;
        Ok(())
    }
}
