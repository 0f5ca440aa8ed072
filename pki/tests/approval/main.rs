//! Leases that wait for an operator (`approval = "manual"`).
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod ended;
#[path = "../../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;
mod reserved;

use std::sync::Arc;

use common::*;
use pki::store::{MemoryStore, Store};
use pki::*;

const PATH: &str = "/.well-known/est/simpleenroll";

struct World {
    store: Arc<dyn Store>,
    authority: Authority,
    key: oidc::IssuerKey,
}

impl World {
    fn new() -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let key = oidc::IssuerKey::eddsa("k");
        Self { authority: Self::open(&store, &key), store, key }
    }

    /// Builders wait for an operator.
    fn settings() -> Settings {
        let mut settings = github_settings();
        settings.issuers[0].algorithms = vec![JwtAlgorithm::EdDsa];
        settings.roles.get_mut("builder").unwrap().manual = true;
        settings
    }

    fn open(store: &Arc<dyn Store>, key: &oidc::IssuerKey) -> Authority {
        let settings = Self::settings();
        let issuer = settings.issuers[0].clone();
        let options = Options::new(settings);
        let authority = Authority::with_store(Arc::clone(store), &[7; 32], options, NOW).unwrap();
        authority.jwt_keys_fetched(&issuer, Ok(oidc::jwks(&[key])), NOW).unwrap();
        authority
    }

    /// A world whose settings are other than [`Self::settings`].
    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let world = Self::new();
        let mut settings = Self::settings();
        change(&mut settings);
        let issuer = settings.issuers[0].clone();
        world.authority.reconfigure(settings).unwrap();
        world.authority.jwt_keys_fetched(&issuer, Ok(oidc::jwks(&[&world.key])), NOW).unwrap();
        world
    }

    /// A token of a job.
    fn jwt(&self, jti: &str) -> String {
        self.key.sign(&oidc::github(NOW.secs(), AUDIENCE, jti))
    }

    fn restart(&mut self) {
        self.authority = Self::open(&self.store, &self.key);
    }

    fn est(&self, secret: &TokenSecret, body: &[u8], now: UnixTime) -> EstReply {
        let credentials = basic("builder", secret.expose());
        self.authority.est(&est_request(PATH, Some(&credentials), body), now)
    }

    fn actions(&self) -> Vec<String> {
        let trail = self.authority.audit(0, 1_000).unwrap();
        trail.into_iter().map(|record| record.event.action).collect()
    }
}

fn waiting(reply: &EstReply) -> String {
    assert_eq!(reply.status, 202, "{}", String::from_utf8_lossy(&reply.body));
    assert!(reply.headers.contains(&("Retry-After", "10".to_owned())), "{:?}", reply.headers);
    match &reply.outcome {
        EstOutcome::Pending { lease_id, .. } => lease_id.clone(),
        other => panic!("{other:?}"),
    }
}

fn issued(reply: &EstReply) -> String {
    match &reply.outcome {
        EstOutcome::Issued { lease_id, .. } => lease_id.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_key_asks_again_until_an_operator_approves() {
    let mut world = World::new();
    let (secret, client) = (token(&world.authority), Client::new());
    let body = client.body();
    let id = waiting(&world.est(&secret, &body, NOW));
    // Nothing is taken meanwhile, and asking again makes no second request; long after the token
    // has expired, and after a restart.
    assert!(world.authority.leases(true).unwrap().is_empty());
    assert!(world.authority.certificates().unwrap().is_empty());
    world.restart();
    assert_eq!(waiting(&world.est(&secret, &body, after(1_800))), id);
    let listed = world.authority.pending_leases(after(1_800)).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].state(), listed[0].role.as_str()), ("pending", "builder"));
    assert_eq!(listed[0].spki_sha256, client.csr().spki_sha256);
    // The token is reserved: it opens nothing for another key.
    let thief = world.est(&secret, &Client::new().body(), after(1));
    assert_eq!(thief.status, 403);

    let operator = Actor::Uid(1_000);
    let decided = world.authority.decide_pending(&id, true, None, &operator, after(1_900)).unwrap();
    assert_eq!(decided.state(), "approved");
    // Repeating it changes nothing.
    world.authority.decide_pending(&id, true, None, &OPERATOR, after(1_901)).unwrap();
    world.restart();
    let reply = world.est(&secret, &body, after(2_000));
    assert_eq!(issued(&reply), id, "the lease has the id that was approved");
    assert_eq!(issued(&world.est(&secret, &body, after(2_010))), id, "a lost answer is repeated");
    assert_eq!(world.authority.leases(true).unwrap().len(), 1);
    assert!(world.authority.pending_leases(after(2_010)).unwrap().is_empty());
    assert_eq!(world.authority.tokens().unwrap()[0].spends.len(), 1);
    let trail = world.authority.audit(0, 1_000).unwrap();
    let approved = trail.iter().filter(|record| record.event.action == "lease.approve");
    let by: Vec<Actor> = approved.map(|record| record.event.actor.clone()).collect();
    assert_eq!(by, [operator]);
    assert!(world.actions().contains(&"lease.request".to_owned()));
}

