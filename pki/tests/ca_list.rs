//! The list of a root that is kept elsewhere says that an issuing CA is revoked: what it issued is
//! good no more, whoever issues by then.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::elsewhere::Elsewhere;
use common::*;
use pki::signer::KeyKind;
use pki::store::MemoryStore;
use pki::*;

/// An authority whose issuing CA is below a root kept elsewhere; that root, and the CA.
fn below() -> (Authority, Elsewhere, Vec<u8>) {
    let authority = authority_on(Arc::new(MemoryStore::new()));
    let root = Elsewhere::root("Example Root");
    let issuing = next(&authority, &root, "First");
    // The root made at the first start is of no use here.
    (authority, root, issuing)
}

/// Lets another CA below the root issue.
fn next(authority: &Authority, root: &Elsewhere, name: &str) -> Vec<u8> {
    let request = authority.ca_request(KeyKind::EcdsaP256, None, true, &OPERATOR, NOW).unwrap();
    let mut params = common::elsewhere::ca_params(name);
    params.key_identifier_method = rcgen::KeyIdMethod::Sha256;
    let issuing = root.sign_as(&request, params);
    authority.ca_import(&[issuing.clone(), root.der.clone()], &OPERATOR, NOW).unwrap();
    issuing
}

fn verifies(authority: &Authority, certificate: &[u8]) -> Result<VerifiedPeer, PeerError> {
    authority.verify_peer(&[certificate.to_vec()], None, after(2))
}

#[test]
fn what_a_listed_ca_issued_is_good_no_more_though_another_issues() {
    let (authority, root, first) = below();
    authority.ca_import_list(&root.list_of(41), &OPERATOR, NOW).unwrap();
    let (_, left) = enrolled(&authority);
    let (client, moving) = enrolled(&authority);
    next(&authority, &root, "Second");
    let old = peer(&authority, &moving, NOW);
    let moved = authority.renew(&old, &client.csr(), None, after(1)).unwrap();
    let (_, later) = enrolled(&authority);

    let list = root.numbered(&first, 42);
    let (imported, outcome) = authority.ca_import_list(&list, &OPERATOR, after(2)).unwrap();

    assert_eq!(outcome.failed, None);
    let ended: Vec<&str> = outcome.changes.iter().map(|c| c.lease.id.as_str()).collect();
    assert_eq!(ended, [left.lease.id.as_str()]);
    assert!(outcome.changes[0].end_tunnels);
    let again: Vec<&str> = outcome.renewed.iter().map(|lease| lease.id.as_str()).collect();
    assert_eq!(again, [moving.lease.id.as_str()], "its tunnel may be of the first certificate");
    let notes = imported.notes.join("\n");
    assert!(notes.contains("First, which issues no more, is revoked"), "{notes}");
    assert!(!notes.contains("nothing is issued"), "{notes}");
    for certificate in [&left.certificate, &moving.certificate] {
        let refused = verifies(&authority, certificate);
        assert!(matches!(refused, Err(PeerError::IssuerRevoked { .. })), "{refused:?}");
    }
    for enrolled in [&moved, &later] {
        let peer = verifies(&authority, &enrolled.certificate).unwrap();
        assert!(authority.authorise(&peer, after(2)).is_ok());
    }
    enrolled(&authority);
    assert!(authority.bars().unwrap().is_empty(), "clients may enrol again with their keys");
    let revoked = authority.ca_status().certificates.into_iter().filter(|ca| ca.revoked);
    let revoked: Vec<String> = revoked.map(|ca| ca.subject).collect();
    assert!(matches!(revoked.as_slice(), [one] if one.contains("First")), "{revoked:?}");

    // Asked again, nothing more ends; and what was revoked stays so, whatever a later list says.
    let (_, outcome) = authority.ca_import_list(&list, &OPERATOR, after(3)).unwrap();
    assert!(outcome.changes.is_empty());
    authority.ca_import_list(&root.list_of(43), &OPERATOR, after(4)).unwrap();
    let peer = verifies(&authority, &left.certificate).unwrap();
    assert!(matches!(authority.authorise(&peer, after(4)), Err(AccessError::Revoked { .. })));
}

#[test]
fn with_the_ca_that_issues_everything_ends() {
    let (authority, root, first) = below();
    let (_, enrolled) = enrolled(&authority);
    let list = root.numbered(&first, 42);
    let (imported, outcome) = authority.ca_import_list(&list, &OPERATOR, after(2)).unwrap();
    assert_eq!(outcome.changes.len(), 1);
    assert!(outcome.changes[0].end_tunnels);
    let notes = imported.notes.join("\n");
    assert!(notes.contains("nothing is issued from now on"), "{notes}");
    assert!(notes.contains("1 lease(s) ended"), "{notes}");
    let refused = verifies(&authority, &enrolled.certificate).unwrap_err();
    assert!(matches!(refused, PeerError::IssuerRevoked { .. }), "{refused}");
    // Another CA brings the gateway back.
    next(&authority, &root, "Second");
    let (_, back) = common::enrolled(&authority);
    assert!(verifies(&authority, &back.certificate).is_ok());
}
