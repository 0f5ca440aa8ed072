//! A life of an authority, told step by step to a journal, until a failpoint ends it.
//!
//! `pki-crash-child DIRECTORY`: the state goes to `DIRECTORY/state`, each acknowledged step to
//! `DIRECTORY/journal`. Runs again on the same directory take up tokens of their own.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use common::*;
use pki::*;

fn main() {
    let directory = std::env::args().nth(1).unwrap();
    let directory = Path::new(&directory);
    let mut journal =
        OpenOptions::new().create(true).append(true).open(directory.join("journal")).unwrap();
    let mut tell = |line: String| journal.write_all(format!("{line}\n").as_bytes()).unwrap();

    if std::env::args().nth(2).as_deref() == Some("jwt") {
        tell(format!("enrolled {}", enrol_with_jwt(directory)));
        return;
    }
    if std::env::args().nth(2).as_deref() == Some("restore") {
        go_back(directory);
        return;
    }
    // The test that looked at the state has closed it just now.
    let options = || {
        let mut settings = settings();
        settings.roles.get_mut("deployer").unwrap().manual = true;
        Options::new(settings)
    };
    let authority = reopen(&directory.join("state"), options, NOW).unwrap();
    tell(format!("root {}", authority.root_fingerprint()));
    // The run before may have revoked one of the keys, which bars it.
    for bar in authority.bars().unwrap() {
        authority.lift_bar(&bar.what.id(), &OPERATOR, NOW).unwrap();
    }
    let names = ServerNames::new("gw.example.com");
    let identity = authority.server_identity(&names, NOW).unwrap();
    tell(format!("server {}", validate::serial_of(&identity.chain[0]).unwrap()));
    assert!(authority.ocsp_for(&identity.chain[0], NOW).unwrap().is_some());

    // One that an operator approves.
    let create = TokenCreate::new("deployer");
    let secret = authority.token_create(&create, &OPERATOR, NOW).unwrap().1;
    tell(format!("reserving {}", secret.expose()));
    let (auth, body) = (basic("deployer", secret.expose()), client(directory, 4).body());
    let request = est_request("/.well-known/est/simpleenroll", Some(&auth), &body);
    let waiting = match authority.est(&request, NOW).outcome {
        EstOutcome::Pending { lease_id, .. } => lease_id,
        other => panic!("{other:?}"),
    };
    tell(format!("waiting {waiting}"));
    authority.decide_pending(&waiting, true, None, &OPERATOR, NOW).unwrap();
    tell(format!("approved {waiting}"));
    match authority.est(&request, NOW).outcome {
        EstOutcome::Issued { lease_id, .. } => assert_eq!(lease_id, waiting),
        other => panic!("{other:?}"),
    }
    tell(format!("opened {waiting}"));

    let mut enrol = |key: usize| {
        let secret = token(&authority);
        tell(format!("token {key} {}", secret.expose()));
        let enrolled = enrol_over_est(&authority, &client(directory, key), &secret);
        tell(format!("enrolled {key} {enrolled}"));
        enrolled
    };
    let (kept, released, revoked, unused) = (enrol(0), enrol(1), enrol(2), enrol(3));

    authority.connected(&kept, after(1)).unwrap();
    tell(format!("connected {kept}"));
    let certificate = current_certificate(&authority, &kept);
    let peer = authority.verify_peer(&[certificate], None, after(2)).unwrap();
    let renewed = authority.renew(&peer, &client(directory, 0).csr(), None, after(2)).unwrap();
    tell(format!("renewed {kept} {}", renewed.lease.certs[1].serial));
    authority.release(&released, "client", &OPERATOR, after(3)).unwrap();
    tell(format!("released {released}"));
    authority
        .revoke(
            &RevokeSelector::Lease(revoked.clone()),
            RevocationReason::KeyCompromise,
            &OPERATOR,
            after(4),
        )
        .unwrap();
    tell(format!("revoked {revoked}"));
    tell(format!("crl {}", authority.crl(after(5)).unwrap().number));
    let change = authority.ca_rotate(signer::KeyKind::EcdsaP256, false, &OPERATOR, after(6));
    tell(format!("rotated {}", change.unwrap().issuing));
    authority.disconnected(&kept, "dead peer", after(299)).unwrap();
    tell(format!("lost {kept}"));
    authority.expire_due(after(300)).unwrap();
    tell(format!("expired {unused}"));
}

/// A backup, a revocation after it, and the backup again; on a directory that has these the last step
/// alone.
fn go_back(directory: &Path) {
    let key = BackupKey::read(&directory.join("backup-key")).unwrap();
    let (state, file) = (directory.join("state"), directory.join("backup"));
    let options = || Options::new(settings());
    if !file.exists() {
        let authority = reopen(&state, options, NOW).unwrap();
        let secret = token(&authority);
        let lease = enrol_over_est(&authority, &client(directory, 0), &secret);
        authority.backup(&file, &key, &OPERATOR, NOW).unwrap();
        let selector = RevokeSelector::Lease(lease.clone());
        authority.revoke(&selector, RevocationReason::Unspecified, &OPERATOR, after(1)).unwrap();
        authority.crl(after(2)).unwrap();
        std::fs::write(directory.join("revoked"), lease).unwrap();
        drop(authority);
        restore(&state, &file, &key).unwrap();
    }
    reopen(&state, options, after(3)).unwrap();
}

fn enrol_over_est(authority: &Authority, client: &Client, secret: &TokenSecret) -> String {
    let (auth, body) = (basic("builder", secret.expose()), client.body());
    let request = est_request("/.well-known/est/simpleenroll", Some(&auth), &body);
    match authority.est(&request, NOW).outcome {
        EstOutcome::Issued { lease_id, .. } => lease_id,
        other => panic!("{other:?}"),
    }
}

/// The token in `DIRECTORY/token` opens a lease, with the issuer's keys in `DIRECTORY/keys`.
fn enrol_with_jwt(directory: &Path) -> String {
    let settings = github_settings();
    let issuer = settings.issuers[0].clone();
    let options = || Options::new(settings.clone());
    let authority = reopen(&directory.join("state"), options, NOW).unwrap();
    let keys = std::fs::read(directory.join("keys")).unwrap();
    authority.jwt_keys_fetched(&issuer, Ok(keys), NOW).unwrap();
    let token = std::fs::read_to_string(directory.join("token")).unwrap();
    let body = base64(&client(directory, 0).csr_with_password(&token)).into_bytes();
    let request = est_request("/.well-known/est/simpleenroll", None, &body);
    match authority.est(&request, NOW).outcome {
        EstOutcome::Issued { lease_id, .. } => lease_id,
        other => panic!("{other:?}"),
    }
}

fn current_certificate(authority: &Authority, lease: &str) -> Vec<u8> {
    let lease = authority.lease(lease).unwrap().unwrap();
    authority.certificate(&lease.cert().unwrap().serial).unwrap().unwrap().der
}
