//! The CA's life: first start, a request and the import of its certificate, rotation, retirement.
//!
//! Each is a function from the record to the next record; [`Authority`] commits the next one with
//! its audit event and takes it into use.

use std::time::Duration;

use serde::Serialize;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::make::{self, Maker};
use super::record::{
    self, CaRecord, ISSUING_KEY, IssuingRecord, Octets, PendingRecord, RootRecord,
};
use super::{Ca, CaKey};
use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, Draws, lock};
use crate::crl::Crl;
use crate::error::Error;
use crate::failpoint;
use crate::issue::{self, BACKDATE, ClientNames, Terms, sha256_hex};
use crate::record::{self as records, key};
use crate::serial::Serial;
use crate::signer::{KeyKind, Signer};
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;
use crate::validate::{self, RevocationList, Standing};

/// How long what an issuing CA issued may live after it stopped: a day is the longest life of a
/// certificate, and renewal has its grace.
const OVERLAP: Duration = Duration::from_secs(25 * 3_600);
/// Certificates in an imported file at most.
const MAX_IMPORT: usize = 16;
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

    fn room_for_root(&self) -> Result<(), Error> {
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
    fn succeed(&mut self, issuing: IssuingRecord, now: UnixTime) -> Result<(), Error> {
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

    /// Takes the certificate that was asked for into use.
    pub(super) fn import(
        &mut self,
        maker: &mut Maker<'_>,
        certificates: &[Vec<u8>],
    ) -> Result<Vec<String>, Error> {
        let pending = self.pending.take().ok_or_else(nothing_awaited)?;
        if certificates.len() > MAX_IMPORT {
            return Err(Error::Invalid(format!(
                "the file has {} certificates: give the issuing CA's with its chain, at most \
                 {MAX_IMPORT}",
                certificates.len()
            )));
        }
        let signer = maker.sealer.open_key(ISSUING_KEY, &pending.key)?;
        let own = own_certificate(certificates, signer.as_ref())?;
        for certificate in certificates {
            may_be_above(certificate, certificate == own)?;
        }
        let id = make::id_of(own)?;
        for known in
            self.issuing.iter().map(|known| &known.der).chain(self.roots.iter().map(|r| &r.der))
        {
            if make::id_of(known)? == id {
                return Err(Error::Invalid(
                    "the certificate has the name of a CA that is here already, and issuer and \
                     serial identify certificates: have the request signed with its own name"
                        .to_owned(),
                ));
            }
        }
        let place = if self.issuing.is_empty() { "issuing" } else { id.as_str() };
        let mut issuing = IssuingRecord::new(own.clone(), pending.key.clone(), place, "");
        let trial = trial(maker, &issuing, signer.as_ref())?;
        // Roots are anchors, never links.
        let links = |certificate: &&Vec<u8>| *certificate != own && !is_self_signed(certificate);
        let chain: Vec<Vec<u8>> =
            [&trial, own].into_iter().chain(certificates.iter().filter(links)).cloned().collect();
        let known: Vec<Vec<u8>> = self.roots.iter().map(|root| root.der.clone()).collect();
        let brought: Vec<Vec<u8>> =
            certificates.iter().filter(|der| is_self_signed(der)).cloned().collect();
        let judge = |anchors: &[Vec<u8>]| validate::verify_peer(&chain, anchors, None, maker.now);
        // A root that came along is meant, also when a root that is here certifies it.
        let peer = judge(&brought).or_else(|error| {
            judge(&known).map_err(|_| {
                Error::Invalid(format!(
                    "certificates of this CA would not be accepted ({error}): put the issuing CA's \
                     certificate, the CAs between and the root into one file"
                ))
            })
        })?;
        let (root, between) = match peer.path.as_slice() {
            [_, _, between @ .., root] => (root.clone(), between),
            _ => return Err(Error::Invalid("the issuing CA must not be its own root".to_owned())),
        };
        issuing.above = between.iter().cloned().map(Octets).collect();
        issuing.root = make::id_of(&root)?;
        if !known.contains(&root) {
            self.room_for_root()?;
            let place = if self.roots.is_empty() { "root".to_owned() } else { make::id_of(&root)? };
            let mut record = RootRecord::offline(root, &place);
            for old in &self.roots {
                record
                    .cross
                    .extend(bridge(maker, old, &record.der, &chain)?.into_iter().map(Octets));
            }
            self.roots.push(record);
        }
        self.succeed(issuing, maker.now)?;
        let missing = self.roots.iter().any(|root| root.key.is_none() && root.crl.is_none());
        Ok(missing.then(|| NO_ROOT_LIST.to_owned()).into_iter().collect())
    }

    /// Keeps the revocation list of a root that is kept offline.
    pub(super) fn import_list(
        &mut self,
        der: Vec<u8>,
        now: UnixTime,
    ) -> Result<Vec<String>, Error> {
        let unusable = |error: &dyn std::fmt::Display| {
            Error::Invalid(format!("the revocation list is not taken: {error}"))
        };
        let list = RevocationList::parse(der.clone()).map_err(|error| unusable(&error))?;
        let next = list.next_update();
        let mut refused = None;
        for root in self.roots.iter_mut().filter(|root| root.key.is_none()) {
            let id = make::id_of(&root.der)?;
            for issuing in self.issuing.iter().filter(|issuing| issuing.root == id) {
                // What the root issued itself: the issuing CA, or the highest of those above it.
                let below = issuing.above.last().map_or(&issuing.der, |above| &above.0);
                let path = [below.clone(), root.der.clone()];
                let Some(question) = validate::questions(&path).into_iter().next() else {
                    continue;
                };
                match question.listed(&list, now) {
                    Ok(standing) => {
                        if let Some(kept) = &root.crl {
                            newer(&crate::crl::imported(&kept.0)?, &crate::crl::imported(&der)?)?;
                        }
                        root.crl = Some(Octets(der));
                        let mut notes = Vec::new();
                        if let Standing::Revoked { .. } = standing {
                            notes.push(
                                "the list says that the issuing CA is revoked: nothing is issued \
                                 from now on, and strict clients refuse this gateway; make a \
                                 request for another with `runnel ca csr --new`"
                                    .to_owned(),
                            );
                        }
                        notes.extend(next.map(|next| format!("the list is good until {next}")));
                        return Ok(notes);
                    }
                    Err(error) => refused = Some(error),
                }
            }
        }
        Err(match refused {
            Some(error) => unusable(&error),
            None => unusable(&"no root of this CA is kept offline, so its list is made here"),
        })
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

/// A list that was replaced must not come back: it may say less.
fn newer(kept: &Crl, next: &Crl) -> Result<(), Error> {
    if next.number >= kept.number && next.this_update >= kept.this_update {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the revocation list is not taken: it has number {} of {}, and number {} of {} is here \
         already",
        next.number, next.this_update, kept.number, kept.this_update
    )))
}

pub(super) fn nothing_awaited() -> Error {
    Error::Invalid("no certificate is awaited: make a request with `runnel ca csr`".to_owned())
}

/// Said when an offline root's list is missing.
const NO_ROOT_LIST: &str = "the root's revocation list is not here: strict clients want it; import \
                            it with `runnel ca import --crl FILE`";

fn own_certificate<'a>(
    certificates: &'a [Vec<u8>],
    signer: &dyn Signer,
) -> Result<&'a Vec<u8>, Error> {
    for certificate in certificates {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| {
            Error::Invalid("the file has a certificate that does not parse".to_owned())
        })?;
        if parsed.public_key().raw == signer.public_key_der() {
            return Ok(certificate);
        }
    }
    Err(Error::Invalid(
        "no certificate of the file has the key of the request: have the output of `runnel ca csr` \
         signed (a newer request replaces the one before)"
            .to_owned(),
    ))
}

