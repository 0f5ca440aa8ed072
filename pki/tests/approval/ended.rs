//! What waits ends with what it is of, and an approval can be taken back.

use super::*;
use pki::enrol::jwt::ClaimPattern;
use pki::hook::{HookKind, HookSource, JobOver};

/// A lease of a job that waits, and how its client asks.
fn job_waits(world: &World, jti: &str) -> (String, String, Client) {
    let (jwt, client) = (world.jwt(jti), Client::new());
    let refused = world.authority.enrol_with_jwt(None, &jwt, &client.csr(), None, after(1));
    (refused.unwrap_err().pending.unwrap().id, jwt, client)
}

fn denied(world: &World, jwt: &str, client: &Client, now: UnixTime) -> String {
    let refused = world.authority.enrol_with_jwt(None, jwt, &client.csr(), None, now).unwrap_err();
    assert_eq!(refused.code, RefusalCode::ApprovalDenied, "{refused}");
    refused.detail
}

#[test]
fn revocation_reaches_what_waits() {
    type Select = fn(&str, &Client) -> RevokeSelector;
    let selectors: [Select; 6] = [
        |id, _| RevokeSelector::Lease(id.to_owned()),
        |_, client| RevokeSelector::Spki(client.csr().spki_sha256),
        |_, _| RevokeSelector::Identity("spiffe://ci.example.com/ci/github".to_owned()),
        |_, _| RevokeSelector::Role("builder".to_owned()),
        |_, _| RevokeSelector::Run { run: "7001".to_owned(), issuer: None },
        |_, _| RevokeSelector::Issuer("github".to_owned()),
    ];
    for (index, select) in selectors.into_iter().enumerate() {
        // Approved or not: neither has opened anything.
        for approved in [false, true] {
            let world = World::new();
            let (id, jwt, client) = job_waits(&world, "a");
            if approved {
                world.authority.decide_pending(&id, true, None, &OPERATOR, after(2)).unwrap();
            }
            let selector = select(&id, &client);
            let reason = RevocationReason::PrivilegeWithdrawn;
            let outcome = world.authority.revoke(&selector, reason, &OPERATOR, after(3)).unwrap();
            assert_eq!(outcome.cancelled, [id], "selector {index}");
            assert!(outcome.changes.is_empty() && outcome.serials.is_empty());
            let barred = matches!(selector, RevokeSelector::Spki(_) | RevokeSelector::Run { .. });
            assert_eq!(outcome.barred.len() + outcome.barred_keys, usize::from(barred));
            let told = denied(&world, &jwt, &client, after(4));
            assert!(told.contains("revoked: privilege-withdrawn"), "{told}");
            assert!(world.authority.leases(true).unwrap().is_empty());
        }
    }
    // Others go on waiting.
    let world = World::new();
    let (id, ..) = job_waits(&world, "a");
    let other = RevokeSelector::Role("deployer".to_owned());
    let none = world.authority.revoke(&other, RevocationReason::default(), &OPERATOR, after(2));
    assert!(matches!(none, Err(Error::NotFound { .. })), "{none:?}");
    assert_eq!(world.authority.pending_leases(after(3)).unwrap()[0].id, id);
}

#[test]
fn a_key_that_is_barred_with_its_lease_waits_for_nothing() {
    let world = World::with(|settings| {
        settings.roles.get_mut("deployer").unwrap().manual = false;
    });
    let (client, first) = (Client::new(), TokenCreate::new("deployer"));
    let first = world.authority.token_create(&first, &OPERATOR, NOW).unwrap().1;
    let live =
        world.authority.enrol_with_token("deployer", first.expose(), &client.csr(), None, NOW);
    let live = live.unwrap().lease.id;
    let second = token(&world.authority);
    let waits = waiting(&world.est(&second, &client.body(), NOW));
    let outcome = world
        .authority
        .revoke(&RevokeSelector::Lease(live), RevocationReason::KeyCompromise, &OPERATOR, after(1))
        .unwrap();
    assert_eq!((outcome.cancelled, outcome.barred_keys), (vec![waits], 1));
}

#[test]
fn what_waits_ends_with_its_job() {
    let world = World::new();
    let (id, jwt, client) = job_waits(&world, "a");
    let source = HookSource {
        kind: HookKind::Github,
        issuer: "github".to_owned(),
        iss: GITHUB.to_owned(),
        secrets: Vec::new(),
    };
    let over = |run: &str, project: &str| JobOver {
        kind: HookKind::Github,
        run: run.to_owned(),
        attempt: Some("1".to_owned()),
        job: Some("88001".to_owned()),
        project: project.to_owned(),
    };
    let cancel = |source: &HookSource, over: &JobOver| {
        world.authority.cancel_of_job(source, over, &OPERATOR, after(2)).unwrap()
    };
    let none: [String; 0] = [];
    assert_eq!(cancel(&source, &over("7002", "123456")), none, "another run");
    assert_eq!(cancel(&source, &over("7001", "999")), none, "another project");
    let elsewhere = HookSource { iss: "https://ghes.example.com".to_owned(), ..source.clone() };
    assert_eq!(cancel(&elsewhere, &over("7001", "123456")), none, "another issuer");
    assert_eq!(cancel(&source, &over("7001", "123456")), [id]);
    assert!(denied(&world, &jwt, &client, after(3)).contains("its job is over"));
    assert_eq!(cancel(&source, &over("7001", "123456")), none, "once");
}

