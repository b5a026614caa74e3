//! Whether images are made on top of one another.

use std::time::Duration;

/// At this interval and below a program is followed all the time.
const OFTEN: Duration = Duration::from_secs(10);
/// A whole image that takes more than one in so many parts of the interval costs too much.
const SHARE: u32 = 20;

/// Whether it pays to follow a program between two checkpoints, so that only what it has written is stored.
///
/// Following has a price: the first write to a page after each checkpoint takes a microsecond longer, and huge pages that
/// are written are split. `whole` is how long a whole image has taken, when that is known.
pub fn pays(interval: Duration, whole: Option<Duration>) -> bool {
    interval <= OFTEN || whole.is_some_and(|whole| whole.saturating_mul(SHARE) > interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_pays_when_images_are_frequent_or_large() {
        assert!(pays(Duration::from_secs(1), None));
        assert!(!pays(Duration::from_mins(5), None));
        assert!(!pays(Duration::from_mins(5), Some(Duration::from_secs(1))));
        assert!(pays(Duration::from_mins(5), Some(Duration::from_secs(20))));
    }
}
