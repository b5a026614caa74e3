//! Certificates of a job: who has none may neither give orders nor take part.
//!
//! They are made when the job is first run, signed by a key that is thrown away: nobody can make more. The coordinator's
//! is good for the coordinator alone, so that who has an agent's cannot pass for it.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};

use super::room::{Room, read_json, write_json};
use crate::failure::{Class, Failure, Result};
use crate::host::Host;

/// The name that the coordinator's certificate is for, wherever it runs.
pub(super) const COORDINATOR: &str = "coordinator.hdcr.internal";
/// And the agents'.
const AGENT: &str = "agent.hdcr.internal";

/// The certificate of one side, its key, and the one by which it knows the other side.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(super) authority: String,
    pub(super) certificate: String,
    pub(super) key: String,
}

/// Not the key.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// What an agent is started with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// Of which job.
    pub(crate) job: String,
    /// In which store: by the same path on all hosts.
    #[serde(with = "crate::paths")]
    pub(crate) store: PathBuf,
    pub(crate) identity: Identity,
}

/// The file of what an agent is started with.
pub(crate) fn for_agents(room: &Room) -> PathBuf {
    room.file("agent.json")
}

/// Reads what an agent is started with.
pub(crate) fn read(path: &Path) -> Result<Credentials> {
    read_json(path)?.ok_or_else(|| {
        Failure::usage(format!("there is no file {}", path.display()))
            .remedy("`hdcr job run` makes it in the store, as parallel/NAME/agent.json")
    })
}

/// The coordinator's identity. The certificates of the job are made when there are none.
pub(crate) fn of_coordinator(room: &Room, job: &str, store: &Path) -> Result<Identity> {
    let path = room.file("coordinator.json");
    let there: Option<Identity> = read_json(&path)?;
    match there {
        Some(identity) if for_agents(room).exists() => Ok(identity),
        _ => {
            let (coordinator, agent) = make().map_err(|error| {
                Failure::new(Class::Internal, "certificates", format!("making the certificates of a job: {error}"))
            })?;
            let agent = Credentials { job: job.to_owned(), store: store.to_owned(), identity: agent };
            write_json(&for_agents(room), &agent)?;
            write_json(&path, &coordinator)?;
            tracing::debug!(host = Host::here().called(), "certificates made");
            Ok(coordinator)
        }
    }
}

fn make() -> std::result::Result<(Identity, Identity), rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    authority.distinguished_name.push(DnType::CommonName, "hdcr job");
    let key = KeyPair::generate()?;
    let pem = authority.self_signed(&key)?.pem();
    let issuer = Issuer::new(authority, key);
    let side = |name: &str, usage| {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        Ok(Identity { authority: pem.clone(), certificate, key: key.serialize_pem() })
    };
    Ok((side(COORDINATOR, ExtendedKeyUsagePurpose::ServerAuth)?, side(AGENT, ExtendedKeyUsagePurpose::ClientAuth)?))
}

#[cfg(test)]
mod tests {
    use hdcr_image::JobName;

    use super::*;

    #[test]
    fn they_are_made_once_and_told_to_nobody() {
        let store = tempfile::tempdir().unwrap();
        let name = JobName::new("sim").unwrap();
        let room = Room::of(store.path(), &name);
        let _lock = room.take(&name).unwrap();
        let first = of_coordinator(&room, "sim", store.path()).unwrap();
        assert_eq!(of_coordinator(&room, "sim", store.path()).unwrap(), first);
        let agent = read(&for_agents(&room)).unwrap();
        assert_eq!((agent.job.as_str(), &agent.identity.authority), ("sim", &first.authority));
        assert_ne!(agent.identity.key, first.key);
        assert!(!format!("{agent:?}").contains("PRIVATE"));
        assert!(read(&room.file("none")).is_err_and(|failure| failure.class == Class::Usage));
    }
}
