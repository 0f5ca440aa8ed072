//! How fast complete certificate handshakes are, against the cryptography they cannot do without,
//! and how much memory an established IKE SA holds.
//!
//! The engine alone: no sockets, no data plane, no certificate chain. What counts is the responder,
//! which a gateway is: each input until the engine wants nothing more, the execution of its key
//! exchanges, its signature and the check of the peer's included. The ceiling is the sum of the
//! cryptographic operations of the same handshakes. Key exchanges and signatures are measured where
//! they are done, so that both times find the processor's caches in the same state; the symmetric
//! part happens within the engine, and is done once more beside it to be measured. The clock is one
//! that is read without a system call, which would empty the very caches that the work needs next;
//! what reading it takes is subtracted. Each handshake has a ratio of its own and the median counts,
//! so that those in which the machine did something else count little.
#![allow(clippy::print_stdout)] // numbers for people, then one JSON object for programs

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ike::crypto::keymat::{IkeKeys, Nonces, skeyseed};
use ike::crypto::{
    CryptoProvider, EspSuite, HashFunction, IkeSuite, SharedSecret, Signer, prf_plus,
};
use ike::io::{Command, Datagram, Grant, LeaseId, UniquePolicy};
use ike::wire::{Identification, TrafficSelector};
use ike::{Event, Input, Now, Timestamp, Transmit, WallTime};
use serde_json::{Value, json};

use crate::alloc;
use crate::lab::cmd;
use crate::real::{Identity, Party, any_grant, config, target};
use crate::stopwatch::{Meter, reading, timed};

/// Handshakes measured, each with a ratio of its own.
const MEASURED: usize = 1200;
/// Handshakes before that, which warm up.
const UNMEASURED: usize = 80;
/// IKE SAs held at once when memory is measured.
const HELD: usize = 10_000;
/// Octets of an IKE_SA_INIT request.
const FIRST: usize = 250;
/// Octets inside the IKE_AUTH request and response.
const INSIDE: (usize, usize) = (460, 360);

/// A suite to be measured.
struct Case {
    name: &'static str,
    ike: &'static str,
    /// What `openssl genpkey` is told.
    key: &'static [&'static str],
}

const CASES: [Case; 2] = [
    Case {
        name: "ecdsa-p256+x25519",
        ike: "aes256gcm16-prfsha256-x25519",
        key: &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    },
    Case {
        name: "rsa-2048+ecp256",
        ike: "aes256gcm16-prfsha256-ecp256",
        key: &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    },
];

/// A cryptography provider with its way to load a key.
struct Backend {
    provider: &'static CryptoProvider,
    signer: fn(&[u8]) -> Result<Box<dyn Signer>>,
}

const BACKENDS: [Backend; 2] = [
    Backend {
        provider: &ike::crypto::ring::PROVIDER,
        signer: |key| Ok(Box::new(ike::crypto::ring::Pkcs8Signer::from_pkcs8(key)?)),
    },
    Backend {
        provider: &ike::crypto::aws_lc::PROVIDER,
        signer: |key| Ok(Box::new(ike::crypto::aws_lc::Pkcs8Signer::from_pkcs8(key)?)),
    },
];

/// A key pair, as files hold it.
struct Key {
    private: Vec<u8>,
    public: Vec<u8>,
}

