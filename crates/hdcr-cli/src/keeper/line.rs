//! Which checkpoints a job can go back to: the ancestors of its present life, in a line.
//!
//! After a roll-back to an older one, those that were made later belong to a life that was given up. Nobody knows what
//! has happened to files since, so they are a last resort, and the first to be removed.

use std::time::{Duration, Instant};

/// A checkpoint that there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Made {
    pub(super) number: u64,
    /// Run time of the program then, along the line of its checkpoints.
    pub(super) at: Duration,
    /// When it was made, by the clock of this machine.
    pub(super) when: Option<Instant>,
    /// The one that its life came from or had made before.
    pub(super) before: Option<u64>,
    /// It was made on top of the one before.
    pub(super) increment: bool,
}

/// All checkpoints of a run, and where among them the present life is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Line {
    /// By number.
    made: Vec<Made>,
    /// The one that the present life came from or made last.
    present: Option<u64>,
}

impl Line {
    /// What an earlier keeper has made, oldest first.
    pub(super) fn of(made: Vec<Made>, present: Option<u64>) -> Self {
        Self { made, present }
    }

    /// The ancestors of the present life, oldest first.
    fn ancestors(&self) -> Vec<Made> {
        let before = |made: &Made| made.before.filter(|before| *before < made.number).and_then(|it| self.find(it));
        let newest = self.present.and_then(|number| self.find(number));
        let mut line: Vec<Made> = std::iter::successors(newest, before).collect();
        line.reverse();
        line
    }

    /// What can be gone back to, oldest first: the ancestors, or all when none of them is left.
    pub(super) fn ways_back(&self) -> Vec<Made> {
        let line = self.ancestors();
        if line.is_empty() { self.made.clone() } else { line }
    }

    /// What is gone back to when nothing else is said.
    pub(super) fn newest(&self) -> Option<Made> {
        self.ways_back().pop()
    }

    /// The one that the present life came from or made last.
    pub(super) fn present(&self) -> Option<u64> {
        self.present
    }

    /// The numbers of the ancestors.
    pub(super) fn numbers_of_line(&self) -> Vec<u64> {
        self.ancestors().iter().map(|made| made.number).collect()
    }

    /// The ancestors of a checkpoint of a life that was given up, the newest first; `None`: it is of the present life.
    pub(super) fn given_up(&self, number: u64) -> Option<Vec<u64>> {
        if self.ancestors().iter().any(|made| made.number == number) {
            return None;
        }
        let mut line = Self { made: self.made.clone(), present: Some(number) }.numbers_of_line();
        line.retain(|ancestor| *ancestor != number);
        line.reverse();
        Some(line)
    }

    /// One with this number, also of a life that was given up.
    pub(super) fn find(&self, number: u64) -> Option<Made> {
        self.made.iter().find(|made| made.number == number).copied()
    }

    /// All numbers there are.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.made.iter().map(|made| made.number).collect()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.made.is_empty()
    }

    /// The present life has made one. When the store was removed meanwhile, numbers begin anew.
    pub(super) fn push(&mut self, number: u64, at: Duration, when: Instant, increment: bool) {
        let newer: Vec<u64> = self.numbers().into_iter().filter(|other| *other >= number).collect();
        self.remove(&newer);
        self.made.push(Made { number, at, when: Some(when), before: self.present, increment });
        self.present = Some(number);
    }

    /// The job lives again, from here. Returns the newest number when it is of a life that is given up by that.
    pub(super) fn came_back(&mut self, number: u64) -> Option<u64> {
        self.present = Some(number);
        self.made.last().map(|made| made.number).filter(|newest| *newest > number)
    }

    /// The job begins anew.
    pub(super) fn begin_anew(&mut self) {
        self.present = None;
    }

    /// These are gone: what came from one of them comes from the one before it.
    pub(super) fn remove(&mut self, gone: &[u64]) {
        for number in gone {
            let Some(at) = self.made.iter().position(|made| made.number == *number) else { continue };
            let before = self.made.remove(at).before;
            let from_it = self.made.iter_mut().filter(|made| made.before == Some(*number));
            from_it.for_each(|made| made.before = before);
            if self.present == Some(*number) {
                self.present = before;
            }
        }
    }

    /// This one cannot be used: the one to be tried instead, an older one if there is one.
    pub(super) fn instead_of(&mut self, number: u64) -> Option<Made> {
        self.remove(&[number]);
        let line = self.ways_back();
        let older = line.iter().rfind(|made| made.number < number);
        older.or(line.last()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checkpoints by the number of the one before each, 0 for none; numbers count from 1.
    fn line(before: &[u64], present: u64) -> Line {
        let made = (1_u64..).zip(before).map(|(number, before)| {
            let at = Duration::from_secs(10 * number);
            Made { number, at, when: None, before: Some(*before).filter(|before| *before > 0), increment: false }
        });
        Line::of(made.collect(), Some(present).filter(|present| *present > 0))
    }

    fn ways(line: &Line) -> Vec<u64> {
        line.ways_back().iter().map(|made| made.number).collect()
    }

    #[test]
    fn what_a_life_that_was_given_up_has_made_is_not_gone_back_to() {
        let mut job = line(&[0, 1, 2], 3);
        assert_eq!(ways(&job), [1, 2, 3]);
        assert_eq!(job.came_back(2), Some(3));
        assert_eq!((ways(&job), job.newest().unwrap().number), (vec![1, 2], 2));
        job.push(4, Duration::from_secs(25), Instant::now(), false);
        assert_eq!((ways(&job), job.numbers()), (vec![1, 2, 4], vec![1, 2, 3, 4]));
        assert_eq!((job.given_up(3), job.given_up(2)), (Some(vec![2, 1]), None));
        assert_eq!(job.came_back(4), None);
        assert_eq!(job.came_back(1), Some(4));
        assert_eq!(ways(&job), [1]);
    }

    #[test]
    fn what_is_removed_does_not_break_the_line() {
        let mut job = line(&[0, 1, 2, 2], 4);
        job.remove(&[2]);
        assert_eq!(ways(&job), [1, 4]);
        job.remove(&[4]);
        assert_eq!((ways(&job), job.present()), (vec![1], Some(1)));
        job.remove(&[1]);
        assert_eq!(ways(&job), [3], "the last resort");
    }

    #[test]
    fn what_cannot_be_used_is_replaced_by_an_older_one_of_the_line() {
        let mut job = line(&[0, 1, 1, 3], 4);
        assert_eq!(job.instead_of(4).unwrap().number, 3);
        assert_eq!(job.instead_of(3).unwrap().number, 1);
        assert_eq!(job.instead_of(1).unwrap().number, 2, "the last resort");
        assert_eq!(job.instead_of(2), None);
    }

    #[test]
    fn numbers_that_begin_anew_replace_the_old_ones() {
        let mut job = line(&[0, 1, 2], 3);
        job.push(1, Duration::from_secs(40), Instant::now(), false);
        assert_eq!((ways(&job), job.numbers()), (vec![1], vec![1]));
    }

    #[test]
    fn a_line_that_leads_in_a_circle_ends() {
        assert_eq!(ways(&line(&[2, 1], 2)), [1, 2]);
        assert_eq!(ways(&line(&[1], 1)), [1]);
        assert_eq!(ways(&line(&[0, 1], 9)), [1, 2], "where the life is is not known");
    }
}
