//! Bounded retention of the audit trail: what is old, signed and delivered goes; whatever else is
//! removed is missed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::*;
use pki::audit::checkpoint::CHECKPOINT;
use pki::audit::offline::Trail;
use pki::*;

const DAY: u64 = 86_400;
const KEEP: Duration = Duration::from_secs(15 * DAY);
const ALL: u64 = u64::MAX;

fn day(number: u64) -> UnixTime {
    after(number * DAY)
}

fn open(directory: &Path) -> Authority {
    reopen(directory, || Options::new(settings()), NOW).unwrap()
}

/// A trail of ten days: each day something happens, and a minute later it is signed.
fn ten_days(directory: &Path) -> Authority {
    let authority = open(directory);
    for number in 0..10 {
        let event = AuditEvent::new("test.day", &OPERATOR, day(number)).object(number);
        authority.record_audit(&event).unwrap();
        authority.checkpoint("hour", day(number).plus(Duration::from_secs(60))).unwrap();
    }
    authority
}

fn found(report: &ChainReport) -> Vec<(FaultKind, u64)> {
    report.faults.iter().map(|fault| (fault.kind, fault.seq)).collect()
}

fn change(directory: &Path, sql: &str) {
    let raw = rusqlite::Connection::open(directory.join("runnel.db")).unwrap();
    raw.execute_batch(sql).unwrap();
}

/// The record of a day.
fn of_day(authority: &Authority, number: u64) -> AuditRecord {
    let name = number.to_string();
    let records = authority.audit(0, 1_000).unwrap();
    records.into_iter().find(|record| record.event.object.as_ref() == Some(&name)).unwrap()
}

#[test]
fn old_records_go_when_they_are_signed_and_delivered_and_the_rest_is_proven() {
    let directory = tempfile::tempdir().unwrap();
    let authority = ten_days(directory.path());
    let end = authority.audit_end().unwrap();
    // Five days are older than fifteen. The fifth day's checkpoint is not: it stands for nothing yet.
    let last = of_day(&authority, 4).seq;
    let prune = |delivered| authority.prune_audit(KEEP, delivered, day(20)).unwrap();
    assert_eq!(prune(0), 0, "nobody has it elsewhere");
    assert_eq!(prune(2), 2);
    assert_eq!(prune(2), 0, "a sink lags");
    assert_eq!(prune(ALL), last - 2);
    assert_eq!(prune(ALL), 0);

    let records = authority.audit(0, 1_000).unwrap();
    assert_eq!((records[0].seq, records[0].event.action.as_str()), (last + 1, CHECKPOINT));
    let notes: Vec<_> =
        records.iter().filter(|record| record.event.action == "audit.prune").collect();
    assert_eq!(notes.iter().map(|note| note.seq).collect::<Vec<_>>(), [end + 1, end + 2]);
    assert!(notes[1].event.reason.as_ref().unwrap().starts_with(&format!("records 3 to {last}")));
    let report = authority.verify_audit().unwrap();
    assert!(report.is_sound() && report.sealed, "{report:?}");
    assert_eq!((report.first, report.forgotten), (last + 1, Some(last)));
    assert_eq!(report.last, authority.audit_end().unwrap());
    assert!(report.signed.is_some());
    // The same later, after a start that goes on behind it.
    drop(authority);
    let authority = open(directory.path());
    token(&authority);
    assert_eq!(authority.prune_audit(KEEP, ALL, day(20)).unwrap(), 0);
    drop(authority);
    let report = Trail::open(directory.path(), None).unwrap().verify().unwrap();
    assert!(report.is_sound() && report.first == last + 1, "{report:?}");
}

#[test]
fn a_few_records_wait_for_more() {
    let directory = tempfile::tempdir().unwrap();
    let authority = ten_days(directory.path());
    let two_days = of_day(&authority, 1).seq;
    let prune = |now| authority.prune_audit(KEEP, ALL, now).unwrap();
    // The oldest is not yet a day older than it has to be.
    let first = day(15).plus(Duration::from_secs(3_600));
    assert_eq!(prune(first), 0);
    assert_eq!(prune(first.plus(Duration::from_secs(DAY))), two_days);
}

