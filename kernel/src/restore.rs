//! A tree made again from an image.
// SPDX-License-Identifier: GPL-2.0-only
//!
//! Everything is decoded, and every file opened, in the caller's name before the first task is made. Then the first process
//! is cloned; each task builds itself from the plan, which nobody changes any more (`build.rs`).

use core::ffi::CStr;

use hdcr_abi::{Restore, feature, obstacle};
use hdcr_layout::{Layout, PathFile, Pipe, Registers, Task, TaskState, Tree, tag};

use crate::answer::{Errno, Result};
use crate::capture::sum_of;
use crate::glue::{self, File};
use crate::image::Image;
use crate::looking;
use crate::making::{self, Site};
use crate::table::Table;

/// A file of the tree with its number in the image.
pub(crate) struct Object {
    pub(crate) id: u64,
    pub(crate) file: File,
}

/// All that tasks build themselves from.
pub(crate) struct Plan {
    pub(crate) image: Image,
    /// Every thread, by its place in the site.
    pub(crate) tasks: Table<Task>,
    pub(crate) objects: Table<Object>,
    /// Current folders, as paths that end with a zero.
    pub(crate) folders: Table<(u64, Table<u8>)>,
    tree: Tree,
}

/// Why nothing is restored.
pub(crate) struct Failure {
    errno: Errno,
    number: u32,
}

type Step<T> = core::result::Result<T, Failure>;

fn fail(number: u32) -> impl FnOnce(Errno) -> Failure {
    move |errno| Failure { errno, number }
}

fn refuse<T>(number: u32) -> Step<T> {
    Err(Failure { errno: Errno::NOTSUPP, number })
}

/// Makes the tree of an image again and lets it go.
pub(crate) fn restore(request: &mut Restore) -> Result<()> {
    if request.reserved != 0 || request.within_ns > hdcr_abi::LONGEST_NS {
        return Err(Errno::INVAL);
    }
    let until = glue::now().saturating_add(request.within_ns);
    let file = File::to_read(request.fd)?;
    let done = plan(file).and_then(|plan| {
        (request.processes, request.threads) = (plan.tree.processes, plan.tree.threads);
        make(&plan, plan.root()?, until, &mut request.root)
    });
    done.map_err(|failure| {
        request.obstacle = failure.number;
        failure.errno
    })
}

fn plan(file: File) -> Step<Plan> {
    let image = Image::read(file).map_err(fail(obstacle::IMAGE))?;
    let tree = image.record::<Tree>(0).map_err(fail(obstacle::IMAGE))?;
    if tree.xstate_size != glue::xstate_size() || tree.surroundings != sum_of(&looking::own_surroundings()) {
        return refuse(obstacle::SURROUNDINGS);
    }
    let mut plan = Plan { image, tasks: Table::new(), objects: Table::new(), folders: Table::new(), tree };
    plan.read_tasks().map_err(fail(obstacle::IMAGE))?;
    plan.must_be_possible()?;
    plan.open_files()?;
    plan.make_pipes()?;
    Ok(plan)
}

/// `made` is the first process as soon as there is one: when the rest fails it is a zombie.
fn make(plan: &Plan, root: usize, until: u64, made: &mut i32) -> Step<()> {
    // SAFETY: the site is dropped at the end of this function, and the plan outlives it.
    let site = unsafe { Site::new(plan, plan.tasks.len()) }.map_err(fail(obstacle::TASK))?;
    let task = plan.tasks.get(root).ok_or(Failure { errno: Errno::INVAL, number: obstacle::IMAGE })?;
    site.begin(root, task.tid, task.exit_signal.unsigned_abs()).map_err(fail(obstacle::TASK))?;
    *made = task.tid;
    site.wait(until).map_err(fail(obstacle::BUILD))?;
    for (number, task) in plan.tasks.iter().enumerate() {
        plan.set_registers(&site, number, task).map_err(fail(obstacle::REGISTERS))?;
    }
    for (number, task) in plan.tasks.iter().enumerate().filter(|(_, task)| task.tid == task.tgid) {
        site.set_ids(number, plan.leader(task.sid), plan.leader(task.pgid));
    }
    site.open();
    Ok(())
}

