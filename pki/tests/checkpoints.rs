//! Signed checkpoints: with a public key alone, away from the machine, whatever was done to the
//! trail is found.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::*;
use pki::audit::chain::{Wanted, render, verify_files};
use pki::audit::checkpoint::{CHECKPOINT, Checkpoint, EVERY};
use pki::audit::offline::Trail;
use pki::store::LogEntry;
use pki::*;

const HOUR: u64 = EVERY.as_secs();

/// A trail over three hours with something in each, and a stop.
fn lines(authority: &Authority) -> Vec<String> {
    for hour in 0..3 {
        assert!(authority.checkpoint_when_due(after(hour * HOUR)).unwrap());
        token(authority);
        assert!(!authority.checkpoint_when_due(after(hour * HOUR + HOUR - 1)).unwrap());
        token(authority);
    }
    authority.checkpoint("stop", after(2 * HOUR + 60)).unwrap();
    authority.audit(0, 1_000).unwrap().into_iter().map(|record| record.line).collect()
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn verify(lines: &[String], key: CheckpointVerifier) -> ChainReport {
    let wanted = Wanted { key: Some(key), fresh: None };
    verify_files([text(lines).as_bytes()], &wanted).unwrap()
}

fn found(report: &ChainReport) -> Vec<(FaultKind, u64)> {
    report.faults.iter().map(|fault| (fault.kind, fault.seq)).collect()
}

/// Positions of the checkpoints.
fn checkpoints(lines: &[String]) -> Vec<usize> {
    let is_one = |line: &String| line.contains(CHECKPOINT);
    lines.iter().enumerate().filter(|(_, line)| is_one(line)).map(|(at, _)| at).collect()
}

/// Writes lines as somebody would who knows all but the key: every hash is right.
fn rewritten(
    lines: &[String],
    from: usize,
    change: impl Fn(usize, String) -> String,
) -> Vec<String> {
    let mut new: Vec<String> = lines[..from].to_vec();
    let mut prev = match from {
        0 => [0; 32],
        _ => pki::audit::chain::parse(&lines[from - 1]).unwrap().hash,
    };
    for (at, line) in lines.iter().enumerate().skip(from) {
        let old = pki::audit::chain::parse(line).unwrap();
        let value = change(at, String::from_utf8(old.value).unwrap()).into_bytes();
        let hash = LogEntry::expected_hash(&prev, old.seq, &value);
        new.push(render(&LogEntry { seq: old.seq, value, prev, hash }));
        prev = hash;
    }
    new
}

#[test]
fn checkpoints_come_at_the_start_every_hour_and_at_the_stop() {
    let authority = authority();
    let lines = lines(&authority);
    let records = authority.audit(0, 1_000).unwrap();
    let reasons: Vec<_> = records
        .iter()
        .filter(|record| record.event.action == CHECKPOINT)
        .map(|record| record.event.reason.as_deref().unwrap())
        .collect();
    assert_eq!(reasons, ["start", "hour", "hour", "stop"]);
    let last = records.last().unwrap();
    let signed = last.event.checkpoint.as_ref().unwrap();
    assert_eq!((signed.record, &signed.hash), (last.seq - 1, &records[records.len() - 2].hash));
    let value: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(value["runnel.checkpoint.record"], last.seq - 1);
    assert_eq!(value["runnel.checkpoint.key"], authority.checkpoint_key().id());
    // What a text says of itself is no checkpoint.
    let event =
        AuditEvent::new("x", &OPERATOR, NOW).object("\"event.action\":\"audit.checkpoint\"");
    authority.record_audit(&event).unwrap();
    assert!(authority.verify_audit().unwrap().is_sound());
    // A clock that was set back does not put the next one off.
    assert!(authority.checkpoint_when_due(NOW).unwrap());
    let report = authority.verify_audit().unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.signed.unwrap().checkpoint, report.last);
}

#[test]
fn the_public_key_alone_proves_a_whole_copy() {
    let authority = authority();
    let lines = lines(&authority);
    let key = CheckpointVerifier::from_pem(&authority.checkpoint_key().pem()).unwrap();
    let report = verify(&lines, key);
    assert!(report.is_sound(), "{report:?}");
    let signed = report.signed.unwrap();
    assert_eq!((signed.checkpoint, signed.record), (report.last, report.last - 1));
    assert_eq!(signed.at, after(2 * HOUR + 60));
    // A copy in files, one after the other, of which the oldest are gone.
    let parts = [text(&lines[3..6]), text(&lines[6..])];
    let wanted = Wanted { key: Some(key), fresh: None };
    assert!(verify_files(parts.iter().map(String::as_bytes), &wanted).unwrap().is_sound());
    let gap = [text(&lines[3..6]), text(&lines[7..])];
    let report = verify_files(gap.iter().map(String::as_bytes), &wanted).unwrap();
    assert_eq!(report.faults[0].kind, FaultKind::Missing);
}

