//! Post-quantum preshared keys (RFC 8784): every row of the tables in its section 3.

use ike::config::{LocalAuth, PpkUse, RemoteAuth};
use ike::crypto::SecretBytes;
use ike::event::CloseReason;
use ike::io::{Action, Command, Input, Output, OwnProof, SharedKey};
use ike::wire::{NotifyType, Payloads};

use crate::harness::*;
use crate::spy::Spy;

const ID: &[u8] = b"ppk-1";
const KEY: &[u8] = b"a secret that no quantum computer knows";

/// What each side knows: `None` is no key at all.
fn pair(client: Option<(&[u8], bool)>, server: Option<&[u8]>) -> Pair {
    let mut setup = Setup::new().quiet();
    setup.server.ppk = server.is_some();
    setup.target.ppk = client.map(|(_, required)| PpkUse { id: ID.to_vec(), required });
    let mut pair = setup.build();
    if let Some((key, _)) = client {
        pair.client.ppks.insert(ID.to_vec(), SecretBytes::copy_from(key));
    }
    if let Some(key) = server.filter(|key| !key.is_empty()) {
        pair.server.ppks.insert(ID.to_vec(), SecretBytes::copy_from(key));
    }
    pair
}

/// Connects; what IKE_AUTH carried.
fn connect(pair: &mut Pair) -> (Payloads, Payloads) {
    pair.initiate();
    pair.step();
    pair.step();
    let spy = Spy::of(pair);
    let request = pair.step().unwrap();
    let response = pair.wire.front().unwrap().clone();
    pair.run();
    (spy.hear(&request).payloads().unwrap(), spy.hear(&response).payloads().unwrap())
}

/// Whether a side's driver was told that the key is part of the SA.
fn used(peer: &Peer) -> bool {
    peer.outputs.iter().any(|output| match output {
        Output::Action(_, Action::Authorise(request)) => request.ppk,
        _ => false,
    })
}

#[test]
fn both_sides_mix_the_key_in() {
    for required in [true, false] {
        let mut pair = pair(Some((KEY, required)), Some(KEY));

        let (request, response) = connect(&mut pair);

        pair.assert_connected();
        assert!(used(&pair.client) && used(&pair.server));
        let named = request.notify(NotifyType::PpkIdentity).unwrap();
        assert_eq!(named.data, [&[2], ID].concat());
        assert_eq!(request.has_notify(NotifyType::NoPpkAuth), !required);
        assert_eq!(response.notify(NotifyType::PpkIdentity).unwrap().data, b"");
        pair.assert_no_leaks();
    }
}

#[test]
fn the_children_and_successors_keys_depend_on_it() {
    let mut pair = pair(Some((KEY, true)), Some(KEY));
    pair.initiate();
    pair.step();
    pair.step();
    let plain = Spy::of(&pair).keys.d;
    pair.run();
    let snapshot = pair.server.snapshots.values().next().unwrap();
    assert!(snapshot.keys.d != plain);

    // Both sides derive the same from it, also after a rekey and a restart.
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(ike));
    pair.run();
    pair.assert_connected();
    let child = *pair.client.plane.keys().next().unwrap();
    pair.command(Side::Client, Command::RekeyChild(child));
    pair.run();
    pair.assert_connected();
    pair.restart(Side::Server);
    pair.run();
    pair.assert_connected();
}

#[test]
fn an_optional_key_that_only_one_side_has_is_left_out() {
    // The server has no keys at all; has others; the client has none.
    for (mut pair, asked) in [
        (pair(Some((KEY, false)), None), false),
        (pair(Some((KEY, false)), Some(b"")), true),
        (pair(None, Some(KEY)), false),
    ] {
        let (request, response) = connect(&mut pair);

        pair.assert_connected();
        assert!(!used(&pair.client) && !used(&pair.server));
        assert_eq!(request.has_notify(NotifyType::PpkIdentity), asked);
        assert!(!response.has_notify(NotifyType::PpkIdentity));
        let ike = pair.client.established()[0].id;
        pair.command(Side::Client, Command::RekeyIke(ike));
        pair.run();
        pair.assert_connected();
        pair.assert_no_leaks();
    }
}

