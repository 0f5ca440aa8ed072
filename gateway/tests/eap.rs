//! The TLS side of EAP-TLS (RFC 5216, RFC 9190) against a TLS client, without IKE around it.
#![allow(clippy::unwrap_used, clippy::result_large_err)]

use std::io::Read;
use std::sync::Arc;

use gateway::actions::{EapServer, PeerKeys, Peers};
use gateway::config::Config;
use gateway::http;
use gateway::lease::LeaseRegistry;
use gateway::live::LiveConfig;
use gateway::service::{self, GatewayIdentity};
use gateway::sys::clock;
use ike::SaRole;
use ike::crypto::default_provider;
use ike::event::Refusal;
use ike::io::{EapTlsAnswer, EapTlsDone, EapTlsRequest, IkeSaId};
use ike::wire::Identification;
use pki::{Actor, Authority, Csr, Enrolled, TokenCreate, UnixTime};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

struct Gateway {
    authority: Arc<Authority>,
    server: EapServer,
    _state: tempfile::TempDir,
}

impl Gateway {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut config = Config::built_in();
        config.gateway.id = Some("gw.example.com".to_owned());
        let options = pki::Options::new(service::pki_settings(&config, "gw.example.com"));
        let authority = Arc::new(Authority::open(state.path(), options, now()).unwrap());
        let names = service::server_names(&config, "gw.example.com");
        let identity = GatewayIdentity::open(Arc::clone(&authority), names, now()).unwrap();
        let peers = Arc::new(Peers::new(
            Arc::clone(&authority),
            Arc::new(LeaseRegistry::default()),
            LiveConfig::new(config),
            PeerKeys::default(),
            default_provider(),
        ));
        let tls = http::eap_config(Arc::clone(&authority), identity.tls()).unwrap();
        let server = EapServer::start(tls, peers).unwrap();
        Self { authority, server, _state: state }
    }

    fn enrol(&self, key: &rcgen::KeyPair) -> Enrolled {
        let create = TokenCreate::new("builder");
        let (_, token) = self.authority.token_create(&create, &Actor::Uid(0), now()).unwrap();
        let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let csr = Csr::from_der(params.serialize_request(key).unwrap().der()).unwrap();
        self.authority.enrol_with_token("builder", token.expose(), &csr, None, now()).unwrap()
    }

    fn client(
        &self,
        version: &'static SupportedProtocolVersion,
        identity: Option<(Vec<u8>, &rcgen::KeyPair)>,
    ) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.authority.ca_certificates().remove(0))).unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots);
        let config = match identity {
            Some((certificate, key)) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                let chain = vec![CertificateDer::from(certificate)];
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from("gw.example.com").unwrap();
        ClientConnection::new(Arc::new(config), name).unwrap()
    }

    fn answer(&self, ike: u64, name: &str, data: Vec<u8>) -> Result<Box<EapTlsAnswer>, Refusal> {
        self.server.answer(&EapTlsRequest {
            ike: IkeSaId(ike),
            remote: "192.0.2.7:4500".parse().unwrap(),
            role: SaRole::Responder,
            identity: Identification::fqdn(name),
            data,
        })
    }

    /// Talks until the server has had enough; what it found.
    fn talk(&self, client: &mut ClientConnection, name: &str) -> Result<EapTlsDone, Refusal> {
        for _ in 0..10 {
            let mut data = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut data).unwrap();
            }
            let answer = self.answer(1, name, data)?;
            let mut send = answer.send.as_slice();
            while !send.is_empty() {
                client.read_tls(&mut send).unwrap();
                client.process_new_packets().unwrap();
            }
            if let Some(done) = answer.done {
                assert!(!answer.send.is_empty(), "there is an EAP request to acknowledge");
                return Ok(done);
            }
        }
        panic!("the handshake never ends");
    }
}

#[test]
fn both_versions_agree_on_the_master_session_key() {
    let gateway = Gateway::start();
    let key = rcgen::KeyPair::generate().unwrap();
    let enrolled = gateway.enrol(&key);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut client = gateway.client(version, Some((enrolled.certificate.clone(), &key)));

        let done = gateway.talk(&mut client, &enrolled.lease.dns_name).unwrap();

        let tls13 = version.version == rustls::ProtocolVersion::TLSv1_3;
        // RFC 5216 2.3, RFC 9190 2.3: the first half is the MSK.
        let material = if tls13 {
            client.export_keying_material([0; 128], b"EXPORTER_EAP_TLS_Key_Material", Some(&[13]))
        } else {
            client.export_keying_material([0; 128], b"client EAP encryption", None)
        };
        assert_eq!(done.msk.expose(), &material.unwrap()[..64]);
        assert_eq!(done.peer.identity, enrolled.lease.dns_name);
        let mut said = [0xff; 8];
        let read = client.reader().read(&mut said);
        // RFC 9190 2.5: TLS 1.3 ends with one octet of zero.
        assert_eq!(read.ok(), tls13.then_some(1));
        assert_eq!(said[0], if tls13 { 0 } else { 0xff });
    }
}

#[test]
fn the_certificate_must_prove_the_claimed_identity() {
    let gateway = Gateway::start();
    let key = rcgen::KeyPair::generate().unwrap();
    let enrolled = gateway.enrol(&key);
    let version = &rustls::version::TLS13;
    let mut client = gateway.client(version, Some((enrolled.certificate, &key)));

    let refused = gateway.talk(&mut client, "somebody-else.example.com").unwrap_err();

    assert_eq!(refused.code, "identity_mismatch");
}

