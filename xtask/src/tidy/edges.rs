//! Which crate may use which: the table of the design, held against the manifests.

use toml::Table;

use crate::tidy::Source;

/// What a crate may use of the project, and whether it may use anything else at run time.
struct Room {
    name: &'static str,
    may_use: &'static [&'static str],
    alone: bool,
}

const fn room(name: &'static str, may_use: &'static [&'static str], alone: bool) -> Room {
    Room { name, may_use, alone }
}

/// The engine names the layout itself: its records of tasks and mappings are the layout's.
const ROOMS: [Room; 15] = [
    room("hdcr-abi", &[], true),
    room("hdcr-layout", &[], true),
    room("hdcr-image", &["hdcr-layout"], false),
    room("hdcr-store", &["hdcr-image"], false),
    room("hdcr-sys", &[], false),
    room("hdcr-engine", &["hdcr-image", "hdcr-layout", "hdcr-sys"], false),
    room("hdcr-ptrace", &["hdcr-engine", "hdcr-sys"], false),
    room("hdcr-kmod", &["hdcr-engine", "hdcr-abi", "hdcr-sys"], false),
    room("hdcr-policy", &[], true),
    room("hdcr-sync", &[], true),
    room("hdcr", &["hdcr-image", "hdcr-store", "hdcr-policy"], false),
    room(
        "hdcr-cli",
        &[
            "hdcr",
            "hdcr-abi",
            "hdcr-engine",
            "hdcr-image",
            "hdcr-kmod",
            "hdcr-layout",
            "hdcr-policy",
            "hdcr-ptrace",
            "hdcr-store",
            "hdcr-sync",
            "hdcr-sys",
        ],
        false,
    ),
    room("trials", &[], false),
    room("xtask", &[], false),
    room("hdcr-fuzz", &["hdcr-image", "hdcr-layout"], false),
];

/// Every edge that is not in the table, every crate that is not.
pub(super) fn edges(sources: &[Source]) -> Vec<String> {
    let manifests = sources.iter().filter(|s| s.path.ends_with("Cargo.toml") && s.path != "Cargo.toml");
    manifests.flat_map(|s| of_manifest(&s.path, &s.text)).collect()
}

fn of_manifest(path: &str, text: &str) -> Vec<String> {
    let Ok(manifest) = text.parse::<Table>() else {
        return vec![format!("{path} is not TOML")];
    };
    let package = manifest.get("package").and_then(|p| p.get("name"));
    let name = package.and_then(toml::Value::as_str).unwrap_or_default();
    let Some(room) = ROOMS.iter().find(|room| room.name == name) else {
        return vec![format!("{path}: the table has no crate {name}")];
    };
    let sections = ["dependencies", "build-dependencies"];
    let used = sections.iter().filter_map(|s| manifest.get(*s)?.as_table());
    let used = used.flat_map(|table| table.keys());
    used.filter(|other| !room.allows(other)).map(|other| format!("{name} may not use {other}")).collect()
}

impl Room {
    fn allows(&self, other: &str) -> bool {
        let is_ours = other == "hdcr" || other.starts_with("hdcr-");
        if is_ours { self.may_use.contains(&other) } else { !self.alone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_that_points_up_is_named() {
        let text =
            "[package]\nname = \"hdcr-image\"\n[dependencies]\nhdcr-layout = {}\nblake3 = \"1\"\nhdcr-engine = {}\n";
        assert_eq!(of_manifest("x", text), ["hdcr-image may not use hdcr-engine"]);
    }

    #[test]
    fn a_pure_crate_stands_alone() {
        let text =
            "[package]\nname = \"hdcr-policy\"\n[dependencies]\nserde = \"1\"\n[dev-dependencies]\nproptest = \"1\"\n";
        assert_eq!(of_manifest("x", text), ["hdcr-policy may not use serde"]);
    }

    #[test]
    fn a_crate_outside_the_table_is_named() {
        assert_eq!(of_manifest("x", "[package]\nname = \"more\"\n"), ["x: the table has no crate more"]);
    }
}
