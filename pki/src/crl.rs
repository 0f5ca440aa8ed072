//! The certificate revocation lists of the issuing CA and of the root (RFC 5280 5).
//!
//! Each covers everything its CA issued, so none has an issuing distribution point: a list that
//! says less than all would need one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason as CrlReason, RevokedCertParams,
    SerialNumber,
};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, lock};
use crate::ca::{CaKey, Issuing, Root, key_identifier};
use crate::error::Error;
use crate::failpoint;
use crate::issue::{asn1_time, base64_bytes};
use crate::record::{self, key};
use crate::revoke::{RevocationReason, RevokedEntry};
use crate::serial::Serial;
use crate::signer::{RcgenKey, Turn};
use crate::store::{self, Outcome, Revision, Txn};
use crate::time::UnixTime;

/// How long a list is good, and when it is rebuilt even though nothing changed, so that nobody
/// meets an expired one.
#[derive(Clone, Copy)]
struct Periods {
    /// What `nextUpdate` promises.
    life: Duration,
    refresh: Duration,
}

const ISSUING: Periods =
    Periods { life: Duration::from_secs(3_600), refresh: Duration::from_secs(900) };
/// The root's key is opened rarely: it only says whether the issuing CA is good.
const ROOT: Periods =
    Periods { life: Duration::from_secs(7 * 86_400), refresh: Duration::from_secs(86_400) };
/// Times a builder in another process may win before this one gives up.
const ATTEMPTS: usize = 8;
/// How far a list may be ahead of a caller's clock, which was read before the caller waited for
/// whoever made the list.
const AHEAD: Duration = Duration::from_secs(30);

/// A revocation list with its number and times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crl {
    /// Rises with every list, also across restarts.
    pub number: u64,
    /// When it was made.
    pub this_update: UnixTime,
    /// When a newer one is promised.
    pub next_update: UnixTime,
    /// How many certificates it lists.
    pub entries: usize,
    /// The list, DER.
    #[serde(with = "base64_bytes")]
    pub der: Vec<u8>,
    /// The revision of the trigger key it covers.
    #[serde(default)]
    covers: Revision,
}

impl Crl {
    /// None that anybody may have: the next one gets a number above this.
    pub(crate) fn outdated(number: u64) -> Self {
        let long_ago = UnixTime::from_secs(0);
        Self {
            number,
            this_update: long_ago,
            next_update: long_ago,
            entries: 0,
            der: Vec::new(),
            covers: Revision::default(),
        }
    }

    /// Whether it says what it should at `now`: everything up to this revision of the trigger key.
    fn is_current(&self, wanted: Revision, refresh: Duration, now: UnixTime) -> bool {
        let fresh = self.this_update.minus(AHEAD)..self.this_update.plus(refresh);
        self.covers >= wanted && fresh.contains(&now)
    }
}

/// The lists in use, by the short name of their CA.
#[derive(Debug, Default)]
pub(crate) struct Lists(Mutex<BTreeMap<String, Arc<Current>>>);

/// One CA's list. One caller makes it at a time; who waits for that takes the list that was made
/// meanwhile, if it says what the caller came for.
#[derive(Debug, Default)]
struct Current {
    latest: Mutex<Option<Arc<Crl>>>,
    turn: Turn,
}

impl Lists {
    fn of(&self, issuer_id: &str) -> Arc<Current> {
        Arc::clone(lock(&self.0).entry(issuer_id.to_owned()).or_default())
    }

    /// Keeps the lists of these CAs only.
    pub(crate) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        lock(&self.0).retain(|issuer_id, _| is_there(issuer_id));
    }
}

impl Current {
    fn latest(&self, wanted: Revision, refresh: Duration, now: UnixTime) -> Option<Arc<Crl>> {
        let latest = lock(&self.latest);
        latest.as_ref().filter(|crl| crl.is_current(wanted, refresh, now)).cloned()
    }

    fn use_list(&self, crl: Crl) -> Arc<Crl> {
        let crl = Arc::new(crl);
        *lock(&self.latest) = Some(Arc::clone(&crl));
        crl
    }
}