#[test]
fn what_waits_ends_with_its_token() {
    let world = World::new();
    let (secret, other) = (token(&world.authority), token(&world.authority));
    let id = waiting(&world.est(&secret, &Client::new().body(), NOW));
    let stays = waiting(&world.est(&other, &Client::new().body(), NOW));
    world.authority.token_revoke(secret.expose(), &OPERATOR, after(1)).unwrap();
    let states: Vec<_> = world.authority.pending_leases(after(2)).unwrap();
    let of = |id: &str| states.iter().find(|pending| pending.id == id).unwrap().state();
    assert_eq!((of(&id), of(&stays)), ("denied", "pending"));
}

#[test]
fn an_approval_is_taken_back_and_a_denial_is_not() {
    let world = World::new();
    let (id, jwt, client) = job_waits(&world, "a");
    let decide = |approved, now| {
        world.authority.decide_pending(&id, approved, Some("not now"), &Actor::Uid(1_000), now)
    };
    assert_eq!(decide(true, after(2)).unwrap().state(), "approved");
    assert_eq!(decide(false, after(3)).unwrap().state(), "denied");
    assert!(denied(&world, &jwt, &client, after(4)).contains("not now"));
    let again = decide(true, after(5)).unwrap_err().to_string();
    assert!(again.contains("was denied by uid:1000"), "{again}");
    assert!(world.authority.leases(true).unwrap().is_empty());
}

#[test]
fn what_was_approved_late_can_still_be_collected_and_not_for_ever() {
    let world = World::new();
    let (quick, slow) = (job_waits(&world, "quick"), job_waits(&world, "slow"));
    for (id, ..) in [&quick, &slow] {
        world.authority.decide_pending(id, true, None, &OPERATOR, after(3_590)).unwrap();
    }
    let collect = |(_, jwt, client): &(String, String, Client), now| {
        world.authority.enrol_with_jwt(None, jwt, &client.csr(), None, now)
    };
    assert_eq!(collect(&quick, after(4_100)).unwrap().lease.id, quick.0);
    let late = collect(&slow, after(4_190)).unwrap_err();
    assert_eq!(late.code, RefusalCode::ApprovalDenied);
    assert!(late.detail.contains("was approved at") && late.detail.contains("not collected"));
    world.authority.prune(after(4_200)).unwrap();
    let trail = world.authority.audit(0, 1_000).unwrap();
    let expired = trail.iter().find(|record| record.event.action == "lease.expire").unwrap();
    assert_eq!(expired.event.reason.as_deref(), Some("not_collected"));
}

#[test]
fn who_is_denied_gives_its_place_back() {
    let world = World::new();
    let create = TokenCreate { uses: 1_000, ..TokenCreate::new("builder") };
    let secret = world.authority.token_create(&create, &OPERATOR, NOW).unwrap().1;
    let ask = |client: &Client, now| world.est(&secret, &client.body(), now);
    let first = Client::new();
    let mut ids = vec![waiting(&ask(&first, NOW))];
    ids.extend((1..200).map(|_| waiting(&ask(&Client::new(), NOW))));
    assert_eq!(ask(&Client::new(), after(1)).status, 503);
    assert_eq!(world.authority.limits_met()[&LimitKind::Waiting], 1);
    let refused = world.authority.audit(0, 10_000).unwrap();
    let told = refused.iter().any(|r| r.event.reason.as_deref() == Some("too_many_waiting"));
    assert!(told, "it is in the audit trail");
    world.authority.decide_pending(&ids[0], false, None, &OPERATOR, after(2)).unwrap();
    let next = waiting(&ask(&Client::new(), after(3)));
    assert_eq!(ask(&Client::new(), after(3)).status, 503);
    // Who was denied is told so for a while; then its token, which opens more than one lease, is
    // its own again.
    assert_eq!(ask(&first, after(301)).status, 403);
    world.authority.decide_pending(&next, false, None, &OPERATOR, after(302)).unwrap();
    assert!(!ids.contains(&waiting(&ask(&first, after(303)))));
    let token = &world.authority.tokens().unwrap()[0];
    let own = token.spends.iter().filter(|spend| spend.spki_sha256 == first.csr().spki_sha256);
    assert_eq!(own.count(), 1, "a use that opened nothing is not spent");
}

