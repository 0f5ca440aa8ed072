//! How often one source may ask for something that costs a signature or a commit.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use ike::time::Timestamp;

use super::problem::problem;
use super::{Reply, Request, Service};
use crate::obs::{Refusals, Report};
use crate::sys::clock;

/// Sources remembered one by one; the rest share one allowance, so that many addresses fill no memory.
const MAX_SOURCES: usize = 4096;

const SECOND: u64 = 1_000_000;

/// Requests one source may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In each second, over time.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// What a source has left, in microseconds of waiting for one more request.
#[derive(Debug)]
struct Allowance {
    earned: u64,
    at: Timestamp,
}

/// A service that answers 429 to sources that ask too often. Reading (GET) is not counted where it
/// costs little, unless [`counting_all`](Self::counting_all) says so; who reads a lease shows a token,
/// whose signature is verified.
#[derive(Debug)]
pub struct Limited<S> {
    service: Arc<S>,
    rate: Rate,
    refusals: Arc<Refusals>,
    section: &'static str,
    /// Every request counts; what to do about it.
    all: Option<&'static str>,
    sources: Mutex<BTreeMap<Option<IpAddr>, Allowance>>,
}

impl<S> Limited<S> {
    /// Bounds how often a service is asked; `section` of the configuration has the rate.
    pub fn new(
        service: Arc<S>,
        rate: Rate,
        refusals: Arc<Refusals>,
        section: &'static str,
    ) -> Self {
        Self { service, rate, refusals, section, all: None, sources: Mutex::default() }
    }

    /// Counts every request, also those that only read; `fix` says what to do where that is not
    /// enough.
    #[must_use]
    pub fn counting_all(self, fix: &'static str) -> Self {
        Self { all: Some(fix), ..self }
    }

    /// Counts a request: `Err` with the whole seconds after which one more is answered.
    fn count(&self, source: IpAddr, now: Timestamp) -> Result<(), u64> {
        let price = SECOND / u64::from(self.rate.per_second.max(1));
        let most = price.saturating_mul(u64::from(self.rate.burst.max(1)));
        let mut key = Some(network(source));
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let earned = |allowance: &Allowance| {
            let since = u64::try_from(now.since(allowance.at).as_micros()).unwrap_or(u64::MAX);
            allowance.earned.saturating_add(since).min(most)
        };
        if !sources.contains_key(&key) && sources.len() >= MAX_SOURCES {
            // Who has a full allowance again needs no memory.
            sources.retain(|_, allowance| earned(allowance) < most);
            if sources.len() >= MAX_SOURCES {
                key = None;
            }
        }
        let allowance = sources.entry(key).or_insert(Allowance { earned: most, at: now });
        allowance.earned = earned(allowance);
        allowance.at = now;
        match allowance.earned.checked_sub(price) {
            Some(rest) => {
                allowance.earned = rest;
                Ok(())
            }
            None => Err((price - allowance.earned).div_ceil(SECOND).max(1)),
        }
    }

    fn refuse(&self, request: &Request, seconds: u64) -> Reply {
        let Rate { per_second, burst } = self.rate;
        let what =
            format!("the source sent more than {burst} requests at once or {per_second} a second");
        self.refusals.report(
            &Report {
                code: format!("{}_too_many_requests", self.section.trim_matches(['[', ']'])),
                peer: request.peer.to_string(),
                source: Some(request.peer.ip()),
                identity: "-".to_owned(),
                told: format!("HTTP 429, request {}", request.id),
                what: what.clone(),
                fix: self.all.map_or_else(
                    || {
                        format!(
                            "raise `rate` and `burst` in {} if many senders share this address",
                            self.section
                        )
                    },
                    ToOwned::to_owned,
                ),
            },
            clock::now(),
        );
        let detail = format!("{what}; try again in {seconds} s");
        let mut reply = problem(429, "too_many_requests", &detail);
        // Whole seconds: dates are not understood by every client.
        reply.headers.push(("retry-after", seconds.to_string()));
        reply
    }
}

impl<S: Service> Service for Limited<S> {
    async fn answer(&self, request: Request) -> Reply {
        if (self.all.is_some() || costly(&request.method, &request.path))
            && let Err(seconds) = self.count(request.peer.ip(), clock::mono())
        {
            return self.refuse(&request, seconds);
        }
        self.service.answer(request).await
    }
}

/// Whether a request can make signatures be checked or records be read, spelled in any way.
fn costly(method: &str, path: &str) -> bool {
    method != "GET" || (path.starts_with("/v1/") && path != "/v1/openapi.json")
}

/// One IPv6 host has a whole /64.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(per_second: u32, burst: u32) -> Limited<()> {
        Limited::new(Arc::new(()), Rate { per_second, burst }, Arc::default(), "[enrol]")
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp(millis * 1_000)
    }

    #[test]
    fn a_burst_is_answered_and_then_so_many_a_second() {
        let limited = limited(20, 100);
        let runner: IpAddr = "192.0.2.1".parse().unwrap();
        let answered = (0..500).filter(|_| limited.count(runner, at(0)).is_ok()).count();
        assert_eq!(answered, 100);
        assert_eq!(limited.count(runner, at(0)), Err(1), "Retry-After is in whole seconds");
        assert_eq!(limited.count("192.0.2.2".parse().unwrap(), at(0)), Ok(()), "another source");
        let answered = (0..500).filter(|_| limited.count(runner, at(1_000)).is_ok()).count();
        assert_eq!(answered, 20);
        let answered = (0..500).filter(|_| limited.count(runner, at(100_000)).is_ok()).count();
        assert_eq!(answered, 100, "no more than a burst is saved up");
    }

    #[test]
    fn every_spelling_of_a_costly_request_counts() {
        for path in ["/v1/leases/r-1", "/v1//leases/r-1", "/v1//v1/leases/r-1", "/v1/hooks/github"]
        {
            assert!(costly("GET", path), "{path}");
        }
        assert!(costly("HEAD", "/") && costly("POST", "/.well-known/est/simpleenroll"));
        assert!(!costly("GET", "/v1/openapi.json") && !costly("GET", "/.well-known/est/cacerts"));
    }

    #[test]
    fn waiting_as_long_as_told_is_enough() {
        let limited = limited(1, 1);
        let runner: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(limited.count(runner, at(0)), Ok(()));
        let seconds = limited.count(runner, at(400)).unwrap_err();
        assert_eq!(limited.count(runner, at(400 + seconds * 1_000)), Ok(()));
    }

    #[test]
    fn a_network_of_one_host_and_many_hosts_are_bounded() {
        let limited = limited(1, 10);
        let host = |low: u128| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) + low));
        let answered = (0..1_000).filter(|low| limited.count(host(*low), at(0)).is_ok()).count();
        assert_eq!(answered, 10);
        for network in 0..20_000u128 {
            let _ = limited.count(host(network << 64), at(0));
        }
        assert!(limited.sources.lock().unwrap().len() <= MAX_SOURCES + 1);
    }
}
