//! The C header against the C surface: the same names, and sizes that both sides state.

use std::collections::BTreeSet;

const HEADER: &str = include_str!("../include/hdcr.h");
const SURFACE: &str = include_str!("../src/capi.rs");

/// The functions named before a parenthesis in the lines that say so.
fn functions(text: &str, is: impl Fn(&str) -> bool) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| is(line));
    let before = lines.filter_map(|line| line.split_once('(')).map(|(before, _)| before);
    before.filter_map(|words| words.rsplit([' ', '*']).next()).filter(|name| name.starts_with("hdcr_")).collect()
}

#[test]
fn the_header_has_what_the_library_has() {
    let told = functions(HEADER, |line| {
        let is_text = line.starts_with([' ', '\t', '/', '#', '}']) || line.starts_with("typedef");
        !is_text && line.contains("hdcr_") && line.contains('(')
    });
    let made = functions(SURFACE, |line| line.starts_with("pub ") && line.contains("extern \"C\" fn"));
    assert_eq!(told, made);
    assert!(made.len() > 10, "{made:?}");
}
