//! Heat that spreads over a plate, step by step, with a journal of what is left of it.
//!
//!     hdcr run -- solver RESULT
//!
//! It runs without HDCR just as well. With it: a checkpoint after each hundred steps, a section in which the plate and the
//! journal are brought to the same state, a hook that writes out what is buffered, and one that says what happened.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdcr::{Options, Outcome, Section, Veto};

const SIDE: usize = 200;
const STEPS: usize = 600;

fn main() -> io::Result<()> {
    let result = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("result"), PathBuf::from);
    let journal = Arc::new(Mutex::new(BufWriter::new(File::create("journal")?)));
    let written = Arc::clone(&journal);
    hdcr::before(0, move || {
        let flushed = written.lock().unwrap_or_else(PoisonError::into_inner).flush();
        flushed.map_err(|error| Veto { permanent: false, code: 1, text: format!("the journal: {error}") })
    });
    hdcr::on_restored(0, |life| {
        let told = writeln!(io::stderr(), "life {}, from {} ({})", life.count, life.image, life.reason.name());
        // Who reads it may be gone.
        told.ok();
    });
    let section = Section::new("journal");
    let mut plate = vec![0.0; SIDE * SIDE];
    for step in 1..=STEPS {
        let next = stepped(&plate, step);
        {
            let _inside = section.enter();
            plate = next;
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(journal, "{step} {:.12}", plate.iter().sum::<f64>())?;
        }
        std::thread::sleep(Duration::from_millis(4));
        if step % 50 == 0 {
            writeln!(io::stdout(), "step {step}")?;
            if hdcr::is_enabled()
                && let Outcome::Failed(failed) = hdcr::checkpoint(&Options::default())
            {
                writeln!(io::stderr(), "no checkpoint: {failed}")?;
            }
        }
    }
    journal.lock().unwrap_or_else(PoisonError::into_inner).flush()?;
    let lines = std::fs::read("journal")?;
    let sum = plate.iter().map(|cell| cell.to_bits()).chain(lines.into_iter().map(u64::from));
    std::fs::write(result, format!("{:016x}\n", sum.fold(7, |sum: u64, bits| sum.rotate_left(5) ^ bits)))
}

/// The plate after one more step: heated at a point that wanders, cooled at its edge.
fn stepped(plate: &[f64], step: usize) -> Vec<f64> {
    let at = |row: usize, column: usize| plate.get(row * SIDE + column).copied().unwrap_or_default();
    let mut next = vec![0.0; plate.len()];
    for row in 1..SIDE - 1 {
        for column in 1..SIDE - 1 {
            let around = at(row - 1, column) + at(row + 1, column) + at(row, column - 1) + at(row, column + 1);
            let heat = if (row * 31 + column * 17) % SIDE == step % SIDE { 1.0 } else { 0.0 };
            if let Some(cell) = next.get_mut(row * SIDE + column) {
                *cell = at(row, column) * 0.5 + around * 0.125 + heat;
            }
        }
    }
    next
}
