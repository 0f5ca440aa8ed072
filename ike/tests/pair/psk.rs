//! Shared keys (RFC 7296 2.15, 4): who has the key is who it says, on either side or on both.

use ike::config::{LocalAuth, RemoteAuth};
use ike::crypto::SecretBytes;
use ike::event::CloseReason;
use ike::io::{Action, Command, Completion, LeaseId, OwnProof, SharedKey};
use ike::wire::{
    AuthMethod, Authentication, ExchangeType, IdType, Identification, NotifyType, Payload, Payloads,
};

use crate::harness::*;
use crate::spy::Spy;

const KEY: &[u8] = b"correct horse battery staple";

fn key(octets: &[u8]) -> SharedKey {
    SharedKey { key: SecretBytes::copy_from(octets), own: OwnProof::SharedKey }
}

/// Both sides authenticate with a shared key; each has its own idea of it.
fn sharing(client: &[u8], server: &[u8]) -> Pair {
    let mut setup = Setup::new().quiet();
    setup.target.local_auth = LocalAuth::SharedKey;
    setup.target.remote_auth = RemoteAuth::SharedKey;
    let mut pair = setup.build();
    let (ours, theirs) = (pair.target.identity.clone(), pair.target.expected.clone().unwrap());
    pair.client.shared_keys.insert(theirs, key(client));
    pair.server.shared_keys.insert(ours, key(server));
    pair
}

/// What IKE_AUTH carried, the request's and the response's payloads.
fn auth_messages(pair: &mut Pair) -> (Payloads, Payloads) {
    pair.step();
    pair.step();
    let spy = Spy::of(pair);
    let request = pair.step().unwrap();
    let response = pair.wire.front().unwrap().clone();
    pair.run();
    (spy.hear(&request).payloads().unwrap(), spy.hear(&response).payloads().unwrap())
}

fn methods(messages: &(Payloads, Payloads)) -> (AuthMethod, AuthMethod) {
    (messages.0.auth().unwrap().method, messages.1.auth().unwrap().method)
}

#[test]
fn a_key_on_both_sides_makes_a_tunnel_without_certificates() {
    let mut pair = sharing(KEY, KEY);
    pair.initiate();

    let messages = auth_messages(&mut pair);

    pair.assert_connected();
    assert_eq!(methods(&messages), (AuthMethod::SharedKeyMic, AuthMethod::SharedKeyMic));
    for payloads in [&messages.0, &messages.1] {
        assert_eq!(payloads.certs().count(), 0);
        assert_eq!(payloads.cert_requests().count(), 0);
    }
    assert_eq!(pair.server.established()[0].identity.as_deref(), Some("client.example.com"));
    assert_eq!(pair.client.established()[0].identity.as_deref(), Some("gw.example.com"));
    pair.assert_no_leaks();
}

#[test]
fn a_responder_with_a_certificate_serves_an_initiator_with_a_key() {
    // RFC 7296 4: this combination must be possible.
    let mut pair = sharing(KEY, KEY);
    pair.target.remote_auth = RemoteAuth::Certificate;
    let own = OwnProof::Certificate;
    let client = pair.target.identity.clone();
    pair.server.shared_keys.get_mut(&client).unwrap().own = own;
    pair.initiate();

    let messages = auth_messages(&mut pair);

    pair.assert_connected();
    assert_eq!(methods(&messages), (AuthMethod::SharedKeyMic, AuthMethod::DigitalSignature));
    assert_eq!(messages.0.cert_requests().count(), 1);
    assert_eq!((messages.0.certs().count(), messages.1.certs().count()), (0, 1));
    pair.assert_no_leaks();
}

#[test]
fn a_certificate_is_no_answer_to_who_expects_a_key_nor_a_key_to_who_expects_a_certificate() {
    for (expected, own) in [
        (RemoteAuth::SharedKey, OwnProof::Certificate),
        (RemoteAuth::Certificate, OwnProof::SharedKey),
    ] {
        let mut pair = sharing(KEY, KEY);
        pair.target.remote_auth = expected;
        let client = pair.target.identity.clone();
        pair.server.shared_keys.get_mut(&client).unwrap().own = own;

        pair.initiate();
        pair.run();

        assert_eq!(pair.client.codes(), ["auth_method"]);
        // The responder had established it, and is told (RFC 7296 2.21.2).
        assert_eq!(pair.server.ends(), [CloseReason::PeerDeleted]);
        pair.assert_nothing_installed();
        pair.assert_no_leaks();
    }
}

