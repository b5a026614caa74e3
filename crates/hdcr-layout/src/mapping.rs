//! The mappings of an address space.

use crate::cursor::{fixed_layout, stored_enum};
use crate::page_run::PAGE_SIZE;
use crate::tag;

stored_enum! {
    /// What lies behind a mapping.
    MappingKind: u32 {
        /// Private memory without a file (also heap and stacks).
        Anonymous = 1,
        /// A file, mapped private.
        PrivateFile = 2,
        /// A file, mapped shared.
        SharedFile = 3,
        /// Shared memory without a file that a path leads to.
        SharedMemory = 4,
        /// The code that the kernel gives each process.
        Vdso = 5,
        /// The data of that code.
        Vvar = 6,
    }
}

fixed_layout! {
    /// One mapping.
    Mapping, tag tag::MAPPING, version 1, check Mapping::check, {
        /// First address.
        start: u64,
        /// The address after the last.
        end: u64,
        /// Where the object's bytes begin.
        offset: u64,
        /// Advice and locks, as bits whose meaning the engine gives.
        vm_flags: u64,
        /// The file or shared memory; 0 when there is none.
        object: u64,
        /// `PROT_*`.
        prot: u32,
        /// `MAP_*`.
        map_flags: u32,
        /// What lies behind it.
        kind: MappingKind,
    }
}

impl Mapping {
    fn check(&self) -> Result<(), (&'static str, u64)> {
        let places = [("start", self.start), ("end", self.end), ("offset", self.offset)];
        let within = PAGE_SIZE.wrapping_sub(1);
        if let Some(odd) = places.into_iter().find(|place| place.1 & within != 0) {
            return Err(odd);
        }
        if self.start >= self.end {
            return Err(("end", self.end));
        }
        Ok(())
    }
}