impl Authority {
    /// The current revocation list of the issuing CA, rebuilt when a revocation or its age
    /// makes it stale. Certificates that have expired leave the list and the index behind it.
    ///
    /// # Errors
    /// When the store or the signer fails.
    pub fn crl(&self, now: UnixTime) -> Result<Arc<Crl>, Error> {
        self.issuing_crl(self.ca().current(), now)
    }

    /// The current revocation list of the root that runners pin, which says whether the issuing CA
    /// is good.
    ///
    /// # Errors
    /// When the store fails, or the root is kept offline and its list was not imported.
    pub fn root_crl(&self, now: UnixTime) -> Result<Arc<Crl>, Error> {
        self.list_of_root(self.ca().root(), now)
    }

    /// The current revocation list of the CA with this name in URLs; `None` when there is none.
    ///
    /// # Errors
    /// When the store or the signer fails.
    pub fn crl_at(&self, place: &str, now: UnixTime) -> Result<Option<Arc<Crl>>, Error> {
        let ca = self.ca();
        if let Some(issuing) = ca.issuing.iter().find(|issuing| issuing.place == place) {
            return self.issuing_crl(issuing, now).map(Some);
        }
        let root = ca.roots.iter().find(|root| root.place == place);
        root.map(|root| self.list_of_root(root, now)).transpose()
    }

    fn issuing_crl(&self, issuing: &Issuing, now: UnixTime) -> Result<Arc<Crl>, Error> {
        let works = issuing.signer.trouble().is_none();
        self.current_crl(&issuing.id, works, ISSUING, now, |listing| build(issuing.key(), listing))
    }

    fn list_of_root(&self, root: &Root, now: UnixTime) -> Result<Arc<Crl>, Error> {
        if root.offline {
            let der = root.crl.as_ref().ok_or(Error::NoRootList)?;
            return imported(der).map(Arc::new);
        }
        self.current_crl(&root.id, root.works(), ROOT, now, |listing| {
            let signer = self.root_signer(&root.id)?;
            let key = CaKey { certificate: &root.der, signer: signer.as_ref(), place: &root.place };
            build(key, listing)
        })
    }

