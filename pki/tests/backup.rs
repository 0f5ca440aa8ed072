//! A state that goes back in time, by a restored backup or by a copied file, forgets nothing that was
//! revoked, barred or spent since.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::*;
use pki::*;

struct Place {
    _directory: tempfile::TempDir,
    state: PathBuf,
    key: PathBuf,
    backup: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (state, key) = (directory.path().join("state"), directory.path().join("key"));
        std::fs::write(&key, "correct horse battery staple\n").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let backup = directory.path().join("gateway.backup");
        Self { _directory: directory, state, key, backup }
    }

    fn open(&self) -> Authority {
        self.open_at(50, |_| {}).unwrap()
    }

    fn open_at(&self, at: u64, change: impl Fn(&mut Options)) -> Result<Authority, Error> {
        let options = || {
            let mut options = Options::new(settings());
            change(&mut options);
            options
        };
        reopen(&self.state, options, after(at))
    }

    fn key(&self) -> BackupKey {
        BackupKey::read(&self.key).unwrap()
    }

    fn journal(&self) -> PathBuf {
        self.state.join("revocations.journal")
    }
}

/// What is there at the backup, and what happens to it afterwards.
struct Story {
    kept: String,
    revoked: String,
    revoked_cert: Vec<u8>,
    second_client: Client,
    spent: TokenSecret,
    crl: u64,
}

/// Two clients before the backup; after it one is revoked, a token is spent by a third, and lists are
/// published.
fn story(place: &Place, backup: impl Fn(&Authority)) -> Story {
    let authority = place.open_at(0, |_| {}).unwrap();
    let (first, second, third) = (Client::new(), Client::new(), Client::new());
    let kept = enrol(&authority, &first, &new_token(&authority), NOW).lease.id;
    let revoked = enrol(&authority, &second, &new_token(&authority), NOW);
    authority.crl(NOW).unwrap();
    let spent = new_token(&authority);
    backup(&authority);
    let selector = RevokeSelector::Lease(revoked.lease.id.clone());
    authority.revoke(&selector, RevocationReason::KeyCompromise, &OPERATOR, after(10)).unwrap();
    enrol(&authority, &third, &spent, after(11));
    let crl = authority.crl(after(12)).unwrap().number;
    Story {
        kept,
        revoked: revoked.lease.id,
        revoked_cert: revoked.certificate,
        second_client: second,
        spent,
        crl,
    }
}

fn nothing_is_forgotten(authority: &Authority, story: &Story) {
    let revoked = authority.lease(&story.revoked).unwrap().unwrap();
    assert_eq!(revoked.state, LeaseState::Revoked);
    let peer =
        authority.verify_peer(std::slice::from_ref(&story.revoked_cert), None, after(60)).unwrap();
    let error = authority.authorise(&peer, after(60)).unwrap_err();
    assert!(matches!(error, AccessError::Revoked { .. } | AccessError::KeyBarred(_)), "{error}");
    // Its key is still barred, and the token still spent.
    let token = new_token_at(authority, after(60));
    assert!(try_enrol(authority, &story.second_client, &token, after(60)).is_err());
    assert!(try_enrol(authority, &Client::new(), &story.spent, after(60)).is_err());
    let crl = authority.crl(after(60)).unwrap();
    assert!(crl.number > story.crl, "{} after {}", crl.number, story.crl);
    assert_eq!(crl.entries, 1);
    let kept = authority.lease(&story.kept).unwrap().unwrap();
    assert!(kept.state.is_live(), "{}", kept.state);
    // The trail goes on, with a gap where records are missing.
    let report = authority.verify_audit().unwrap();
    assert!(report.faults.iter().all(|fault| fault.kind == FaultKind::Missing), "{report:?}");
}

#[test]
fn a_restored_backup_keeps_what_was_revoked_and_spent_since() {
    let place = Place::new();
    let story = story(&place, |authority| {
        let head = authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).unwrap();
        assert_eq!(head.root_sha256, authority.root_fingerprint());
    });
    let head = restore(&place.state, &place.backup, &place.key()).unwrap();
    assert_eq!(head.created, NOW);
    let authority = place.open();
    assert!(authority.startup().replayed.is_some_and(|changes| changes > 0));
    assert!(!authority.startup().broken_trail);
    nothing_is_forgotten(&authority, &story);
    drop(authority);
    // Once is enough.
    let authority = place.open();
    assert_eq!(authority.startup().replayed, None);
    nothing_is_forgotten(&authority, &story);
}

#[test]
fn a_file_that_was_copied_back_is_found_at_the_next_start() {
    let place = Place::new();
    let copy = place.state.join("copy");
    let story = story(&place, |_| {
        for ending in ["", "-wal"] {
            let name = format!("runnel.db{ending}");
            std::fs::copy(place.state.join(&name), format!("{}{ending}", copy.display())).unwrap();
        }
    });
    for ending in ["", "-wal"] {
        let to = place.state.join(format!("runnel.db{ending}"));
        std::fs::copy(format!("{}{ending}", copy.display()), to).unwrap();
    }
    let authority = place.open();
    assert!(authority.startup().replayed.is_some());
    nothing_is_forgotten(&authority, &story);
}

