//! `[limits]`, and the limits of a role: how many leases there may be, and how often one may be
//! opened; and `[lease]`: how long each waits for what.

use std::ops::RangeInclusive;
use std::time::Duration;

use pki::{LeaseTimers, Limits, OpenRate};

use super::section::{Findings, Section};

const RATES: RangeInclusive<u64> = 1..=100_000;
const BURSTS: RangeInclusive<u64> = 1..=1_000_000;

/// Shorter, and a client that only retransmits a packet would lose its lease.
const WAITS: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(86_400);

/// `[lease]`
pub(super) fn timers(mut section: Section<'_, '_>, found: &mut Findings<'_>) -> LeaseTimers {
    let mut timers = LeaseTimers::default();
    let mut set = |key: &'static str, range, place: &mut Duration| {
        if let Some(wait) = section.duration(key, range, found) {
            *place = wait;
        }
    };
    set("connect_within", WAITS, &mut timers.connect_within);
    set("lost_grace", WAITS, &mut timers.lost_grace);
    set("restart_grace", WAITS, &mut timers.restart_grace);
    // None at all is a choice: then an expired certificate is of no use.
    set("renew_grace", Duration::ZERO..=*WAITS.end(), &mut timers.renew_grace);
    section.finish(&[], found);
    timers
}

pub(super) fn limits(mut section: Section<'_, '_>, found: &mut Findings<'_>) -> Limits {
    let mut limits = Limits::default();
    let mut set = |key: &'static str, range, place: &mut u32| {
        if let Some(number) = section.number(key, range, found) {
            *place = u32::try_from(number).unwrap_or(*place);
        }
    };
    set("identity_rate", RATES, &mut limits.identity.per_second);
    set("identity_burst", BURSTS, &mut limits.identity.burst);
    set("issuer_rate", RATES, &mut limits.issuer.per_second);
    set("issuer_burst", BURSTS, &mut limits.issuer.burst);
    set("leases_per_job", 1..=1_000, &mut limits.leases_per_job);
    section.finish(&[], found);
    limits
}

/// `max_leases`, and `rate` with `burst`.
pub(super) fn of_role(
    section: &mut Section<'_, '_>,
    role: &str,
    found: &mut Findings<'_>,
) -> (Option<u32>, Option<OpenRate>) {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let most = section.number("max_leases", 1..=1_000_000, found).map(small);
    let per_second = section.number("rate", RATES, found).map(small);
    let burst = section.number("burst", BURSTS, found).map(small);
    if per_second.is_none() && burst.is_some() && !section.has("rate") {
        found.error(
            section.place("burst"),
            format!("role \"{role}\" has `burst` without `rate`; add rate = 20 (leases a second), or remove it"),
        );
    }
    // Ten seconds' worth at once, unless said otherwise.
    let rate = per_second.map(|per_second| OpenRate {
        per_second,
        burst: burst.unwrap_or(per_second.saturating_mul(10)),
    });
    (most, rate)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::Config;
    use crate::config::tests::errors;

    #[test]
    fn the_periods_of_a_lease_have_defaults_and_ranges() {
        let secs = Duration::from_secs;
        let timers = Config::parse("", "test").unwrap().lease;
        assert_eq!((timers.connect_within, timers.lost_grace), (secs(300), secs(90)));
        assert_eq!((timers.renew_grace, timers.restart_grace), (secs(300), secs(300)));
        let text = "[lease]\nconnect_within = \"20m\"\nlost_grace = \"4m\"\n\
                renew_grace = \"0s\"\nrestart_grace = \"10m\"";
        let config = Config::parse(text, "test").unwrap();
        let timers = crate::service::pki_settings(&config, "gw.example.com").timers;
        assert_eq!((timers.connect_within, timers.lost_grace), (secs(1_200), secs(240)));
        assert_eq!((timers.renew_grace, timers.restart_grace), (secs(0), secs(600)));
        for (text, part) in [
            ("[lease]\nlost_grace = \"1s\"", "10s to 1d"),
            ("[lease]\nlost_grce = \"1m\"", "did you mean `lost_grace`"),
        ] {
            let found = errors(text);
            assert!(found.iter().any(|line| line.contains(part)), "{part}: {found:#?}");
        }
    }

    #[test]
    fn limits_have_defaults_and_ranges() {
        let limits = Config::parse("", "test").unwrap().limits;
        assert_eq!(
            (limits.leases_per_job, limits.identity.per_second, limits.identity.burst),
            (5, 20, 100)
        );
        let text = "[limits]\nleases_per_job = 2\nidentity_rate = 3\nidentity_burst = 4\n\
                issuer_rate = 5\nissuer_burst = 6\n\
                [[role]]\nname = \"builder\"\nmax_leases = 7\nrate = 8\nallow = [\"10.20.0.10\"]";
        let config = Config::parse(text, "test").unwrap();
        let limits = config.limits;
        assert_eq!(
            (limits.leases_per_job, limits.identity.per_second, limits.identity.burst),
            (2, 3, 4)
        );
        assert_eq!((limits.issuer.per_second, limits.issuer.burst), (5, 6));
        let rate = config.roles[0].rate.unwrap();
        assert_eq!((config.roles[0].max_leases, rate.per_second, rate.burst), (Some(7), 8, 80));
        for (text, part) in [
            ("[limits]\nleases_per_job = 0", "from 1 to 1000"),
            ("[limits]\nidentity = 5", "unknown key `identity`"),
            ("[[role]]\nname = \"b\"\nburst = 5", "`burst` without `rate`"),
            ("[[role]]\nname = \"b\"\nmax_leases = -1", "from 1 to 1000000"),
        ] {
            let found = errors(text);
            assert!(found.iter().any(|line| line.contains(part)), "{part}: {found:#?}");
        }
    }
}
