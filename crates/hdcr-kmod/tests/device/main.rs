//! The module driven against real programs. Without `/dev/hdcr` there is nothing to be tested, and it says so.
//!
//! `device` runs all tests, `device NAME..` those whose names begin so; `device target KIND BOARD ..` is a program that
//! is frozen by them and checks itself. As the first process of a machine it is that machine's `init`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test without the usual harness")]

mod access;
mod board;
mod callers;
mod cross;
mod first;
mod fuzz;
#[path = "../../../hdcr-ptrace/tests/guests/mod.rs"]
mod guests;
mod images;
mod kinds;
mod mechanism;
mod module;
mod reads;
mod scopes;
mod storms;
#[expect(dead_code, unused_imports, reason = "not all of it can be asked of the module")]
#[path = "../../../hdcr-ptrace/tests/suite/mod.rs"]
mod suite;
mod target;
mod worker;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

const DEVICE: &str = "/dev/hdcr";

/// For how long one test may take, on an emulated processor of a busy machine.
const LONGEST: Duration = Duration::from_mins(4);

type Test = (&'static str, fn());

const TESTS: [&[Test]; 11] = [
    &access::TESTS,
    &reads::TESTS,
    &kinds::TESTS,
    &scopes::TESTS,
    &storms::TESTS,
    &callers::TESTS,
    &images::TESTS,
    mechanism::SUITE,
    &mechanism::TESTS,
    &cross::TESTS,
    &fuzz::TESTS,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    if std::process::id() == 1 {
        first::run();
    }
    if let [word, kind, board, rest @ ..] = arguments.as_slice()
        && word == "target"
    {
        target::run(kind, Path::new(board), rest);
    }
    if !Path::new(DEVICE).exists() {
        say("0 passed, 0 failed, 1 skipped");
        say("skipped: no kernel module here, as there is no /dev/hdcr");
        return ExitCode::SUCCESS;
    }
    let tests = TESTS.into_iter().flatten().chain(&module::TESTS);
    let chosen = tests.filter(|test| arguments.is_empty() || arguments.iter().any(|start| test.0.starts_with(start)));
    let (mut passed, mut failed) = (0, 0);
    for test in chosen {
        if run(test) { passed += 1 } else { failed += 1 }
    }
    say(&format!("{passed} passed, {failed} failed, 0 skipped"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(test: &'static Test) -> bool {
    let (name, body) = *test;
    let began = Instant::now();
    let (done, watched) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if watched.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
            say(&format!("test {name} FAILED: it hangs"));
            std::process::abort();
        }
    });
    let passed = catch_unwind(AssertUnwindSafe(body)).is_ok();
    drop(done);
    watch.join().unwrap();
    let took = began.elapsed().as_secs_f64();
    say(&format!("test {name} {} ({took:.1} s)", if passed { "ok" } else { "FAILED" }));
    passed
}

fn say(line: &str) {
    writeln!(io::stdout().lock(), "{line}").unwrap();
}
