//! Every algorithm of RFC 8247 and RFC 8221 in a whole handshake, and every weak one refused by
//! name.

use ike::crypto::{EncrId, EspSuite, IkeSuite, IntegId, KeMethod, PrfId};
use ike::wire::{Message, NotifyType, Payload, Payloads, Proposal, SecurityAssociation, Transform};

use crate::harness::*;

/// Suites that together hold every algorithm.
const IKE: &[&str] = &[
    "aes128-sha256-prfsha256-modp2048",
    "aes256-sha256-prfsha256-modp2048",
    "aes256-sha512-prfsha512-ecp384",
    "aes192-sha384-prfsha384-ecp256",
    "aes128gcm16-prfsha256-ecp256",
    "aes192gcm16-prfsha256-ecp256",
    "aes256gcm16-prfsha384-ecp384",
    "aes256gcm12-prfsha512-x25519",
    "aes256gcm8-prfsha256-x25519",
    "chacha20poly1305-prfsha256-x25519",
    "aes256gcm16-prfsha256-modp3072",
    "aes256gcm16-prfsha256-modp4096",
];

const ESP: &[&str] = &[
    "aes128-sha256",
    "aes256-sha256",
    "aes256-sha384",
    "aes256-sha512",
    "aes128gcm16",
    "aes256gcm16",
    "aes256gcm12",
    "aes256gcm8",
    "chacha20poly1305",
];

#[test]
fn every_ike_algorithm_of_rfc_8247_connects_and_rekeys() {
    for suite in IKE {
        let mut setup = Setup::new().quiet().suites(suite, "aes256gcm16-noesn");
        setup.target.first_ke = setup.target.ike_suites[0].kex;
        let mut pair = Pair::connected_with(setup);
        assert_eq!(pair.server.established()[0].suite.as_deref(), Some(*suite));

        let id = pair.client.established()[0].id;
        pair.command(Side::Client, ike::Command::RekeyIke(id));
        pair.run();
        pair.assert_connected();
        assert_eq!(pair.server.established()[0].suite.as_deref(), Some(*suite));
        pair.assert_no_leaks();
    }
}

#[test]
fn every_esp_algorithm_of_rfc_8221_is_agreed_on_with_both_sizes_of_sequence_numbers() {
    for suite in ESP {
        for esn in [true, false] {
            let text = format!("{suite}-{}", if esn { "esn" } else { "noesn" });
            let setup = Setup::new().quiet().suites("aes256gcm16-prfsha384-x25519", &text);
            let mut pair = Pair::connected_with(setup);
            let child = *pair.client.plane.keys().next().unwrap();
            pair.command(Side::Client, ike::Command::RekeyChild(child));
            pair.run();

            pair.assert_connected();
            let agreed = &pair.server.plane.values().next().unwrap().suite;
            assert_eq!(agreed, &esp(&text)[0]);
            let keys = &pair.server.plane.values().next().unwrap().keys_in;
            assert_eq!((keys.encr.len(), keys.integ.len()), agreed.key_lengths().unwrap());
            pair.assert_no_leaks();
        }
    }
}

/// strongSwan offers 32 bits unless told otherwise; a plane may have only those.
#[test]
fn the_size_of_sequence_numbers_is_what_both_sides_can() {
    let both = "aes256gcm16-esn-noesn";
    for (client, server, esn) in [
        (both, both, true),
        ("aes256gcm16-noesn", both, false),
        (both, "aes256gcm16-noesn", false),
        ("aes256gcm16-esn", both, true),
    ] {
        let mut setup = Setup::new().quiet();
        setup.client.esp_suites = esp(client);
        setup.target.esp_suites = esp(client);
        setup.server.esp_suites = esp(server);
        let pair = Pair::connected_with(setup);

        assert_eq!(pair.server.plane.values().next().unwrap().suite.esn, esn);
        pair.assert_no_leaks();
    }
}

