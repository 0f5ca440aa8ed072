//! A state that goes back in time, by a restored backup or by a copied file, forgets nothing that was
//! revoked, barred or spent since.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;

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
fn a_backup_is_old_also_when_nothing_was_revoked_since() {
    let place = Place::new();
    let authority = place.open_at(0, |_| {}).unwrap();
    authority.crl(NOW).unwrap();
    authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).unwrap();
    let kept = authority.audit_end().unwrap();
    // Somebody has the next list, and the next records of the trail.
    let crl = authority.crl(after(2_000)).unwrap().number;
    for _ in 0..3 {
        authority.record_audit(&AuditEvent::new("tunnel.up", &OPERATOR, after(2_000))).unwrap();
    }
    let seen = authority.audit_end().unwrap();
    drop(authority);
    restore(&place.state, &place.backup, &place.key()).unwrap();
    let authority = place.open_at(3_000, |_| {}).unwrap();
    assert_eq!(authority.startup().replayed, Some(0));
    assert!(authority.crl(after(3_000)).unwrap().number > crl);
    let positions: Vec<u64> =
        authority.audit(0, 1_000).unwrap().into_iter().map(|record| record.seq).collect();
    assert!(
        positions.iter().all(|at| *at <= kept || *at > seen),
        "{positions:?}, {seen} were seen"
    );
    assert!(authority.audit_end().unwrap() > seen);
    drop(authority);
    assert_eq!(place.open_at(3_001, |_| {}).unwrap().startup().replayed, None, "once is enough");
}

#[test]
fn a_second_place_that_is_not_mounted_is_missed() {
    let place = Place::new();
    let mount = place.key.with_file_name("mount");
    std::fs::create_dir(&mount).unwrap();
    let second = mount.join("second.journal");
    let with_second = |options: &mut Options| options.journal = Some(second.clone());
    place.open_at(0, with_second).map(drop).unwrap();
    let away = place.key.with_file_name("away");
    std::fs::rename(&second, &away).unwrap();
    let told = place.open_at(1, with_second).unwrap_err();
    let sentence = told.to_string();
    assert!(matches!(told, Error::Rollback(_)), "{sentence}");
    assert!(sentence.contains("mount it") && sentence.contains("second.journal"), "{sentence}");
    assert!(!second.exists(), "nothing is written below its mount");
    std::fs::rename(&away, &second).unwrap();
    place.open_at(2, with_second).map(drop).unwrap();
    // Its disk is lost: with a copy it goes on, and so it does without a second place.
    std::fs::remove_file(&second).unwrap();
    std::fs::copy(place.journal(), &second).unwrap();
    place.open_at(3, with_second).map(drop).unwrap();
    std::fs::remove_file(&second).unwrap();
    place.open_at(4, |_| {}).map(drop).unwrap();
    place.open_at(5, with_second).map(drop).unwrap();
    assert!(second.exists());
}

#[test]
fn a_damaged_journal_is_mended_from_the_second_place_and_that_is_told() {
    let place = Place::new();
    let second = place.key.with_file_name("second.journal");
    let with_second = |options: &mut Options| options.journal = Some(second.clone());
    place.open_at(0, with_second).map(drop).unwrap();
    let mut octets = std::fs::read(place.journal()).unwrap();
    let middle = octets.len() / 2;
    octets[middle] ^= 1;
    std::fs::write(place.journal(), octets).unwrap();
    let told = place.open_at(1, |_| {}).unwrap_err();
    assert!(matches!(told, Error::Rollback(_)), "by itself it is no journal: {told}");
    let authority = place.open_at(1, with_second).unwrap();
    assert_eq!(authority.startup().mended_journals, [place.journal()]);
    drop(authority);
    let authority = place.open_at(2, with_second).unwrap();
    assert!(authority.startup().mended_journals.is_empty());
}

#[test]
fn each_restore_keeps_what_was_there() {
    let place = Place::new();
    let story = story(&place, |authority| {
        authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).map(drop).unwrap();
    });
    restore(&place.state, &place.backup, &place.key()).unwrap();
    restore(&place.state, &place.backup, &place.key()).unwrap();
    let kept = place.state.join("runnel.db.before-restore");
    assert!(place.state.join("runnel.db.before-restore-2").exists());
    // The first is the one with the revocation; whoever puts it back has it.
    std::fs::rename(kept, place.state.join("runnel.db")).unwrap();
    let authority = place.open();
    assert_eq!(authority.startup().replayed, None);
    let revoked = authority.lease(&story.revoked).unwrap().unwrap();
    assert_eq!(revoked.state, LeaseState::Revoked);
    drop(authority);
    // One that cannot be kept whole is not replaced.
    std::fs::write(place.state.join("runnel.db"), "no database, but somebody's last hope").unwrap();
    let told = restore(&place.state, &place.backup, &place.key()).unwrap_err().to_string();
    assert!(told.contains("move it away"), "{told}");
    let there = std::fs::read(place.state.join("runnel.db")).unwrap();
    assert!(there.starts_with(b"no database"));
}

