//! How fast complete certificate handshakes are, against the cryptography they cannot do without,
//! and how much memory an established IKE SA holds.
//!
//! The engine alone: no sockets, no data plane, no certificate chain. What counts is the responder,
//! which a gateway is: each input until the engine wants nothing more, the execution of its key
//! exchanges, its signature and the check of the peer's included. The ceiling is the sum of the
//! cryptographic operations of such a handshake, measured in turns with it. Both are times on the
//! processor, so that what else runs on the machine counts little; the two ends' parts of it are
//! told apart by the clock.
#![allow(clippy::print_stdout)] // numbers for people, then one JSON object for programs

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ike::crypto::keymat::{IkeKeys, Nonces, skeyseed};
use ike::crypto::{
    CryptoProvider, EspSuite, HashFunction, IkeSuite, KexExecutor, KexRequest, KexResponse,
    SignatureScheme, Signer, prf_plus,
};
use ike::io::{Command, Datagram, Grant, LeaseId, UniquePolicy};
use ike::wire::{Identification, TrafficSelector};
use ike::{Event, Input, Now, Timestamp, Transmit, WallTime};
use serde_json::{Value, json};

use crate::alloc;
use crate::lab::cmd;
use crate::real::{Identity, Party, any_grant, config, target};

/// Turns of handshakes and of bare cryptography.
const TURNS: u32 = 8;
/// Handshakes in each turn.
const PER_TURN: u32 = 150;
/// IKE SAs held at once when memory is measured.
const HELD: usize = 10_000;
/// Octets of the AUTH octets that are signed: a first message, a nonce, a PRF's output.
const SIGNED: usize = 420;
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
    let bytes = memory(&CASES[0], &BACKENDS[0], &Key::new(CASES[0].key)?)?;
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
}

const CLIENT: &str = "192.0.2.10:500";
const GATEWAY: &str = "198.51.100.1:500";

impl Ends {
    fn new(case: &Case, backend: &Backend, key: &Key) -> Result<Self> {
        let (ike, esp): (Vec<IkeSuite>, Vec<EspSuite>) =
            (vec![case.ike.parse()?], vec!["aes256gcm16".parse()?]);
        let client = key.identity("runner.example.com", backend)?;
        let gateway = key.identity("gw.example.com", backend)?;
        let ours = config(&client, &ike, &esp);
        let mut theirs = config(&gateway, &ike, &esp);
        theirs.shard = 1;
        let name = gateway.name.clone();
        let peer = target(&ours, CLIENT.parse()?, GATEWAY.parse()?, name).context("no suite")?;
        let provider = backend.provider;
        let start = now(0);
        Ok(Self {
            initiator: Party::new(ours, provider, client.signer, any_grant, [1; 32], start)?,
            responder: Party::new(theirs, provider, gateway.signer, grant, [2; 32], start)?,
            peer,
            clock: 0,
        })
    }

    /// One complete handshake; how long either side worked.
    fn connect(&mut self) -> Result<(Duration, Duration)> {
        self.clock += 1;
        let now = now(self.clock);
        let (mut spent_i, mut spent_r) = (Duration::ZERO, Duration::ZERO);
        let (mut to_r, mut to_i, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let begin = Input::Command(Command::Initiate(Box::new(self.peer.clone())));
        timed(&mut spent_i, || self.initiator.handle(now, begin, &mut to_r, &mut events));
        events.clear();
        while !to_r.is_empty() || !to_i.is_empty() {
            for sent in std::mem::take(&mut to_r) {
                let input = received(sent);
                timed(&mut spent_r, || self.responder.handle(now, input, &mut to_i, &mut events));
            }
            let mut ignored = Vec::new();
            for sent in std::mem::take(&mut to_i) {
                let input = received(sent);
                timed(&mut spent_i, || {
                    self.initiator.handle(now, input, &mut to_r, &mut ignored);
                });
            }
        }
        let up = events.iter().any(|event| matches!(event, Event::ChildUp { .. }));
        if !up {
            bail!("a handshake did not succeed: {events:?}");
        }
        Ok((spent_i, spent_r))
    }
}

/// How long this thread has been on a processor.
fn on_processor() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = text.split_whitespace().next().context("the kernel tells no processor time")?;
    Ok(Duration::from_nanos(first.parse()?))
}

fn timed(spent: &mut Duration, work: impl FnOnce()) {
    let started = Instant::now();
    work();
    *spent += started.elapsed();
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
    let mut bare = Bare::new(case, backend, key)?;
    for _ in 0..PER_TURN {
        ends.connect()?;
        bare.handshake()?;
    }
    let (mut both, mut responder, mut crypto) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for _ in 0..TURNS {
        let (mut clock_i, mut clock_r) = (Duration::ZERO, Duration::ZERO);
        let started = on_processor()?;
        for _ in 0..PER_TURN {
            let (i, r) = ends.connect()?;
            clock_i += i;
            clock_r += r;
        }
        let spent = on_processor()?.saturating_sub(started);
        both += spent;
        responder += spent.mul_f64(clock_r.as_secs_f64() / (clock_i + clock_r).as_secs_f64());
        let started = on_processor()?;
        for _ in 0..PER_TURN {
            bare.handshake()?;
        }
        crypto += on_processor()?.saturating_sub(started);
    }
    let count = f64::from(TURNS * PER_TURN);
    let millis = |total: Duration| total.as_secs_f64() * 1000.0 / count;
    let ratio = crypto.as_secs_f64() / responder.as_secs_f64();
    println!(
        "{:<20} {:<8} responder {:.3} ms ({:.0}/s), its cryptography {:.3} ms: {:.2} of the \
         ceiling; both sides {:.3} ms",
        case.name,
        backend.provider.name,
        millis(responder),
        1000.0 / millis(responder),
        millis(crypto),
        ratio,
        millis(both),
    );
    Ok(json!({
        "suite": case.name,
        "provider": backend.provider.name,
        "handshakes_per_second_as_responder": 1000.0 / millis(responder),
        "cpu_ms_as_responder": millis(responder),
        "crypto_ms_as_responder": millis(crypto),
        "cpu_ms_both_sides": millis(both),
        "engine_to_crypto_ceiling": ratio,
    }))
}

