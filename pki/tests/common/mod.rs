//! What the integration tests share: an authority with one role, and clients with keys.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

pub mod elsewhere;
pub mod meddled;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pki::store::{MemoryStore, Store};
use pki::*;

pub const NOW: UnixTime = UnixTime::from_secs(1_795_305_600);
pub const OPERATOR: Actor = Actor::Uid(0);

pub fn after(secs: u64) -> UnixTime {
    NOW.plus(Duration::from_secs(secs))
}

pub fn settings() -> Settings {
    let mut settings = Settings::new("ci.example.com");
    let networks = ["10.77.0.0/24", "fd77::/64"].map(|net| net.parse().unwrap());
    settings.pools.insert("runners".to_owned(), PoolConfig::new(networks.to_vec()));
    settings.roles = BTreeMap::from([
        ("builder".to_owned(), RoleProfile::new("runners")),
        ("deployer".to_owned(), RoleProfile::new("runners")),
    ]);
    // Tests open many leases of one job at one instant; those about limits set their own.
    let rate = OpenRate { per_second: 100_000, burst: 1_000_000 };
    settings.limits = Limits { identity: rate, issuer: rate, leases_per_job: 1_000 };
    settings
}

/// The audience that tokens of CI platforms must have in tests.
pub const AUDIENCE: &str = "https://gw.example.com:8443";
/// GitHub's issuer.
pub const GITHUB: &str = "https://token.actions.githubusercontent.com";

/// Settings with GitHub as issuer and one rule for one repository.
pub fn github_settings() -> Settings {
    use pki::enrol::jwt::{ClaimPattern, ClaimRule, Issuer, IssuerKind, KeySource};
    let keys = KeySource::File("/nowhere".into());
    let wanted = vec![ClaimPattern::new("123456")];
    let rule = ClaimRule {
        role: "builder".to_owned(),
        number: 1,
        issuer: "github".to_owned(),
        claims: BTreeMap::from([("repository_id".to_owned(), wanted)]),
        manual: None,
    };
    Settings {
        issuers: vec![Issuer::new("github", IssuerKind::Github, GITHUB, AUDIENCE, keys)],
        rules: vec![rule],
        ..settings()
    }
}

pub fn authority() -> Authority {
    authority_on(Arc::new(MemoryStore::new()))
}

pub fn authority_on(store: Arc<dyn Store>) -> Authority {
    Authority::with_store(store, &[7; 32], Options::new(settings()), NOW).unwrap()
}

/// Opens a state directory that was closed just now. A process that another test starts has this
/// one's files, the lock among them, until its own program begins.
pub fn reopen(
    directory: &Path,
    options: impl Fn() -> Options,
    now: UnixTime,
) -> Result<Authority, Error> {
    const STEP: Duration = Duration::from_millis(10);
    /// Half a minute of steps.
    const TRIES: u32 = 3_000;
    for _ in 1..TRIES {
        match Authority::open(directory, options(), now) {
            Err(Error::InUse(_)) => std::thread::sleep(STEP),
            other => return other,
        }
    }
    Authority::open(directory, options(), now)
}

/// A client with a key of its own.
pub struct Client {
    pub key: rcgen::KeyPair,
}

impl Client {
    pub fn new() -> Self {
        Self { key: rcgen::KeyPair::generate().unwrap() }
    }

    pub fn csr_der(&self) -> Vec<u8> {
        let params = rcgen::CertificateParams::new(vec!["wished.example.org".to_owned()]).unwrap();
        params.serialize_request(&self.key).unwrap().der().to_vec()
    }

    /// A request with a challengePassword (PKCS#9), where stock clients put a platform's token.
    pub fn csr_with_password(&self, password: &str) -> Vec<u8> {
        let wrap = |tag: u8, inner: &[u8]| {
            let length = u16::try_from(inner.len()).unwrap().to_be_bytes();
            [&[tag, 0x82][..], &length, inner].concat()
        };
        let values = wrap(0x31, &wrap(0x0c, password.as_bytes()));
        let attribute = rcgen::Attribute { oid: &[1, 2, 840, 113_549, 1, 9, 7], values };
        let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let request = params.serialize_request_with_attributes(&self.key, vec![attribute]);
        request.unwrap().der().to_vec()
    }

    pub fn csr(&self) -> Csr {
        Csr::from_der(&self.csr_der()).unwrap()
    }

    pub fn body(&self) -> Vec<u8> {
        base64(&self.csr_der()).into_bytes()
    }

    pub fn enrol(&self, authority: &Authority, token: &TokenSecret, now: UnixTime) -> Enrolled {
        authority.enrol_with_token("builder", token.expose(), &self.csr(), None, now).unwrap()
    }
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub fn unbase64(text: &[u8]) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

pub fn token(authority: &Authority) -> TokenSecret {
    authority.token_create(&TokenCreate::new("builder"), &OPERATOR, NOW).unwrap().1
}

/// A fresh lease and its client.
pub fn enrolled(authority: &Authority) -> (Client, Enrolled) {
    let client = Client::new();
    let enrolled = client.enrol(authority, &token(authority), NOW);
    (client, enrolled)
}

pub fn peer(authority: &Authority, enrolled: &Enrolled, now: UnixTime) -> VerifiedPeer {
    authority.verify_peer(std::slice::from_ref(&enrolled.certificate), None, now).unwrap()
}

pub fn est_request<'a>(
    path: &'a str,
    authorization: Option<&'a str>,
    body: &'a [u8],
) -> EstRequest<'a> {
    EstRequest {
        method: if body.is_empty() { "GET" } else { "POST" },
        path,
        authorization,
        body,
        peer: Some("192.0.2.7:4711".parse().unwrap()),
        client_chain: &[],
    }
}

pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// Runs the openssl command line tool on some input; panics with its words when it fails.
pub fn openssl(arguments: &[&str], input: &[u8]) -> String {
    use std::io::Write;
    let mut child = std::process::Command::new("openssl")
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The client whose key lies in `DIRECTORY/keyN.pem`.
pub fn client(directory: &std::path::Path, number: usize) -> Client {
    let pem = std::fs::read_to_string(directory.join(format!("key{number}.pem"))).unwrap();
    Client { key: rcgen::KeyPair::from_pem(&pem).unwrap() }
}
