//! Enrolment over real TLS on loopback, as stock clients need it (RFC 7030, and what strongSwan's
//! `pki` tolerates).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gateway::config::Config;
use gateway::http::{self, CertificateSlot, EstService, Limits};
use gateway::obs::Refusals;
use gateway::service::{self, GatewayIdentity};
use gateway::sys::clock;
use pki::{Actor, Authority, TokenCreate, UnixTime};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use tokio::sync::watch;

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

/// An enrolment listener with its own CA.
struct Server {
    authority: Arc<Authority>,
    refusals: Arc<Refusals>,
    address: SocketAddr,
    runtime: tokio::runtime::Runtime,
    _stop: watch::Sender<bool>,
    _state: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        Self::showing(None)
    }

    /// Beside its own certificate it shows this one to those who ask for its name.
    fn showing(public: Option<Arc<CertificateSlot>>) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut config = Config::built_in();
        config.gateway.id = Some("gw.example.com".to_owned());
        let settings = service::pki_settings(&config, "gw.example.com");
        let options = pki::Options::new(settings);
        let authority = Arc::new(Authority::open(state.path(), options, now()).unwrap());
        let names = service::server_names(&config, "gw.example.com");
        let identity = GatewayIdentity::open(Arc::clone(&authority), names, now()).unwrap();
        let tls = http::acceptor(Arc::clone(&authority), identity.tls(), public).unwrap();
        let refusals = Arc::new(Refusals::default());
        let keys = Arc::new(gateway::oidc::KeyFetcher::new(Arc::clone(&authority)));
        let service =
            Arc::new(EstService::new(Arc::clone(&authority), Arc::clone(&refusals), keys));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = watch::channel(false);
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(http::serve(listener, Some(tls), service, Limits::default(), stopped));
        Self { authority, refusals, address, runtime, _stop: stop, _state: state }
    }

    fn token(&self) -> String {
        let create = TokenCreate::new("builder");
        let (_, secret) = self.authority.token_create(&create, &Actor::Uid(0), now()).unwrap();
        secret.expose().to_owned()
    }

    /// The certificate that a client gets to see who asks for this name and trusts these.
    fn shown(&self, name: &str, roots: &[Vec<u8>]) -> Result<Vec<u8>, String> {
        let mut trusted = RootCertStore::empty();
        for root in roots {
            trusted.add(CertificateDer::from(root.clone())).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(trusted)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).map_err(|error| error.to_string())?;
        }
        Ok(tls.peer_certificates().unwrap()[0].to_vec())
    }

    fn enrol(&self, client: &Client, token: &str) -> Answer {
        let request = post("simpleenroll", Some(token), &client.request());
        self.talk(&request, &rustls::version::TLS12, None).unwrap()
    }

    /// One request on one connection; the records of the answer are counted.
    fn talk(
        &self,
        request: &[u8],
        version: &'static SupportedProtocolVersion,
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<Answer, String> {
        let mut roots = RootCertStore::empty();
        let root = self.authority.ca_certificates().remove(0);
        roots.add(CertificateDer::from(root)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        tls.set_buffer_limit(None);
        tls.writer().write_all(request).unwrap();
        let mut answer = Answer { text: String::new(), records: 0 };
        loop {
            while tls.wants_write() {
                tls.write_tls(&mut socket).map_err(|e| e.to_string())?;
            }
            let Some(record) = record(&mut socket) else { return Err("closed".to_owned()) };
            tls.read_tls(&mut record.as_slice()).unwrap();
            tls.process_new_packets().map_err(|e| e.to_string())?;
            let mut plain = [0u8; 65_536];
            if let Ok(count) = tls.reader().read(&mut plain)
                && count > 0
            {
                answer.records += 1;
                answer.text.push_str(std::str::from_utf8(&plain[..count]).unwrap());
            }
            if answer.is_complete() {
                return Ok(answer);
            }
        }
    }
}

/// Reads one TLS record.
fn record(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut record = vec![0u8; 5];
    socket.read_exact(&mut record).ok()?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    socket.read_exact(&mut record[5..]).ok()?;
    Some(record)
}

#[derive(Debug)]
struct Answer {
    text: String,
    records: usize,
}

impl Answer {
    fn head(&self) -> String {
        self.text.split("\r\n\r\n").next().unwrap_or_default().to_lowercase()
    }

    fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }

    fn status(&self) -> u16 {
        self.text.split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0)
    }

    fn length(&self) -> Option<usize> {
        let head = self.head();
        let line = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
        line.trim().parse().ok()
    }

    fn is_complete(&self) -> bool {
        self.text.contains("\r\n\r\n") && self.length().is_some_and(|l| self.body().len() >= l)
    }
}