/// Runs the benchmark; the last line printed is one JSON object.
///
/// # Errors
/// When a handshake does not succeed.
pub fn run() -> Result<()> {
    let mut rows = Vec::new();
    let mut ratios = serde_json::Map::new();
    for case in &CASES {
        let key = Key::new(case.key)?;
        let mut best: f64 = 0.0;
        for backend in &BACKENDS {
            let row = measure(case, backend, &key)?;
            best = best.max(row["engine_to_crypto_ceiling"].as_f64().unwrap_or(0.0));
            if backend.provider.name == ike::crypto::default_provider().name {
                ratios.insert(case.name.to_owned(), row["engine_to_crypto_ceiling"].clone());
            }
            rows.push(row);
        }
        ratios.entry(case.name).or_insert(json!(best));
    }
    let bytes = bytes_held(HELD)?;
    println!("memory of an established IKE SA with one child, {HELD} of them: {bytes} bytes each");
    let report = json!({
        "benchmark": "handshake",
        "engine_to_crypto_ceiling": ratios,
        "runs": rows,
        "bytes_per_ike_sa_with_child": bytes,
        "ike_sas_held": HELD,
        "strongswan_5_9_8_responder": {
            "ecdsa_x25519_cpu_ms": 4.05,
            "ecdsa_x25519_cpu_ms_without_sa_installation": 2.2,
            "bytes_per_sa": 17_700,
        },
    });
    println!("{report}");
    Ok(())
}

impl Key {
    fn new(words: &[&str]) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("runnel-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let made = Self::make(words, &dir);
        std::fs::remove_dir_all(&dir)?;
        made
    }

    fn make(words: &[&str], dir: &std::path::Path) -> Result<Self> {
        let path = |name: &str| dir.join(name).display().to_string();
        let (pem, private, public) = (path("key.pem"), path("key.der"), path("public.der"));
        let mut generate = vec!["genpkey", "-out", &pem];
        generate.extend(words);
        cmd::run("openssl", &generate)?;
        let convert = ["pkcs8", "-topk8", "-nocrypt", "-in", &pem, "-outform", "DER", "-out"];
        cmd::run("openssl", &[&convert[..], &[&private]].concat())?;
        cmd::run("openssl", &["pkey", "-in", &pem, "-pubout", "-outform", "DER", "-out", &public])?;
        Ok(Self { private: std::fs::read(private)?, public: std::fs::read(public)? })
    }

    fn identity(&self, name: &str, backend: &Backend) -> Result<Identity> {
        Ok(Identity {
            name: Identification::fqdn(name),
            signer: (backend.signer)(&self.private)?,
            chain: vec![self.public.clone()],
        })
    }
}

/// Two engines that connect over and over.
struct Ends {
    initiator: Party,
    responder: Party,
    peer: ike::config::PeerConfig,
    clock: u64,
    /// What reading the clock takes.
    reading: Duration,
}

const CLIENT_NAME: &str = "runner.example.com";
const CLIENT: &str = "192.0.2.10:500";
/// The initiator's.
const SEED: [u8; 32] = [1; 32];
const GATEWAY: &str = "198.51.100.1:500";

impl Ends {
    fn new(case: &Case, backend: &Backend, key: &Key) -> Result<Self> {
        let (ike, esp): (Vec<IkeSuite>, Vec<EspSuite>) =
            (vec![case.ike.parse()?], vec!["aes256gcm16".parse()?]);
        let client = key.identity(CLIENT_NAME, backend)?;
        let gateway = key.identity("gw.example.com", backend)?;
        let ours = config(&client, &ike, &esp);
        let mut theirs = config(&gateway, &ike, &esp);
        theirs.shard = 1;
        let name = gateway.name.clone();
        let peer = target(&ours, CLIENT.parse()?, GATEWAY.parse()?, name).context("no suite")?;
        let provider = backend.provider;
        let start = now(0);
        Ok(Self {
            initiator: Party::new(ours, provider, client.signer, any_grant, SEED, start)?,
            responder: Party::new(theirs, provider, gateway.signer, grant, [2; 32], start)?,
            peer,
            clock: 0,
            reading: reading(),
        })
    }

    /// An initiator that never connected, whose random numbers are new.
    fn fresh_initiator(&self, backend: &Backend, key: &Key) -> Result<Party> {
        let client = key.identity(CLIENT_NAME, backend)?;
        let ours = self.initiator.engine.config().clone();
        let mut seed = SEED;
        let clock = self.clock.to_be_bytes();
        seed[..clock.len()].copy_from_slice(&clock);
        let start = now(self.clock);
        Ok(Party::new(ours, backend.provider, client.signer, any_grant, seed, start)?)
    }

