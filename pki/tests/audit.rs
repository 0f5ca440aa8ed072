//! The audit trail: whatever is done to it behind the gateway's back is found, and where.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;

use common::*;
use pki::audit::chain;
use pki::audit::offline::Trail;
use pki::*;
use proptest::prelude::*;

/// A state directory with a trail of 19 records.
fn state() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path());
    for _ in 0..3 {
        let (_, enrolled) = enrolled(&authority);
        authority.connected(&enrolled.lease.id, after(1)).unwrap();
        authority.release(&enrolled.lease.id, "client", &OPERATOR, after(2)).unwrap();
    }
    directory
}

fn open(directory: &Path) -> Authority {
    Authority::open(directory, Options::new(settings()), NOW).unwrap()
}

fn raw(directory: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(directory.join("runnel.db")).unwrap()
}

fn change(directory: &Path, sql: &str) {
    raw(directory).execute_batch(sql).unwrap();
}

fn verify(directory: &Path) -> ChainReport {
    Trail::open(directory, None).unwrap().verify().unwrap()
}

fn found(report: &ChainReport) -> Vec<(FaultKind, u64)> {
    report.faults.iter().map(|fault| (fault.kind, fault.seq)).collect()
}

#[test]
fn every_kind_of_tampering_is_found_where_it_is() {
    use FaultKind::*;
    let edit = |field: &str| format!("UPDATE logs SET {field} WHERE seq = 5");
    let cases: Vec<(String, Vec<(FaultKind, u64)>)> = vec![
        (String::new(), vec![]),
        (edit("value = replace(value, 'builder', 'deploye')"), vec![(Edited, 5)]),
        (edit("value = x'7b7d'"), vec![(Edited, 5)]),
        (edit("value = CAST(value AS TEXT) || ' '"), vec![(Edited, 5)]),
        (edit("hash = 'short'"), vec![(Edited, 5), (Rewritten, 6)]),
        (edit("hash = zeroblob(32)"), vec![(Edited, 5), (Rewritten, 6)]),
        (edit("prev = zeroblob(32)"), vec![(Edited, 5)]),
        ("DELETE FROM logs WHERE seq = 5".into(), vec![(Missing, 5)]),
        ("DELETE FROM logs WHERE seq IN (5, 6, 7)".into(), vec![(Missing, 5)]),
        ("DELETE FROM logs WHERE seq = 1".into(), vec![(Missing, 1)]),
        ("DELETE FROM logs WHERE seq > 10".into(), vec![(Truncated, 11)]),
        ("DELETE FROM logs".into(), vec![(Truncated, 1)]),
        (
            "UPDATE logs SET seq = 1000 WHERE seq = 5; UPDATE logs SET seq = 5 WHERE seq = 6;
             UPDATE logs SET seq = 6 WHERE seq = 1000"
                .into(),
            vec![(Edited, 5), (Edited, 6)],
        ),
        (
            "DELETE FROM logs WHERE seq = 5; UPDATE logs SET seq = seq - 1 WHERE seq > 5".into(),
            vec![(Edited, 5)],
        ),
        (
            "INSERT INTO logs SELECT log, (SELECT max(seq) + 1 FROM logs), prev, hash, value
             FROM logs WHERE seq = 5"
                .into(),
            vec![(Edited, 20), (Added, 20)],
        ),
        ("DELETE FROM heads".into(), vec![(Unsealed, 19)]),
        ("UPDATE heads SET seal = x''".into(), vec![(Unsealed, 19)]),
        (
            "DELETE FROM logs WHERE seq > 10;
             UPDATE heads SET seq = 10, hash = (SELECT hash FROM logs WHERE seq = 10)"
                .into(),
            vec![(Unsealed, 10)],
        ),
    ];
    let untouched = state();
    let database = std::fs::read(untouched.path().join("runnel.db")).unwrap();
    let key = std::fs::read(untouched.path().join("seal.key")).unwrap();
    let journal = std::fs::read(untouched.path().join("revocations.journal")).unwrap();
    for (sql, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("runnel.db"), &database).unwrap();
        std::fs::write(directory.path().join("seal.key"), &key).unwrap();
        std::fs::write(directory.path().join("revocations.journal"), &journal).unwrap();
        change(directory.path(), &sql);
        let report = verify(directory.path());
        assert_eq!(report.sealed, sql != "DELETE FROM heads", "there is a seal to compare with");
        let mut kinds = found(&report);
        // Where every following record moved, the first says it all.
        kinds.truncate(expected.len());
        assert_eq!(kinds, expected, "{sql}: {report:?}");
        assert_eq!(report.is_sound(), expected.is_empty());
        // No later start covers it up: what comes after stands behind the same fault or a gap.
        let again = open(directory.path());
        token(&again);
        drop(again);
        let later = verify(directory.path());
        assert_eq!(later.is_sound(), expected.is_empty(), "{sql}: {later:?}");
    }
}

