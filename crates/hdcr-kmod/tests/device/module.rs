//! The module comes and goes. These tests are last, as they take it away for a moment.

use std::fs;

use hdcr_abi::scope;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use crate::access::{freeze, session};
use crate::board::{Target, until};
use crate::{DEVICE, Test};

pub(crate) const TESTS: [Test; 2] = [("module/busy_it_stays", busy), ("module/idle_it_goes_and_comes", reload)];

/// Where the guest has it.
const MODULE: &str = "/hdcr.ko";

fn users() -> i32 {
    fs::read_to_string("/sys/module/hdcr/refcnt").unwrap().trim().parse().unwrap()
}

fn remove() -> Result<(), nix::errno::Errno> {
    delete_module(c"hdcr", DeleteModuleFlags::O_NONBLOCK)
}

fn busy() {
    until("nobody uses the module", || users() == 0);
    let idle = session();
    assert_eq!(users(), 1);
    assert_eq!(remove(), Err(nix::errno::Errno::EWOULDBLOCK));
    drop(idle);
    let target = Target::start("threads", 4);
    let mut holding = session();
    freeze(&mut holding, scope::TREE, target.id());
    assert_eq!(users(), 5);
    assert_eq!(remove(), Err(nix::errno::Errno::EWOULDBLOCK));
    drop(holding);
    target.goes_on();
    until("nobody uses the module", || users() == 0);
}

fn reload() {
    if !fs::exists(MODULE).unwrap() {
        // On a machine of somebody's it is left where it is.
        return;
    }
    let parameters = fs::read_to_string("/sys/module/hdcr/parameters/hide").unwrap();
    let parameters = std::ffi::CString::new(format!("hide={}", parameters.trim())).unwrap();
    let file = fs::File::open(MODULE).unwrap();
    let target = Target::start("threads", 8);
    for _ in 0..5 {
        let mut holding = session();
        freeze(&mut holding, scope::TREE, target.id());
        drop(holding);
        until("it is gone", || remove().is_ok());
        assert!(!fs::exists(DEVICE).unwrap());
        target.goes_on();
        finit_module(&file, &parameters, ModuleInitFlags::empty()).unwrap();
        until("the device is there", || fs::exists(DEVICE).unwrap());
        target.goes_on();
    }
}
