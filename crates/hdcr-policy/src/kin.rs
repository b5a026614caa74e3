//! Which processes belong to a job, by who has made whom; also those that are gone when it is asked.
//!
//! Births and ends are told in order, but apart from whatever the question is about: between the act of a process and the
//! question about it its number may have come to another one. So a number keeps its meaning for a while after its
//! process has ended ([`Kin::turn`]), and a number that had two owners in that while is nobody's.

use std::collections::BTreeMap;

/// Whose process it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// One of the job.
    Job,
    /// One that the keeper needs.
    Own,
    /// Surely none of the job.
    Other,
    /// Not known.
    Unknown,
}

/// Something that has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A process was made.
    Born {
        /// Whose child it is.
        parent: i32,
        /// The process.
        child: i32,
    },
    /// A process, or at least its first thread, has ended.
    Ended(i32),
    /// Events were lost.
    Lost,
}

/// The processes of a job: all below its keeper but those that the keeper itself needs.
#[derive(Clone, Debug)]
pub struct Kin {
    keeper: i32,
    /// Processes of the job; the turn in which one has ended.
    members: BTreeMap<i32, Option<u64>>,
    /// Numbers that somebody else has got or given back, and in which turn.
    others: BTreeMap<i32, u64>,
    /// The keeper's own; the turn in which one has ended.
    own: BTreeMap<i32, Option<u64>>,
    turn: u64,
    /// The turn in which events were lost.
    lost: Option<u64>,
}

impl Kin {
    /// A keeper and what is already below it.
    pub fn new(keeper: i32, below: impl IntoIterator<Item = i32>) -> Self {
        Self {
            keeper,
            members: below.into_iter().map(|pid| (pid, None)).collect(),
            others: BTreeMap::new(),
            own: BTreeMap::new(),
            turn: 0,
            lost: None,
        }
    }

    /// A child of the keeper that is not of the job.
    pub fn set_apart(&mut self, pid: i32) {
        self.own.insert(pid, None);
        self.members.remove(&pid);
    }

    /// The processes of the job that have not ended.
    pub fn members(&self) -> impl Iterator<Item = i32> {
        self.members.iter().filter(|(_, ended)| ended.is_none()).map(|(pid, _)| *pid)
    }

    /// Whether a process was set apart.
    pub fn is_apart(&self, pid: i32) -> bool {
        self.own.contains_key(&pid)
    }

    /// Tells what happened.
    pub fn tell(&mut self, event: Event) {
        match event {
            Event::Born { parent, child } if parent == child => {}
            Event::Born { parent, child } => {
                let of_job = parent == self.keeper || self.members.contains_key(&parent);
                if self.own.get(&child) == Some(&None) {
                    // It was set apart before its birth was told.
                } else if of_job {
                    self.members.insert(child, None);
                } else {
                    self.others.insert(child, self.turn);
                    self.end(child);
                }
            }
            Event::Ended(pid) => {
                if !self.end(pid) {
                    self.others.insert(pid, self.turn);
                }
            }
            Event::Lost => self.lost = Some(self.turn),
        }
    }

    fn end(&mut self, pid: i32) -> bool {
        let known = self.members.get_mut(&pid).into_iter().chain(self.own.get_mut(&pid));
        known.map(|ended| *ended = ended.or(Some(self.turn))).count() > 0
    }

    /// Whose process it was that did something since the last turn.
    pub fn whose(&self, pid: i32) -> Whose {
        if pid == self.keeper {
            return Whose::Own;
        }
        let (of_job, own) = (self.members.contains_key(&pid), self.own.contains_key(&pid));
        match (of_job, own, self.others.contains_key(&pid)) {
            (false, true, false) => Whose::Own,
            _ if self.lost.is_some() || pid == 0 => Whose::Unknown,
            (true, false, false) => Whose::Job,
            (true, true, _) | (true, _, true) | (_, true, true) => Whose::Unknown,
            (false, false, _) => Whose::Other,
        }
    }