#[test]
fn a_start_tells_that_the_end_was_tampered_with() {
    let directory = state();
    assert!(!open(directory.path()).startup().broken_trail);
    change(directory.path(), "DELETE FROM logs; DELETE FROM heads");
    let authority = open(directory.path());
    assert!(authority.startup().broken_trail);
    token(&authority);
    assert_eq!(found(&authority.verify_audit().unwrap()), [(FaultKind::Missing, 1)]);
    drop(authority);
    assert!(!open(directory.path()).startup().broken_trail, "told once; the gap stays");
    assert!(!verify(directory.path()).is_sound());
}

/// Everybody can be refused as often as it likes, and the trail is kept for long.
#[test]
fn refusals_are_written_down_once_a_minute_for_each_peer_and_kind() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path());
    let before = authority.audit_end().unwrap();
    let peer: std::net::IpAddr = "192.0.2.7".parse().unwrap();
    let refuse = |what: &str, secs| {
        let event = AuditEvent::new("ike.sa.auth_fail", &Actor::Peer(peer), after(secs));
        authority.record_refusal(what, Some(peer), event.refused(what)).unwrap();
    };
    for second in 0..60 {
        refuse("unknown_issuer", second);
    }
    refuse("revoked", 30);
    refuse("unknown_issuer", 60);
    let events: Vec<_> = authority.audit(before, 100).unwrap();
    let told: Vec<_> = events
        .iter()
        .map(|record| (record.event.reason.as_deref().unwrap(), record.event.left_out))
        .collect();
    assert_eq!(told, [("unknown_issuer", None), ("revoked", None), ("unknown_issuer", Some(59))]);
}

#[test]
fn an_emptied_trail_is_not_sound() {
    let directory = state();
    change(directory.path(), "DELETE FROM logs; DELETE FROM heads");
    assert_eq!(found(&verify(directory.path())), [(FaultKind::Unsealed, 0)]);
}

/// The number after the last one does not exist: a trail that went on behind such a record would
/// write each new one over the one before.
#[test]
fn a_record_planted_at_the_last_number_stops_nothing() {
    let directory = state();
    change(
        directory.path(),
        "INSERT INTO logs SELECT log, 9223372036854775807, prev, hash, value FROM logs
         WHERE seq = 5",
    );
    let mut written = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let authority = open(directory.path());
        assert!(authority.startup().broken_trail);
        let before = authority.audit_end().unwrap();
        for _ in 0..3 {
            token(&authority);
        }
        let records = authority.audit(before, 100).unwrap();
        assert_eq!(records.len(), 3, "those who follow the trail see what is written");
        written.extend(records.into_iter().map(|record| record.hash));
        let report = authority.verify_audit().unwrap();
        assert!(report.faults.iter().any(|fault| fault.kind == FaultKind::Added), "{report:?}");
    }
    let all = open(directory.path()).audit(0, 1_000).unwrap();
    let kept: Vec<_> = all.iter().filter(|record| written.contains(&record.hash)).collect();
    assert_eq!(kept.len(), 6, "none was written over");
}

#[test]
fn what_is_done_while_the_gateway_runs_is_not_sealed_over() {
    let directory = state();
    let authority = open(directory.path());
    let end = authority.audit_end().unwrap();
    change(
        directory.path(),
        "DELETE FROM logs WHERE seq > 10;
         UPDATE heads SET seq = 10, hash = (SELECT hash FROM logs WHERE seq = 10)",
    );
    token(&authority);
    let report = authority.verify_audit().unwrap();
    assert_eq!(found(&report), [(FaultKind::Missing, 11)]);
    assert_eq!(report.last, end + 1);
}

#[test]
fn another_gateways_key_does_not_seal_this_trail() {
    let directory = state();
    let other = directory.path().join("other.key");
    std::fs::write(&other, [9; 32]).unwrap();
    let report = Trail::open(directory.path(), Some(&other)).unwrap().verify().unwrap();
    assert_eq!(found(&report)[0].0, FaultKind::Unsealed);
    // Without any key the rest is still proven.
    std::fs::remove_file(directory.path().join("seal.key")).unwrap();
    let report = verify(directory.path());
    assert!(report.is_sound() && !report.sealed);
    // The wrong key seals nothing either: such a start is refused before it writes.
    let options = Options { seal_key: Some(other), ..Options::new(settings()) };
    assert!(matches!(Authority::open(directory.path(), options, NOW), Err(Error::Seal(_))));
}

