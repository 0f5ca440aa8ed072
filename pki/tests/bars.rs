//! Revocation sticks: what it keeps out, for how long, and how it is let in again.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;

use std::sync::Arc;

use common::*;
use oidc::IssuerKey;
use pki::enrol::jwt::{Issuer, IssuerKind, KeySource};
use pki::store::{MemoryStore, Store};
use pki::*;
use serde_json::json;

const DAY: u64 = 86_400;

fn revoke(authority: &Authority, selector: &RevokeSelector, at: u64) -> RevokeOutcome {
    authority.revoke(selector, RevocationReason::KeyCompromise, &OPERATOR, after(at)).unwrap()
}

fn lease(id: &str) -> RevokeSelector {
    RevokeSelector::Lease(id.to_owned())
}

fn with_new_token(authority: &Authority, client: &Client, at: u64) -> Result<Enrolled, Refusal> {
    let secret = authority.token_create(&TokenCreate::new("builder"), &OPERATOR, after(at));
    let secret = secret.unwrap().1;
    authority.enrol_with_token("builder", secret.expose(), &client.csr(), None, after(at))
}

fn is_live(authority: &Authority, id: &str) -> bool {
    authority.lease(id).unwrap().unwrap().state.is_live()
}

#[test]
fn a_revoked_key_gets_no_lease_with_a_new_token_until_its_bar_is_lifted() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store));
    let (client, first) = enrolled(&authority);

    let done = revoke(&authority, &lease(&first.lease.id), 1);
    assert_eq!((done.barred_keys, done.barred.len()), (1, 0));

    // Also after a restart, and after the lease is forgotten.
    drop(authority);
    let authority = authority_on(store);
    authority.prune(after(30 * DAY)).unwrap();
    assert!(authority.lease(&first.lease.id).unwrap().is_none());
    let refused = with_new_token(&authority, &client, 30 * DAY).unwrap_err();
    assert_eq!((refused.code, refused.code.status()), (RefusalCode::KeyBarred, 403));
    let hash = &first.lease.spki_sha256;
    for words in [hash.as_str(), "key-compromise", "make a new key", "runnel bar lift key-"] {
        assert!(refused.detail.contains(words), "{words}: {}", refused.detail);
    }
    let audit = authority.audit(0, 1_000).unwrap();
    let told = audit.iter().find(|r| r.event.reason.as_deref() == Some("key_barred")).unwrap();
    assert_eq!(told.event.spki_sha256.as_ref(), Some(hash));
    with_new_token(&authority, &Client::new(), 30 * DAY).unwrap();

    let bars = authority.bars().unwrap();
    assert_eq!(bars.len(), 1);
    let (id, what) = (bars[0].what.id(), &bars[0].what);
    assert_eq!((what, bars[0].at), (&Barred::Key(hash.clone()), after(1)));
    assert_eq!(bars[0].lease.as_ref(), Some(&first.lease.id));
    authority.lift_bar(&id, &OPERATOR, after(30 * DAY)).unwrap();
    assert!(matches!(
        authority.lift_bar(&id, &OPERATOR, after(30 * DAY)),
        Err(Error::NotFound { .. })
    ));
    with_new_token(&authority, &client, 30 * DAY).unwrap();
    let audit = authority.audit(0, 1_000).unwrap();
    let lifted: Vec<_> = audit.iter().filter(|r| r.event.action == "bar.lift").collect();
    assert_eq!(lifted.len(), 1);
    assert_eq!(
        (&lifted[0].event.actor, &lifted[0].event.spki_sha256),
        (&OPERATOR, &told.event.spki_sha256)
    );
}

#[test]
fn a_released_or_expired_key_is_not_barred() {
    let authority = authority();
    let (client, first) = enrolled(&authority);
    authority.release(&first.lease.id, "admin", &OPERATOR, after(1)).unwrap();
    with_new_token(&authority, &client, 2).unwrap();
    authority.expire_due(after(2 * DAY)).unwrap();
    with_new_token(&authority, &client, 2 * DAY).unwrap();
    assert_eq!(authority.bars().unwrap(), []);
}

