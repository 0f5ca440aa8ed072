//! The CA's life: kinds of keys, an issuing CA below a root kept elsewhere, rotation, retirement.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::elsewhere::{Elsewhere, ca_params};
use common::*;
use pki::signer::KeyKind;
use pki::store::{MemoryStore, Store};
use pki::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

const HOUR: u64 = 3_600;

/// Settings whose certificates say where their status is told.
fn with_status() -> Options {
    let mut settings = settings();
    settings.status_url = Some("http://gw.example.com:8080".to_owned());
    Options::new(settings)
}

fn running() -> Authority {
    Authority::with_store(Arc::new(MemoryStore::new()), &[7; 32], with_status(), NOW).unwrap()
}

fn pem(der: &[u8]) -> String {
    let body = base64(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

/// What a client that trusts one root, and knows nothing else, says of a certificate that comes
/// with this chain: OpenSSL's verdict, strict about extensions.
fn openssl_verifies(root: &[u8], chain: &[Vec<u8>], lists: &[Vec<u8>]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("root.pem"), pem(root)).unwrap();
    std::fs::write(at("leaf.pem"), pem(&chain[0])).unwrap();
    let rest: String = chain[1..].iter().map(|der| pem(der)).collect();
    std::fs::write(at("chain.pem"), rest).unwrap();
    let list = |der: &Vec<u8>| {
        format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", base64(der))
    };
    std::fs::write(at("lists.pem"), lists.iter().map(list).collect::<String>()).unwrap();
    let mut command = std::process::Command::new("openssl");
    command.args(["verify", "-x509_strict", "-attime", &after(60).secs().to_string()]);
    command.arg("-CAfile").arg(at("root.pem")).arg("-untrusted").arg(at("chain.pem"));
    if !lists.is_empty() {
        command.arg("-crl_check_all").arg("-CRLfile").arg(at("lists.pem"));
    }
    command.arg(at("leaf.pem")).output().unwrap().status.success()
}

#[test]
fn every_kind_of_key_issues_lists_and_answers() {
    for kind in KeyKind::ALL {
        let mut options = with_status();
        options.key = kind;
        let store = Arc::new(MemoryStore::new());
        let authority = Authority::with_store(store, &[7; 32], options, NOW).unwrap();
        let (_, enrolled) = enrolled(&authority);
        let peer = peer(&authority, &enrolled, after(1));
        assert!(authority.authorise(&peer, after(1)).is_ok(), "{kind}");
        let chain =
            [vec![enrolled.certificate.clone()], chain_of(&authority, &enrolled.certificate)]
                .concat();
        let lists =
            [authority.crl(NOW).unwrap().der.clone(), authority.root_crl(NOW).unwrap().der.clone()];
        assert!(openssl_verifies(&authority.root_der(), &chain, &lists), "{kind}");
        assert!(authority.ocsp_for(&enrolled.certificate, NOW).unwrap().is_some(), "{kind}");
        let identity = authority.server_identity(&ServerNames::new("gw.example.com"), NOW).unwrap();
        assert!(openssl_verifies(&authority.root_der(), &identity.chain, &[]), "{kind}");
        assert_eq!(kind.name().parse::<KeyKind>().unwrap(), kind);
    }
    let error = "rsa-1024".parse::<KeyKind>().unwrap_err().to_string();
    assert!(error.contains("choose one of ecdsa-p256, "), "{error}");
}

/// The chain that goes with a certificate, DER.
fn chain_of(authority: &Authority, certificate: &[u8]) -> Vec<Vec<u8>> {
    let of = |pem: &String| x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
    authority.chain_pem(certificate).iter().map(of).collect()
}

fn open(directory: &Path) -> Result<Authority, Error> {
    Authority::open(directory, with_status(), NOW)
}

fn setup(directory: &Path) -> CaSetup {
    CaSetup::open(directory, with_status(), NOW).unwrap()
}

fn request(setup: &mut CaSetup) -> String {
    setup.request(KeyKind::EcdsaP256, None, false, &OPERATOR, NOW).unwrap()
}

#[test]
fn an_issuing_ca_below_a_root_that_is_kept_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let (root, policy) = {
        let root = Elsewhere::root("Example Root");
        let policy = Elsewhere::below("Example Policy CA", &root);
        (root, policy)
    };
    let pem = request(&mut setup(directory.path()));
    assert_eq!(request(&mut setup(directory.path())), pem, "asked again, it is the same request");
    let error = open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("waits for its certificate"), "no root of its own appears: {error}");

    let issuing = policy.sign(&pem, "Runnel Issuing");
    let import = |files: &[&Vec<u8>]| {
        let files: Vec<Vec<u8>> = files.iter().map(|der| (*der).clone()).collect();
        setup(directory.path()).import(&files, &OPERATOR, NOW)
    };
    for (files, words) in [
        (vec![&root.der, &policy.der], "no certificate of the file has the key"),
        (vec![&issuing], "would not be accepted"),
        (vec![&issuing, &root.der], "would not be accepted"),
        (vec![&issuing, &policy.der], "would not be accepted"),
    ] {
        let error = import(&files).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let leaf = policy.sign_as(&pem, {
        let mut params = ca_params("no CA");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params
    });
    let error = import(&[&leaf, &policy.der, &root.der]).unwrap_err().to_string();
    assert!(error.contains("must say in keyUsage"), "{error}");

    let imported = import(&[&root.der, &issuing, &policy.der]).unwrap();
    assert!(imported.notes[0].contains("ca import --crl"), "{:?}", imported.notes);
    let authority = open(directory.path()).unwrap();
    assert_eq!(authority.root_der(), root.der);
    assert!(authority.ca_status().certificates[0].offline);
    let (_, enrolled) = enrolled(&authority);
    let alone = std::slice::from_ref(&enrolled.certificate);
    let peer = authority.verify_peer(alone, None, after(1)).unwrap();
    assert!(authority.authorise(&peer, after(1)).is_ok(), "the peer sends its certificate alone");

    // The root's list is made where its key is.
    assert_eq!(authority.root_crl(NOW).unwrap_err(), Error::NoRootList);
    assert!(authority.ocsp_for(&issuing, NOW).unwrap().is_none(), "nor is it answered for here");
    let stranger = Elsewhere::root("Example Root");
    for (list, words) in [
        (stranger.list(&[]), "not taken"),
        (vec![0x30, 0], "does not parse"),
        (authority.crl(NOW).unwrap().der.clone(), "not taken"),
    ] {
        let error = authority.ca_import_list(&list, &OPERATOR, NOW).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let list = root.list(&[]);
    authority.ca_import_list(&list, &OPERATOR, NOW).unwrap();
    assert_eq!(authority.root_crl(NOW).unwrap().der.clone(), list);
    assert_eq!(authority.crl_at("root", NOW).unwrap().unwrap().number, 41);
    let chain =
        [vec![enrolled.certificate.clone()], chain_of(&authority, &enrolled.certificate)].concat();
    assert_eq!(chain.len(), 3, "certificate, issuing CA and policy CA; no root");
    let lists = [list, policy.list(&[]), authority.crl(NOW).unwrap().der.clone()];
    assert!(openssl_verifies(&root.der, &chain, &lists));

    // Nothing can be signed with a key that is not here.
    let rotated = authority.ca_rotate(KeyKind::EcdsaP256, false, &OPERATOR, NOW);
    assert_eq!(rotated.unwrap_err(), Error::RootOffline);
    drop(authority);
    let authority = open(directory.path()).unwrap();
    assert_eq!(authority.root_crl(NOW).unwrap().number, 41);

    // The root's owner revokes what is above the issuing CA: nothing more is issued, for good.
    let refused = |authority: &Authority, at| {
        let token = token(authority);
        let csr = Client::new().csr();
        let refusal = authority.enrol_with_token("builder", token.expose(), &csr, None, at);
        refusal.unwrap_err().detail
    };
    let told = Error::IssuingRevoked.to_string();
    authority.ca_import_list(&root.list(&policy.der), &OPERATOR, after(1)).unwrap();
    assert_eq!(refused(&authority, after(2)), told);
    assert!(authority.ca_status().certificates[1].revoked);
    drop(authority);
    let authority = open(directory.path()).unwrap();
    assert_eq!(refused(&authority, after(3)), told);
}

#[test]
fn a_running_ca_changes_to_an_issuing_ca_of_another_root() {
    let authority = running();
    let (client, before) = enrolled(&authority);
    let own_root = authority.root_der();
    let root = Elsewhere::root("Example Root");
    let ask = |anew| authority.ca_request(KeyKind::EcdsaP384, Some("Second"), anew, &OPERATOR, NOW);
    let first = ask(false).unwrap();
    assert_eq!(ask(false).unwrap(), first);
    let second = ask(true).unwrap();
    let import = |files: &[Vec<u8>]| authority.ca_import(files, &OPERATOR, NOW);
    let replaced = import(&[root.sign(&first, "Second"), root.der.clone()]).unwrap_err();
    assert!(replaced.to_string().contains("a newer request replaces"), "{replaced}");
    let issuing = root.sign(&second, "Second");
    import(&[issuing.clone(), root.der.clone()]).unwrap();
    let again = import(&[issuing, root.der.clone()]).unwrap_err();
    assert!(again.to_string().contains("no certificate is awaited"), "{again}");

    assert_eq!(authority.root_der(), own_root, "runners pin the old root");
    let secret = token(&authority);
    let after_it = Client::new().enrol(&authority, &secret, NOW);
    let chain =
        [vec![after_it.certificate.clone()], chain_of(&authority, &after_it.certificate)].concat();
    assert!(openssl_verifies(&own_root, &chain, &[]), "known by the old root's certificate");
    assert!(openssl_verifies(&root.der, &chain, &[]));
    for certificate in [before.certificate.clone(), after_it.certificate] {
        let peer = authority.verify_peer(&[certificate], None, after(60)).unwrap();
        assert!(authority.authorise(&peer, after(60)).is_ok());
    }
    // Renewal moves to the new CA.
    let peer = authority.verify_peer(&[before.certificate], None, after(60)).unwrap();
    let renewed = authority.renew(&peer, &client.csr(), None, after(60)).unwrap();
    let chain =
        [vec![renewed.certificate.clone()], chain_of(&authority, &renewed.certificate)].concat();
    assert!(openssl_verifies(&root.der, &chain, &[]));
}

#[test]
fn rotation_breaks_nothing_that_was_issued() {
    let authority = running();
    let names = ServerNames::new("gw.example.com");
    let server = authority.server_identity(&names, NOW).unwrap();
    let (_, before) = enrolled(&authority);
    let old_issuing = authority.issuing_der();
    let change = authority.ca_rotate(KeyKind::EcdsaP384, false, &OPERATOR, after(10)).unwrap();
    assert_eq!(change.root_sha256, authority.root_fingerprint());
    assert_ne!(authority.issuing_der(), old_issuing);

    // The gateway shows a certificate of the new CA; both are accepted below the same root.
    let next = authority.server_identity(&names, after(10)).unwrap();
    assert!(next.issued_now);
    for chain in [&server.chain, &next.chain] {
        assert!(openssl_verifies(&authority.root_der(), chain, &[]));
    }
    let secret = token(&authority);
    let later = Client::new().enrol(&authority, &secret, after(10));
    for enrolled in [&before, &later] {
        let peer = peer(&authority, enrolled, after(20));
        assert!(authority.authorise(&peer, after(20)).is_ok());
        assert!(authority.certificate(&peer.serial).unwrap().is_some());
        assert!(authority.ocsp_for(&enrolled.certificate, after(20)).unwrap().is_some());
    }

    // A certificate of the old CA is revoked on the old CA's list, where it says that it is.
    let text = String::from_utf8_lossy(&before.certificate).into_owned();
    assert!(text.contains("/crl/issuing.crl"));
    let place = authority.ca_status().certificates[1].place.clone();
    let text = String::from_utf8_lossy(&later.certificate).into_owned();
    assert!(text.contains(&format!("/crl/{place}.crl")) && text.contains(&format!("/{place}.cer")));
    assert_eq!(authority.ca_certificate_at(&place).unwrap(), authority.issuing_der());
    let selector = RevokeSelector::Lease(before.lease.id.clone());
    let reason = RevocationReason::KeyCompromise;
    authority.revoke(&selector, reason, &OPERATOR, after(30)).unwrap();
    let old = authority.crl_at("issuing", after(31)).unwrap().unwrap();
    let new = authority.crl_at(&place, after(31)).unwrap().unwrap();
    assert_eq!((old.entries, new.entries), (1, 0));
    assert!(authority.crl_at("other", NOW).unwrap().is_none());
    let lists =
        [old.der.clone(), new.der.clone(), authority.root_crl(after(31)).unwrap().der.clone()];
    let root = authority.root_der();
    let revoked = [before.certificate.clone(), old_issuing.clone()];
    assert!(openssl_verifies(&root, &revoked, &[]) && !openssl_verifies(&root, &revoked, &lists));
    let good = [vec![later.certificate.clone()], chain_of(&authority, &later.certificate)].concat();
    assert!(openssl_verifies(&root, &good, &lists));

    // When what it issued has ended, the old CA's key goes.
    assert_eq!(authority.ca_prune(after(24 * HOUR)).unwrap(), 0);
    assert_eq!(authority.ca_status().certificates.len(), 3);
    assert_eq!(authority.ca_prune(after(26 * HOUR)).unwrap(), 1);
    assert_eq!(authority.ca_status().certificates.len(), 2);
    assert!(authority.crl_at("issuing", after(26 * HOUR)).unwrap().is_none());
    assert!(authority.verify_peer(&[before.certificate], None, after(60)).is_err());
}

#[test]
fn a_new_root_is_known_by_the_old_one_until_that_retires() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let open = |at| Authority::with_store(Arc::clone(&store), &[7; 32], with_status(), at).unwrap();
    let authority = open(NOW);
    let old_root = authority.root_der();
    let (_, before) = enrolled(&authority);
    let retired = authority.ca_retire(&OPERATOR, NOW).unwrap_err().to_string();
    assert!(retired.contains("there is one root"), "{retired}");

    let change = authority.ca_rotate(KeyKind::EcdsaP256, true, &OPERATOR, NOW).unwrap();
    assert_eq!(authority.root_der(), old_root, "the pin of runners holds");
    let new_root = authority.ca_certificates()[1].clone();
    drop(authority);
    let authority = open(after(5));
    assert_eq!(change.root_sha256, authority.root_fingerprint());
    let third = authority.ca_rotate(KeyKind::EcdsaP256, true, &OPERATOR, NOW).unwrap_err();
    assert!(third.to_string().contains("two roots are in force"), "{third}");

    let secret = token(&authority);
    let later = Client::new().enrol(&authority, &secret, after(10));
    let chain =
        [vec![later.certificate.clone()], chain_of(&authority, &later.certificate)].concat();
    let mut lists =
        vec![authority.crl(NOW).unwrap().der.clone(), authority.root_crl(NOW).unwrap().der.clone()];
    let place = authority.ca_status().certificates[1].place.clone();
    lists.push(authority.crl_at(&place, NOW).unwrap().unwrap().der.clone());
    for root in [&old_root, &new_root] {
        assert!(openssl_verifies(root, &chain, &lists));
    }
    let identity =
        authority.server_identity(&ServerNames::new("gw.example.com"), after(10)).unwrap();
    assert!(!identity.chain.contains(&old_root) && !identity.chain.contains(&new_root));
    // EST hands out both roots, and the one certified by the other (RFC 7030 4.1.3).
    let reply = authority.est(&est_request("/.well-known/est/cacerts", None, b""), NOW);
    assert_eq!(reply.status, 200);
    assert_eq!(authority.ca_certificates().len(), 5);
    // The answer about the new root's certificate by the old root is the old root's.
    let cross = chain.last().unwrap();
    assert!(authority.ocsp_for(cross, NOW).unwrap().is_some());

    let early = authority.ca_retire(&OPERATOR, after(20 * HOUR)).unwrap_err().to_string();
    assert!(early.contains("may live until"), "{early}");
    let now = after(26 * HOUR);
    let change = authority.ca_retire(&OPERATOR, now).unwrap();
    assert_eq!((authority.root_der(), change.next_root_sha256), (new_root.clone(), None));
    assert!(authority.verify_peer(&[before.certificate], None, after(60)).is_err());
    let chain =
        [vec![later.certificate.clone()], chain_of(&authority, &later.certificate)].concat();
    assert_eq!(chain.len(), 2);
    assert!(openssl_verifies(&new_root, &chain, &[]) && !openssl_verifies(&old_root, &chain, &[]));
    let actions: Vec<String> =
        authority.audit(0, 100).unwrap().into_iter().map(|record| record.event.action).collect();
    for action in ["ca.create", "ca.rotate_root", "ca.retire_root"] {
        assert!(actions.contains(&action.to_owned()), "{action}: {actions:?}");
    }
    assert!(authority.verify_audit().unwrap().is_sound());
    // Nor do names come again: each CA is told from every other by its name.
    let subjects: std::collections::BTreeSet<String> =
        authority.ca_status().certificates.into_iter().map(|ca| ca.subject).collect();
    assert_eq!(subjects.len(), 2);
}

