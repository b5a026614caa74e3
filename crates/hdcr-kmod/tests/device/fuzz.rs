//! Requests of random numbers, sizes, flags and addresses: whatever they do, nobody stays frozen and the kernel says nothing.
#![expect(unsafe_code, reason = "calls that no sane program makes")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use hdcr_abi::{Capture, Freeze, Mappings, Pages, Registers, Request, Restore, Tasks, scope};

use crate::Test;
use crate::access::{freeze, in_child, session};
use crate::board::Target;

pub(crate) const TESTS: [Test; 1] = [("fuzz/requests", requests)];

/// A generator of numbers that are the same in each run.
struct Lot(u64);

impl Lot {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Mostly something that is nearly right.
    fn word(&mut self, likely: &[u64]) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => u64::MAX,
            2 => 0,
            3 => self.below(4096),
            _ => likely[usize::try_from(self.below(likely.len() as u64)).unwrap()],
        }
    }
}

fn requests() {
    let target = Target::start("memory", 1);
    let second = Target::start("threads", 3);
    for seed in 1..=8 {
        // In a process of its own, as answers are written to wherever the requests say.
        assert!(in_child(|| shoot(&mut Lot(0x9e37_79b9 * seed), &target, &second)));
        target.is_right();
        second.goes_on();
    }
    let mut session = session();
    freeze(&mut session, scope::TREE, second.id());
    second.stands_still(|| session.tasks().unwrap());
    session.thaw().unwrap();
    second.goes_on();
}

fn shoot(lot: &mut Lot, target: &Target, second: &Target) -> bool {
    let mut room = vec![0_u64; 4096];
    let buffer = room.as_mut_ptr().expose_provenance() as u64;
    let file = nix::sys::memfd::memfd_create(c"fuzz", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let mut session = session();
    let ids = [target.id(), second.id()];
    for shot in 0..2500 {
        if shot % 16 == 0 {
            // What was frozen by chance goes on; it is an error when nothing was.
            session.thaw().ok();
            session.freeze(scope::TREE, ids[shot / 16 % 2], crate::access::WITHIN, 0).ok();
        }
        let (command, size) = pick(lot);
        let likely =
            [size, buffer, 4096, ids[0], ids[1], u64::from(file.as_raw_fd().unsigned_abs()), 1, target.board.get(1)];
        let mut words: Vec<u32> = Vec::new();
        for _ in 0..8 {
            let wide = lot.word(&likely);
            words.extend([wide & 0xffff_ffff, wide >> 32].map(|half| u32::try_from(half).unwrap()));
        }
        if lot.below(8) != 0 {
            words[0] = u32::try_from(size).unwrap();
            words[1] = u32::from(lot.below(16) == 0);
        }
        if command == Freeze::COMMAND {
            // A deadline that ends the test in time.
            words[6] = u32::try_from(lot.below(3_000_000)).unwrap();
            words[7] = 0;
        }
        let at = match lot.below(16) {
            0 => lot.next(),
            1 => u64::MAX - lot.below(64),
            _ => words.as_mut_ptr().expose_provenance() as u64,
        };
        fire(session.device(), command, at);
    }
    drop(session);
    file.as_fd();
    true
}

/// A command that there is, or one that is nearly so.
fn pick(lot: &mut Lot) -> (u32, u64) {
    let known = [
        (Freeze::COMMAND, size_of::<Freeze>()),
        (Tasks::COMMAND, size_of::<Tasks>()),
        (Mappings::COMMAND, size_of::<Mappings>()),
        (Registers::COMMAND, size_of::<Registers>()),
        (Pages::COMMAND, size_of::<Pages>()),
        (Capture::COMMAND, size_of::<Capture>()),
        (Restore::COMMAND, size_of::<Restore>()),
    ];
    let (likely, size) = known[usize::try_from(lot.below(known.len() as u64)).unwrap()];
    let command = match lot.below(12) {
        0 => likely ^ (1 << lot.below(32)),
        1 => u32::try_from(lot.below(1 << 32)).unwrap(),
        _ => likely,
    };
    (command, size as u64)
}

fn fire(device: BorrowedFd<'_>, command: u32, at: u64) {
    // SAFETY: what is written to may be anything in this process, which ends soon after; it has one thread, and what it
    // still needs is checked by its result only.
    unsafe { libc::syscall(libc::SYS_ioctl, device.as_raw_fd(), u64::from(command), at) };
}
