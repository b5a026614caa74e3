//! Who asked for a checkpoint: a command, or the program itself.

use crate::door::Caller;
use crate::failure::{Class, Failure};
use crate::progress::Step;
use crate::registry::{Answer, Client};
use crate::task::Checkpointed;

/// Waits for an answer.
#[derive(Debug)]
pub(crate) enum Asker {
    Client(Client),
    Program(Caller),
}

impl Asker {
    /// Whether it still waits: what nobody waits for any more is not done.
    pub(super) fn is_there(&self) -> bool {
        match self {
            Self::Client(client) => client.is_there(),
            Self::Program(caller) => caller.is_there(),
        }
    }

    /// How far it is, if it wants to hear that.
    pub(super) fn tell(&mut self, step: Step) {
        if let Self::Client(client) = self
            && client.follows
        {
            client.tell(&Answer::Progress(step));
        }
    }

    /// The checkpoint is there.
    pub(super) fn checkpointed(self, done: &Checkpointed) {
        match self {
            Self::Client(client) => client.answer(&Answer::Checkpointed(done.clone())),
            Self::Program(caller) => caller.answer(&hdcr::wire::Answer::Continued { image: done.snapshot.clone() }),
        }
    }

    /// There is none.
    pub(super) fn failed(self, failure: &Failure) {
        match self {
            Self::Client(client) => client.answer(&Answer::Failed(failure.clone())),
            Self::Program(caller) => caller.failed(failure),
        }
    }
}

impl Caller {
    /// Says something and hangs up; who does not take it has waited for nothing.
    pub(super) fn answer(self, answer: &hdcr::wire::Answer) {
        if let Err(error) = self.link.send(answer) {
            tracing::debug!(%error, pid = self.pid, "a program did not take its answer");
        }
    }

    /// It cannot be done.
    pub(super) fn failed(self, failure: &Failure) {
        self.answer(&hdcr::wire::Answer::Failed(told(failure)));
    }

    fn is_there(&self) -> bool {
        let peeked =
            rustix::net::recv(&self.link, &mut [0; 1], rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT);
        // Whoever waits for its answer says nothing more.
        matches!(peeked, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR))
    }
}

/// A failure as a program is told of it.
fn told(failure: &Failure) -> hdcr::Failed {
    /// A packet holds more of them, but not of any length.
    const REASONS: usize = 32;
    hdcr::Failed {
        class: match failure.class {
            Class::Usage | Class::Refused => hdcr::Class::Refused,
            Class::Changed => hdcr::Class::Changed,
            Class::Corrupt => hdcr::Class::Corrupt,
            Class::Failed | Class::Internal | Class::NotExecutable | Class::NoProgram => hdcr::Class::Failed,
        },
        code: failure.code.clone(),
        message: short(&failure.message),
        reasons: failure
            .refusals
            .iter()
            .take(REASONS)
            .map(|refusal| hdcr::Obstacle { code: refusal.code.clone(), text: short(&refusal.to_string()) })
            .collect(),
    }
}

/// A text that cannot make a packet too long.
fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Obstacle;

    #[test]
    fn the_longest_failure_fits_a_packet() {
        let obstacle = Obstacle {
            code: "x".repeat(40),
            object: "\u{1}".repeat(1000),
            pid: Some(1),
            fd: Some(1),
            path: None,
            cause: "y".repeat(1000),
            remedy: String::new(),
        };
        let failure = Failure {
            refusals: vec![obstacle; 1000],
            ..Failure::refused("checkpoint-refused", "\u{1}".repeat(10_000))
        };
        // A control character takes six bytes in JSON.
        let packet = serde_json::to_vec(&hdcr::wire::Answer::Failed(told(&failure))).unwrap();
        assert!(packet.len() < hdcr::wire::LIMIT, "{} bytes", packet.len());
    }
}
