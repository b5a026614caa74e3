//! Attributes that are one number each, set by `prctl(2)`, `arch_prctl(2)` or `personality(2)`: how each is asked for and set.
//!
//! A row of a table says all about one. [`super::thread_attributes`] and [`super::process_attributes`] hold the rows.

use nix::libc;

use super::{Stage, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::error::{Error, Result};
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;

/// Where the call by which an attribute is asked for leaves the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// It is what the call returns.
    Result,
    /// An `int` at the address that is this argument.
    Int(usize),
    /// 64 bits at the address that is this argument.
    Word(usize),
}

/// An attribute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute {
    /// Number in images; never used again for another.
    pub(crate) number: u32,
    /// What error messages say was being done.
    pub(crate) label: &'static str,
    /// The call that asks.
    pub(crate) ask: (i64, [u64; 5]),
    /// Where its answer is.
    pub(crate) answer: Answer,
    /// Which part of the answer can be set at all; `None`: nothing of it on this machine.
    pub(crate) kept: fn(u64) -> Option<u64>,
    /// The call that sets a value.
    pub(crate) set: fn(u64) -> (i64, [u64; 5]),
    /// What a task has that nobody changed; setting this may fail.
    pub(crate) usual: u64,
    /// When it is set.
    pub(crate) stage: Stage,
}

/// Arguments of a `prctl`.
pub(crate) const fn prctl(args: [u64; 5]) -> (i64, [u64; 5]) {
    (libc::SYS_prctl, args)
}

/// Arguments of an `arch_prctl`.
pub(crate) const fn arch_prctl(option: u64, argument: u64) -> (i64, [u64; 5]) {
    (libc::SYS_arch_prctl, [option, argument, 0, 0, 0])
}

/// A value of an attribute in an image.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Value {
    #[prost(uint32, tag = "1")]
    pub(crate) number: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) value: u64,
}

/// The place of an answer in the replies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    call: usize,
    at: usize,
}

/// Asks for all of a table.
pub(crate) fn ask(table: &[Attribute], batch: &mut Batch) -> Vec<Place> {
    let ask_one = |attribute: &Attribute| {
        let mut args = attribute.ask.1.map(Arg::Value);
        let mut at = 0;
        if let Answer::Int(index) | Answer::Word(index) = attribute.answer {
            at = batch.room(8);
            if let Some(arg) = args.get_mut(index) {
                *arg = Arg::Data(at);
            }
        }
        Place { call: batch.try_call(attribute.ask.0, &args), at }
    };
    table.iter().map(ask_one).collect()
}

/// Reads the answers; an attribute that this kernel or machine does not have is left out.
pub(crate) fn answers(table: &[Attribute], places: &[Place], task: &TaskView, replies: &Replies) -> Result<Vec<Value>> {
    let mut values = Vec::new();
    for (attribute, place) in table.iter().zip(places) {
        replies.result(place.call).ok_or_else(|| model::no_reply(task, attribute.label))?;
        let Some(result) = super::optional(replies, place.call) else { continue };
        let answer = match attribute.answer {
            Answer::Result => Some(result),
            Answer::Int(_) => replies.word(place.at).map(|word| model::low32(word).into()),
            Answer::Word(_) => replies.word(place.at),
        };
        let answer = answer.ok_or_else(|| model::no_reply(task, attribute.label))?;
        if let Some(value) = (attribute.kept)(answer) {
            values.push(Value { number: attribute.number, value });
        }
    }
    Ok(values)
}

/// Sets what an image holds.
pub(crate) fn put(table: &[Attribute], cx: &mut Restore<'_>, task: Tid, values: &[Value]) -> Result<()> {
    for Value { number, value } in values {
        let attribute = table.iter().find(|attribute| attribute.number == *number);
        let attribute =
            attribute.ok_or_else(|| Error::Unsound(format!("task {task} has an unknown attribute {number}")))?;
        let (nr, args) = (attribute.set)(*value);
        let batch = cx.batch(attribute.stage, task);
        super::put_back(batch, *value == attribute.usual, attribute.label, nr, &args.map(Arg::Value));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Attribute = Attribute {
        number: 7,
        label: "setting it",
        ask: prctl([2, 0, 0, 0, 0]),
        answer: Answer::Int(1),
        kept: Some,
        set: |value| prctl([1, value, 0, 0, 0]),
        usual: 0,
        stage: Stage::Last,
    };

    #[test]
    fn an_int_is_read_from_where_the_call_was_told_to_write_it() {
        let mut batch = Batch::new();
        batch.room(3);
        let places = ask(&[ROW], &mut batch);
        assert_eq!(batch.calls[0].args[..3], [Arg::Value(2), Arg::Data(8), Arg::Value(0)]);
        assert_eq!((places[0].call, places[0].at), (0, 8));
    }
}
