//! Credentials of a thread: user and group numbers, groups, every set of capabilities, secure bits, `no_new_privs`.
//!
//! Read from `/proc/PID/task/TID/status`, but for the secure bits. They go back by raw calls, which change one thread, in an
//! order in which each step still may be done (capabilities(7)): a thread that is as it should be needs no step and no
//! capability, any other needs those of the restoring user.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView, own};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::model;
use crate::rights::{Rights, TreeRights};
use crate::stored::{self, Model};
use crate::procfs::KeyValues;
use crate::restore::{Restore, TaskBatch};
use crate::survey::Survey;

pub(crate) struct Creds;

/// Credentials.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CredsRecord {
    /// Real, effective, saved, file system.
    #[prost(uint32, repeated, tag = "1")]
    uids: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    gids: Vec<u32>,
    #[prost(uint32, repeated, tag = "3")]
    groups: Vec<u32>,
    #[prost(uint64, tag = "4")]
    inheritable: u64,
    #[prost(uint64, tag = "5")]
    permitted: u64,
    #[prost(uint64, tag = "6")]
    effective: u64,
    #[prost(uint64, tag = "7")]
    bounding: u64,
    #[prost(uint64, tag = "8")]
    ambient: u64,
    #[prost(uint32, tag = "9")]
    secure_bits: u32,
    #[prost(bool, tag = "10")]
    no_new_privs: bool,
}

const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SETPCAP: u64 = 1 << 8;
/// `SECBIT_NO_SETUID_FIXUP` and `SECBIT_KEEP_CAPS` of `<linux/securebits.h>`: a change of users leaves capabilities alone.
const STEADY: u32 = 0x04 | 0x10;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

impl Record for CredsRecord {
    const TAG: Tag = Tag(0x0307);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl CredsRecord {
    fn rights(&self) -> Option<Rights> {
        Some(Rights::new(*self.uids.get(3)?, *self.gids.get(3)?, &self.groups, self.effective))
    }
}

/// With whose rights the files of a tree are found and rolled back.
pub(crate) fn rights(model: &Model) -> Result<TreeRights> {
    let mut found = Vec::new();
    for process in model.processes.iter().filter(|process| !process.zombie()) {
        let Some((_, id)) = process.threads.first().filter(|(_, id)| model.frames.contains_key(&(CredsRecord::TAG.0, *id)))
        else {
            continue;
        };
        let own = own_credentials()?;
        let record = as_shown_here(stored::one(&model.frames, *id)?, &own, own::may_set_groups());
        found.extend(record.rights().map(|rights| (process.pid, rights)));
    }
    TreeRights::new(found, own::may_set_groups())
}

/// What `status` says; the secure bits are not in it.
fn from_status(status: &KeyValues, secure_bits: u32) -> Option<CredsRecord> {
    let ids = |key: &str| status.list(key)?.into_iter().map(|id| u32::try_from(id).ok()).collect::<Option<Vec<u32>>>();
    let four = |key: &str| ids(key).filter(|ids| ids.len() == 4);
    Some(CredsRecord {
        uids: four("Uid")?,
        gids: four("Gid")?,
        groups: ids("Groups")?,
        inheritable: status.hex("CapInh")?,
        permitted: status.hex("CapPrm")?,
        effective: status.hex("CapEff")?,
        bounding: status.hex("CapBnd")?,
        ambient: status.hex("CapAmb")?,
        secure_bits,
        no_new_privs: status.number("NoNewPrivs")? != 0,
    })
}

/// Those of this process, which a new task starts with.
fn own_credentials() -> Result<CredsRecord> {
    let bits = rustix::thread::capabilities_secure_bits().map_err(Error::system("PR_GET_SECUREBITS", "self"))?;
    let own = from_status(&own::status()?, bits.bits());
    own.ok_or_else(|| Error::Changed {
        subject: "/proc/self/status".to_owned(),
        what: "no credentials in it".to_owned(),
    })
}

/// In a user namespace whose groups cannot be set, every group that has no number there shows as the same odd one: as many
/// groups are the same groups.
fn as_shown_here(record: CredsRecord, own: &CredsRecord, may_set_groups: bool) -> CredsRecord {
    if !may_set_groups && record.groups.len() == own.groups.len() {
        return CredsRecord { groups: own.groups.clone(), ..record };
    }
    record
}

fn sorted(groups: &[u32]) -> Vec<u32> {
    let mut groups = groups.to_vec();
    groups.sort_unstable();
    groups
}

/// Whether the groups are the same; they have no order.
fn same_groups(a: &CredsRecord, b: &CredsRecord) -> bool {
    sorted(&a.groups) == sorted(&b.groups)
}

/// Whether numbers and groups are the same.
fn same_ids(a: &CredsRecord, b: &CredsRecord) -> bool {
    a.uids == b.uids && a.gids == b.gids && same_groups(a, b)
}

/// Whether nothing has to be done.
fn same(a: &CredsRecord, b: &CredsRecord) -> bool {
    let sets = |r: &CredsRecord| (r.inheritable, r.permitted, r.effective, r.bounding, r.ambient, r.secure_bits);
    same_ids(a, b) && sets(a) == sets(b)
}

/// What can be given here.
#[derive(Debug, Default)]
struct Here {
    users: own::Numbers,
    groups: own::Numbers,
    may_set_groups: bool,
}

impl Here {
    fn look() -> Result<Self> {
        let (users, groups) = (own::Numbers::of("uid_map")?, own::Numbers::of("gid_map")?);
        Ok(Self { users, groups, may_set_groups: own::may_set_groups() })
    }

