//! What can be asked about the audit trail.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pki::audit::chain::{self, Wanted};
use pki::{AuditRecord, ChainReport, CheckpointVerifier};
use serde_json::Value;

use super::{Instance, pki_error};
use crate::admin::proto::AdminError;
use crate::admin::view;
use crate::obs::audit::kept_files;

/// The copy of the trail in the state directory.
pub const FILE: &str = "audit.jsonl";

/// Most events of one answer.
const MOST: usize = 10_000;

/// Events read at once.
const PAGE: usize = 1_000;

impl Instance {
    /// Stops or allows issuance by whether the trail can be written where it must be. `file` is what
    /// keeps it from the file.
    pub fn gate_issuance(&self, file: Option<&String>) {
        let config = self.config.get();
        let troubles: Vec<_> = self.sinks.iter().map(|sink| sink.status().trouble).collect();
        let held = config.audit.required.then(|| unwritable(file, &troubles)).flatten();
        self.authority.hold_issuance(held);
    }

    /// Writes down something that the gateway did by itself.
    pub fn note(&self, action: &str, reason: Option<&str>) {
        let mut event = pki::AuditEvent::new(action, &pki::Actor::System, super::now());
        event.reason = reason.map(str::to_owned);
        if let Err(error) = self.authority.record_audit(&event) {
            tracing::error!(action, %error, "audit event not recorded");
        }
    }

    /// Signs the trail when that is due.
    ///
    /// # Errors
    /// A sentence of the store.
    pub fn sign_audit(&self) -> Result<bool, String> {
        self.authority.checkpoint_when_due(super::now()).map_err(|error| error.to_string())
    }

    /// Signs the trail for a reason in one word.
    ///
    /// # Errors
    /// As [`sign_audit`](Self::sign_audit).
    pub fn sign_audit_because(&self, why: &str) -> Result<(), String> {
        self.authority.checkpoint(why, super::now()).map_err(|error| error.to_string())
    }

    /// What the operator must know about sinks.
    pub(super) fn audit_warnings(&self) -> Result<Vec<String>, pki::Error> {
        let end = self.authority.audit_end()?;
        let troubled = self.sinks.iter().map(|sink| sink.status()).filter_map(|status| {
            let behind = end.saturating_sub(status.delivered);
            let (name, why) = (status.name, status.trouble?);
            Some(format!("audit sink {name} takes nothing and is {behind} record(s) behind: {why}"))
        });
        Ok(troubled.collect())
    }

    pub(super) fn audit_verify(&self) -> Result<view::AuditVerdict, AdminError> {
        let mut parts = vec![part("trail", self.authority.verify_audit().map_err(pki_error)?)];
        for path in kept_files(&Path::new(&self.facts.state).join(FILE)) {
            if let Ok(file) = File::open(&path) {
                let copy = self.authority.verify_audit_copy(BufReader::new(file));
                parts.push(part(&path.display().to_string(), copy.map_err(pki_error)?));
            }
        }
        Ok(verdict(parts))
    }

    pub(super) fn audit_key(&self) -> view::AuditKey {
        key_view(&self.authority.checkpoint_key())
    }

    /// Events as their lines say them, oldest first.
    pub(super) fn audit_tail(
        &self,
        after: Option<u64>,
        last: usize,
        lease: Option<&str>,
        action: Option<&str>,
    ) -> Result<Vec<Value>, AdminError> {
        let last = last.clamp(1, MOST);
        let wanted = |record: &AuditRecord| {
            lease.is_none_or(|lease| record.event.lease_id.as_deref() == Some(lease))
                && action.is_none_or(|action| record.event.action.starts_with(action))
        };
        let mut found = std::collections::VecDeque::new();
        // Without a choice the latest are where the trail ends.
        let end = self.authority.audit_end().map_err(pki_error)?;
        let from_end = end.saturating_sub(u64::try_from(last).unwrap_or(u64::MAX));
        let plain = lease.is_none() && action.is_none();
        let mut position = after.unwrap_or(if plain { from_end } else { 0 });
        loop {
            let page = self.authority.audit(position, PAGE).map_err(pki_error)?;
            let Some(next) = page.last().map(|record| record.seq) else { break };
            position = next;
            for record in page.into_iter().filter(wanted) {
                if found.len() == last {
                    if after.is_some() {
                        return Ok(lines(&found));
                    }
                    found.pop_front();
                }
                found.push_back(record);
            }
        }
        Ok(lines(&found))
    }
}

