//! A batch: system calls that a stopped task makes on itself in one go, with results usable by later calls.
//!
//! A batch is data. It names no address of its own memory: buffers are offsets into the batch's data area, which the
//! mechanism places somewhere in the task's address space (or, for a kernel mechanism, in the kernel) and hands back.

/// An argument of a call in a [`Batch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// A number as it is.
    Value(u64),
    /// The address at which the byte at this offset of the data area will lie.
    Data(usize),
    /// The result of an earlier call of the same batch. At most two such arguments a call.
    Result(usize),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

impl From<i32> for Arg {
    /// Sign-extended, as the C calling convention does for an `int`.
    fn from(value: i32) -> Self {
        Self::Value(i64::from(value).cast_unsigned())
    }
}

/// What the batch does when a call returns an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// Stop here: later calls are not made.
    Stop,
    /// Go on with the next call; the caller looks at the result itself.
    Continue,
}

/// One system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// The system call's number on this architecture.
    pub nr: u64,
    /// All six arguments.
    pub args: [Arg; 6],
    /// What an error means.
    pub on_error: OnError,
}

/// System calls to run as a task, and the bytes they read and write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// The data area, as it is before the first call.
    pub data: Vec<u8>,
    /// Pairs (place, target): the 8 bytes at `place` of the data area become the address of its byte `target`.
    pub pointers: Vec<(usize, usize)>,
}

/// The most that the table of a mechanism takes for a call, in bytes; the data area comes behind it.
pub const CALL_ROOM: usize = 80;

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Adds a call that ends the batch when it fails; its index is its place in [`Replies::results`].
    pub fn call(&mut self, nr: i64, args: &[Arg]) -> usize {
        self.push(nr, args, OnError::Stop)
    }

    /// Adds a call whose failure is looked at by the caller.
    pub fn try_call(&mut self, nr: i64, args: &[Arg]) -> usize {
        self.push(nr, args, OnError::Continue)
    }

    /// Adds a call.
    pub fn push(&mut self, nr: i64, args: &[Arg], on_error: OnError) -> usize {
        let mut all = [Arg::Value(0); 6];
        for (slot, arg) in all.iter_mut().zip(args) {
            *slot = *arg;
        }
        self.calls.push(Call { nr: nr.cast_unsigned(), args: all, on_error });
        self.calls.len() - 1
    }

    /// Puts bytes into the data area (8-byte aligned) and returns their offset.
    pub fn bytes(&mut self, bytes: &[u8]) -> usize {
        let at = self.room(0);
        self.data.extend_from_slice(bytes);
        at
    }

    /// Puts a NUL-terminated string into the data area and returns its offset.
    pub fn c_string(&mut self, bytes: &[u8]) -> usize {
        let at = self.bytes(bytes);
        self.data.push(0);
        at
    }

    /// Reserves zeroed bytes (8-byte aligned) that calls will write, and returns their offset.
    pub fn room(&mut self, len: usize) -> usize {
        let at = self.data.len().next_multiple_of(8);
        self.data.resize(at + len, 0);
        at
    }

    /// Makes the 8 bytes at `place` of the data area hold the address of its byte `target`.
    pub fn pointer(&mut self, place: usize, target: usize) {
        self.pointers.push((place, target));
    }
}

/// What came of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replies {
    /// The raw result of each call that was made (negative: `-errno`), in order. Shorter than the batch when a call
    /// with [`OnError::Stop`] failed: the last one is then that failure.
    pub results: Vec<i64>,
    /// The data area after the last call.
    pub data: Vec<u8>,
}

impl Replies {
    /// The result of a call, or `None` when the batch ended before it.
    pub fn result(&self, index: usize) -> Option<i64> {
        self.results.get(index).copied()
    }

    /// Bytes of the data area, or `None` when the range lies outside of it.
    pub fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.data.get(at..at.checked_add(len)?)
    }

    /// The 8 bytes at an offset of the data area as a number.
    pub fn word(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(at, 8)?.try_into().ok()?))
    }

    /// The index and the errno of the call that ended the batch, if one did.
    pub fn failure(&self, batch: &Batch) -> Option<(usize, i32)> {
        let last = self.results.len().checked_sub(1)?;
        let result = *self.results.last()?;
        let call = batch.calls.get(last)?;
        let errno = i32::try_from(result.checked_neg()?).ok().filter(|e| (1..4096).contains(e))?;
        (call.on_error == OnError::Stop).then_some((last, errno))
    }
}