impl Plan {
    /// Every thread, each process with its leader; numbers twice, and parents that are not there, are refused.
    fn read_tasks(&mut self) -> Result<()> {
        for body in self.image.frames(tag::TASK) {
            if body.len() % Task::SIZE != 0 {
                return Err(Errno::INVAL);
            }
            for bytes in body.chunks(Task::SIZE) {
                let (task, _) = Task::decode(bytes).map_err(|_| Errno::INVAL)?;
                let is_odd = task.state != TaskState::Running
                    || task.tid != task.tgid && task.exit_signal != -1
                    || task.tid == task.tgid && !(0..=64).contains(&task.exit_signal);
                if is_odd || self.tasks.len() >= hdcr_abi::THREADS as usize {
                    return Err(Errno::INVAL);
                }
                self.tasks.push(task)?;
            }
        }
        self.tasks.sort_unstable_by_key(|task| task.tid);
        let is_twice = self.tasks.windows(2).any(|pair| matches!(pair, [one, other] if one.tid == other.tid));
        let is_orphan = |task: &Task| {
            self.leader(task.tgid).is_none()
                || task.ppid != 0 && (self.leader(task.ppid).is_none() || task.ppid == task.tgid)
        };
        let threads = self.tree.threads as usize;
        let processes = self.tasks.iter().filter(|task| task.tid == task.tgid).count();
        if processes != self.tree.processes as usize {
            return Err(Errno::INVAL);
        }
        if is_twice || self.tasks.len() != threads || self.tasks.iter().any(is_orphan) {
            return Err(Errno::INVAL);
        }
        Ok(())
    }

    /// The place of a process.
    pub(crate) fn leader(&self, pid: i32) -> Option<usize> {
        let at = self.tasks.binary_search_by_key(&pid, |task| task.tid).ok()?;
        self.tasks.get(at).filter(|task| task.tgid == pid).map(|_| at)
    }

    /// The one process whose parent is outside.
    fn root(&self) -> Step<usize> {
        let mut roots = (0..self.tasks.len())
            .filter(|at| self.tasks.get(*at).is_some_and(|task| task.tid == task.tgid && task.ppid == 0));
        match (roots.next(), roots.next()) {
            (Some(root), None) => Ok(root),
            _ => refuse(obstacle::IMAGE),
        }
    }

    /// Whether this kernel has all that it takes.
    fn must_be_possible(&self) -> Step<()> {
        let has = |feature: u64| glue::features() & feature == feature;
        let mut leads = self.tasks.iter().map(|task| (self.leader(task.sid), self.leader(task.pgid)));
        let wants_ids = leads.any(|(session, group)| session.is_some() || group.is_some());
        let wants_pipes = self.image.frames(tag::PIPE).next().is_some();
        let is_possible = has(feature::CLONE | feature::VDSO | feature::PROGRAM)
            && (has(feature::IDS) || !wants_ids)
            && (has(feature::PIPES) || !wants_pipes);
        if is_possible { Ok(()) } else { refuse(obstacle::KERNEL) }
    }

    fn open_files(&mut self) -> Step<()> {
        for body in self.image.frames(tag::PATH_FILE) {
            let (record, _) =
                PathFile::decode(body).map_err(|_| Failure { errno: Errno::INVAL, number: obstacle::IMAGE })?;
            let text = text_of(record.path).map_err(fail(obstacle::FILE))?;
            // Folders that are not open have no flags and only a kind.
            if record.mode == 0o040_000 && record.flags == 0 {
                self.folders.push((record.object, text)).map_err(fail(obstacle::FILE))?;
                continue;
            }
            let path = CStr::from_bytes_until_nul(&text)
                .map_err(|_| Failure { errno: Errno::INVAL, number: obstacle::IMAGE })?;
            let Some(file) = making::open(path, record.flags, record.mode, record.offset) else {
                return Err(Failure { errno: Errno::NOENT, number: obstacle::FILE });
            };
            self.objects.push(Object { id: record.object, file }).map_err(fail(obstacle::FILE))?;
        }
        Ok(())
    }

    fn make_pipes(&mut self) -> Step<()> {
        for body in self.image.frames(tag::PIPE) {
            let (record, used) =
                Pipe::decode(body).map_err(|_| Failure { errno: Errno::INVAL, number: obstacle::IMAGE })?;
            let (reader, writer) = making::pipe().map_err(fail(obstacle::FILE))?;
            let bytes = body.get(used..).unwrap_or_default();
            if !bytes.is_empty() {
                // A new pipe takes so much without anybody who reads.
                if bytes.len() > 64 << 10 {
                    return refuse(obstacle::FILE);
                }
                writer.write(bytes, &mut 0).map_err(fail(obstacle::FILE))?;
            }
            let ends = [(record.reader, record.reader_flags, reader), (record.writer, record.writer_flags, writer)];
            for (id, flags, file) in ends {
                if id != 0 {
                    making::set_flags(&file, flags);
                    self.objects.push(Object { id, file }).map_err(fail(obstacle::FILE))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn object(&self, id: u64) -> Result<&File> {
        self.objects.iter().find(|object| object.id == id).map(|object| &object.file).ok_or(Errno::INVAL)
    }

    fn set_registers(&self, site: &Site, number: usize, task: &Task) -> Result<()> {
        let id = u64::from(task.tid.unsigned_abs());
        let registers = self.image.record::<Registers>(id)?;
        site.set_registers(number, &registers.words, self.image.frame(tag::XSTATE, id)?)
    }
}

fn text_of(path: &[u8]) -> Result<Table<u8>> {
    let mut text = Table::new();
    for byte in path.iter().chain(&[0]) {
        text.push(*byte)?;
    }
    Ok(text)
}
