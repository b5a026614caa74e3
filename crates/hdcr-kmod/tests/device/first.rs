//! The first process of a guest: mounts, inserts the module, runs the tests, says how they ended, turns the machine off.
//!
//! The kernel's command line names the tests, and in `hdcr.hide=` what the module must do without.

use std::ffi::CString;
use std::fs::{self, File};
use std::process::Command;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, waitpid};

use crate::say;

pub(crate) fn run() -> ! {
    let mounts = [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")];
    for (kind, place) in mounts {
        fs::create_dir_all(place).unwrap();
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
    }
    // The kernel starts it in group 0 of session 0, which programs do not expect.
    nix::unistd::setsid().unwrap();
    let line = fs::read_to_string("/proc/cmdline").unwrap();
    let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
    let hide = CString::new(format!("hide={}", word("hdcr.hide=").unwrap_or("0"))).unwrap();
    finit_module(File::open("/hdcr.ko").unwrap(), &hide, ModuleInitFlags::empty()).unwrap();
    let names = word("hdcr.tests=").into_iter().flat_map(|names| names.split(','));
    let tests = start(names);
    // Whatever loses its parent becomes a child of this process.
    let code = loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == tests => break code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == tests => break 128 + signal as i32,
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    };
    say(&format!("GUEST-END {code}"));
    reboot(RebootMode::RB_POWER_OFF).unwrap();
    unreachable!("the machine is off");
}

#[expect(clippy::zombie_processes, reason = "the first process waits for everybody")]
fn start<'a>(names: impl Iterator<Item = &'a str>) -> i32 {
    let child = Command::new("/init").args(names).spawn().unwrap();
    i32::try_from(child.id()).unwrap()
}
