//! Refused exchanges: one operator line each, rate-limited per source, and a memory of the latest
//! for `runnel doctor`.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ike::time::{Now, Timestamp};
use ike::wire::{IdType, Identification};

use super::plain::{field, plain};
use crate::admin::view::RefusalView;
use crate::sys::clock::rfc3339;

/// Refusals remembered.
const KEEP: usize = 200;

/// Lines a source may write at once.
const BURST: u32 = 10;

/// One more line per source after this many microseconds.
const REFILL_MICROS: u64 = 5_000_000;

/// Sources tracked; all others share one allowance, so that spoofed addresses cannot fill memory
/// or the log.
const MAX_SOURCES: usize = 1024;

/// One refusal, whoever made it (IKE, enrolment).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Stable code.
    pub code: String,
    /// The peer's address and port as text.
    pub peer: String,
    /// The peer's address.
    pub source: Option<IpAddr>,
    /// The identity it claimed, or a dash.
    pub identity: String,
    /// What the peer was told.
    pub told: String,
    /// What differed.
    pub what: String,
    /// What to change.
    pub fix: String,
}

impl From<&ike::event::Refusal> for Report {
    fn from(refusal: &ike::event::Refusal) -> Self {
        let dash = || "-".to_owned();
        Self {
            code: refusal.code.to_owned(),
            peer: refusal.remote.map_or_else(dash, |remote| remote.to_string()),
            source: refusal.remote.map(|remote| remote.ip()),
            identity: refusal.identity.as_ref().map_or_else(dash, identity),
            told: refusal.notify.map_or_else(|| "nothing".to_owned(), |notify| notify.to_string()),
            what: refusal.what.clone(),
            fix: refusal.fix.clone(),
        }
    }
}

impl Report {
    /// The same without what a stranger could have put into it to forge or flood the log.
    pub(crate) fn clean(&self) -> Self {
        Self {
            code: field(&self.code),
            peer: field(&self.peer),
            source: self.source,
            identity: field(&self.identity),
            told: field(&self.told),
            what: plain(&self.what),
            fix: plain(&self.fix),
        }
    }
}

/// Names in DER are printed as people write them.
fn identity(identity: &Identification) -> String {
    match identity.id_type {
        IdType::DerAsn1Dn => pki::validate::render_dn(&identity.data),
        _ => identity.to_string(),
    }
}

#[derive(Debug)]
struct Allowance {
    lines: u32,
    refilled: Timestamp,
    suppressed: u64,
}

#[derive(Debug, Default)]
struct Inner {
    recent: VecDeque<RefusalView>,
    sources: BTreeMap<Option<IpAddr>, Allowance>,
    total: u64,
}

/// The refusals of this process.
#[derive(Debug, Default)]
pub struct Refusals {
    inner: Mutex<Inner>,
}

impl Refusals {
    /// Records a refusal and writes its line unless the source has used up its allowance.
    pub fn report(&self, report: &Report, now: Now) {
        let report = &report.clean();
        if let Some(suppressed) = self.record(report, now) {
            tracing::warn!(
                code = %report.code,
                peer = %report.peer,
                identity = report.identity.as_str(),
                told = report.told.as_str(),
                what = report.what.as_str(),
                fix = report.fix.as_str(),
                suppressed = (suppressed > 0).then_some(suppressed),
                "refused"
            );
        }
    }

    /// Records it; the number of lines suppressed before this one, or `None` to stay silent.
    fn record(&self, report: &Report, now: Now) -> Option<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.total += 1;
        inner.remember(report, now);
        inner.allow(report.source, now.mono)
    }

    /// How many since the start.
    pub fn total(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// The latest, newest first.
    pub fn recent(&self) -> Vec<RefusalView> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.recent.iter().rev().cloned().collect()
    }
}

impl Inner {
    fn remember(&mut self, report: &Report, now: Now) {
        let time = rfc3339(now.wall.0.div_euclid(1_000_000));
        let same = self.recent.back_mut().filter(|last| {
            last.code == report.code && last.peer == report.peer && last.what == report.what
        });
        if let Some(last) = same {
            last.count += 1;
            last.time = time;
            return;
        }
        if self.recent.len() >= KEEP {
            self.recent.pop_front();
        }
        self.recent.push_back(RefusalView {
            time,
            code: report.code.clone(),
            peer: report.peer.clone(),
            identity: report.identity.clone(),
            notify: report.told.clone(),
            what: report.what.clone(),
            fix: report.fix.clone(),
            count: 1,
        });
    }

