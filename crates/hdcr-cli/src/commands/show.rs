//! `hdcr show`: what a checkpoint holds.

use rustix::time::ClockId;
use serde::Serialize;

use super::Surrounding;
use super::list::Row;
use super::restore::place;
use crate::cli::ShowArgs;
use crate::duration;
use crate::failure::Result;
use crate::machine;
use crate::output::Report;
use crate::parts;

/// What a manifest says, and the records when they were asked for.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    row: Row,
    made_by: String,
    architecture: String,
    kernel: String,
    host: String,
    boot_id: String,
    mechanism: String,
    memory_read_by: String,
    realtime_ns: i64,
    needs: Vec<String>,
    lineage: Vec<String>,
    processes_named: Vec<Process>,
    stored_pages: u64,
    zero_pages: u64,
    frames: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<Record>,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: i32,
    name: String,
}

#[derive(Debug, Serialize)]
struct Record {
    id: u64,
    kind: String,
    text: String,
}

impl Report for Shown {
    fn text(&self) -> String {
        let age = self.row.age_s.map(|age| duration::show(std::time::Duration::from_secs(age))).unwrap_or_default();
        let size = duration::show_size(self.row.bytes.unwrap_or(0));
        let mut lines = vec![
            format!(
                "checkpoint  {} (image {}), {age} old, {size}",
                self.row.snapshot,
                self.row.image.as_deref().unwrap_or("-")
            ),
            format!("command     {}", self.row.command.as_deref().unwrap_or_default()),
            format!(
                "made by     hdcr {} ({}, {}) on {}, Linux {}, {}",
                self.made_by, self.mechanism, self.memory_read_by, self.host, self.kernel, self.architecture
            ),
            format!("memory      {} pages stored, {} zero pages not stored", self.stored_pages, self.zero_pages),
            format!("records     {} (--records prints them)", self.frames),
        ];
        if !self.needs.is_empty() {
            lines.push(format!("needs       {}", self.needs.join(", ")));
        }
        if !self.lineage.is_empty() {
            lines.push(format!("came from   {}", self.lineage.join(", ")));
        }
        lines.push("processes".to_owned());
        lines.extend(self.processes_named.iter().map(|process| format!("  {:>7}  {}", process.pid, process.name)));
        lines.extend(self.records.iter().map(|record| format!("{:>6}  {}  {}", record.id, record.kind, record.text)));
        lines.join("\n")
    }
}

pub(crate) fn run(at: &Surrounding<'_>, args: &ShowArgs) -> Result<u8> {
    let place = place(at, &args.image.image)?;
    let manifest = parts::manifest(&place)?;
    let records = if args.records { parts::show(&parts::open(&place)?)? } else { Vec::new() };
    let facts = &manifest.facts;
    let process = |process: &hdcr_image::ProcessName| Process {
        pid: process.pid,
        name: String::from_utf8_lossy(&process.comm).into_owned(),
    };
    at.output.result(&Shown {
        row: Row::of(place.to_string(), &manifest, machine::now(ClockId::Realtime)),
        made_by: facts.hdcr_version.clone(),
        architecture: facts.architecture.clone(),
        kernel: facts.kernel_release.clone(),
        host: facts.host_name.clone(),
        boot_id: facts.boot_id.clone(),
        mechanism: facts.mechanism.clone(),
        memory_read_by: facts.snapshot.clone(),
        realtime_ns: facts.clocks.realtime_ns,
        needs: facts.needs.clone(),
        lineage: facts.lineage.iter().map(ToString::to_string).collect(),
        processes_named: facts.processes.iter().map(process).collect(),
        stored_pages: manifest.pages.stored_pages,
        zero_pages: manifest.pages.zero_pages,
        frames: manifest.frames.count,
        records: records.into_iter().map(|frame| Record { id: frame.id, kind: frame.kind, text: frame.text }).collect(),
    });
    Ok(0)
}
