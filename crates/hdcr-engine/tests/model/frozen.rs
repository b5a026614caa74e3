//! A tree that is said to be stopped.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use hdcr_engine::batch::{Batch, Replies};
use hdcr_engine::ids::{Fd, Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{
    Frozen, FrozenProcess, MechanismError, Queue, Result, Rseq, SigInfo, Stand, TimedCall, Watch,
};
use hdcr_engine::regs::Regs;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use super::{State, kernel};

#[derive(Debug)]
pub(crate) struct Still {
    state: Rc<RefCell<State>>,
    processes: Vec<FrozenProcess>,
}

impl Still {
    pub(crate) fn new(state: Rc<RefCell<State>>, root: Pid) -> Self {
        state.borrow_mut().alive += 1;
        let children = std::fs::read_to_string(format!("/proc/{root}/task/{root}/children")).unwrap();
        let children = children.split_whitespace().map(|word| Pid(word.parse().unwrap()));
        let whole = |pid: Pid| FrozenProcess { pid, threads: vec![pid.leader()], zombie: false };
        Self { state, processes: [root].into_iter().chain(children).map(whole).collect() }
    }

    fn call(&self, operation: &'static str, tid: Tid) -> Result<()> {
        self.state.borrow_mut().call(operation, tid)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        self.state.borrow_mut().alive -= 1;
    }
}

/// The registers of a thread, by which it is known again.
pub(crate) fn regs_of(tid: Tid) -> Regs {
    let number = u64::from(tid.0.unsigned_abs());
    Regs {
        r15: number << 32 | 0xfeed,
        ax: number,
        orig_ax: u64::MAX,
        ip: 0x40_1000,
        sp: 0x7ffc_0000_0000,
        ..Regs::default()
    }
}

fn wrong(operation: &'static str, tid: Tid) -> impl Fn(std::io::Error) -> MechanismError {
    move |source| MechanismError::System { operation, tid, source }
}

impl Frozen for Still {
    fn processes(&self) -> &[FrozenProcess] {
        &self.processes
    }

    fn stand(&self, tid: Tid) -> Result<Stand> {
        self.call("stand", tid).map(|()| Stand::Running)
    }

    fn regs(&self, tid: Tid) -> Result<Regs> {
        self.call("regs", tid).map(|()| regs_of(tid))
    }

    fn xstate(&self, tid: Tid) -> Result<Vec<u8>> {
        self.call("xstate", tid).map(|()| vec![tid.0.to_le_bytes()[0]; 832])
    }

    fn signal_mask(&self, tid: Tid) -> Result<u64> {
        self.call("signal_mask", tid).map(|()| 1 << 40)
    }

    fn pending(&self, tid: Tid, queue: Queue) -> Result<Vec<SigInfo>> {
        self.call("pending", tid)?;
        let mut info = [0; 128];
        info[0] = 41;
        // `SI_QUEUE`.
        info[8..12].copy_from_slice(&(-1_i32).to_le_bytes());
        Ok(if queue == Queue::Shared && tid == self.processes[0].pid.leader() { vec![info] } else { Vec::new() })
    }

    fn rseq(&self, tid: Tid) -> Result<Option<Rseq>> {
        self.call("rseq", tid)?;
        Ok(Some(Rseq { at: RemotePtr(0x7000_0000), size: 32, signature: 0x5305_3053 }))
    }

    fn robust_list(&self, tid: Tid) -> Result<(RemotePtr, u64)> {
        self.call("robust_list", tid).map(|()| (RemotePtr(0x7100_0000), 24))
    }

    fn timed_call(&mut self, tid: Tid) -> Result<Option<TimedCall>> {
        self.call("timed_call", tid).map(|()| None)
    }

    fn run(&mut self, work: &[(Tid, Batch)]) -> Result<Vec<Replies>> {
        self.call("run", work[0].0)?;
        Ok(work.iter().map(|(_, batch)| kernel::asked(batch)).collect())
    }

    fn read(&self, pid: Pid, at: RemotePtr, into: &mut [u8]) -> Result<()> {
        self.call("read", pid.leader())?;
        let memory = File::open(format!("/proc/{pid}/mem")).map_err(wrong("open mem", pid.leader()))?;
        memory.read_exact_at(into, at.0).map_err(wrong("read mem", pid.leader()))
    }

    fn descriptor(&self, pid: Pid, fd: Fd) -> Result<OwnedFd> {
        self.call("descriptor", pid.leader())?;
        let process = rustix::process::Pid::from_raw(pid.0).unwrap();
        let own = rustix::process::pidfd_open(process, PidfdFlags::empty())
            .and_then(|process| rustix::process::pidfd_getfd(&process, fd.0, PidfdGetfdFlags::empty()));
        own.map_err(|error| wrong("duplicate", pid.leader())(error.into()))
    }

    fn follow(&mut self, pid: Pid) -> Result<Box<dyn Watch>> {
        self.call("follow", pid.leader())?;
        Err(MechanismError::Unsupported { tid: pid.leader(), kind: "a task of a model" })
    }

    fn own_ranges(&self, _pid: Pid) -> Vec<Range<u64>> {
        Vec::new()
    }

    fn thaw(self: Box<Self>) -> Result<()> {
        self.call("thaw", Tid(0))?;
        self.state.borrow_mut().ends.push("thaw");
        Ok(())
    }

    fn leave_stopped(self: Box<Self>) -> Result<()> {
        self.call("leave_stopped", Tid(0))?;
        self.state.borrow_mut().ends.push("leave_stopped");
        Ok(())
    }

    fn kill(self: Box<Self>) -> Result<()> {
        self.call("kill", Tid(0))?;
        self.state.borrow_mut().ends.push("kill");
        Ok(())
    }
}
