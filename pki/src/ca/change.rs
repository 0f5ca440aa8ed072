//! The CA's life: first start, request, rotation, retirement.
//!
//! Each is a function from the record to the next record; [`Authority`] commits the next one with
//! its audit event and takes it into use.

use std::time::Duration;

use serde::Serialize;

use super::make::{self, Maker};
use super::record::{self, CaRecord, IssuingRecord, Octets, PendingRecord, RootRecord};
use super::{Ca, CaKey};
use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, Draws, lock};
use crate::error::Error;
use crate::failpoint;
use crate::issue::{self, sha256_hex};
use crate::record::{self as records, key};
use crate::signer::KeyKind;
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;
use crate::validate;

/// How long what an issuing CA issued may live after it stopped: a day is the longest life of a
/// certificate, and renewal has its grace.
const OVERLAP: Duration = Duration::from_secs(25 * 3_600);
/// Roots in force at most: the old and the new.
const MAX_ROOTS: usize = 2;
/// Names of forgotten issuing CAs kept at most, so that what they issued is found on record.
const MAX_FORGOTTEN: usize = 64;
/// Revocations of one forgotten CA that are deleted by one call.
const FORGOTTEN_AT_ONCE: usize = 1_024;
/// Issuing CAs on record at most; each is checked for with every certificate.
const MAX_ISSUING: usize = 8;

/// What a change of the CA did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaChange {
    /// SHA-256 of the root that runners pin, hexadecimal.
    pub root_sha256: String,
    /// The CA that issues from now on.
    pub issuing: String,
    /// SHA-256 of a second root, which runners learn to know, hexadecimal.
    pub next_root_sha256: Option<String>,
}

