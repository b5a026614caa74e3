//! The trials.
fn main() {}