#[test]
fn the_name_of_a_forgotten_ca_does_not_come_again() {
    let authority = running();
    let root = Elsewhere::root("Example Root");
    let import = |name: &str, hour: u64| {
        let now = after(hour * HOUR);
        let request = authority.ca_request(KeyKind::EcdsaP256, None, true, &OPERATOR, now).unwrap();
        let file = [root.sign(&request, name), root.der.clone()];
        authority.ca_import(&file, &OPERATOR, now)
    };
    import("X", 0).unwrap();
    let again = import("X", 1).unwrap_err().to_string();
    assert!(again.contains("is or was here already"), "{again}");
    import("Y", 2).unwrap();
    // What X issued has ended, and X is forgotten.
    authority.ca_prune(after(30 * HOUR)).unwrap();
    assert!(authority.ca_status().certificates.iter().all(|ca| !ca.subject.contains("CN=X")));
    let again = import("X", 31).unwrap_err().to_string();
    assert!(again.contains("is or was here already"), "{again}");
    import("Z", 32).unwrap();
}

#[test]
fn issuing_cas_on_record_are_bounded() {
    let authority = running();
    let rotate = |hour: u64| {
        let now = NOW.plus(Duration::from_secs(hour * HOUR));
        authority.ca_rotate(KeyKind::EcdsaP256, false, &OPERATOR, now)
    };
    for _ in 0..7 {
        rotate(0).unwrap();
    }
    let error = rotate(1).unwrap_err().to_string();
    assert!(error.contains("issuing CAs are on record"), "{error}");
    rotate(26).unwrap();
    assert_eq!(authority.ca_status().certificates.len(), 3, "root, and two issuing CAs");
}