/// The cryptographic operations of a responder's handshake, and nothing else.
struct Bare {
    provider: &'static CryptoProvider,
    suite: IkeSuite,
    signer: Box<dyn Signer>,
    public: Vec<u8>,
    scheme: SignatureScheme,
    signed: (Vec<u8>, Vec<u8>),
    kex: KexExecutor,
    peer_public: Vec<u8>,
}

impl Bare {
    fn new(case: &Case, backend: &Backend, key: &Key) -> Result<Self> {
        let suite: IkeSuite = case.ike.parse()?;
        let signer = (backend.signer)(&key.private)?;
        let scheme = *signer.schemes().first().context("a key that cannot sign")?;
        let message = vec![7; SIGNED];
        let signature = signer.sign(scheme, &message)?;
        let mut kex = KexExecutor::new(backend.provider);
        let request = KexRequest::Generate { handle: 1, group: suite.kex };
        let KexResponse::Generated { public: peer_public, .. } = kex.execute(request) else {
            bail!("no key pair of {}", case.name);
        };
        Ok(Self {
            provider: backend.provider,
            suite,
            signer,
            public: key.public.clone(),
            scheme,
            signed: (message, signature),
            kex,
            peer_public,
        })
    }

    fn handshake(&mut self) -> Result<()> {
        let lacks = || anyhow!("the provider lacks {}", self.suite);
        let prf = self.provider.prf(self.suite.prf).ok_or_else(lacks)?;
        let cipher = self.provider.cipher(self.suite.encryption).ok_or_else(lacks)?;
        let lengths = self.suite.key_lengths(self.provider)?;
        // IKE_SA_INIT: by which a repeated request is known, NAT detection of both sides, our
        // key pair.
        std::hint::black_box(self.provider.digest(HashFunction::Sha256, &[&[5; FIRST]]));
        for address in [[1; 22], [2; 22], [3; 22], [4; 22]] {
            std::hint::black_box(self.provider.digest(HashFunction::Sha1, &[&address]));
        }
        self.kex.execute(KexRequest::Generate { handle: 2, group: self.suite.kex });
        // IKE_AUTH: the shared secret and the keys.
        let peer_public = self.peer_public.clone();
        let agreed = self.kex.execute(KexRequest::Agree { handle: 2, peer_public });
        let KexResponse::Agreed { secret, .. } = agreed else { bail!("no shared secret") };
        let nonces = Nonces { i: &[1; 32], r: &[2; 32] };
        let seed = skeyseed(prf, nonces, &secret);
        let keys = IkeKeys::derive(prf, lengths, &seed, nonces, [3; 8], [4; 8])?;
        let (theirs, ours) = (cipher.keyed(&keys.ei, None)?, cipher.keyed(&keys.er, None)?);
        // The request's protection (opening costs what sealing does), the response's.
        let (mut request, mut response) = (vec![5; INSIDE.0], vec![6; INSIDE.1]);
        std::hint::black_box(theirs.seal(&[7; 8], &[8; 32], &mut request)?);
        std::hint::black_box(ours.seal(&[7; 8], &[8; 32], &mut response)?);
        // The identities, both signatures, the child's keys.
        std::hint::black_box(prf.compute(keys.pi.expose(), &[&[9; 24]]));
        std::hint::black_box(prf.compute(keys.pr.expose(), &[&[9; 24]]));
        self.provider.verify(self.scheme, &self.public, &self.signed.0, &self.signed.1)?;
        std::hint::black_box(self.signer.sign(self.scheme, &self.signed.0)?);
        std::hint::black_box(prf_plus(prf, keys.d.expose(), &[nonces.i, nonces.r], 72)?);
        Ok(())
    }
}

/// Bytes per established IKE SA with one child.
fn memory(case: &Case, backend: &Backend, key: &Key) -> Result<usize> {
    let mut ends = Ends::new(case, backend, key)?;
    ends.connect()?;
    let mut fresh = Ends::new(case, backend, key)?;
    // The initiator's memory does not count: each handshake has one of its own.
    alloc::start();
    let before = alloc::now();
    let idle = |ends: &mut Ends| -> Result<()> {
        let mut other = Ends::new(case, backend, key)?;
        std::mem::swap(&mut other.responder, &mut ends.responder);
        other.clock = ends.clock + 1;
        other.connect()?;
        ends.clock = other.clock;
        std::mem::swap(&mut other.responder, &mut ends.responder);
        Ok(())
    };
    for _ in 0..HELD {
        idle(&mut fresh)?;
    }
    let held = fresh.responder.engine.stats();
    if (held.ike_sas, held.children) != (HELD, HELD) {
        bail!(
            "{} IKE SAs with {} children are held instead of {HELD}",
            held.ike_sas,
            held.children
        );
    }
    let held = alloc::since(before);
    if held == 0 {
        bail!("this program does not count its memory");
    }
    Ok(held / HELD)
}
