//! Who may do what: versions, flags, owners, permissions.
#![expect(unsafe_code, reason = "processes with other credentials")]

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hdcr_abi::{Freeze, Hello, Request, Thaw, VERSION, feature, hold, scope};
use hdcr_kmod::{Held, Session, SessionError};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::board::Target;
use crate::{DEVICE, Test};

pub(crate) const TESTS: [Test; 7] = [
    ("access/nothing_goes_before_the_handshake", nothing_goes_before_the_handshake),
    ("access/what_is_not_known_is_refused", what_is_not_known_is_refused),
    ("access/only_the_owner_may_ask", only_the_owner_may_ask),
    ("access/the_device_is_closed_to_others", the_device_is_closed_to_others),
    ("access/what_ptrace_may_not_is_refused", what_ptrace_may_not_is_refused),
    ("access/odd_scopes_are_refused", odd_scopes_are_refused),
    ("access/a_task_stands_at_one_gate", a_task_stands_at_one_gate),
];

/// Longer than any freeze takes on a busy machine.
pub(crate) const WITHIN: Duration = Duration::from_mins(1);

pub(crate) fn session() -> Session {
    Session::open(Path::new(DEVICE)).unwrap()
}

pub(crate) fn freeze(session: &mut Session, scope: u32, id: u64) -> Held {
    session.freeze(scope, id, WITHIN, 0).unwrap()
}

/// Why a freeze was refused: its reason, its culprit, its error number.
pub(crate) fn refused(session: &mut Session, scope: u32, id: u64, within: Duration, flags: u32) -> (u32, i32, i32) {
    match session.freeze(scope, id, within, flags) {
        Err(SessionError::Freeze { hold, culprit, source, .. }) => (hold, culprit, source.raw_os_error().unwrap()),
        other => panic!("not refused: {other:?}"),
    }
}

/// Makes any call, in a way that hands out nothing but an error number.
pub(crate) fn raw<T>(device: &impl AsRawFd, command: u32, request: &mut T) -> i32 {
    let at: *mut T = request;
    // SAFETY: the device writes at most the size of the command, which is that of `request` or one that is refused.
    match unsafe { libc::syscall(libc::SYS_ioctl, device.as_raw_fd(), u64::from(command), at) } {
        -1 => nix::errno::Errno::last_raw(),
        _ => 0,
    }
}

/// Runs something in a child process; true when it returns true.
pub(crate) fn in_child(body: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child does what `body` does and ends; other threads of this process only wait.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let is_true = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
            // SAFETY: nothing is left to be done.
            unsafe { libc::_exit(i32::from(!is_true)) }
        }
        ForkResult::Parent { child } => waitpid(child, None).unwrap() == WaitStatus::Exited(child, 0),
    }
}

fn nothing_goes_before_the_handshake() {
    let device = std::fs::File::options().read(true).write(true).open(DEVICE).unwrap();
    let mut thaw = Thaw { head: Thaw::HEAD };
    assert_eq!(raw(&device, Thaw::COMMAND, &mut thaw), libc::EPROTO);
    for (oldest, newest) in [(VERSION + 1, VERSION + 9), (0, VERSION - 1)] {
        let mut hello = Hello { head: Hello::HEAD, oldest, newest, ..Hello::default() };
        assert_eq!(raw(&device, Hello::COMMAND, &mut hello), libc::EPROTO);
    }
    assert_eq!(raw(&device, Thaw::COMMAND, &mut thaw), libc::EPROTO);
    let mut hello = Hello { head: Hello::HEAD, oldest: 0, newest: VERSION + 9, ..Hello::default() };
    assert_eq!(raw(&device, Hello::COMMAND, &mut hello), 0);
    assert_eq!(hello.version, VERSION);
    assert!(hello.xstate_size >= 576, "{}", hello.xstate_size);
    assert_eq!(raw(&device, Thaw::COMMAND, &mut thaw), libc::ENODATA);
}

fn what_is_not_known_is_refused() {
    let session = session();
    let device = session.device();
    let asked = Thaw { head: Thaw::HEAD };
    for (size, flags) in [(7, 0), (9, 0), (0, 0), (8, 1), (8, 1 << 31), (u32::MAX, 0)] {
        let mut odd = asked;
        (odd.head.size, odd.head.flags) = (size, flags);
        assert_eq!(raw(&device, Thaw::COMMAND, &mut odd), libc::EINVAL, "{size} {flags}");
    }
    let whole = Freeze { head: Freeze::HEAD, scope: scope::PROCESS, id: 1 << 30, ..Freeze::default() };
    let changes: [fn(&mut Freeze); 4] =
        [|odd| odd.reserved = 1, |odd| odd.head.flags = 1 << 1, |odd| odd.within_ns = u64::MAX, |odd| odd.scope = 99];
    for change in changes {
        let mut odd = whole;
        change(&mut odd);
        assert_eq!(raw(&device, Freeze::COMMAND, &mut odd), libc::EINVAL, "{odd:?}");
    }
    let mut known = whole;
    assert_eq!(raw(&device, Freeze::COMMAND, &mut known), libc::ESRCH);
    let mut thaw = asked;
    for command in [Thaw::COMMAND + 99, Thaw::COMMAND ^ (1 << 31), Thaw::COMMAND + (8 << 16), 0, u32::MAX] {
        assert_eq!(raw(&device, command, &mut thaw), libc::ENOTTY, "{command:x}");
    }
}

