//! Named places where a crash test kills the process; nothing at all in ordinary builds.

/// The gateway's own places; the PKI has its own list.
pub const LIST: &[&str] = &[
    "up.after_state",
    "up.after_authority",
    "up.after_bring_up",
    "up.before_ready",
    "est.before_answer",
    "token.before_answer",
    "end.after_durable",
    "end.before_answer",
    "audit.after_write",
];

/// Every place of the program.
pub fn all() -> impl Iterator<Item = &'static str> {
    LIST.iter().chain(pki::failpoint::LIST).copied()
}

/// Ends the process at once when `RUNNEL_FAILPOINT` names this place (`name`, or `name:3` for the
/// third visit).
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static VISITS: AtomicU32 = AtomicU32::new(0);
    debug_assert!(LIST.contains(&name), "failpoint {name} is not listed");
    let Ok(wanted) = std::env::var("RUNNEL_FAILPOINT") else { return };
    let (wanted, nth) = match wanted.split_once(':') {
        Some((wanted, nth)) => (wanted.to_owned(), nth.parse().unwrap_or(1)),
        None => (wanted, 1),
    };
    if wanted == name && VISITS.fetch_add(1, Ordering::SeqCst) + 1 == nth {
        std::process::abort();
    }
}

/// Does nothing: failpoints exist only with the `failpoints` feature.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &str) {}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = super::all().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
