//! The audit trail as a file: one JSON line per event, ECS field names, appended and synced.
//!
//! The store holds the truth, chained by hash and written in the transaction that makes the
//! change; this file is its copy for log shippers. Each line carries the event's position, so a
//! start continues where the last one was killed: no line is lost or written twice.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use pki::{Actor, AuditOutcome, AuditRecord, Authority};
use serde_json::{Map, Value, json};

use crate::sys::clock::rfc3339_millis;
use crate::sys::failpoint;

/// Events copied per step.
const BATCH: usize = 256;

/// The file.
#[derive(Debug)]
pub struct AuditFile {
    file: File,
    position: u64,
}

impl AuditFile {
    /// Opens or creates the file and finds the last event in it; a half-written last line, left
    /// by a crash, is cut off.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let (end, position) = last_complete(&mut file)?;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        Ok(Self { file, position })
    }

    /// Copies every event that is not in the file yet; how many.
    ///
    /// # Errors
    /// A sentence about the file or the store.
    pub fn follow(&mut self, authority: &Arc<Authority>) -> Result<usize, String> {
        let mut copied = 0;
        loop {
            let records = authority.audit(self.position, BATCH).map_err(|e| e.to_string())?;
            if records.is_empty() {
                return Ok(copied);
            }
            let mut text = Vec::new();
            for record in &records {
                text.extend_from_slice(ecs(record).to_string().as_bytes());
                text.push(b'\n');
            }
            self.file
                .write_all(&text)
                .and_then(|()| self.file.sync_data())
                .map_err(|e| format!("cannot append to the audit file: {e}"))?;
            failpoint::hit("audit.after_write");
            copied += records.len();
            self.position = records.last().map_or(self.position, |record| record.seq);
        }
    }
}

/// The end of the last complete line, and its event's position.
fn last_complete(file: &mut File) -> std::io::Result<(u64, u64)> {
    let length = file.metadata()?.len();
    // A line is far shorter than this.
    let window = length.min(256 * 1024);
    file.seek(SeekFrom::Start(length - window))?;
    let mut tail = Vec::new();
    file.take(window).read_to_end(&mut tail)?;
    let Some(newline) = tail.iter().rposition(|byte| *byte == b'\n') else {
        return Ok((0, 0));
    };
    let (complete, rest) = tail.split_at(newline + 1);
    let line =
        complete.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    let position = serde_json::from_slice::<Value>(line)
        .ok()
        .and_then(|value| value.get("event.sequence").and_then(Value::as_u64))
        .unwrap_or(0);
    let rest = u64::try_from(rest.len()).unwrap_or(0);
    Ok((length - rest, position))
}

/// One event with ECS names, flat.
fn ecs(record: &AuditRecord) -> Value {
    let event = &record.event;
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| {
        map.insert(name.to_owned(), value);
    };
    put("@timestamp", json!(rfc3339_millis(ike::time::WallTime(event.at.micros()))));
    put("event.kind", json!("event"));
    put("event.category", json!(category(&event.action)));
    put("event.action", json!(event.action));
    put(
        "event.outcome",
        json!(match event.outcome {
            AuditOutcome::Success => "success",
            AuditOutcome::Failure => "failure",
        }),
    );
    put("event.sequence", json!(record.seq));
    put("event.hash", json!(record.hash));
    match &event.actor {
        Actor::System => put("runnel.actor", json!("system")),
        Actor::Uid(uid) => {
            put("runnel.actor", json!("operator"));
            put("process.user.id", json!(uid.to_string()));
        }
        Actor::Peer(address) => {
            put("runnel.actor", json!("peer"));
            put("source.ip", json!(address.to_string()));
        }
    }
    let optional = [
        ("event.reason", &event.reason),
        ("user.id", &event.identity),
        ("x509.serial_number", &event.serial),
        ("x509.hash.spki", &event.spki_sha256),
        ("runnel.lease_id", &event.lease_id),
        ("runnel.role", &event.role),
        ("runnel.token", &event.token),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            put(name, json!(value));
        }
    }
    Value::Object(map)
}

fn category(action: &str) -> &'static str {
    match action.split('.').next() {
        Some("ike") => "network",
        Some("lease" | "token") => "iam",
        Some("policy" | "config" | "ca" | "crl") => "configuration",
        _ => "authentication",
    }
}

#[cfg(test)]
mod tests {
    use pki::{AuditEvent, UnixTime};

    use super::*;

    fn record(seq: u64) -> AuditRecord {
        let mut event = AuditEvent::new(
            "lease.create",
            &Actor::Peer("192.0.2.7".parse().unwrap()),
            UnixTime::from_secs(1_795_305_600),
        );
        event.lease_id = Some("r-7f3k9q".to_owned());
        AuditRecord { seq, event, hash: "ab".to_owned() }
    }

    #[test]
    fn lines_use_ecs_names() {
        let value = ecs(&record(7));
        assert_eq!(value["@timestamp"], "2026-11-22T00:00:00.000Z");
        assert_eq!(value["event.action"], "lease.create");
        assert_eq!(value["event.category"], "iam");
        assert_eq!(value["source.ip"], "192.0.2.7");
        assert_eq!(value["runnel.lease_id"], "r-7f3k9q");
        assert!(value.get("user.id").is_none());
    }

    #[test]
    fn a_torn_line_is_cut_and_the_position_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let whole = format!("{}\n{}\n", ecs(&record(6)), ecs(&record(7)));
        std::fs::write(&path, format!("{whole}{{\"event.seq")).unwrap();
        let opened = AuditFile::open(&path).unwrap();
        assert_eq!(opened.position, 7);
        drop(opened);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        assert_eq!(AuditFile::open(&dir.path().join("new.jsonl")).unwrap().position, 0);
    }
}