/// RFC 5280 6.1.4: what the chain could not do later is refused at the import.
#[test]
fn an_issuing_ca_that_could_not_do_its_work_is_refused_at_the_import() {
    let authority = running();
    let root = Elsewhere::root("Example Root");
    let ask = || authority.ca_request(KeyKind::EcdsaP256, None, true, &OPERATOR, NOW).unwrap();
    let refused = |change: fn(&mut CertificateParams), words: &str| {
        let mut params = ca_params("Second");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        change(&mut params);
        let file = [root.sign_as(&ask(), params), root.der.clone()];
        let error = authority.ca_import(&file, &OPERATOR, NOW).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign], "cRLSign");
    refused(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign], "keyCertSign");
    refused(
        |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth],
        "serverAuth",
    );
    assert_eq!(authority.ca_status().certificates.len(), 2, "nothing changed");
}

/// The old root is elsewhere as well: the file brings the new root certified by the old one.
#[test]
fn a_new_root_comes_with_its_certificate_by_the_old_one() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (Elsewhere::root("Old Root"), Elsewhere::root("New Root"));
    let first = old.sign(&request(&mut setup(directory.path())), "First");
    setup(directory.path()).import(&[first, old.der.clone()], &OPERATOR, NOW).unwrap();
    let authority = open(directory.path()).unwrap();
    let (_, before) = enrolled(&authority);

    let pem = authority.ca_request(KeyKind::EcdsaP256, None, false, &OPERATOR, NOW).unwrap();
    let second = new.sign(&pem, "Second");
    let alone = authority.ca_import(&[second.clone(), new.der.clone()], &OPERATOR, NOW);
    let error = alone.unwrap_err().to_string();
    assert!(error.contains("runners that trust only") && error.contains("Old Root"), "{error}");
    let mut params = ca_params("New Root");
    params.use_authority_key_identifier_extension = true;
    let cross = params.signed_by(&new.key, &old.issuer()).unwrap().der().to_vec();
    let file = [new.der.clone(), cross, second];
    let change = authority.ca_import(&file, &OPERATOR, NOW).unwrap().change;
    assert!(change.next_root_sha256.is_some(), "the new root is in force: {change:?}");
    let later = Client::new().enrol(&authority, &token(&authority), NOW);
    let chain =
        [vec![later.certificate.clone()], chain_of(&authority, &later.certificate)].concat();
    assert!(!chain.contains(&new.der) && !chain.contains(&old.der), "roots are not sent");
    for root in [&old.der, &new.der] {
        assert!(openssl_verifies(root, &chain, &[]));
    }
    for certificate in [before.certificate, later.certificate] {
        assert!(authority.verify_peer(&[certificate], None, after(60)).is_ok());
    }
    // Each root's list is its own, and an older one does not come back.
    let place = authority.ca_status().certificates[1].place.clone();
    authority.ca_import_list(&new.list_of(42), &OPERATOR, NOW).unwrap();
    authority.ca_import_list(&old.list_of(7), &OPERATOR, NOW).unwrap();
    assert_eq!(authority.crl_at(&place, NOW).unwrap().unwrap().number, 42);
    assert_eq!(authority.crl_at("root", NOW).unwrap().unwrap().number, 7);
    let error = authority.ca_import_list(&new.list_of(41), &OPERATOR, NOW).unwrap_err();
    assert!(error.to_string().contains("is here already"), "{error}");
    authority.ca_retire(&OPERATOR, after(26 * HOUR)).unwrap();
    assert_eq!(authority.root_der(), new.der);
}

