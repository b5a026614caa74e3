//! The only place that prints: results on standard output, remarks, progress and errors on standard error.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use serde::Serialize;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::failure::{Class, Failure, Obstacle, Result, told, told_apart};
use crate::progress::Bar;

/// A result that can be shown to people and to programs.
pub(crate) trait Report: Serialize {
    /// For people; lines without a trailing line feed.
    fn text(&self) -> String;

    /// The same for people at a terminal of so many columns.
    fn fitted(&self, _width: usize) -> String {
        self.text()
    }

    /// The same for people who want to read nothing but the result itself.
    fn brief(&self) -> String {
        self.text()
    }
}

/// How much is said, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Objects instead of text.
    pub(crate) json: bool,
    /// No remarks.
    pub(crate) quiet: bool,
    /// More remarks.
    pub(crate) verbose: u8,
}

impl Output {
    /// Prints the result of a command.
    pub(crate) fn result(self, report: &impl Report) -> Result<()> {
        let text = match (self.json, self.quiet, columns()) {
            (true, ..) => json(report),
            (false, true, _) => tame(&report.brief()),
            (false, false, Some(width)) => tame(&report.fitted(width)),
            (false, false, None) => tame(&report.text()),
        };
        if text.is_empty() {
            return Ok(());
        }
        written(write_line(&mut io::stdout(), &text))
    }

    /// Prints the result of a command whose standard output belongs to the program.
    pub(crate) fn result_aside(self, report: &impl Report) {
        if self.json {
            line(&mut io::stderr(), &json(report));
        } else if !self.quiet {
            line(&mut io::stderr(), &format!("hdcr: {}", tame(&report.text())));
        }
    }

    /// Prints an object for programs, and nothing for people, when standard output belongs to the program.
    pub(crate) fn object_aside(self, object: &impl Serialize) {
        if self.json {
            line(&mut io::stderr(), &json(object));
        }
    }

    /// Prints text as it is.
    pub(crate) fn raw(bytes: &[u8]) -> Result<()> {
        let mut stdout = io::stdout();
        written(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Says something that a user wants to know while it goes on.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet && !self.json {
            line(&mut io::stderr(), &format!("hdcr: {}", tame(text)));
        }
    }

    /// Tells what a user should know of what was done.
    pub(crate) fn notes(self, notes: &[Obstacle]) {
        for note in told(notes, self.verbose > 0) {
            self.note(&note);
        }
    }

    /// Says something in a file that the program writes too and that may have been cut back meanwhile; where, when that is
    /// such a file.
    pub(crate) fn note_at_end(self, text: &str) -> Option<Said> {
        let stderr = rustix::stdio::stderr();
        // It fails on a terminal and on a pipe: there the end is where one writes. The offset is the program's too.
        let at = rustix::fs::tell(stderr).ok();
        let size = rustix::fs::fstat(stderr).map(|stat| stat.st_size.cast_unsigned());
        if at.zip(size.ok()).is_some_and(|(at, size)| at > size) {
            rustix::fs::seek(stderr, SeekFrom::End(0)).ok();
        }
        self.note(text);
        at?;
        Some(Said { text: text.to_owned(), end: rustix::fs::tell(stderr).ok()? })
    }

    /// Says something that only a curious user wants to know.
    pub(crate) fn detail(self, text: &str) {
        if self.verbose > 0 {
            self.note(text);
        }
    }

    /// Prints an error, once, with its causes. `aside`: standard output belongs to a program.
    pub(crate) fn failure(self, failure: &Failure, aside: bool) {
        #[derive(Serialize)]
        struct Wrapped<'a> {
            error: &'a Failure,
        }
        if !self.json {
            let text = failure.to_string();
            let (first, rest) = text.split_once('\n').map_or((&*text, String::new()), |(a, b)| (a, format!("\n{b}")));
            line(&mut io::stderr(), &format!("hdcr: {} [{}]{}", tame(first), failure.code, tame(&rest)));
        } else if aside || write_line(&mut io::stdout(), &json(&Wrapped { error: failure })).is_err() {
            line(&mut io::stderr(), &json(&Wrapped { error: failure }));
        }
    }

    /// A progress bar in bytes, seen only on a terminal and only when the work takes a while.
    pub(crate) fn bar(self) -> Bar {
        let silent = self.quiet || self.json || !io::stderr().is_terminal();
        if silent { Bar::default() } else { Bar::drawn() }
    }

    /// The same; without a terminal a line when it takes a while. `tree`: the processes that are to stop.
    pub(crate) fn bar_or_line(self, tree: impl Fn() -> Vec<i32> + Send + 'static) -> Bar {
        if self.quiet || self.json || io::stderr().is_terminal() {
            return self.bar();
        }
        Bar::told(Box::new(tree), move |text| self.note(text))
    }
}

/// The width of the terminal that results go to; `None`: they go elsewhere.
fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

/// Something that was said in a file.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) text: String,
    /// Where its line ends.
    end: u64,
}

impl Said {
    /// Whether it still stands where it was said.
    pub(crate) fn stands_in(&self, file: &File) -> bool {
        let mut found = vec![0; self.text.len() + 1];
        let begin = self.end.checked_sub(u64::try_from(found.len()).unwrap_or(u64::MAX));
        begin.is_some_and(|begin| file.read_exact_at(&mut found, begin).is_ok())
            && found.strip_suffix(b"\n") == Some(self.text.as_bytes())
    }
}

