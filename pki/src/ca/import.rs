//! What comes from elsewhere: the certificate that was requested, with its chain, and the revocation
//! list of a root that is kept offline.

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::CaKey;
use super::change::Imported;
use super::make::{self, Maker};
use super::record::{self, CaRecord, ISSUING_KEY, IssuingRecord, Octets, RootRecord};
use crate::audit::Actor;
use crate::authority::Authority;
use crate::crl::Crl;
use crate::error::Error;
use crate::issue::{self, BACKDATE, ClientNames, Terms};
use crate::revoke::{Order, RevocationReason, RevokeOutcome};
use crate::serial::Serial;
use crate::signer::Signer;
use crate::time::UnixTime;
use crate::validate::{self, RevocationList};

/// Certificates in an imported file at most.
const MAX_IMPORT: usize = 16;
/// Said when an offline root's list is missing.
const NO_ROOT_LIST: &str = "the root's revocation list is not here: strict clients want it; import \
                            it with `runnel ca import --crl FILE`";

impl Authority {
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

    /// Keeps the revocation list (DER) of a root that is kept offline, and serves it. What issuing CAs
    /// issued that it lists is good no more: nobody gets in with it, and leases that have nothing
    /// else end. The caller then ends the tunnels of the outcome. Repeat it when the outcome says
    /// that something failed.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong with the list.
    pub fn ca_import_list(
        &self,
        list: &[u8],
        actor: &Actor,
        now: UnixTime,
    ) -> Result<(Imported, RevokeOutcome), Error> {
        let mut imported = self.change_ca("ca.import_crl", actor, now, |record, _| {
            let notes = record.import_list(list.to_vec(), now)?;
            Ok(Imported { change: record.change()?, notes })
        })?;
        let mut outcome = RevokeOutcome::default();
        let order = Order { reason: RevocationReason::Unspecified, actor, now };
        for issuing in self.ca().issuing.iter().filter(|issuing| issuing.listed) {
            let ended = self.end_leases_of(&issuing.id, &order, &mut outcome);
            outcome.failed = outcome.failed.or(ended.err());
            imported.notes.push(listed_note(&issuing.der, issuing.ends.is_none())?);
        }
        if !outcome.changes.is_empty() {
            imported.notes.push(format!("{} lease(s) ended with it", outcome.changes.len()));
        }
        Ok((imported, outcome))
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

impl CaRecord {
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
        let mut here = self.issuing.iter().map(|known| &known.der);
        let is_it = |known: &Vec<u8>| make::id_of(known).is_ok_and(|known| known == id);
        // What a CA that is no more issued is still on record, and forgotten with its name.
        if here.any(is_it)
            || self.roots.iter().any(|r| is_it(&r.der))
            || self.forgotten.contains(&id)
        {
            return Err(Error::Invalid(
                "the certificate has the name of a CA that is or was here already, and issuer and \
                 serial identify certificates: have the request signed with its own name"
                    .to_owned(),
            ));
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
                    Ok(_) => {
                        if let Some(kept) = &root.crl {
                            newer(&crate::crl::imported(&kept.0)?, &crate::crl::imported(&der)?)?;
                        }
                        root.crl = Some(Octets(der));
                        let note = next.map(|next| format!("the list is good until {next}"));
                        return Ok(note.into_iter().collect());
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
}

/// What the list means for an issuing CA that it lists.
fn listed_note(issuing: &[u8], issues: bool) -> Result<String, Error> {
    let name = validate::name::render(record::parse(issuing)?.subject());
    Ok(match issues {
        true => format!(
            "the list says that {name}, which issues, is revoked: nothing is issued from now on, \
             nobody gets in with what it issued, and strict clients refuse this gateway; make a \
             request for another with `runnel ca csr --new`"
        ),
        false => format!(
            "the list says that {name}, which issues no more, is revoked: nobody gets in with what \
             it issued"
        ),
    })
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
        ..ClientNames::default()
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
