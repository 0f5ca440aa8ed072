//! What a reserved token of a CI platform opens, and when it is judged.

use super::*;
use pki::enrol::jwt::{ClaimRule, Reviewed, TokenReview};

/// A job that may have two roles, both of which wait for an operator.
fn two_roles() -> World {
    World::with(|settings| {
        settings.roles.get_mut("deployer").unwrap().manual = true;
        let mut rule = settings.rules[0].clone();
        rule.role = "deployer".to_owned();
        settings.rules.push(rule);
    })
}

#[test]
fn an_approval_for_one_role_opens_no_lease_of_another() {
    let world = two_roles();
    let (jwt, client) = (world.jwt("two"), Client::new());
    let body = base64(&client.csr_with_password(&jwt)).into_bytes();
    let ask = |path: &str, now| world.authority.est(&est_request(path, None, &body), now);
    let of = |role: &str| format!("/.well-known/est/{role}/simpleenroll");
    let id = waiting(&ask(&of("builder"), after(1)));
    // Neither while it waits nor once it is approved.
    assert_eq!(ask(&of("deployer"), after(2)).status, 403);
    world.authority.decide_pending(&id, true, None, &OPERATOR, after(3)).unwrap();
    let other = ask(&of("deployer"), after(4));
    let text = String::from_utf8_lossy(&other.body).into_owned();
    assert_eq!(other.status, 403, "{text}");
    assert!(text.contains("of role builder, not of deployer"), "{text}");
    assert!(world.authority.leases(true).unwrap().is_empty());
    // Another order of the rules does not make it another role, either.
    let mut settings = World::settings();
    settings.roles.get_mut("deployer").unwrap().manual = true;
    settings
        .rules
        .insert(0, ClaimRule { role: "deployer".to_owned(), ..settings.rules[0].clone() });
    world.authority.reconfigure(settings).unwrap();
    assert_eq!(ask(PATH, after(5)).status, 403);
    assert_eq!(issued(&ask(&of("builder"), after(6))), id);
    assert_eq!(world.authority.lease(&id).unwrap().unwrap().role, "builder");
    let refused = world.authority.audit(0, 1_000).unwrap();
    let told = refused.iter().any(|r| r.event.reason.as_deref() == Some("token_wrong_role"));
    assert!(told, "it is in the audit trail");
}

fn reviewed(strict: bool) -> World {
    World::with(|settings| {
        settings.issuers[0].review = Some(TokenReview {
            url: "https://cluster.example.com".to_owned(),
            ca: None,
            token_file: "/nowhere".into(),
            strict,
        });
    })
}

#[test]
fn a_token_that_was_reviewed_when_it_was_reserved_is_not_reviewed_after_its_end() {
    let world = reviewed(true);
    let issuer = world.authority.settings().issuers[0].clone();
    let (jwt, client) = (world.jwt("pod"), Client::new());
    let ask = |now| world.authority.enrol_with_jwt(None, &jwt, &client.csr(), None, now);
    assert_eq!(ask(after(1)).unwrap_err().code, RefusalCode::JwtReviewUnavailable);
    assert_eq!(world.authority.jwt_review_wanted(&jwt, after(1)).as_ref(), Some(&issuer));
    world.authority.jwt_reviewed(&issuer, &jwt, Reviewed::Good, after(1));
    let pending = ask(after(2)).unwrap_err();
    assert_eq!(pending.code, RefusalCode::ApprovalPending);
    let id = pending.pending.unwrap().id;
    // As long as the token lives its cluster is asked each time.
    assert_eq!(ask(after(60)).unwrap_err().code, RefusalCode::JwtReviewUnavailable);
    assert_eq!(world.authority.jwt_review_wanted(&jwt, after(3_000)), None);
    assert_eq!(ask(after(3_000)).unwrap_err().code, RefusalCode::ApprovalPending);
    world.authority.decide_pending(&id, true, None, &OPERATOR, after(3_001)).unwrap();
    assert_eq!(ask(after(3_002)).unwrap().lease.id, id);
    // That is for what was reserved: another one that has expired opens nothing.
    let late =
        world.authority.enrol_with_jwt(None, &world.jwt("l"), &client.csr(), None, after(3_002));
    assert_eq!(late.unwrap_err().code, RefusalCode::JwtExpired);
}

#[test]
fn a_token_that_nobody_asked_about_in_time_is_not_accepted() {
    for strict in [true, false] {
        let world = reviewed(strict);
        let issuer = world.authority.settings().issuers[0].clone();
        let admit = |jwt: &str, now| {
            world.authority.jwt_admit(None, jwt, None, now).map(drop).map_err(|r| r.code)
        };
        let gone = world.jwt("gone");
        let unavailable = Err(RefusalCode::JwtReviewUnavailable);
        assert_eq!(admit(&gone, after(1)), unavailable, "strict: {strict}");
        let denied = Reviewed::Denied("pod not found".to_owned());
        world.authority.jwt_reviewed(&issuer, &gone, denied, after(1));
        // Asked for the last time just before the answer stops counting, judged just after.
        assert_eq!(world.authority.jwt_review_wanted(&gone, after(10)), None);
        assert_eq!(admit(&gone, after(12)), Err(RefusalCode::JwtReviewDenied));
        assert!(world.authority.jwt_review_wanted(&gone, after(12)).is_some());
        assert_eq!(admit(&gone, after(60)), unavailable, "strict: {strict}");
        // No answer is another thing.
        let silent = Reviewed::Unreachable("timeout".to_owned());
        world.authority.jwt_reviewed(&issuer, &world.jwt("a"), silent, after(61));
        let expected = if strict { unavailable } else { Ok(()) };
        assert_eq!(admit(&world.jwt("a"), after(62)), expected);
        assert_eq!(world.authority.jwt_review_wanted(&world.jwt("b"), after(62)), None);
    }
}

#[test]
fn a_restarted_gateway_fetches_keys_for_a_lease_that_waits() {
    let mut world = World::new();
    let (jwt, client) = (world.jwt("restarted"), Client::new());
    let ask =
        |world: &World, now| world.authority.enrol_with_jwt(None, &jwt, &client.csr(), None, now);
    let id = ask(&world, after(1)).unwrap_err().pending.unwrap().id;
    // Keys that were had by discovery are gone with the process.
    let options = Options::new(World::settings());
    world.authority =
        Authority::with_store(Arc::clone(&world.store), &[7; 32], options, after(3_000)).unwrap();
    let issuer = world.authority.settings().issuers[0].clone();
    let wanted = |token: &str| world.authority.jwt_keys_wanted(token, after(3_000));
    assert_eq!(wanted(&world.jwt("stranger")), KeysWanted::No, "expired, and nothing waits for it");
    assert_eq!(wanted(&jwt), KeysWanted::First(issuer.clone()));
    let keys = Ok(oidc::jwks(&[&world.key]));
    world.authority.jwt_keys_fetched_for(&issuer, &jwt, keys, after(3_000)).unwrap();
    assert_eq!(ask(&world, after(3_001)).unwrap_err().code, RefusalCode::ApprovalPending);
    world.authority.decide_pending(&id, true, None, &OPERATOR, after(3_002)).unwrap();
    assert_eq!(ask(&world, after(3_003)).unwrap().lease.id, id);
}
