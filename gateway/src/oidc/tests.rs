//! Keys fetched from a real HTTPS server, well-behaved and not.

use std::sync::atomic::{AtomicUsize, Ordering};

use pki::enrol::jwt::IssuerKind;
use pki::store::MemoryStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::test_issuer as issuer;

/// An HTTPS server on loopback that answers every path with a body of the test's making.
struct Server {
    url: String,
    ca: std::path::PathBuf,
    asked: Arc<AtomicUsize>,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Server {
    /// `answer` gets the server's URL and the path.
    fn new(answer: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, certificate.pem()).unwrap();
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (asked, own) = (Arc::new(AtomicUsize::new(0)), url.clone());
        let count = Arc::clone(&asked);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(&answer(&own, path)).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { url, ca, asked, runtime, _directory: directory }
    }

    fn issuer(&self) -> Issuer {
        let keys = KeySource::Discovery { ca: Some(self.ca.clone()) };
        Issuer::new("ci", IssuerKind::Generic, &self.url, "https://gw.example.com", keys)
    }

    fn fetch(&self) -> Result<Vec<u8>, String> {
        self.runtime.block_on(fetch_keys(&self.issuer()))
    }
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn discovery(url: &str, keys: &str) -> Vec<u8> {
    ok(serde_json::json!({"issuer": url, "jwks_uri": keys}).to_string().as_bytes())
}

#[test]
fn keys_are_found_by_discovery() {
    // RFC 7517 5; OpenID Connect Discovery 4.
    let key = issuer::IssuerKey::eddsa("k");
    let set = issuer::jwks(&[&key]);
    let expected = set.clone();
    let server = Server::new(move |url, path| match path {
        "/.well-known/openid-configuration" => discovery(url, &format!("{url}/keys")),
        "/keys" => ok(&set),
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    });
    assert_eq!(server.fetch().unwrap(), expected);
    let slash = Issuer { issuer: format!("{}/", server.url), ..server.issuer() };
    let error = server.runtime.block_on(fetch_keys(&slash)).unwrap_err();
    assert!(error.contains("exactly as it calls itself"), "{error}");
    // The system's CAs do not know this server.
    let stranger = Issuer { keys: KeySource::Discovery { ca: None }, ..server.issuer() };
    assert!(server.runtime.block_on(fetch_keys(&stranger)).is_err());
    let plain = Issuer { issuer: server.url.replace("https", "http"), ..server.issuer() };
    let error = server.runtime.block_on(fetch_keys(&plain)).unwrap_err();
    assert!(error.contains("only https://"), "{error}");
}

#[test]
fn issuers_that_misbehave_are_named_and_bounded() {
    // RFC 7517 5.
    let huge = |_: &str, _: &str| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n".to_vec();
        [head, vec![b' '; MAX_KEY_SET + 4096]].concat()
    };
    let error = Server::new(huge).fetch().unwrap_err();
    assert!(error.contains("cut off or too large"), "{error}");
    // A redirect could lead anywhere.
    let moved = |_: &str, _: &str| {
        b"HTTP/1.1 302 Found\r\nLocation: https://evil.example.com\r\nContent-Length: 0\r\n\r\n"
            .to_vec()
    };
    let error = Server::new(moved).fetch().unwrap_err();
    assert!(error.contains("HTTP 302"), "{error}");
    let other =
        |_: &str, _: &str| discovery("https://evil.example.com", "https://evil.example.com");
    let error = Server::new(other).fetch().unwrap_err();
    assert!(error.contains("evil.example.com"), "{error}");
    let clear = |url: &str, _: &str| discovery(url, "http://keys.example.com");
    let error = Server::new(clear).fetch().unwrap_err();
    assert!(error.contains("not https"), "{error}");
}

#[test]
fn many_jobs_at_once_have_the_keys_fetched_once() {
    // RFC 7517 5.
    let key = issuer::IssuerKey::eddsa("k");
    let set = issuer::jwks(&[&key]);
    let server = Server::new(move |url, path| match path {
        "/keys" => ok(&set),
        _ => discovery(url, &format!("{url}/keys")),
    });
    let settings =
        pki::Settings { issuers: vec![server.issuer()], ..pki::Settings::new("ci.example.com") };
    let options = pki::Options::new(settings);
    let authority = Authority::with_store(Arc::new(MemoryStore::new()), &[7; 32], options, now());
    let authority = Arc::new(authority.unwrap());
    let fetcher = Arc::new(KeyFetcher::new(Arc::clone(&authority)));
    let claims = serde_json::json!({
        "iss": server.url, "aud": "https://gw.example.com", "exp": clock::unix_seconds() + 60,
    });
    let token = key.sign(&claims);
    server.runtime.block_on(async {
        let mut jobs = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (fetcher, token) = (Arc::clone(&fetcher), token.clone());
            jobs.spawn(async move { fetcher.prepare(&token).await });
        }
        jobs.join_all().await;
    });
    assert_eq!(server.asked.load(Ordering::Relaxed), 2, "one document and one key set");
    // The keys are there: the token is genuine, and only lacks a rule.
    let refusal = authority.jwt_examine(&token, None, now()).unwrap_err();
    assert_eq!(refusal.code, pki::RefusalCode::JwtNoRule);
}

/// Issuers that cannot be reached: the administrator writes the file and reloads.
#[test]
fn key_sets_in_files_are_read_again_by_a_reload() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    let [old, new] = ["old", "new"].map(issuer::IssuerKey::eddsa);
    std::fs::write(&path, issuer::jwks(&[&old])).unwrap();
    let text = format!(
        "[enrol]\nurl = \"https://gw.example.com\"\n[[issuer]]\nname = \"ci\"\n\
         kind = \"generic\"\nissuer = \"https://ci.example.com\"\nstatic_jwks = \"{}\"\n",
        path.display()
    );
    let config = Config::parse(&text, "runnel.toml").unwrap();
    let settings =
        pki::Settings { issuers: config.issuers.clone(), ..pki::Settings::new("ci.example.com") };
    let options = pki::Options::new(settings);
    let authority =
        Authority::with_store(Arc::new(MemoryStore::new()), &[7; 32], options, now()).unwrap();
    let claims = serde_json::json!({
        "iss": "https://ci.example.com", "aud": "https://gw.example.com",
        "exp": clock::unix_seconds() + 60,
    });
    let code = |key: &issuer::IssuerKey| {
        authority.jwt_examine(&key.sign(&claims), None, now()).unwrap_err().code
    };
    reread(&authority, &config);
    assert_eq!(code(&old), pki::RefusalCode::JwtNoRule, "genuine");
    std::fs::write(&path, issuer::jwks(&[&new])).unwrap();
    assert_ne!(code(&new), pki::RefusalCode::JwtNoRule);
    reread(&authority, &config);
    assert_eq!(code(&new), pki::RefusalCode::JwtNoRule);
    assert_ne!(code(&old), pki::RefusalCode::JwtNoRule, "withdrawn");
}