    /// Why numbers cannot be given whatever capabilities one has: a user namespace knows only some.
    fn causes(&self, record: &CredsRecord, own: &CredsRecord) -> Vec<String> {
        let unknown = |ids: &[u32], own: &[u32], numbers: &own::Numbers| {
            ids.iter().zip(own).find(|(id, own)| id != own && !numbers.have(**id)).map(|(id, _)| *id)
        };
        let user = unknown(&record.uids, &own.uids, &self.users);
        let group = unknown(&record.gids, &own.gids, &self.groups);
        let numbers = user.map(|id| format!("user {id}")).or_else(|| group.map(|id| format!("group {id}")));
        let cause = |who| format!("it belongs to {who}, and this user may only give its own numbers to processes");
        let groups = (!self.may_set_groups && !same_groups(record, own))
            .then(|| "its groups are others than this user's, which may not set them".to_owned());
        numbers.map(cause).into_iter().chain(groups).collect()
    }
}

/// Why a user with credentials `own` cannot give them to a task; empty: can.
fn causes(record: &CredsRecord, own: &CredsRecord, here: &Here) -> Vec<String> {
    let mut causes = here.causes(record, own);
    if own.no_new_privs && !record.no_new_privs {
        causes.push("the restoring process has no_new_privs, which is inherited and cannot be taken back".to_owned());
    }
    let beyond = (record.permitted & !own.permitted) | (record.bounding & !own.bounding);
    if beyond != 0 {
        causes.push(format!("it has capabilities that this user lacks (mask {beyond:#x})"));
    }
    if same(record, own) {
        return causes;
    }
    let changed =
        |what: &str, capability: &str| format!("its {what} differ from this user's, which takes {capability}");
    let lacks = |capability: u64| own.effective & capability == 0;
    if lacks(CAP_SETUID) && record.uids != own.uids {
        causes.push(changed("user numbers", "CAP_SETUID"));
    }
    if lacks(CAP_SETGID) && (record.gids != own.gids || !same_groups(record, own)) {
        causes.push(changed("groups", "CAP_SETGID"));
    }
    if lacks(CAP_SETPCAP) {
        causes.push(changed("credentials", "CAP_SETPCAP"));
    }
    causes
}

/// What stands in the way of giving these credentials to a task.
fn refusals(tid: Tid, record: &CredsRecord, own: &CredsRecord) -> Result<Vec<Refusal>> {
    // Most have those of this user: what could be given does not matter then.
    let here = if same_ids(record, own) { Here::default() } else { Here::look()? };
    let refusal = |cause| Refusal {
        code: "credentials-beyond-own",
        object: "credentials".to_owned(),
        owner: Owner { pid: Some(Pid(tid.0)), ..Owner::default() },
        cause,
        remedy: "run hdcr as the same user or as root".to_owned(),
    };
    Ok(causes(record, own, &here).into_iter().map(refusal).collect())
}

fn prctl(batch: &mut TaskBatch, label: &'static str, option: i32, argument: u64) {
    batch.call(
        label,
        libc::SYS_prctl,
        &[Arg::from(option), Arg::Value(argument), Arg::Value(0), Arg::Value(0), Arg::Value(0)],
    );
}

fn capset(batch: &mut TaskBatch, permitted: u64, effective: u64, inheritable: u64) {
    let header = batch.room(8);
    batch.put(header, &CAPABILITY_VERSION.to_le_bytes());
    let data = batch.room(24);
    let halves = [(effective, 0), (permitted, 4), (inheritable, 8)];
    for (set, at) in halves {
        batch.put(data + at, &model::low32(set).to_le_bytes());
        batch.put(data + 12 + at, &model::low32(set >> 32).to_le_bytes());
    }
    batch.call("setting capabilities", libc::SYS_capset, &[Arg::Data(header), Arg::Data(data)]);
}

fn bits(mask: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| mask >> bit & 1 == 1)
}

