//! The records of fixed layout: what is read is written as the same bytes again.
#![no_main]

use hdcr_layout::{
    DescriptorEntry, FrameHeader, Header, Itimer, Layout, LogRecord, Mapping, PageRunEntry, PathFile, PosixTimer, Registers,
    SignalAction, Task,
};
use libfuzzer_sys::fuzz_target;

fn layout<T: Layout>(bytes: &[u8]) {
    if let Ok((record, used)) = T::decode(bytes) {
        let mut again = vec![0; used];
        assert_eq!(record.encode(&mut again), Ok(used));
        assert_eq!(again, bytes[..used]);
    }
}

fuzz_target!(|bytes: &[u8]| {
    layout::<DescriptorEntry>(bytes);
    layout::<Itimer>(bytes);
    layout::<Mapping>(bytes);
    layout::<PageRunEntry>(bytes);
    layout::<PosixTimer>(bytes);
    layout::<Registers>(bytes);
    layout::<SignalAction>(bytes);
    layout::<Task>(bytes);
    let _block = (Header::decode(bytes), FrameHeader::decode(bytes));
    if let Ok((record, used)) = LogRecord::decode(bytes) {
        let mut again = vec![0; used];
        assert_eq!(record.encode(&mut again), Ok(used));
        assert_eq!(again, bytes[..used]);
    }
    if let Ok((file, used)) = PathFile::decode(bytes) {
        let mut again = vec![0; used];
        assert_eq!(file.encode(&mut again), Ok(used));
        assert_eq!(again, bytes[..used]);
    }
});
