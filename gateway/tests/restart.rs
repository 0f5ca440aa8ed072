//! Which tunnels of an earlier process go on in the next one.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gateway::actions::{PeerKeys, Peers};
use gateway::config::Config;
use gateway::lease::LeaseRegistry;
use gateway::live::LiveConfig;
use gateway::restart::{Checkpoints, choose};
use gateway::service;
use gateway::sys::clock;
use ike::WallTime;
use ike::crypto::{IkeKeys, IkeSuite, SecretBytes, default_provider};
use ike::io::{Checkpoint, Grant, IkeSaId, LeaseId, UniquePolicy};
use ike::snapshot::{SavedTraits, Snapshot};
use ike::wire::{Identification, IkeSpi};
use pki::{Actor, Authority, Csr, Lease, LeaseState, TokenCreate, UnixTime};

const REQID: u32 = 0x4007;
const OURS: &str = "203.0.113.2";

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

fn configuration(role: &str, pool: &str) -> Config {
    let text = format!(
        "[[pool]]\nname = \"runners\"\naddresses = [\"{pool}\"]\n\
         [[role]]\nname = \"{role}\"\npool = \"runners\"\nallow = [\"10.20.0.10\"]\n"
    );
    Config::parse(&text, "f").unwrap()
}

struct Gateway {
    dir: tempfile::TempDir,
    /// In memory, as the gateway wants it; removed with the test.
    runtime: Option<tempfile::TempDir>,
    authority: Arc<Authority>,
}

impl Gateway {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = service::pki_settings(&configuration("builder", "10.77.0.0/24"), "gw");
        let state = dir.path().join("state");
        let authority = Authority::open(&state, pki::Options::new(settings), now()).unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").ok();
        Self { dir, runtime, authority: Arc::new(authority) }
    }

    fn checkpoints(&self) -> Checkpoints {
        match &self.runtime {
            Some(runtime) => {
                let state: PathBuf = self.dir.path().join("state");
                Checkpoints::open(runtime.path(), &state).unwrap()
            }
            None => Checkpoints::none(),
        }
    }

    fn lease(&self) -> Lease {
        let create = TokenCreate {
            role: "builder".to_owned(),
            ttl: Duration::from_secs(300),
            uses: 1,
            bound_net: None,
            bound_spki: None,
        };
        let (_, secret) = self.authority.token_create(&create, &Actor::System, now()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let csr = Csr::from_der(request.der()).unwrap();
        let opened = self.authority.enrol_with_token("builder", secret.expose(), &csr, None, now());
        opened.unwrap().lease
    }

    /// What the next process, so configured, goes on with.
    fn next(&self, saved: Vec<Snapshot>, config: Config) -> Vec<Snapshot> {
        let keys = PeerKeys::load(&config).unwrap();
        let registry = Arc::new(LeaseRegistry::default());
        let peers = Peers::new(
            Arc::clone(&self.authority),
            Arc::clone(&registry),
            LiveConfig::new(config),
            keys,
            default_provider(),
        );
        let serves = |ours: IpAddr| ours == OURS.parse::<IpAddr>().unwrap();
        choose(saved, &self.checkpoints(), &self.authority, &peers, &registry, serves)
    }
}

/// An established IKE SA of a lease, as it would have been written down.
fn snapshot(ike: u64, lease: &Lease) -> Snapshot {
    let secret = || SecretBytes::new(vec![7; 36]);
    let grant = Grant {
        lease: LeaseId(lease.id.clone()),
        role: lease.role.clone(),
        reqid: REQID,
        addresses: lease.addresses.clone(),
        dns: Vec::new(),
        allowed: Vec::new(),
        networks: Vec::new(),
        transport: false,
        deadline: WallTime(clock::wall().0 + 3_600_000_000),
        unique: UniquePolicy::Replace,
    };
    Snapshot {
        ike: IkeSaId(ike),
        initiator: false,
        client: false,
        spi_i: IkeSpi(0x11),
        spi_r: IkeSpi(0x22),
        local: format!("{OURS}:4500").parse().unwrap(),
        remote: "198.51.100.10:4500".parse().unwrap(),
        encap: true,
        suite: IkeSuite::parse_proposal("aes256gcm16-prfsha384-ecp384").unwrap().remove(0),
        keys: Arc::new(IkeKeys {
            d: secret(),
            ai: SecretBytes::new(Vec::new()),
            ar: SecretBytes::new(Vec::new()),
            ei: secret(),
            er: secret(),
            pi: secret(),
            pr: secret(),
        }),
        next_request: 0,
        next_expected: 2,
        outstanding: None,
        cached: None,
        peer: SavedTraits::default(),
        name: "CN=ci".to_owned(),
        identity: Identification::fqdn("ci"),
        grant: Arc::new(grant),
        age: Duration::from_secs(5),
        connected_for: Duration::from_secs(5),
        rekey_in: None,
        children: Vec::new(),
    }
}

fn builder() -> Config {
    configuration("builder", "10.77.0.0/24")
}

#[test]
fn a_tunnel_goes_on_with_the_allow_list_of_now() {
    let gateway = Gateway::new();
    let lease = gateway.lease();
    let resumed = gateway.next(vec![snapshot(7, &lease)], builder());
    let [resumed] = &resumed[..] else { panic!("{resumed:?}") };
    assert_eq!(resumed.grant.reqid, REQID, "the filter and the policies know it by this");
    assert_eq!(resumed.grant.addresses, lease.addresses);
    assert!(!resumed.grant.allowed.is_empty(), "the role's, not what was written down");
}

