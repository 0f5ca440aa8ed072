//! What can be asked about the audit trail.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use pki::audit::chain;
use pki::{AuditRecord, ChainReport};
use serde_json::Value;

use super::{Instance, pki_error};
use crate::admin::proto::AdminError;
use crate::admin::view;

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
        let path = Path::new(&self.facts.state).join(FILE);
        if let Ok(file) = File::open(&path) {
            let copy = self.authority.verify_audit_copy(BufReader::new(file));
            parts.push(part(&path.display().to_string(), copy.map_err(pki_error)?));
        }
        Ok(verdict(parts))
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

/// Verifies the trail of a gateway that does not run, and its copy.
///
/// # Errors
/// One sentence.
pub fn verify_offline(state: &Path, seal_key: Option<&Path>) -> Result<view::AuditVerdict, String> {
    let trail = pki::audit::offline::Trail::open(state, seal_key).map_err(|e| e.to_string())?;
    let mut parts = vec![part("trail", trail.verify().map_err(|e| e.to_string())?)];
    let path = state.join(FILE);
    if let Ok(file) = File::open(&path) {
        let copy = trail.verify_copy(BufReader::new(file)).map_err(|e| e.to_string())?;
        parts.push(part(&path.display().to_string(), copy));
    }
    Ok(verdict(parts))
}

/// Verifies a copy by itself.
///
/// # Errors
/// One sentence.
pub fn verify_file(path: &Path) -> Result<view::AuditVerdict, String> {
    let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = File::open(path).map_err(unreadable)?;
    let report = chain::verify_lines(BufReader::new(file)).map_err(unreadable)?;
    Ok(verdict(vec![part(&path.display().to_string(), report)]))
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
}
