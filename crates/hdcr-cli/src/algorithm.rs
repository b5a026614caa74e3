//! `--algorithm`: who decides when a checkpoint is taken.

use std::str::FromStr;
use std::time::Duration;

use hdcr_policy::algorithm::{NAMES, Settings, takes};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::duration;
use crate::kinds::signal_number;
use crate::names::nearest;
use crate::signals::PASSED_ON;

/// An algorithm, and what was set for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// One that comes with HDCR.
    Own { name: String, settings: Settings, period: Option<Duration>, notice: Notice },
    /// A command that speaks the line protocol.
    Outside(String),
}

/// What announces the end of the job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Notice {
    /// By this signal to the keeper.
    pub(crate) signal: i32,
    /// So long before it comes, when that is known.
    pub(crate) grace: Option<Duration>,
}

impl Default for Notice {
    fn default() -> Self {
        Self { signal: Signal::SIGTERM as i32, grace: None }
    }
}

/// Before the command of an algorithm outside.
const EXEC: &str = "exec";
/// A shorter period is a mistake.
const SHORTEST: Duration = Duration::from_millis(10);

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.trim().split_once(':').map_or((text.trim(), None), |(name, rest)| (name, Some(rest)));
        if name == EXEC {
            let command = rest.map(str::trim).filter(|command| !command.is_empty());
            return command.map(|command| Self::Outside(command.to_owned())).ok_or_else(|| {
                "exec: is followed by a command, such as exec:./rule.py (docs/algorithms.md)".to_owned()
            });
        }
        if !NAMES.contains(&name) {
            let known = NAMES.iter().chain([&EXEC]).map(ToString::to_string);
            let meant = nearest(name, known);
            let then = meant.map_or_else(|| "there".to_owned(), |near| format!("did you mean {near}? There"));
            let all = NAMES.join(", ");
            return Err(format!("there is no algorithm \"{name}\"; {then} are {all} and exec:COMMAND"));
        }
        let (mut settings, mut notice, mut period) = (Settings::default(), Notice::default(), None);
        for pair in rest.into_iter().flat_map(|rest| rest.split(',')).filter(|pair| !pair.trim().is_empty()) {
            let (key, value) = pair.split_once('=').map_or((pair, ""), |(key, value)| (key.trim(), value.trim()));
            if !takes(name).contains(&key) {
                return Err(format!("{name} has no setting \"{key}\"; it has {}", takes(name).join(", ")));
            }
            let of = |why: String| format!("{key} of {name}: {why}");
            match key {
                "period" => period = Some(time(value, SHORTEST).map_err(of)?),
                "mtbf" => settings.between_faults = time(value, Duration::from_secs(1)).map_err(of)?,
                "idle" => settings.idle = time(value, SHORTEST).map_err(of)?,
                "grace" => notice.grace = Some(time(value, Duration::ZERO).map_err(of)?),
                "longest" => settings.longest = number(value, 1).map_err(of)?,
                "step" => settings.step = number(value, 2).map_err(of)?,
                _ => notice.signal = passed_on(value).map_err(of)?,
            }
        }
        Ok(Self::Own { name: name.to_owned(), settings, period, notice })
    }
}

fn time(text: &str, least: Duration) -> Result<Duration, String> {
    let time = duration::parse(text)?;
    if time < least { Err(format!("it is at least {}", duration::show(least))) } else { Ok(time) }
}

fn number<N: FromStr + PartialOrd + From<u8> + std::fmt::Display>(text: &str, least: u8) -> Result<N, String> {
    let number = text.parse().ok().filter(|number: &N| *number >= N::from(least));
    number.ok_or_else(|| format!("\"{text}\" is not a whole number from {least} on"))
}

fn passed_on(name: &str) -> Result<i32, String> {
    let number = signal_number(name).filter(|number| PASSED_ON.iter().any(|signal| *signal as i32 == *number));
    number.ok_or_else(|| {
        let names: Vec<&str> = PASSED_ON.iter().filter_map(|signal| signal.as_str().strip_prefix("SIG")).collect();
        format!("\"{name}\" is none of {}", names.join(", "))
    })
}

impl Choice {
    /// What it is called in what is said of it.
    pub(crate) fn called(&self) -> &str {
        match self {
            Self::Own { name, .. } => name,
            Self::Outside(command) => command,
        }
    }

    /// Whether the time of `--every` means something to it.
    pub(crate) fn has_period(&self) -> bool {
        match self {
            Self::Own { name, period, .. } => name == "fixed" && period.is_none(),
            Self::Outside(_) => true,
        }
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(text: &str) -> (String, Settings, Option<Duration>, Notice) {
        match text.parse() {
            Ok(Choice::Own { name, settings, period, notice }) => (name, settings, period, notice),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn names_and_settings_are_read() {
        let second = Duration::from_secs(1);
        for name in NAMES {
            assert_eq!(own(name), (name.to_owned(), Settings::default(), None, Notice::default()));
        }
        assert_eq!(own("fixed:period=5s").2, Some(5 * second));
        let (_, chain, ..) = own("chain:longest=4, mtbf=1h");
        assert_eq!((chain.longest, chain.between_faults), (4, Duration::from_hours(1)));
        let (_, _, _, notice) = own("on-notice:signal=USR1,grace=1m");
        assert_eq!(notice, Notice { signal: Signal::SIGUSR1 as i32, grace: Some(60 * second) });
        assert_eq!("exec: a:b,c=d ".parse(), Ok(Choice::Outside("a:b,c=d".to_owned())));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_there_is() {
        for (text, words) in [
            ("adaptiv", "did you mean adaptive? There are fixed, young,"),
            ("magic", "there is no algorithm \"magic\"; there are"),
            ("fixed:perod=3s", "fixed has no setting \"perod\"; it has period"),
            ("fixed:period=1ms", "period of fixed: it is at least"),
            ("chain:longest=0", "whole number from 1 on"),
            ("on-notice:signal=KILL", "\"KILL\" is none of HUP, INT"),
            ("exec:", "followed by a command"),
            ("exec", "followed by a command"),
        ] {
            let said = text.parse::<Choice>().unwrap_err();
            assert!(said.contains(words), "{text}: {said}");
        }
    }
}
