//! What the container cannot know about an image: whether its pages have a place in the programs.

use std::collections::BTreeSet;

use hdcr_image::hdcr_layout::Mapping;
use hdcr_image::{ImageReader, List};

use crate::error::{Error, Result};
use crate::memory::restore::have_place;
use crate::model::ObjectId;
use crate::resource::{clone, late};
use crate::stored;

/// Refuses an image of which a page lies in no mapping that could hold it: a restore would. Of one with kinds that this
/// build does not know nothing is said.
pub fn verify(image: &ImageReader) -> Result<()> {
    if image.refuse_unknown(&stored::known()).is_err() {
        return Ok(());
    }
    let model = clone::verified(image, stored::read(image)?)?;
    late::verify(image, &model.frames)?;
    let spaces: BTreeSet<u64> = model.processes.iter().map(|process| process.record.mm).filter(|mm| *mm != 0).collect();
    for id in spaces.into_iter().map(ObjectId) {
        let List(mappings) = stored::one::<List<Mapping>>(&model.frames, id)?;
        if !mappings.is_sorted_by(|before, after| before.end <= after.start) {
            return Err(Error::Unsound(format!("{id}: mappings overlap")));
        }
        if let Some(stray) = image.runs(id.0).iter().find(|run| !have_place(&mappings, run.range())) {
            let address = stray.address();
            return Err(Error::Unsound(format!("{id}: pages at {address:#x} lie in no mapping of their own")));
        }
    }
    Ok(())
}
