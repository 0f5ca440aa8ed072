//! What a pair is made of, and short names for its parts.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use ike::config::{
    Continuity, Credential, EngineConfig, FirstChild, Limits, LocalAuth, PeerConfig, RemoteAuth,
    Timers, Volume,
};
use ike::crypto::ring::PROVIDER;
use ike::crypto::{CryptoProvider, EspSuite, IkeSuite, KeMethod, Signer};
use ike::io::{CredentialId, Grant, LeaseId, UniquePolicy};
use ike::wire::{Identification, TrafficSelector};
use ike::{Now, Timestamp, WallTime};

use super::{CLIENT_IP, Key, LEASE, Pair, Peer, SERVER_IP, START, Side};

/// What a pair is made of, to be changed by a test before it starts.
pub struct Setup {
    pub client: EngineConfig,
    pub server: EngineConfig,
    pub client_key: Key,
    pub server_key: Key,
    pub target: PeerConfig,
    pub grant: Option<Grant>,
    /// The client's and the server's.
    pub seeds: (u8, u8),
    /// Both sides' provider.
    pub crypto: &'static CryptoProvider,
}

pub fn ike(text: &str) -> Vec<IkeSuite> {
    IkeSuite::parse_proposal(text).unwrap()
}

pub fn esp(text: &str) -> Vec<EspSuite> {
    EspSuite::parse_proposal(text).unwrap()
}

pub fn net(start: &str, end: &str) -> TrafficSelector {
    TrafficSelector::addresses(start.parse().unwrap(), end.parse().unwrap())
}

pub fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn config(name: &str, shard: u8, key: &Key) -> EngineConfig {
    EngineConfig {
        shard,
        identity: Identification::fqdn(name),
        credentials: vec![Credential {
            id: CredentialId(1),
            chain: vec![key.spki.clone()],
            schemes: key.signer.schemes().to_vec(),
            authorities: vec![[7; 20]],
            ocsp: Vec::new(),
        }],
        trust_anchor_hashes: vec![[7; 20]],
        request_ocsp: false,
        ike_suites: ike("aes256gcm16-prfsha384-x25519-ecp256"),
        esp_suites: esp("aes256gcm16-esn-noesn"),
        force_encap: false,
        fragment_size: 1280,
        eap_tls: false,
        eap_only: false,
        ppk: false,
        timers: Timers::default(),
        volume: Volume::default(),
        limits: Limits::default(),
        continuity: Continuity::default(),
    }
}

impl Setup {
    pub fn new() -> Self {
        Self::with_keys(Key::ecdsa(), Key::ecdsa())
    }

    pub fn with_keys(client_key: Key, server_key: Key) -> Self {
        let client = config("client.example.com", 1, &client_key);
        let server = config("gw.example.com", 2, &server_key);
        let target = PeerConfig {
            name: "gw".to_owned(),
            local: address(CLIENT_IP, 500),
            remote: address(SERVER_IP, 500),
            identity: Identification::fqdn("client.example.com"),
            expected: Some(Identification::fqdn("gw.example.com")),
            local_auth: LocalAuth::Certificate(CredentialId(1)),
            remote_auth: RemoteAuth::Certificate,
            ppk: None,
            ike_suites: client.ike_suites.clone(),
            esp_suites: client.esp_suites.clone(),
            first_ke: KeMethod::Curve25519,
            request_ipv4: true,
            request_ipv6: true,
            ts_local: vec![],
            ts_remote: vec![TrafficSelector::any_v4(), TrafficSelector::any_v6()],
            first_child: FirstChild::WithIkeAuth,
            transport: false,
            mobike: false,
            initial_contact: false,
            follow_redirects: false,
            redirected_from: None,
        };
        let grant = Some(Grant {
            lease: LeaseId(LEASE.to_owned()),
            role: "builder".to_owned(),
            reqid: 7,
            addresses: vec!["10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap()],
            dns: vec!["10.20.0.53".parse().unwrap()],
            allowed: vec![net("10.20.0.0", "10.20.0.255")],
            networks: vec![],
            transport: false,
            deadline: WallTime(START + 86_400_000_000),
            unique: UniquePolicy::Replace,
        });
        Self {
            client,
            server,
            client_key,
            server_key,
            target,
            grant,
            seeds: (0xc1, 0x5e),
            crypto: &PROVIDER,
        }
    }

    /// Both sides accept and offer exactly these.
    pub fn suites(mut self, ike_text: &str, esp_text: &str) -> Self {
        for config in [&mut self.client, &mut self.server] {
            config.ike_suites = ike(ike_text);
            config.esp_suites = esp(esp_text);
        }
        self.target.ike_suites = ike(ike_text);
        self.target.esp_suites = esp(esp_text);
        self
    }

    /// No timer fires on its own but those of the handshake.
    pub fn quiet(mut self) -> Self {
        for timers in [&mut self.client.timers, &mut self.server.timers] {
            timers.dpd = Duration::ZERO;
            timers.rekey_ike = Duration::ZERO;
            timers.rekey_child = Duration::ZERO;
        }
        self
    }

    pub fn build(self) -> Pair {
        let now = Now { mono: Timestamp(0), wall: WallTime(START) };
        let mut client =
            Peer::new(Side::Client, self.crypto, self.client, self.client_key, self.seeds.0, now);
        let mut server = Peer::new(
            Side::Server,
            self.crypto,
            self.server,
            self.server_key,
            self.seeds.1 ^ 0xff,
            now,
        );
        server.grant = self.grant;
        client.grant = Some(Grant {
            lease: LeaseId("site".to_owned()),
            role: "site".to_owned(),
            reqid: 1,
            addresses: vec![],
            dns: vec![],
            allowed: vec![],
            networks: vec![],
            transport: false,
            deadline: WallTime(START + 864_000_000_000),
            unique: UniquePolicy::Keep,
        });
        Pair { now, client, server, wire: VecDeque::new(), nat: None, target: self.target }
    }
}