#[test]
fn a_job_and_a_project_leave_room_to_others() {
    let mut world = World::with(|settings| {
        settings.limits.leases_per_job = 2;
        let both = ["123456", "999"].map(ClaimPattern::new).to_vec();
        settings.rules[0].claims.insert("repository_id".to_owned(), both);
    });
    let ask = |world: &World, jwt: &str, now| {
        let refused = world.authority.enrol_with_jwt(None, jwt, &Client::new().csr(), None, now);
        refused.unwrap_err()
    };
    let first = ask(&world, &world.jwt("1"), after(1)).pending.unwrap().id;
    assert_eq!(ask(&world, &world.jwt("2"), after(1)).code, RefusalCode::ApprovalPending);
    let third = ask(&world, &world.jwt("3"), after(1));
    assert_eq!(third.code, RefusalCode::TooManyLeases);
    assert!(third.retry_after().is_some());
    world.authority.decide_pending(&first, false, None, &OPERATOR, after(2)).unwrap();
    assert_eq!(ask(&world, &world.jwt("4"), after(3)).code, RefusalCode::ApprovalPending);

    // Many jobs of one project.
    world = World::with(|settings| {
        let both = ["123456", "999"].map(ClaimPattern::new).to_vec();
        settings.rules[0].claims.insert("repository_id".to_owned(), both);
    });
    for n in 0..100 {
        let mut claims = oidc::github(NOW.secs(), AUDIENCE, &format!("job {n}"));
        claims["check_run_id"] = n.to_string().into();
        let jwt = world.key.sign(&claims);
        assert_eq!(ask(&world, &jwt, after(1)).code, RefusalCode::ApprovalPending, "{n}");
    }
    assert_eq!(ask(&world, &world.jwt("more"), after(1)).code, RefusalCode::TooManyWaiting);
    let mut claims = oidc::github(NOW.secs(), AUDIENCE, "other");
    claims["repository_id"] = "999".into();
    claims["repository"] = "octo/other".into();
    let other = world.key.sign(&claims);
    assert_eq!(ask(&world, &other, after(1)).code, RefusalCode::ApprovalPending);
}

#[test]
fn limits_are_about_what_is_opened_and_not_about_asking_again() {
    let world = World::with(|settings| {
        settings.roles.get_mut("builder").unwrap().max_leases = Some(1);
    });
    let (first, second) = (job_waits(&world, "a"), job_waits(&world, "b"));
    let ask = |(_, jwt, client): &(String, String, Client), now| {
        world.authority.enrol_with_jwt(None, jwt, &client.csr(), None, now)
    };
    world.authority.decide_pending(&first.0, true, None, &OPERATOR, after(2)).unwrap();
    ask(&first, after(3)).unwrap();
    // The role is full, which is no reason to stop waiting.
    assert_eq!(ask(&second, after(4)).unwrap_err().code, RefusalCode::ApprovalPending);
    assert!(world.authority.limits_met().is_empty());
    world.authority.decide_pending(&second.0, true, None, &OPERATOR, after(5)).unwrap();
    assert_eq!(ask(&second, after(6)).unwrap_err().code, RefusalCode::TooManyLeases);
    world.authority.release(&first.0, "client", &OPERATOR, after(7)).unwrap();
    assert_eq!(ask(&second, after(8)).unwrap().lease.id, second.0);
}

#[test]
fn what_waits_is_denied_when_nobody_knows_what_was_revoked() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let open = |at, accept_loss: Option<&str>| {
        let options = || {
            let mut options = Options::new(World::settings());
            options.accept_loss = accept_loss.map(str::to_owned);
            options
        };
        reopen(&state, options, after(at))
    };
    let authority = open(0, None).unwrap();
    let (secret, client) = (token(&authority), Client::new());
    let ask = |authority: &Authority, at| {
        authority.enrol_with_token("builder", secret.expose(), &client.csr(), None, at).unwrap_err()
    };
    let id = ask(&authority, after(1)).pending.unwrap().id;
    authority.decide_pending(&id, true, None, &OPERATOR, after(2)).unwrap();
    drop(authority);
    std::fs::remove_file(state.join("revocations.journal")).unwrap();
    let sentence = open(50, None).unwrap_err().to_string();
    let (_, accepted) = sentence.split_once("--accept-loss-after ").unwrap();
    let (accepted, _) = accepted.split_once('`').unwrap();
    let authority = open(50, Some(accepted)).unwrap();
    let pending = authority.pending_leases(after(51)).unwrap();
    assert_eq!((pending[0].id.as_str(), pending[0].state()), (id.as_str(), "denied"));
    assert_eq!(ask(&authority, after(52)).code, RefusalCode::TokenRevoked);
}
