//! Leases of peers that prove a shared key: opened at first connect, found again by identity.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::*;
use pki::store::{MemoryStore, Store};
use pki::*;

const KEY: &[u8] = b"correct horse battery staple";

fn holder<'a>(name: &'a str, key: &'a [u8]) -> KeyHolder<'a> {
    KeyHolder {
        id: IkeId { kind: 2, data: name.as_bytes() },
        name,
        role: "builder",
        key,
        door: KeyHolder::DOOR,
    }
}

fn connect(authority: &Authority, name: &str, key: &[u8], at: u64) -> Access {
    let access = authority.authorise_holder(&holder(name, key), None, after(at)).unwrap();
    authority.connected(&access.lease.id, after(at)).unwrap();
    access
}

#[test]
fn the_first_connection_opens_a_lease_of_the_role() {
    let authority = authority();

    let access = authority.authorise_holder(&holder("ci-7", KEY), None, NOW).unwrap();

    let lease = authority.lease(&access.lease.id).unwrap().unwrap();
    assert_eq!(lease, access.lease);
    assert_eq!((lease.role.as_str(), lease.door.as_str()), ("builder", "psk"));
    assert_eq!(lease.subject, "ci-7");
    assert_eq!(lease.addresses.len(), 2);
    assert_eq!(access.deadline, after(3_600));
    assert_eq!(lease.hard_cap, after(86_400));
    assert!(lease.certs.is_empty());
    let audit = authority.audit(0, 100).unwrap();
    let created = audit.iter().find(|record| record.event.action == "lease.create").unwrap();
    assert_eq!(created.event.reason.as_deref(), Some("psk"));
}

/// The key of an external certificate is public: its leases are found by it, to be revoked. Of a
/// shared key nothing is shown.
#[test]
fn a_lease_of_an_external_certificate_is_revoked_by_its_key() {
    let authority = authority();
    let shared = connect(&authority, "ci-7", KEY, 0);
    assert_eq!(shared.lease.spki_sha256, "");
    let external = KeyHolder { door: KeyHolder::EXTERNAL, ..holder("ci-8", b"a public key, DER") };
    let access = authority.authorise_holder(&external, None, NOW).unwrap();
    let hash = access.lease.spki_sha256.clone();
    assert_eq!(hash.len(), 64);

    let done = authority
        .revoke(&RevokeSelector::Spki(hash), RevocationReason::KeyCompromise, &OPERATOR, after(10))
        .unwrap();

    assert_eq!((done.changes.len(), done.barred_keys), (1, 1));
    assert!(authority.authorise_holder(&external, None, after(20)).is_err());
    assert!(authority.lease(&shared.lease.id).unwrap().unwrap().state.is_live());
}

#[test]
fn a_reconnection_gets_the_same_lease_and_address_and_a_later_end() {
    let authority = authority();
    let first = connect(&authority, "ci-7", KEY, 0);
    authority.disconnected(&first.lease.id, "closed", after(100)).unwrap();

    let second = connect(&authority, "ci-7", KEY, 150);

    assert_eq!(second.lease.id, first.lease.id);
    assert_eq!(second.lease.addresses, first.lease.addresses);
    assert_eq!(second.deadline, after(150 + 3_600));
    assert_eq!(authority.leases(false).unwrap().len(), 1);
    assert_eq!(authority.expire_due(after(3_700)).unwrap(), []);
}

#[test]
fn the_lease_is_found_again_after_a_restart() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let first = connect(&authority_on(Arc::clone(&store)), "ci-7", KEY, 0);

    let again = connect(&authority_on(store), "ci-7", KEY, 60);

    assert_eq!(again.lease.id, first.lease.id);
    assert_eq!(again.lease.addresses, first.lease.addresses);
}

#[test]
fn identities_have_leases_of_their_own() {
    let authority = authority();
    let mut seen = BTreeSet::new();
    for (kind, data) in [(2, &b"ci-7"[..]), (11, b"ci-7"), (3, b"ci-7"), (2, b"ci-8")] {
        let holder = KeyHolder { id: IkeId { kind, data }, ..holder("ci", KEY) };
        let access = authority.authorise_holder(&holder, None, NOW).unwrap();
        assert!(seen.insert(access.lease.id));
    }
}

#[test]
fn no_proof_reaches_past_the_roles_cap() {
    let authority = authority();
    let first = connect(&authority, "ci-7", KEY, 0);
    for hour in 1..24 {
        connect(&authority, "ci-7", KEY, hour * 3_600 - 10);
    }
    let last = connect(&authority, "ci-7", KEY, 86_390);
    assert_eq!((&last.lease.id, last.deadline), (&first.lease.id, after(86_400)));

    let ended = authority.expire_due(after(86_400)).unwrap();
    assert!(ended[0].end_tunnels);

    let next = connect(&authority, "ci-7", KEY, 86_401);
    assert_ne!(next.lease.id, first.lease.id);
}