/// Other CAs below a root that is kept elsewhere are strangers, whatever names they give.
#[test]
fn what_another_ca_below_the_same_root_issued_is_foreign() {
    let directory = tempfile::tempdir().unwrap();
    let root = Elsewhere::root("Example Root");
    let ours = root.sign(&request(&mut setup(directory.path())), "Issuing");
    setup(directory.path()).import(&[ours, root.der.clone()], &OPERATOR, NOW).unwrap();
    let authority = open(directory.path()).unwrap();
    let (_, enrolled) = enrolled(&authority);
    // The same issuer name and serial number, another key.
    let twin = Elsewhere::below("Issuing", &root);
    let mut params = CertificateParams::default();
    params.serial_number = Some(rcgen::SerialNumber::from_slice(
        validate::serial_of(&enrolled.certificate).unwrap().as_bytes(),
    ));
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &twin.issuer()).unwrap().der().to_vec();
    let chain = [leaf, twin.der];
    let refused = authority.verify_peer(&chain, None, after(60)).unwrap_err();
    assert!(matches!(refused, PeerError::UnknownIssuer { .. }), "{refused}");
    let refused = authority.lease_of_chain(&chain, after(60)).unwrap_err();
    assert_eq!(refused.code, RefusalCode::CertificateUnusable);
    assert!(authority.lease_of_chain(&[enrolled.certificate], after(60)).is_ok());
}

