//! What the journal keeps, whatever happens to its files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use zeroize::Zeroizing;

use super::*;
use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, StateDirectory, lock};
use crate::csr::Csr;
use crate::enrol::token::TokenCreate;

use crate::profile::{Options, PoolConfig, RoleProfile, Settings};
use crate::revoke::RevocationReason;
use crate::select::RevokeSelector;
use crate::time::UnixTime;

fn look(paths: &[PathBuf]) -> Result<Found, Error> {
    Found::look(paths.to_vec(), &Zeroizing::new([7; 32]))
}

fn one(path: &Path) -> Result<Found, Error> {
    look(&[path.to_owned()])
}

/// A change that the store commits.
fn note(journal: &mut Journal, revision: u64, facts: &[Fact]) {
    journal.note(Some(revision - 1), revision, 1, facts).unwrap();
    journal.committed();
}

fn fact(name: &str, value: Option<&str>) -> Fact {
    (name.to_owned(), value.map(|value| value.as_bytes().to_vec()))
}

#[test]
fn what_was_noted_is_found_and_only_what_is_newer_counts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let mut journal = one(&path).unwrap().open("e", 0, 0).unwrap();
    note(&mut journal, 1, &[fact("token/a", Some("new"))]);
    note(&mut journal, 5, &[fact("token/a", Some("spent")), fact("revoked/x", Some("r"))]);
    let found = one(&path).unwrap();
    assert_eq!((found.last(), found.epoch()), (5, Some("e")));
    assert!(found.reserved().0 > 5 && found.reserved().1 > 1);
    assert_eq!(found.facts_after(5), []);
    let newer = found.facts_after(1);
    assert_eq!(newer.len(), 2, "the last value of each key: {newer:?}");
    assert!(newer.contains(&fact("token/a", Some("spent"))));
    // A line that a crash cut off was acknowledged to nobody.
    let mut octets = std::fs::read(&path).unwrap();
    octets.extend_from_slice(b"{\"r\":6");
    std::fs::write(&path, &octets).unwrap();
    let mut journal = one(&path).unwrap().open("e", 5, 3).unwrap();
    note(&mut journal, 7, &[fact("revoked/y", Some("r"))]);
    assert_eq!(one(&path).unwrap().last(), 7);
}

#[test]
fn no_line_can_be_changed_or_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let mut journal = one(&path).unwrap().open("e", 0, 0).unwrap();
    for revision in 1..4 {
        note(&mut journal, revision, &[fact("revoked/x", Some("r"))]);
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let without: String =
        lines.iter().enumerate().filter(|(at, _)| *at != 2).map(|(_, line)| *line).collect();
    for wrong in [without, text.replacen("\"r\":2", "\"r\":1", 1)] {
        std::fs::write(&path, wrong).unwrap();
        assert!(matches!(one(&path), Err(Error::Rollback(_))));
    }
    std::fs::write(&path, &text).unwrap();
    assert!(Found::look(vec![path], &Zeroizing::new([8; 32])).is_err());
}

#[test]
fn the_newer_of_two_places_counts_and_mends_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let places = [directory.path().join("one"), directory.path().join("two")];
    let mut journal = look(&places).unwrap().open("e", 0, 0).unwrap();
    note(&mut journal, 1, &[fact("revoked/x", Some("r"))]);
    let old = std::fs::read(&places[0]).unwrap();
    note(&mut journal, 2, &[fact("revoked/y", Some("r"))]);
    for lost in [Some(old), None] {
        match lost {
            Some(old) => std::fs::write(&places[0], old).unwrap(),
            None => std::fs::remove_file(&places[0]).unwrap(),
        }
        let found = look(&places).unwrap();
        assert_eq!((found.last(), found.facts_after(0).len()), (2, 2));
        found.open("e", 2, 1).unwrap();
        assert_eq!(std::fs::read(&places[0]).unwrap(), std::fs::read(&places[1]).unwrap());
    }
}

#[test]
fn a_long_journal_is_rewritten_without_what_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let mut journal = one(&path).unwrap().open("e", 0, 0).unwrap();
    for revision in 1..1_500 {
        note(&mut journal, revision, &[fact("token/a", Some("x"))]);
    }
    note(&mut journal, 1_500, &[fact("token/a", None), fact("barred-run/b", None)]);
    one(&path).unwrap().open("e", 1_500, 1).unwrap();
    let found = one(&path).unwrap();
    assert_eq!(found.last(), 1_500);
    assert_eq!(found.facts_after(0), [fact("barred-run/b", None)]);
    assert!(std::fs::read_to_string(&path).unwrap().lines().count() < 5);
}

