//! `hdcr show`: what a checkpoint holds.

use hdcr_engine::show::{ShownFile, ShownProcess};
use hdcr_image::{ImageReader, StoredBy};
use rustix::time::ClockId;
use serde::Serialize;

use super::Surrounding;
use super::list::Row;
use super::restore::place;
use crate::cli::ShowArgs;
use crate::duration;
use crate::failure::Result;
use crate::machine;
use crate::output::{Report, counted};
use crate::parts;
use crate::table::{Cut, Table, shortened};

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
    processes_named: Vec<Named>,
    stored_pages: u64,
    zero_pages: u64,
    /// How the stored ones lie there.
    packed: Vec<Packed>,
    frames: u64,
    /// Lengths of the programs and libraries that it has in common with other images.
    programs: Vec<u64>,
    /// Those for which there was no room.
    left_out: Vec<String>,
    /// Files that are kept as clones of them.
    clones: usize,
    /// Their lengths.
    cloned: u64,
    /// The tree: every process with where it stands.
    tree: Vec<Process>,
    open_files: Vec<OpenFile>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<Record>,
}

#[derive(Debug, Serialize)]
struct Packed {
    by: &'static str,
    pages: u64,
    /// What they take.
    bytes: u64,
}

impl Packed {
    fn words(&self) -> String {
        let (pages, bytes) = (duration::show_size(self.pages * 4096), duration::show_size(self.bytes));
        format!("{pages} by {} in {bytes}", self.by)
    }
}

#[derive(Debug, Serialize)]
struct Named {
    pid: i32,
    name: String,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: i32,
    /// In the tree.
    parent: Option<i32>,
    group: i32,
    session: i32,
    state: &'static str,
    threads: usize,
    name: String,
    program: String,
    directory: String,
    mappings: usize,
    /// Bytes of address space.
    mapped: u64,
    /// Bytes of memory that the image holds, unpacked.
    stored: u64,
}

#[derive(Debug, Serialize)]
struct OpenFile {
    object: u64,
    kind: String,
    what: String,
    holders: Vec<Holder>,
}

#[derive(Debug, Serialize)]
struct Holder {
    pid: i32,
    fd: i32,
}

fn process(process: ShownProcess) -> Process {
    let ShownProcess {
        pid,
        parent,
        group,
        session,
        state,
        threads,
        name,
        program,
        directory,
        mappings,
        mapped,
        stored,
    } = process;
    Process { pid, parent, group, session, state, threads, name, program, directory, mappings, mapped, stored }
}

fn open_file(file: ShownFile) -> OpenFile {
    let holders = file.holders.into_iter().map(|(pid, fd)| Holder { pid, fd }).collect();
    OpenFile { object: file.id, kind: file.kind, what: file.what, holders }
}

/// The unit of what an image holds.
const PAGE: u64 = 4096;
/// Below the processes, for people.
const COLUMNS: &str = "MAPPED: address space; HELD: memory in the image, unpacked (hdcr show --help)";

fn processes(tree: &[Process], width: Option<usize>) -> String {
    let row = |process: &Process| {
        vec![
            process.pid.to_string(),
            process.parent.map_or_else(|| "-".to_owned(), |parent| parent.to_string()),
            process.group.to_string(),
            process.session.to_string(),
            process.state.to_owned(),
            process.threads.to_string(),
            format!("{} in {}", duration::show_size(process.mapped), process.mappings),
            duration::show_size(process.stored),
            process.name.clone(),
            process.program.clone(),
            process.directory.clone(),
        ]
    };
    let head =
        ["PID", "PARENT", "GROUP", "SESSION", "STATE", "THREADS", "MAPPED", "HELD", "NAME", "PROGRAM", "DIRECTORY"];
    let table = Table::new(&head, tree.iter().map(row)).cut(&[(9, Cut::Begin), (10, Cut::Begin)]);
    table.spare(&[3, 2, 10, 8, 1]).text(width)
}

fn open_files(files: &[OpenFile], width: Option<usize>) -> String {
    let row = |file: &OpenFile| {
        let holders: Vec<String> = file.holders.iter().map(|holder| format!("{}:{}", holder.pid, holder.fd)).collect();
        vec![file.object.to_string(), file.kind.clone(), file.what.clone(), holders.join(" ")]
    };
    let table = Table::new(&["OBJECT", "KIND", "WHAT", "HELD BY (PID:FD)"], files.iter().map(row));
    table.cut(&[(2, Cut::End), (3, Cut::End)]).text(width)
}

#[derive(Debug, Serialize)]
struct Record {
    id: u64,
    kind: String,
    text: String,
}