/// A client with a key of its own.
struct Client {
    key: rcgen::KeyPair,
}

impl Client {
    fn new() -> Self {
        Self { key: rcgen::KeyPair::generate().unwrap() }
    }

    fn request(&self) -> String {
        let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        STANDARD.encode(params.serialize_request(&self.key).unwrap().der())
    }

    fn identity(
        &self,
        certificate: &[u8],
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        (vec![CertificateDer::from(certificate.to_vec())], PrivateKeyDer::Pkcs8(key))
    }
}

fn get(operation: &str) -> Vec<u8> {
    format!("GET /.well-known/est/{operation} HTTP/1.1\r\nHost: gw\r\n\r\n").into_bytes()
}

fn post(operation: &str, token: Option<&str>, body: &str) -> Vec<u8> {
    let authorization = token.map_or_else(String::new, |token| {
        format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("builder:{token}")))
    });
    format!(
        "POST /.well-known/est/{operation} HTTP/1.1\r\nHost: gw\r\n{authorization}\
         Content-Type: application/pkcs10\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn ca_certificates_come_in_one_record_and_one_line_over_both_tls_versions() {
    let server = Server::start();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let answer = server.talk(&get("cacerts"), version, None).unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text);
        assert_eq!(answer.records, 1, "header and body must share one record");
        assert!(answer.head().contains("application/pkcs7-mime"), "{}", answer.head());
        assert!(!answer.head().contains("\ntransfer-encoding"), "{}", answer.head());
        assert_eq!(answer.length(), Some(answer.body().len()));
        assert!(!answer.body().trim_end().contains('\n'), "strongSwan 5.9.8 takes one line only");
        assert!(STANDARD.decode(answer.body().trim_end()).unwrap().len() > 500);
    }
}

#[test]
fn a_token_opens_one_lease_for_one_key() {
    let server = Server::start();
    let token = server.token();
    let client = Client::new();
    let first = server.enrol(&client, &token);
    assert_eq!((first.status(), first.records), (200, 1), "{}", first.text);
    // The same key again is a retry; another key is refused, with the reason in our log.
    let again = server.enrol(&client, &token);
    assert_eq!(again.body(), first.body());
    let stolen = server.enrol(&Client::new(), &token);
    assert_eq!(stolen.status(), 403, "{}", stolen.text);
    assert!(stolen.head().contains("x-request-id: "));
    let refusals = server.refusals.recent();
    assert_eq!(refusals[0].code, "enrol_token_spent");
    assert!(!refusals[0].what.contains(&token), "the token itself is never logged");
    assert_eq!(server.authority.leases(true).unwrap().len(), 1);
}

