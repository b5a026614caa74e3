//! `hdcr verify`: reads all of a checkpoint and says whether it is whole.

use serde::Serialize;

use super::Surrounding;
use super::restore::place;
use crate::cli::ImageArgs;
use crate::failure::{Class, Failure, Result};
use crate::names;
use crate::output::{Report, counted};
use crate::parts;
use crate::progress::{Doing, Step};

/// What was read.
#[derive(Debug, Serialize)]
struct Read {
    snapshot: String,
    whole: bool,
    frames: u64,
    runs: usize,
    /// Of them, packed as they are.
    bytes: u64,
    /// Files that are kept as clones, of which length and samples were looked at.
    clones: usize,
}

impl Report for Read {
    fn text(&self) -> String {
        let size = crate::duration::show_size(self.bytes);
        let clones = match self.clones {
            0 => String::new(),
            some => format!("; {} by length and samples", counted(some, "clone", "clones")),
        };
        format!(
            "{}: whole ({} records; {} runs of pages, {size} packed{clones})",
            self.snapshot, self.frames, self.runs
        )
    }
}

pub(crate) fn run(at: &Surrounding<'_>, args: &ImageArgs) -> Result<u8> {
    let place = place(at, &args.image)?;
    let image = parts::open(&place)?;
    let bar = at.output.bar_or_line(Vec::new);
    let teller = bar.teller();
    let step = |done, total| Step { doing: Doing::Verifying, done, total, round: 0 };
    let verified = image.verify(&mut |progress| teller.at(step(progress.done, progress.total)));
    drop(bar);
    let verified = verified.map_err(|error| of_pages(names::of_image(Failure::from(error).during(&place), &place)))?;
    hdcr_engine::verify::verify(&image)
        .map_err(|error| names::of_image(Failure::from(error).during(&place), &place))?;
    at.output.result(&Read {
        snapshot: place.to_string(),
        whole: true,
        frames: verified.frames,
        runs: verified.runs,
        bytes: verified.stored,
        clones: image.manifest().clones.len(),
    })?;
    Ok(0)
}

/// What is damaged may be the contents of a file that is on the disk as it was: a restore does not need them.
fn of_pages(failure: Failure) -> Failure {
    if failure.class != Class::Corrupt {
        return failure;
    }
    failure.remedy(
        "a restore that needs what is damaged is refused; another copy or another checkpoint may be whole (`hdcr verify`)",
    )
}