fn is_self_signed(der: &[u8]) -> bool {
    X509Certificate::from_der(der)
        .is_ok_and(|(_, parsed)| parsed.subject().as_raw() == parsed.issuer().as_raw())
}

/// What would break later than at the first certificate: lists must be signed as well, and both
/// runners and the gateway get certificates.
fn may_be_above(der: &[u8], own: bool) -> Result<(), Error> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|_| Error::Invalid("the file has a certificate that does not parse".to_owned()))?;
    let name = || validate::name::render(certificate.subject());
    let usage = certificate.key_usage().ok().flatten().map(|usage| usage.value);
    if own && !usage.is_some_and(|usage| usage.crl_sign() && usage.key_cert_sign()) {
        return Err(Error::Invalid(format!(
            "the certificate of {} must say in keyUsage that it signs certificates and revocation \
             lists: have it issued with keyCertSign and cRLSign",
            name()
        )));
    }
    let extended = certificate.extended_key_usage().ok().flatten().map(|usage| usage.value);
    if extended.is_some_and(|usage| !(usage.any || usage.client_auth && usage.server_auth)) {
        return Err(Error::Invalid(format!(
            "the certificate of {} limits what is below it by extendedKeyUsage: runners need \
             clientAuth and the gateway serverAuth, so have it issued with both or with none",
            name()
        )));
    }
    Ok(())
}

