//! After a reboot: clocks that go on, jobs and files that come back, another kernel's vdso. No machine is booted: time
//! namespaces, a private tmpfs and a forged image stand for it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::guests::{self, Way};
use super::stage::{LIMIT, Lacking, Stage, counting, needs_root, signal, with_command};
use crate::faults::forge::Bundle;
use crate::wait;

/// How far the clocks of the machine before the reboot were ahead, in seconds.
const AHEAD: &str = "5000000";
/// The tag of the record that holds a vdso.
const VDSO: u16 = 0x0111;

/// Guests that measure time begin far ahead, are checkpointed by an hdcr that is there too, and go on here; the second
/// checkpoint is taken from here.
pub(crate) fn clocks(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let ahead = ["unshare", "--time", "--monotonic", AHEAD, "--boottime", AHEAD].map(str::to_owned).to_vec();
    let mut probe = Command::new("unshare");
    probe.args(&ahead[1..]).args(["sh", "-c", "test $(cut -d. -f1 /proc/uptime) -gt 5000000"]);
    let own = probe.status().is_ok_and(|status| status.success());
    ensure!(own, Lacking("this kernel or this unshare(1) has no time namespaces"));
    let names = ["blocked_calls", "itimers", "posix_timers", "restart_calls", "timerfd"];
    let way = Way { start: ahead, first: Some(beside), look: Some(is_ahead), ..Way::default() };
    guests::all(stage, &names, &way)
}

/// Before a command that is to see the clocks of a process.
fn beside(pid: u32) -> Vec<String> {
    vec!["nsenter".to_owned(), format!("--time=/proc/{pid}/ns/time")]
}

/// The clock of a process goes on from far ahead.
fn is_ahead(pid: u32) -> Result<()> {
    let text = fs::read_to_string(format!("/proc/{pid}/timens_offsets"))?;
    for clock in ["monotonic", "boottime"] {
        let line = text.lines().find_map(|line| line.strip_prefix(clock)).context("no such clock")?;
        let seconds: i64 = line.split_whitespace().next().context("no offset")?.parse()?;
        ensure!(seconds > 4_900_000, "{clock} is ahead by {seconds} s");
    }
    Ok(())
}

/// The machine goes down: keeper and program die at once, tmpfs is emptied, the socket of the keeper stays where it is
/// and the record of the job is one of another boot, whose program has the number of one that lives now.
pub(crate) fn job(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let shm = stage.path("shm");
    fs::create_dir(&shm)?;
    mount(&["-t", "tmpfs", "tmpfs"], &shm)?;
    let result = down_and_up(stage);
    let cleaned = stage.clean();
    result.and(cleaned).and(unmount(&shm))
}

fn down_and_up(stage: &mut Stage<'_>) -> Result<()> {
    let shm = stage.path("shm");
    let script = counting("shm/count", 300);
    let run = ["run", "--name", "b", "--every", "1h", "--", "sh", "-c", &script];
    for (boot, as_job) in [(1, true), (2, false)] {
        let mut keeper = stage.start(&run, "says")?;
        stage.until_counted("shm/count", 10 * boot)?;
        stage.expect(0, &["checkpoint", "b"])?;
        let program = with_command(&stage.folder, |command| command.starts_with("sh -c"));
        let program = program.first().copied().context("no program")?;
        signal(keeper.id(), Signal::KILL);
        signal(program, Signal::KILL);
        wait::end_of(&mut keeper, "the keeper", LIMIT)?;
        stage.end_all()?;
        unmount(&shm)?;
        mount(&["-t", "tmpfs", "tmpfs"], &shm)?;
        let bystander = other_boot(stage)?;
        let jobs = stage.expect(0, &["ps", "--json"])?.out;
        ensure!(!jobs.contains("\"name\":\"b\""), "{jobs}");
        if as_job {
            // The next round goes on from here.
            signal(bystander, Signal::KILL);
            continue;
        }
        let status = stage.run(&["restore", "b"])?.status;
        ensure!(status == 7, "the restored program ended with {status}");
        signal(bystander, Signal::KILL);
    }
    stage.counted("shm/count", 300)
}