#[test]
fn no_lease_is_renewed_to_a_barred_key() {
    let authority = authority();
    let (leaked, first) = enrolled(&authority);
    let (_, mine) = enrolled(&authority);
    let presented = peer(&authority, &mine, after(1));
    revoke(&authority, &lease(&first.lease.id), 2);

    let refused = authority.renew(&presented, &leaked.csr(), None, after(3)).unwrap_err();
    assert_eq!(refused.code, RefusalCode::KeyBarred);
    authority.renew(&presented, &Client::new().csr(), None, after(3)).unwrap();
}

#[test]
fn every_key_a_lease_had_is_barred() {
    let authority = authority();
    let (old, first) = enrolled(&authority);
    let new = Client::new();
    authority.renew(&peer(&authority, &first, NOW), &new.csr(), None, after(1)).unwrap();

    assert_eq!(revoke(&authority, &lease(&first.lease.id), 2).barred_keys, 2);

    for client in [&old, &new] {
        assert_eq!(with_new_token(&authority, client, 3).unwrap_err().code, RefusalCode::KeyBarred);
    }
}

#[test]
fn a_key_without_a_lease_is_barred_ahead_of_its_first_one() {
    let authority = authority();
    let client = Client::new();
    let hash = client.csr().spki_sha256;
    let done = revoke(&authority, &RevokeSelector::Spki(hash.to_uppercase()), 1);
    assert_eq!((done.barred_keys, done.changes.len()), (1, 0));
    assert_eq!(with_new_token(&authority, &client, 2).unwrap_err().code, RefusalCode::KeyBarred);
    assert_eq!(revoke(&authority, &RevokeSelector::Spki(hash.clone()), 3).barred_keys, 0);
    authority.lift_bar(&hash, &OPERATOR, after(4)).unwrap();
    with_new_token(&authority, &client, 5).unwrap();
}

#[test]
fn other_live_leases_of_a_barred_key_end_with_it() {
    let authority = authority();
    let (client, first) = enrolled(&authority);
    authority.release(&first.lease.id, "client", &OPERATOR, after(1)).unwrap();
    let second = with_new_token(&authority, &client, 2).unwrap().lease;
    let (_, other) = enrolled(&authority);

    // The one that is named had ended; the key lives on in another.
    let done = revoke(&authority, &lease(&first.lease.id), 3);

    assert_eq!(done.changes.len(), 2);
    assert!(!is_live(&authority, &second.id));
    assert!(is_live(&authority, &other.lease.id));
}

fn holder<'a>(name: &'a str, key: &'a [u8]) -> KeyHolder<'a> {
    let id = IkeId { kind: 2, data: name.as_bytes() };
    KeyHolder { id, name, role: "builder", key, door: KeyHolder::DOOR }
}

#[test]
fn revoking_an_ended_lease_of_a_shared_key_ends_the_one_it_has_now() {
    let authority = authority();
    let client = holder("ci-7", b"a key that leaked");
    let first = authority.authorise_holder(&client, None, NOW).unwrap().lease;
    authority.release(&first.id, "admin", &OPERATOR, after(1)).unwrap();
    let second = authority.authorise_holder(&client, None, after(2)).unwrap().lease;
    assert_ne!(first.id, second.id);

    let done = revoke(&authority, &lease(&first.id), 3);

    assert_eq!(done.barred, ["ci-7"]);
    let ended: Vec<_> = done.changes.iter().filter(|change| change.end_tunnels).collect();
    assert_eq!((ended.len(), &ended[0].lease.id), (1, &second.id));
    assert!(matches!(
        authority.authorise_holder(&client, None, after(4)),
        Err(AccessError::HolderRevoked { .. })
    ));
}

#[test]
fn revoking_a_lease_of_a_former_shared_key_says_which_lease_is_the_latest() {
    let authority = authority();
    let first = authority.authorise_holder(&holder("ci-7", b"old"), None, NOW).unwrap().lease;
    let second = authority.authorise_holder(&holder("ci-7", b"new"), None, after(1)).unwrap().lease;

    let refused =
        authority.revoke(&lease(&first.id), RevocationReason::KeyCompromise, &OPERATOR, after(2));

    let sentence = refused.unwrap_err().to_string();
    assert!(sentence.contains("another key since") && sentence.contains(&second.id), "{sentence}");
    assert!(is_live(&authority, &second.id), "nothing was done");
}

