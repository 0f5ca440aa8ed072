//! What the simulated hosts are configured with, and in what one client differs from another.
#![allow(clippy::expect_used)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ike::EngineConfig;
use ike::config::{
    Continuity, Credential, FirstChild, Limits, LocalAuth, PeerConfig, PpkUse, RemoteAuth, Timers,
    Volume,
};
use ike::crypto::{EspSuite, IkeSuite, KeMethod, SignatureScheme};
use ike::io::{CredentialId, OwnProof};
use ike::wire::{IdType, Identification, TrafficSelector};

use super::node::{Kind, Node};
use super::proof;

/// What a walk decides about a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Habits {
    /// It says that it can move (RFC 4555).
    pub mobike: bool,
    /// It goes where a gateway sends it (RFC 5685).
    pub follows: bool,
    /// It proves who it is with a shared key; some gateways' proof is then one, too.
    pub shared_key: bool,
    /// It proves who it is with EAP-TLS (RFC 5216), and may want that to be the gateway's only proof
    /// too (RFC 5998).
    pub eap: Option<bool>,
    /// It has a post-quantum preshared key (RFC 8784), and may insist on it.
    pub ppk: Option<bool>,
    /// Its IKE SA is made without a child, which has an exchange of its own (RFC 6023).
    pub childless: bool,
    /// It asks for further children now and then.
    pub several: bool,
}

/// The configuration of a simulated engine: short lists, real timers.
pub fn config(name: &str) -> EngineConfig {
    EngineConfig {
        shard: 0,
        identity: identity(name),
        credentials: vec![Credential {
            id: CredentialId(0),
            chain: vec![proof::certificate(name)],
            authorities: vec![[7; 20]],
            ocsp: Vec::new(),
            schemes: vec![SignatureScheme::EcdsaSha256],
        }],
        trust_anchor_hashes: vec![[7; 20]],
        request_ocsp: false,
        ike_suites: ike_suites(),
        esp_suites: esp_suites(name),
        force_encap: false,
        fragment_size: 1232,
        eap_tls: false,
        eap_only: false,
        ppk: false,
        // Here answers are lost, and few children are taken back.
        timers: Timers { adoption: Duration::from_secs(25), ..Timers::default() },
        volume: Volume::default(),
        limits: Limits::default(),
        continuity: Continuity::default(),
    }
}

fn ike_suites() -> Vec<IkeSuite> {
    [SEVERAL, "aes256gcm16-prfsha384-curve25519", "aes128gcm16-prfsha256-ecp256"]
        .into_iter()
        .map(|text| text.parse().expect("a suite"))
        .collect()
}

/// Two key exchanges (RFC 9370): every node accepts them, every second client offers them.
const SEVERAL: &str = "aes256gcm16-prfsha384-curve25519-ke1_mlkem768";

/// What a client offers: the even ones know one key exchange only.
fn offered(kind: Kind) -> Vec<IkeSuite> {
    let several = matches!(kind, Kind::Client(number) if number % 2 == 1);
    ike_suites().into_iter().filter(|suite| several || suite.additional.is_empty()).collect()
}

/// One client rekeys its children with two key exchanges, the others with none.
fn esp_suites(name: &str) -> Vec<EspSuite> {
    let texts = match name {
        "client-1" => ["aes256gcm16-curve25519-ke1_mlkem768", "aes128gcm16"],
        _ => ["aes256gcm16", "aes128gcm16"],
    };
    texts.into_iter().map(|text| text.parse().expect("a suite")).collect()
}

/// The identity of a name.
pub fn identity(name: &str) -> Identification {
    Identification { id_type: IdType::Fqdn, data: name.as_bytes().to_vec() }
}

impl Node {
    /// What a client asks of a gateway.
    pub fn peer(&self, gateway: IpAddr, gateway_name: &str) -> PeerConfig {
        let any = |start: &str, end: &str| TrafficSelector {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start: start.parse().expect("an address"),
            end: end.parse().expect("an address"),
        };
        let Habits { mobike, follows, shared_key, eap, ppk, childless, .. } = self.habits;
        let by_key = shared_key && proof::of_gateway(&self.name) == OwnProof::SharedKey;
        let (local_auth, remote_auth) = match eap {
            Some(true) => (LocalAuth::EapTls, RemoteAuth::EapTls),
            Some(false) => (LocalAuth::EapTls, RemoteAuth::Certificate),
            None if by_key => (LocalAuth::SharedKey, RemoteAuth::SharedKey),
            None if shared_key => (LocalAuth::SharedKey, RemoteAuth::Certificate),
            None => (LocalAuth::Certificate(CredentialId(0)), RemoteAuth::Certificate),
        };
        PeerConfig {
            name: gateway_name.to_owned(),
            local: SocketAddr::new(self.address, 500),
            remote: SocketAddr::new(gateway, 500),
            identity: identity(&self.name),
            expected: Some(identity(gateway_name)),
            local_auth,
            remote_auth,
            ppk: ppk.map(|required| PpkUse { id: proof::ppk_name(&self.name), required }),
            ike_suites: offered(self.kind),
            esp_suites: esp_suites(&self.name),
            first_ke: KeMethod::Curve25519,
            request_ipv4: true,
            request_ipv6: false,
            ts_local: vec![any("0.0.0.0", "255.255.255.255")],
            ts_remote: vec![any("10.20.0.0", "10.20.255.255")],
            first_child: if childless { FirstChild::Separately } else { FirstChild::WithIkeAuth },
            transport: false,
            mobike,
            follow_redirects: follows,
            redirected_from: self.sent_by.clone(),
            initial_contact: !self.engine.sas().any(|sa| sa.state == ike::SaState::Established),
        }
    }
}
