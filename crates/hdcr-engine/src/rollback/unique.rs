//! Numbers in names that no other restore gives: several at a time may make files in one directory (`/tmp`, above all), and
//! each removes its own names when it fails.

use super::Plan;

impl Plan {
    /// A number that this plan has not given yet, and nobody else gives.
    pub(crate) fn unique(&mut self) -> u64 {
        let base = *self.base.get_or_insert_with(random);
        base.saturating_add(self.number())
    }
}

/// A random number of 48 bits.
fn random() -> u64 {
    let mut bytes = [0; 8];
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(bytes.len()) {
        // Only right after the boot of a machine without a source of randomness.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        bytes = (now.tv_nsec ^ i64::from(rustix::process::getpid().as_raw_nonzero().get()) << 32).to_ne_bytes();
    }
    u64::from_ne_bytes(bytes) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_plans_give_the_same() {
        let mut plans = [Plan::default(), Plan::default()];
        let all: std::collections::BTreeSet<u64> =
            plans.iter_mut().flat_map(|plan| [plan.unique(), plan.unique(), plan.unique()]).collect();
        assert_eq!(all.len(), 6);
    }
}
