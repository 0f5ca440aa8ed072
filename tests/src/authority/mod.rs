//! How fast the authority is, with a store on a disk: enrolment, look-up, revocation lists, alone and
//! beside a million ended leases. No network; every answer is durable before it is counted.
#![allow(clippy::print_stdout)] // numbers for people, then one JSON object for programs

mod enrolment;
mod fill;
mod store;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use pki::{
    Actor, Authority, Csr, Enrolled, Limits, OpenRate, Options, PoolConfig, RoleProfile, Settings,
    TokenCreate, TokenSecret, UnixTime,
};

use crate::real::{p256_key, p256_request};
use crate::stopwatch::timed;

const ROLE: &str = "builder";
const OPERATOR: Actor = Actor::Uid(0);

/// Runs a benchmark by name; the last line printed is one JSON object.
///
/// # Errors
/// When the name is unknown or the authority refuses.
pub fn run(name: &str) -> Result<()> {
    let report = match name {
        "store" => store::run()?,
        "enrolment" => enrolment::run()?,
        other => bail!("there is no benchmark `{other}` of the authority"),
    };
    println!("{report}");
    Ok(())
}

/// A directory of our own on the disk that holds temporary files; it goes with this value.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("runnel-bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One role, a pool with room for all, and no limits on rates.
fn settings() -> Result<Settings> {
    let mut settings = Settings::new("ci.example.com");
    settings.pools.insert("runners".to_owned(), PoolConfig::new(vec!["10.0.0.0/8".parse()?]));
    settings.roles.insert(ROLE.to_owned(), RoleProfile::new("runners"));
    let rate = OpenRate { per_second: 1_000_000, burst: 1_000_000 };
    settings.limits = Limits { identity: rate, issuer: rate, leases_per_job: 1_000 };
    Ok(settings)
}

fn open(directory: &Path) -> Result<Authority> {
    Ok(Authority::open(directory, Options::new(settings()?), now())?)
}

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// A client's request for a certificate, with a key of its own.
fn request() -> Result<Csr> {
    let (signer, public) = p256_key()?;
    Ok(Csr::from_der(&p256_request(&signer, &public)?)?)
}

fn token(authority: &Authority) -> Result<TokenSecret> {
    let create = TokenCreate { ttl: Duration::from_secs(3_600), ..TokenCreate::new(ROLE) };
    Ok(authority.token_create(&create, &OPERATOR, now())?.1)
}

/// One enrolment and how long it took until it was durable.
fn enrol(authority: &Authority, token: &TokenSecret, csr: &Csr) -> Result<(Duration, Enrolled)> {
    let (took, enrolled) =
        timed(|| authority.enrol_with_token(ROLE, token.expose(), csr, None, now()));
    Ok((took, enrolled.map_err(|refusal| anyhow::anyhow!("refused: {}", refusal.detail))?))
}

/// The time that this part of all pieces stayed below.
fn quantile(times: &mut [Duration], part: f64) -> Result<Duration> {
    times.sort_unstable();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let index = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
    times.get(index).copied().context("nothing was measured")
}

fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

fn round2(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// The machine's load average over the last minute: numbers of a busy machine are worth less.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}
