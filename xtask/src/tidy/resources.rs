//! Rules about resource files: they know no mechanism, and each is shown by a guest and described in a row.

use std::path::Path;

use crate::tidy::Source;

const FOLDER: &str = "crates/hdcr-engine/src/resource/";

/// The files of the resources, and of what stands beside them.
fn resources(sources: &[Source]) -> Vec<&Source> {
    let in_folder = |s: &&Source| s.is("rs") && s.path.starts_with(FOLDER);
    sources.iter().filter(in_folder).collect()
}

/// The name of the kind that a file makes known; a family is known by its folder.
fn kind(source: &Source) -> Option<&str> {
    source.text.contains("impl FileKind for ").then_some(())?;
    match stem(&source.path) {
        "mod" => source.path.rsplit('/').nth(1),
        name => Some(name),
    }
}

fn stem(path: &str) -> &str {
    Path::new(path).file_stem().and_then(|s| s.to_str()).unwrap_or_default()
}

pub(super) fn mechanism_blind(sources: &[Source]) -> Vec<String> {
    let knows = |s: &&&Source| {
        let code = s.text.split("#[cfg(test)]").next().unwrap_or_default();
        ["hdcr_ptrace", "hdcr_kmod", "feature = \"ptrace\"", "feature = \"kmod\""].iter().any(|w| code.contains(w))
    };
    let knowing = resources(sources);
    knowing.iter().filter(knows).map(|s| format!("{} names a mechanism", s.path)).collect()
}

/// A guest shows the resource of its own name, and those in `covers=` of its `// zoo:` line.
pub(super) fn shown(sources: &[Source]) -> Vec<String> {
    let guests: Vec<&Source> = sources.iter().filter(|s| s.path.starts_with("trials/zoo/") && s.is("c")).collect();
    let rows = sources.iter().find(|s| s.path == "docs/resources.md").map_or("", |s| &s.text);
    let mut complaints = Vec::new();
    for name in resources(sources).into_iter().filter_map(kind) {
        if !guests.iter().any(|guest| covers(guest, name)) {
            complaints.push(format!("{name} has no guest in trials/zoo"));
        }
        let mark = format!("`{name}`");
        if !rows.lines().any(|row| row.starts_with('|') && row.contains(&mark)) {
            complaints.push(format!("{name} has no row in docs/resources.md"));
        }
    }
    complaints
}

fn covers(guest: &Source, name: &str) -> bool {
    let words = guest.text.lines().take(6).filter_map(|line| line.strip_prefix("// zoo:"));
    let mut covered = words
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.strip_prefix("covers="))
        .flat_map(|list| list.split(','));
    stem(&guest.path) == name || covered.any(|covered| covered == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, text: &str) -> Source {
        Source::new(&format!("{FOLDER}{name}.rs"), text)
    }

    #[test]
    fn a_resource_without_guest_and_row_is_named() {
        let sources = [resource("pipe", "impl FileKind for Pipe {"), resource("keep", "fn beside() {}")];
        assert_eq!(shown(&sources), ["pipe has no guest in trials/zoo", "pipe has no row in docs/resources.md"]);
    }

    #[test]
    fn a_guest_covers_its_name_and_its_list() {
        let sources = [
            resource("pipe", "impl FileKind for Pipe {"),
            resource("regfile", "impl FileKind for RegFile {"),
            Source::new("trials/zoo/pipe.c", "// Pipes.\n"),
            Source::new("trials/zoo/regular_file.c", "// Files.\n// zoo: rounds=2 covers=other,regfile\n"),
            Source::new("docs/resources.md", "| `pipe` | yes |\n| `regfile` | yes |\n"),
        ];
        assert_eq!(shown(&sources), Vec::<String>::new());
    }

    #[test]
    fn a_resource_that_names_a_mechanism_is_named() {
        let sources =
            [resource("pipe", "use hdcr_ptrace::X;\n"), resource("tty", "x\n#[cfg(test)]\nuse hdcr_ptrace::X;")];
        assert_eq!(mechanism_blind(&sources), [format!("{FOLDER}pipe.rs names a mechanism")]);
    }
}