fn put_ids(batch: &mut TaskBatch, record: &CredsRecord, own: &CredsRecord) {
    if same_ids(record, own) {
        return;
    }
    if !same_groups(record, own) {
        let list = batch.room(record.groups.len().saturating_mul(4));
        for (at, group) in (list..).step_by(4).zip(&record.groups) {
            batch.put(at, &group.to_le_bytes());
        }
        let args = [Arg::Value(record.groups.len() as u64), Arg::Data(list)];
        batch.call("setting groups", libc::SYS_setgroups, &args);
    }
    let four = |ids: &[u32]| ids.iter().map(|id| Arg::Value((*id).into())).collect::<Vec<Arg>>();
    for (ids, label, set, set_fs) in [
        (&record.gids, "setting group numbers", libc::SYS_setresgid, libc::SYS_setfsgid),
        (&record.uids, "setting user numbers", libc::SYS_setresuid, libc::SYS_setfsuid),
    ] {
        let args = four(ids);
        batch.call(label, set, args.get(..3).unwrap_or_default());
        // It answers with the number before, never with an error.
        batch.try_call(label, set_fs, args.get(3..).unwrap_or_default());
    }
}

/// The calls that make `record` out of `own`.
fn put(batch: &mut TaskBatch, record: &CredsRecord, own: &CredsRecord) {
    if !same(record, own) {
        // What is inheritable may lie outside of the bounding set, but only what was there before the set shrank.
        capset(batch, own.permitted, own.effective, record.inheritable);
        for capability in bits(own.bounding & !record.bounding) {
            prctl(batch, "dropping a capability from the bounding set", libc::PR_CAPBSET_DROP, capability);
        }
        prctl(batch, "setting secure bits", libc::PR_SET_SECUREBITS, (own.secure_bits | STEADY).into());
        put_ids(batch, record, own);
        let last = CAP_SETPCAP;
        capset(batch, record.permitted | last, record.effective | last, record.inheritable);
        let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs();
        prctl(batch, "clearing ambient capabilities", libc::PR_CAP_AMBIENT, clear.into());
        for capability in bits(record.ambient) {
            let raise = libc::PR_CAP_AMBIENT_RAISE.unsigned_abs();
            let args = [
                Arg::from(libc::PR_CAP_AMBIENT),
                Arg::Value(raise.into()),
                Arg::Value(capability),
                Arg::Value(0),
                Arg::Value(0),
            ];
            batch.call("raising an ambient capability", libc::SYS_prctl, &args);
        }
        prctl(batch, "setting secure bits", libc::PR_SET_SECUREBITS, record.secure_bits.into());
        capset(batch, record.permitted, record.effective, record.inheritable);
    }
    if record.no_new_privs {
        prctl(batch, "setting no_new_privs", libc::PR_SET_NO_NEW_PRIVS, 1);
    }
}

impl TaskKind for Creds {
    type Record = CredsRecord;
    type Asked = usize;
    const SITE: Site = Site::Thread;

    fn survey(survey: &mut Survey<'_>, task: &TaskView) -> Result<()> {
        if survey.own.credentials.is_none() {
            survey.own.credentials = Some(own_credentials()?);
        }
        let Some(own) = survey.own.credentials.clone() else { return Ok(()) };
        // The secure bits are not to be seen yet; they are asked for under the freeze.
        let record =
            from_status(&task.status, own.secure_bits).ok_or_else(|| model::no_reply(task, "credentials in status"))?;
        for refusal in refusals(task.tid, &record, &own)? {
            survey.refuse(refusal);
        }
        Ok(())
    }

    fn ask(_task: &TaskView, batch: &mut Batch) -> usize {
        batch.try_call(libc::SYS_prctl, &[Arg::from(libc::PR_GET_SECUREBITS)])
    }

