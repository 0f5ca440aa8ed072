//! Named places where a crash test kills the process; nothing at all in ordinary builds.

/// Every name passed to [`hit`], so that a test can visit them all.
pub const LIST: &[&str] = &[
    "seal.before_rename",
    "seal.after_rename",
    "ca.before_commit",
    "ca.after_commit",
    "ca.before_change",
    "ca.after_change",
    "server.before_commit",
    "server.after_commit",
    "token.create.before_commit",
    "token.create.after_commit",
    "pending.before_commit",
    "pending.after_commit",
    "approve.before_commit",
    "approve.after_commit",
    "lease.after_allocation",
    "enrol.after_signing",
    "enrol.before_commit",
    "enrol.after_commit",
    "enrol.before_answer",
    "renew.before_commit",
    "renew.after_commit",
    "connect.before_commit",
    "connect.after_commit",
    "release.before_commit",
    "release.after_commit",
    "revoke.before_commit",
    "revoke.after_commit",
    "lose.before_commit",
    "lose.after_commit",
    "expire.before_commit",
    "expire.after_commit",
    "crl.before_commit",
    "crl.after_commit",
    "ocsp.before_commit",
    "ocsp.after_commit",
    "store.before_commit",
    "store.after_commit",
    "journal.before_write",
    "journal.after_write",
];

/// Those that only a restored state visits.
pub const RESTORE: &[&str] = &[
    "restore.before_rename",
    "restore.after_rename",
    "replay.before_commit",
    "replay.after_commit",
    "replay.before_end",
];

/// Ends the process at once when `RUNNEL_FAILPOINT` names this place.
///
/// `RUNNEL_FAILPOINT=name` kills at the first visit, `name:3` at the third.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static VISITS: AtomicU32 = AtomicU32::new(0);
    debug_assert!(
        LIST.contains(&name) || RESTORE.contains(&name),
        "failpoint {name} is not listed"
    );
    let Ok(wanted) = std::env::var("RUNNEL_FAILPOINT") else { return };
    let (wanted_name, nth) = match wanted.split_once(':') {
        Some((name, nth)) => (name, nth.parse().unwrap_or(1)),
        None => (wanted.as_str(), 1),
    };
    if wanted_name == name && VISITS.fetch_add(1, Ordering::SeqCst) + 1 == nth {
        std::process::abort();
    }
}

/// Does nothing: failpoints exist only with the `failpoints` feature.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &str) {}
