//! What a value is in the form of `Debug`, as text for people: without names of types, braces and underscores.
//!
//! Every record has that form, so that a new kind needs no words of its own to be shown; but it is a form for programmers.

/// What wraps a value and says nothing itself.
const WRAPS: [&str; 3] = ["Some", "List", "Ok"];

/// `R { first_pid: Some(7), kind: OpenFile, gone: true }` as `first pid: 7, kind: open file, gone: yes`.
///
/// What is no such value, but text already, stays as it is.
pub(crate) fn plain(debug: &str) -> String {
    let (name, rest) = debug.split_at_checked(end_of_word(debug)).unwrap_or_default();
    let is_value = rest.is_empty() || rest.starts_with('(') || rest.starts_with(" {");
    if !is_value || !name.starts_with(|c: char| c.is_ascii_uppercase()) {
        return debug.to_owned();
    }
    let mut text = Text { rest: debug, out: String::with_capacity(debug.len()), closes: Vec::new() };
    while text.step() {}
    text.out
}

struct Text<'a> {
    rest: &'a str,
    out: String,
    /// What stands for each bracket that is still open.
    closes: Vec<&'static str>,
}

impl<'a> Text<'a> {
    /// The next piece; false: that was all.
    fn step(&mut self) -> bool {
        let Some(first) = self.rest.chars().next() else { return false };
        match first {
            '"' => self.copy(quoted(self.rest)),
            '<' => self.copy(self.rest.find('>').map_or(1, |end| end + 1)),
            '(' => self.opens("(", "(", ")"),
            '[' => self.opens("[", "[", "]"),
            '{' => self.opens("{", "[", "]"),
            '}' | ')' | ']' => {
                if first == '}' {
                    self.out.truncate(self.out.trim_end_matches(' ').len());
                }
                let close = self.closes.pop();
                self.take(1);
                self.out.push_str(close.unwrap_or_default());
            }
            'A'..='Z' | 'a'..='z' | '_' => self.word(),
            // A number with all that belongs to it.
            '0'..='9' => self.copy(end_of_word(self.rest)),
            _ => self.copy(first.len_utf8()),
        }
        true
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(length).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    fn copy(&mut self, length: usize) {
        let taken = self.take(length);
        self.out.push_str(taken);
    }

    fn opens(&mut self, bracket: &str, open: &'static str, close: &'static str) {
        self.take(bracket.len());
        self.out.push_str(open);
        self.closes.push(close);
    }

    fn word(&mut self) {
        let word = self.take(end_of_word(self.rest));
        if self.rest.starts_with(" { ") {
            let (open, close) = if self.closes.is_empty() { ("", "") } else { ("(", ")") };
            self.opens(" { ", open, close);
        } else if self.rest.starts_with('(') && WRAPS.contains(&word) {
            self.opens("(", "", "");
        } else if self.rest.starts_with('(') {
            self.out.push_str(&words(word));
            self.opens("(", " ", "");
        } else {
            self.out.push_str(&words(word));
        }
    }
}

/// Where a text in quotes ends.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn end_of_word(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// `OpenFile` and `open_file` as `open file`; names of the kernel (`O_RDONLY`, `SIGINT`) as they are.
fn words(name: &str) -> String {
    match name {
        "true" => return "yes".to_owned(),
        "false" => return "no".to_owned(),
        _ => {}
    }
    if !name.chars().any(|c| c.is_ascii_lowercase()) {
        return name.to_owned();
    }
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '_' => text.push(' '),
            'A'..='Z' => {
                if !text.is_empty() && !text.ends_with(' ') {
                    text.push(' ');
                }
                text.push(c.to_ascii_lowercase());
            }
            _ => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_told_in_words() {
        for (debug, expected) in [
            ("R { first_pid: Some(7), kind: OpenFile, gone: true }", "first pid: 7, kind: open file, gone: yes"),
            ("R { flags: O_RDWR|O_CLOEXEC, mode: 0o022, at: 0x1f }", "flags: O_RDWR|O_CLOEXEC, mode: 0o022, at: 0x1f"),
            ("List([Value { number: 1 }, Value { number: 2 }])", "[(number: 1), (number: 2)]"),
            ("R { inner: I { a: 1, b: None }, c: -2 }", "inner: (a: 1, b: none), c: -2"),
            (
                "R { path: \"/a Some(b) { true\\\" }\", x: <32 bytes> }",
                "path: \"/a Some(b) { true\\\" }\", x: <32 bytes>",
            ),
            ("R { id: ObjectId(7), pair: (1, false), map: {1: 2} }", "id: object id 7, pair: (1, no), map: [1: 2]"),
            ("R { signals: [SIGINT, SIGCHLD], list: [] }", "signals: [SIGINT, SIGCHLD], list: []"),
            ("Empty", "empty"),
            ("36 mappings (Linux) of_it", "36 mappings (Linux) of_it"),
            ("Linux says mmap(2) { true }", "Linux says mmap(2) { true }"),
            // What is cut off, or was never open.
            ("R { a: \"b", "a: \"b"),
            ("R)]", "R)]"),
            ("R(a)]", "R a"),
        ] {
            assert_eq!(plain(debug), expected, "{debug}");
        }
    }
}
