//! Durations and sizes as a user writes them: `30s`, `1.5h`, `500ms`, `64M`.

use std::time::Duration;

/// Units of time in nanoseconds.
const TIMES: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Units of size in bytes.
const SIZES: [(&str, u64); 5] = [("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];

/// Reads a duration: a number with a unit (`ms`, `s`, `m`, `h`, `d`), or several such in a row (`1h30m`).
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err("a duration is a number with a unit, such as 30s, 500ms, 5m or 1h30m".to_owned());
    }
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split(after, |c| c.is_ascii_alphabetic());
        let factor = TIMES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        let factor = factor.ok_or_else(|| match unit {
            "" => format!("\"{text}\" lacks a unit: write {text}s, {text}m or {text}h"),
            other => format!("\"{other}\" is no unit of time; there are ms, s, m, h and d"),
        })?;
        let ns = scale(number, factor).ok_or_else(|| format!("\"{number}\" is not a number that fits"))?;
        total = total.checked_add(Duration::from_nanos(ns)).ok_or("the duration is too long")?;
        rest = after;
    }
    Ok(total)
}

/// Reads a size in bytes: `4096`, `64K`, `1.5G` (powers of 1024; `KiB`, `MB` and so on mean the same).
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text.trim(), |c| c.is_ascii_digit() || c == '.');
    let unit = unit.trim().to_ascii_uppercase();
    let short = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
    let factor = SIZES.iter().find(|(name, _)| *name == short).map(|(_, factor)| *factor);
    factor
        .and_then(|factor| scale(number, factor))
        .ok_or_else(|| format!("\"{text}\" is not a size; write for example 4096, 64K, 16M or 1.5G"))
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !belongs(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// A decimal number times a factor, without rounding through a float.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let digits: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let parts = u128::from(factor) * digits / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(factor)?.checked_add(u64::try_from(parts).ok()?)
}

/// A duration for people: two units at most.
pub(crate) fn show(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.is_zero() => "0 s".to_owned(),
        0 if duration < Duration::from_millis(1) => format!("{} us", duration.as_micros()),
        0..10 => format!(
            "{:.1} {}",
            if seconds == 0 { f64::from(duration.subsec_micros()) / 1e3 } else { duration.as_secs_f64() },
            if seconds == 0 { "ms" } else { "s" }
        ),
        10..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..172_800 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A size for people.
pub(crate) fn show_size(bytes: u64) -> String {
    // What is rounded up to the next unit is told in that one.
    let reaches = |factor: u64| u128::from(bytes) * 20 >= u128::from(factor) * 20 - u128::from(factor / 1024);
    let unit = SIZES.iter().rev().find(|(_, factor)| *factor > 1 && reaches(*factor));
    match unit {
        None => format!("{bytes} B"),
        Some((name, factor)) => {
            let tenths = (u128::from(bytes) * 10 + u128::from(*factor) / 2) / u128::from(*factor);
            format!("{}.{} {name}iB", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, ms) in [
            ("30s", 30_000),
            ("500ms", 500),
            ("1.5s", 1_500),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("0s", 0),
            (".25s", 250),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "30", "s", "30x", "-1s", "1..5s", "1e3s", "99999999999999999999s", "30 s", ".s"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("30").unwrap_err().contains("30s"));
    }

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64K", 65_536), ("1.5M", 1_572_864), ("2GiB", 2 << 30), ("1kb", 1024)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "1Z", "-1", "99999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_read_two_units_at_most() {
        for (ms, text) in [
            (0, "0 s"),
            (12, "12.0 ms"),
            (1_500, "1.5 s"),
            (42_000, "42 s"),
            (95_000, "1 min 35 s"),
            (7_260_000, "2 h 1 min"),
            (400_000_000, "4 d 15 h"),
        ] {
            assert_eq!(show(Duration::from_millis(ms)), text);
        }
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (17_301_116, "16.5 MiB"),
            (1_048_570, "1.0 MiB"),
            (1_048_000, "1023.4 KiB"),
            (5 << 30, "5.0 GiB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }
}