    fn capture(_cx: &mut Capture<'_>, task: &TaskView, asked: usize, replies: &Replies) -> Result<CredsRecord> {
        let secure_bits = model::low32(super::reply(task, replies, asked, "PR_GET_SECUREBITS")?);
        from_status(&task.status, secure_bits).ok_or_else(|| model::no_reply(task, "credentials in status"))
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: CredsRecord) -> Result<()> {
        if record.uids.len() != 4 || record.gids.len() != 4 {
            return Err(Error::Unsound(format!("task {task} has not four user and group numbers")));
        }
        let own = own_credentials()?;
        let record = as_shown_here(record, &own, own::may_set_groups());
        put(cx.batch(Stage::Credentials, task), &record, &own);
        Ok(())
    }

    fn obstacles(task: Tid, record: &CredsRecord) -> Result<Vec<Refusal>> {
        let own = own_credentials()?;
        let record = as_shown_here(record.clone(), &own, own::may_set_groups());
        refusals(task, &record, &own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, capabilities: u64) -> CredsRecord {
        CredsRecord {
            uids: vec![uid; 4],
            gids: vec![uid; 4],
            groups: vec![uid, 7],
            permitted: capabilities,
            effective: capabilities,
            bounding: 0xff,
            ..CredsRecord::default()
        }
    }

    fn everybody() -> Here {
        let all = || own::Numbers::parse("0 0 4294967295");
        Here { users: all(), groups: all(), may_set_groups: true }
    }

    #[test]
    fn in_a_namespace_only_its_numbers_can_be_given() {
        let alone = || own::Numbers::parse("5 5 1");
        let here = Here { users: alone(), groups: alone(), may_set_groups: false };
        let own = user(5, u64::MAX);
        assert_eq!(causes(&user(5, 1), &own, &here), Vec::<String>::new());
        let found = causes(&CredsRecord { groups: own.groups.clone(), ..user(0, 1) }, &own, &here);
        assert!(matches!(&found[..], [one] if one.contains("user 0")), "{found:?}");
        let found = causes(&CredsRecord { gids: vec![5, 6, 5, 5], ..own.clone() }, &own, &here);
        assert!(matches!(&found[..], [one] if one.contains("group 6")), "{found:?}");
        assert_eq!(causes(&CredsRecord { groups: vec![7, 8], ..own.clone() }, &own, &here).len(), 1);
    }

    #[test]
    fn the_same_credentials_take_no_call_and_no_right() {
        let (record, own) = (CredsRecord { groups: vec![7, 5], ..user(5, 0) }, user(5, 0));
        assert_eq!(causes(&record, &own, &everybody()), Vec::<String>::new());
        let mut batch = TaskBatch::default();
        put(&mut batch, &record, &own);
        assert!(batch.batch.is_empty());
    }

    #[test]
    fn what_this_user_may_not_give_is_named() {
        let root = user(0, CAP_SETUID | CAP_SETGID | CAP_SETPCAP);
        assert_eq!(causes(&user(5, 0), &root, &everybody()), Vec::<String>::new());
        assert_eq!(causes(&root, &user(5, 0), &everybody()).len(), 4);
        assert_eq!(causes(&user(0, 1), &root, &everybody()).len(), 1);
        assert_eq!(causes(&user(0, 0), &CredsRecord { no_new_privs: true, ..root }, &everybody()).len(), 1);
    }

    #[test]
    fn groups_that_cannot_be_set_are_told_by_their_number() {
        let (record, own) = (user(5, 0), CredsRecord { groups: vec![9, 9], ..user(5, 0) });
        assert_eq!(as_shown_here(record.clone(), &own, false), own);
        assert_eq!(as_shown_here(record.clone(), &own, true), record);
        let fewer = CredsRecord { groups: vec![9], ..own };
        assert_eq!(as_shown_here(record.clone(), &fewer, false), record);
    }

    #[test]
    fn status_with_odd_numbers_is_refused() {
        let text = b"Uid:\t1 2 3\nGid: 1 2 3 4\nGroups: \nCapInh: 0\nCapPrm: 0\nCapEff: 0\nCapBnd: 0\nCapAmb: 0\nNoNewPrivs: 0\n";
        assert_eq!(from_status(&KeyValues::parse(text), 0), None);
        assert!(own_credentials().is_ok());
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record =
            CredsRecord { ambient: 1 << 40, secure_bits: 0x2f, no_new_privs: true, ..user(u32::MAX, u64::MAX) };
        assert_eq!(CredsRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