fn two_places(directory: &tempfile::TempDir) -> [PathBuf; 2] {
    ["one", "two"].map(|name| directory.path().join(name))
}

#[test]
fn a_place_that_fails_leaves_nothing_behind_anywhere() {
    let directory = tempfile::tempdir().unwrap();
    let places = two_places(&directory);
    let mut journal = look(&places).unwrap().open("e", 0, 0).unwrap();
    note(&mut journal, 1, &[fact("revoked/x", Some("r"))]);
    for half in [false, true] {
        journal.set_full(1, true);
        if half {
            // What a disk takes of a line before it is full.
            let mut file = std::fs::OpenOptions::new().append(true).open(&places[1]).unwrap();
            std::io::Write::write_all(&mut file, b"{\"r\":2,\"c\"").unwrap();
        }
        let lost = [fact("revoked/lost", Some("r"))];
        let told = journal.note(Some(1), 2, 1, &lost).unwrap_err();
        assert!(told.contains("two"), "{told}");
        let found = look(&places).unwrap();
        assert_eq!((found.last(), found.facts_after(1)), (1, Vec::new()), "also at a start now");
        journal.set_full(1, false);
    }
    note(&mut journal, 2, &[fact("revoked/y", Some("r"))]);
    let found = look(&places).unwrap();
    assert_eq!(found.facts_after(1), [fact("revoked/y", Some("r"))]);
    assert_eq!(std::fs::read(&places[0]).unwrap(), std::fs::read(&places[1]).unwrap());
}

#[test]
fn a_full_place_stops_only_what_must_be_noted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let mut journal = one(&path).unwrap().open("e", 0, 0).unwrap();
    note(&mut journal, 1, &[]);
    journal.set_full(0, true);
    for revision in 2..REVISIONS + 1 {
        journal.note(Some(revision - 1), revision, 1, &[]).unwrap();
    }
    let behind = REVISIONS + 1;
    assert!(journal.note(Some(behind - 1), behind, 1, &[]).is_err(), "no more is reserved");
}

#[test]
fn a_line_that_the_store_did_not_commit_does_not_count() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let line = [fact("token/a", Some("spent"))];
    // What a start finds: the store's revision, and whether a backup was brought back.
    for (revision, restored, counts) in
        [(4, false, false), (4, true, true), (5, false, true), (3, false, true)]
    {
        let _ = std::fs::remove_file(&path);
        let mut journal = one(&path).unwrap().open("e", 0, 0).unwrap();
        note(&mut journal, 1, &[fact("token/a", Some("new"))]);
        // Others that are not journaled came between.
        journal.note(Some(4), 5, 1, &line).unwrap();
        let mut found = one(&path).unwrap();
        found.decide(revision, restored);
        let expected: &[Fact] = if counts { &line } else { &[] };
        assert_eq!(found.facts_after(1), expected, "{revision}, {restored}");
        assert_eq!(found.last(), if counts { 5 } else { 1 });
        let mut journal = found.open("e", 5, 1).unwrap();
        note(&mut journal, 6, &[]);
        assert_eq!(one(&path).unwrap().facts_after(1), expected, "it is decided");
    }
    // A mark, or a line behind it, says that it was committed.
    let _ = std::fs::remove_file(&path);
    let mut journal = one(&path).unwrap().open("e", 0, 0).unwrap();
    journal.note(Some(4), 5, 1, &line).unwrap();
    journal.committed();
    let mut found = one(&path).unwrap();
    found.decide(4, false);
    assert_eq!(found.facts_after(1), line, "the store went back by itself");
    // And what the store could not commit is taken back.
    journal.note(Some(5), 6, 1, &[fact("revoked/x", Some("r"))]).unwrap();
    journal.take_back();
    note(&mut journal, 6, &[fact("revoked/y", Some("r"))]);
    assert_eq!(one(&path).unwrap().facts_after(5), [fact("revoked/y", Some("r"))]);
}