#[test]
fn what_is_denied_stays_denied() {
    let world = World::new();
    let (secret, body) = (token(&world.authority), Client::new().body());
    let id = waiting(&world.est(&secret, &body, NOW));
    let reason = Some("not on release day");
    world.authority.decide_pending(&id, false, reason, &OPERATOR, after(5)).unwrap();
    let reply = world.est(&secret, &body, after(6));
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert_eq!(reply.status, 403);
    assert!(text.contains("not on release day"), "{text}");
    assert!(world.authority.leases(true).unwrap().is_empty());
    let none = world.authority.decide_pending("r-none", true, None, &OPERATOR, NOW).unwrap_err();
    assert!(matches!(none, Error::NotFound { .. }), "{none}");
}

#[test]
fn what_waited_leaves_no_key_behind() {
    let world = World::new();
    let keys = || -> Vec<String> {
        let all = world.store.range("", None, 10_000).unwrap();
        all.into_iter().map(|(key, _)| key).collect()
    };
    world.authority.crl(NOW).unwrap();
    let before = keys();
    let job = |jti: &str| {
        let jwt = world.key.sign(&oidc::github(NOW.secs(), AUDIENCE, jti));
        base64(&Client::new().csr_with_password(&jwt)).into_bytes()
    };
    let (approved, denied, late) = (job("approved"), job("denied"), job("late"));
    let ask = |body: &[u8], now| world.authority.est(&est_request(PATH, None, body), now);
    let id = waiting(&ask(&approved, after(1)));
    world.authority.decide_pending(&id, true, None, &OPERATOR, after(2)).unwrap();
    assert_eq!(issued(&ask(&approved, after(3))), id);
    let other = waiting(&ask(&denied, after(3)));
    world.authority.decide_pending(&other, false, None, &OPERATOR, after(4)).unwrap();
    waiting(&ask(&late, after(4)));
    let (secret, body) = (token(&world.authority), Client::new().body());
    let with_token = waiting(&world.est(&secret, &body, after(5)));
    world.authority.decide_pending(&with_token, true, None, &OPERATOR, after(6)).unwrap();
    assert_eq!(issued(&world.est(&secret, &body, after(7))), with_token);
    let there = keys();
    for prefix in ["pending/", "job/", "jwt/", "jwt-due/"] {
        assert!(there.iter().any(|key| key.starts_with(prefix)), "{prefix}: {there:?}");
    }
    for lease in [id, with_token] {
        world.authority.release(&lease, "client", &OPERATOR, after(8)).unwrap();
    }

    let now = after(30 * 86_400);
    world.authority.prune(now).unwrap();
    world.authority.crl(now).unwrap();

    let left: Vec<String> = keys().into_iter().filter(|key| !before.contains(key)).collect();
    let prefixes: Vec<&str> = left.iter().map(|key| key.split('/').next().unwrap()).collect();
    // Spent tokens of jobs go, many at a time, when others are spent; each has one place in the queue.
    let (spent, others): (Vec<&str>, Vec<&str>) =
        prefixes.into_iter().partition(|prefix| prefix.starts_with("jwt"));
    assert_eq!(spent, ["jwt-due", "jwt-due", "jwt-due", "jwt", "jwt", "jwt"], "{left:?}");
    assert_eq!(others, ["crl-trigger"], "{left:?}");
}