#[test]
fn a_foreign_certificate_and_none_are_refused() {
    let gateway = Gateway::start();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["ci.example.com".to_owned()]).unwrap();
    let foreign = params.self_signed(&key).unwrap().der().to_vec();
    let version = &rustls::version::TLS12;

    let mut client = gateway.client(version, Some((foreign, &key)));
    assert_eq!(gateway.talk(&mut client, "ci.example.com").unwrap_err().code, "unknown_issuer");

    let mut client = gateway.client(version, None);
    let refused = gateway.talk(&mut client, "ci.example.com").unwrap_err();
    assert_eq!(refused.code, "eap_tls");
    assert!(refused.fix.contains("certs"), "{refused}");
}

#[test]
fn what_is_no_tls_is_refused_and_forgotten() {
    let gateway = Gateway::start();

    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1], &[0; 64]] {
        for _ in 0..2 {
            let refused = gateway.answer(1, "ci.example.com", garbage.to_vec());
            if let Err(refused) = refused {
                assert_eq!(refused.code, "eap_tls");
            }
        }
    }
}

#[test]
fn conversations_are_bounded_in_number() {
    let gateway = Gateway::start();
    // The beginning of a record: the server waits for the rest.
    let begin = |ike| gateway.answer(ike, "ci.example.com", vec![0x16, 3, 1]);

    for ike in 0..512 {
        begin(ike).unwrap();
    }
    assert_eq!(begin(512).unwrap_err().code, "busy");
    // Who has one may go on.
    begin(7).unwrap();
}

/// What a client says next.
fn flight(client: &mut ClientConnection) -> Vec<u8> {
    let mut data = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut data).unwrap();
    }
    data
}

/// Where the version in the headers of TLS records stands, which nobody looks at (RFC 8446 5.1).
fn versions(flight: &[u8]) -> Vec<usize> {
    let (mut at, mut found) = (0, Vec::new());
    while let Some([_, _, _, high, low]) = flight.get(at..at + 5) {
        found.extend([at + 1, at + 2]);
        at += 5 + usize::from(u16::from_be_bytes([*high, *low]));
    }
    found
}

/// The most that is sent back at once: our certificates and a few hundred octets around them.
const MOST: usize = 16 * 1024;

/// Hostile octets instead of a first message: changed, cut and repeated at chance.
#[test]
fn no_damaged_hello_is_an_end_and_none_makes_us_say_much() {
    let gateway = Gateway::start();
    let hello = flight(&mut gateway.client(&rustls::version::TLS13, None));
    let mut chance = 0x9e37_79b9_u64;
    let mut draw = |below: usize| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (chance >> 33) as usize % below
    };
    let mut answered = 0;
    for _ in 0..2000 {
        let mut data = hello.clone();
        for _ in 0..draw(4) {
            let at = draw(data.len());
            data[at] ^= 1 << draw(8);
        }
        match draw(6) {
            0 => data.truncate(1 + draw(hello.len() - 1)),
            1 => data.extend_from_within(..),
            2 => drop(data.splice(..5, [0x17, 3, 3, draw(256) as u8, draw(256) as u8])),
            _ => {}
        }
        // Always of the same IKE SA, so that what an earlier one began is gone on with, too.
        match gateway.answer(1, "ci.example.com", data) {
            Ok(answer) => {
                assert!(answer.done.is_none() && answer.send.len() < MOST);
                answered += usize::from(!answer.send.is_empty());
            }
            Err(refused) => assert_eq!(refused.code, "eap_tls"),
        }
    }
    assert!(answered > 100, "{answered} were understood");
}

/// The client's proof: no octet of it can be another.
#[test]
fn no_damaged_proof_is_taken() {
    let gateway = Gateway::start();
    let key = rcgen::KeyPair::generate().unwrap();
    let enrolled = gateway.enrol(&key);
    let name = &enrolled.lease.dns_name;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        // The last one is left as it is, so that only the damage can be the reason.
        let mut damaged = 0;
        for at in (0..4000).step_by(37).chain([usize::MAX]) {
            let mut client = gateway.client(version, Some((enrolled.certificate.clone(), &key)));
            let first = gateway.answer(2, name, flight(&mut client)).unwrap();
            let mut send = first.send.as_slice();
            while !send.is_empty() {
                client.read_tls(&mut send).unwrap();
                client.process_new_packets().unwrap();
            }
            let mut proof = flight(&mut client);
            if versions(&proof).contains(&at) || (at != usize::MAX && at >= proof.len()) {
                // Gives the conversation up.
                assert!(gateway.answer(2, name, vec![0xff; 8]).is_err());
                continue;
            }
            let as_it_is = at == usize::MAX;
            if !as_it_is {
                proof[at] ^= 0x10;
                damaged += 1;
            }
            let done = gateway.answer(2, name, proof).is_ok_and(|answer| answer.done.is_some());
            assert_eq!(done, as_it_is, "octet {at}");
            let _ = gateway.answer(2, name, vec![0xff; 8]);
        }
        assert!(damaged > 15, "{damaged} octets");
    }
}

/// A message that says it is long: it is not waited for.
#[test]
fn what_one_conversation_holds_is_bounded() {
    let gateway = Gateway::start();
    let mut record = vec![0x16, 3, 3, 0x03, 0xe8, 1, 0xff, 0xff, 0xff];
    record.resize(1005, 0);
    let taken =
        (0..200).take_while(|_| gateway.answer(3, "ci.example.com", record.clone()).is_ok());
    let taken = taken.count() * record.len();
    assert!(taken <= 80 * 1024, "{taken} octets without an end");
}