    /// One complete handshake; how long the responder worked, and how long of it on key exchanges
    /// and signatures.
    fn connect(&mut self) -> Result<(Duration, Duration)> {
        self.clock += 1;
        let now = now(self.clock);
        let (mut spent, mut readings) = (Duration::ZERO, 0);
        self.responder.meter = Meter { on: true, ..Meter::default() };
        // What a driver makes up for the engine is no work of the engine's.
        self.responder.prepare();
        let (mut to_r, mut to_i, mut events) =
            (Vec::new(), Vec::with_capacity(4), Vec::with_capacity(8));
        let begin = Input::Command(Command::Initiate(Box::new(self.peer.clone())));
        self.initiator.handle(now, begin, &mut to_r, &mut events);
        events.clear();
        while !to_r.is_empty() || !to_i.is_empty() {
            for sent in std::mem::take(&mut to_r) {
                let input = received(sent);
                let handle = || self.responder.handle(now, input, &mut to_i, &mut events);
                spent += timed(handle).0;
                readings += 1;
            }
            let mut ignored = Vec::new();
            for sent in std::mem::take(&mut to_i) {
                self.initiator.handle(now, received(sent), &mut to_r, &mut ignored);
            }
        }
        for party in [&mut self.initiator, &mut self.responder] {
            party.stored.clear();
        }
        let up = events.iter().any(|event| matches!(event, Event::ChildUp { .. }));
        if !up {
            bail!("a handshake did not succeed: {events:?}");
        }
        // Each piece within has two readings of the clock, and sees one of them itself.
        let meter = &self.responder.meter;
        let spent = spent.saturating_sub(self.reading * (readings + 2 * meter.pieces));
        Ok((spent, meter.spent.saturating_sub(self.reading * meter.pieces)))
    }
}

fn received(sent: Transmit) -> Input {
    let Transmit { local, remote, encap, payload } = sent;
    Input::Datagram(Datagram { local: remote, remote: local, encap, payload })
}

fn now(clock: u64) -> Now {
    Now { mono: Timestamp(clock * 1000), wall: WallTime(1_800_000_000_000_000) }
}

/// A runner's lease.
fn grant(number: u64) -> Grant {
    let [.., a, b] = number.to_be_bytes();
    let net = |from: [u8; 4], to: [u8; 4]| TrafficSelector::addresses(from.into(), to.into());
    Grant {
        lease: LeaseId(format!("lease-{number:08}")),
        role: "builder".to_owned(),
        addresses: vec![[10, 77, a, b].into()],
        allowed: vec![net([10, 20, 0, 10], [10, 20, 0, 10]), net([10, 20, 1, 0], [10, 20, 1, 255])],
        unique: UniquePolicy::Keep,
        ..any_grant(number)
    }
}

