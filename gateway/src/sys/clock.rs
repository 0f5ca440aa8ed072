//! The two clocks, and times as people read them.

use ike::time::{Now, Timestamp, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// Both clocks now. The monotonic one counts time in suspend too, so that a lease does not
/// outlive a nap of the machine.
pub fn now() -> Now {
    Now { mono: mono(), wall: wall() }
}

/// Monotonic microseconds since boot.
pub fn mono() -> Timestamp {
    let t = clock_gettime(ClockId::Boottime);
    Timestamp(
        u64::try_from(t.tv_sec).unwrap_or(0).saturating_mul(1_000_000)
            + u64::try_from(t.tv_nsec).unwrap_or(0) / 1_000,
    )
}

/// Wall-clock microseconds since the Unix epoch.
pub fn wall() -> WallTime {
    let t = clock_gettime(ClockId::Realtime);
    WallTime(t.tv_sec.saturating_mul(1_000_000).saturating_add(t.tv_nsec / 1_000))
}

/// Seconds since the Unix epoch.
pub fn unix_seconds() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec
}

/// `2026-11-22T09:20:14Z` (RFC 3339, UTC).
pub fn rfc3339(unix_seconds: i64) -> String {
    let (year, month, day) = civil(unix_seconds.div_euclid(86_400));
    let s = unix_seconds.rem_euclid(86_400);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// `2026-11-22T09:20:14.123Z`, for log-like records.
pub fn rfc3339_millis(wall: WallTime) -> String {
    let whole = rfc3339(wall.0.div_euclid(1_000_000));
    let millis = wall.0.rem_euclid(1_000_000) / 1_000;
    format!("{}.{millis:03}Z", whole.trim_end_matches('Z'))
}

/// A duration as people say it: `59m`, `1h 2m`, `3d 4h`, `12s`.
pub fn human(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m, s) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, 0) => format!("{m}m"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, 0, _) => format!("{h}h"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, 0, ..) => format!("{d}d"),
        (d, h, ..) => format!("{d}d {h}h"),
    }
}

/// Parses `15m`, `1h`, `90s`, `2d` or plain seconds.
///
/// # Errors
/// A sentence with the accepted forms.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration; write it like 90s, 15m, 1h or 2d");
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).map(std::time::Duration::from_secs).ok_or_else(wrong)
}

/// Days since the epoch to a calendar date (proleptic Gregorian; Howard Hinnant's algorithm).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_339_214), "2026-11-22T09:20:14Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
        assert_eq!(rfc3339_millis(WallTime(1_500_000)), "1970-01-01T00:00:01.500Z");
    }

    #[test]
    fn durations_read_both_ways() {
        assert_eq!(parse_duration("15m").unwrap().as_secs(), 900);
        assert_eq!(parse_duration("90").unwrap().as_secs(), 90);
        assert_eq!(parse_duration("2d").unwrap().as_secs(), 172_800);
        assert!(parse_duration("15 minutes").unwrap_err().contains("write it like"));
        assert!(parse_duration("").is_err());
        assert!(parse_duration("99999999999999999999h").is_err());
        assert_eq!(human(3_725), "1h 2m");
        assert_eq!(human(12), "12s");
        assert_eq!(human(61), "1m 1s");
        assert_eq!(human(90_000), "1d 1h");
    }

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        let a = mono();
        let b = mono();
        assert!(b >= a);
    }
}