#[test]
fn whatever_else_is_removed_is_missed() {
    use FaultKind::*;
    let untouched = tempfile::tempdir().unwrap();
    let authority = ten_days(untouched.path());
    let original = authority.audit(0, 1_000).unwrap();
    let last = of_day(&authority, 4).seq;
    authority.prune_audit(KEEP, 2, day(20)).unwrap();
    let copy = |to: &Path| {
        for name in ["runnel.db", "runnel.db-wal", "seal.key", "revocations.journal"] {
            if let Ok(octets) = std::fs::read(untouched.path().join(name)) {
                std::fs::write(to.join(name), octets).unwrap();
            }
        }
    };
    let beginning = || -> String {
        let raw = rusqlite::Connection::open(untouched.path().join("runnel.db")).unwrap();
        let sql = "SELECT CAST(value AS TEXT) FROM entries WHERE key = 'audit-beginning'";
        raw.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let earlier = beginning();
    authority.prune_audit(KEEP, ALL, day(20)).unwrap();
    drop(authority);
    let (now, next) = (beginning(), last + 1);
    let stored = |json: &str| {
        format!("UPDATE entries SET value = CAST('{json}' AS BLOB) WHERE key = 'audit-beginning';")
    };
    let to =
        |record: usize| -> (u64, String) { (original[record].seq, original[record].hash.clone()) };
    let (further, hash) = to(usize::try_from(last + 2).unwrap());
    let mut forged: serde_json::Value = serde_json::from_str(&now).unwrap();
    forged["record"] = further.into();
    forged["hash"] = hash.into();
    let cut = format!("DELETE FROM logs WHERE seq <= {further};");
    // A checkpoint is signed as well, and is no beginning.
    let signed = original.iter().rev().find(|record| record.event.action == CHECKPOINT).unwrap();
    let checkpoint = signed.event.checkpoint.as_ref().unwrap();
    let mut borrowed = forged.clone();
    borrowed["record"] = checkpoint.record.into();
    borrowed["hash"] = checkpoint.hash.clone().into();
    borrowed["at"] = signed.event.at.micros().into();
    borrowed["signature"] = checkpoint.signature.clone().into();
    let cut_more = format!("DELETE FROM logs WHERE seq <= {};", checkpoint.record);
    let restored = format!(
        "INSERT INTO logs (log, seq, prev, hash, value) SELECT log, 2, prev, hash, value FROM logs
         WHERE seq = {next}"
    );
    let cases = [
        (String::new(), vec![]),
        (format!("DELETE FROM logs WHERE seq = {next}"), vec![(Missing, next)]),
        (format!("DELETE FROM logs WHERE seq <= {further}"), vec![(Missing, next)]),
        (
            format!("UPDATE logs SET value = x'7b7d' WHERE seq = {}", next + 1),
            vec![(Edited, next + 1)],
        ),
        ("DELETE FROM entries WHERE key = 'audit-beginning'".to_owned(), vec![(Missing, 1)]),
        (stored("no beginning"), vec![(Forged, 0), (Missing, 1)]),
        (
            stored(
                &now.replace(&format!("\"record\":{last}"), &format!("\"record\":{}", u64::MAX)),
            ),
            vec![(Forged, 0), (Missing, 1)],
        ),
        (stored(&earlier), vec![(Missing, 3)]),
        (stored(&forged.to_string()) + &cut, vec![(Forged, further)]),
        (stored(&borrowed.to_string()) + &cut_more, vec![(Forged, checkpoint.record)]),
        (restored, vec![(Edited, 2), (Added, 2)]),
    ];
    for (sql, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        copy(directory.path());
        change(directory.path(), &sql);
        let report = Trail::open(directory.path(), None).unwrap().verify().unwrap();
        let mut kinds = found(&report);
        // Where records are missing, the checkpoint that stands for them says so as well.
        kinds.truncate(expected.len());
        assert_eq!(kinds, expected, "{sql}: {report:?}");
        assert_eq!(report.is_sound(), expected.is_empty(), "{sql}: {report:?}");
        // The running gateway finds it too, and forgets nothing that would hide it.
        let again = open(directory.path());
        let kept = again.prune_audit(Duration::ZERO, ALL, day(400));
        let later = found(&again.verify_audit().unwrap());
        assert_eq!(later.is_empty(), expected.is_empty(), "{sql}: {kept:?} {later:?}");
    }
}

#[test]
fn records_behind_something_that_was_done_to_them_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let authority = ten_days(directory.path());
    let (good, edited) = (of_day(&authority, 1).seq, of_day(&authority, 2).seq);
    drop(authority);
    change(directory.path(), &format!("UPDATE logs SET value = x'7b7d' WHERE seq = {edited}"));
    let authority = open(directory.path());
    assert_eq!(authority.prune_audit(KEEP, ALL, day(30)).unwrap(), good, "what was sound before");
    let error = authority.prune_audit(KEEP, ALL, day(30)).unwrap_err().to_string();
    let told = format!("kept from record {edited} on");
    assert!(error.contains(&told) && error.contains("runnel audit verify"), "{error}");
    assert_eq!(found(&authority.verify_audit().unwrap()), [(FaultKind::Edited, edited)]);
}

#[test]
fn copies_of_forgotten_records_are_proven_by_their_own_checkpoints() {
    let directory = tempfile::tempdir().unwrap();
    let authority = ten_days(directory.path());
    let last = of_day(&authority, 4).seq;
    let records = authority.audit(0, 1_000).unwrap();
    let text = |from: u64, to: u64| -> String {
        let wanted = records.iter().filter(|record| (from..=to).contains(&record.seq));
        wanted.map(|record| format!("{}\n", record.line)).collect()
    };
    authority.prune_audit(KEEP, ALL, day(20)).unwrap();
    let verify = |text: &str| found(&authority.verify_audit_copy(text.as_bytes()).unwrap());
    assert_eq!(verify(&text(1, last - 1)), []);
    assert_eq!(verify(&text(1, last)), [], "what the beginning names");
    assert_eq!(verify(&text(1, last + 3)), [], "what goes on into what is kept");
    assert_eq!(verify(&text(1, 2)), [(FaultKind::Unsigned, 2)]);
    assert_eq!(
        verify(&text(1, last - 2)),
        [(FaultKind::Unsigned, last - 2)],
        "what stands behind the last checkpoint may have been made up"
    );
    // Another trail's that is as long.
    let other = tempfile::tempdir().unwrap();
    let other = ten_days(other.path()).audit(0, 1_000).unwrap();
    let line = |seq: u64| format!("{}\n", other.iter().find(|r| r.seq == seq).unwrap().line);
    assert_eq!(verify(&line(last)), [(FaultKind::Differs, last)]);
}
