//! Kills an authority at every failpoint and looks at what is left.
//!
//! What was acknowledged must be there; what was not may be there, but only whole.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitStatus};

use common::*;
use pki::*;

/// Later visits of the same place are killed at too, up to this many.
const VISITS: u32 = 4;

fn run(directory: &Path, failpoint: Option<&str>) -> ExitStatus {
    run_as(directory, &[], failpoint)
}

fn run_as(directory: &Path, words: &[&str], failpoint: Option<&str>) -> ExitStatus {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pki-crash-child"));
    child.arg(directory).args(words).env_remove("RUNNEL_FAILPOINT");
    if let Some(failpoint) = failpoint {
        child.env("RUNNEL_FAILPOINT", failpoint);
    }
    child.status().unwrap()
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_every_failpoint() {
    let only = std::env::var("RUNNEL_CRASH_ONLY").ok();
    for name in failpoint::LIST {
        if only.as_deref().is_some_and(|only| only != *name) {
            continue;
        }
        for visit in 1..=VISITS {
            let directory = tempfile::tempdir().unwrap();
            write_keys(directory.path());
            let place = format!("{name}:{visit}");
            let status = run(directory.path(), Some(&place));
            if status.success() {
                assert!(visit > 1, "{name} is listed but never visited");
                break;
            }
            assert_eq!(signal(status), Some(6), "{place}: the child failed by itself");
            inspect(directory.path(), &place);
            assert!(run(directory.path(), None).success(), "{place}: the next start failed");
        }
    }
}

#[test]
fn a_kill_while_a_backup_comes_back_forgets_no_revocation() {
    for place in failpoint::RESTORE {
        let directory = tempfile::tempdir().unwrap();
        write_keys(directory.path());
        let key = directory.path().join("backup-key");
        std::fs::write(&key, "correct horse battery staple").unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let status = run_as(directory.path(), &["restore"], Some(place));
        assert_eq!(
            signal(status),
            Some(6),
            "{place}: the child failed by itself, or never came there"
        );
        let lease = std::fs::read_to_string(directory.path().join("revoked")).unwrap();
        let options = || Options::new(settings());
        let authority = reopen(&directory.path().join("state"), options, after(5)).unwrap();
        let state = authority.lease(&lease).unwrap().unwrap().state;
        assert_eq!(state, LeaseState::Revoked, "{place}");
        assert_eq!(authority.crl(after(5)).unwrap().entries, 1, "{place}");
        assert!(!authority.startup().broken_trail, "{place}");
    }
}

fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

fn write_keys(directory: &Path) {
    for key in 0..5 {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        std::fs::write(directory.join(format!("key{key}.pem")), pem).unwrap();
    }
}

/// Compares the state with the journal and with itself.
fn inspect(directory: &Path, place: &str) {
    let journal = std::fs::read_to_string(directory.join("journal")).unwrap_or_default();
    let options = || Options::new(settings());
    let authority = reopen(&directory.join("state"), options, after(5)).unwrap();
    assert!(!authority.startup().broken_trail, "{place}");
    let trail = authority.verify_audit().unwrap();
    assert!(trail.is_sound() && trail.sealed, "{place}: {trail:?}");
    let lease = |id: &str| {
        authority.lease(id).unwrap().unwrap_or_else(|| panic!("{place}: lease {id} is gone"))
    };

    let mut secrets: BTreeMap<usize, String> = BTreeMap::new();
    let mut enrolled: BTreeMap<usize, String> = BTreeMap::new();
    let mut reserved: Option<String> = None;
    for line in journal.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["root", fingerprint] => {
                assert_eq!(authority.root_fingerprint(), fingerprint, "{place}");
                assert!(!authority.startup().created_ca, "{place}");
            }
            ["server", serial] => {
                let identity =
                    authority.server_identity(&ServerNames::new("gw.example.com"), NOW).unwrap();
                // The rotation at the end makes another.
                if authority.ca_status().certificates.len() == 2 {
                    assert!(!identity.issued_now, "{place}");
                    let found = validate::serial_of(&identity.chain[0]).unwrap();
                    assert_eq!(found.to_string(), serial, "{place}");
                }
                assert!(authority.certificate(&serial.parse().unwrap()).unwrap().is_some());
            }
            ["token", key, secret] => {
                secrets.insert(key.parse().unwrap(), secret.to_owned());
            }
            ["enrolled", key, id] => {
                lease(id);
                enrolled.insert(key.parse().unwrap(), id.to_owned());
            }
            ["reserving", secret] => reserved = Some(secret.to_owned()),
            ["waiting", id] => assert!(state_of(&authority, id).is_some(), "{place}"),
            ["approved", id] => {
                assert!(matches!(state_of(&authority, id), Some("approved" | "open")), "{place}");
            }
            ["opened", id] => assert_eq!(state_of(&authority, id), Some("open"), "{place}"),
            ["connected", id] => {
                let state = lease(id).state;
                assert!(
                    matches!(state, LeaseState::Lost | LeaseState::Released),
                    "{place}: {state}"
                );
                assert!(lease(id).first_connected.is_some(), "{place}");
            }
            ["renewed", id, serial] => {
                assert_eq!(lease(id).cert().unwrap().serial.to_string(), serial, "{place}");
            }
            ["released", id] => assert_eq!(lease(id).state, LeaseState::Released, "{place}"),
            ["revoked", id] => {
                assert_eq!(lease(id).state, LeaseState::Revoked, "{place}");
                assert_eq!(authority.bars().unwrap().len(), 1, "{place}: its key is barred");
            }
            ["lost", id] => assert_eq!(lease(id).state, LeaseState::Lost, "{place}"),
            ["expired", id] => assert_eq!(lease(id).state, LeaseState::Expired, "{place}"),
            ["rotated", ref words @ ..] => {
                let names = authority.ca_status().certificates.into_iter().map(|ca| ca.subject);
                let subject = words.join(" ");
                assert!(names.clone().any(|name| name == subject), "{place}: {subject}");
            }
            ["crl", number] => {
                let crl = authority.crl_at("issuing", after(2_000)).unwrap().unwrap();
                assert!(crl.number > number.parse().unwrap(), "{place}: {}", crl.number);
            }
            _ => panic!("{place}: strange journal line {line:?}"),
        }
    }
    whole(&authority, place);
    if let Some(secret) = reserved {
        reserved_for_one_key(&authority, directory, place, &secret);
    }
    retry(&authority, directory, place, &secrets, &enrolled);
}

