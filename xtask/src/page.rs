//! The manual page `hdcr(3)`, made from the header of the library, its versions and an example.

use std::collections::BTreeMap;

/// What is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Texts<'a> {
    pub(crate) header: &'a str,
    /// The version script.
    pub(crate) versions: &'a str,
    pub(crate) example: &'a str,
    /// Of the product.
    pub(crate) version: &'a str,
}

/// A part of the header.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Heading(&'a str),
    /// A comment, as paragraphs of lines, and what it is about.
    About {
        text: Vec<String>,
        declared: Vec<&'a str>,
    },
}

impl Part<'_> {
    /// The lines of what is declared here.
    fn declared(&self) -> &[&str] {
        match self {
            Part::Heading(_) => &[],
            Part::About { declared, .. } => declared,
        }
    }

    fn first(&self) -> &str {
        self.declared().first().copied().unwrap_or_default()
    }

    fn is_function(&self) -> bool {
        let is_else = ["#", "typedef", "enum", "struct"].iter().any(|word| self.first().starts_with(word));
        !is_else && self.first().contains('(')
    }

    /// What it is found by: the name of a function, a macro or a type.
    fn title(&self) -> &str {
        let first = self.first().trim_start_matches("#define ").trim_end_matches([';', '{', ' ']);
        match first.split_once(['(', '{']) {
            Some((before, _)) => before.trim_end().rsplit([' ', '*']).next().unwrap_or(before),
            None => first.strip_prefix("typedef ").and_then(|first| first.rsplit(' ').next()).unwrap_or(first),
        }
    }
}

/// The functions of the header, in its order.
pub(crate) fn functions(header: &str) -> Vec<String> {
    parts(header).iter().filter(|part| part.is_function()).map(|part| part.title().to_owned()).collect()
}

/// The parts of the header: of each block that begins with a comment, and is more than one.
fn parts(header: &str) -> Vec<Part<'_>> {
    let lines: Vec<&str> = header.lines().collect();
    lines.split(|line| line.is_empty()).filter_map(part).collect()
}

fn part<'a>(block: &[&'a str]) -> Option<Part<'a>> {
    let first = block.first()?;
    let heading = first.strip_prefix("/* ---- ").and_then(|rest| rest.strip_suffix(" ---- */"));
    if let Some(heading) = heading {
        return Some(Part::Heading(heading));
    }
    let end = block.iter().position(|line| line.trim_end().ends_with("*/"))?;
    let is_comment = first.starts_with("/* ") && !first.contains("SPDX");
    let (comment, declared) = block.split_at_checked(end + 1).filter(|_| is_comment)?;
    let mut text = vec![String::new()];
    for line in comment {
        let line = line.trim_end_matches("*/").trim_start_matches("/*").trim_start_matches(" *").trim();
        match text.last_mut() {
            Some(last) if !line.is_empty() => {
                let space = if last.is_empty() { "" } else { " " };
                last.extend([space, line]);
            }
            _ => text.push(String::new()),
        }
    }
    text.retain(|paragraph| !paragraph.is_empty());
    Some(Part::About { text, declared: declared.to_vec() })
}

/// Of each function: its version, and since when there is it.
fn versions(script: &str) -> BTreeMap<&str, (&str, &str)> {
    let (mut since, mut version, mut all) = ("", "", BTreeMap::new());
    for line in script.lines().map(str::trim) {
        since = line.strip_prefix("# since ").unwrap_or(since);
        version = line.strip_suffix(" {").unwrap_or(version);
        if let Some(name) = line.strip_suffix(';').filter(|name| name.starts_with("hdcr_")) {
            all.insert(name, (version, since));
        }
    }
    all
}

/// The text of a line that is no request, whatever it begins with.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// Lines as they are.
fn verbatim(page: &mut String, lines: &[&str]) {
    page.push_str(".nf\n");
    for line in lines {
        page.push_str(&escaped(&line.replace('\t', "    ")));
        page.push('\n');
    }
    page.push_str(".fi\n");
}

/// A paragraph; what stands between back quotes is bold.
fn paragraph(text: &str) -> String {
    let words = text.split('`').enumerate().map(|(at, part)| match (at % 2, escaped(part)) {
        (0, part) => part,
        (_, part) => format!("\\fB{part}\\fR"),
    });
    format!("{}\n", words.collect::<String>())
}

