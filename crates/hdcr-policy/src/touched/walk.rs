//! Random walks over a small tree of files, against a model that knows each file by its number.

use std::collections::BTreeMap;

use super::*;

/// Paths and what lies there: a number, and whether it is a directory.
type Tree = BTreeMap<PathBuf, (u32, Kind)>;

struct Walk {
    dice: u64,
    tree: Tree,
    next: u32,
    table: Table,
    /// Made of the parts of the table at the last mark or roll-back, and told the same since.
    twin: Table,
    story: Vec<String>,
}

fn id(number: u32) -> Identity {
    number.to_ne_bytes().to_vec()
}

/// The names after something was renamed with all that is in it.
fn carried(tree: &Tree, swap: &[(PathBuf, PathBuf)]) -> Tree {
    let carry = |path: &PathBuf| {
        let moved = swap.iter().find(|(from, _)| path.starts_with(from));
        moved.map_or_else(|| path.clone(), |(from, to)| state::carried(path, from, to))
    };
    tree.iter().map(|(path, what)| (carry(path), *what)).collect()
}

impl Walk {
    fn new(seed: u64) -> Self {
        let mut walk = Self {
            dice: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            tree: Tree::new(),
            next: 0,
            table: Table::default(),
            twin: Table::default(),
            story: Vec::new(),
        };
        for _ in 0..12 {
            walk.make();
        }
        walk
    }

    fn tell(&mut self, event: &Event) {
        self.table.tell(event);
        self.twin.tell(event);
    }

    fn mark(&mut self, sequence: u64) {
        self.table.mark(sequence, Duration::from_secs(100 * sequence));
        self.make_twin();
    }

    fn make_twin(&mut self) {
        self.twin = Table::of(self.table.past().collect(), self.table.touched(), self.table.gone());
    }

    fn throw(&mut self, below: usize) -> usize {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.dice >> 33).unwrap() % below
    }

    fn any(&mut self) -> Option<(PathBuf, (u32, Kind))> {
        let number = self.throw(self.tree.len().max(1));
        self.tree.iter().nth(number).map(|(path, what)| (path.clone(), *what))
    }

    /// A name that is not taken, or one that is, in some directory.
    fn name(&mut self) -> PathBuf {
        let directories = self.tree.iter().filter(|(_, (_, kind))| *kind == Kind::Directory);
        let mut above: Vec<PathBuf> = directories.map(|(path, _)| path.clone()).collect();
        above.push(PathBuf::from("/"));
        let above = above.swap_remove(self.throw(above.len()));
        above.join(["a", "b", "c", "d"][self.throw(4)])
    }

    fn make(&mut self) {
        let path = self.name();
        if self.tree.contains_key(&path) {
            return;
        }
        let kind = [Kind::File, Kind::Directory][self.throw(2)];
        self.next += 1;
        self.tree.insert(path.clone(), (self.next, kind));
        self.tell(&Event::Created(path, kind, id(self.next)));
    }

    fn remove(&mut self) {
        let Some((path, (_, kind))) = self.any() else { return };
        if self.tree.keys().any(|other| other.starts_with(&path) && *other != path) {
            return;
        }
        self.tree.remove(&path);
        self.tell(&Event::Removed(path, kind));
    }

    fn rename(&mut self) {
        let (Some((from, (number, kind))), to) = (self.any(), self.name()) else { return };
        let there = self.tree.get(&to).copied();
        if to.starts_with(&from) || from.starts_with(&to) || there.is_some_and(|(_, there)| there != kind) {
            return;
        }
        if self.tree.keys().any(|other| other.starts_with(&to) && *other != to) {
            return;
        }
        self.tree.remove(&to);
        self.tree = carried(&self.tree, &[(from.clone(), to.clone())]);
        let replaced = if there.is_some() { Replaced::Yes } else { Replaced::No };
        self.tell(&Event::Renamed { from, to, kind, replaced, identity: id(number) });
    }

    fn exchange(&mut self) {
        let (Some((one, of_one)), Some((other, of_other))) = (self.any(), self.any()) else { return };
        if one.starts_with(&other) || other.starts_with(&one) {
            return;
        }
        self.tree = carried(&self.tree, &[(one.clone(), other.clone()), (other.clone(), one.clone())]);
        let side = |path, (number, kind): (u32, Kind)| Side { path, kind, identity: id(number) };
        self.tell(&Event::Exchanged(side(one, of_one), side(other, of_other)));
    }

    fn step(&mut self) {
        let before = self.tree.clone();
        match self.throw(8) {
            0..=2 => self.make(),
            3 => self.remove(),
            4 | 5 => self.rename(),
            _ => self.exchange(),
        }
        if before != self.tree {
            self.story.push(format!("{:?}", self.tree));
        }
    }
}

