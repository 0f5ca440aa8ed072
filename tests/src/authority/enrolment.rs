//! Enrolments a second with durability on, against what disk and processor allow, measured in the
//! same run; and building a revocation list of 100,000.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use ike::crypto::SignatureScheme;
use pki::{Authority, RevocationReason, RevokeSelector, TokenSecret};
use serde_json::{Value, json};

use super::fill::{Life, fill};
use super::{OPERATOR, Place, enrol, load, micros, now, open, quantile, request, round2, token};
use crate::real::p256_key;
use crate::stopwatch::timed;

/// Clients at once: more than the disk has commits for, so that some share one.
const CLIENTS: usize = 16;
/// Longest measuring of one thing.
const SECONDS: Duration = Duration::from_secs(15);
/// Longest measuring of the machine.
const MACHINE: Duration = Duration::from_secs(3);
/// Enrolments at most.
const MOST: usize = 20_000;
/// Longest making of tokens.
const TOKENS: Duration = Duration::from_secs(20);
/// Certificates on the revocation list.
const REVOKED: usize = 100_000;

pub(super) fn run() -> Result<Value> {
    let place = Place::new("enrolment")?;
    let load_before = load();
    let fsyncs = fsyncs(place.path())?;
    let signatures = signatures()?;
    println!("the machine: {fsyncs:.0} fsyncs/s, {signatures:.0} P-256 signatures/s of one thread");

    let state = place.path().join("state");
    let authority = open(&state)?;
    let tokens = Mutex::new(tokens(&authority)?);
    let one = clients(&authority, &tokens, 1)?;
    println!("one client: {:.0}/s, p99 {:.2?}", one.rate, one.p99);
    let many = clients(&authority, &tokens, CLIENTS)?;
    println!("{CLIENTS} clients: {:.0}/s, p99 {:.2?}", many.rate, many.p99);
    drop(authority);

    let list = Place::new("crl")?;
    fill(list.path(), Life::Revoked, REVOKED)?;
    let authority = open(list.path())?;
    let (first, crl) = timed(|| authority.crl(now()));
    let crl = crl?;
    anyhow::ensure!(crl.entries >= REVOKED, "only {} entries", crl.entries);
    let (_, enrolled) = enrol(&authority, &token(&authority)?, &request()?)?;
    let selector = RevokeSelector::Lease(enrolled.lease.id.clone());
    let (revoking, revoked) =
        timed(|| authority.revoke(&selector, RevocationReason::KeyCompromise, &OPERATOR, now()));
    revoked?;
    let (again, rebuilt) = timed(|| authority.crl(now()));
    anyhow::ensure!(rebuilt?.entries == crl.entries + 1, "the list lacks the last one");
    println!("a list of {}: {:.0?}, {} octets", crl.entries, first, crl.der.len());
    Ok(json!({
        "bench": "enrolment",
        "fsyncs_per_second": fsyncs.round(),
        "signatures_per_second": signatures.round(),
        "one_client": one.report(fsyncs, signatures)?,
        "many_clients": many.report(fsyncs, signatures)?,
        "clients": CLIENTS,
        "crl_entries": crl.entries,
        "crl_octets": crl.der.len(),
        "crl_build_ms": round2(first.as_secs_f64() * 1e3),
        "crl_rebuild_ms": round2(again.as_secs_f64() * 1e3),
        "revocation_beside_it_ms": round2(revoking.as_secs_f64() * 1e3),
        "load_average": [load_before, load()],
    }))
}

/// How often the disk takes a small appended write durably, one after the other.
fn fsyncs(directory: &Path) -> Result<f64> {
    let mut file = OpenOptions::new().create(true).append(true).open(directory.join("fsync"))?;
    let (started, mut done) = (Instant::now(), 0_u32);
    while started.elapsed() < MACHINE {
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        done += 1;
    }
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

/// How often one thread signs with P-256, which is what an enrolment needs of the CA.
fn signatures() -> Result<f64> {
    let (signer, _) = p256_key()?;
    let signer: &dyn ike::crypto::Signer = &signer;
    let (started, mut done) = (Instant::now(), 0_u32);
    while started.elapsed() < MACHINE {
        signer.sign(SignatureScheme::EcdsaSha256, &[0x5a; 400]).map_err(|e| anyhow!("{e:?}"))?;
        done += 1;
    }
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

fn tokens(authority: &Authority) -> Result<Vec<TokenSecret>> {
    let (started, made) = (Instant::now(), AtomicUsize::new(0));
    let all = Mutex::new(Vec::new());
    on_threads(CLIENTS, || {
        while started.elapsed() < TOKENS && made.fetch_add(1, Ordering::Relaxed) < MOST {
            let token = token(authority)?;
            all.lock().map_err(|_| anyhow!("a thread panicked"))?.push(token);
        }
        Ok(())
    })?;
    all.into_inner().map_err(|_| anyhow!("a thread panicked"))
}

struct Measured {
    rate: f64,
    times: Vec<Duration>,
    p99: Duration,
}

impl Measured {
    fn report(&self, fsyncs: f64, signatures: f64) -> Result<Value> {
        let mut times = self.times.clone();
        Ok(json!({
            "enrolments": times.len(),
            "per_second": round2(self.rate),
            "p50_us": micros(quantile(&mut times, 0.50)?),
            "p99_us": micros(self.p99),
            "per_fsync": round2(self.rate / fsyncs),
            "of_signing_rate": round2(self.rate / signatures),
        }))
    }
}

/// So many clients enrol one after the other, each with a new key and token.
fn clients(
    authority: &Authority,
    tokens: &Mutex<Vec<TokenSecret>>,
    count: usize,
) -> Result<Measured> {
    let times = Mutex::new(Vec::new());
    // One client leaves most tokens to the many.
    let budget = if count == 1 { MOST / 10 } else { MOST };
    let spent = AtomicUsize::new(0);
    let poisoned = || anyhow!("a thread panicked");
    let started = Instant::now();
    on_threads(count, || {
        while started.elapsed() < SECONDS && spent.fetch_add(1, Ordering::Relaxed) < budget {
            let csr = request()?;
            let Some(token) = tokens.lock().map_err(|_| poisoned())?.pop() else { break };
            let (took, _) = enrol(authority, &token, &csr)?;
            times.lock().map_err(|_| poisoned())?.push(took);
        }
        Ok(())
    })?;
    let lasted = started.elapsed().as_secs_f64();
    let mut times = times.into_inner().map_err(|_| poisoned())?;
    let p99 = quantile(&mut times, 0.99)?;
    let number = u32::try_from(times.len()).context("too many")?;
    Ok(Measured { rate: f64::from(number) / lasted, times, p99 })
}

fn on_threads(count: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}
