//! Faults at random times, the same for the same seed.

use std::time::Duration;

use crate::algorithm::{Fault, Level};

/// The law of the time between two faults.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Law {
    /// A constant rate.
    Exponential,
    /// Weibull's with this shape: below 1 faults come in flocks, as clusters' logs show (0.6 to 0.8).
    Weibull(f64),
}

/// Numbers of `splitmix64` (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let bits = (self.next() >> 11) as f64;
        (bits + 1.0) / 9_007_199_254_740_992.0
    }
}

/// Faults with this mean time in between, up to `until`. One in `severe` loses level 0 as well, one in its square level 1,
/// and so on; 0: none does.
pub fn faults(law: Law, mean: Duration, until: Duration, severe: u32, seed: u64) -> Vec<Fault> {
    let mut random = Random(seed);
    let mut faults = Vec::new();
    let mut at = 0.0;
    let (mean, until) = (mean.as_secs_f64().max(1e-9), until.as_secs_f64());
    loop {
        let exponential = -random.unit().ln();
        at += match law {
            Law::Exponential => mean * exponential,
            Law::Weibull(shape) => mean / gamma(1.0 + 1.0 / shape) * exponential.powf(1.0 / shape),
        };
        if at >= until {
            return faults;
        }
        let mut severity = 0_u8;
        while severe > 0 && severity < u8::MAX && random.next().is_multiple_of(severe.into()) {
            severity = severity.saturating_add(1);
        }
        faults.push(Fault { at: Duration::from_secs_f64(at), severity: Level(severity), again: false, last: None });
    }
}

/// The gamma function for arguments of 1 and more, by Lanczos' sum (g = 7, 9 terms).
fn gamma(x: f64) -> f64 {
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let mut sum = 0.999_999_999_999_809_9;
    let mut place = 0.0;
    for term in TERMS {
        place += 1.0;
        sum += term / (x + place);
    }
    let t = x + 7.5;
    (2.0 * std::f64::consts::PI).sqrt() * t.powf(x + 0.5) * (-t).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_what_was_asked_for() {
        let (mean, until) = (Duration::from_mins(1), Duration::from_mins(100_000));
        for law in [Law::Exponential, Law::Weibull(0.7), Law::Weibull(2.0)] {
            let faults = faults(law, mean, until, 10, 7);
            assert!((97_000..103_000).contains(&faults.len()), "{law:?} {}", faults.len());
            assert!(faults.is_sorted_by_key(|fault| fault.at));
            let severe = faults.iter().filter(|fault| fault.severity > Level(0)).count();
            assert!((9_000..11_000).contains(&severe), "{severe}");
        }
        assert_eq!(faults(Law::Exponential, mean, until, 0, 3), faults(Law::Exponential, mean, until, 0, 3));
    }

    #[test]
    fn gamma_is_right_where_it_is_used() {
        for (x, expected) in [(1.0, 1.0), (1.5, 0.886_227), (2.0, 1.0), (2.428_571, 1.265_823), (5.0, 24.0)] {
            assert!((gamma(x) - expected).abs() < 1e-4, "{x}: {}", gamma(x));
        }
    }
}
