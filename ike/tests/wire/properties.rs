//! What holds for every message and every octet string.

use ike::wire::*;
use proptest::prelude::*;

use crate::strategies::{inner_payload, inner_payloads, message, octets};
use crate::targets;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_payload_survives_the_wire(payload in inner_payload(), critical: bool) {
        let mut payloads = Payloads::new();
        payloads.push_item(Item { critical, payload });

        let (first, chain) = payloads.encode().unwrap();

        let parsed = Payloads::parse(first, &chain).unwrap();
        prop_assert_eq!(parsed, payloads);
    }

    #[test]
    fn every_message_survives_the_wire(message in message()) {
        let bytes = message.encode().unwrap();

        let parsed = Message::parse(&bytes).unwrap();

        prop_assert_eq!(&parsed.payloads, &message.payloads);
        let expected = Header {
            next_payload: parsed.header.next_payload,
            length: bytes.len() as u32,
            ..message.header
        };
        prop_assert_eq!(parsed.header, expected);
        prop_assert_eq!(parsed.encode().unwrap(), bytes);
    }

    #[test]
    fn every_cut_message_is_an_error(message in message()) {
        let bytes = message.encode().unwrap();
        for cut in 0..bytes.len() {
            prop_assert!(Message::parse(&bytes[..cut]).is_err(), "cut to {}", cut);
            // With the length made right, so that the payloads' own lengths have to notice.
            if cut >= HEADER_LEN {
                let mut lying = bytes[..cut].to_vec();
                lying[24..28].copy_from_slice(&(cut as u32).to_be_bytes());
                if let Ok(parsed) = Message::parse(&lying) {
                    // Only what an Encrypted payload holds has no inner structure to be cut,
                    // and even its length is known.
                    prop_assert!(false, "cut to {}: {:?}", cut, parsed);
                }
            }
        }
    }

    #[test]
    fn octets_after_a_message_are_an_error(message in message(), extra in 1usize..20) {
        let mut bytes = message.encode().unwrap();
        bytes.resize(bytes.len() + extra, 0);
        prop_assert!(Message::parse(&bytes).is_err());
        let length = bytes.len() as u32;
        bytes[24..28].copy_from_slice(&length.to_be_bytes());
        prop_assert!(Message::parse(&bytes).is_err());
    }

    #[test]
    fn every_cut_chain_is_an_error(payloads in inner_payloads()) {
        let (first, chain) = payloads.encode().unwrap();
        for cut in 0..chain.len() {
            prop_assert!(Payloads::parse(first, &chain[..cut]).is_err(), "cut to {}", cut);
        }
    }

    #[test]
    fn random_octets_never_panic(data in octets(600)) {
        targets::fuzz_message(&data);
        targets::fuzz_encrypted(&data);
        targets::fuzz_fragments(&data);
    }

    #[test]
    fn random_octets_under_a_good_header_never_panic(first: u8, data in octets(600)) {
        let header =
            Header::new(IkeSpi(1), IkeSpi(0), ExchangeType::IkeSaInit, Flags::REQUEST, 0);
        let mut w = Writer::new();
        Header {
            next_payload: first.into(),
            length: (HEADER_LEN + data.len()) as u32,
            ..header
        }
        .write(&mut w);
        w.bytes(&data);
        targets::fuzz_message(&w.into_vec());
    }

    #[test]
    fn every_payload_type_takes_random_bodies(kind in 33u8..=54, body in octets(300)) {
        let kind = PayloadType::from(kind);
        let raw = RawPayload { kind, critical: false, next: PayloadType::None, at: 0, body: &body };
        if let Ok(payload) = Payload::parse(&raw) {
            prop_assert_eq!(payload.kind(), kind);
        }
    }

    #[test]
    fn changed_octets_never_panic(message in message(), at: prop::sample::Index, value: u8) {
        let mut bytes = message.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = value;
        targets::fuzz_message(&bytes);
    }

    #[test]
    fn printing_never_shows_nonces_keys_or_signatures(secret in b'g'..=b'z') {
        let secret = vec![secret; 64];
        let payloads = Payloads::from(vec![
            Payload::Nonce(Nonce::new(secret.clone()).unwrap()),
            Payload::Ke(KeyExchange::new(KeMethod::Ecp256, secret.clone())),
            Payload::Auth(Authentication::new(AuthMethod::SharedKeyMic, secret.clone())),
            Payload::Eap(Eap::response(1, EapType::Gtc, secret.clone())),
            Payload::Notify(Notify::cookie(secret.clone())),
            Payload::Cert(Certificate::x509(secret.clone())),
        ]);
        let header = Header::new(IkeSpi(1), IkeSpi(2), ExchangeType::IkeAuth, Flags::REQUEST, 1);
        let message = Message { header, payloads };
        let texts =
            [message.one_line().to_string(), message.detailed().to_string(), format!("{message:?}")];
        let as_text = String::from_utf8(secret[..8].to_vec()).unwrap();
        let as_hex = format!("{:02x}", secret[0]).repeat(8);
        let as_list = format!("{0}, {0}, {0}, {0}", secret[0]);
        for text in texts {
            prop_assert!(!text.contains(&as_text) && !text.contains(&as_hex), "{}", text);
            prop_assert!(!text.contains(&as_list), "{}", text);
        }
    }
}