#[test]
fn nobody_waits_for_ever() {
    let world = World::new();
    let (secret, body) = (token(&world.authority), Client::new().body());
    let id = waiting(&world.est(&secret, &body, NOW));
    assert_eq!(world.authority.pending_leases(after(3_599)).unwrap().len(), 1);
    assert!(world.authority.pending_leases(after(3_600)).unwrap().is_empty());
    let late = world.authority.decide_pending(&id, true, None, &OPERATOR, after(3_600));
    assert!(late.is_err());
    assert_eq!(world.est(&secret, &body, after(3_600)).status, 403);
    world.authority.prune(after(3_601)).unwrap();
    let trail = world.authority.audit(0, 1_000).unwrap();
    let expired = trail.iter().find(|record| record.event.action == "lease.expire").unwrap();
    assert_eq!(expired.event.reason.as_deref(), Some("not_approved"));
    assert_eq!(world.est(&secret, &body, after(3_602)).status, 403);
}

#[test]
fn a_job_may_wait_longer_than_its_token_lives() {
    let world = World::new();
    let client = Client::new();
    let jwt = world.key.sign(&oidc::github(NOW.secs(), AUDIENCE, "waits"));
    let body = base64(&client.csr_with_password(&jwt)).into_bytes();
    let ask = |now| world.authority.est(&est_request(PATH, None, &body), now);
    let id = waiting(&ask(after(1)));
    let claims = &world.authority.pending_leases(after(1)).unwrap()[0].claims;
    assert_eq!(claims["repository"], "octo/app");
    // Its holder is told so at the lease as well, and a stranger nothing.
    let held = world.authority.lease_of_jwt(&jwt, after(2)).unwrap_err();
    assert_eq!(held.code, RefusalCode::ApprovalPending);
    let release = world.authority.release_token(&id);
    let held = world.authority.lease_of_bearer(&id, release.expose(), after(2)).unwrap_err();
    assert_eq!(held.code, RefusalCode::ApprovalPending);
    assert_eq!(waiting(&ask(after(3_000))), id, "the token has expired, its reservation has not");
    let stolen = base64(&Client::new().csr_with_password(&jwt)).into_bytes();
    let thief = world.authority.est(&est_request(PATH, None, &stolen), after(3_000));
    assert_eq!(thief.status, 403);
    world.authority.decide_pending(&id, true, None, &OPERATOR, after(3_100)).unwrap();
    assert_eq!(issued(&ask(after(3_200))), id);
    assert_eq!(issued(&ask(after(3_210))), id, "a lost answer is repeated");
    let lease = world.authority.lease(&id).unwrap().unwrap();
    assert_eq!((lease.ci_ref.run_id.as_deref(), lease.door.as_str()), (Some("7001"), "jwt"));
    // Another expired token of the issuer opens nothing.
    let other = world.key.sign(&oidc::github(NOW.secs(), AUDIENCE, "late"));
    let late = base64(&client.csr_with_password(&other)).into_bytes();
    assert_eq!(world.authority.est(&est_request(PATH, None, &late), after(3_000)).status, 401);
}

#[test]
fn an_exchanged_token_waits_for_its_job() {
    let world = World::new();
    let client = Client::new();
    let jwt = world.key.sign(&oidc::github(NOW.secs(), AUDIENCE, "swapped"));
    let accepted = world.authority.jwt_admit(None, &jwt, None, after(1)).unwrap();
    let hash = client.csr().spki_sha256;
    let given = world.authority.token_exchange(&accepted, &hash, None, after(1)).unwrap();
    let id = waiting(&world.est(&given.secret, &client.body(), after(2)));
    world.authority.decide_pending(&id, true, None, &OPERATOR, after(3)).unwrap();
    assert_eq!(issued(&world.est(&given.secret, &client.body(), after(4))), id);
    assert_eq!(world.authority.lease_of_jwt(&jwt, after(5)).unwrap().id, id);
}