/// What a roll-back makes of a tree, without what it brings from an image: as `bring_home` of the engine does it.
fn undone(now: &Tree, changes: &Changes) -> Tree {
    let mut tree = now.clone();
    let mut moved: Vec<(PathBuf, PathBuf)> = Vec::new();
    for Moved { at, home, identity } in &changes.moved {
        assert_eq!(tree.get(at).map(|what| id(what.0)).as_ref(), Some(identity), "{} is not there", at.display());
        moved.push((at.clone(), home.clone()));
    }
    let mut new: Vec<PathBuf> = Vec::new();
    for New { at, kind, identity, .. } in &changes.new {
        assert_eq!(tree.get(at).map(|what| id(what.0)).as_ref(), Some(identity), "{} is not there", at.display());
        match kind {
            Kind::File => drop(tree.remove(at)),
            Kind::Directory => new.push(at.clone()),
        }
    }
    let mut rooms = 0;
    let carry =
        |tree: &mut Tree, moved: &mut Vec<(PathBuf, PathBuf)>, new: &mut Vec<PathBuf>, from: &Path, to: &Path| {
            *tree = carried(tree, &[(from.to_owned(), to.to_owned())]);
            for at in moved.iter_mut().map(|(at, _)| at).chain(new) {
                *at = state::carried(at, from, to);
            }
        };
    let homes = moved.iter().map(|(_, home)| home.clone());
    let mut wanted: Vec<PathBuf> = changes.directories.iter().cloned().chain(homes).collect();
    wanted.sort_by_key(|place| place.components().count());
    for place in wanted {
        let occupied = new.iter().position(|at| *at == place).map(|at| new.swap_remove(at)).is_some()
            || moved.iter().any(|(at, home)| *at == place && *home != place);
        if occupied {
            rooms += 1;
            carry(&mut tree, &mut moved, &mut new, &place, &PathBuf::from(format!("/room-{rooms}")));
        }
        if let Some(position) = moved.iter().position(|(_, home)| *home == place) {
            let (at, home) = moved.swap_remove(position);
            assert!(at == home || !tree.contains_key(&home), "{} is taken", home.display());
            carry(&mut tree, &mut moved, &mut new, &at, &home);
        } else {
            tree.entry(place).or_insert((0, Kind::Directory));
        }
    }
    for at in new {
        rooms += 1;
        carry(&mut tree, &mut moved, &mut Vec::new(), &at, &PathBuf::from(format!("/room-{rooms}")));
    }
    tree.retain(|path, _| !path.to_string_lossy().starts_with("/room-"));
    tree
}

impl Walk {
    /// What a roll-back to a checkpoint would make of the tree now is the tree of the checkpoint.
    fn check(&self, sequence: u64, checkpoint: &Tree) -> Changes {
        let changes = self.table.since(sequence).unwrap();
        let story = self.story.join("\n");
        assert_eq!(self.twin.since(sequence).as_ref(), Some(&changes), "{story}");
        assert!(changes.doubtful.is_empty(), "{changes:?}\n{story}");
        let undone = std::panic::catch_unwind(|| undone(&self.tree, &changes));
        let undone = undone.unwrap_or_else(|_| panic!("{changes:#?}\n{story}"));
        // Files that are gone come from the image, and directories are made again.
        let gone = |path: &Path| changes.lost.iter().any(|lost| lost == path);
        let expected: BTreeMap<_, _> = checkpoint.iter().filter(|(path, _)| !gone(path)).collect();
        let have: BTreeMap<_, _> = undone.iter().collect();
        let same = expected.len() == have.len()
            && expected.iter().zip(&have).all(|(a, b)| a.0 == b.0 && (a.1 == b.1 || b.1.0 == 0 && a.1.1 == b.1.1));
        assert!(same, "to {sequence}: {changes:#?}\n{undone:?}\n{story}");
        changes
    }

    /// Goes back to a checkpoint; what was gone is made anew.
    fn roll_back(&mut self, sequence: u64, checkpoint: &mut Tree, older: &mut [&mut Tree]) {
        let changes = self.check(sequence, checkpoint);
        self.table.roll_back(sequence);
        let mut made = Vec::new();
        for path in changes.lost.iter().chain(&changes.directories) {
            self.next += 1;
            let number = self.next;
            let old = std::mem::replace(&mut checkpoint.get_mut(path).unwrap().0, number);
            let older = older.iter_mut().flat_map(|tree| tree.values_mut());
            older.filter(|what| what.0 == old).for_each(|what| what.0 = number);
            made.push((path.clone(), id(number)));
        }
        self.table.placed(&made);
        self.make_twin();
        self.tree = checkpoint.clone();
        self.story.push(format!("back to {sequence}: {:?}", self.tree));
    }
}

#[test]
fn whatever_was_done_to_names_is_undone() {
    for seed in 1..2000 {
        let mut walk = Walk::new(seed);
        let mut first = walk.tree.clone();
        walk.mark(1);
        walk.story = vec![format!("{seed}: {first:?}")];
        for _ in 0..6 {
            walk.step();
            walk.check(1, &first);
        }
        let mut second = walk.tree.clone();
        walk.mark(2);
        for _ in 0..3 {
            for _ in 0..4 {
                walk.step();
                walk.check(2, &second);
            }
            walk.roll_back(2, &mut second, &mut [&mut first]);
            walk.check(1, &first);
        }
    }
}

/// From one checkpoint to the one before it, and so on, with work in between.
#[test]
fn whatever_was_done_is_undone_from_checkpoint_to_older_checkpoint() {
    for seed in 1..2000 {
        let mut walk = Walk::new(seed);
        walk.story = vec![format!("{seed}: {:?}", walk.tree)];
        let mut trees = Vec::new();
        for sequence in 1..=4 {
            trees.push(walk.tree.clone());
            walk.mark(sequence);
            for _ in 0..5 {
                walk.step();
            }
        }
        while let Some(mut tree) = trees.pop() {
            let sequence = u64::try_from(trees.len()).unwrap() + 1;
            for _ in 0..2 {
                walk.roll_back(sequence, &mut tree, &mut trees.iter_mut().collect::<Vec<_>>());
                for (number, older) in (1..).zip(&trees) {
                    walk.check(number, older);
                }
                walk.step();
                walk.step();
            }
            walk.roll_back(sequence, &mut tree, &mut trees.iter_mut().collect::<Vec<_>>());
        }
    }
}
