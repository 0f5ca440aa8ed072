//! Records of the store: JSON values (readable with `sqlite3`), and where each kind lives.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::store::{Entry, Revision, Store};

/// A parsed record and the revision to condition its change on.
#[derive(Clone, Debug)]
pub(crate) struct Stored<T> {
    pub(crate) value: T,
    pub(crate) revision: Revision,
}

/// Serialises a record. The record types hold only what JSON can say, so this cannot fail.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, entry: &Entry) -> Result<Stored<T>, Error> {
    let value = serde_json::from_slice(&entry.value)
        .map_err(|cause| Error::Damaged { key: key.to_owned(), cause: cause.to_string() })?;
    Ok(Stored { value, revision: entry.revision })
}

pub(crate) fn read<T: DeserializeOwned>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<Stored<T>>, Error> {
    store.get(key)?.map(|entry| decode(key, &entry)).transpose()
}

/// Key layout. Times are zero-padded so that keys sort by them.
pub(crate) mod key {
    use std::net::IpAddr;

    use crate::serial::Serial;
    use crate::time::UnixTime;

    pub(crate) const SEAL_CHECK: &str = "seal/check";
    pub(crate) const CA: &str = "ca/current";
    pub(crate) const TOKEN: &str = "token/";
    pub(crate) const LEASE: &str = "lease/";
    pub(crate) const DUE: &str = "due/";
    pub(crate) const ENDED: &str = "ended/";
    pub(crate) const CERT: &str = "cert/";
    pub(crate) const SPKI: &str = "spki/";
    pub(crate) const ADDRESS: &str = "addr/";
    pub(crate) const REVOKED: &str = "revoked/";
    pub(crate) const HOLDER: &str = "holder/";
    pub(crate) const SITE: &str = "site/";
    pub(crate) const JOB: &str = "job/";
    pub(crate) const ROLE: &str = "role/";
    pub(crate) const PENDING: &str = "pending/";
    pub(crate) const BARRED_SPKI: &str = "barred-spki/";
    pub(crate) const BARRED_RUN: &str = "barred-run/";
    pub(crate) const JWT: &str = "jwt/";
    pub(crate) const JWT_DUE: &str = "jwt-due/";
    /// Tokens of CI platforms that were issued before are refused.
    pub(crate) const JWT_FLOOR: &str = "jwt-floor";
    /// The policy in force, and how many there were before it.
    pub(crate) const POLICY: &str = "policy/current";
    /// Which revocation journal belongs to the store.
    pub(crate) const JOURNAL: &str = "journal/epoch";
    /// Where the journal was kept the last time.
    pub(crate) const JOURNAL_PLACES: &str = "journal/places";
    /// The store came out of a backup and was not compared with the journal since.
    pub(crate) const RESTORED: &str = "journal/restored";
    /// What is left to be done after the store was brought up to its journal.
    pub(crate) const REPLAY: &str = "journal/replay";