/// Where a lease that was asked for stands: `pending`, `approved`, or `open` and what comes after.
fn state_of(authority: &Authority, id: &str) -> Option<&'static str> {
    if authority.lease(id).unwrap().is_some() {
        return Some("open");
    }
    let waiting = authority.pending_leases(after(5)).unwrap();
    waiting.iter().find(|pending| pending.id == id).map(PendingLease::state)
}

/// A token that may be reserved stands for one lease of its key, and for nothing of another's.
fn reserved_for_one_key(authority: &Authority, directory: &Path, place: &str, secret: &str) {
    let id = secret.split('-').next().unwrap();
    let token = authority.tokens().unwrap().into_iter().find(|token| token.id == id).unwrap();
    let Some(spend) = token.spends.first().cloned() else { return };
    assert!(state_of(authority, &spend.lease_id).is_some(), "{place}: reserved for nothing");
    let enrol = |csr: &Csr| authority.enrol_with_token("deployer", secret, csr, None, after(6));
    let other = enrol(&Client::new().csr()).unwrap_err();
    assert_eq!(other.code, RefusalCode::TokenSpent, "{place}");
    match enrol(&client(directory, 4).csr()) {
        Ok(enrolled) => assert_eq!(enrolled.lease.id, spend.lease_id, "{place}"),
        Err(refusal) => {
            let waits = refusal.pending.map(|pending| pending.id);
            let ended = refusal.code == RefusalCode::LeaseEnded;
            assert!(ended || waits == Some(spend.lease_id), "{place}");
        }
    }
}

/// Whatever is there is there with everything that belongs to it.
fn whole(authority: &Authority, place: &str) {
    let leases = authority.leases(true).unwrap();
    let tokens = authority.tokens().unwrap();
    for token in &tokens {
        assert!(token.spends.len() <= 1, "{place}: spent twice");
        for spend in token.spends.iter().filter(|spend| !spend.pending) {
            let lease = leases.iter().find(|lease| lease.id == spend.lease_id);
            assert_eq!(lease.unwrap().token.as_ref(), Some(&token.id), "{place}");
        }
    }
    let spent =
        tokens.iter().filter(|token| token.spends.iter().any(|spend| !spend.pending)).count();
    assert_eq!(spent, leases.len(), "{place}: a lease without its token or the reverse");
    for lease in &leases {
        for cert in &lease.certs {
            let record = authority.certificate(&cert.serial).unwrap().unwrap();
            assert_eq!(record.lease_id.as_ref(), Some(&lease.id), "{place}");
            assert_eq!(record.revoked.is_some(), !lease.state.is_live(), "{place}");
        }
    }
    let live: Vec<_> = leases.iter().filter(|lease| lease.state.is_live()).collect();
    assert_eq!(authority.leases(false).unwrap().len(), live.len(), "{place}");
}

