//! The C header against the C surface: the same names, sizes that both sides state, and what libhdcr.so gives away.

use std::collections::BTreeSet;
use std::process::Command;

const HEADER: &str = include_str!("../include/hdcr.h");
const SURFACE: &str = include_str!("../src/capi.rs");

const VERSIONS: &str = include_str!("../hdcr.map");

/// The functions named before a parenthesis in the lines that say so.
fn functions(text: &str, is: impl Fn(&str) -> bool) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| is(line));
    let before = lines.filter_map(|line| line.split_once('(')).map(|(before, _)| before);
    before.filter_map(|words| words.rsplit([' ', '*']).next()).filter(|name| name.starts_with("hdcr_")).collect()
}

/// The functions of the header.
fn told() -> BTreeSet<&'static str> {
    functions(HEADER, |line| {
        let is_text = line.starts_with([' ', '\t', '/', '#', '}']) || line.starts_with("typedef");
        !is_text && line.contains("hdcr_") && line.contains('(')
    })
}

/// Each function of the version script, as `NAME@@VERSION`.
fn versions() -> BTreeSet<String> {
    let (mut version, mut all) = ("", BTreeSet::new());
    for line in VERSIONS.lines() {
        match line.trim().strip_suffix(';') {
            Some(name) if name.starts_with("hdcr_") => drop(all.insert(format!("{name}@@{version}"))),
            _ => version = line.strip_suffix(" {").unwrap_or(version),
        }
    }
    all
}

#[test]
fn the_library_gives_away_what_the_header_has_with_versions() {
    let names: BTreeSet<String> =
        versions().iter().filter_map(|name| name.split_once("@@")).map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, told().into_iter().map(str::to_owned).collect());
    // What was built with this test, as a dynamic linker sees it.
    let library = std::env::current_exe().unwrap().with_file_name("libhdcr.so");
    let read = |what: &str| {
        let out = Command::new("readelf").args(["--wide", what]).arg(&library).output().unwrap();
        assert!(out.status.success(), "readelf: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let dynamic = read("--dynamic");
    assert!(dynamic.contains("soname: [libhdcr.so.0]"), "another soname: {dynamic}");
    let symbols = read("--dyn-syms");
    let columns = symbols.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let defined = columns.filter(|line| line.len() == 8 && line[6].parse::<u32>().is_ok());
    let exported: BTreeSet<String> = defined.map(|line| line[7].to_owned()).collect();
    assert_eq!(exported, versions());
}

#[test]
fn the_header_has_what_the_library_has() {
    let told = told();
    let made = functions(SURFACE, |line| line.starts_with("pub ") && line.contains("extern \"C\" fn"));
    assert_eq!(told, made);
    assert!(made.len() > 10, "{made:?}");
}

#[test]
fn each_function_is_tried_where_there_is_no_keeper() {
    const ALONE: &str = include_str!("../../../trials/library/alone.c");
    let untried: Vec<&str> = told().into_iter().filter(|name| !ALONE.contains(&format!("{name}("))).collect();
    assert!(untried.is_empty(), "{untried:?}");
}
