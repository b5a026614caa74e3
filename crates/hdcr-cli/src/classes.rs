//! Errors of the libraries as failures of a command: their class, a stable code, and what to do where one can say it.

use hdcr_engine::error::{Class as EngineClass, Error as EngineError};
use hdcr_engine::mechanism::MechanismError;
use hdcr_image::{ErrorClass, ImageError, StoreError};
use hdcr_store::Error as DirectoryError;

use crate::busy;
use crate::failure::{Class, Failure, chain};
use crate::output::in_the_way;
use crate::parts;

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let class = match error.class() {
            EngineClass::Refused => Class::Refused,
            EngineClass::Changed => Class::Changed,
            EngineClass::Failed => Class::Failed,
            EngineClass::Corrupt => Class::Corrupt,
        };
        match error {
            EngineError::Refused(refusals) => {
                if let Some(busy) = busy::alone_in_the_way(&refusals.0) {
                    return busy;
                }
                let refusals = parts::obstacles(&refusals.0);
                let message = format!("{}; nothing was touched", in_the_way(&refusals));
                Self { refusals, ..Self::refused("refused", message) }
            }
            EngineError::Mechanism(error) => mechanism(&error, class),
            EngineError::Image(error) => error.into(),
            EngineError::Changed { .. } => Self::new(class, "changed", chain(&error)),
            EngineError::System { ref source, .. } | EngineError::Call { ref source, .. } if no_memory(source) => {
                full(class, &error)
            }
            EngineError::System { .. } => Self::new(class, "system", chain(&error)),
            EngineError::Call { .. } => Self::new(class, "call", chain(&error)),
            EngineError::Unsound(_) => Self::new(class, "unsound", chain(&error)),
        }
    }
}

/// Whether the system, or a limit, gives no more memory.
fn no_memory(source: &std::io::Error) -> bool {
    source.raw_os_error() == Some(nix::libc::ENOMEM)
}

fn full(class: Class, error: &dyn std::error::Error) -> Failure {
    Failure::new(class, "no-memory", chain(error))
        .remedy("free memory, or raise the limits of this shell (`ulimit -v`, `ulimit -a` shows all)")
}

fn mechanism(error: &MechanismError, class: Class) -> Failure {
    if let MechanismError::Traced { tid, tracer } = error
        && let Some(other) = busy::is_hdcr(tracer.0)
    {
        return busy::refusal(Some(other), tid.0);
    }
    let (code, remedy) = match error {
        MechanismError::Gone { .. } => ("gone", None),
        MechanismError::Traced { .. } => ("traced", Some("end the debugger or tracer first")),
        MechanismError::NotPermitted { .. } => {
            ("not-permitted", Some("run as the same user or as root, and see `hdcr doctor`"))
        }
        MechanismError::Late { .. } => ("late", Some("it is as it was before; try again, with a longer --timeout")),
        MechanismError::HoldsCaller { .. } => {
            ("holds-caller", Some("run hdcr from outside of the tree that is checkpointed"))
        }
        MechanismError::Unsupported { .. } => ("unsupported", None),
        MechanismError::NoRoom { .. } => (
            "no-room",
            Some(
                "raise its limits (`prlimit --pid`: --as, --data, --memlock; the sysctl vm.max_map_count), or let it give memory back",
            ),
        ),
        MechanismError::System { source, .. } if no_memory(source) => return full(class, error),
        MechanismError::System { .. } => ("system", None),
    };
    let failure = Failure::new(class, code, chain(error));
    match remedy {
        Some(remedy) => failure.remedy(remedy),
        None => failure,
    }
}

fn class_of(class: ErrorClass) -> Class {
    match class {
        ErrorClass::Refused => Class::Refused,
        ErrorClass::Changed => Class::Changed,
        ErrorClass::Failed => Class::Failed,
        ErrorClass::Corrupt => Class::Corrupt,
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let class = class_of(error.class());
        let code = match &error {
            ImageError::Store(error) => return store(error, class),
            ImageError::Corrupt { .. } | ImageError::Foreign { .. } | ImageError::Stale { .. } => "corrupt",
            ImageError::Version { .. } => "image-version",
            ImageError::Increment { .. } | ImageError::Alone { .. } => "increment",
            ImageError::Record(_) => "record",
            ImageError::NotPages { .. } | ImageError::TooLong { .. } => "too-long",
            ImageError::Compress(_) => "compress",
        };
        Self::new(class, code, chain(&error))
    }
}

fn store(error: &StoreError, class: Class) -> Failure {
    let failure = |code| Failure::new(class, code, chain(error));
    match error {
        StoreError::Full { .. } => {
            failure("store-full").remedy("remove old checkpoints with `hdcr rm`, or use another --store")
        }
        StoreError::Busy { .. } => failure("store-busy").remedy("try again when it is done"),
        StoreError::Vanished { .. } => failure("store-gone"),
        StoreError::System { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => failure("store")
            .remedy("it is somebody else's: name a store of your own with --store or HDCR_STORE, or act as the user whose it is"),
        StoreError::System { .. } => failure("store"),
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        let class = class_of(error.class());
        match error {
            DirectoryError::Store(error) => store(&error, class),
            DirectoryError::Image(error) => error.into(),
            DirectoryError::NoJob { .. } | DirectoryError::NoSnapshot { .. } => {
                Self::new(class, "no-such-checkpoint", error.to_string())
            }
            DirectoryError::Pinned { .. } => Self::new(class, "pinned", error.to_string())
                .remedy("it stays until `hdcr unpin`; `hdcr list` shows what for"),
            DirectoryError::NotAnImage { .. } => Self::new(class, "not-an-image", error.to_string()),
            DirectoryError::BadTarget { .. } => Self::new(class, "bad-target", error.to_string())
                .remedy("name an older image or a file that does not exist yet, or a directory that is empty or does not exist yet"),
            DirectoryError::BadSelector { .. } => Self::usage(error.to_string()),
        }
    }
}