/// The same token and key get the same lease, or their first one if nothing was committed.
fn retry(
    authority: &Authority,
    directory: &Path,
    place: &str,
    secrets: &BTreeMap<usize, String>,
    enrolled: &BTreeMap<usize, String>,
) {
    for (key, secret) in secrets {
        let before = authority.leases(true).unwrap().len();
        let id = secret.split('-').next().unwrap();
        let token = authority.tokens().unwrap().into_iter().find(|token| token.id == id);
        let spent = token.unwrap().spends.first().map(|spend| spend.lease_id.clone());
        let csr = client(directory, *key).csr();
        match (authority.enrol_with_token("builder", secret, &csr, None, after(6)), &spent) {
            (Ok(again), Some(first)) => {
                assert_eq!(&again.lease.id, first, "{place}");
                assert!(again.replayed, "{place}");
                assert_eq!(authority.leases(true).unwrap().len(), before, "{place}");
            }
            (Ok(fresh), None) => assert!(!fresh.replayed, "{place}"),
            (Err(refusal), Some(first)) => {
                assert_eq!(refusal.code, RefusalCode::LeaseEnded, "{place}: {refusal}");
                assert!(!authority.lease(first).unwrap().unwrap().state.is_live(), "{place}");
            }
            (Err(refusal), None) => panic!("{place}: {refusal}"),
        }
        if let Some(acknowledged) = enrolled.get(key) {
            assert_eq!(Some(acknowledged), spent.as_ref(), "{place}");
        }
        let other =
            authority.enrol_with_token("builder", secret, &Client::new().csr(), None, after(6));
        assert_eq!(other.unwrap_err().code, RefusalCode::TokenSpent, "{place}");
    }
}

/// Where an enrolment can be cut off.
const ENROLMENT: [&str; 7] = [
    "lease.after_allocation",
    "enrol.after_signing",
    "enrol.before_commit",
    "enrol.after_commit",
    "enrol.before_answer",
    "store.before_commit",
    "store.after_commit",
];

#[test]
fn a_token_of_a_platform_opens_one_lease_wherever_the_process_dies() {
    // RFC 7519 4.1.7.
    let key = oidc::IssuerKey::rs256("k");
    let token = key.sign(&oidc::github(NOW.secs(), AUDIENCE, "crash"));
    for name in ENROLMENT {
        for visit in 1..=VISITS {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            write_keys(path);
            std::fs::write(path.join("token"), &token).unwrap();
            std::fs::write(path.join("keys"), oidc::jwks(&[&key])).unwrap();
            let place = format!("{name}:{visit}");
            let status = run_as(path, &["jwt"], Some(&place));
            if status.success() {
                assert!(visit > 1, "{name} is never visited");
                break;
            }
            assert_eq!(signal(status), Some(6), "{place}: the child failed by itself");
            let before = only_lease(path, &key, &token, &place);
            assert!(run_as(path, &["jwt"], None).success(), "{place}: the retry failed");
            let after = only_lease(path, &key, &token, &place);
            assert_eq!(before.or(after.clone()), after, "{place}: another lease");
            let journal = std::fs::read_to_string(path.join("journal")).unwrap();
            assert_eq!(journal.trim_end(), format!("enrolled {}", after.unwrap()), "{place}");
        }
    }
}

/// The lease the token opened, if it did: for its own key alone.
fn only_lease(directory: &Path, key: &oidc::IssuerKey, token: &str, place: &str) -> Option<String> {
    let settings = github_settings();
    let issuer = settings.issuers[0].clone();
    let options = || Options::new(settings.clone());
    let authority = reopen(&directory.join("state"), options, after(5)).unwrap();
    authority.jwt_keys_fetched(&issuer, Ok(oidc::jwks(&[key])), after(5)).unwrap();
    let leases = authority.leases(true).unwrap();
    assert!(leases.len() <= 1, "{place}: one token opened {} leases", leases.len());
    let id = leases.first().map(|lease| lease.id.clone())?;
    assert_eq!(authority.lease_of_jwt(token, after(5)).unwrap().id, id, "{place}");
    let thief = Client::new().csr();
    let refused = authority.enrol_with_jwt(None, token, &thief, None, after(5)).unwrap_err();
    assert_eq!(refused.code, RefusalCode::TokenReplay, "{place}");
    Some(id)
}
