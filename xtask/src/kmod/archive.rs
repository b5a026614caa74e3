//! The archive that a kernel unpacks as its first file system (`newc` of cpio), without a tool for it.

/// A file or a folder of it.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) mode: u32,
    pub(super) bytes: &'a [u8],
}

/// All entries, and the end.
pub(super) fn pack(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end = Entry { name: "TRAILER!!!", mode: 0, bytes: &[] };
    for (number, entry) in entries.iter().chain([&end]).enumerate() {
        let inode = number + 1;
        let (size, length) = (entry.bytes.len(), entry.name.len() + 1);
        let head = format!(
            "070701{inode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{length:08x}{:08x}",
            entry.mode, 0, 0, 1, 0, 0, 0, 0, 0, 0
        );
        archive.extend(head.bytes());
        archive.extend(entry.name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(entry.bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_names_and_contents_are_where_the_kernel_looks_for_them() {
        let archive = pack(&[Entry { name: "init", mode: 0o100_755, bytes: b"abc" }]);
        assert_eq!(archive.len(), 110 + 6 + 4 + 110 + 11 + 3);
        assert_eq!(&archive[..6], b"070701");
        assert_eq!(&archive[14..22], b"000081ed");
        assert_eq!(&archive[54..62], b"00000003");
        assert_eq!(&archive[94..102], b"00000005");
        assert_eq!(&archive[110..120], b"init\0\0abc\0");
        assert_eq!(&archive[120 + 110..120 + 121], b"TRAILER!!!\0");
    }
}