/// A certificate as the CA would issue it, to see that peers accept it.
fn trial(
    maker: &mut Maker<'_>,
    issuing: &IssuingRecord,
    signer: &dyn Signer,
) -> Result<Vec<u8>, Error> {
    let now = maker.now.floor_to_second();
    let terms = Terms {
        serial: Serial::random(maker.entropy)?,
        not_before: now.minus(BACKDATE),
        not_after: now.plus(BACKDATE),
        status_url: None,
    };
    let names = ClientNames {
        common_name: "trial".to_owned(),
        organisation: maker.settings.trust_domain.clone(),
        dns: format!("trial.{}", maker.settings.trust_domain),
        uri: format!("spiffe://{}/trial", maker.settings.trust_domain),
    };
    let by = CaKey { certificate: &issuing.der, signer, place: &issuing.place };
    issue::client(by, &names, &terms, signer.public_key_der())
}

/// What makes a new root acceptable to those who know only an old one: certificates that came along,
/// or one that the old root's key makes now.
fn bridge(
    maker: &mut Maker<'_>,
    old: &RootRecord,
    root: &[u8],
    chain: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, Error> {
    if let Ok(peer) = validate::verify_peer(chain, std::slice::from_ref(&old.der), None, maker.now)
    {
        // Leaf, issuing CA, those between, the new root certified by the old one, the old one.
        return Ok(peer.path.into_iter().rev().skip(1).take(1).collect());
    }
    let Some(signer) = old.open(maker.sealer)? else {
        return Err(Error::Invalid(format!(
            "runners that trust only {} would not accept the new root: add the new root's \
             certificate issued by the old one to the file",
            validate::name::render(record::parse(&old.der)?.subject())
        )));
    };
    let by = CaKey { certificate: &old.der, signer: signer.as_ref(), place: &old.place };
    match maker.cross(root, by)? {
        Some(cross) => Ok(vec![cross]),
        None => Err(Error::Invalid(
            "the new root's name cannot be written into another certificate here: add the new \
             root's certificate issued by the old one to the file"
                .to_owned(),
        )),
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

    /// Takes the certificate that was requested into use, with its chain (DER, in any order).
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong with the file.
    pub fn ca_import(
        &self,
        certificates: &[Vec<u8>],
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Imported, Error> {
        self.change_ca("ca.import", actor, now, |record, maker| {
            record.prune(now)?;
            let notes = record.import(maker, certificates)?;
            Ok(Imported { change: record.change()?, notes })
        })
    }

    /// Keeps the revocation list (DER) of a root that is kept offline, and serves it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong with the list.
    pub fn ca_import_list(
        &self,
        list: &[u8],
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Imported, Error> {
        self.change_ca("ca.import_crl", actor, now, |record, _| {
            let notes = record.import_list(list.to_vec(), now)?;
            Ok(Imported { change: record.change()?, notes })
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
        for id in &self.ca().forgotten {
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
        txn.at(key::CA, stored.revision).put(key::CA, records::encode(&next));
        let name = next.change()?.issuing;
        AuditEvent::new(action, actor, now).reason(name).record(&mut txn);
        failpoint::hit("ca.before_change");
        match self.store.transact(txn)? {
            Outcome::Committed(_) => {
                failpoint::hit("ca.after_change");
                self.use_ca(ca);
                self.record_cas()?;
                Ok(result)
            }
            Outcome::Conflict(_) => Err(Error::Contended("the CA")),
        }
    }
}

/// The certificates of a PEM text, or the one of a DER file.
///
/// # Errors
/// [`Error::Invalid`] when there is none.
pub fn certificates_of(file: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let of_label = |pem: Result<x509_parser::pem::Pem, _>| {
        pem.ok().filter(|pem| pem.label == "CERTIFICATE").map(|pem| pem.contents)
    };
    let found: Vec<Vec<u8>> = x509_parser::pem::Pem::iter_from_buffer(file)
        .filter_map(of_label)
        .take(MAX_IMPORT + 1)
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    if X509Certificate::from_der(file).is_ok() {
        return Ok(vec![file.to_vec()]);
    }
    Err(Error::Invalid("the file has no certificate, neither PEM nor DER".to_owned()))
}
