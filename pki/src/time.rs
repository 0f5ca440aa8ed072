//! Wall-clock time as a value: the crate never asks for it, callers pass it in.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An instant of wall-clock time: microseconds since 1970-01-01T00:00:00Z.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixTime(i64);

impl UnixTime {
    /// The latest representable instant.
    pub const MAX: Self = Self(i64::MAX);

    /// An instant given in whole seconds since the epoch.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    /// An instant given in microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// This instant moved forward, saturating at the ends of the range.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This instant moved backward, saturating at the ends of the range.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this instant is; zero when it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 in UTC with microseconds.
    pub fn rfc3339_micros(self) -> String {
        let whole = self.floor_to_second().to_string();
        format!("{}.{:06}Z", whole.trim_end_matches('Z'), self.0.rem_euclid(1_000_000))
    }

    /// Rounded down to the whole second, the resolution of an X.509 certificate.
    #[must_use]
    pub fn floor_to_second(self) -> Self {
        Self::from_secs(self.secs())
    }
}

impl fmt::Display for UnixTime {
    /// RFC 3339 in UTC, seconds resolution.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.secs();
        let (days, day_secs) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
        // Civil date from a day count: eras of 400 years that begin on 1 March.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_index = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_index + 2) / 5 + 1;
        let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (day_secs / 3_600, day_secs / 60 % 60, day_secs % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_rfc_3339() {
        assert_eq!(UnixTime::from_secs(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(UnixTime::from_secs(951_827_696).to_string(), "2000-02-29T12:34:56Z");
        assert_eq!(UnixTime::from_secs(1_795_305_600).to_string(), "2026-11-22T00:00:00Z");
        assert_eq!(UnixTime::from_secs(4_102_444_799).to_string(), "2099-12-31T23:59:59Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(UnixTime::MAX.plus(Duration::from_secs(1)), UnixTime::MAX);
        assert_eq!(UnixTime::from_secs(5).since(UnixTime::from_secs(9)), Duration::ZERO);
        assert_eq!(UnixTime::from_secs(9).since(UnixTime::from_secs(5)), Duration::from_secs(4));
    }
}