impl Shown {
    /// What it occupies, and what is in it.
    fn sizes(&self) -> [String; 2] {
        let size = |bytes: Option<u64>| duration::show_size(bytes.unwrap_or(0));
        let held = self.tree.iter().map(|process| process.stored).fold(0, u64::saturating_add);
        let all = self.stored_pages.saturating_mul(PAGE);
        let [all, held] = [all, held].map(duration::show_size);
        [
            format!("size        {}, new {}", size(self.row.bytes), size(self.row.added)),
            format!("holds       {all} unpacked, {held} of it of processes; and {} zero pages", self.zero_pages),
        ]
    }

    fn lines(&self, width: Option<usize>) -> String {
        let age = self.row.age_s.map(|age| duration::show(std::time::Duration::from_secs(age))).unwrap_or_default();
        let command = self.row.command.as_deref().unwrap_or_default();
        let room = width.map_or(usize::MAX, |width| width.saturating_sub("command     ".len()));
        let mut lines = vec![
            format!(
                "checkpoint  {} (image {}), {age} old",
                self.row.snapshot,
                self.row.image.as_deref().unwrap_or("-")
            ),
            format!("command     {}", shortened(command, room, Some(Cut::End))),
            format!(
                "made by     hdcr {} ({}, {}) on {}, Linux {}, {}",
                self.made_by, self.mechanism, self.memory_read_by, self.host, self.kernel, self.architecture
            ),
        ];
        lines.extend(self.sizes());
        if !self.packed.is_empty() {
            let packed: Vec<String> = self.packed.iter().map(Packed::words).collect();
            lines.push(format!("packed      {}", packed.join(", ")));
        }
        if self.clones > 0 {
            let cloned = duration::show_size(self.cloned);
            let what = "in common with the files of the program until these are written";
            lines.push(format!("clones      {} of {cloned}, {what}", counted(self.clones, "file", "files")));
        }
        if !self.programs.is_empty() {
            let all = duration::show_size(self.programs.iter().copied().fold(0, u64::saturating_add));
            let files = counted(self.programs.len(), "file", "files");
            lines.push(format!("programs    {files} of {all}, in common with other checkpoints of the store"));
        }
        let left_out = |path| format!("not kept    {path}, as there is too little room for programs");
        lines.extend(self.left_out.iter().map(left_out));
        lines.push(format!("records     {} (--records prints them)", self.frames));
        if !self.needs.is_empty() {
            lines.push(format!("needs       {}", self.needs.join(", ")));
        }
        if !self.lineage.is_empty() {
            lines.push(format!("came from   {}", self.lineage.join(", ")));
        }
        lines.push(format!("\n{}", processes(&self.tree, width)));
        if width.is_some() {
            lines.push(COLUMNS.to_owned());
        }
        if !self.open_files.is_empty() {
            lines.push(format!("\n{}", open_files(&self.open_files, width)));
        }
        if !self.records.is_empty() {
            lines.push("\nOBJECT  RECORD".to_owned());
        }
        lines.extend(self.records.iter().map(|record| format!("{:>6}  {}  {}", record.id, record.kind, record.text)));
        lines.join("\n")
    }
}

impl Report for Shown {
    fn text(&self) -> String {
        self.lines(None)
    }

    fn fitted(&self, width: usize) -> String {
        self.lines(Some(width))
    }
}

fn packed(image: &ImageReader) -> Vec<Packed> {
    let all = image.stored_by().into_iter();
    all.map(|(by, StoredBy { pages, bytes })| Packed { by, pages, bytes }).collect()
}

pub(crate) fn run(at: &Surrounding<'_>, args: &ShowArgs) -> Result<u8> {
    let place = place(at, &args.image.image)?;
    let manifest = parts::manifest(&place)?;
    let image = parts::open(&place)?;
    let overview = parts::overview(&image).map_err(|failure| failure.during(&place))?;
    let records = if args.records { parts::records(&image) } else { Vec::new() };
    let facts = &manifest.facts;
    let named = |process: &hdcr_image::ProcessName| Named {
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
        processes_named: facts.processes.iter().map(named).collect(),
        stored_pages: manifest.pages.stored_pages,
        zero_pages: manifest.pages.zero_pages,
        packed: packed(&image),
        frames: manifest.frames.count,
        clones: manifest.clones.len(),
        cloned: manifest.cloned_size(),
        programs: overview.programs,
        left_out: overview.left_out.iter().map(|path| path.display().to_string()).collect(),
        tree: overview.processes.into_iter().map(process).collect(),
        open_files: overview.files.into_iter().map(open_file).collect(),
        records: records.into_iter().map(|frame| Record { id: frame.id, kind: frame.kind, text: frame.text }).collect(),
    })?;
    Ok(0)
}