#[test]
fn the_second_place_of_the_journal_is_enough() {
    let place = Place::new();
    let second = place.key.with_file_name("second.journal");
    let with_second = |options: &mut Options| options.journal = Some(second.clone());
    place.open_at(0, with_second).map(drop).unwrap();
    // What is journaled goes to both while the second is configured.
    let authority = place.open_at(1, with_second).unwrap();
    authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).unwrap();
    let lease = enrol(&authority, &Client::new(), &new_token(&authority), NOW).lease.id;
    let selector = RevokeSelector::Lease(lease);
    authority.revoke(&selector, RevocationReason::Unspecified, &OPERATOR, after(2)).unwrap();
    drop(authority);
    std::fs::remove_file(place.journal()).unwrap();
    restore(&place.state, &place.backup, &place.key()).unwrap();
    let authority = place.open_at(3, with_second).unwrap();
    assert!(authority.startup().replayed.is_some());
    assert_eq!(authority.crl(after(4)).unwrap().entries, 1, "of a certificate made after it, too");
    assert!(place.journal().exists());
}

#[test]
fn a_backup_from_before_a_ca_was_revoked_comes_back_without_that_ca() {
    let place = Place::new();
    let authority = place.open_at(0, |_| {}).unwrap();
    let lease = enrol(&authority, &Client::new(), &new_token(&authority), NOW).lease.id;
    let old = authority.ca_status().certificates[1].clone();
    assert_eq!(old.kind, "issuing");
    authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).unwrap();
    authority.ca_rotate(signer::KeyKind::EcdsaP256, false, &OPERATOR, after(1)).unwrap();
    let reason = RevocationReason::KeyCompromise;
    authority.ca_revoke(&old.place, reason, &OPERATOR, after(2)).unwrap();
    drop(authority);
    restore(&place.state, &place.backup, &place.key()).unwrap();
    for _ in 0..2 {
        let authority = place.open();
        let there = authority.ca_status().certificates;
        assert!(there.iter().all(|ca| ca.sha256 != old.sha256), "{there:?}");
        assert_eq!(authority.root_crl(after(60)).unwrap().entries, 1);
        assert_eq!(authority.lease(&lease).unwrap().unwrap().state, LeaseState::Revoked);
    }
}

#[test]
fn without_its_journal_nothing_starts_until_the_loss_is_accepted() {
    let place = Place::new();
    let story = story(&place, |authority| {
        authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).map(drop).unwrap();
    });
    restore(&place.state, &place.backup, &place.key()).unwrap();
    std::fs::remove_file(place.journal()).unwrap();
    let error = place.open_at(50, |_| {}).unwrap_err();
    let sentence = error.to_string();
    assert!(matches!(error, Error::Rollback(_)), "{sentence}");
    assert!(sentence.contains(&format!("--accept-loss-after {NOW}")), "{sentence}");
    // A guess is no acceptance.
    assert!(place.open_at(50, |options| options.accept_loss = Some(after(1).to_string())).is_err());
    let authority =
        place.open_at(50, |options| options.accept_loss = Some(NOW.to_string())).unwrap();
    for lease in authority.leases(true).unwrap() {
        assert!(!lease.state.is_live(), "{} is {}", lease.id, lease.state);
    }
    assert!(try_enrol(&authority, &Client::new(), &story.spent, after(60)).is_err());
    assert!(authority.crl(after(60)).unwrap().number > story.crl);
    drop(authority);
    place.open_at(70, |_| {}).unwrap();
}

#[test]
fn a_backup_opens_with_its_key_only_and_only_whole() {
    let place = Place::new();
    let authority = place.open_at(0, |_| {}).unwrap();
    authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).unwrap();
    drop(authority);
    let mode = std::fs::metadata(&place.backup).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let whole = std::fs::read(&place.backup).unwrap();
    assert!(!contains(&whole, b"ca/current"), "the store is readable in the backup");
    let refused = |octets: &[u8], key: &BackupKey| {
        let file = place.backup.with_extension("bad");
        std::fs::write(&file, octets).unwrap();
        let before = std::fs::read(place.state.join("runnel.db")).unwrap();
        assert!(matches!(restore(&place.state, &file, key), Err(Error::Invalid(_))));
        assert_eq!(std::fs::read(place.state.join("runnel.db")).unwrap(), before);
    };
    refused(&whole[..whole.len() - 1], &place.key());
    refused(&whole[..40], &place.key());
    let mut altered = whole.clone();
    altered[30] ^= 1;
    refused(&altered, &place.key());
    std::fs::write(&place.key, "another passphrase\n").unwrap();
    refused(&whole, &place.key());
    std::fs::write(&place.key, "short\n").unwrap();
    assert!(BackupKey::read(&place.key).unwrap_err().to_string().contains("at least"));
    std::fs::set_permissions(&place.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(BackupKey::read(&place.key).unwrap_err().to_string().contains("chmod 600"));
}

fn contains(octets: &[u8], part: &[u8]) -> bool {
    octets.windows(part.len()).any(|window| window == part)
}

fn new_token(authority: &Authority) -> TokenSecret {
    new_token_at(authority, NOW)
}

fn new_token_at(authority: &Authority, at: UnixTime) -> TokenSecret {
    authority.token_create(&TokenCreate::new("builder"), &OPERATOR, at).unwrap().1
}

fn enrol(authority: &Authority, client: &Client, token: &TokenSecret, at: UnixTime) -> Enrolled {
    try_enrol(authority, client, token, at).unwrap()
}

fn try_enrol(
    authority: &Authority,
    client: &Client,
    token: &TokenSecret,
    at: UnixTime,
) -> Result<Enrolled, Refusal> {
    authority.enrol_with_token("builder", token.expose(), &client.csr(), None, at)
}