#[test]
fn waiting_leases_of_a_role_are_bounded() {
    let world = World::new();
    let create = TokenCreate { uses: 1_000, ..TokenCreate::new("builder") };
    let secret = world.authority.token_create(&create, &OPERATOR, NOW).unwrap().1;
    let ask = |now| world.est(&secret, &Client::new().body(), now);
    for _ in 0..200 {
        waiting(&ask(NOW));
    }
    let reply = ask(after(1));
    assert_eq!(reply.status, 503);
    assert!(reply.headers.iter().any(|(name, _)| *name == "Retry-After"));
    assert_eq!(world.authority.pending_leases(after(1)).unwrap().len(), 200);
    // What nobody decided makes room by itself.
    let create = TokenCreate::new("builder");
    let later = world.authority.token_create(&create, &OPERATOR, after(3_600)).unwrap().1;
    waiting(&world.est(&later, &Client::new().body(), after(3_601)));
}

#[test]
fn a_barred_key_is_not_let_in_by_approval() {
    let world = World::new();
    let (client, secret) = (Client::new(), token(&world.authority));
    let id = waiting(&world.est(&secret, &client.body(), NOW));
    world.authority.decide_pending(&id, true, None, &OPERATOR, after(1)).unwrap();
    let selector = RevokeSelector::Spki(client.csr().spki_sha256);
    let reason = RevocationReason::KeyCompromise;
    world.authority.revoke(&selector, reason, &OPERATOR, after(2)).unwrap();
    let reply = world.est(&secret, &client.body(), after(3));
    assert_eq!(reply.status, 403);
    assert!(world.authority.leases(true).unwrap().is_empty());
}

#[test]
fn a_rule_decides_for_its_own_jobs() {
    let world = World::new();
    let configure = |role: bool, rule: Option<bool>| {
        let mut settings = world.authority.settings().as_ref().clone();
        settings.roles.get_mut("builder").unwrap().manual = role;
        settings.rules[0].manual = rule;
        world.authority.reconfigure(settings).unwrap();
    };
    let ask = |jti: &str| {
        let jwt = world.key.sign(&oidc::github(NOW.secs(), AUDIENCE, jti));
        world.authority.enrol_with_jwt(None, &jwt, &Client::new().csr(), None, after(1))
    };
    for (role, rule, waits) in [
        (true, None, true),
        (false, None, false),
        (false, Some(true), true),
        (true, Some(false), false),
    ] {
        configure(role, rule);
        let asked = ask(&format!("{role} {rule:?}"));
        match asked {
            Err(refusal) => {
                assert!(waits, "{role} {rule:?}");
                assert_eq!(refusal.code, RefusalCode::ApprovalPending);
            }
            Ok(_) => assert!(!waits, "{role} {rule:?}"),
        }
    }
    // Other proofs go by the role alone; a key that is made here waits for nobody.
    configure(false, Some(true));
    issued(&world.est(&token(&world.authority), &Client::new().body(), after(2)));
    let mut settings = world.authority.settings().as_ref().clone();
    settings.roles.get_mut("builder").unwrap().server_keys = true;
    world.authority.reconfigure(settings).unwrap();
    let jwt = world.key.sign(&oidc::github(NOW.secs(), AUDIENCE, "made"));
    let accepted = world.authority.jwt_admit(None, &jwt, None, after(2)).unwrap();
    let made = world.authority.enrol_accepted_keyed(&accepted, None, None, after(2));
    assert_eq!(made.unwrap_err().code, RefusalCode::ServerKeysOff);
}

#[test]
fn a_client_may_give_up() {
    let mut world = World::new();
    let (client, secret) = (Client::new(), token(&world.authority));
    let id = waiting(&world.est(&secret, &client.body(), NOW));
    let held = world.authority.cancel_pending(&id, &Actor::System, after(1));
    held.unwrap();
    assert!(world.authority.pending_leases(after(1)).unwrap().is_empty());
    let again = world.authority.cancel_pending(&id, &Actor::System, after(2));
    assert!(matches!(again, Err(Error::NotFound { .. })), "{again:?}");
    assert!(world.authority.decide_pending(&id, true, None, &OPERATOR, after(2)).is_err());
    world.restart();
    // Its token is spent: it cannot wait a second time.
    let reply = world.est(&secret, &client.body(), after(3));
    assert_eq!(reply.status, 403);
    assert!(world.actions().contains(&"lease.release".to_owned()), "{:?}", world.actions());
}
