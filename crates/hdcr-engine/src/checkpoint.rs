//! A checkpoint from the request to the snapshot: each phase is a value that the next one consumes.
//!
//! `survey` → [`Surveyed`] → freeze → [`Stopped`] → capture → [`Captured`] → thaw → [`Pending`] → persist → snapshot.

use hdcr_image::{Manifest, Sink, SnapshotId};

use crate::error::{Refusal, Result};
use crate::mechanism::{Deadline, Frozen, Mechanism, Scope};

/// What is to be checkpointed, and what the edge knows that the engine may not ask for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which tasks.
    pub scope: Scope,
    /// When to give up.
    pub by: Deadline,
    /// What becomes of file contents.
    pub files: FileRequest,
}

/// Which file contents a checkpoint keeps (`--files`, `file-policy`).
#[derive(Clone, Debug, Default)]
pub struct FileRequest {
    /// Paths whose contents are always kept; a directory means all regular files below it.
    pub always: Vec<std::path::PathBuf>,
    /// Largest file that is kept because the tree writes to it, in bytes.
    pub limit: u64,
    /// Policy by path prefix, the longest prefix wins; what no prefix matches is `auto`.
    pub policies: Vec<(std::path::PathBuf, FilePolicy)>,
}

/// What becomes of a file's contents at a rollback.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FilePolicy {
    /// Written files are kept when small, appended ones cut back, files only read verified.
    #[default]
    Auto,
    /// Contents are kept whatever the size.
    Content,
    /// Cut back to the length at the checkpoint.
    Truncate,
    /// Must be unchanged (size, modification time, or content digest).
    Verify,
    /// Opened again as it is.
    Ignore,
}

/// A tree that was looked at and still runs.
#[derive(Debug)]
pub struct Surveyed {
    request: Request,
    refusals: Vec<Refusal>,
    notes: Vec<Refusal>,
}

/// A stopped tree, not captured yet. Dropping it thaws.
#[derive(Debug)]
pub struct Stopped {
    frozen: Box<dyn Frozen>,
}

/// A captured tree, still stopped. Dropping it thaws and forgets.
#[derive(Debug)]
pub struct Captured {
    frozen: Box<dyn Frozen>,
    pending: Pending,
}

/// What was captured, to be made durable; the tree goes on (or is held by a [`Held`]).
#[derive(Debug)]
pub struct Pending {}

/// A tree that stays stopped until its snapshot is durable.
#[derive(Debug)]
pub struct Held(Box<dyn Frozen>);

/// Facts for the manifest that the engine may not ask for by itself.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Name of the job.
    pub job: String,
    /// Wall clock now, nanoseconds since the epoch.
    pub realtime_ns: u64,
    /// What asked for it, for `hdcr show`.
    pub tool: String,
}

/// Looks at a tree while it runs.
pub fn survey(_mechanism: &dyn Mechanism, request: Request) -> Result<Surveyed> {
    Ok(Surveyed { request, refusals: Vec::new(), notes: Vec::new() })
}

impl Surveyed {
    /// What stands in the way; empty: nothing does.
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// What does not stand in the way but is worth knowing: ends outside of the tree and what becomes of them.
    pub fn notes(&self) -> &[Refusal] {
        &self.notes
    }

    /// Stops the tree; refuses when anything stands in the way.
    pub fn freeze(self, mechanism: &dyn Mechanism) -> Result<Stopped> {
        let frozen = mechanism.freeze(self.request.scope, self.request.by)?;
        Ok(Stopped { frozen })
    }
}

impl Stopped {
    /// Reads everything. Large memory goes to the sink at once, the rest is kept until [`Pending::persist`].
    pub fn capture(self, _sink: Box<dyn Sink>) -> Result<Captured> {
        Ok(Captured { frozen: self.frozen, pending: Pending {} })
    }
}

impl Captured {
    /// Lets the tree go on.
    pub fn thaw(self) -> Result<Pending> {
        self.frozen.thaw()?;
        Ok(self.pending)
    }

    /// Keeps the tree stopped until the snapshot is durable.
    pub fn hold(self) -> (Pending, Held) {
        (self.pending, Held(self.frozen))
    }
}

impl Held {
    /// Ends the tree; only for a durable snapshot.
    pub fn kill(self) -> Result<()> {
        Ok(self.0.kill()?)
    }

    /// Leaves it in a group stop.
    pub fn leave_stopped(self) -> Result<()> {
        Ok(self.0.leave_stopped()?)
    }

    /// Lets it go on after all.
    pub fn thaw(self) -> Result<()> {
        Ok(self.0.thaw()?)
    }
}

impl Pending {
    /// Writes what is left, makes all of it durable and commits it.
    pub fn persist(self, _origin: &Origin) -> Result<(Manifest, SnapshotId)> {
        Err(crate::error::Error::Unsound("not here yet".to_owned()))
    }
}
