//! A batch as the module takes it, and what came of it.

use hdcr_abi::{CallRow, PointerRow, argument};
use hdcr_engine::batch::{Arg, Batch, OnError, Replies};

use crate::session::Rows;

/// The rows of a batch; `None` when it names more than rows can.
pub(crate) fn rows(batch: &Batch) -> Option<Rows> {
    let calls = batch.calls.iter().map(|call| {
        let mut row = CallRow { nr: call.nr, stops: u8::from(call.on_error == OnError::Stop), ..CallRow::default() };
        for ((arg, kind), from) in row.args.iter_mut().zip(&mut row.kinds).zip(&call.args) {
            (*arg, *kind) = match *from {
                Arg::Value(value) => (value, argument::VALUE),
                Arg::Data(at) => (u64::try_from(at).ok()?, argument::DATA),
                Arg::Result(of) => (u64::try_from(of).ok()?, argument::RESULT),
            };
        }
        Some(row)
    });
    let pointers = batch.pointers.iter().map(|(place, target)| {
        Some(PointerRow { place: u32::try_from(*place).ok()?, target: u32::try_from(*target).ok()? })
    });
    Some(Rows {
        calls: calls.collect::<Option<_>>()?,
        data: batch.data.clone(),
        pointers: pointers.collect::<Option<_>>()?,
    })
}

/// What came of rows of which so many calls were made.
pub(crate) fn replies(rows: Rows, made: usize) -> Replies {
    Replies { results: rows.calls.iter().take(made).map(|row| row.result).collect(), data: rows.data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_apart_and_results_come_back() {
        let mut batch = Batch::new();
        let first = batch.call(39, &[]);
        let text = batch.bytes(b"abc");
        let cell = batch.room(8);
        batch.pointer(cell, text);
        batch.try_call(1, &[Arg::Result(first), Arg::Data(text), (-1).into()]);
        let mut all = rows(&batch).unwrap();
        assert_eq!(all.pointers, [PointerRow { place: 8, target: 0 }]);
        assert_eq!((all.calls[0].stops, all.calls[1].stops), (1, 0));
        assert_eq!(all.calls[1].kinds, [argument::RESULT, argument::DATA, 0, 0, 0, 0]);
        assert_eq!(all.calls[1].args[..3], [0, 0, u64::MAX]);
        all.calls[0].result = -9;
        let replies = replies(all, 1);
        assert_eq!(replies.failure(&batch), Some((0, 9)));
        assert_eq!(replies.data.len(), 16);
    }
}