/// A key that is barred stays barred however its request spells it.
#[test]
fn a_public_key_has_one_spelling() {
    let client = Client::new();
    let params = CertificateParams::new(Vec::new()).unwrap();
    let der = params.serialize_request(&client.key).unwrap().der().to_vec();
    let spki = client.csr().spki;
    let at = der.windows(spki.len()).position(|window| window == spki).unwrap();
    // The header with a length of two octets where one does.
    let mut long = vec![0x30, 0x81, spki[1]];
    long.extend_from_slice(&spki[2..]);
    let mut info = [&der[..at], &long, &der[at + spki.len()..]].concat();
    // Lengths of the request and of what is signed grow by one.
    assert_eq!((info[1], info[4]), (0x81, 0x81), "long enough for this test");
    info[2] += 1;
    info[5] += 1;
    let end = 6 + usize::from(info[5]);
    let signature = rcgen::SigningKey::sign(&client.key, &info[3..end]).unwrap();
    let algorithm = &[0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let bits = [&[3, u8::try_from(signature.len() + 1).unwrap(), 0][..], &signature].concat();
    let body = [&info[3..end], algorithm, &bits].concat();
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    let request = [&[0x30, 0x82][..], &length, &body].concat();
    let refused = Csr::from_der(&request).unwrap_err().to_string();
    assert!(refused.contains("not encoded as DER"), "{refused}");
}