    /// Everything that was done before the last births were read has been asked about: what ended before the turn
    /// before this one is forgotten, unless some thread of it `lives`.
    pub fn turn(&mut self, lives: impl Fn(i32) -> bool) {
        let last = self.turn;
        self.turn += 1;
        self.others.retain(|_, turn| *turn >= last);
        self.own.retain(|_, ended| ended.is_none_or(|turn| turn >= last));
        let others = &self.others;
        self.members.retain(|pid, ended| match ended {
            Some(turn) => *turn >= last || (!others.contains_key(pid) && lives(*pid)),
            None => true,
        });
    }

    /// Whether events were lost, so that it has to be looked anew.
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// After events were lost: what is below the keeper now. For what was done before this turn nothing is known.
    pub fn look(&mut self, below: impl IntoIterator<Item = i32>) {
        self.members = below.into_iter().filter(|pid| !self.own.contains_key(pid)).map(|pid| (pid, None)).collect();
        self.others.clear();
        self.lost = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEPER: i32 = 10;

    /// Words: `1+2` 1 makes 2, `-2`, `|` a turn (nothing lives), `*` lost.
    fn kin(story: &str) -> Kin {
        let mut kin = Kin::new(KEEPER, [11]);
        kin.set_apart(19);
        for word in story.split_whitespace() {
            match word.split_once('+') {
                Some((parent, child)) => {
                    kin.tell(Event::Born { parent: parent.parse().unwrap(), child: child.parse().unwrap() });
                }
                None if word == "|" => kin.turn(|_| false),
                None if word == "*" => kin.tell(Event::Lost),
                None => kin.tell(Event::Ended(word[1..].parse().unwrap())),
            }
        }
        kin
    }

    fn check(story: &str, pid: i32, expected: Whose) {
        assert_eq!(kin(story).whose(pid), expected, "{story}: {pid}");
    }

    #[test]
    fn descendants_are_of_the_job_also_when_they_are_gone() {
        check("", 11, Whose::Job);
        check("", KEEPER, Whose::Own);
        check("", 5, Whose::Other);
        check("11+20 20+21", 21, Whose::Job);
        check("11+20 20+21 -20 -21", 21, Whose::Job);
        check("11+20 -20 |", 20, Whose::Job);
        check("11+20 -20 | |", 20, Whose::Other);
        check("1+30 30+31", 31, Whose::Other);
        check("11+11 -11", 11, Whose::Job);
    }

    #[test]
    fn what_the_keeper_needs_is_not_of_the_job() {
        check("10+19", 19, Whose::Own);
        check("10+19 19+22", 22, Whose::Other);
        // What it did is asked about when it is gone.
        check("10+19 -19", 19, Whose::Own);
        check("10+19 -19 | |", 19, Whose::Other);
        check("10+19 -19 1+19", 19, Whose::Unknown);
        check("10+19 -19 11+19", 19, Whose::Unknown);
        check("10+19 -19 11+19 | |", 19, Whose::Job);
        // A worker makes the restored program as a child of the keeper.
        check("10+19 10+22 22+23", 23, Whose::Job);
    }

    #[test]
    fn a_number_with_two_owners_is_nobodys() {
        check("11+20 -20 1+20", 20, Whose::Unknown);
        check("11+20 -20 1+20 | |", 20, Whose::Other);
        check("1+20 -20 11+20", 20, Whose::Unknown);
        check("1+20 -20 11+20 | |", 20, Whose::Job);
        check("11+20 -20 11+20", 20, Whose::Job);
        // Its end was lost or comes late.
        check("11+20 1+20", 20, Whose::Unknown);
    }

    #[test]
    fn after_a_loss_nothing_is_known_until_it_was_looked() {
        check("*", 11, Whose::Unknown);
        check("*", 5, Whose::Unknown);
        check("*", KEEPER, Whose::Own);
        check("*", 19, Whose::Own);
        let mut kin = kin("11+20 *");
        assert!(kin.is_lost());
        kin.look([11, 19, 21]);
        assert_eq!([11, 19, 20, 21].map(|pid| kin.whose(pid)), [Whose::Job, Whose::Own, Whose::Other, Whose::Job]);
    }

    #[test]
    fn a_process_without_its_first_thread_goes_on() {
        let mut kin = kin("11+20 -20");
        kin.turn(|pid| pid == 20);
        kin.turn(|pid| pid == 20);
        assert_eq!(kin.whose(20), Whose::Job);
    }
}