fn only_the_owner_may_ask() {
    let target = Target::start("threads", 1);
    let mut session = session();
    freeze(&mut session, scope::PROCESS, target.id());
    let mut thaw = Thaw { head: Thaw::HEAD };
    let is_refused = in_child(|| raw(&session.device(), Thaw::COMMAND, &mut thaw) == libc::EPERM);
    assert!(is_refused);
    // Nor does the end of that child end the freeze.
    target.stands_still(|| session.tasks().unwrap());
    session.thaw().unwrap();
    target.goes_on();
}

/// Becomes another user for good.
fn become_user(user: u32) {
    nix::unistd::setgroups(&[]).unwrap();
    nix::unistd::setgid(nix::unistd::Gid::from_raw(user)).unwrap();
    nix::unistd::setuid(nix::unistd::Uid::from_raw(user)).unwrap();
}

fn the_device_is_closed_to_others() {
    let mode = std::fs::metadata(DEVICE).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    assert!(in_child(|| {
        become_user(1000);
        matches!(Session::open(Path::new(DEVICE)), Err(SessionError::Open(_)))
    }));
}

fn what_ptrace_may_not_is_refused() {
    let of_root = Target::start("threads", 1);
    let of_user = Target::start_as("threads", 2, Some(1000));
    let of_other = Target::start_as("threads", 1, Some(1001));
    let hidden = Target::start_as("hidden", 1, Some(1000));
    std::fs::set_permissions(DEVICE, std::fs::Permissions::from_mode(0o666)).unwrap();
    let is_right = in_child(|| {
        become_user(1000);
        let mut session = session();
        for barred in [&of_root, &of_other, &hidden] {
            let found = refused(&mut session, scope::TREE, barred.id(), WITHIN, 0);
            assert_eq!(found, (hold::NOT_PERMITTED, barred.pid(), libc::EPERM));
            barred.goes_on();
        }
        if session.features() & feature::ACCESS_CHECK == 0 {
            // Nobody can be asked: only who may trace everything passes.
            return refused(&mut session, scope::TREE, of_user.id(), WITHIN, 0).0 == hold::NOT_PERMITTED;
        }
        freeze(&mut session, scope::TREE, of_user.id());
        of_user.stands_still(|| session.tasks().unwrap());
        session.thaw().unwrap();
        of_user.goes_on();
        true
    });
    std::fs::set_permissions(DEVICE, std::fs::Permissions::from_mode(0o660)).unwrap();
    assert!(is_right);
    let mut session = session();
    for allowed in [&of_root, &of_user, &of_other, &hidden] {
        freeze(&mut session, scope::PROCESS, allowed.id());
        allowed.stands_still(|| session.tasks().unwrap());
        session.thaw().unwrap();
        allowed.goes_on();
    }
}

fn odd_scopes_are_refused() {
    let mut session = session();
    let me = i32::try_from(std::process::id()).unwrap();
    let mine = u64::from(std::process::id());
    let own = refused(&mut session, scope::PROCESS, mine, WITHIN, 0);
    assert_eq!((own.0, own.2), (hold::UNSUPPORTED, libc::EDEADLK));
    assert!(own.1 >= me);
    assert_eq!(refused(&mut session, scope::PROCESS, 1, WITHIN, 0).2, libc::EPERM);
    assert_eq!(refused(&mut session, scope::PROCESS, 2, WITHIN, 0).2, libc::EINVAL);
    assert_eq!(refused(&mut session, scope::PROCESS, 4_000_000, WITHIN, 0), (hold::NONE, 0, libc::ESRCH));
    let mut child = Command::new("/proc/self/exe").args(["target", "ends", "-", "0"]).spawn().unwrap();
    child.wait().unwrap();
    assert_eq!(refused(&mut session, scope::TREE, u64::from(child.id()), WITHIN, 0), (hold::NONE, 0, libc::ESRCH));
}

fn a_task_stands_at_one_gate() {
    let target = Target::start("threads", 3);
    let (mut first, mut second) = (session(), session());
    freeze(&mut first, scope::PROCESS, target.id());
    let again = refused(&mut first, scope::PROCESS, target.id(), WITHIN, 0);
    assert_eq!(again.2, libc::EBUSY);
    let (reason, culprit, errno) = refused(&mut second, scope::TREE, target.id(), WITHIN, 0);
    assert_eq!((reason, errno), (hold::OTHER_SESSION, libc::EBUSY));
    assert!(culprit >= target.pid());
    target.stands_still(|| first.tasks().unwrap());
    first.thaw().unwrap();
    freeze(&mut second, scope::TREE, target.id());
    target.stands_still(|| second.tasks().unwrap());
    drop(second);
    target.goes_on();
}
