//! A batch as the stub reads it: a table of entries, then the data area.

use hdcr_engine::batch::{Arg, Batch, CALL_ROOM, OnError, Replies};

/// Length of an entry.
pub(crate) const ENTRY_LEN: usize = 80;
const _: () = assert!(ENTRY_LEN <= CALL_ROOM, "what the engine counts with");
/// Where in an entry its result lies.
const RESULT_AT: usize = 56;
/// The stub names results by 16 bits.
const MOST_CALLS: usize = 1 << 16;

/// Room for a batch: the table, then the data area at a multiple of 16.
pub(crate) fn room(batch: &Batch) -> usize {
    (batch.calls.len() * ENTRY_LEN + batch.data.len()).next_multiple_of(64)
}

/// Why a batch has no table.
pub(crate) type Misfit = &'static str;

/// The bytes of a batch that will lie at address `at`.
pub(crate) fn encode(batch: &Batch, at: u64) -> Result<Vec<u8>, Misfit> {
    if batch.calls.len() > MOST_CALLS {
        return Err("a batch of more than 65536 calls");
    }
    let mut bytes = vec![0; room(batch)];
    let table_len = batch.calls.len() * ENTRY_LEN;
    let (table, rest) = bytes.split_at_mut(table_len);
    let data_at = at.wrapping_add(word(table_len));
    for (index, (entry, call)) in table.chunks_exact_mut(ENTRY_LEN).zip(&batch.calls).enumerate() {
        put(entry, 0, &call.nr.to_le_bytes());
        let mut taken = 0;
        for (place, arg) in call.args.iter().enumerate() {
            let value = match *arg {
                Arg::Value(value) => value,
                Arg::Data(offset) => data_at.wrapping_add(word(offset)),
                Arg::Result(of) => {
                    take_result(entry, index, place, of, taken)?;
                    taken += 1;
                    0
                }
            };
            put(entry, 8 + 8 * place, &value.to_le_bytes());
        }
        let makes_child = call.nr == libc::SYS_clone.cast_unsigned();
        put(entry, 66, &[u8::from(call.on_error == OnError::Stop) | u8::from(makes_child) << 1]);
    }
    let Some(data) = rest.get_mut(..batch.data.len()) else {
        return Err("a batch without its data");
    };
    data.copy_from_slice(&batch.data);
    for &(place, target) in &batch.pointers {
        let end = place.saturating_add(8);
        let Some(pointer) = data.get_mut(place..end) else {
            return Err("a batch with a pointer outside of its data");
        };
        pointer.copy_from_slice(&data_at.wrapping_add(word(target)).to_le_bytes());
    }
    Ok(bytes)
}

fn take_result(entry: &mut [u8], index: usize, place: usize, of: usize, taken: usize) -> Result<(), Misfit> {
    if of >= index {
        return Err("a batch that uses a result before it is there");
    }
    let (k, j) = match taken {
        0 => (64, 68),
        1 => (65, 70),
        _ => return Err("a batch with more than two results in one call"),
    };
    let argument = u8::try_from(place + 1).map_err(|_| "a call of too many arguments")?;
    let of = u16::try_from(of).map_err(|_| "a batch of more than 65536 calls")?;
    put(entry, k, &[argument]);
    put(entry, j, &of.to_le_bytes());
    Ok(())
}

fn put(entry: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = entry.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

fn word(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// What came of a batch at address `at`: `done` is the entry at which the stub stopped, `bytes` are as it left them.
pub(crate) fn decode(batch: &Batch, at: u64, done: u64, bytes: &[u8]) -> Replies {
    let reached = usize::try_from(done.saturating_sub(at)).unwrap_or(0) / ENTRY_LEN;
    // An entry before the end is one that failed: it was made, too.
    let made = (reached + 1).min(batch.calls.len());
    let table_len = batch.calls.len() * ENTRY_LEN;
    let results = bytes
        .chunks_exact(ENTRY_LEN)
        .take(made)
        .map(|entry| {
            let result = entry.get(RESULT_AT..RESULT_AT + 8);
            result.and_then(|bytes| bytes.try_into().ok()).map_or(0, i64::from_le_bytes)
        })
        .collect();
    let data = bytes.get(table_len..table_len + batch.data.len());
    Replies { results, data: data.map(<[u8]>::to_vec).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn arguments_become_addresses_and_references() {
        let mut batch = Batch::new();
        let first = batch.call(39, &[]);
        let text = batch.bytes(b"abc");
        let cell = batch.room(8);
        batch.pointer(cell, text);
        batch.try_call(1, &[Arg::Result(first), Arg::Data(text), 3.into(), Arg::Result(first)]);
        let bytes = encode(&batch, 0x1000).unwrap();
        let second = &bytes[ENTRY_LEN..];
        assert_eq!(word_at(second, 16), 0x1000 + 160);
        assert_eq!(second[64..72], [1, 4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[66], 1);
        assert_eq!(word_at(&bytes, 160 + cell), 0x1000 + 160);
    }

    #[test]
    fn a_result_of_a_later_call_is_refused() {
        let mut batch = Batch::new();
        batch.call(1, &[Arg::Result(0)]);
        assert!(encode(&batch, 0).is_err());
    }

    #[test]
    fn a_failed_call_is_the_last_result() {
        let mut batch = Batch::new();
        batch.call(1, &[]);
        batch.call(2, &[]);
        batch.call(3, &[]);
        let mut bytes = encode(&batch, 0x1000).unwrap();
        bytes[ENTRY_LEN + RESULT_AT..][..8].copy_from_slice(&(-2i64).to_le_bytes());
        let replies = decode(&batch, 0x1000, 0x1000 + 80, &bytes);
        assert_eq!(replies.results, [0, -2]);
        assert_eq!(replies.failure(&batch), Some((1, 2)));
        assert_eq!(decode(&batch, 0x1000, 0x1000 + 240, &bytes).results.len(), 3);
    }
}