    fn current_crl(
        &self,
        issuer_id: &str,
        works: bool,
        periods: Periods,
        now: UnixTime,
        build: impl Fn(&Listing<'_>) -> Result<Vec<u8>, Error>,
    ) -> Result<Arc<Crl>, Error> {
        let wanted = self.crl_trigger(issuer_id)?;
        let current = self.lists.of(issuer_id);
        if let Some(crl) = current.latest(wanted, periods.refresh, now) {
            return Ok(crl);
        }
        let made = current.turn.take(works, now).and_then(|_turn| {
            if let Some(crl) = current.latest(wanted, periods.refresh, now) {
                return Ok(crl);
            }
            let made = self.make_crl(issuer_id, &current, periods, now, &build);
            current.turn.note(&made, now);
            made
        });
        match made {
            // Without its key a CA goes on with the list it has: that is no worse than none.
            Err(error) if error.is_of_token() => {
                let kept = record::read::<Crl>(self.store.as_ref(), &key::crl(issuer_id))?;
                let good = kept.filter(|kept| now < kept.value.next_update);
                good.map(|kept| Arc::new(kept.value)).ok_or(error)
            }
            made => made,
        }
    }

    fn make_crl(
        &self,
        issuer_id: &str,
        current: &Current,
        periods: Periods,
        now: UnixTime,
        build: &impl Fn(&Listing<'_>) -> Result<Vec<u8>, Error>,
    ) -> Result<Arc<Crl>, Error> {
        let crl_key = key::crl(issuer_id);
        for _ in 0..ATTEMPTS {
            // The trigger is read before the index: what comes in between makes this one stale.
            let covers = self.crl_trigger(issuer_id)?;
            let stored = record::read::<Crl>(self.store.as_ref(), &crl_key)?;
            if let Some(stored) = &stored
                && stored.value.is_current(covers, periods.refresh, now)
            {
                return Ok(current.use_list(stored.value.clone()));
            }
            let number = stored.as_ref().map_or(0, |stored| stored.value.number) + 1;
            let prefix = key::revoked_of(issuer_id);
            let mut txn = Txn::new();
            let mut listed = Vec::new();
            for (revoked_key, entry) in store::scan(self.store.as_ref(), &prefix)? {
                let revoked = record::decode::<RevokedEntry>(&revoked_key, &entry)?.value;
                if revoked.not_after < now {
                    txn.delete(revoked_key);
                } else {
                    listed.push(revoked);
                }
            }
            let this_update = now.floor_to_second();
            let next_update = this_update.plus(periods.life);
            let listing = Listing { number, revoked: &listed, this_update, next_update };
            let der = build(&listing)?;
            let crl = Crl { number, this_update, next_update, entries: listed.len(), der, covers };
            match &stored {
                Some(stored) => txn.at(&crl_key, stored.revision),
                None => txn.absent(&crl_key),
            };
            txn.put(&crl_key, record::encode(&crl));
            AuditEvent::new("crl.publish", &Actor::System, now)
                .reason(format!("number {number}, {} entries", crl.entries))
                .record(&mut txn);
            failpoint::hit("crl.before_commit");
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                failpoint::hit("crl.after_commit");
                return Ok(current.use_list(crl));
            }
        }
        Err(Error::Contended("the revocation list"))
    }

    /// The revision of the last revocation by a CA.
    fn crl_trigger(&self, issuer_id: &str) -> Result<Revision, Error> {
        Ok(self.store.get(&key::crl_trigger(issuer_id))?.map_or(0, |entry| entry.revision))
    }
}

/// A list that was made where the root's key is.
pub(crate) fn imported(der: &[u8]) -> Result<Crl, Error> {
    let unreadable = |_| Error::Encode("the imported list does not parse".to_owned());
    let (_, list) = CertificateRevocationList::from_der(der).map_err(unreadable)?;
    let at = |time: ASN1Time| UnixTime::from_secs(time.timestamp());
    Ok(Crl {
        number: list.crl_number().and_then(|number| number.try_into().ok()).unwrap_or(0),
        this_update: at(list.last_update()),
        next_update: list.next_update().map_or(UnixTime::MAX, at),
        entries: list.iter_revoked_certificates().count(),
        der: der.to_vec(),
        covers: Revision::default(),
    })
}

/// What a list says.
struct Listing<'a> {
    number: u64,
    revoked: &'a [RevokedEntry],
    this_update: UnixTime,
    next_update: UnixTime,
}

fn build(ca: CaKey<'_>, listing: &Listing<'_>) -> Result<Vec<u8>, Error> {
    let key = RcgenKey::new(ca.signer)?;
    let issuer = rcgen::Issuer::from_ca_cert_der(&ca.certificate.into(), &key)?;
    let revoked_certs = listing
        .revoked
        .iter()
        .map(|entry| {
            Ok(RevokedCertParams {
                serial_number: serial_number(&entry.serial),
                revocation_time: asn1_time(entry.at)?.to_datetime(),
                reason_code: reason_code(entry.reason),
                invalidity_date: None,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let params = CertificateRevocationListParams {
        this_update: asn1_time(listing.this_update)?.to_datetime(),
        next_update: asn1_time(listing.next_update)?.to_datetime(),
        crl_number: SerialNumber::from(listing.number),
        issuing_distribution_point: None,
        revoked_certs,
        // The key identifier of the CA as its own certificate has it: another CA may have chosen it.
        key_identifier_method: key_identifier(ca.certificate)
            .map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified),
    };
    Ok(key.made(params.signed_by(&issuer))?.der().to_vec())
}

fn serial_number(serial: &Serial) -> SerialNumber {
    SerialNumber::from_slice(serial.as_bytes())
}

/// RFC 5280 5.3.1: "unspecified" is said by leaving the reason out.
fn reason_code(reason: RevocationReason) -> Option<CrlReason> {
    Some(match reason {
        RevocationReason::Unspecified => return None,
        RevocationReason::KeyCompromise => CrlReason::KeyCompromise,
        RevocationReason::AffiliationChanged => CrlReason::AffiliationChanged,
        RevocationReason::Superseded => CrlReason::Superseded,
        RevocationReason::CessationOfOperation => CrlReason::CessationOfOperation,
        RevocationReason::PrivilegeWithdrawn => CrlReason::PrivilegeWithdrawn,
    })
}