/// The page.
pub(crate) fn page(texts: &Texts<'_>) -> String {
    let (parts, versions) = (parts(texts.header), versions(texts.versions));
    let mut page = format!(
        ".\\\" made from hdcr.h\n.TH hdcr 3 \"\" \"hdcr {}\" \"Checkpoint and rollback\"\n.SH NAME\nhdcr, {} \\- say when a \
         program is checkpointed, and learn that it was restored\n.SH LIBRARY\nCheckpoint library (libhdcr, \\-lhdcr)\n\
         .SH SYNOPSIS\n.nf\n.B #include <hdcr.h>\n.PP\n.B cc program.c $(pkg\\-config \\-\\-cflags \\-\\-libs hdcr)\n\
         .fi\n.PP\n",
        texts.version,
        functions(texts.header).join(", ")
    );
    for part in parts.iter().filter(|part| part.is_function()) {
        verbatim(&mut page, part.declared());
    }
    page.push_str(".SH DESCRIPTION\n");
    for part in &parts {
        match part {
            Part::Heading(heading) => page.extend([".SH ", &heading.to_uppercase(), "\n"]),
            Part::About { text, declared } => {
                about(&mut page, part.title(), declared, text);
                if let Some((version, since)) = versions.get(part.title()) {
                    page.extend([".PP\nSince ", &escaped(since), " (", &escaped(version), ").\n"]);
                }
            }
        }
    }
    page.push_str(".SH EXAMPLE\n");
    verbatim(&mut page, &texts.example.lines().collect::<Vec<_>>());
    page.push_str(
        ".SH VERSIONS\nEach function has a symbol version; a program that was linked with an older libhdcr.so.0 runs with a \
         newer one.\n.SH \"SEE ALSO\"\n.BR hdcr (1),\n.BR hdcr\\-run (1),\n.BR hdcr\\-checkpoint (1)\n",
    );
    page
}

/// A declaration, and what is said of it.
fn about(page: &mut String, title: &str, declared: &[&str], text: &[String]) {
    if !title.is_empty() {
        page.extend([".SS ", &escaped(title), "\n"]);
    }
    if !declared.is_empty() && !declared.iter().any(|line| line.starts_with('#')) {
        verbatim(page, declared);
    }
    for each in text {
        page.push_str(".PP\n");
        page.push_str(&paragraph(each));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: Texts<'_> = Texts {
        header: include_str!("../../crates/hdcr/include/hdcr.h"),
        versions: include_str!("../../crates/hdcr/hdcr.map"),
        example: include_str!("../../crates/hdcr/examples/count.c"),
        version: "0.0.0",
    };
    const CODES: &str = include_str!("../../docs/errors.md");

    /// What the page says of a function.
    fn entry<'a>(page: &'a str, name: &str) -> &'a str {
        let after = page.split_once(&format!(".SS {name}\n")).unwrap_or_else(|| panic!("no {name}")).1;
        after.split("\n.S").next().unwrap()
    }

    #[test]
    fn each_function_of_the_header_is_described() {
        let page = page(&TEXTS);
        let functions = functions(TEXTS.header);
        assert_eq!(functions.len(), versions(TEXTS.versions).len(), "{functions:?}");
        // Each is named before a parenthesis in a line that is no comment.
        let begins = |line: &&str| !line.starts_with([' ', '\t', '/', '#', '}']) && !line.starts_with("typedef");
        let lines = TEXTS.header.lines().filter(begins).filter(|line| line.contains("hdcr_") && line.contains('('));
        assert_eq!(lines.count(), functions.len(), "a function without a block of its own");
        for name in &functions {
            let entry = entry(&page, name);
            let paragraphs = entry.matches(".PP\n").count();
            assert!(paragraphs >= 2 && entry.contains(&format!("{name}(")), "{name}: {entry}");
            assert!(entry.ends_with("Since 0.1 (HDCR_0)."), "{name}: {entry}");
        }
    }

    #[test]
    fn what_can_fail_names_codes_that_are_explained() {
        let page = page(&TEXTS);
        for name in functions(TEXTS.header) {
            let entry = entry(&page, &name);
            let can_fail = entry.contains("struct hdcr_report *") && name != "hdcr_restored";
            let codes = entry.split_once("\nCodes: ").map(|(_, rest)| rest.lines().next().unwrap());
            assert_eq!(codes.is_some(), can_fail, "{name}: {entry}");
            for code in codes.unwrap_or_default().split("\\fB").skip(1) {
                let code = code.split("\\fR").next().unwrap().replace("\\-", "-");
                assert!(CODES.contains(&format!("`{code}`")), "{name}: {code} has no row in docs/errors.md");
            }
        }
    }

    #[test]
    fn types_and_macros_have_entries_too() {
        let parts = parts(TEXTS.header);
        let titles: Vec<&str> = parts.iter().map(Part::title).collect();
        let some =
            ["enum hdcr_branch", "struct hdcr_report", "HDCR_REPORT", "hdcr_request", "hdcr_hook", "hdcr_section"];
        for title in some {
            assert_eq!(titles.iter().filter(|other| **other == title).count(), 1, "{title}: {titles:?}");
        }
    }

    #[test]
    fn nothing_in_a_text_is_a_request() {
        assert_eq!(escaped(".so /etc/passwd"), "\\&.so /etc/passwd");
        assert_eq!(paragraph("`.x` and a-b \\c"), "\\fB\\&.x\\fR and a\\-b \\ec\n");
        let requests = ["TH", "SH", "SS", "PP", "nf", "fi", "B ", "BR", "\\\""];
        let page = page(&TEXTS);
        let (_, described) = page.split_once(".SH DESCRIPTION\n").unwrap();
        assert!(described.starts_with(".PP\nlibhdcr: "), "{described}");
        let mut lines = described.lines().take_while(|line| *line != ".SH EXAMPLE");
        assert!(!lines.any(|line| line.ends_with(" /") || line.starts_with('#')), "{described}");
        for line in page.lines().filter_map(|line| line.strip_prefix('.')) {
            assert!(requests.iter().any(|request| line.starts_with(request)), "{line}");
        }
    }
}
