//! The delegated signer: a key of its own whose certificate the CA issued for nothing but OCSP
//! (RFC 6960 4.2.2.2). The CA's own key signs no strangers' questions.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, lock};
use crate::ca::CaKey;
use crate::error::Error;
use crate::failpoint;
use crate::issue::{self, BACKDATE, CertRecord, Terms, base64_bytes};
use crate::record::{self, key};
use crate::serial::Serial;
use crate::signer::{FileSigner, KeyKind, Signer};
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

/// Nobody checks the signer's own status (id-pkix-ocsp-nocheck), so it lives shortly
/// (RFC 6960 4.2.2.2.1).
const LIFE: Duration = Duration::from_secs(14 * 86_400);
/// Times another process may win before this one gives up.
const ATTEMPTS: usize = 4;
const KEY_PURPOSE: &str = "ocsp/signer-key";

/// An opened signer.
#[derive(Debug)]
pub(super) struct Delegate {
    pub(super) certificate: Vec<u8>,
    pub(super) signer: FileSigner,
    pub(super) serial: Serial,
    not_before: UnixTime,
    pub(super) not_after: UnixTime,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct DelegateRecord {
    #[serde(with = "base64_bytes")]
    der: Vec<u8>,
    #[serde(with = "base64_bytes")]
    sealed_key: Vec<u8>,
    not_before: UnixTime,
    not_after: UnixTime,
}

impl Delegate {
    /// Two thirds of its life are good for signing; the rest is for those who kept an answer.
    fn is_fresh(&self, now: UnixTime) -> bool {
        let until = self.not_before.plus(self.not_after.since(self.not_before) * 2 / 3);
        (self.not_before..until).contains(&now)
    }
}

impl Authority {
    /// The signer for a CA's answers, by the CA's short name; the first call, every renewal and the
    /// revocation of the one before issue a certificate.
    pub(super) fn ocsp_delegate(
        &self,
        issuer_id: &str,
        now: UnixTime,
    ) -> Result<Arc<Delegate>, Error> {
        if let Some(delegate) = self.known_delegate(issuer_id, now)? {
            return Ok(delegate);
        }
        // One makes it; who waited for that finds it.
        let turn = lock(&self.ocsp).turns.entry(issuer_id.to_owned()).or_default().clone();
        let made = turn.take(self.key_works(issuer_id), now).and_then(|_turn| {
            if let Some(delegate) = self.known_delegate(issuer_id, now)? {
                return Ok(delegate);
            }
            let made = self.make_delegate(issuer_id, now);
            turn.note(&made, now);
            made
        });
        match made {
            // Without the CA's key the one there is goes on while it is good.
            Err(error) if error.is_of_token() => self.aged_delegate(issuer_id, now)?.ok_or(error),
            made => made,
        }
    }

    /// Whether the last use of a CA's key did not fail.
    fn key_works(&self, issuer_id: &str) -> bool {
        let ca = self.ca();
        match ca.issuing_of(issuer_id) {
            Some(issuing) => issuing.signer.trouble().is_none(),
            None => ca.root_of(issuer_id).is_some_and(|root| root.works()),
        }
    }

    /// A signer that should have a successor by now, and is good nevertheless.
    fn aged_delegate(
        &self,
        issuer_id: &str,
        now: UnixTime,
    ) -> Result<Option<Arc<Delegate>>, Error> {
        let known = lock(&self.ocsp).delegates.get(issuer_id).cloned();
        let delegate = match known {
            Some(known) => known,
            None => {
                let record_key = key::ocsp_signer(issuer_id);
                let stored = record::read::<DelegateRecord>(self.store.as_ref(), &record_key)?;
                let Some(stored) = stored else { return Ok(None) };
                self.remember(issuer_id, self.open_delegate(&stored.value)?)
            }
        };
        let good = (delegate.not_before..delegate.not_after).contains(&now)
            && !self.is_revoked(issuer_id, &delegate.serial)?;
        Ok(good.then_some(delegate))
    }