#[test]
fn a_revoked_holder_stays_out_until_its_key_is_another() {
    let authority = authority();
    let first = connect(&authority, "ci-7", KEY, 0);
    let selector = RevokeSelector::Lease(first.lease.id.clone());
    authority.revoke(&selector, RevocationReason::KeyCompromise, &OPERATOR, after(10)).unwrap();

    let refused = authority.authorise_holder(&holder("ci-7", KEY), None, after(11)).unwrap_err();

    let AccessError::HolderRevoked { name, lease, at } = &refused else { panic!("{refused}") };
    assert_eq!((name.as_str(), lease, *at), ("ci-7", &first.lease.id, after(10)));
    assert!(refused.to_string().contains("another key"), "{refused}");
    let next = connect(&authority, "ci-7", b"a new key of the same length", 12);
    assert_ne!(next.lease.id, first.lease.id);
    assert_ne!(next.lease.addresses, first.lease.addresses);
}

#[test]
fn a_released_holder_may_come_back_with_a_new_lease() {
    let authority = authority();
    let first = connect(&authority, "ci-7", KEY, 0);
    authority.release(&first.lease.id, "admin", &OPERATOR, after(10)).unwrap();

    assert_ne!(connect(&authority, "ci-7", KEY, 20).lease.id, first.lease.id);
}

#[test]
fn another_key_or_role_ends_the_lease_that_was() {
    let authority = authority();
    let first = connect(&authority, "ci-7", KEY, 0);
    assert!(authority.is_lease_of(&first.lease, &holder("ci-7", KEY)).unwrap());
    assert!(!authority.is_lease_of(&first.lease, &holder("ci-7", b"other")).unwrap());
    assert!(!authority.is_lease_of(&first.lease, &holder("ci-8", KEY)).unwrap());

    let second = connect(&authority, "ci-7", b"other", 10);
    let deployer = KeyHolder { role: "deployer", ..holder("ci-7", b"other") };
    assert!(!authority.is_lease_of(&second.lease, &deployer).unwrap());
    let third = authority.authorise_holder(&deployer, None, after(20)).unwrap();

    let live: Vec<String> =
        authority.leases(false).unwrap().into_iter().map(|lease| lease.id).collect();
    assert_eq!(live, [third.lease.id]);
    let ended = authority.lease(&first.lease.id).unwrap().unwrap();
    assert_eq!(ended.end.unwrap().cause, "superseded");
}

#[test]
fn a_role_that_is_gone_gives_nothing() {
    let authority = authority();
    let stranger = KeyHolder { role: "nobody", ..holder("ci-7", KEY) };

    assert!(authority.authorise_holder(&stranger, None, NOW).is_err());
    assert_eq!(authority.leases(true).unwrap(), []);
}

#[test]
fn an_exhausted_pool_gives_nothing() {
    let mut settings = settings();
    settings.pools.get_mut("runners").unwrap().networks = vec!["10.77.0.0/30".parse().unwrap()];
    let authority = authority();
    authority.reconfigure(settings).unwrap();
    connect(&authority, "ci-7", KEY, 0);

    let refused = authority.authorise_holder(&holder("ci-8", KEY), None, NOW).unwrap_err();

    assert!(matches!(refused, AccessError::Failed(Error::PoolExhausted { .. })), "{refused}");
}

#[test]
fn the_store_holds_neither_the_key_nor_its_digest() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::<MemoryStore>::clone(&store));
    connect(&authority, "ci-7", KEY, 0);

    let digest = ring::digest::digest(&ring::digest::SHA256, KEY);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut seen = 0;
    for (_, entry) in store.range("", None, 1000).unwrap() {
        seen += 1;
        for secret in [KEY, hex.as_bytes(), base64(digest.as_ref()).as_bytes()] {
            assert!(!entry.value.windows(secret.len()).any(|window| window == secret));
        }
    }
    assert!(seen > 3);
    let shown = format!("{:?}", holder("ci-7", KEY));
    assert!(!shown.contains("battery") && shown.contains("key_octets: 28"), "{shown}");
}

#[test]
fn connections_at_once_share_one_lease() {
    let authority = authority();
    let ids: BTreeSet<String> = std::thread::scope(|scope| {
        let connecting: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let access = authority.authorise_holder(&holder("ci-7", KEY), None, NOW);
                    access.unwrap().lease.id
                })
            })
            .collect();
        connecting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    assert_eq!(ids.len(), 1);
    assert_eq!(authority.leases(true).unwrap().len(), 1);
}