#[test]
fn an_edit_and_a_gap_are_found_with_every_hash_made_right() {
    let authority = authority();
    let (lines, key) = (lines(&authority), authority.checkpoint_key());
    for at in 0..checkpoints(&lines)[3] {
        if lines[at].contains(CHECKPOINT) {
            continue;
        }
        let forged = rewritten(&lines, at, |here, value| match here == at {
            true => value.replacen("event.kind", "event.sort", 1),
            false => value,
        });
        let wanted = Wanted { key: None, fresh: None };
        let hashes = verify_files([text(&forged).as_bytes()], &wanted).unwrap();
        let kinds: Vec<_> = found(&hashes).into_iter().map(|(kind, _)| kind).collect();
        assert!(!kinds.contains(&FaultKind::Edited), "the forger is careful: {hashes:?}");
        // Each checkpoint behind the edit stands for another trail.
        let next = checkpoints(&lines).into_iter().find(|checkpoint| *checkpoint > at).unwrap();
        let report = verify(&forged, key);
        let expected = (FaultKind::Rewritten, u64::try_from(next + 1).unwrap());
        assert_eq!(found(&report)[0], expected, "record {at}: {report:?}");
    }
    let mut shorter = lines.clone();
    shorter.remove(4);
    assert_eq!(verify(&shorter, key).faults[0].kind, FaultKind::Missing);
}

#[test]
fn a_forged_checkpoint_is_found() {
    let authority = authority();
    let (lines, key) = (lines(&authority), authority.checkpoint_key());
    let last = lines.len() - 1;
    // One record is changed, and the checkpoints behind it name the new hashes: unsigned, signed by
    // another key, or with the signature that stood there.
    let other = Authority::with_store(
        std::sync::Arc::new(pki::store::MemoryStore::new()),
        &[9; 32],
        Options::new(settings()),
        NOW,
    )
    .unwrap();
    other.checkpoint("stop", after(2 * HOUR + 60)).unwrap();
    let theirs = other.audit(0, 100).unwrap().pop().unwrap().event.checkpoint.unwrap();
    let ours = authority.audit(0, 1_000).unwrap().pop().unwrap().event.checkpoint.unwrap();
    let edited = rewritten(&lines, last - 1, |at, value| match at == last - 1 {
        true => value.replacen("event.kind", "event.sort", 1),
        false => value,
    });
    let new = pki::audit::chain::parse(&edited[last - 1]).unwrap();
    let hash: String = new.hash.iter().map(|octet| format!("{octet:02x}")).collect();
    let forgeries = [
        Checkpoint { hash: hash.clone(), ..ours.clone() },
        Checkpoint { hash: hash.clone(), signature: String::new(), ..ours.clone() },
        Checkpoint { hash: hash.clone(), signature: theirs.signature, ..ours.clone() },
        Checkpoint { hash, key: theirs.key, ..ours.clone() },
    ];
    for forgery in forgeries {
        let forged = rewritten(&edited, last, |_, value| {
            value
                .replace(&ours.hash, &forgery.hash)
                .replace(&ours.signature, &forgery.signature)
                .replace(&ours.key, &forgery.key)
        });
        let report = verify(&forged, key);
        assert_eq!(found(&report), [(FaultKind::Forged, new.seq + 1)], "{forgery:?}");
        assert!(report.signed.unwrap().checkpoint < new.seq, "an earlier one still stands");
    }
}

#[test]
fn a_tail_that_was_cut_off_is_found_by_the_age_of_the_last_checkpoint() {
    let authority = authority();
    let (lines, key) = (lines(&authority), authority.checkpoint_key());
    let look = |lines: &[String], secs| {
        let fresh = Some((Duration::from_secs(2 * HOUR), after(secs)));
        verify_files([text(lines).as_bytes()], &Wanted { key: Some(key), fresh }).unwrap()
    };
    assert!(look(&lines, 3 * HOUR).is_sound());
    // Back to the checkpoint of the first hour, and to none.
    let first = checkpoints(&lines)[0];
    let report = look(&lines[..=first], 3 * HOUR);
    assert_eq!(found(&report), [(FaultKind::Stale, report.last + 1)], "{report:?}");
    assert_eq!(found(&look(&lines[..first], 0))[0].0, FaultKind::Unsigned);
    // Against the trail itself a copy of any age tells nothing of its end, the trail does.
    let database = tempfile::tempdir().unwrap();
    let stored = Authority::open(database.path(), Options::new(settings()), NOW).unwrap();
    stored.checkpoint("stop", after(1)).unwrap();
    let end = stored.audit_end().unwrap();
    drop(stored);
    let raw = rusqlite::Connection::open(database.path().join("runnel.db")).unwrap();
    raw.execute_batch("DELETE FROM logs WHERE seq = (SELECT max(seq) FROM logs)").unwrap();
    let report = Trail::open(database.path(), None).unwrap().verify().unwrap();
    assert_eq!(found(&report), [(FaultKind::Truncated, end)]);
}