#[test]
fn a_tunnel_whose_lease_has_ended_does_not_go_on() {
    let gateway = Gateway::new();
    let (live, ended) = (gateway.lease(), gateway.lease());
    gateway.authority.release(&ended.id, "job", &Actor::System, now()).unwrap();
    let mut other = snapshot(8, &live);
    other.grant = Arc::new(Grant { reqid: REQID + 1, ..(*other.grant).clone() });
    let resumed = gateway.next(vec![snapshot(7, &ended), other], builder());
    assert_eq!(resumed.iter().map(|saved| saved.ike.0).collect::<Vec<_>>(), [8]);
}

#[test]
fn a_tunnel_whose_time_is_over_does_not_go_on() {
    let gateway = Gateway::new();
    let lease = gateway.lease();
    let mut late = snapshot(7, &lease);
    let deadline = WallTime(clock::wall().0 - 1);
    late.grant = Arc::new(Grant { deadline, ..(*late.grant).clone() });
    assert!(gateway.next(vec![late], builder()).is_empty(), "its certificate had run out");

    gateway.authority.connected(&lease.id, now()).unwrap();
    let over = lease.expires.plus(Duration::from_secs(1));
    gateway.authority.expire_due(over).unwrap();
    let lapsed = gateway.authority.lease(&lease.id).unwrap().unwrap();
    assert_eq!(lapsed.state, LeaseState::Lapsed, "it may be renewed, not used");
    assert!(gateway.next(vec![snapshot(7, &lease)], builder()).is_empty());
}

#[test]
fn what_was_kept_is_as_old_as_its_file() {
    let gateway = Gateway::new();
    let Some(runtime) = &gateway.runtime else { return };
    let lease = gateway.lease();
    let snapshot = snapshot(7, &lease);
    let age = snapshot.age;
    gateway
        .checkpoints()
        .store(&Checkpoint { ike: IkeSaId(7), snapshot: Some(Box::new(snapshot)) });
    let folder = fs::read_dir(runtime.path()).unwrap().next().unwrap().unwrap().path();
    let file = fs::File::options().write(true).open(folder.join("7.sa")).unwrap();
    let hour = Duration::from_secs(3600);
    file.set_modified(std::time::SystemTime::now() - hour).unwrap();

    let saved = gateway.checkpoints().load();
    assert!(saved[0].age >= age + hour, "{:?}", saved[0].age);
    assert!(saved[0].age < age + hour * 2, "{:?}", saved[0].age);
}

#[test]
fn what_is_configured_otherwise_does_not_go_on() {
    let gateway = Gateway::new();
    let lease = gateway.lease();
    let goes = |change: fn(&mut Snapshot), config: Config| {
        let mut saved = snapshot(7, &lease);
        change(&mut saved);
        !gateway.next(vec![saved], config).is_empty()
    };
    assert!(goes(|_| {}, builder()));
    assert!(!goes(|_| {}, configuration("deployer", "10.77.0.0/24")), "no such role any more");
    let elsewhere = |saved: &mut Snapshot| saved.local = "203.0.113.9:4500".parse().unwrap();
    assert!(!goes(elsewhere, builder()), "nobody listens there");
    assert!(!goes(|saved| saved.client = true, builder()), "we make it anew");
    let site = |saved: &mut Snapshot| {
        let role = gateway::policy::site_role("branch");
        saved.grant = Arc::new(Grant { role, ..(*saved.grant).clone() });
    };
    assert!(!goes(site, builder()), "what a site is known by may be another now");
    let moved = |saved: &mut Snapshot| {
        let addresses = vec!["10.78.0.9".parse().unwrap()];
        saved.grant = Arc::new(Grant { addresses, ..(*saved.grant).clone() });
    };
    assert!(!goes(moved, builder()), "its addresses are another's by now");
}

#[test]
fn two_leases_never_share_a_request_id() {
    let gateway = Gateway::new();
    let (one, other) = (gateway.lease(), gateway.lease());
    let saved = vec![snapshot(7, &one), snapshot(8, &other)];
    let resumed = gateway.next(saved, builder());
    assert_eq!(resumed.len(), 1, "a snapshot that lies is not believed");
}

#[test]
fn what_does_not_go_on_is_not_kept() {
    let gateway = Gateway::new();
    // Only where there is a tmpfs.
    let Some(runtime) = &gateway.runtime else { return };
    let lease = gateway.lease();
    let mut first = gateway.checkpoints();
    for ike in [7, 8] {
        let snapshot = Some(Box::new(snapshot(ike, &lease)));
        first.store(&Checkpoint { ike: IkeSaId(ike), snapshot });
    }
    first.store(&Checkpoint { ike: IkeSaId(8), snapshot: None });
    let saved = gateway.checkpoints().load();
    assert_eq!(saved.iter().map(|kept| kept.ike.0).collect::<Vec<_>>(), [7], "8 had ended");
    assert_eq!(saved[0].keys, snapshot(7, &lease).keys);
    gateway.authority.release(&lease.id, "job", &Actor::System, now()).unwrap();
    assert!(gateway.next(saved, builder()).is_empty());
    assert!(gateway.checkpoints().load().is_empty(), "keys of it are gone, too");
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 1);
    gateway.checkpoints().end();
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 0, "a full stop leaves nothing");
}