/// Sends traces of the libraries to standard error: warnings always, more with each `-v`.
pub(crate) fn trace(output: Output) {
    let level = match output.verbose {
        // Whoever reads objects, or wants to read nothing, gets the errors of commands.
        0 if output.json || output.quiet => tracing::Level::ERROR,
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        2 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    let format = tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(level).with_ansi(false);
    // It would be said on the very stream that cannot be written, and a failure of that ends the process.
    let format = format.log_internal_errors(false);
    if format.event_format(Plain).try_init().is_err() {
        line(&mut io::stderr(), "hdcr: traces cannot be shown");
    }
}

/// The flags for a process of ours that says as much as this one.
pub(crate) fn verbosity() -> Option<&'static str> {
    use tracing::level_filters::LevelFilter;
    match LevelFilter::current() {
        LevelFilter::OFF | LevelFilter::ERROR => Some("--quiet"),
        LevelFilter::INFO => Some("-v"),
        LevelFilter::DEBUG => Some("-vv"),
        LevelFilter::TRACE => Some("-vvv"),
        _ => None,
    }
}

/// A trace as all else that is said: `hdcr: warning: text key=value`.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, cx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &tracing::Event<'_>) -> fmt::Result {
        // What libraries tell of their own steps (HTTP/2, TLS) is not about programs.
        let is_ours = event.metadata().target().starts_with("hdcr");
        if !is_ours && *event.metadata().level() > tracing::Level::WARN {
            return Ok(());
        }
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warning",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "trace",
        };
        let mut text = String::new();
        cx.field_format().format_fields(Writer::new(&mut text), event)?;
        writeln!(to, "hdcr: {level}: {}", tame(&text))
    }
}

/// Text in which names that others have chosen (of a process, a file, in an image) cannot steer a terminal.
pub(crate) fn tame(text: &str) -> String {
    escaped(text, |c| c.is_control() && c != '\n')
}

/// Text in which wild characters are spelled out.
pub(crate) fn escaped(text: &str, is_wild: impl Fn(char) -> bool) -> String {
    let mut tamed = String::with_capacity(text.len());
    for c in text.chars() {
        if is_wild(c) { tamed.extend(c.escape_default()) } else { tamed.push(c) }
    }
    tamed
}

fn json<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string(value).unwrap_or_else(|error| {
        format!("{{\"error\":{{\"class\":\"internal\",\"message\":{:?}}}}}", error.to_string())
    });
    // Controls above ASCII steer terminals as well, and are left alone by JSON. They can only be within strings.
    let mut tamed = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_control() {
            tamed.push(c);
        } else if write!(tamed, "\\u{:04x}", u32::from(c)).is_err() {
            tracing::trace!("a string takes all");
        }
    }
    tamed
}

/// A line to a stream whose failure cannot be told anywhere.
fn line(stream: &mut dyn Write, text: &str) {
    if write_line(stream, text).is_err() {
        tracing::debug!("an output stream is closed");
    }
}

/// In one piece: standard error has no buffer, and a program that writes to the same file could come between.
fn write_line(stream: &mut dyn Write, text: &str) -> io::Result<()> {
    let whole = format!("{}\n", text.trim_end_matches('\n'));
    stream.write_all(whole.as_bytes())?;
    stream.flush()
}

/// What became of a result: behind a closed pipe nobody wants to know, all else is a failure.
pub(crate) fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let message = format!("the result cannot be written to standard output: {error}");
            let remedy =
                "what the command does is done, its result alone is lost; look again with `hdcr list` or `hdcr ps`";
            Err(Failure::new(Class::Failed, "output", message).remedy(remedy))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// `1 process`, `2 processes`.
pub(crate) fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// How much stands in the way: as many objects as are told of one by one.
pub(crate) fn in_the_way(refusals: &[Obstacle]) -> String {
    counted(told_apart(refusals), "object stands in the way", "objects stand in the way")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_does_not_stand_any_more() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"1\nhdcr: a crash\n2\n").unwrap();
        let said = Said { text: "a crash".to_owned(), end: 16 };
        assert!(said.stands_in(&file));
        file.set_len(15).unwrap();
        assert!(!said.stands_in(&file));
        file.write_at(b"0123456789012345678", 0).unwrap();
        assert!(!said.stands_in(&file));
    }

    /// Counts what is written at once.
    #[derive(Default)]
    struct Pieces(Vec<Vec<u8>>);

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_written_in_one_piece() {
        let mut pieces = Pieces::default();
        line(&mut pieces, "hdcr: a crash\n");
        assert_eq!(pieces.0, [b"hdcr: a crash\n"]);
    }

    #[test]
    fn a_result_that_cannot_be_written_is_a_failure_unless_nobody_wants_it() {
        let closed = Err(io::Error::from(ErrorKind::BrokenPipe));
        assert!(written(closed).is_ok() && written(Ok(())).is_ok());
        let full = written(Err(io::Error::from(ErrorKind::StorageFull))).unwrap_err();
        assert_eq!((full.class, &*full.code), (Class::Failed, "output"));
    }

    #[test]
    fn names_that_others_chose_cannot_steer_a_terminal() {
        assert_eq!(tame("a\u{1b}[31m\u{9b}b\r\n\u{e4}"), "a\\u{1b}[31m\\u{9b}b\\r\n\u{e4}");
        let name = "a\u{1b}\u{9b}\u{7f}\n\u{e4}";
        assert_eq!(json(&name), "\"a\\u001b\\u009b\\u007f\\n\u{e4}\"");
        assert_eq!(serde_json::from_str::<String>(&json(&name)).unwrap(), name);
    }
}
