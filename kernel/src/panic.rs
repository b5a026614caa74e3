//! A panic: its words go to the kernel's log, then the task that met it ends as by any other bug of the kernel.
// SPDX-License-Identifier: GPL-2.0-only

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use crate::glue;

/// What fits in one line of the log.
struct Line {
    bytes: [u8; 200],
    used: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.used..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
            self.used += 1;
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut line = Line { bytes: [0; 200], used: 0 };
    // It never fails; what does not fit is cut off.
    let _ = write!(line, "{info}");
    glue::give_up(line.bytes.get(..line.used).unwrap_or_default())
}
