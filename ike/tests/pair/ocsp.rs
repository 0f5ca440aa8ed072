//! OCSP answers inside IKE (RFC 4806): who asks with a CERTREQ gets what the other side keeps.

use ike::io::{Action, Output};
use ike::wire::{CertEncoding, Payloads};

use crate::harness::*;
use crate::spy::Spy;

const OURS: &[u8] = b"what the gateway keeps about its certificate";
const THEIRS: &[u8] = b"what the client keeps about its own";

/// Each side keeps an answer; each may ask for the other's.
fn pair(client_asks: bool, server_asks: bool) -> Pair {
    let mut setup = Setup::new().quiet();
    setup.client.credentials[0].ocsp = vec![THEIRS.to_vec()];
    setup.server.credentials[0].ocsp = vec![OURS.to_vec()];
    setup.client.request_ocsp = client_asks;
    setup.server.request_ocsp = server_asks;
    setup.build()
}

/// What this side was asked to verify about the other.
fn brought_to(peer: &Peer) -> Vec<Vec<u8>> {
    let verify = peer.outputs.iter().find_map(|output| match output {
        Output::Action(_, Action::VerifyPeer(verify)) => Some(verify.ocsp.clone()),
        _ => None,
    });
    verify.unwrap()
}

fn requests(payloads: &Payloads) -> usize {
    let ocsp = |encoding| encoding == CertEncoding::OcspContent;
    payloads.cert_requests().filter(|request| ocsp(request.encoding)).count()
}

#[test]
fn ocsp_answers_go_to_whoever_asks() {
    for (client_asks, server_asks) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut pair = pair(client_asks, server_asks);
        pair.initiate();
        pair.run();

        pair.assert_connected();
        let expected = |asked: bool, kept: &[u8]| match asked {
            true => vec![kept.to_vec()],
            false => Vec::new(),
        };
        assert_eq!(brought_to(&pair.client), expected(client_asks, OURS));
        assert_eq!(brought_to(&pair.server), expected(server_asks, THEIRS));
    }
}

/// RFC 4806 3.1: encoding 14; no hash in it means any responder.
#[test]
fn the_request_for_ocsp_names_no_responder() {
    let mut pair = pair(true, true);
    pair.initiate();
    pair.step();
    pair.step();
    let spy = Spy::of(&pair);
    let request = spy.hear(&pair.step().unwrap()).payloads().unwrap();
    let response = spy.hear(&pair.wire.front().unwrap().clone()).payloads().unwrap();

    assert_eq!((requests(&request), requests(&response)), (1, 0));
    let asked = request.cert_requests().find(|r| r.encoding == CertEncoding::OcspContent).unwrap();
    assert_eq!(asked.authorities, []);
    for (payloads, kept) in [(&request, THEIRS), (&response, OURS)] {
        let encodings: Vec<_> = payloads.certs().map(|cert| cert.encoding).collect();
        assert_eq!(encodings, [CertEncoding::X509Signature, CertEncoding::OcspContent]);
        assert_eq!(payloads.certs().last().unwrap().data, kept);
    }
}

#[test]
fn a_peer_cannot_bring_more_answers_than_certificates() {
    let mut setup = Setup::new().quiet();
    setup.client.credentials[0].ocsp = (0..20).map(|number| vec![number]).collect();
    setup.server.request_ocsp = true;
    let max = setup.server.limits.max_certificates;
    let mut pair = setup.build();

    pair.initiate();
    pair.run();

    assert_eq!(brought_to(&pair.server).len(), max);
}