    pub(crate) fn token(id: &str) -> String {
        format!("{TOKEN}{id}")
    }
    /// A lease that waits for an operator.
    pub(crate) fn pending(id: &str) -> String {
        format!("{PENDING}{id}")
    }
    pub(crate) fn lease(id: &str) -> String {
        format!("{LEASE}{id}")
    }
    /// Live leases by their next deadline.
    pub(crate) fn due(at: UnixTime, id: &str) -> String {
        format!("{DUE}{:020}/{id}", at.micros().max(0))
    }
    /// The deadline and lease of a [`due`] key.
    pub(crate) fn parse_due(due: &str) -> Option<(UnixTime, &str)> {
        let (micros, id) = due.strip_prefix(DUE)?.split_once('/')?;
        Some((UnixTime::from_micros(micros.parse().ok()?), id))
    }
    /// Ended leases by their end, so that old ones are found without a scan.
    pub(crate) fn ended(at: UnixTime, id: &str) -> String {
        format!("{ENDED}{:020}/{id}", at.micros().max(0))
    }
    /// The end and lease of an [`ended`] key.
    pub(crate) fn parse_ended(ended: &str) -> Option<(UnixTime, &str)> {
        let (micros, id) = ended.strip_prefix(ENDED)?.split_once('/')?;
        Some((UnixTime::from_micros(micros.parse().ok()?), id))
    }
    pub(crate) fn cert(issuer: &str, serial: &Serial) -> String {
        format!("{CERT}{issuer}/{serial}")
    }
    pub(crate) fn spki(spki_sha256: &str, lease: &str) -> String {
        format!("{SPKI}{spki_sha256}/{lease}")
    }
    pub(crate) fn address(pool: &str, address: IpAddr) -> String {
        match address {
            IpAddr::V4(v4) => format!("{ADDRESS}{pool}/4/{:08x}", u32::from(v4)),
            IpAddr::V6(v6) => format!("{ADDRESS}{pool}/6/{:032x}", u128::from(v6)),
        }
    }
    /// The lease of a peer that proves itself with a shared key, by its identity's digest.
    pub(crate) fn holder(digest: &str) -> String {
        format!("{HOLDER}{digest}")
    }
    pub(crate) fn revoked(issuer: &str, serial: &Serial) -> String {
        format!("{REVOKED}{issuer}/{serial}")
    }
    pub(crate) fn revoked_of(issuer: &str) -> String {
        format!("{REVOKED}{issuer}/")
    }
    /// Rewritten by every revocation: its revision says whether a CRL is current.
    pub(crate) fn crl_trigger(issuer: &str) -> String {
        format!("crl-trigger/{issuer}")
    }
    pub(crate) fn crl(issuer: &str) -> String {
        format!("crl/{issuer}")
    }
    /// The delegated OCSP signer of a CA.
    pub(crate) fn ocsp_signer(issuer: &str) -> String {
        format!("ocsp-signer/{issuer}")
    }
    /// Live leases of a CI run, by the digests of the run's name and of the job's.
    pub(crate) fn job(run: &str, job: &str, lease: &str) -> String {
        format!("{JOB}{run}/{job}/{lease}")
    }
    /// Where the live leases of a CI run are.
    pub(crate) fn run_leases(run: &str) -> String {
        format!("{JOB}{run}/")
    }
    /// Where the live leases of one job are.
    pub(crate) fn job_leases(run: &str, job: &str) -> String {
        format!("{JOB}{run}/{job}/")
    }
    /// Where the live leases of a role are.
    pub(crate) fn role_leases(role: &str) -> String {
        format!("{ROLE}{role}/")
    }
    /// A live lease of a role.
    pub(crate) fn role_lease(role: &str, lease: &str) -> String {
        format!("{ROLE}{role}/{lease}")
    }
    /// A spent token of a CI platform.
    pub(crate) fn jwt(digest: &str) -> String {
        format!("{JWT}{digest}")
    }
    /// Spent tokens by the time from which they are refused anyhow.
    pub(crate) fn jwt_due(until: UnixTime, digest: &str) -> String {
        format!("{JWT_DUE}{:020}/{digest}", until.micros().max(0))
    }
    /// The time and digest of a [`jwt_due`] key.
    pub(crate) fn parse_jwt_due(due: &str) -> Option<(UnixTime, &str)> {
        let (micros, digest) = due.strip_prefix(JWT_DUE)?.split_once('/')?;
        Some((UnixTime::from_micros(micros.parse().ok()?), digest))
    }
    /// Where the audit trail begins once records were forgotten.
    pub(crate) const AUDIT_BEGINNING: &str = "audit-beginning";

    /// How far the audit trail was brought to a place elsewhere.
    pub(crate) fn audit_sink(name: &str) -> String {
        format!("audit-sink/{name}")
    }
    /// Which lease a site has or had last.
    pub(crate) fn site(name: &str) -> String {
        format!("{SITE}{name}")
    }
    /// A public key that gets no lease.
    pub(crate) fn barred_spki(spki_sha256: &str) -> String {
        format!("{BARRED_SPKI}{spki_sha256}")
    }
    /// A CI run that gets no lease, by the digest of its name.
    pub(crate) fn barred_run(digest: &str) -> String {
        format!("{BARRED_RUN}{digest}")
    }
    pub(crate) fn server(name: &str) -> String {
        format!("server/{name}")
    }
}