    fn make_delegate(&self, issuer_id: &str, now: UnixTime) -> Result<Arc<Delegate>, Error> {
        let ca = self.ca();
        let record_key = key::ocsp_signer(issuer_id);
        for _ in 0..ATTEMPTS {
            let stored = record::read::<DelegateRecord>(self.store.as_ref(), &record_key)?;
            if let Some(stored) = &stored {
                let delegate = self.open_delegate(&stored.value)?;
                if delegate.is_fresh(now) && !self.is_revoked(issuer_id, &delegate.serial)? {
                    return Ok(self.remember(issuer_id, delegate));
                }
            }
            let (record, certificate) = match (ca.issuing_of(issuer_id), ca.root_of(issuer_id)) {
                (Some(issuing), _) => {
                    self.new_delegate(issuing.key(), "OCSP", issuing.not_after, now)?
                }
                (None, Some(root)) => {
                    let signer = self.root_signer(issuer_id)?;
                    let key = CaKey {
                        certificate: &root.der,
                        signer: signer.as_ref(),
                        place: &root.place,
                    };
                    self.new_delegate(key, "Root OCSP", UnixTime::MAX, now)?
                }
                (None, None) => return Err(Error::not_found("CA", issuer_id)),
            };
            let mut txn = Txn::new();
            match &stored {
                Some(stored) => txn.at(&record_key, stored.revision),
                None => txn.absent(&record_key),
            };
            let cert_key = key::cert(issuer_id, &certificate.serial);
            txn.absent(&cert_key)
                .put(cert_key, record::encode(&certificate))
                .put(&record_key, record::encode(&record));
            AuditEvent::new("cert.issue", &Actor::System, now)
                .serial(&certificate.serial)
                .reason("OCSP signer")
                .record(&mut txn);
            failpoint::hit("ocsp.before_commit");
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                failpoint::hit("ocsp.after_commit");
                let delegate = self.open_delegate(&record)?;
                return Ok(self.remember(issuer_id, delegate));
            }
        }
        Err(Error::Contended("the OCSP signer"))
    }

    fn known_delegate(
        &self,
        issuer_id: &str,
        now: UnixTime,
    ) -> Result<Option<Arc<Delegate>>, Error> {
        let known = lock(&self.ocsp).delegates.get(issuer_id).cloned();
        let Some(delegate) = known.filter(|delegate| delegate.is_fresh(now)) else {
            return Ok(None);
        };
        // Clients do not ask about the signer itself, so nobody but us sees to that.
        Ok((!self.is_revoked(issuer_id, &delegate.serial)?).then_some(delegate))
    }

    fn is_revoked(&self, issuer_id: &str, serial: &Serial) -> Result<bool, Error> {
        Ok(self.store.get(&key::revoked(issuer_id, serial))?.is_some())
    }

    fn new_delegate(
        &self,
        ca: CaKey<'_>,
        name: &str,
        ca_end: UnixTime,
        now: UnixTime,
    ) -> Result<(DelegateRecord, CertRecord), Error> {
        let signer = FileSigner::generate(KeyKind::beside(ca.signer.algorithm()))?;
        let now = now.floor_to_second();
        let (serial, mark) = self.with_entropy(|entropy| {
            Ok((Serial::random(entropy)?, crate::entropy::random_text(entropy, 6)?))
        })?;
        let terms = Terms {
            serial,
            not_before: now.minus(BACKDATE),
            not_after: now.plus(LIFE).min(ca_end),
            status_url: None,
        };
        let organisation = &self.settings().trust_domain;
        let name = format!("{name} {mark}");
        let der = issue::ocsp_signer(ca, &name, organisation, &terms, signer.public_key_der())?;
        let certificate = CertRecord::from_der(der.clone(), None)?;
        let sealed_key =
            self.with_entropy(|entropy| self.sealer.seal(KEY_PURPOSE, signer.pkcs8(), entropy))?;
        let record = DelegateRecord {
            der,
            sealed_key,
            not_before: terms.not_before,
            not_after: terms.not_after,
        };
        Ok((record, certificate))
    }

    fn open_delegate(&self, record: &DelegateRecord) -> Result<Delegate, Error> {
        let pkcs8 = self.sealer.open(KEY_PURPOSE, &record.sealed_key)?;
        Ok(Delegate {
            certificate: record.der.clone(),
            signer: FileSigner::from_pkcs8(pkcs8)?,
            serial: CertRecord::from_der(record.der.clone(), None)?.serial,
            not_before: record.not_before,
            not_after: record.not_after,
        })
    }

    fn remember(&self, issuer_id: &str, delegate: Delegate) -> Arc<Delegate> {
        let delegate = Arc::new(delegate);
        lock(&self.ocsp).delegates.insert(issuer_id.to_owned(), Arc::clone(&delegate));
        delegate
    }
}