#[test]
fn a_certificate_renews_itself_and_a_foreign_one_does_not_get_in() {
    let server = Server::start();
    let client = Client::new();
    assert_eq!(server.enrol(&client, &server.token()).status(), 200);
    let record = server
        .authority
        .certificates()
        .unwrap()
        .into_iter()
        .find(|record| record.lease_id.is_some())
        .unwrap();
    let request = post("simplereenroll", None, &client.request());
    let renewed =
        server.talk(&request, &rustls::version::TLS12, Some(client.identity(&record.der))).unwrap();
    assert_eq!(renewed.status(), 200, "{}", renewed.text);
    assert_eq!(server.authority.leases(true).unwrap().len(), 1);

    let stranger = Client::new();
    let params = rcgen::CertificateParams::new(vec!["stranger.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&stranger.key).unwrap();
    let refused =
        server.talk(&request, &rustls::version::TLS12, Some(stranger.identity(certificate.der())));
    assert!(refused.is_err(), "{refused:?}");
    // Without a certificate there is nothing to renew.
    let anonymous = server.talk(&request, &rustls::version::TLS13, None).unwrap();
    assert_eq!(anonymous.status(), 401, "{}", anonymous.text);
}

#[test]
fn what_is_not_enrolment_is_refused_with_its_status() {
    let server = Server::start();
    let tls = &rustls::version::TLS12;
    assert_eq!(server.talk(&get("nothing"), tls, None).unwrap().status(), 404);
    let big = post("simpleenroll", Some("x"), &"A".repeat(70_000));
    assert_eq!(server.talk(&big, tls, None).unwrap().status(), 413);
    let wrong = post("simpleenroll", Some("not-a-token"), &Client::new().request());
    assert_eq!(server.talk(&wrong, tls, None).unwrap().status(), 401);
    let garbage = post("simpleenroll", Some(&server.token()), "!!!!");
    assert_eq!(server.talk(&garbage, tls, None).unwrap().status(), 400);
    drop(server.runtime);
}

#[test]
fn an_expired_certificate_renews_over_tls_while_the_grace_lasts() {
    // RFC 7030 3.3.2; a handshake must not refuse what the lease still allows.
    let server = Server::start();
    let ago = |secs: u64| now().minus(Duration::from_secs(secs));
    let opened = |then: UnixTime| {
        let client = Client::new();
        let create = TokenCreate::new("builder");
        let (_, secret) = server.authority.token_create(&create, &Actor::Uid(0), then).unwrap();
        let request = STANDARD.decode(client.request()).unwrap();
        let csr = pki::Csr::from_der(&request).unwrap();
        let authority = &server.authority;
        let opened =
            authority.enrol_with_token("builder", secret.expose(), &csr, None, then).unwrap();
        authority.connected(&opened.lease.id, then).unwrap();
        (client, opened)
    };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        // An hour's certificate that ended ten seconds ago; renewal works for five minutes.
        let (client, expired) = opened(ago(3_610));
        assert!(expired.not_after < now());
        let request = post("simplereenroll", None, &client.request());
        let identity = client.identity(&expired.certificate);
        let renewed = server.talk(&request, version, Some(identity)).unwrap();
        assert_eq!(renewed.status(), 200, "{}", renewed.text);
        let lease = server.authority.lease(&expired.lease.id).unwrap().unwrap();
        assert!(lease.expires > now(), "the lease lives on");
    }
    // Where there is no grace, the same is too late.
    let mut settings = server.authority.settings().as_ref().clone();
    settings.timers.renew_grace = Duration::ZERO;
    server.authority.reconfigure(settings).unwrap();
    let (client, over) = opened(ago(3_610));
    let request = post("simplereenroll", None, &client.request());
    let identity = client.identity(&over.certificate);
    let refused = server.talk(&request, &rustls::version::TLS12, Some(identity)).unwrap();
    assert_eq!(refused.status(), 403, "{}", refused.text);
    assert_eq!(server.refusals.recent()[0].code, "enrol_lease_ended");
}

#[test]
fn a_public_certificate_is_shown_to_those_who_ask_for_its_name() {
    // RFC 6066 3.
    let directory = tempfile::tempdir().unwrap();
    let files = ["chain.pem", "key.pem"].map(|name| directory.path().join(name));
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["enrol.example.com".to_owned()]).unwrap();
    let public = params.self_signed(&key).unwrap();
    std::fs::write(&files[0], public.pem()).unwrap();
    std::fs::write(&files[1], key.serialize_pem()).unwrap();
    let certificate =
        gateway::hooks::PublicCertificate::open("[enrol]", &files[0], &files[1]).unwrap();
    let server = Server::showing(Some(certificate.slot()));
    let own = server.authority.ca_certificates();
    let theirs = [public.der().to_vec()];

    assert_eq!(server.shown("enrol.example.com", &theirs).unwrap(), theirs[0]);
    assert_eq!(server.shown("ENROL.example.com", &theirs).unwrap(), theirs[0]);
    // Everybody else has our root, and asks for our name or for none.
    for name in ["gw.example.com", "127.0.0.1"] {
        assert_ne!(server.shown(name, &own).unwrap(), theirs[0], "{name}");
        assert!(server.shown(name, &theirs).is_err(), "{name}");
    }
    assert!(server.shown("other.example.com", &theirs).is_err());
    assert_eq!(server.enrol(&Client::new(), &server.token()).status(), 200);
}
