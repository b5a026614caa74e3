//! The program `hdcr`.
fn main() {}