/// What an import brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The CA as it is now.
    pub change: CaChange,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl CaRecord {
    /// A root and an issuing CA below it; nothing is stored yet.
    pub(crate) fn create(maker: Maker<'_>, kind: KeyKind) -> Result<Self, Error> {
        let mut maker = maker;
        let (root, signer) = maker.root(kind, Some("root"))?;
        let by = CaKey { certificate: &root.der, signer: signer.as_ref(), place: &root.place };
        let issuing = maker.issuing(kind, by, Some("issuing"))?;
        let (roots, issuing) = (vec![root], vec![issuing]);
        Ok(Self { roots, issuing, pending: None, forgotten: Vec::new(), created: maker.now })
    }

    /// A CA that has nothing but a request.
    pub(super) fn awaiting(pending: PendingRecord) -> Self {
        let created = pending.created;
        Self {
            roots: Vec::new(),
            issuing: Vec::new(),
            pending: Some(pending),
            forgotten: Vec::new(),
            created,
        }
    }

    /// Nothing of it is there but a request.
    pub(super) fn is_awaiting(&self) -> bool {
        self.issuing.is_empty()
    }

    /// The request, PEM.
    pub(super) fn pending_pem(&self) -> Option<String> {
        self.pending.as_ref().map(|pending| issue::pem(&pending.csr, "CERTIFICATE REQUEST"))
    }

    /// Another issuing CA below the newest root whose key is here; with `root` below a new root,
    /// which the old one certifies.
    fn rotate(&mut self, maker: &mut Maker<'_>, kind: KeyKind, root: bool) -> Result<(), Error> {
        let newest = self.roots.last().ok_or(Error::RootOffline)?;
        let signer = newest.open(maker.sealer)?.ok_or(Error::RootOffline)?;
        let by = CaKey { certificate: &newest.der, signer: signer.as_ref(), place: &newest.place };
        let issuing = if root {
            self.room_for_root()?;
            let (mut next, next_signer) = maker.root(kind, None)?;
            // What we made ourselves can be written again.
            next.cross.extend(maker.cross(&next.der, by)?.map(Octets));
            let by =
                CaKey { certificate: &next.der, signer: next_signer.as_ref(), place: &next.place };
            let issuing = maker.issuing(kind, by, None)?;
            self.roots.push(next);
            issuing
        } else {
            maker.issuing(kind, by, None)?
        };
        self.succeed(issuing, maker.now)
    }

    pub(super) fn room_for_root(&self) -> Result<(), Error> {
        if self.roots.len() < MAX_ROOTS {
            return Ok(());
        }
        Err(Error::Invalid(
            "two roots are in force already: retire the older one with `runnel ca retire` when all \
             runners know the newer"
                .to_owned(),
        ))
    }

    /// The given one issues from now on; the one before stays until what it issued has ended.
    pub(super) fn succeed(&mut self, issuing: IssuingRecord, now: UnixTime) -> Result<(), Error> {
        if self.issuing.len() >= MAX_ISSUING {
            return Err(Error::Invalid(format!(
                "{MAX_ISSUING} issuing CAs are on record, the older of them for the certificates \
                 they issued: wait until some of those have ended (`runnel ca status`)"
            )));
        }
        if let Some(before) = self.issuing.first_mut() {
            let (_, end) = validate::path::validity(&record::parse(&before.der)?);
            before.ends = Some(now.plus(OVERLAP).min(end));
        }
        self.issuing.insert(0, issuing);
        Ok(())
    }

    /// Removes issuing CAs whose certificates have ended; their short names.
    pub(super) fn prune(&mut self, now: UnixTime) -> Result<Vec<String>, Error> {
        let (ended, issuing) = std::mem::take(&mut self.issuing)
            .into_iter()
            .partition(|issuing: &IssuingRecord| issuing.ends.is_some_and(|ends| ends < now));
        self.issuing = issuing;
        let ended: Vec<IssuingRecord> = ended;
        let ids: Vec<String> =
            ended.iter().map(|issuing| make::id_of(&issuing.der)).collect::<Result<_, _>>()?;
        self.forgotten.extend(ids.iter().cloned());
        let excess = self.forgotten.len().saturating_sub(MAX_FORGOTTEN);
        self.forgotten.drain(..excess);
        Ok(ids)
    }

    /// The oldest root leaves, and with it what was only there for those who knew nothing else.
    fn retire(&mut self, now: UnixTime) -> Result<(), Error> {
        let [oldest, _, ..] = self.roots.as_slice() else {
            return Err(Error::Invalid(
                "there is one root, which cannot retire: bring in another first with `runnel ca \
                 rotate --root` or `runnel ca import`"
                    .to_owned(),
            ));
        };
        let (oldest, parsed) = (make::id_of(&oldest.der)?, record::parse(&oldest.der)?);
        let name = validate::name::render(parsed.subject());
        self.prune(now)?;
        let below = self.issuing.iter().filter(|issuing| issuing.root == oldest);
        if let Some(last) = below.map(|issuing| issuing.ends).max() {
            return Err(Error::Invalid(match last {
                Some(ends) => format!(
                    "certificates issued below {name} may live until {ends}: retire it after that"
                ),
                None => format!(
                    "the CA that issues is below {name}: rotate it first with `runnel ca rotate`"
                ),
            }));
        }
        self.roots.remove(0);
        for root in &mut self.roots {
            root.cross.clear();
        }
        Ok(())
    }

    pub(super) fn change(&self) -> Result<CaChange, Error> {
        let hash = |root: Option<&RootRecord>| root.map(|root| sha256_hex(&root.der));
        let issuing =
            self.issuing.first().map(|issuing| record::parse(&issuing.der)).transpose()?;
        Ok(CaChange {
            root_sha256: hash(self.roots.first()).unwrap_or_default(),
            issuing: issuing
                .map(|issuing| validate::name::render(issuing.subject()))
                .unwrap_or_default(),
            next_root_sha256: hash(self.roots.get(1)),
        })
    }
}

