//! The machine of this process: what a manifest says of it, and whether an image fits it.

use std::fs;
use std::time::Duration;

use hdcr::wire;
use hdcr_image::{Clocks, ManifestFacts};
use rustix::time::{ClockId, clock_gettime};

use crate::failure::{Failure, Obstacle, Result};
use crate::task::RestoreTask;

/// Processor features, as `/proc/cpuinfo` names them, that a program or its library may have found and now uses.
const USED_FEATURES: [&str; 28] = [
    "pni",
    "ssse3",
    "sse4_1",
    "sse4_2",
    "popcnt",
    "abm",
    "movbe",
    "aes",
    "pclmulqdq",
    "rdrand",
    "rdseed",
    "adx",
    "f16c",
    "fma",
    "bmi1",
    "bmi2",
    "avx",
    "avx2",
    "sha_ni",
    "gfni",
    "vaes",
    "vpclmulqdq",
    "xsave",
    "xsavec",
    "avx_vnni",
    "rtm",
    "erms",
    "fsrm",
];

/// What the edge knows for a manifest.
pub(crate) fn facts(mechanism: &str, snapshot: &str) -> ManifestFacts {
    let uname = rustix::system::uname();
    let text = |field: &std::ffi::CStr| field.to_string_lossy().into_owned();
    ManifestFacts {
        hdcr_version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_features: cpu_features(),
        kernel_release: text(uname.release()),
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
        host_name: text(uname.nodename()),
        clocks: clocks(),
        mechanism: mechanism.to_owned(),
        snapshot: snapshot.to_owned(),
        ..ManifestFacts::default()
    }
}

/// The clocks now.
pub(crate) fn clocks() -> Clocks {
    Clocks {
        realtime_ns: now(ClockId::Realtime),
        monotonic_ns: now(ClockId::Monotonic),
        boottime_ns: now(ClockId::Boottime),
    }
}

/// The processor time of this process so far.
pub(crate) fn worked() -> Duration {
    let nanos = u64::try_from(now(ClockId::ProcessCPUTime)).unwrap_or(0);
    Duration::from_nanos(nanos)
}

/// What a program finds that is restored here and now (`hdcr::wire`).
pub(crate) fn greeting(task: &RestoreTask, facts: &ManifestFacts) -> Result<Vec<u8>> {
    let passed = now(ClockId::Realtime).saturating_sub(facts.clocks.realtime_ns);
    let restored = hdcr::Restored {
        count: task.greeting.count,
        image: task.place.to_string(),
        reason: task.greeting.reason,
        passed: Duration::from_nanos(u64::try_from(passed).unwrap_or(0)),
    };
    let greeting = wire::Greeting { restored, control: task.greeting.control.clone() };
    serde_json::to_vec(&wire::Answer::Restored(greeting)).map_err(Failure::system("encoding a greeting"))
}

/// A clock in nanoseconds.
pub(crate) fn now(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

fn cpu_features() -> Vec<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    let flags = flags.map_or("", |(_, flags)| flags).split_ascii_whitespace();
    flags.filter(|flag| used(flag)).map(str::to_owned).collect()
}

fn used(flag: &str) -> bool {
    USED_FEATURES.contains(&flag) || flag.starts_with("avx512") || flag.starts_with("amx")
}

/// What of an image's needs this machine lacks.
pub(crate) fn missing(facts: &ManifestFacts) -> Vec<Obstacle> {
    let obstacle = |code: &str, object: String, cause: String, remedy: &str| Obstacle {
        code: code.to_owned(),
        object,
        pid: None,
        fd: None,
        path: None,
        cause,
        remedy: remedy.to_owned(),
    };
    let mut found = Vec::new();
    if facts.architecture != std::env::consts::ARCH {
        let cause = format!("this machine is {}", std::env::consts::ARCH);
        found.push(obstacle(
            "architecture",
            format!("an image for {}", facts.architecture),
            cause,
            "restore it on a machine of its kind",
        ));
        return found;
    }
    let here = cpu_features();
    let lacking: Vec<&str> =
        facts.cpu_features.iter().filter(|feature| !here.contains(feature)).map(String::as_str).collect();
    if !lacking.is_empty() {
        let object = format!("processor features {}", lacking.join(", "));
        let cause = "the program may use them, and this processor lacks them".to_owned();
        found.push(obstacle("cpu-features", object, cause, "restore it on a machine with a processor that has them"));
    }
    found
}

/// Refuses an image that this machine cannot run.
pub(crate) fn fits(facts: &ManifestFacts) -> Result<()> {
    let refusals = missing(facts);
    if refusals.is_empty() {
        return Ok(());
    }
    Err(Failure { refusals, ..Failure::refused("machine", "the image does not fit this machine; nothing was touched") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_fits_where_it_was_made_and_not_elsewhere() {
        let mut here = facts("ptrace", "copy");
        assert!(fits(&here).is_ok());
        assert!(here.clocks.realtime_ns > 1_600_000_000_000_000_000);
        here.cpu_features.push("amx_dreams".to_owned());
        assert_eq!(missing(&here)[0].code, "cpu-features");
        here.architecture = "vax".to_owned();
        assert_eq!(missing(&here)[0].code, "architecture");
    }
}
