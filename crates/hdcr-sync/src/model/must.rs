//! What must hold in every state of the world, by the names of the obligations in `docs/protocol.md`.

use std::collections::BTreeSet;

use super::{Programs, World};
use crate::ids::{Incarnation, Member, Round};
use crate::ledger::Decision;
use crate::manifest::{EpochManifest, ShareId};

pub(crate) type Must = (&'static str, fn(&World) -> bool);

pub(crate) const MUSTS: [Must; 13] = [
    ("S1 S2 cut: committed connections match", channels_match),
    ("S1 still: nothing moves between the first and the last capture", captures_are_still),
    ("S3 whole: a commit has all members, and their shares are there", commits_are_whole),
    ("S3 once: nobody is told otherwise of a round than the ledger says", nobody_is_told_otherwise),
    ("S3 line: the recovery line never goes back", line_never_goes_back),
    ("S4 one run: what runs is of one incarnation", one_incarnation_runs),
    ("S4 one origin: an incarnation is made of one round, each share once", one_origin),
    ("S4 known: what runs is in the ledger's view or under suspicion", runners_are_known),
    ("S4 gate: nothing runs before all is built, from what is there", nothing_went_wrong),
    ("S5 durable: what was told to be committed is there", told_is_there),
    ("L1 lease: who is frozen or at the gate has a lease", the_stopped_have_leases),
    ("L1 hold: no hold on what runs", no_hold_on_runners),
    ("fence: a term writes after its claim only, until the next", terms_are_fenced),
];

fn commits(world: &World) -> impl Iterator<Item = &EpochManifest> {
    world.ledger.iter().filter_map(|(entry, _)| match &entry.decision {
        Decision::Commit(manifest) => Some(manifest),
        Decision::Claim | Decision::View | Decision::Rollback => None,
    })
}

fn is_committed(world: &World, round: Round) -> bool {
    commits(world).any(|manifest| manifest.round == round)
}

pub(crate) fn channels_match(world: &World) -> bool {
    commits(world).all(|manifest| manifest.check_channels().is_ok())
}

fn captures_are_still(world: &World) -> bool {
    world.cuts.iter().all(|(round, cut)| !cut.is_disturbed || !is_committed(world, *round))
}

fn commits_are_whole(world: &World) -> bool {
    let newest = commits(world).last().map(|manifest| manifest.round);
    world.ledger.iter().all(|(entry, _)| match &entry.decision {
        Decision::Commit(manifest) => {
            // Those before the newest may have been collected.
            let is_there = |id: ShareId| world.shares.contains_key(&id);
            manifest.covers(&entry.view) && (Some(manifest.round) != newest || manifest.share_ids().all(is_there))
        }
        Decision::Claim | Decision::View | Decision::Rollback => true,
    })
}

fn nobody_is_told_otherwise(world: &World) -> bool {
    world.told.iter().all(|round| is_committed(world, *round) && !world.denied.contains(round))
        && world.denied.iter().all(|round| !is_committed(world, *round))
}

fn line_never_goes_back(world: &World) -> bool {
    world.ledger.windows(2).all(|pair| {
        let [(before, _), (after, _)] = pair else { return false };
        let is_new = match &after.decision {
            Decision::Commit(manifest) => manifest.previous == before.line && after.line == Some(manifest.round),
            Decision::Claim | Decision::View | Decision::Rollback => after.line == before.line,
        };
        is_new && before.line <= after.line
    })
}

fn running(world: &World) -> impl Iterator<Item = (Member, Incarnation)> {
    world.hosts.iter().enumerate().filter_map(|(number, host)| {
        let member = Member(u32::try_from(number).ok()?);
        Some((member, host.runs()?))
    })
}

fn one_incarnation_runs(world: &World) -> bool {
    let incarnations: BTreeSet<Incarnation> = running(world).map(|(_, incarnation)| incarnation).collect();
    incarnations.len() <= 1
}

fn one_origin(world: &World) -> bool {
    let mut seen: BTreeSet<(Incarnation, ShareId)> = BTreeSet::new();
    world.hosts.iter().all(|host| {
        let Some(incarnation) = host.runs() else { return true };
        let mut rollbacks = world
            .ledger
            .iter()
            .filter(|(entry, _)| entry.decision == Decision::Rollback && entry.incarnation == incarnation);
        let rollback = rollbacks.next().map(|(entry, _)| entry.line);
        let is_one = rollbacks.next().is_none() && (rollback.is_some() || host.origin.is_empty());
        is_one && host.origin.iter().all(|id| Some(Some(id.round)) == rollback && seen.insert((incarnation, *id)))
    })
}

fn runners_are_known(world: &World) -> bool {
    let Some((last, _)) = world.ledger.last() else { return false };
    running(world).all(|(member, _)| last.view.contains(&member) || last.suspects.contains(&member))
}

fn nothing_went_wrong(world: &World) -> bool {
    world.wrong.is_empty()
}

fn told_is_there(world: &World) -> bool {
    let is_whole = |manifest: &EpochManifest| manifest.share_ids().all(|id| world.shares.contains_key(&id));
    let newest = world.told.iter().max();
    newest.is_none_or(|round| {
        let at_least = commits(world).filter(|manifest| manifest.round >= *round);
        at_least.last().is_some_and(is_whole)
    })
}

fn the_stopped_have_leases(world: &World) -> bool {
    world.hosts.iter().all(|host| match host.programs {
        Programs::Frozen(_) => host.agent.is_some() && host.lease.is_some(),
        // The last work, the release, needs no lease any more.
        Programs::Gate(_) => host.agent.is_some() && (host.lease.is_some() || host.work.is_some()),
        Programs::None | Programs::Waiting | Programs::Running(_) => true,
    })
}

fn no_hold_on_runners(world: &World) -> bool {
    world.hosts.iter().all(|host| !host.is_held || !matches!(host.programs, Programs::Running(_)))
}

fn terms_are_fenced(world: &World) -> bool {
    world.ledger.windows(2).all(|pair| {
        let [(before, _), (after, _)] = pair else { return false };
        match after.decision {
            Decision::Claim => after.term > before.term && after.incarnation == before.incarnation,
            Decision::Rollback => after.term == before.term && after.incarnation > before.incarnation,
            Decision::View | Decision::Commit(_) => {
                after.term == before.term && after.incarnation == before.incarnation
            }
        }
    })
}