/// A handshake that the server refuses; the request's and the response's length.
fn refused(mut pair: Pair, code: &str) -> usize {
    pair.initiate();
    let messages = auth_messages(&mut pair);

    assert_eq!(pair.server.codes(), [code]);
    assert_eq!(pair.client.codes(), ["auth_refused"]);
    // Nothing but the notify: no identity, no certificate.
    let told: Vec<_> = messages.1.iter().collect();
    let [Payload::Notify(notify)] = told.as_slice() else {
        panic!("{told:?}");
    };
    assert_eq!((notify.kind, notify.data.len()), (NotifyType::AuthenticationFailed, 0));
    pair.assert_nothing_installed();
    assert!(pair.server.alive().is_empty() && pair.client.alive().is_empty());
    let octets = messages.1.encode().unwrap().1.len();
    pair.assert_no_leaks();
    octets
}

#[test]
fn a_wrong_key_and_an_unknown_identity_look_the_same_to_the_peer() {
    let wrong = refused(sharing(b"another", KEY), "wrong_shared_key");

    let mut unknown = sharing(KEY, KEY);
    unknown.server.shared_keys.clear();

    assert_eq!(refused(unknown, "unknown_identity"), wrong);
}

#[test]
fn the_operator_reads_whose_key_is_wrong() {
    let mut pair = sharing(b"another", KEY);
    pair.initiate();
    pair.run();

    let refusal = pair.server.refusals()[0].clone();

    assert_eq!(refusal.identity, Some(Identification::fqdn("client.example.com")));
    assert!(refusal.what.contains("client.example.com"), "{refusal}");
    assert!(refusal.fix.contains("secret"), "{refusal}");
    pair.assert_no_leaks();
}

#[test]
fn a_mic_of_another_length_is_a_wrong_key() {
    for octets in [&b""[..], &[0; 47], &[0; 49]] {
        let mut pair = sharing(KEY, KEY);
        pair.initiate();
        pair.step();
        pair.step();
        let mut spy = Spy::of(&pair);
        let request = pair.lose();
        let mut payloads = Payloads::new();
        for payload in spy.hear(&request).payloads().unwrap().iter() {
            payloads.push(match payload {
                Payload::Auth(auth) => {
                    Payload::Auth(Authentication::new(auth.method, octets.to_vec()))
                }
                other => other.clone(),
            });
        }

        let forged = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 1, &payloads);
        pair.deliver(forged);

        assert_eq!(pair.server.codes(), ["wrong_shared_key"]);
        pair.assert_nothing_installed();
        pair.wire.clear();
        pair.assert_no_leaks();
    }
}

#[test]
fn a_responder_with_another_key_is_refused_by_the_initiator() {
    // Only the responder proves itself with the key; the initiator has a certificate.
    let mut pair = sharing(KEY, KEY);
    pair.target.local_auth = LocalAuth::Certificate(ike::io::CredentialId(1));
    pair.initiate();
    pair.run();
    assert_eq!(pair.client.codes(), ["auth_method"]);

    let mut pair = sharing(KEY, KEY);
    let expected = Some(Identification::fqdn("other.example.com"));
    pair.client.shared_keys.insert(expected.clone().unwrap(), key(KEY));
    pair.target.expected = expected;
    pair.initiate();
    pair.run();

    assert_eq!(pair.client.codes(), ["identity_mismatch"]);
    assert_eq!(pair.server.ends(), [CloseReason::PeerDeleted]);
    pair.assert_no_leaks();
}

#[test]
fn every_type_of_identity_can_share_a_key() {
    // RFC 7296 4: KEY_ID, FQDN, RFC822_ADDR; and the others.
    let identities = [
        Identification::key_id(vec![0, 1, 2, 0xff]),
        Identification::fqdn("ci.example.com"),
        Identification::rfc822("ci@example.com"),
        Identification::address("10.9.8.7".parse().unwrap()),
        Identification::address("2001:db8::7".parse().unwrap()),
        Identification::dn(vec![0x30, 0x00]),
    ];
    for identity in identities {
        let mut pair = sharing(KEY, KEY);
        pair.target.identity = identity.clone();
        pair.server.shared_keys.insert(identity.clone(), key(KEY));

        pair.initiate();
        pair.run();

        pair.assert_connected();
        let name = pair.server.established()[0].identity.clone();
        assert_eq!(name, Some(identity.to_string()));
        pair.assert_no_leaks();
    }
}