/// Why the trail is not where it must be: the file, and, where there are sinks, one of them.
fn unwritable(file: Option<&String>, sinks: &[Option<String>]) -> Option<String> {
    if let Some(trouble) = file {
        return Some(trouble.clone());
    }
    let first = sinks.first()?.clone()?;
    sinks.iter().all(Option::is_some).then(|| format!("no audit sink takes records: {first}"))
}

fn lines<'a>(records: impl IntoIterator<Item = &'a AuditRecord>) -> Vec<Value> {
    let parsed = |record: &AuditRecord| serde_json::from_str(&record.line).unwrap_or_default();
    records.into_iter().map(parsed).collect()
}

/// What a copy is compared with where the gateway is not.
#[derive(Debug, Default)]
pub struct OffMachine<'a> {
    /// File with the public key that [`key_offline`] or the running gateway gave.
    pub key: Option<&'a Path>,
    /// The last checkpoint is no older.
    pub max_age: Option<Duration>,
}

impl OffMachine<'_> {
    /// Compares the key of the file with that of the running gateway, which verifies with its own.
    ///
    /// # Errors
    /// One sentence when it is another, or the file is none.
    pub fn expects(&self, running: &view::AuditKey) -> Result<(), String> {
        let Some(wanted) = self.verifier()? else { return Ok(()) };
        if wanted.id() == running.id {
            return Ok(());
        }
        Err(format!(
            "the running gateway signs with key {}, and the file has {}: this is another gateway, or \
             its sealing key was replaced",
            running.id,
            wanted.id()
        ))
    }

    fn verifier(&self) -> Result<Option<CheckpointVerifier>, String> {
        let Some(path) = self.key else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let key = CheckpointVerifier::from_pem(&text);
        key.map(Some).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Verifies the trail of a gateway that does not run, and its copies.
///
/// # Errors
/// One sentence.
pub fn verify_offline(
    state: &Path,
    seal_key: Option<&Path>,
    wanted: &OffMachine<'_>,
) -> Result<view::AuditVerdict, String> {
    let mut trail = pki::audit::offline::Trail::open(state, seal_key).map_err(|e| e.to_string())?;
    if let Some(key) = wanted.verifier()? {
        trail = trail.signed_by(key);
    }
    let mut parts = vec![part("trail", trail.verify().map_err(|e| e.to_string())?)];
    for path in kept_files(&state.join(FILE)) {
        if let Ok(file) = File::open(&path) {
            let copy = trail.verify_copy(BufReader::new(file)).map_err(|e| e.to_string())?;
            parts.push(part(&path.display().to_string(), copy));
        }
    }
    Ok(verdict(parts))
}

/// Verifies a copy by itself: its files, the oldest first.
///
/// # Errors
/// One sentence.
pub fn verify_files(
    paths: &[PathBuf],
    wanted: &OffMachine<'_>,
) -> Result<view::AuditVerdict, String> {
    let open = |path: &PathBuf| {
        let file = File::open(path);
        file.map(BufReader::new).map_err(|e| format!("cannot read {}: {e}", path.display()))
    };
    let files = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let names = names.join(", ");
    let now = super::now();
    let wanted = Wanted { key: wanted.verifier()?, fresh: wanted.max_age.map(|most| (most, now)) };
    let report = chain::verify_files(files, &wanted)
        .map_err(|error| format!("cannot read {names}: {error}"))?;
    Ok(verdict(vec![part(&names, report)]))
}

/// The public key of the checkpoints of a gateway that does not run.
///
/// # Errors
/// One sentence.
pub fn key_offline(state: &Path, seal_key: Option<&Path>) -> Result<view::AuditKey, String> {
    let trail = pki::audit::offline::Trail::open(state, seal_key).map_err(|e| e.to_string())?;
    let key = trail.checkpoint_key().ok_or_else(|| {
        "the sealing key is not in the state directory: name it with --seal-key".to_owned()
    })?;
    Ok(key_view(&key))
}

fn key_view(key: &CheckpointVerifier) -> view::AuditKey {
    view::AuditKey { id: key.id(), pem: key.pem() }
}

fn verdict(parts: Vec<view::AuditPart>) -> view::AuditVerdict {
    view::AuditVerdict { ok: parts.iter().all(|part| part.faults.is_empty()), parts }
}

fn part(name: &str, report: ChainReport) -> view::AuditPart {
    let faults = report.faults.into_iter().map(|fault| view::AuditFault {
        kind: fault.kind.name().to_owned(),
        record: fault.seq,
        line: fault.line,
        what: fault.what,
    });
    view::AuditPart {
        name: name.to_owned(),
        records: report.records,
        first: report.first,
        last: report.last,
        hash: report.hash,
        sealed: report.sealed,
        forgotten: report.forgotten,
        signed: report.signed.map(|signed| view::AuditSigned {
            checkpoint: signed.checkpoint,
            record: signed.record,
            time: signed.at.to_string(),
        }),
        faults: faults.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_and_one_sink_must_take_the_trail() {
        let trouble = || Some("away".to_owned());
        assert_eq!(unwritable(None, &[]), None);
        assert_eq!(
            unwritable(Some(&"disk full".to_owned()), &[None]).as_deref(),
            Some("disk full")
        );
        assert_eq!(unwritable(None, &[trouble(), None]), None);
        assert_eq!(unwritable(None, &[None, trouble()]), None);
        let told = unwritable(None, &[trouble(), trouble()]).unwrap();
        assert_eq!(told, "no audit sink takes records: away");
    }

    /// What an operator does on another machine: the file, the key that was printed, and openssl.
    #[test]
    fn a_copy_is_proven_by_the_printed_key_and_by_openssl() {
        let dir = tempfile::tempdir().unwrap();
        let (state, now) = (dir.path().join("state"), super::super::now());
        let options = pki::Options::new(pki::Settings::new("ci.example.com"));
        let authority = pki::Authority::open(&state, options, now).unwrap();
        authority.checkpoint("stop", now).unwrap();
        let records = authority.audit(0, 1_000).unwrap();
        drop(authority);
        let lines: String = records.iter().map(|record| format!("{}\n", record.line)).collect();
        let (copy, key) = (dir.path().join("copy"), dir.path().join("audit.pub"));
        std::fs::write(&copy, &lines).unwrap();
        std::fs::write(&key, key_offline(&state, None).unwrap().pem).unwrap();
        let kinds = |wanted: &OffMachine<'_>| {
            let verdict = verify_files(std::slice::from_ref(&copy), wanted).unwrap();
            let faults = verdict.parts.into_iter().flat_map(|part| part.faults);
            faults.map(|fault| fault.kind).collect::<Vec<_>>()
        };
        let hour = Some(Duration::from_secs(3_600));
        let wanted = OffMachine { key: Some(&key), max_age: hour };
        assert!(kinds(&wanted).is_empty());
        let trail = verify_offline(&state, None, &OffMachine::default()).unwrap();
        assert_eq!(trail.parts[0].signed.as_ref().unwrap().checkpoint, records.last().unwrap().seq);

        let last = records.last().unwrap();
        let signed = last.event.checkpoint.as_ref().unwrap();
        let text = pki::audit::checkpoint::Checkpoint::text(signed.record, &signed.hash, now);
        let line: Value = serde_json::from_str(&last.line).unwrap();
        assert!(text.contains(line["@timestamp"].as_str().unwrap()), "all of it is on the line");
        let (said, signature) = (dir.path().join("text"), dir.path().join("signature"));
        std::fs::write(&said, &text).unwrap();
        use base64::Engine as _;
        let octets = base64::engine::general_purpose::STANDARD.decode(&signed.signature).unwrap();
        std::fs::write(&signature, octets).unwrap();
        let openssl = std::process::Command::new("openssl")
            .args(["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey"])
            .arg(&key)
            .arg("-in")
            .arg(&said)
            .arg("-sigfile")
            .arg(&signature)
            .output()
            .unwrap();
        assert!(openssl.status.success(), "{openssl:?}");

        // Without its last line nothing is signed; of another gateway nothing fits.
        let cut = lines.trim_end().rsplit_once('\n').unwrap().0;
        std::fs::write(&copy, format!("{cut}\n")).unwrap();
        assert_eq!(kinds(&wanted), ["unsigned"]);
        std::fs::write(&copy, &lines).unwrap();
        let other = dir.path().join("other");
        let options = pki::Options::new(pki::Settings::new("ci.example.com"));
        drop(pki::Authority::open(&other, options, now).unwrap());
        std::fs::write(&key, key_offline(&other, None).unwrap().pem).unwrap();
        assert_eq!(kinds(&wanted), ["forged", "unsigned"]);
        std::fs::write(&key, "no key").unwrap();
        let error = verify_files(std::slice::from_ref(&copy), &wanted).unwrap_err();
        assert!(error.contains("audit.pub") && error.contains("runnel audit key"), "{error}");
    }
}
