//! An empty store against one with 100,000 live and a million ended leases, in turns.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pki::{Authority, Csr, Serial, TokenSecret};
use serde_json::{Value, json};

use super::fill::{Life, fill, lease_id, serial};
use super::{Place, enrol, load, micros, open, quantile, request, round2, token};
use crate::stopwatch::timed;

const LIVE: usize = 100_000;
const ENDED: usize = 1_000_000;
/// Enrolments of each store, as many as fit into the time.
const ENROLMENTS: usize = 2_000;
/// Look-ups of each kind and store.
const LOOKUPS: usize = 20_000;
/// Longest measuring of enrolments.
const LIMIT: Duration = Duration::from_secs(45);

/// One of the two stores.
struct Side {
    authority: Authority,
    tokens: Vec<TokenSecret>,
    enrolments: Vec<Duration>,
    by_id: Vec<Duration>,
    by_serial: Vec<Duration>,
    /// What is looked up: ids and serial numbers.
    known: Vec<(String, Serial)>,
}

impl Side {
    fn new(authority: Authority) -> Result<Self> {
        let tokens = (0..ENROLMENTS).map(|_| token(&authority)).collect::<Result<_>>()?;
        let (enrolments, by_id, by_serial) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { authority, tokens, enrolments, by_id, by_serial, known: Vec::new() })
    }

    fn enrol(&mut self, csr: &Csr) -> Result<()> {
        let token = self.tokens.pop().context("no token is left")?;
        let (took, enrolled) = enrol(&self.authority, &token, csr)?;
        self.enrolments.push(took);
        if self.known.len() < ENROLMENTS {
            let cert = enrolled.lease.cert().context("no certificate")?;
            self.known.push((enrolled.lease.id.clone(), cert.serial.clone()));
        }
        Ok(())
    }

    fn look_up(&mut self, number: usize) -> Result<()> {
        // A step that meets all of them, in no order of the keys.
        let (id, serial) = self.known.get(number * 7_919 % self.known.len()).context("nothing")?;
        let (took, found) = timed(|| self.authority.lease(id));
        found?.with_context(|| format!("lease {id} is not found"))?;
        self.by_id.push(took);
        let (took, found) = timed(|| self.authority.lease_by_serial(None, serial));
        found?.with_context(|| format!("certificate {serial} is not found"))?;
        self.by_serial.push(took);
        Ok(())
    }

    fn report(&mut self) -> Result<Value> {
        Ok(json!({
            "enrolments": self.enrolments.len(),
            "enrolment_p50_us": micros(quantile(&mut self.enrolments, 0.50)?),
            "enrolment_p99_us": micros(quantile(&mut self.enrolments, 0.99)?),
            "lookup_by_id_p50_us": micros(quantile(&mut self.by_id, 0.50)?),
            "lookup_by_serial_p50_us": micros(quantile(&mut self.by_serial, 0.50)?),
            "lookup_by_id_p99_us": micros(quantile(&mut self.by_id, 0.99)?),
            "lookup_by_serial_p99_us": micros(quantile(&mut self.by_serial, 0.99)?),
        }))
    }
}

pub(super) fn run() -> Result<Value> {
    let (small, large) = (Place::new("empty")?, Place::new("full")?);
    let started = Instant::now();
    let live = fill(large.path(), Life::Live, LIVE)?;
    fill(large.path(), Life::Ended, ENDED)?;
    println!("{LIVE} live and {ENDED} ended leases written in {:.0?}", started.elapsed());
    let (opening, opened) = timed(|| open(large.path()));
    println!("opened in {opening:.1?}");
    let mut empty = Side::new(open(small.path())?)?;
    let mut full = Side::new(opened?)?;
    for number in (0..LIVE).step_by(LIVE / ENROLMENTS) {
        let serial: Serial = serial(&live, Life::Live, number).parse()?;
        full.known.push((lease_id(Life::Live, number), serial));
    }

    let load_before = load();
    let started = Instant::now();
    for _ in 0..ENROLMENTS {
        if started.elapsed() > LIMIT {
            break;
        }
        let csr = request()?;
        empty.enrol(&csr)?;
        full.enrol(&csr)?;
    }
    for number in 0..LOOKUPS {
        empty.look_up(number)?;
        full.look_up(number)?;
    }
    let ratio = |pick: fn(&mut Side) -> &mut Vec<Duration>, empty: &mut Side, full: &mut Side| {
        let (large, small) = (quantile(pick(full), 0.99)?, quantile(pick(empty), 0.99)?);
        anyhow::Ok(round2(large.as_secs_f64() / small.as_secs_f64()))
    };
    let enrolment = ratio(|side| &mut side.enrolments, &mut empty, &mut full)?;
    let by_id = ratio(|side| &mut side.by_id, &mut empty, &mut full)?;
    let by_serial = ratio(|side| &mut side.by_serial, &mut empty, &mut full)?;
    Ok(json!({
        "bench": "store",
        "live": LIVE,
        "ended": ENDED,
        "p99_ratio_enrolment": enrolment,
        "p99_ratio_lookup_by_id": by_id,
        "p99_ratio_lookup_by_serial": by_serial,
        "target_ratio": 2.0,
        "opening_seconds": round2(opening.as_secs_f64()),
        "empty": empty.report()?,
        "full": full.report()?,
        "load_average": [load_before, load()],
    }))
}
