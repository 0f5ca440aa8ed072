//! A reload between a peer's proof and the moment its authorisation takes effect: what was proved
//! is judged by the configuration that is in force then.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use gateway::actions::{PeerKeys, Peers};
use gateway::config::Config;
use gateway::lease::LeaseRegistry;
use gateway::live::LiveConfig;
use gateway::service;
use gateway::sys::clock;
use ike::SaRole;
use ike::crypto::default_provider;
use ike::io::{Authorise, IkeSaId, LeaseId, PeerProof, SharedKeyRequest, VerifiedPeer};
use ike::wire::Identification;
use pki::{Actor, Authority, UnixTime};

const IKE: IkeSaId = IkeSaId(7);

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

struct Gateway {
    dir: tempfile::TempDir,
    authority: Arc<Authority>,
    registry: Arc<LeaseRegistry>,
    config: LiveConfig,
    peers: Peers,
}

fn write_key(path: &Path, key: &str) {
    std::fs::write(path, key).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

impl Gateway {
    fn start(key: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_key(&dir.path().join("ci.key"), key);
        let config = configuration(dir.path(), "ci");
        let settings = service::pki_settings(&config, "gw.example.com");
        let options = pki::Options::new(settings);
        let authority = Authority::open(&dir.path().join("state"), options, now()).unwrap();
        let (authority, registry) = (Arc::new(authority), Arc::new(LeaseRegistry::default()));
        let keys = PeerKeys::load(&config).unwrap();
        let config = LiveConfig::new(config);
        let peers = Peers::new(
            Arc::clone(&authority),
            Arc::clone(&registry),
            config.clone(),
            keys,
            default_provider(),
        );
        Self { dir, authority, registry, config, peers }
    }

    /// What `runnel reload` does, as far as it is about keys.
    fn reload(&self, client: &str, key: &str) {
        write_key(&self.dir.path().join("ci.key"), key);
        let config = configuration(self.dir.path(), client);
        self.peers.replace_keys(PeerKeys::load(&config).unwrap());
        self.config.replace(config);
        self.peers.configuration_changed();
    }

    fn prove(&self) {
        let request = SharedKeyRequest {
            ike: IKE,
            remote: "192.0.2.7:4500".parse().unwrap(),
            role: SaRole::Responder,
            local: Identification::fqdn("gw.example.com"),
            peer: Some(Identification::fqdn("ci")),
        };
        self.peers.shared_key(&request).unwrap();
    }
}

fn configuration(dir: &Path, client: &str) -> Config {
    let key = dir.join("ci.key");
    let text = format!("[[psk]]\nid = \"{client}\"\nfile = \"{}\"\n", key.display());
    Config::parse(&text, "f").unwrap()
}

fn request() -> Authorise {
    Authorise {
        ike: IKE,
        remote: "192.0.2.7:4500".parse().unwrap(),
        peer: VerifiedPeer { identity: "ci".to_owned(), proof: PeerProof::SharedKey },
        identity: Identification::fqdn("ci"),
        wants_ipv4: true,
        wants_ipv6: false,
        initial_contact: false,
        ppk: false,
        ts_remote: Vec::new(),
        ts_local: Vec::new(),
        connection: None,
    }
}

const OLD: &str = "the key before the reload";
const NEW: &str = "the key after the reload!";

#[test]
fn a_reload_that_keeps_the_key_disturbs_nobody() {
    let gateway = Gateway::start(OLD);
    gateway.prove();
    gateway.reload("ci", OLD);
    let decision = gateway.peers.authorise(&request());
    gateway.reload("ci", OLD);
    let grant = gateway.peers.confirm(&request(), decision).unwrap();
    assert_eq!(grant.addresses.len(), 2);
}

#[test]
fn a_key_replaced_before_the_authorisation_is_refused() {
    let gateway = Gateway::start(OLD);
    gateway.prove();
    gateway.reload("ci", NEW);
    let decision = gateway.peers.authorise(&request());
    let refusal = gateway.peers.confirm(&request(), decision).unwrap_err();
    assert_eq!(refusal.code, "configuration_changed");
}

#[test]
fn a_key_replaced_before_it_takes_effect_is_refused() {
    let gateway = Gateway::start(OLD);
    gateway.prove();
    let decision = gateway.peers.authorise(&request());
    gateway.reload("ci", NEW);
    let refusal = gateway.peers.confirm(&request(), decision).unwrap_err();
    assert_eq!(refusal.code, "configuration_changed");
    assert!(refusal.what.contains("reloaded"), "{}", refusal.what);
}

#[test]
fn a_key_taken_away_before_it_takes_effect_is_refused() {
    let gateway = Gateway::start(OLD);
    gateway.prove();
    let decision = gateway.peers.authorise(&request());
    gateway.reload("another", OLD);
    assert!(gateway.peers.confirm(&request(), decision).is_err());
}

#[test]
fn a_lease_that_ends_before_it_takes_effect_is_refused() {
    let gateway = Gateway::start(OLD);
    gateway.prove();
    let decision = gateway.peers.authorise(&request());
    let lease = gateway.authority.leases(false).unwrap().remove(0);
    gateway.authority.release(&lease.id, "admin", &Actor::Uid(0), now()).unwrap();
    gateway.registry.end(&LeaseId(lease.id));
    let refusal = gateway.peers.confirm(&request(), decision).unwrap_err();
    assert_eq!(refusal.code, "lease_ended");
}

#[test]
fn one_proof_is_good_for_one_authorisation() {
    let gateway = Gateway::start(OLD);
    gateway.prove();
    let decision = gateway.peers.authorise(&request());
    gateway.peers.confirm(&request(), decision).unwrap();
    let again = gateway.peers.authorise(&request());
    assert_eq!(gateway.peers.confirm(&request(), again).unwrap_err().code, "busy");
}
