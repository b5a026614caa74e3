//! What idle calls of the library cost: `hdcr run -- cost`, and by itself.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

const TIMES: u32 = 2_000_000;
const BEST_OF: usize = 5;

fn main() -> io::Result<()> {
    let section = hdcr::Section::new("measured");
    let mut out = io::stdout();
    writeln!(out, "under a keeper: {}", hdcr::is_enabled())?;
    tell(&mut out, "is_enabled", TIMES, || {
        black_box(hdcr::is_enabled());
    })?;
    tell(&mut out, "enter and leave a section", TIMES, || {
        black_box(section.enter());
    })?;
    // Asks the kernel whether there is news.
    tell(&mut out, "restart_count", TIMES / 20, || {
        black_box(hdcr::restart_count());
    })
}

/// The best of some runs: what others do on the machine only adds to it.
fn tell(out: &mut impl Write, what: &str, times: u32, call: impl Fn()) -> io::Result<()> {
    let nanoseconds = (0..BEST_OF).map(|_| {
        let began = Instant::now();
        (0..times).for_each(|_| call());
        began.elapsed().as_secs_f64() * 1e9 / f64::from(times)
    });
    writeln!(out, "{what}: {:.1} ns", nanoseconds.fold(f64::INFINITY, f64::min))
}