    fn allow(&mut self, source: Option<IpAddr>, now: Timestamp) -> Option<u64> {
        let mut key = source;
        if !self.sources.contains_key(&key) && self.sources.len() >= MAX_SOURCES {
            // Sources that are quiet long enough to have a full allowance need no memory.
            let full = u128::from(REFILL_MICROS) * u128::from(BURST);
            self.sources.retain(|_, a| now.since(a.refilled).as_micros() < full);
            if self.sources.len() >= MAX_SOURCES {
                key = None;
            }
        }
        let allowance = self.sources.entry(key).or_insert(Allowance {
            lines: BURST,
            refilled: now,
            suppressed: 0,
        });
        let elapsed = u64::try_from(now.since(allowance.refilled).as_micros()).unwrap_or(u64::MAX);
        let earned = elapsed / REFILL_MICROS;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            allowance.lines = allowance.lines.saturating_add(earned).min(BURST);
            allowance.refilled = now;
        }
        if allowance.lines == 0 {
            allowance.suppressed += 1;
            return None;
        }
        allowance.lines -= 1;
        Some(std::mem::take(&mut allowance.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ike::time::WallTime;

    use super::*;

    fn report(source: &str, code: &str) -> Report {
        Report {
            code: code.to_owned(),
            peer: format!("{source}:500"),
            source: source.parse().ok(),
            identity: "-".to_owned(),
            told: "NO_PROPOSAL_CHOSEN".to_owned(),
            what: "offers nothing we accept".to_owned(),
            fix: "add aes256gcm16".to_owned(),
        }
    }

    fn at(seconds: u64) -> Now {
        Now {
            mono: Timestamp::default() + Duration::from_secs(seconds),
            wall: WallTime(i64::try_from(seconds).unwrap() * 1_000_000),
        }
    }

    #[test]
    fn a_noisy_source_is_quietened_and_says_how_much_was_left_out() {
        let refusals = Refusals::default();
        let noisy = report("192.0.2.1", "no_proposal_chosen");
        let lines = (0..100).filter(|_| refusals.record(&noisy, at(0)).is_some()).count();
        assert_eq!(lines, 10);
        assert_eq!(refusals.record(&report("192.0.2.2", "x"), at(0)), Some(0));
        assert_eq!(refusals.record(&noisy, at(5)), Some(90));
        assert_eq!(refusals.record(&noisy, at(5)), None);
        assert_eq!(refusals.total(), 103);
    }

    #[test]
    fn what_a_stranger_wrote_is_one_short_line() {
        let refusals = Refusals::default();
        let identity = format!("CN={}\nWARN forged", "x".repeat(60_000));
        let forged = Report { identity, ..report("192.0.2.1", "unknown_issuer") };
        refusals.report(&forged, at(0));
        let kept = refusals.recent().remove(0);
        assert!(kept.identity.len() < 250 && !kept.identity.contains('\n'), "{}", kept.identity);
    }

    #[test]
    fn repetition_is_counted_not_stored() {
        let refusals = Refusals::default();
        for second in 0..5 {
            refusals.record(&report("192.0.2.1", "expired"), at(second));
        }
        refusals.record(&report("192.0.2.1", "revoked"), at(9));
        let recent = refusals.recent();
        assert_eq!(recent.len(), 2);
        assert_eq!((recent[0].code.as_str(), recent[0].count), ("revoked", 1));
        assert_eq!((recent[1].code.as_str(), recent[1].count), ("expired", 5));
    }

    #[test]
    fn a_flood_of_sources_is_bounded() {
        let refusals = Refusals::default();
        let mut lines = 0;
        for i in 0..10_000u32 {
            let source = std::net::Ipv4Addr::from(0x0a00_0000 + i).to_string();
            lines += usize::from(refusals.record(&report(&source, "x"), at(1)).is_some());
        }
        let inner = refusals.inner.lock().unwrap();
        assert!(inner.sources.len() <= MAX_SOURCES + 1);
        assert!(inner.recent.len() <= KEEP);
        assert!(lines <= MAX_SOURCES + usize::try_from(BURST).unwrap() + 1, "{lines}");
    }
}