/// The bar is of the identity and the key it had: another key lets it in, the barred one never
/// again, however often the key is changed in between.
#[test]
fn going_back_to_a_barred_shared_key_opens_nothing() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store));
    let open = |key: &[u8], at| authority.authorise_holder(&holder("ci-7", key), None, after(at));
    let first = open(b"leaked", 0).unwrap().lease;
    revoke(&authority, &lease(&first.id), 1);
    for (at, key) in [(2, &b"second"[..]), (3, b"third")] {
        open(key, at).unwrap();
    }

    let Err(AccessError::HolderRevoked { lease: named, at, .. }) = open(b"leaked", 4) else {
        panic!("the barred key opened a lease")
    };
    assert_eq!((named, at), (first.id, after(1)));
    let bars = authority.bars().unwrap();
    assert_eq!(bars.len(), 1);
    assert!(bars[0].sentence().contains("client ci-7"), "{}", bars[0].sentence());
    authority.lift_bar(&bars[0].what.id(), &OPERATOR, after(5)).unwrap();
    assert!(open(b"leaked", 6).is_ok() && authority.bars().unwrap().is_empty());
}

#[test]
fn revoking_an_ended_lease_of_a_site_ends_the_one_it_has_now() {
    let authority = authority();
    let site =
        SitePeer { site: "Office", subject: "CN=gw", spki_sha256: "ab", until: after(3_600) };
    let first = authority.site_lease(&site, NOW).unwrap();
    authority.release(&first.id, "admin", &OPERATOR, after(1)).unwrap();
    let second = authority.site_lease(&site, after(2)).unwrap();

    let done = revoke(&authority, &lease(&first.id), 3);

    assert_eq!(done.barred, ["Office"]);
    assert!(!is_live(&authority, &second.id));
    assert!(authority.site_lease(&site, after(4)).is_err());
    authority.lift_bar("site-Office", &OPERATOR, after(5)).unwrap();
    assert!(authority.site_lease(&site, after(6)).is_ok());
}

#[test]
fn the_key_of_an_external_certificate_is_barred_in_every_certificate() {
    let authority = authority();
    let external = |serial: &'static str, key: &'static [u8]| KeyHolder {
        door: KeyHolder::EXTERNAL,
        ..holder(serial, key)
    };
    let key = b"a public key, DER";
    let first = authority.authorise_holder(&external("serial-1", key), None, NOW).unwrap().lease;
    let second = authority.authorise_holder(&external("serial-2", key), None, NOW).unwrap().lease;

    let done = revoke(&authority, &lease(&first.id), 1);

    assert_eq!((done.barred_keys, done.changes.len()), (1, 2));
    assert!(!is_live(&authority, &second.id), "the same key");
    for serial in ["serial-1", "serial-2", "serial-3"] {
        let refused = authority.authorise_holder(&external(serial, key), None, after(2));
        assert!(matches!(refused, Err(AccessError::KeyBarred(_))), "{serial}: {refused:?}");
    }
    authority.authorise_holder(&external("serial-1", b"another"), None, after(2)).unwrap();
    let site = SitePeer {
        site: "office",
        subject: "CN=gw",
        spki_sha256: &first.spki_sha256,
        until: after(3_600),
    };
    assert!(matches!(authority.site_lease(&site, after(2)), Err(AccessError::KeyBarred(_))));
    authority.lift_bar(&first.spki_sha256, &OPERATOR, after(3)).unwrap();
    authority.authorise_holder(&external("serial-2", key), None, after(4)).unwrap();
}

/// The list of another CA had a certificate: that one stays out, also when the list cannot be had
/// later. Its CA may have replaced it, with the same key.
#[test]
fn a_certificate_that_its_own_ca_revoked_is_barred_and_its_key_is_not() {
    let authority = authority();
    let external =
        |serial: &'static str| KeyHolder { door: KeyHolder::EXTERNAL, ..holder(serial, b"key") };
    let first = authority.authorise_holder(&external("serial-1"), None, NOW).unwrap().lease;
    let told = lease(&first.id);

    let done = authority.revoke(&told, RevocationReason::Unspecified, &Actor::System, after(1));

    assert_eq!(done.unwrap().barred_keys, 0);
    let refused = authority.authorise_holder(&external("serial-1"), None, after(2));
    assert!(matches!(refused, Err(AccessError::HolderRevoked { .. })), "{refused:?}");
    authority.authorise_holder(&external("serial-2"), None, after(3)).unwrap();
    let bars = authority.bars().unwrap();
    authority.lift_bar(&bars[0].what.id(), &OPERATOR, after(4)).unwrap();
    authority.authorise_holder(&external("serial-1"), None, after(5)).unwrap();
}

