//! The checkpoint library: what a program that runs under `hdcr run` may ask of HDCR, and what it is told.
//!
//! A program needs none of this to be checkpointed and rolled back. With it, it says *when* ([`checkpoint`]), learns on
//! which branch it is ([`Outcome`]), and goes back by its own will ([`rollback`]). Without HDCR every call returns at once:
//! [`is_enabled`] is false, and what cannot be done is said by [`Failed`].
//!
//! Who wants to decide when checkpoints are taken, for a program that knows nothing of that, writes an [`algorithm`].
//!
//! The same calls for C are in `hdcr.h` (`capi.rs`), those for Python stand on them. `wire.rs` has the messages, for which
//! no program has to use this library.

mod agent;
pub mod algorithm;
#[expect(unsafe_code, reason = "the C surface")]
#[doc(hidden)]
pub mod capi;
#[expect(unsafe_code, reason = "what is safe only because of how this library uses it")]
mod ffi;
mod hooks;
mod link;
mod outcome;
mod process;
mod regions;
mod request;
mod sections;
pub mod wire;

pub use ffi::{exclude, secret};
pub use hooks::{After, Hook, Veto, after, before, on_restored};
pub use link::{Heard, Link};
pub use outcome::{Class, Failed, Obstacle, Outcome, Reason, Restored};
pub use request::{Options, Request};
pub use sections::{Inside, Section};

/// Whether this program runs under a keeper that has answered. The first call asks; later ones cost nothing.
pub fn is_enabled() -> bool {
    process::this().is_enabled()
}

/// The name of the job; `None` without HDCR.
pub fn job() -> Option<String> {
    process::this().job()
}

/// How often the job was brought back from a checkpoint, or begun anew after a crash.
pub fn restart_count() -> u64 {
    process::this().look().map_or(0, |seen| seen.count)
}

/// Where this life of the program came from; `None` when it was never restored.
pub fn restored() -> Option<Restored> {
    process::this().look().and_then(|seen| seen.last)
}

/// Takes a checkpoint of the whole job and waits until it is durable. It returns twice: [`Outcome::Continued`] now, and
/// [`Outcome::Restored`] in every life that begins from an image in which this call was under way.
///
/// Whoever must not wait without a limit takes [`request`].
pub fn checkpoint(options: &Options) -> Outcome {
    match request(options) {
        Ok(request) => request.finish(),
        Err(failed) => Outcome::Failed(failed),
    }
}

/// Asks for a checkpoint and does not wait for it.
pub fn request(options: &Options) -> Result<Request, Failed> {
    Request::begin(&wire::Ask::Checkpoint { timeout_ms: options.timeout_ms() })
}

/// Says that this is a good moment for a checkpoint: little is in memory that is not needed, nothing is under way. Does not
/// wait, and takes none by itself: what it is good for, the algorithm of the job decides (`--algorithm cooperative`).
pub fn good_moment() {
    process::this().good_moment();
}

/// Keeps memory again that [`exclude`] or [`secret`] has left out.
pub fn include(start: *const u8, length: usize) -> Result<(), Failed> {
    process::this().regions.keep(start.addr(), length)
}

/// Gives up this life of the job and goes back to a checkpoint of it, the newest one or the one with this number. Returns
/// only when that cannot be done.
pub fn rollback(to: Option<u64>) -> Failed {
    let asked = Request::begin(&wire::Ask::Rollback { to }).map(Request::finish);
    match asked {
        Ok(Outcome::Failed(failed)) | Err(failed) => failed,
        // A life that begins from an image in which somebody had asked for this.
        Ok(Outcome::Continued { .. } | Outcome::Restored(_)) => Failed::overtaken(),
    }
}