/// RFC 8247 2, RFC 8221 5: what clients that come with their systems offer is among our defaults. None
/// of them asks for a certificate (RFC 7296 3.7), and ours goes out all the same.
#[test]
fn native_clients_share_a_suite_with_our_defaults() {
    let clients = [
        ("iOS and macOS", "aes256-sha256-prfsha256-modp2048", "aes256-sha256-noesn"),
        ("iOS with a profile", "aes256-sha256-prfsha256-ecp256", "aes256-sha256-noesn"),
        ("Windows with its policy", "aes256-sha256-prfsha256-modp2048", "aes256gcm16-noesn"),
        ("Android", "aes256gcm16-prfsha384-x25519", "aes256gcm16-noesn"),
    ];
    for (name, ike_suite, esp_suite) in clients {
        let mut setup = Setup::new().quiet().suites(ike_suite, esp_suite);
        setup.target.first_ke = setup.target.ike_suites[0].kex;
        setup.client.trust_anchor_hashes.clear();
        // But what the tests' first provider lacks: ML-KEM and P-521.
        let lacks = |suite: &IkeSuite| {
            !suite.additional.is_empty() || suite.to_string().ends_with("-ecp521")
        };
        setup.server.ike_suites =
            IkeSuite::defaults().into_iter().filter(|suite| !lacks(suite)).collect();
        setup.server.esp_suites = EspSuite::defaults();
        let pair = Pair::connected_with(setup);

        assert_eq!(pair.server.established()[0].suite.as_deref(), Some(ike_suite), "{name}");
        let child = pair.server.plane.values().next().unwrap();
        assert_eq!(child.suite, esp(esp_suite)[0], "{name}");
        pair.assert_no_leaks();
    }
}

/// What a peer that knows nothing better would offer: each weak algorithm alone of its type.
fn offer(weak: &Transform) -> SecurityAssociation {
    let strong = [
        Transform::encr(EncrId::AesCbc, Some(256)),
        Transform::prf(PrfId::HmacSha2_256),
        Transform::integ(IntegId::HmacSha2_256_128),
        Transform::ke(KeMethod::Curve25519),
    ];
    let transforms = strong
        .into_iter()
        .map(|transform| if transform.kind() == weak.kind() { weak.clone() } else { transform });
    let proposal = Proposal::new(1, ike::wire::ProtocolId::Ike, transforms.collect());
    SecurityAssociation::new(vec![proposal])
}

#[test]
fn each_weak_algorithm_is_refused_and_the_clients_setting_is_named() {
    const GROUP: &str = "NegotiateDH2048_AES256";
    const CIPHER: &str = "-EncryptionMethod AES256";
    const HASH: &str = "-IntegrityCheckMethod SHA256";
    let table = [
        (Transform::ke(KeMethod::Modp768), "modp768", GROUP),
        (Transform::ke(KeMethod::Modp1024), "modp1024", GROUP),
        (Transform::ke(KeMethod::Modp1536), "modp1536", GROUP),
        (Transform::ke(KeMethod::Modp1024s160), "modp1024s160", GROUP),
        (Transform::ke(KeMethod::Modp2048s224), "modp2048s224", GROUP),
        (Transform::ke(KeMethod::Modp2048s256), "modp2048s256", GROUP),
        (Transform::encr(EncrId::Des, None), "des", CIPHER),
        (Transform::encr(EncrId::TripleDes, None), "3des", CIPHER),
        (Transform::encr(EncrId::Blowfish, Some(128)), "blowfish", CIPHER),
        (Transform::encr(EncrId::Idea, None), "idea", CIPHER),
        (Transform::encr(EncrId::Cast, Some(128)), "cast128", CIPHER),
        (Transform::encr(EncrId::Null, None), "null", CIPHER),
        (Transform::integ(IntegId::HmacMd5_96), "md5", HASH),
        (Transform::integ(IntegId::HmacSha1_96), "sha1", HASH),
        (Transform::prf(PrfId::HmacMd5), "prfmd5", HASH),
        (Transform::prf(PrfId::HmacSha1), "prfsha1", HASH),
    ];
    for (weak, name, setting) in table {
        let all = "aes256-sha256-prfsha256-x25519-modp2048";
        let mut pair = Setup::new().quiet().suites(all, "aes256gcm16-noesn").build();
        pair.initiate();
        let mut flight = pair.lose();
        let message = Message::parse(&flight.datagram.payload).unwrap();
        let payloads = message.payloads.iter().map(|payload| match payload {
            Payload::Sa(_) => Payload::Sa(offer(&weak)),
            other => other.clone(),
        });
        let payloads = Payloads::from(payloads.collect::<Vec<_>>());
        flight.datagram.payload = Message { header: message.header, payloads }.encode().unwrap();
        pair.deliver(flight);

        assert_eq!(pair.server.codes(), ["no_proposal_chosen"], "{name}");
        let refusal = pair.server.refusals()[0].clone();
        assert_eq!(refusal.notify, Some(NotifyType::NoProposalChosen));
        assert!(refusal.fix.starts_with(&format!("{name} is refused: ")), "{}", refusal.fix);
        assert!(refusal.fix.contains(setting), "{}", refusal.fix);
        assert!(refusal.fix.contains("strongSwan: "), "{}", refusal.fix);
        assert_eq!(pair.server.engine.sas().count(), 0);
        let answer = Message::parse(&pair.wire[0].datagram.payload).unwrap();
        assert!(answer.payloads.has_notify(NotifyType::NoProposalChosen));
    }
}