#[test]
fn identities_are_forgotten_with_their_leases_unless_they_are_barred() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store) as Arc<dyn Store>);
    let names: Vec<String> = (0..20).map(|number| format!("ci-{number}")).collect();
    let mut leases = Vec::new();
    for name in &names {
        let external = KeyHolder { door: KeyHolder::EXTERNAL, ..holder(name, name.as_bytes()) };
        leases.push(authority.authorise_holder(&external, None, NOW).unwrap().lease);
        authority.authorise_holder(&holder(name, b"shared"), None, NOW).unwrap();
    }
    let shared = authority.authorise_holder(&holder("ci-3", b"shared"), None, NOW).unwrap().lease;
    revoke(&authority, &lease(&shared.id), 1);
    revoke(&authority, &lease(&leases[3].id), 1);
    let holders = || store.range("holder/", None, 1_000).unwrap().len();
    assert_eq!(holders(), 40);

    authority.expire_due(after(3 * DAY)).unwrap();
    authority.prune(after(30 * DAY)).unwrap();

    assert_eq!(
        holders(),
        1,
        "the barred shared key; the barred certificate's key is barred itself"
    );
    assert_eq!(store.range("spki/", None, 10).unwrap(), []);
    let refused = authority.authorise_holder(&holder("ci-3", b"shared"), None, after(30 * DAY));
    assert!(matches!(refused, Err(AccessError::HolderRevoked { .. })), "{refused:?}");
    assert_eq!(authority.bars().unwrap().len(), 2);
}

/// GitHub twice, under the names `github` and `enterprise`, and Jenkins.
fn ci() -> (Authority, IssuerKey) {
    let key = IssuerKey::es256("es-1");
    let mut settings = github_settings();
    let keys = || KeySource::File("/nowhere".into());
    let other = "https://github.example.com/_services/token";
    settings.issuers.push(Issuer::new("enterprise", IssuerKind::Github, other, AUDIENCE, keys()));
    let mut rule = settings.rules[0].clone();
    rule.issuer = "enterprise".to_owned();
    settings.rules.push(rule);
    for issuer in &mut settings.issuers {
        issuer.algorithms = vec![JwtAlgorithm::Es256];
    }
    let authority = authority();
    authority.reconfigure(settings.clone()).unwrap();
    for issuer in &settings.issuers {
        authority.jwt_keys_fetched(issuer, Ok(oidc::jwks(&[&key])), NOW).unwrap();
    }
    (authority, key)
}

struct Job<'a>(&'a Authority, &'a IssuerKey);

impl Job<'_> {
    fn enrol(&self, iss: &str, run: &str, jti: &str) -> Result<Enrolled, Refusal> {
        let mut claims = oidc::github(NOW.secs(), AUDIENCE, jti);
        claims["iss"] = json!(iss);
        claims["run_id"] = json!(run);
        let token = self.1.sign(&claims);
        self.0.enrol_with_jwt(None, &token, &Client::new().csr(), None, after(1))
    }
}

fn run(run: &str, issuer: Option<&str>) -> RevokeSelector {
    RevokeSelector::Run { run: run.to_owned(), issuer: issuer.map(str::to_owned) }
}

const ENTERPRISE: &str = "https://github.example.com/_services/token";

#[test]
fn a_revoked_run_opens_no_lease_with_another_token_or_key() {
    let (authority, key) = ci();
    let job = Job(&authority, &key);
    let first = job.enrol(GITHUB, "4711", "a").unwrap().lease;

    let done = revoke(&authority, &run("4711", None), 2);

    assert_eq!(done.changes.len(), 1);
    assert!(done.barred[0].contains("run 4711") && done.barred[0].contains(GITHUB), "{done:?}");
    let refused = job.enrol(GITHUB, "4711", "b").unwrap_err();
    assert_eq!((refused.code, refused.code.status()), (RefusalCode::RunBarred, 403));
    assert!(refused.detail.contains("start a new run"), "{}", refused.detail);
    job.enrol(GITHUB, "4712", "c").unwrap();
    job.enrol(ENTERPRISE, "4711", "d").unwrap();
    let bars = authority.bars().unwrap();
    let of_run: Vec<_> = bars.iter().filter(|b| matches!(b.what, Barred::Run(_))).collect();
    assert_eq!((of_run.len(), of_run[0].lease.as_ref()), (1, Some(&first.id)));
    authority.lift_bar(&of_run[0].what.id(), &OPERATOR, after(3)).unwrap();
    job.enrol(GITHUB, "4711", "e").unwrap();
}

