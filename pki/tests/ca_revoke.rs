//! An issuing CA that must not be trusted any more: its root's list and OCSP say so, and what it
//! issued is good no more.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::*;
use der::Decode;
use pki::signer::KeyKind;
use pki::store::MemoryStore;
use pki::*;
use x509_ocsp::{BasicOcspResponse, CertStatus, OcspResponse};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

const WHY: RevocationReason = RevocationReason::KeyCompromise;

fn ocsp_says(authority: &Authority, certificate: &[u8], now: UnixTime) -> CertStatus {
    let answer = authority.ocsp_for(certificate, now).unwrap().unwrap();
    let response = OcspResponse::from_der(&answer).unwrap().response_bytes.unwrap();
    let basic = BasicOcspResponse::from_der(response.response.as_bytes()).unwrap();
    basic.tbs_response_data.responses[0].cert_status
}

fn listed(list: &Crl) -> Vec<Serial> {
    let (_, list) = CertificateRevocationList::from_der(&list.der).unwrap();
    list.iter_revoked_certificates().map(|entry| Serial::from_bytes(entry.raw_serial())).collect()
}

#[test]
fn a_revoked_issuing_ca_is_listed_by_its_root_and_ends_what_it_issued() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store) as Arc<dyn store::Store>);
    let (_, before) = enrolled(&authority);
    let issuing = authority.issuing_der();
    let serial = authority.ca_status().certificates[1].serial.clone();
    assert!(listed(&authority.root_crl(NOW).unwrap()).is_empty());
    assert!(matches!(ocsp_says(&authority, &issuing, NOW), CertStatus::Good(_)));

    let told = authority.ca_revoke("issuing", WHY, &OPERATOR, after(1)).unwrap_err();
    assert!(told.to_string().contains("runnel ca rotate"), "{told}");
    authority.ca_rotate(KeyKind::EcdsaP256, false, &OPERATOR, after(2)).unwrap();
    let token = token(&authority);
    let renewed = Client::new().enrol(&authority, &token, after(3));

    let outcome = authority.ca_revoke("issuing", WHY, &OPERATOR, after(4)).unwrap();

    assert_eq!(outcome.failed, None);
    assert_eq!(outcome.serials[0], serial);
    let ended: Vec<&str> = outcome.changes.iter().map(|c| c.lease.id.as_str()).collect();
    assert_eq!(ended, [before.lease.id.as_str()], "the lease of the new CA lives on");
    assert!(outcome.changes[0].end_tunnels);
    assert_eq!(listed(&authority.root_crl(after(5)).unwrap()), [serial]);
    assert!(matches!(ocsp_says(&authority, &issuing, after(5)), CertStatus::Revoked(_)));
    let old = std::slice::from_ref(&before.certificate);
    assert!(authority.verify_peer(old, None, after(5)).is_err(), "at once, not a day later");
    assert!(authority.authorise(&peer(&authority, &renewed, after(5)), after(5)).is_ok());
    assert!(authority.bars().unwrap().is_empty(), "clients may enrol again with their keys");
    assert_eq!(authority.ca_status().certificates.len(), 2);

    // It stays so after a restart, and what the forgotten CA had revoked goes.
    drop(authority);
    let authority = authority_on(Arc::clone(&store) as Arc<dyn store::Store>);
    assert!(matches!(ocsp_says(&authority, &issuing, after(6)), CertStatus::Revoked(_)));
    authority.ca_prune(after(7)).unwrap();
    let revoked = store::Store::range(store.as_ref(), "revoked/", None, 10).unwrap();
    assert_eq!(revoked.len(), 1, "the root's own");
}

#[test]
fn a_new_ca_is_on_record_with_the_change_that_brings_it() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store) as Arc<dyn store::Store>);
    for root in [false, true] {
        authority.ca_rotate(KeyKind::EcdsaP256, root, &OPERATOR, after(1)).unwrap();
        let change = store::Store::get(store.as_ref(), "ca/current").unwrap().unwrap().revision;
        let records = store::Store::range(store.as_ref(), "cert/", None, 100).unwrap();
        let with_it = records.iter().filter(|(_, entry)| entry.revision == change).count();
        // With a new root there is a certificate of it by the old one, too.
        assert_eq!(with_it, if root { 2 } else { 1 });
    }
}

#[test]
fn what_cannot_be_revoked_so_is_told_what_can() {
    let authority = authority();
    let root = authority.ca_revoke("root", WHY, &OPERATOR, NOW).unwrap_err().to_string();
    assert!(root.contains("runnel ca retire"), "{root}");
    let nobody = authority.ca_revoke("other", WHY, &OPERATOR, NOW);
    assert!(matches!(nobody, Err(Error::NotFound { .. })));
    let serial = authority.ca_status().certificates[1].serial.clone();
    let selector = RevokeSelector::Serial(serial);
    let told = authority.revoke(&selector, WHY, &OPERATOR, NOW).unwrap_err().to_string();
    assert!(told.contains("runnel ca revoke"), "{told}");
    authority.ca_rotate(KeyKind::EcdsaP256, true, &OPERATOR, NOW).unwrap();
    let certificates = authority.ca_certificates();
    let cross = certificates.iter().find(|der| {
        let known = authority.ca_status().certificates;
        known.iter().all(|ca| Some(&ca.serial) != validate::serial_of(der).as_ref())
    });
    let serial = validate::serial_of(cross.unwrap()).unwrap();
    let selector = RevokeSelector::Serial(serial);
    let told = authority.revoke(&selector, WHY, &OPERATOR, NOW).unwrap_err().to_string();
    assert!(told.contains("runnel ca retire"), "{told}");
    assert!(listed(&authority.root_crl(NOW).unwrap()).is_empty());
    assert!(authority.certificates().unwrap().is_empty(), "CAs are listed by `ca status`");
}