#[test]
fn a_damaged_place_is_mended_by_a_whole_one_that_says_more() {
    let directory = tempfile::tempdir().unwrap();
    let places = two_places(&directory);
    let mut journal = look(&places).unwrap().open("e", 0, 0).unwrap();
    note(&mut journal, 1, &[fact("revoked/x", Some("r"))]);
    let short = std::fs::read(&places[1]).unwrap();
    note(&mut journal, 2, &[fact("revoked/y", Some("r"))]);
    let whole = std::fs::read(&places[1]).unwrap();
    let damage = |line: usize| {
        let text = String::from_utf8(whole.clone()).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines[line].insert(3, 'x');
        std::fs::write(&places[0], lines.join("\n") + "\n").unwrap();
    };
    damage(3);
    let found = look(&places).unwrap();
    assert_eq!((found.damaged(), found.last()), (&places[..1], 2));
    found.open("e", 2, 1).unwrap();
    assert_eq!(std::fs::read(&places[0]).unwrap(), std::fs::read(&places[1]).unwrap());
    assert!(places[0].with_extension("journal.damaged").exists());
    // One that says less mends nothing.
    damage(4);
    std::fs::write(&places[1], &short).unwrap();
    assert!(matches!(look(&places), Err(Error::Rollback(_))));
    // And one that begins otherwise is somebody else's.
    damage(0);
    std::fs::write(&places[1], &whole).unwrap();
    assert!(matches!(look(&places), Err(Error::Rollback(_))));
}

#[test]
fn a_journal_does_not_grow_without_end_while_it_is_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let places = two_places(&directory);
    let mut journal = look(&places).unwrap().open("e", 0, 0).unwrap();
    note(&mut journal, 1, &[fact("revoked/x", Some("r"))]);
    // A token of many uses.
    let record = "x".repeat(500_000);
    for revision in 2..40 {
        note(&mut journal, revision, &[fact("token/a", Some(&record))]);
    }
    let length = std::fs::metadata(&places[0]).unwrap().len();
    assert!(length < 12_000_000, "{length}");
    let found = look(&places).unwrap();
    assert_eq!((found.last(), found.facts_after(0).len()), (39, 2));
    assert_eq!(std::fs::read(&places[0]).unwrap(), std::fs::read(&places[1]).unwrap());
}

/// An authority with a second place of the journal, and the journal that its store keeps.
fn authority(directory: &Path) -> (Authority, Arc<Mutex<Option<Journal>>>) {
    let mut settings = Settings::new("ci.example.com");
    let networks = vec!["10.77.0.0/24".parse().unwrap()];
    settings.pools.insert("runners".to_owned(), PoolConfig::new(networks));
    settings.roles.insert("builder".to_owned(), RoleProfile::new("runners"));
    let mut options = Options::new(settings);
    options.journal = Some(directory.join("second"));
    let state = StateDirectory::open(&directory.join("state"), &mut options, NOW).unwrap();
    let journal = state.store.journal();
    (Authority::over(state, options, NOW).unwrap(), journal)
}

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const OPERATOR: Actor = Actor::Uid(0);

#[test]
fn a_revocation_that_cannot_be_noted_does_not_happen_and_happens_when_it_is_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, journal) = authority(directory.path());
    let full = |full| lock(&journal).as_mut().unwrap().set_full(1, full);
    let token = || authority.token_create(&TokenCreate::new("builder"), &OPERATOR, NOW);
    let (_, secret) = token().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let csr = Csr::from_der(params.serialize_request(&key).unwrap().der()).unwrap();
    let enrolled = authority.enrol_with_token("builder", secret.expose(), &csr, None, NOW).unwrap();
    let id = enrolled.lease.id;
    let copy = directory.path().join("copy");
    std::fs::write(directory.path().join("key"), "correct horse battery staple").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(directory.path().join("key"), private).unwrap();
    let key = crate::BackupKey::read(&directory.path().join("key")).unwrap();
    authority.backup(&copy, &key, &OPERATOR, NOW).unwrap();
    let revoke = || {
        let selector = RevokeSelector::Lease(id.clone());
        authority.revoke(&selector, RevocationReason::Unspecified, &OPERATOR, NOW)
    };

    full(true);
    let told = revoke().unwrap_err().to_string();
    assert!(told.contains("second") && told.contains("make its place writable"), "{told}");
    assert!(authority.lease(&id).unwrap().unwrap().state.is_live(), "nothing happened");
    assert!(token().is_err());
    let event = AuditEvent::new("gateway.start", &OPERATOR, NOW);
    authority.record_audit(&event).expect("this is in no journal");
    full(false);
    let outcome = revoke().unwrap();
    assert_eq!((outcome.revoked_now, outcome.changes.len()), (1, 1), "its tunnels are cut");

    drop((authority, journal));
    let state = directory.path().join("state");
    crate::restore(&state, &copy, &key).unwrap();
    let (authority, _) = self::authority(directory.path());
    assert!(!authority.lease(&id).unwrap().unwrap().state.is_live());
}