#[test]
fn a_run_that_two_issuers_have_is_revoked_at_one_by_its_name() {
    let (authority, key) = ci();
    let job = Job(&authority, &key);
    let here = job.enrol(GITHUB, "4711", "a").unwrap().lease;
    let there = job.enrol(ENTERPRISE, "4711", "b").unwrap().lease;

    let both = authority.select(&run("4711", None)).unwrap_err().to_string();
    for words in [GITHUB, ENTERPRISE, "name the issuer"] {
        assert!(both.contains(words), "{both}");
    }
    let refused =
        authority.revoke(&run("4711", None), RevocationReason::Unspecified, &OPERATOR, after(2));
    assert!(matches!(refused, Err(Error::Invalid(_))));
    assert!(is_live(&authority, &here.id) && is_live(&authority, &there.id));

    let done = revoke(&authority, &run("4711", Some("enterprise")), 3);

    assert_eq!(done.changes.len(), 1);
    assert!(is_live(&authority, &here.id) && !is_live(&authority, &there.id));
    job.enrol(GITHUB, "4711", "c").unwrap();
    assert_eq!(job.enrol(ENTERPRISE, "4711", "d").unwrap_err().code, RefusalCode::RunBarred);
}

#[test]
fn a_run_without_a_lease_is_barred_when_its_issuer_is_named() {
    let (authority, key) = ci();
    let job = Job(&authority, &key);
    let refused =
        authority.revoke(&run("4711", None), RevocationReason::Unspecified, &OPERATOR, after(1));
    assert!(matches!(refused, Err(Error::NotFound { .. })), "whose run?");

    assert_eq!(revoke(&authority, &run("4711", Some("github")), 2).barred.len(), 1);

    assert_eq!(job.enrol(GITHUB, "4711", "a").unwrap_err().code, RefusalCode::RunBarred);
    job.enrol(ENTERPRISE, "4711", "b").unwrap();
}

#[test]
fn a_token_of_several_uses_acts_on_none_of_its_leases() {
    let authority = authority();
    let create = TokenCreate { uses: 2, ..TokenCreate::new("builder") };
    let secret = authority.token_create(&create, &OPERATOR, NOW).unwrap().1;
    let lease = Client::new().enrol(&authority, &secret, NOW).lease;
    Client::new().enrol(&authority, &secret, NOW);

    let refused = authority.lease_of_bearer(&lease.id, secret.expose(), after(1)).unwrap_err();

    assert_eq!(refused.code, RefusalCode::CertificateUnusable);
    assert!(refused.detail.contains("release token"), "{}", refused.detail);
    let own = authority.release_token(&lease.id);
    assert_eq!(authority.lease_of_bearer(&lease.id, own.expose(), after(1)).unwrap().id, lease.id);
    // A token of one use has one lease.
    let secret = token(&authority);
    let lease = Client::new().enrol(&authority, &secret, NOW).lease;
    assert_eq!(authority.lease_of_bearer(&lease.id, secret.expose(), after(1)).unwrap(), lease);
}

/// Whichever is second, enrolment or revocation, sees the first: no lease of the key is left.
#[test]
fn enrolling_while_the_key_is_revoked_leaves_no_live_lease() {
    for _ in 0..20 {
        let authority = authority();
        let client = Client::new();
        let hash = client.csr().spki_sha256;
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| drop(with_new_token(&authority, &client, 1)));
            }
            scope.spawn(|| revoke(&authority, &RevokeSelector::Spki(hash.clone()), 1));
        });
        assert_eq!(authority.leases(false).unwrap(), []);
        assert!(authority.key_bar(&hash).unwrap().is_some());
    }
}
