//! One open descriptor: what is asked through it, and what it holds.
// SPDX-License-Identifier: GPL-2.0-only

use hdcr_abi::{
    Calls, Capture, Freeze, Head, Hello, Kill, Mappings, Pages, Registers, Request, Restore, Signals, THREADS, Tasks,
    Thaw, VERSION, Waiting, capture_flag, feature, freeze_flag,
};

use crate::answer::{Errno, Result};
use crate::calls::calls;
use crate::capture::capture;
use crate::freeze::{Frozen, Orders, freeze};
use crate::glue;
use crate::plain::{self, Plain};
use crate::read;
use crate::restore::restore;
use crate::scope::Scope;

/// A session. Dropping it lets all go.
pub(crate) struct Session {
    /// Whether a version was agreed on.
    is_agreed: bool,
    frozen: Option<Frozen>,
}

/// Reads a request, refuses what is not known in its head.
fn take<T: Request + Plain>(at: u64, known_flags: u32) -> Result<(T, u32)> {
    let head: Head = plain::from_user(at)?;
    if head.size != T::HEAD.size || head.flags & !known_flags != 0 {
        return Err(Errno::INVAL);
    }
    Ok((plain::from_user(at)?, head.flags))
}

impl Session {
    pub(crate) const fn new() -> Self {
        Self { is_agreed: false, frozen: None }
    }

    /// Does what one request asks for.
    pub(crate) fn answer(&mut self, command: u32, at: u64) -> Result<()> {
        if command == Hello::COMMAND {
            return self.hello(at);
        }
        if !self.is_agreed {
            return Err(Errno::PROTO);
        }
        match command {
            Freeze::COMMAND => self.freeze(at),
            Thaw::COMMAND => {
                take::<Thaw>(at, 0)?;
                self.frozen.take().map(drop).ok_or(Errno::NODATA)
            }
            Kill::COMMAND => {
                take::<Kill>(at, 0)?;
                self.frozen.take().map(|frozen| frozen.kill()).ok_or(Errno::NODATA)
            }
            Tasks::COMMAND => self.reply(at, |frozen, request| read::tasks(frozen, request)),
            Mappings::COMMAND => self.reply(at, |frozen, request| read::mappings(frozen, request)),
            Registers::COMMAND => self.reply(at, |frozen, request| read::registers(frozen, request)),
            Pages::COMMAND => self.reply(at, |frozen, request| read::pages(frozen, request)),
            Calls::COMMAND => {
                let (mut request, _) = take::<Calls>(at, 0)?;
                let frozen = self.frozen.as_ref().ok_or(Errno::NODATA)?;
                let result = calls(frozen, &mut request);
                // Those that were made are told of in any case.
                plain::to_user(at, &request)?;
                result
            }
            Signals::COMMAND => self.reply(at, |frozen, request| read::signals(frozen, request)),
            Waiting::COMMAND => self.reply(at, |frozen, request| read::waiting(frozen, request)),
            Capture::COMMAND => self.capture(at),
            Restore::COMMAND => {
                let (mut request, _) = take::<Restore>(at, 0)?;
                let result = restore(&mut request);
                plain::to_user(at, &request)?;
                result
            }
            _ => Err(Errno::NOTTY),
        }
    }

    /// Lets all go; nothing happens when none is held.
    pub(crate) fn thaw(&mut self) {
        self.frozen = None;
    }

    fn hello(&mut self, at: u64) -> Result<()> {
        let (mut request, _) = take::<Hello>(at, 0)?;
        if request.reserved != 0 {
            return Err(Errno::INVAL);
        }
        if !(request.oldest..=request.newest).contains(&VERSION) {
            return Err(Errno::PROTO);
        }
        request.version = VERSION;
        request.threads = THREADS;
        request.features = glue::features() | feature::FACTS;
        request.xstate_size = glue::xstate_size();
        plain::to_user(at, &request)?;
        self.is_agreed = true;
        Ok(())
    }

    fn freeze(&mut self, at: u64) -> Result<()> {
        let (mut request, flags) = take::<Freeze>(at, freeze_flag::HOLD_TRACED)?;
        let scope = Scope { kind: request.scope, id: request.id };
        let is_odd = request.reserved != 0 || !scope.is_known() || request.within_ns > hdcr_abi::LONGEST_NS;
        if is_odd {
            return Err(Errno::INVAL);
        }
        if self.frozen.is_some() {
            return Err(Errno::BUSY);
        }
        let began = glue::now();
        let until = began.saturating_add(request.within_ns);
        let orders = Orders { scope, until, hold_traced: flags & freeze_flag::HOLD_TRACED != 0 };
        let result = freeze(&orders, &mut request);
        request.took_ns = glue::now().saturating_sub(began);
        // When the answer cannot be written nothing stays frozen: the caller would not know of it.
        plain::to_user(at, &request)?;
        self.frozen = Some(result?);
        Ok(())
    }

    fn capture(&mut self, at: u64) -> Result<()> {
        let (mut request, flags) = take::<Capture>(at, capture_flag::ON_WRITE)?;
        let result = capture(&mut self.frozen, &mut request, flags & capture_flag::ON_WRITE != 0);
        // What stands in the way is an answer, too.
        plain::to_user(at, &request)?;
        result
    }

    /// A request about what is frozen, whose answer goes back into it.
    fn reply<T: Request + Plain>(&self, at: u64, answer: impl FnOnce(&Frozen, &mut T) -> Result<()>) -> Result<()> {
        let (mut request, _) = take::<T>(at, 0)?;
        answer(self.frozen.as_ref().ok_or(Errno::NODATA)?, &mut request)?;
        plain::to_user(at, &request)
    }
}