/// Changes the record of the job into one of another boot; a program that lives has the number and the birth that it names.
fn other_boot(stage: &mut Stage<'_>) -> Result<u32> {
    let bystander = stage.program("exec sleep 1000")?.id();
    let path = stage.path("store/.jobs/b.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    let stat = fs::read_to_string(format!("/proc/{bystander}/stat"))?;
    let born: i64 = stat.split_whitespace().nth(21).context("no birth")?.parse()?;
    ensure!(record["state"] == "running" && record["boot"].is_string(), "{record}");
    record["main"] = bystander.into();
    record["main_born"] = born.into();
    // Of this boot it would be taken for the program of the job.
    fs::write(&path, record.to_string())?;
    stage.expect(69, &["run", "--name", "b", "--", "sh"])?.names(&["has lost its keeper"])?;
    record["boot"] = "00000000-0000-4000-8000-000000000000".into();
    fs::write(&path, record.to_string())?;
    Ok(bystander)
}

fn mount(words: &[&str], at: &std::path::Path) -> Result<()> {
    let status = Command::new("mount").args(words).arg(at).status()?;
    ensure!(status.success(), Lacking("nothing can be mounted"));
    Ok(())
}

fn unmount(at: &std::path::Path) -> Result<()> {
    ensure!(Command::new("umount").arg(at).status()?.success(), "{} cannot be unmounted", at.display());
    Ok(())
}

/// The vdso of the image is another one than that of this kernel: the same functions, other bytes.
pub(crate) fn vdso(stage: &mut Stage<'_>) -> Result<()> {
    let script = "import time\nlast = time.monotonic()\nf = open('count', 'w', buffering=1)\nfor i in range(1, 101):\n    \
                  time.sleep(0.02)\n    now = time.monotonic()\n    assert now > last and now - last < 60, (last, now)\n    \
                  assert time.time() > 1e9\n    last = now\n    \
                  print(i, file=f)\n";
    fs::write(stage.path("clock.py"), script)?;
    let mut command = stage.command("setsid");
    let mut program = stage.spawn(command.args(["python3", "clock.py"]))?;
    stage.until_counted("count", 5)?;
    let place = vdso_of(&program.id().to_string())?;
    stage.expect(0, &["checkpoint", &program.id().to_string(), "--kill", "-o", "image"])?;
    wait::end_of(&mut program, "the program", LIMIT)?;
    let bundle = Bundle::read(fs::read(stage.path("image"))?)?;
    let forged = bundle.altered(VDSO, |body| {
        // The build id, the end of the note "GNU\0".
        let note = body.windows(8).position(|window| window == b"\x03\0\0\0GNU\0").context("no build id")?;
        body.get_mut(note + 8..note + 12).context("a short note")?.copy_from_slice(&[0xff, 0, 0xff, 0]);
        Ok(())
    })?;
    fs::write(stage.path("other"), forged)?;
    let said = stage.run(&["restore", "./other"])?;
    ensure!(said.status == 0, "the program ended with {}: {}", said.status, said.both());
    stage.counted("count", 100)?;
    // The old one keeps its place as plain memory; the kernel's own lies elsewhere.
    ensure!(vdso_after(stage, "./image")? == place, "the same vdso did not come back to its place");
    ensure!(vdso_after(stage, "./other")? != place, "the forged vdso was not taken for another one");
    Ok(())
}

/// Where the vdso of a process lies.
fn vdso_of(pid: &str) -> Result<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps.lines().find(|line| line.ends_with("[vdso]")).context("no vdso")?.to_owned())
}

/// Where the vdso of this image lies when it is restored.
fn vdso_after(stage: &mut Stage<'_>, image: &str) -> Result<String> {
    stage.expect(0, &["restore", image, "--detach", "--pidfile", "pid", "--stdio", "null"])?;
    let pid = stage.text("pid").trim().to_owned();
    let place = vdso_of(&pid);
    signal(pid.parse()?, Signal::KILL);
    wait::gone(pid.parse()?, LIMIT)?;
    place
}
