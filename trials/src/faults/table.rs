//! What came of all cases: one row each.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

/// A row: how often something was done to the tool, and how often somebody suffered.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    /// Kills, or other mishaps.
    pub(crate) kills: u32,
    /// Programs that did not go on correctly.
    pub(crate) harmed: u32,
    /// Programs that were gone and could not be brought back.
    pub(crate) lost: u32,
    /// Trees of which something lived that should not.
    pub(crate) half_alive: u32,
    /// Images that looked whole and were not, or were restored wrong; files that were not as they should be.
    pub(crate) wrong: u32,
    /// Panics, deaths by a signal, unbounded waits or memory, errors that say nothing.
    pub(crate) rude: u32,
    /// The first of what went wrong; else something worth knowing.
    pub(crate) remark: String,
    /// It was not tried, and why.
    pub(crate) skipped: bool,
}

impl Row {
    pub(crate) fn new(case: impl Into<String>) -> Self {
        Row { case: case.into(), ..Row::default() }
    }

    pub(crate) fn skipped(case: impl Into<String>, why: impl Into<String>) -> Self {
        Row { case: case.into(), remark: why.into(), skipped: true, ..Row::default() }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.harmed + self.lost + self.half_alive + self.wrong + self.rude == 0
    }

    /// Keeps a remark; of those about harm the first few.
    pub(crate) fn note(&mut self, what: impl Into<String>) {
        const ENOUGH: usize = 600;
        if self.remark.is_empty() {
            self.remark = what.into();
        } else if self.remark.len() < ENOUGH && !self.is_clean() {
            self.remark = format!("{}; {}", self.remark, what.into());
        }
    }

    pub(crate) fn harm(&mut self, what: impl Into<String>) {
        self.harmed += 1;
        self.note(what);
    }

    pub(crate) fn loss(&mut self, what: impl Into<String>) {
        self.lost += 1;
        self.note(what);
    }

    pub(crate) fn half(&mut self, what: impl Into<String>) {
        self.half_alive += 1;
        self.note(what);
    }

    pub(crate) fn err(&mut self, what: impl Into<String>) {
        self.wrong += 1;
        self.note(what);
    }

    pub(crate) fn rudeness(&mut self, what: impl Into<String>) {
        self.rude += 1;
        self.note(what);
    }
}

/// Prints rows as they come.
#[derive(Debug)]
pub(crate) struct Table {
    json: bool,
    clean: u32,
    unclean: u32,
    skipped: u32,
}

impl Table {
    pub(crate) fn new(json: bool) -> Result<Self> {
        if !json {
            writeln!(
                io::stdout(),
                "{:<34} {:>6} {:>7} {:>5} {:>5} {:>6} {:>5}",
                "case",
                "kills",
                "harmed",
                "lost",
                "half",
                "wrong",
                "rude"
            )?;
        }
        Ok(Table { json, clean: 0, unclean: 0, skipped: 0 })
    }

    pub(crate) fn add(&mut self, row: &Row) -> Result<()> {
        match (row.skipped, row.is_clean()) {
            (true, _) => self.skipped += 1,
            (false, true) => self.clean += 1,
            (false, false) => self.unclean += 1,
        }
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(row)?)?;
        } else if row.skipped {
            writeln!(out, "{:<34} skipped: {}", row.case, row.remark)?;
        } else {
            writeln!(
                out,
                "{:<34} {:>6} {:>7} {:>5} {:>5} {:>6} {:>5}  {}",
                row.case, row.kills, row.harmed, row.lost, row.half_alive, row.wrong, row.rude, row.remark
            )?;
        }
        Ok(())
    }

    /// The closing line, in the form of the other trials; true when nobody suffered.
    pub(crate) fn close(&self) -> Result<bool> {
        if !self.json {
            writeln!(io::stdout(), "{} passed, {} failed, {} skipped", self.clean, self.unclean, self.skipped)?;
        }
        Ok(self.unclean == 0)
    }
}
