//! What somebody may have meant who named something that there is not.

use std::ffi::OsStr;
use std::path::Path;

use hdcr_image::JobName;

use crate::failure::{Class, Failure};
use crate::parts;
use crate::task::Place;

/// Whether an image is named by its path, and not as one of a store.
pub(crate) fn is_path(image: &OsStr) -> bool {
    image.as_encoded_bytes().contains(&b'/')
}

/// A failure to read an image, with the image that it is and, when that is damaged, what else there may be.
pub(crate) fn of_image(failure: Failure, place: &Place) -> Failure {
    if failure.class != Class::Corrupt {
        return failure;
    }
    let remedy = match place {
        Place::Store { job, .. } => format!(
            "each checkpoint can be restored by itself: `hdcr list {job}` shows the others, `hdcr verify {job}@ID` reads all of one"
        ),
        Place::Path(_) => {
            "nothing can be brought back from it; another copy or another checkpoint may be whole (`hdcr verify` reads all of one)"
                .to_owned()
        }
    };
    let is_named = failure.message.contains(&place.to_string());
    if is_named { failure } else { failure.during(place) }.remedy(remedy)
}

/// The known name that is nearest to a mistyped one, when one is near enough to be meant.
pub(crate) fn nearest(meant: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let far = (meant.chars().count() / 3).max(1);
    let begins = |name: &String| meant.chars().count() > 1 && name.starts_with(meant);
    let near = |name: String| {
        let distance = if begins(&name) { 1 } else { distance(&meant.to_lowercase(), &name.to_lowercase()) };
        (name != meant && distance <= far).then_some((distance, name))
    };
    known.into_iter().filter_map(near).min().map(|(_, name)| name)
}

/// How many letters are to be put in, left out, exchanged, or swapped with their neighbour.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before = vec![0; to.len() + 1];
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (row, letter) in from.iter().enumerate() {
        let mut now = vec![row + 1];
        for (column, other) in to.iter().enumerate() {
            let at = |line: &[usize], column: usize| line.get(column).copied().unwrap_or(usize::MAX - 1);
            let exchanged = at(&last, column) + usize::from(letter != other);
            let mut steps = exchanged.min(at(&last, column + 1) + 1).min(at(&now, column) + 1);
            let neighbours = (row.checked_sub(1), column.checked_sub(1));
            if let (Some(row), Some(column)) = neighbours
                && (from.get(row), Some(letter)) == (Some(other), to.get(column))
            {
                steps = steps.min(at(&before, column) + 1);
            }
            now.push(steps);
        }
        before = std::mem::replace(&mut last, now);
    }
    last.last().copied().unwrap_or_default()
}

/// What to say when a store has nothing of a job: the one that may be meant, or where to look.
pub(crate) fn no_checkpoint(store: &Path, name: &str, otherwise: &str) -> String {
    // A job whose checkpoints were removed keeps its numbers.
    let has_some = |job: &JobName| parts::numbers(store, job).is_ok_and(|numbers| !numbers.is_empty());
    let known = parts::jobs(store).unwrap_or_default().into_iter().filter(has_some).map(|job| job.to_string());
    nearest(name, known).map_or_else(|| otherwise.to_owned(), |name| format!("did you mean {name}? {otherwise}"))
}

/// What there is of a job, instead of the checkpoint that was named.
pub(crate) fn there_are(job: &str, numbers: &[u64]) -> String {
    /// More would not be read.
    const SHOWN: usize = 8;
    let shown: Vec<String> = numbers.iter().rev().take(SHOWN).map(|number| format!("{job}@{number}")).collect();
    match shown.as_slice() {
        [] => "`hdcr list` shows all".to_owned(),
        shown if numbers.len() > SHOWN => format!("there are {} and older ones (`hdcr list {job}`)", shown.join(", ")),
        [only] => format!("there is {only}"),
        shown => format!("there are {}", shown.join(", ")),
    }
}

/// A number alone where an image is wanted.
pub(crate) fn a_process(text: &str) -> Option<Failure> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| {
        Failure::usage(format!("{text} is the number of a process, not a checkpoint")).remedy(format!(
            "`hdcr list` shows checkpoints; `hdcr checkpoint {text}` makes one; a file is named with a slash: ./{text}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_put_in_left_out_exchanged_and_swapped() {
        for (from, to, expected) in
            [("sim", "sim", 0), ("sin", "sim", 1), ("sm", "sim", 1), ("ism", "sim", 1), ("", "abc", 3), ("ab", "cd", 2)]
        {
            assert_eq!((distance(from, to), distance(to, from)), (expected, expected), "{from} {to}");
        }
    }

    #[test]
    fn the_nearest_name_is_meant_or_none() {
        let known = || ["sim", "simulation", "backup"].map(str::to_owned);
        for (meant, expected) in [
            ("sin", Some("sim")),
            ("SIM", Some("sim")),
            ("simul", Some("simulation")),
            ("simualtion", Some("simulation")),
            ("back", Some("backup")),
            ("other", None),
            ("", None),
        ] {
            assert_eq!(nearest(meant, known()).as_deref(), expected, "{meant}");
        }
    }

    #[test]
    fn a_job_without_checkpoints_is_not_meant() {
        let store = tempfile::tempdir().unwrap();
        for (job, checkpoint) in [("sim", false), ("sum", true)] {
            std::fs::create_dir_all(store.path().join("jobs").join(job)).unwrap();
            if checkpoint {
                std::fs::create_dir(store.path().join("jobs").join(job).join("1")).unwrap();
                std::fs::write(store.path().join("jobs").join(job).join("1/manifest"), "").unwrap();
            }
        }
        let sum = JobName::new("sum").unwrap();
        assert_eq!(parts::numbers(store.path(), &sum).unwrap(), [1]);
        assert_eq!(no_checkpoint(store.path(), "sin", "look"), "look");
        assert_eq!(no_checkpoint(store.path(), "sun", "look"), "did you mean sum? look");
    }

    #[test]
    fn what_there_is_is_told_newest_first() {
        assert_eq!(there_are("j", &[7]), "there is j@7");
        assert_eq!(there_are("j", &[3, 7]), "there are j@7, j@3");
        assert!(there_are("j", &(1..20).collect::<Vec<u64>>()).ends_with("j@12 and older ones (`hdcr list j`)"));
    }
}