#[test]
fn a_file_of_another_gateway_is_found() {
    let (ours, theirs) = (authority(), {
        let store = std::sync::Arc::new(pki::store::MemoryStore::new());
        Authority::with_store(store, &[9; 32], Options::new(settings()), NOW).unwrap()
    });
    let replaced = lines(&theirs);
    assert!(verify(&replaced, theirs.checkpoint_key()).is_sound());
    let report = verify(&replaced, ours.checkpoint_key());
    let kinds: Vec<_> = found(&report).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [[FaultKind::Forged; 4].as_slice(), &[FaultKind::Unsigned]].concat());
    assert_eq!(report.signed, None);
}

/// A true checkpoint says nothing about records that somebody made up behind what it stands for.
#[test]
fn a_checkpoint_of_another_trail_vouches_for_nothing() {
    let authority = authority();
    let genuine = lines(&authority);
    let key = authority.checkpoint_key();
    let checkpoint = &genuine[*checkpoints(&genuine).last().unwrap()];
    let checkpoint = pki::audit::chain::parse(checkpoint).unwrap();
    let harmless = pki::audit::chain::parse(&genuine[2]).unwrap();
    let (mut prev, mut made_up) = ([7; 32], Vec::new());
    for (seq, value) in (checkpoint.seq + 100..).zip([harmless.value, checkpoint.value]) {
        let hash = LogEntry::expected_hash(&prev, seq, &value);
        made_up.push(render(&LogEntry { seq, value, prev, hash }));
        prev = hash;
    }
    let report = verify(&made_up, key);
    assert_eq!(report.signed, None);
    assert_eq!(found(&report).last().unwrap().0, FaultKind::Unsigned, "{report:?}");
}

/// Whoever can write to the store, and has no sealing key, gets no signature for what he wrote.
#[test]
fn an_end_that_somebody_else_wrote_is_not_signed() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), Options::new(settings()), NOW).unwrap();
    authority.checkpoint("stop", after(1)).unwrap();
    let raw = rusqlite::Connection::open(directory.path().join("runnel.db")).unwrap();
    raw.execute("UPDATE heads SET hash = zeroblob(32)", []).unwrap();
    let error = authority.checkpoint("hour", after(2)).unwrap_err();
    assert!(error.to_string().contains("not as this gateway wrote it"), "{error}");
}

/// Nor for an end that was true once.
#[test]
fn an_end_that_was_put_back_is_not_signed() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), Options::new(settings()), NOW).unwrap();
    token(&authority);
    let raw = rusqlite::Connection::open(directory.path().join("runnel.db")).unwrap();
    raw.execute_batch("CREATE TABLE before AS SELECT * FROM heads").unwrap();
    authority.checkpoint("hour", after(1)).unwrap();
    token(&authority);
    authority.checkpoint("hour", after(2)).unwrap();
    raw.execute_batch("DELETE FROM heads; INSERT INTO heads SELECT * FROM before").unwrap();
    let error = authority.checkpoint("hour", after(3)).unwrap_err();
    assert!(error.to_string().contains("not as this gateway wrote it"), "{error}");
}

/// A state directory that was copied away without its sealing key.
#[test]
fn a_trail_without_its_sealing_key_is_verified_with_the_public_key() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), Options::new(settings()), NOW).unwrap();
    lines(&authority);
    let key = authority.checkpoint_key();
    drop(authority);
    let look = |path: &Path, key| Trail::open(path, None).unwrap().signed_by(key).verify().unwrap();
    assert_eq!(Trail::open(directory.path(), None).unwrap().checkpoint_key(), Some(key));
    std::fs::remove_file(directory.path().join("seal.key")).unwrap();
    let report = look(directory.path(), key);
    assert!(report.is_sound() && !report.sealed, "{report:?}");
    assert_eq!(report.signed.unwrap().checkpoint, report.last);
    let other = common::authority().checkpoint_key();
    assert_ne!(other, key);
    assert_eq!(look(directory.path(), other).faults[0].kind, FaultKind::Forged);
    // Nor is a sealing key believed that lies beside a trail of somebody else.
    let replaced = tempfile::tempdir().unwrap();
    let forger = Authority::open(replaced.path(), Options::new(settings()), NOW).unwrap();
    lines(&forger);
    drop(forger);
    assert!(Trail::open(replaced.path(), None).unwrap().verify().unwrap().is_sound());
    assert_eq!(look(replaced.path(), key).faults[0].kind, FaultKind::Forged);
}
