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
        Self::hearing(move |url, request| {
            answer(url, request.split(' ').nth(1).unwrap_or_default())
        })
    }

    /// `answer` gets the server's URL and the whole request.
    fn hearing(answer: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static) -> Self {
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
                let request = heard(&mut stream).await;
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(&answer(&own, &request)).await;
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

/// A request with its body.
async fn heard(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let (mut octets, mut more) = (Vec::new(), vec![0; 4096]);
    loop {
        let length = stream.read(&mut more).await.unwrap_or(0);
        octets.extend_from_slice(&more[..length]);
        let text = String::from_utf8_lossy(&octets).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let wanted = head.to_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length: ").map(|length| length.parse().unwrap())
        });
        let whole = text.contains("\r\n\r\n") && body.len() >= wanted.unwrap_or(0);
        if length == 0 || whole {
            return text;
        }
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

/// A cluster with one pod that lives and one that was deleted; the signatures of both tokens verify.
#[test]
fn a_token_of_a_deleted_pod_opens_nothing() {
    use std::sync::atomic::AtomicBool;
    const AUDIENCE: &str = "https://gw.example.com";
    let down = Arc::new(AtomicBool::new(false));
    let broken = Arc::clone(&down);
    let server = Server::hearing(move |_, request| {
        if broken.load(Ordering::Relaxed) {
            return b"HTTP/1.1 500 Down\r\nContent-Length: 0\r\n\r\n".to_vec();
        }
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews "), "{head}");
        assert!(head.contains("Bearer what-we-show"), "{head}");
        let asked: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(asked["spec"]["audiences"], serde_json::json!([AUDIENCE]));
        let token = asked["spec"]["token"].as_str().unwrap();
        let claims = pki::enrol::jwt::jws::parse(token).unwrap().claims;
        let status = match claims["jti"].as_str().unwrap().starts_with("gone") {
            true => serde_json::json!({"error": "pod builder-7 not found"}),
            false => serde_json::json!({"authenticated": true, "audiences": [AUDIENCE]}),
        };
        ok(serde_json::json!({"kind": "TokenReview", "status": status}).to_string().as_bytes())
    });
    let own = server._directory.path().join("token");
    std::fs::write(&own, "what-we-show\n").unwrap();
    let key = issuer::IssuerKey::es256("k");
    let iss = "https://kubernetes.default.svc";
    let make = |strict: bool| {
        let files = KeySource::File("/nowhere".into());
        let mut issuer = Issuer::new("k8s", IssuerKind::Kubernetes, iss, AUDIENCE, files);
        issuer.review = Some(pki::enrol::jwt::TokenReview {
            url: server.url.clone(),
            ca: Some(server.ca.clone()),
            token_file: own.clone(),
            strict,
        });
        let mut settings = pki::Settings::new("ci.example.com");
        let networks = vec!["10.77.0.0/24".parse().unwrap()];
        settings.pools.insert("runners".to_owned(), pki::PoolConfig::new(networks));
        settings.roles.insert("builder".to_owned(), pki::RoleProfile::new("runners"));
        settings.rules = vec![pki::enrol::jwt::ClaimRule {
            role: "builder".to_owned(),
            number: 1,
            issuer: "k8s".to_owned(),
            manual: None,
            claims: [(
                "sub".to_owned(),
                vec![pki::enrol::jwt::ClaimPattern::new("system:serviceaccount:ci:builder")],
            )]
            .into(),
        }];
        settings.issuers = vec![issuer.clone()];
        let store = Arc::new(MemoryStore::new());
        let options = pki::Options::new(settings);
        let authority = Arc::new(Authority::with_store(store, &[7; 32], options, now()).unwrap());
        authority.jwt_keys_fetched(&issuer, Ok(issuer::jwks(&[&key])), now()).unwrap();
        (Arc::new(KeyFetcher::new(Arc::clone(&authority))), authority)
    };
    let token = |signer: &issuer::IssuerKey, jti: &str| {
        signer.sign(&serde_json::json!({
            "iss": iss, "aud": [AUDIENCE], "sub": "system:serviceaccount:ci:builder", "jti": jti,
            "exp": now().secs() + 600, "iat": now().secs(),
        }))
    };
    let admit = |fetcher: &Arc<KeyFetcher>, authority: &Authority, token: &str| {
        server.runtime.block_on(fetcher.prepare_to_open(token));
        authority.jwt_admit(None, token, None, now()).map_err(|refusal| refusal.code)
    };
    use pki::RefusalCode as Code;
    let (fetcher, authority) = make(true);
    assert!(admit(&fetcher, &authority, &token(&key, "lives")).is_ok());
    let gone = token(&key, "gone");
    assert_eq!(admit(&fetcher, &authority, &gone), Err(Code::JwtReviewDenied));
    assert_eq!(Code::JwtReviewDenied.status(), 403);
    let asked = server.asked.load(Ordering::Relaxed);
    assert_eq!(admit(&fetcher, &authority, &gone), Err(Code::JwtReviewDenied));
    assert_eq!(server.asked.load(Ordering::Relaxed), asked, "the answer counts for a moment");
    // Nobody asks for whom the issuer has not signed.
    let forged = token(&issuer::IssuerKey::es256("k"), "lives-too");
    assert_eq!(admit(&fetcher, &authority, &forged), Err(Code::JwtBadSignature));
    assert_eq!(server.asked.load(Ordering::Relaxed), asked);
    // Not asked is not passed.
    let unasked = |authority: &Authority| {
        let judged = authority.jwt_admit(None, &token(&key, "unasked"), None, now());
        judged.map(drop).map_err(|refusal| refusal.code)
    };
    assert_eq!(unasked(&authority), Err(Code::JwtReviewUnavailable));
    // Whoever acts on a lease that it has is not asked about.
    let asked = server.asked.load(Ordering::Relaxed);
    server.runtime.block_on(fetcher.prepare(&token(&key, "owner")));
    assert_eq!(server.asked.load(Ordering::Relaxed), asked);

    down.store(true, Ordering::Relaxed);
    let refused = admit(&fetcher, &authority, &token(&key, "later"));
    assert_eq!(refused, Err(Code::JwtReviewUnavailable), "strict");
    assert_eq!(Code::JwtReviewUnavailable.status(), 503);
    let (fetcher, authority) = make(false);
    assert_eq!(unasked(&authority), Err(Code::JwtReviewUnavailable), "soft is for no answer only");
    assert!(admit(&fetcher, &authority, &token(&key, "soft")).is_ok());
    let records = authority.audit(0, 100).unwrap();
    let told = records.iter().any(|record| record.event.action == "token.review");
    assert!(told, "that nobody was asked is written down");
    down.store(false, Ordering::Relaxed);
    let (fetcher, authority) = make(false);
    let denied = admit(&fetcher, &authority, &token(&key, "gone-too"));
    assert_eq!(denied, Err(Code::JwtReviewDenied), "an answer counts in soft mode, too");
}
