//! The algorithms that come with HDCR, by their names and with their settings.

use std::time::Duration;

use super::{Adaptive, Algorithm, Chain, Cooperative, Daly, Exact, Fixed, Levels, OnIdle, OnNotice, Young};

/// The names that [`make`] knows.
pub const NAMES: [&str; 10] =
    ["fixed", "young", "daly", "exact", "adaptive", "chain", "levels", "on-notice", "on-idle", "cooperative"];

/// What can be set; each algorithm takes what [`takes`] says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `period`: from the beginning of a checkpoint to that of the next one.
    pub period: Duration,
    /// `mtbf`: the guess of the mean time between faults, from which learning begins.
    pub between_faults: Duration,
    /// `longest`: the most increments on a full checkpoint.
    pub longest: usize,
    /// `step`: every so-manieth checkpoint goes one level up.
    pub step: u64,
    /// `idle`: after so long without CPU time the program idles.
    pub idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(30),
            between_faults: Duration::from_hours(24),
            longest: 16,
            step: 8,
            idle: Duration::from_secs(1),
        }
    }
}

/// The settings of an algorithm. `signal` and `grace` are about what is a notice, and not for the algorithm itself.
pub fn takes(name: &str) -> &'static [&'static str] {
    match name {
        "fixed" => &["period"],
        "young" | "daly" | "exact" | "adaptive" | "cooperative" => &["mtbf"],
        "chain" => &["longest", "mtbf"],
        "levels" => &["step", "mtbf"],
        "on-notice" => &["signal", "grace", "mtbf"],
        "on-idle" => &["idle", "mtbf"],
        _ => &[],
    }
}

/// An algorithm by its name.
pub fn make(name: &str, settings: &Settings) -> Option<Box<dyn Algorithm + Send>> {
    let guess = settings.between_faults;
    let exact = || Box::new(Exact::guessing(guess));
    Some(match name {
        "fixed" => Box::new(Fixed::new(settings.period)),
        "young" => Box::new(Young::guessing(guess)),
        "daly" => Box::new(Daly::guessing(guess)),
        "exact" => exact(),
        "adaptive" => Box::new(Adaptive::guessing(guess)),
        "chain" => Box::new(Chain::new(Box::new(Adaptive::guessing(guess)), settings.longest)),
        "levels" => Box::new(Levels::new(exact(), settings.step)),
        "on-notice" => Box::new(OnNotice::new(exact())),
        "on-idle" => Box::new(OnIdle::new(exact(), settings.idle)),
        "cooperative" => Box::new(Cooperative::new(exact())),
        _ => return None,
    })
}

/// An algorithm by its name, with its settings at their defaults; `period` is for those that have a fixed one.
pub fn by_name(name: &str, period: Duration) -> Option<Box<dyn Algorithm + Send>> {
    make(name, &Settings { period, ..Settings::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_an_algorithm_that_bears_it_and_settings() {
        for name in NAMES {
            let made = make(name, &Settings::default());
            assert_eq!(made.map(|made| made.name().to_owned()).as_deref(), Some(name));
            assert!(!takes(name).is_empty(), "{name}");
        }
        assert!(make("none", &Settings::default()).is_none());
    }
}