#[test]
fn an_identity_of_another_type_is_another_identity() {
    let mut pair = sharing(KEY, KEY);
    pair.target.identity = Identification::new(IdType::KeyId, b"client.example.com".to_vec());

    refused(pair, "unknown_identity");
}

#[test]
fn an_empty_key_authenticates_nobody() {
    refused(
        {
            let mut pair = sharing(KEY, b"");
            // A peer that knows nothing would compute with the same nothing.
            pair.client.shared_keys.values_mut().for_each(|shared| shared.key = key(KEY).key);
            pair
        },
        "empty_shared_key",
    );

    let mut pair = sharing(b"", KEY);
    pair.initiate();
    pair.run();
    assert_eq!(pair.client.codes(), ["empty_shared_key"]);
    pair.assert_nothing_installed();
    pair.wire.clear();
    pair.assert_no_leaks();
}

#[test]
fn a_key_that_is_never_found_ends_the_handshake() {
    for side in [Side::Client, Side::Server] {
        let mut pair = sharing(KEY, KEY);
        pair.peer(side).hold = |action| matches!(action, Action::SharedKey(_));
        pair.initiate();

        pair.run_for(std::time::Duration::from_secs(40));

        assert_eq!(pair.peer(side).codes(), ["timeout"]);
        assert!(pair.client.alive().is_empty() && pair.server.alive().is_empty());
        pair.assert_nothing_installed();
        pair.peer(side).held.clear();
        pair.assert_no_leaks();
    }
}

#[test]
fn a_lease_that_ends_while_the_key_is_looked_for_does_not_come_up() {
    let mut pair = sharing(KEY, KEY);
    pair.server.hold = |action| matches!(action, Action::SharedKey(_));
    pair.initiate();
    pair.run();

    let lease = LeaseId(LEASE.to_owned());
    pair.command(Side::Server, Command::CloseLease(lease, CloseReason::Revoked));
    pair.release(Side::Server, 0);
    pair.run();

    assert_eq!(pair.server.codes(), ["lease_ended"]);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn a_late_or_repeated_answer_changes_nothing() {
    let mut pair = sharing(KEY, KEY);
    pair.server.hold = |action| matches!(action, Action::SharedKey(_));
    pair.initiate();
    pair.run();
    let (token, _) = pair.server.held[0].clone();
    pair.release(Side::Server, 0);
    pair.run();
    pair.assert_connected();

    let answer = Completion::SharedKey(Ok(Box::new(key(b"another"))));
    pair.input(Side::Server, ike::Input::Completion(token, answer));
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn the_tunnel_survives_a_rekey_and_a_restart() {
    let mut pair = sharing(KEY, KEY);
    pair.initiate();
    pair.run();
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(ike));
    pair.run();
    pair.assert_connected();

    pair.restart(Side::Server);
    pair.run();

    pair.assert_connected();
}

/// A key has no later end to come with: who authenticates over and over with it would never stop.
#[test]
fn the_second_reauthentication_with_a_key_is_refused_for_a_while() {
    let mut pair = sharing(KEY, KEY);
    for _ in 0..2 {
        pair.initiate();
        pair.run();
    }
    assert_eq!(pair.server.codes(), Vec::<&str>::new(), "one is what RFC 4478 asks for");

    pair.run_for(std::time::Duration::from_secs(20));
    pair.initiate();
    pair.run();
    assert_eq!(pair.server.codes(), ["reauth_loop"]);
    let refused = &pair.server.refusals()[0];
    assert!(refused.what.contains("shared key") && refused.fix.contains("`ttl`"), "{refused:?}");
    assert!(!pair.server.established().is_empty(), "what is established stays");

    pair.run_for(std::time::Duration::from_secs(40));
    pair.initiate();
    pair.run();
    assert_eq!(pair.server.codes().len(), 1);
    pair.assert_no_leaks();
}

/// INITIAL_CONTACT says that it is no reauthentication: a client that was restarted connects.
#[test]
fn a_client_with_a_key_that_lost_its_sas_connects_at_once() {
    let mut pair = sharing(KEY, KEY);
    pair.target.initial_contact = true;
    for _ in 0..4 {
        pair.initiate();
        pair.run();
        assert_eq!(pair.server.established().len(), 1);
    }
    assert_eq!(pair.server.codes(), Vec::<&str>::new());
}