impl Authority {
    /// Another issuing CA, and with `root` another root, from now on. Nothing breaks: what was
    /// issued before stays valid until it ends, and the old root certifies the new one for those
    /// who know only the old one.
    ///
    /// # Errors
    /// [`Error::RootOffline`] when the root's key is not here; [`Error::Invalid`] when two roots
    /// are in force already.
    pub fn ca_rotate(
        &self,
        kind: KeyKind,
        root: bool,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<CaChange, Error> {
        let action = if root { "ca.rotate_root" } else { "ca.rotate" };
        self.change_ca(action, actor, now, |record, maker| {
            record.prune(now)?;
            record.rotate(maker, kind, root)?;
            record.change()
        })
    }

    /// The oldest root leaves.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is the only one or certificates in use depend on it.
    pub fn ca_retire(&self, actor: &Actor, now: UnixTime) -> Result<CaChange, Error> {
        self.change_ca("ca.retire_root", actor, now, |record, maker| {
            record.retire(maker.now)?;
            record.change()
        })
    }

    /// A request (PKCS#10, PEM) for a certificate of another issuing CA, to be signed elsewhere. The
    /// same is given again until its certificate is imported; `anew` makes another.
    ///
    /// # Errors
    /// When the store fails.
    pub fn ca_request(
        &self,
        kind: KeyKind,
        common_name: Option<&str>,
        anew: bool,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<String, Error> {
        if !anew && let Some(pem) = self.ca_record()?.value.pending_pem() {
            return Ok(pem);
        }
        self.change_ca("ca.request", actor, now, |record, maker| {
            let pending = maker.request(kind, common_name)?;
            let pem = issue::pem(&pending.csr, "CERTIFICATE REQUEST");
            record.pending = Some(pending);
            Ok(pem)
        })
    }

    /// Forgets issuing CAs with their keys when all that they issued has ended. Returns how many.
    ///
    /// # Errors
    /// When the store fails.
    pub fn ca_prune(&self, now: UnixTime) -> Result<usize, Error> {
        let ended = |ca: &Ca| {
            ca.issuing.iter().filter(|issuing| issuing.ends.is_some_and(|ends| ends < now)).count()
        };
        let count = ended(&self.ca());
        if count > 0 {
            self.change_ca("ca.forget", &Actor::System, now, |record, _| record.prune(now))?;
        }
        self.forget_revocations()?;
        Ok(count)
    }

    /// What forgotten CAs had revoked: all of it has ended, and no list says it any more.
    fn forget_revocations(&self) -> Result<(), Error> {
        let ca = self.ca();
        let is_here = |id: &&String| ca.issuing_of(id).is_some() || ca.root_of(id).is_some();
        for id in ca.forgotten.iter().filter(|id| !is_here(id)) {
            let page = self.store.range(&key::revoked_of(id), None, FORGOTTEN_AT_ONCE)?;
            if page.is_empty() {
                continue;
            }
            let mut txn = Txn::new();
            txn.delete(key::crl_trigger(id));
            for (revoked_key, _) in page {
                txn.delete(revoked_key);
            }
            self.store.transact(txn)?;
        }
        Ok(())
    }

    pub(super) fn ca_record(&self) -> Result<records::Stored<CaRecord>, Error> {
        records::read(self.store.as_ref(), key::CA)?
            .ok_or_else(|| Error::not_found("record", key::CA))
    }

    pub(super) fn change_ca<T>(
        &self,
        action: &'static str,
        actor: &Actor,
        now: UnixTime,
        change: impl FnOnce(&mut CaRecord, &mut Maker<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        // What is in use is what was stored last.
        let _turn = lock(&self.ca_turn);
        let stored = self.ca_record()?;
        let before = stored.value;
        let mut next = before.clone();
        let settings = self.settings();
        let mut entropy = Draws(self);
        let taken = before.public_keys()?;
        let sealer = &self.sealer;
        let mut maker = Maker { settings: &settings, sealer, entropy: &mut entropy, now, taken };
        let result = change(&mut next, &mut maker)?;
        let ca = next.load(&self.sealer)?;
        let mut txn = Txn::new();
        // What nobody signs any more goes with its CA.
        for gone in &before.issuing {
            if !next.issuing.iter().any(|issuing| issuing.der == gone.der) {
                let id = make::id_of(&gone.der)?;
                txn.delete(key::ocsp_signer(&id)).delete(key::crl(&id));
                txn.delete(key::crl_trigger(&id));
            }
        }
        self.put_cas_on_record(&ca, &mut txn)?;
        txn.at(key::CA, stored.revision).put(key::CA, records::encode(&next));
        let name = next.change()?.issuing;
        AuditEvent::new(action, actor, now).reason(name).record(&mut txn);
        failpoint::hit("ca.before_change");
        match self.store.transact(txn)? {
            Outcome::Committed(_) => {
                failpoint::hit("ca.after_change");
                self.use_ca(ca);
                Ok(result)
            }
            Outcome::Conflict(_) => Err(Error::Contended("the CA")),
        }
    }
}