fn measure(case: &Case, backend: &Backend, key: &Key) -> Result<Value> {
    let mut ends = Ends::new(case, backend, key)?;
    let symmetric = Symmetric::new(case, backend)?;
    let mut measured = Vec::with_capacity(MEASURED);
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    for number in 0..UNMEASURED + MEASURED {
        let (spent, on_keys) = ends.connect()?;
        let (beside, outcome) = timed(|| symmetric.handshake());
        outcome?;
        let crypto = on_keys + beside.saturating_sub(ends.reading);
        if number >= UNMEASURED {
            measured.push((millis(spent), millis(crypto)));
        }
    }
    let responder = median(measured.iter().map(|(responder, _)| *responder));
    let crypto = median(measured.iter().map(|(_, crypto)| *crypto));
    let ratio = median(measured.iter().map(|(responder, crypto)| crypto / responder));
    println!(
        "{:<20} {:<8} responder {responder:.3} ms ({:.0}/s), its cryptography {crypto:.3} ms: \
         {ratio:.2} of the ceiling",
        case.name,
        backend.provider.name,
        1000.0 / responder,
    );
    Ok(json!({
        "suite": case.name,
        "provider": backend.provider.name,
        "handshakes_per_second_as_responder": 1000.0 / responder,
        "cpu_ms_as_responder": responder,
        "crypto_ms_as_responder": crypto,
        "engine_to_crypto_ceiling": ratio,
    }))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The symmetric cryptography of a responder's handshake, and nothing else: hashes, the key
/// schedule, the protection of two messages.
struct Symmetric {
    provider: &'static CryptoProvider,
    suite: IkeSuite,
    secret: SharedSecret,
}

impl Symmetric {
    fn new(case: &Case, backend: &Backend) -> Result<Self> {
        let secret = SharedSecret::copy_from(&[4; 32]);
        Ok(Self { provider: backend.provider, suite: case.ike.parse()?, secret })
    }

    fn handshake(&self) -> Result<()> {
        let lacks = || anyhow!("the provider lacks {}", self.suite);
        let prf = self.provider.prf(self.suite.prf).ok_or_else(lacks)?;
        let cipher = self.provider.cipher(self.suite.encryption).ok_or_else(lacks)?;
        let lengths = self.suite.key_lengths(self.provider)?;
        // IKE_SA_INIT: by which a repeated request is known, NAT detection of both sides.
        std::hint::black_box(self.provider.digest(HashFunction::Sha256, &[&[5; FIRST]]));
        for address in [[1; 22], [2; 22], [3; 22], [4; 22]] {
            std::hint::black_box(self.provider.digest(HashFunction::Sha1, &[&address]));
        }
        // IKE_AUTH: the keys.
        let nonces = Nonces { i: &[1; 32], r: &[2; 32] };
        let seed = skeyseed(prf, nonces, &self.secret);
        let keys = IkeKeys::derive(prf, lengths, &seed, nonces, [3; 8], [4; 8])?;
        let (theirs, ours) = (cipher.keyed(&keys.ei, None)?, cipher.keyed(&keys.er, None)?);
        // The request's protection (opening costs what sealing does), the response's.
        let (mut request, mut response) = ([5; INSIDE.0], [6; INSIDE.1]);
        std::hint::black_box(theirs.seal(&[7; 8], &[8; 32], &mut request)?);
        std::hint::black_box(ours.seal(&[7; 8], &[8; 32], &mut response)?);
        // The identities under AUTH, the child's keys.
        std::hint::black_box(prf.compute(keys.pi.expose(), &[&[9; 24]]));
        std::hint::black_box(prf.compute(keys.pr.expose(), &[&[9; 24]]));
        std::hint::black_box(prf_plus(prf, keys.d.expose(), &[nonces.i, nonces.r], 72)?);
        Ok(())
    }
}

/// Bytes a responder holds for each established IKE SA with one child, of `count` at once, by the
/// counting allocator of this program.
///
/// # Errors
/// When a handshake does not succeed, and when the program's allocator is another.
pub fn bytes_held(count: usize) -> Result<usize> {
    let (case, backend) = (&CASES[0], &BACKENDS[0]);
    let key = Key::new(case.key)?;
    let mut ends = Ends::new(case, backend, &key)?;
    alloc::start();
    let before = alloc::now();
    for _ in 0..count {
        ends.connect()?;
        // The initiator's memory does not count: each handshake has one of its own.
        ends.initiator = ends.fresh_initiator(backend, &key)?;
    }
    let held = ends.responder.engine.stats();
    if (held.ike_sas, held.children) != (count, count) {
        let (sas, children) = (held.ike_sas, held.children);
        bail!("{sas} IKE SAs with {children} children are held instead of {count}");
    }
    let held = alloc::since(before);
    if held == 0 {
        bail!("this program does not count its memory");
    }
    Ok(held / count)
}