#[test]
fn a_backup_leaves_no_plain_copy_and_follows_no_link() {
    let place = Place::new();
    let authority = place.open_at(0, |_| {}).unwrap();
    let victim = place.key.with_file_name("victim");
    std::fs::write(&victim, "untouched").unwrap();
    for ending in ["new", "store"] {
        let link = format!("{}.{ending}", place.backup.display());
        std::os::unix::fs::symlink(&victim, link).unwrap();
    }
    authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).unwrap();
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    assert!(std::fs::symlink_metadata(&place.backup).unwrap().is_file());
    drop(authority);
    let copy = place.state.join("runnel.db.copy");
    assert!(!copy.exists());
    // What a kill left goes with the next start.
    std::fs::write(&copy, "of a backup").unwrap();
    let authority = place.open();
    assert!(!copy.exists());
    authority.backup(&place.backup, &place.key(), &OPERATOR, after(60)).unwrap();
}

/// GitHub's jobs enrol, and builders wait for an operator where `manual` says so.
fn ci(options: &mut Options, manual: bool) {
    options.settings = github_settings();
    options.settings.issuers[0].algorithms = vec![JwtAlgorithm::EdDsa];
    options.settings.roles.get_mut("builder").unwrap().manual = manual;
}

fn open_ci(place: &Place, key: &oidc::IssuerKey, at: u64, manual: bool) -> Authority {
    let authority = place.open_at(at, |options| ci(options, manual)).unwrap();
    knows(authority, key, at)
}

fn knows(authority: Authority, key: &oidc::IssuerKey, at: u64) -> Authority {
    let issuer = authority.settings().issuers[0].clone();
    authority.jwt_keys_fetched(&issuer, Ok(oidc::jwks(&[key])), after(at)).unwrap();
    authority
}

fn job(key: &oidc::IssuerKey, run: &str, jti: &str, at: u64) -> String {
    let mut claims = oidc::github(after(at).secs(), AUDIENCE, jti);
    claims["run_id"] = run.into();
    key.sign(&claims)
}

#[test]
fn spent_tokens_of_jobs_barred_runs_and_barred_sites_stay_so() {
    let place = Place::new();
    let key = oidc::IssuerKey::eddsa("k");
    let authority = open_ci(&place, &key, 0, false);
    let enrol = |authority: &Authority, jwt: &str, at: u64| {
        authority.enrol_with_jwt(None, jwt, &Client::new().csr(), None, after(at))
    };
    let office = SitePeer {
        site: "office",
        subject: "CN=gw.office.example.com",
        spki_sha256: "ab",
        until: after(3_600),
    };
    let site = authority.site_lease(&office, NOW).unwrap().id;
    authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).unwrap();
    let spent = job(&key, "4711", "a", 1);
    enrol(&authority, &spent, 1).unwrap();
    enrol(&authority, &job(&key, "4712", "b", 1), 1).unwrap();
    let reason = RevocationReason::Unspecified;
    let run = RevokeSelector::Run { run: "4712".to_owned(), issuer: None };
    authority.revoke(&run, reason, &OPERATOR, after(2)).unwrap();
    authority.revoke(&RevokeSelector::Lease(site), reason, &OPERATOR, after(2)).unwrap();
    drop(authority);
    restore(&place.state, &place.backup, &place.key()).unwrap();
    let authority = open_ci(&place, &key, 3, false);
    let refused = enrol(&authority, &spent, 4).unwrap_err();
    assert_eq!(refused.code, RefusalCode::TokenReplay, "{refused}");
    let refused = enrol(&authority, &job(&key, "4712", "c", 4), 4).unwrap_err();
    assert!(refused.to_string().contains("4712"), "{refused}");
    assert!(authority.site_lease(&office, after(4)).is_err());
    enrol(&authority, &job(&key, "4713", "d", 4), 4).unwrap();
}

#[test]
fn what_an_operator_denied_stays_denied() {
    let place = Place::new();
    let key = oidc::IssuerKey::eddsa("k");
    let authority = open_ci(&place, &key, 0, true);
    let client = Client::new();
    let secret = new_token(&authority);
    let ask = |authority: &Authority, at: u64| {
        let asked =
            authority.enrol_with_token("builder", secret.expose(), &client.csr(), None, after(at));
        asked.unwrap_err()
    };
    let waiting = ask(&authority, 0).pending.unwrap().id;
    authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).unwrap();
    authority.decide_pending(&waiting, false, Some("not today"), &OPERATOR, after(1)).unwrap();
    drop(authority);
    restore(&place.state, &place.backup, &place.key()).unwrap();
    let authority = open_ci(&place, &key, 2, true);
    let told = ask(&authority, 3);
    assert_eq!(told.code, RefusalCode::ApprovalDenied, "{told}");
    assert!(told.to_string().contains("not today"), "{told}");
}

#[test]
fn after_an_accepted_loss_only_tokens_of_later_jobs_open_leases() {
    let place = Place::new();
    let key = oidc::IssuerKey::eddsa("k");
    let authority = open_ci(&place, &key, 0, false);
    authority.backup(&place.backup, &place.key(), &OPERATOR, NOW).unwrap();
    drop(authority);
    restore(&place.state, &place.backup, &place.key()).unwrap();
    std::fs::remove_file(place.journal()).unwrap();
    let accepted = |options: &mut Options| {
        ci(options, false);
        options.accept_loss = Some(NOW.to_string());
    };
    let authority = knows(place.open_at(50, accepted).unwrap(), &key, 50);
    let enrol =
        |jwt: &str| authority.enrol_with_jwt(None, jwt, &Client::new().csr(), None, after(60));
    let refused = enrol(&job(&key, "1", "a", 40)).unwrap_err();
    assert_eq!(refused.code, RefusalCode::TokenReplay, "{refused}");
    assert!(refused.to_string().contains("start the job again"), "{refused}");
    enrol(&job(&key, "1", "b", 55)).unwrap();
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