#[test]
fn a_required_key_that_the_responder_lacks_ends_the_handshake() {
    // It does not take part at all.
    let mut without = pair(Some((KEY, true)), None);
    without.initiate();
    without.run_for(std::time::Duration::from_secs(60));
    assert_eq!(without.client.codes(), ["ppk_refused"]);
    without.assert_nothing_installed();
    without.assert_no_leaks();

    // It has others.
    let mut others = pair(Some((KEY, true)), Some(b""));
    connect(&mut others);
    assert_eq!(others.server.codes(), ["unknown_ppk"]);
    assert_eq!(others.client.codes(), ["auth_refused"]);
    others.assert_nothing_installed();
    others.assert_no_leaks();
}

#[test]
fn another_key_of_the_same_name_is_a_failed_authentication() {
    for required in [true, false] {
        let mut pair = pair(Some((KEY, required)), Some(b"another key of the same name"));

        connect(&mut pair);

        // RFC 8784 3: a responder that has a key of this name uses it.
        assert_eq!(pair.server.codes(), ["bad_signature"]);
        pair.assert_nothing_installed();
        pair.assert_no_leaks();
    }
}

#[test]
fn a_required_key_that_we_lack_is_never_done_without() {
    let mut pair = pair(Some((KEY, true)), Some(KEY));
    pair.client.ppks.clear();

    pair.initiate();
    pair.run();

    assert_eq!(pair.client.codes(), ["unknown_ppk"]);
    pair.assert_nothing_installed();
    pair.wire.clear();
    pair.assert_no_leaks();
}

#[test]
fn a_responder_that_says_nothing_of_the_required_key_is_refused() {
    let mut pair = pair(Some((KEY, true)), Some(KEY));
    pair.initiate();
    pair.step();
    pair.step();
    let mut spy = Spy::of(&pair);
    pair.step();
    let response = pair.lose();
    let mut payloads = Payloads::new();
    for payload in spy.hear(&response).payloads().unwrap().iter() {
        let ours = |kind| matches!(payload, ike::wire::Payload::Notify(n) if n.kind == kind);
        if !ours(NotifyType::PpkIdentity) {
            payloads.push(payload.clone());
        }
    }

    let said = spy.say(&pair, Side::Server, ike::wire::ExchangeType::IkeAuth, true, 1, &payloads);
    pair.deliver(said);

    assert_eq!(pair.client.codes(), ["ppk_refused"]);
    assert_eq!(pair.client.inbound(), []);
    pair.run();
    assert_eq!(pair.server.ends(), [CloseReason::PeerDeleted]);
    pair.assert_no_leaks();
}

#[test]
fn it_goes_together_with_a_shared_key() {
    for (required, server) in [(true, Some(KEY)), (false, Some(KEY)), (false, Some(&b""[..]))] {
        let mut pair = pair(Some((KEY, required)), server);
        pair.target.local_auth = LocalAuth::SharedKey;
        pair.target.remote_auth = RemoteAuth::SharedKey;
        let key = SecretBytes::copy_from(b"shared by both");
        let key = SharedKey { key, own: OwnProof::SharedKey };
        let (client, gateway) = (pair.target.identity.clone(), pair.target.expected.clone());
        pair.server.shared_keys.insert(client, key.clone());
        pair.client.shared_keys.insert(gateway.unwrap(), key);

        connect(&mut pair);

        pair.assert_connected();
        assert_eq!(used(&pair.server), server == Some(KEY));
        pair.assert_no_leaks();
    }
}

#[test]
fn a_lost_answer_about_the_key_ends_the_handshake() {
    for side in [Side::Client, Side::Server] {
        let mut pair = pair(Some((KEY, true)), Some(KEY));
        pair.peer(side).hold = |action| matches!(action, Action::Ppk(_));
        pair.initiate();

        pair.run_for(std::time::Duration::from_secs(40));

        assert_eq!(pair.peer(side).codes(), ["timeout"]);
        pair.assert_nothing_installed();
        pair.peer(side).held.clear();
        pair.assert_no_leaks();
    }
}

#[test]
fn a_key_that_comes_twice_is_mixed_in_once() {
    let mut pair = pair(Some((KEY, true)), Some(KEY));
    pair.server.hold = |action| matches!(action, Action::Ppk(_));
    pair.initiate();
    pair.run();
    let (token, _) = pair.server.held[0].clone();
    pair.release(Side::Server, 0);
    let again = ike::Completion::Ppk(Ok(SecretBytes::copy_from(KEY)));
    pair.input(Side::Server, Input::Completion(token, again));
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}