/// A file that says of itself that it is older than the seals was changed by somebody who does not
/// have the key: what he wrote is not sealed.
#[test]
fn a_trail_set_back_to_the_first_schema_is_not_sealed() {
    let directory = state();
    change(directory.path(), "DROP TABLE heads; PRAGMA user_version = 1");
    assert!(Trail::open(directory.path(), None).is_err(), "offline verification migrates nothing");
    let authority = open(directory.path());
    assert!(authority.startup().broken_trail);
    assert!(!authority.verify_audit().unwrap().is_sound());
    drop(authority);
    // Nor is an end whose seal was taken away.
    let directory = state();
    change(directory.path(), "UPDATE heads SET seal = x''");
    assert!(open(directory.path()).startup().broken_trail);
}

#[test]
fn a_directory_without_a_trail_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = Trail::open(directory.path(), None).unwrap_err().to_string();
    assert!(error.contains("runnel.db") && error.contains("--state"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is created");
}

#[test]
fn a_copy_is_verified_by_itself_and_against_the_trail() {
    let directory = state();
    let authority = open(directory.path());
    let lines: Vec<String> =
        authority.audit(0, 100).unwrap().into_iter().map(|record| record.line).collect();
    let text = |lines: &[String]| lines.join("\n") + "\n";
    let copy = |text: &str| found(&authority.verify_audit_copy(text.as_bytes()).unwrap());
    assert_eq!(copy(&text(&lines)), []);
    // The beginning may have been rotated away, the end may not be there yet.
    assert_eq!(copy(&text(&lines[4..9])), []);
    let mut swapped = lines.clone();
    swapped.swap(3, 4);
    assert_eq!(copy(&text(&swapped))[0], (FaultKind::Missing, 4));
    let mut edited = lines.clone();
    edited[6] = edited[6].replace("lease", "leash");
    assert_eq!(copy(&text(&edited)), [(FaultKind::Edited, 7)]);
    let mut torn = text(&lines);
    torn.truncate(torn.len() - 9);
    assert_eq!(copy(&torn)[0].0, FaultKind::Unreadable);
    // A chain that is sound in itself but not ours.
    let other = state();
    let theirs: Vec<String> =
        open(other.path()).audit(0, 100).unwrap().into_iter().map(|record| record.line).collect();
    assert_eq!(copy(&text(&theirs)).last().unwrap().0, FaultKind::Differs);
}

#[test]
fn events_carry_lease_job_and_operator() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    authority.release(&enrolled.lease.id, "admin", &OPERATOR, after(1)).unwrap();
    let events: Vec<_> = authority.audit(0, 100).unwrap();
    let released = events.iter().find(|record| record.event.action == "lease.release").unwrap();
    let value: serde_json::Value = serde_json::from_str(&released.line).unwrap();
    assert_eq!(value["event.sequence"], released.seq);
    assert_eq!(value["event.hash"], released.hash);
    assert_eq!(value["process.user.id"], "0");
    assert_eq!(value["runnel.lease_id"], enrolled.lease.id);
    assert_eq!(value["user.id"], enrolled.lease.identity);
    assert_eq!(value["runnel.vip"][0], enrolled.lease.addresses[0].to_string());
}

/// The number says under which policy a lease was opened, and the trail what that was.
#[test]
fn each_policy_has_a_number_that_its_leases_carry() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path());
    assert_eq!(authority.policy_version(), 0);
    assert_eq!(authority.adopt_policy("role builder", &Actor::System, NOW).unwrap(), 1);
    assert_eq!(enrolled(&authority).1.lease.policy_version, 1);
    assert_eq!(authority.adopt_policy("role builder", &OPERATOR, after(1)).unwrap(), 1);
    assert_eq!(authority.adopt_policy("role deployer", &OPERATOR, after(2)).unwrap(), 2);
    let (_, second) = enrolled(&authority);
    assert_eq!(second.lease.policy_version, 2);
    drop(authority);
    let authority = open(directory.path());
    assert_eq!(authority.policy_version(), 2, "before anybody says what it is");
    // What was in force before is another policy than the one between.
    assert_eq!(authority.adopt_policy("role builder", &OPERATOR, after(3)).unwrap(), 3);
    let records = authority.audit(0, 1_000).unwrap();
    let updates: Vec<_> = records
        .iter()
        .filter(|record| record.event.action == "policy.update")
        .map(|record| (record.event.policy_version, record.event.object.clone().unwrap()))
        .collect();
    assert_eq!(updates.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(
        updates[0].1 == updates[2].1 && updates[0].1 != updates[1].1 && updates[0].1.len() == 64
    );
    let created = records.iter().rfind(|record| record.event.action == "lease.create").unwrap();
    let value: serde_json::Value = serde_json::from_str(&created.line).unwrap();
    assert_eq!(value["runnel.policy_version"], 2);
    assert_eq!(value["x509.serial_number"], second.lease.cert().unwrap().serial.to_string());
    assert_eq!(value["x509.subject.distinguished_name"], second.lease.subject);
    assert!(value["x509.not_after"].as_str().unwrap().starts_with("2026-11-22T"));
}

#[derive(Clone, Debug)]
enum Mutation {
    Remove(usize),
    Swap(usize, usize),
    Duplicate(usize, usize),
    Flip(usize, usize, u8),
    Cut(usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let any = any::<prop::sample::Index>;
    let at = move || any().prop_map(|index| index.index(1 << 20));
    prop_oneof![
        at().prop_map(Mutation::Remove),
        (at(), at()).prop_map(|(a, b)| Mutation::Swap(a, b)),
        (at(), at()).prop_map(|(a, b)| Mutation::Duplicate(a, b)),
        (at(), at(), 0u8..8).prop_map(|(a, b, bit)| Mutation::Flip(a, b, bit)),
        at().prop_map(Mutation::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Lines alone tell everything but what is missing at the end, which the trail tells.
    #[test]
    fn any_single_mutation_of_a_copy_is_found(mutation in mutation()) {
        use std::sync::OnceLock;
        static LINES: OnceLock<Vec<String>> = OnceLock::new();
        let lines = LINES.get_or_init(|| {
            let authority = authority();
            for _ in 0..3 {
                enrolled(&authority);
            }
            authority.audit(0, 100).unwrap().into_iter().map(|record| record.line).collect()
        });
        let count = lines.len();
        let mut changed = lines.clone();
        // What is cut off at either end of a copy is no mutation of the rest.
        let mut only_shorter = false;
        match mutation {
            Mutation::Remove(at) => {
                let at = at % count;
                only_shorter = at == 0 || at == count - 1;
                changed.remove(at);
            }
            Mutation::Swap(a, b) => changed.swap(a % count, b % count),
            Mutation::Duplicate(a, b) => {
                let line = changed[a % count].clone();
                changed.insert(b % (count + 1), line);
            }
            Mutation::Flip(line, at, bit) => {
                let line = line % count;
                let mut bytes = changed[line].clone().into_bytes();
                let at = at % bytes.len();
                bytes[at] ^= 1 << bit;
                let mut text: Vec<u8> = changed[..line].join("\n").into_bytes();
                if line > 0 { text.push(b'\n'); }
                text.extend_from_slice(&bytes);
                for rest in &changed[line + 1..] {
                    text.push(b'\n');
                    text.extend_from_slice(rest.as_bytes());
                }
                text.push(b'\n');
                prop_assert!(!chain::verify_lines(text.as_slice()).unwrap().is_sound());
                return Ok(());
            }
            Mutation::Cut(at) => {
                let at = at % count;
                only_shorter = true;
                changed.truncate(at);
            }
        }
        let text = changed.iter().map(|line| format!("{line}\n")).collect::<String>();
        let report = chain::verify_lines(text.as_bytes()).unwrap();
        let same = changed == *lines;
        prop_assert_eq!(report.is_sound(), same || only_shorter, "{:?}", report);
        prop_assert!(!only_shorter || same || report.records < count as u64);
    }
}

#[test]
fn nothing_is_issued_while_the_trail_must_be_written_and_cannot_be() {
    let authority = authority();
    let (_, before) = enrolled(&authority);
    let secret = token(&authority);
    authority.hold_issuance(Some("the disk is full".to_owned()));

    let (auth, body) = (basic("builder", secret.expose()), Client::new().body());
    let request = est_request("/.well-known/est/simpleenroll", Some(&auth), &body);
    let reply = authority.est(&request, NOW);
    assert_eq!(reply.status, 503);
    assert!(reply.headers.iter().any(|(name, _)| *name == "Retry-After"), "{:?}", reply.headers);
    let told = String::from_utf8(reply.body).unwrap();
    assert!(told.contains("audit trail") && !told.contains("disk"), "{told}");
    let EstOutcome::Refused(refusal) = reply.outcome else { panic!("{told}") };
    assert_eq!(refusal.code, RefusalCode::AuditUnavailable);
    assert!(refusal.detail.contains("the disk is full"), "{}", refusal.detail);
    let peer = peer(&authority, &before, NOW);
    let renewal = authority.renew(&peer, &Client::new().csr(), None, after(2_000));
    assert_eq!(renewal.unwrap_err().code, RefusalCode::AuditUnavailable);
    let id = IkeId { kind: 2, data: b"ci-7" };
    let door = KeyHolder::DOOR;
    let holder = KeyHolder { id, name: "ci-7", role: "builder", key: b"a shared key", door };
    assert!(authority.authorise_holder(&holder, None, NOW).is_err());
    // Access that is there goes on, and ends when it shall.
    authority.authorise(&peer, NOW).unwrap();
    authority.release(&before.lease.id, "client", &OPERATOR, after(1)).unwrap();

    authority.hold_issuance(None);
    assert_eq!(authority.est(&request, NOW).status, 200, "the token was not spent");
}
