//! What each fuzz target does with its input. Panics are findings.

use ike::crypto::{PublicKey, SignatureScheme, ecdsa_der_from_raw, ecdsa_raw_from_der};
use ike::eap::{EapTls, EapTlsPeer, Heard, MAX_ROUNDS, MAX_TLS, PeerHeard};
use ike::wire::{
    AdditionalAddresses, Eap, EapCode, EapType, FragmentLimits, Frame, Header, Message, Notify,
    Opened, Payload, PayloadType, Payloads, Progress, Reassembler, SignatureData, SkCipher,
    WireError, open, seal, seal_fragments, seal_plaintext,
};

use crate::toy::{ToyAead, ToyCbcMac, counting_iv};

const KEY: u64 = 0x0123_4567_89ab_cdef;

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 6] = [
    ("message", fuzz_message),
    ("encrypted", fuzz_encrypted),
    ("fragments", fuzz_fragments),
    ("eap", fuzz_eap),
    ("eap-peer", fuzz_eap_peer),
    ("public-key", fuzz_public_key),
];

/// A public key and a signature of its owner: one octet that chooses how it was made, two with the
/// length of the key (SubjectPublicKeyInfo), the key, the signature. Nobody here could have made it.
pub fn fuzz_public_key(data: &[u8]) {
    let Some((&[how, high, low], rest)) = data.split_first_chunk() else { return };
    let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
    let (spki, signature) = rest.split_at(length);
    let scheme = SignatureScheme::ALL[usize::from(how) % SignatureScheme::ALL.len()];
    let message = b"what nobody signed";
    let crypto = &ike::crypto::ring::PROVIDER;
    let verified = crypto.verify(scheme, spki, message, signature).is_ok();
    assert!(crypto.verify_rsa_classic(spki, message, signature).is_err());
    match PublicKey::from_spki(spki) {
        // There are points for which anybody can sign; only a fool has one certified.
        Ok(PublicKey::Ed25519 { .. }) => {}
        Ok(key) => {
            assert!(!verified && !key.name().is_empty());
            if let PublicKey::Ec { curve, .. } = key
                && let Ok(raw) = ecdsa_raw_from_der(curve, signature)
            {
                let der = ecdsa_der_from_raw(curve, &raw).expect("what was read can be written");
                assert_eq!(der, signature, "a signature in two forms");
            }
        }
        Err(error) => assert!(!verified && !error.to_string().is_empty()),
    }
    if let Ok(scheme) = SignatureScheme::from_algorithm_identifier(spki) {
        let again = SignatureScheme::from_algorithm_identifier(&scheme.algorithm_identifier());
        assert_eq!(again, Ok(scheme));
    }
}

/// A script of EAP responses to an EAP-TLS server: each entry is a length, a way and octets. An
/// even way makes them an EAP packet as it came; an odd one the data of the right response. When
/// the peer's TLS is complete, as many octets are sent back as the way says, times 32.
pub fn fuzz_eap(data: &[u8]) {
    let Some((identifier, mut script)) = data.split_first() else { return };
    let (mut server, first) = EapTls::start(*identifier);
    let mut expected = first.identifier;
    // What the peer still has to hear of us.
    let mut owed = 0;
    let mut answers = 0;
    loop {
        let [length, way, rest @ ..] = script else { return };
        let (octets, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        script = rest;
        let answer = if way & 1 == 0 {
            let Ok(answer) = Eap::from_bytes(octets) else { continue };
            let bytes = answer.to_bytes().expect("what parses can be encoded");
            assert_eq!(bytes, octets, "an EAP packet has one encoding");
            answer
        } else {
            Eap::response(expected, EapType::Tls, octets.to_vec())
        };
        answers += 1;
        let request = match server.hear(&answer) {
            Ok(Heard::Reply(request)) => request,
            Ok(Heard::Tls(tls)) => {
                assert!(tls.len() <= MAX_TLS);
                assert_eq!(owed, 0, "the peer speaks when it has heard everything");
                owed = usize::from(*way) * 32;
                server.send(vec![0x17; owed]).expect("that much can be sent")
            }
            Ok(Heard::Acknowledged) => {
                assert_eq!(owed, 0, "only what was sent whole is acknowledged");
                assert_eq!(server.success().identifier, expected);
                return;
            }
            Err(error) => {
                let _ = error.to_string();
                assert_eq!(server.failure().identifier, expected);
                return;
            }
        };
        assert!(answers <= MAX_ROUNDS, "a conversation ends");
        assert_eq!(request.identifier, expected.wrapping_add(1));
        expected = request.identifier;
        owed = still_owed(&request, owed);
    }
}

/// What the other end has still to hear after a fragment.
fn still_owed(packet: &Eap, owed: usize) -> usize {
    let [flags, tls @ ..] = packet.data.as_slice() else { panic!("no flags") };
    let tls = if flags & 0x80 == 0 { tls } else { &tls[4..] };
    assert!(tls.len() <= 1000 && tls.len() <= owed);
    let owed = owed - tls.len();
    assert_eq!(flags & 0x40 != 0, owed > 0, "the last fragment says so");
    owed
}

/// A script of EAP requests to an EAP-TLS client, in the form of those for [`fuzz_eap`]; an odd way
/// makes the octets the data of an EAP-TLS request.
pub fn fuzz_eap_peer(mut script: &[u8]) {
    let identity = b"runner-17.builder.ci.example.com";
    let mut peer = EapTlsPeer::new(identity.to_vec());
    let (mut identifier, mut owed, mut requests) = (0_u8, 0, 0);
    let mut started = false;
    loop {
        let [length, way, rest @ ..] = script else { return };
        let (octets, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        script = rest;
        let request = if way & 1 == 0 {
            let Ok(request) = Eap::from_bytes(octets) else { continue };
            request
        } else {
            identifier = identifier.wrapping_add(1);
            Eap::request(identifier, EapType::Tls, octets.to_vec())
        };
        requests += 1;
        let response = match peer.hear(&request) {
            Ok(PeerHeard::Reply(response)) => response,
            Ok(PeerHeard::Tls(tls)) => {
                assert!(tls.len() <= MAX_TLS);
                assert_eq!(tls.is_empty(), !std::mem::replace(&mut started, true));
                assert_eq!(owed, 0, "the server speaks when it has heard everything");
                owed = usize::from(*way) * 32;
                peer.send(vec![0x17; owed]).expect("that much can be sent")
            }
            // Whether it is believed is for whoever has the key to say.
            Ok(PeerHeard::Success) => return assert_eq!(request.code, EapCode::Success),
            Err(error) => return assert!(!error.to_string().is_empty()),
        };
        assert!(requests <= MAX_ROUNDS, "a conversation ends");
        assert_eq!((response.code, response.identifier), (EapCode::Response, request.identifier));
        match response.method {
            Some(EapType::Tls) => owed = still_owed(&response, owed),
            Some(EapType::Identity) => assert!(!started && response.data == identity),
            // RFC 3748 5.2: acknowledged at any time.
            Some(EapType::Notification) => assert!(response.data.is_empty()),
            Some(EapType::Nak) => assert!(!started && response.data == [EapType::Tls.value()]),
            other => panic!("{other:?} in an answer"),
        }
    }
}

/// Any datagram: parsing must not panic, and what parses must have one canonical encoding.
pub fn fuzz_message(data: &[u8]) {
    let _ = Header::peek(data);
    let _ = Frame::locate(data).map(|frame| (frame.fragment(), frame.first_inner()));
    let message = match Message::parse(data) {
        Ok(message) => message,
        Err(error) => {
            let _ = (error.to_string(), error.notify());
            return;
        }
    };
    use_payloads(&message.payloads);
    let _ = (message.one_line().to_string(), message.detailed().to_string());
    let encoded = message.encode().expect("what parses can be encoded");
    let again = Message::parse(&encoded).expect("what is encoded can be parsed");
    assert_eq!(again.payloads.items().len(), message.payloads.items().len());
    assert_eq!(again, message, "parsing the canonical form gives the same message");
    assert_eq!(again.encode().as_ref(), Ok(&encoded), "encoding is stable");
}

/// A datagram under known keys, and then the same octets as content of a sealed message.
pub fn fuzz_encrypted(data: &[u8]) {
    for cipher in ciphers() {
        if let Ok(opened) = open(data, cipher.as_ref()) {
            use_opened(&opened);
        }
        let Some((first, plaintext)) = data.split_first() else { continue };
        let first = PayloadType::from(*first);
        let sealed =
            seal_plaintext(header(), first, plaintext, cipher.as_ref(), &mut counting_iv());
        let Ok(sealed) = sealed else {
            assert!(plaintext.len() > 65_000, "content that fits can be sealed");
            continue;
        };
        let opened = open(&sealed, cipher.as_ref()).expect("what was sealed opens");
        assert_eq!(opened.plaintext.as_bytes(), plaintext);
        assert_eq!(opened.first_inner, first);
        use_opened(&opened);
        refuse_changes(&sealed, cipher.as_ref());
    }
}

/// A script of fragments: the first octet chooses the datagram size, the second how they are
/// shuffled and repeated, the rest is the content.
pub fn fuzz_fragments(data: &[u8]) {
    let [size, order, plaintext @ ..] = data else { return };
    let max_len = 60 + usize::from(*size);
    for cipher in ciphers() {
        insert_raw(data, cipher.as_ref());
        let sealed = seal_fragments(
            header(),
            PayloadType::Notify,
            plaintext,
            max_len,
            cipher.as_ref(),
            &mut counting_iv(),
        );
        let datagrams = match sealed {
            Ok(datagrams) => datagrams,
            Err(WireError::NoRoom { .. } | WireError::TooMany { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        assert!(datagrams.iter().all(|datagram| datagram.len() <= max_len));
        if datagrams.len() == 1 {
            let opened = open(&datagrams[0], cipher.as_ref()).expect("a whole message opens");
            assert_eq!(opened.plaintext.as_bytes(), plaintext);
            continue;
        }
        reassemble(&datagrams, *order, plaintext, cipher.as_ref());
    }
}

fn ciphers() -> [Box<dyn SkCipher>; 2] {
    [Box::new(ToyAead(KEY)), Box::new(ToyCbcMac(KEY))]
}

fn header() -> Header {
    use ike::wire::{ExchangeType, Flags, IkeSpi};
    Header::new(IkeSpi(1), IkeSpi(2), ExchangeType::IkeAuth, Flags::REQUEST, 1)
}

/// Asks everything that looks into payloads.
fn use_payloads(payloads: &Payloads) {
    let _ = payloads.check_critical();
    let _ = AdditionalAddresses::gather(payloads.notifies());
    for payload in payloads.iter() {
        let _ = format!("{payload:?}");
        match payload {
            Payload::Notify(notify) => use_notify(notify),
            Payload::Auth(auth) => {
                if let Ok(split) = SignatureData::split(&auth.data) {
                    assert_eq!(split.join().as_ref(), Ok(&auth.data));
                }
            }
            Payload::Cert(cert) => {
                let _ = cert.hash_and_url();
            }
            Payload::CertReq(request) => {
                let _ = request.hashes().count();
            }
            Payload::IdI(id) | Payload::IdR(id) => {
                let _ = (id.body(), id.id.to_string());
            }
            Payload::Sa(sa) => {
                let _ = sa.is_numbered();
                for proposal in &sa.proposals {
                    let _ = (proposal.child_spi(), proposal.ike_spi(), proposal.to_string());
                }
            }
            _ => {}
        }
    }
}

fn use_notify(notify: &Notify) {
    let _ = (notify.ke_method(), notify.critical_payload(), notify.number(), notify.address());
    let _ = (notify.hash_algorithms(), notify.as_message_id_sync(), notify.as_redirect());
    let _ = notify.child_spi();
}

fn use_opened(opened: &Opened) {
    let Ok(payloads) = opened.payloads() else { return };
    use_payloads(&payloads);
    for cipher in ciphers() {
        let sealed = seal(opened.header, &payloads, cipher.as_ref(), &mut counting_iv());
        let again = open(&sealed.expect("what parses can be sealed"), cipher.as_ref());
        assert_eq!(again.and_then(|opened| opened.payloads()).as_ref(), Ok(&payloads));
    }
}

/// No octet of a sealed message can be changed unnoticed.
fn refuse_changes(sealed: &[u8], cipher: &dyn SkCipher) {
    let step = (sealed.len() / 64).max(1);
    for at in (0..sealed.len()).step_by(step) {
        let mut changed = sealed.to_vec();
        changed[at] ^= 0x01;
        assert!(open(&changed, cipher).is_err(), "octet {at} changed unnoticed");
    }
}

/// The input itself as a fragment.
fn insert_raw(data: &[u8], cipher: &dyn SkCipher) {
    let mut reassembler = Reassembler::new(FragmentLimits::default());
    if let Ok(frame) = Frame::locate(data) {
        let _ = reassembler.insert(&frame, cipher);
    }
}

fn reassemble(datagrams: &[Vec<u8>], order: u8, plaintext: &[u8], cipher: &dyn SkCipher) {
    let total = u16::try_from(datagrams.len()).expect("counted in 16 bits");
    let limits = FragmentLimits { fragments: total, bytes: plaintext.len() };
    let mut reassembler = Reassembler::new(limits);
    let mut complete = None;
    // A rotation and a stride that visit every fragment, some of them several times.
    let (start, stride) = (usize::from(order & 0x0f), usize::from(order >> 4) + 1);
    let visits = (0..datagrams.len() * stride).map(|i| i * stride);
    for visit in visits.chain(0..datagrams.len()) {
        let datagram = &datagrams[(start + visit) % datagrams.len()];
        let frame = Frame::locate(datagram).expect("fragments are well formed");
        match reassembler.insert(&frame, cipher).expect("fragments are authentic") {
            Progress::Complete(opened) => {
                assert!(complete.replace(opened).is_none(), "complete once");
            }
            Progress::Stored { have, total: of } => assert!(have < of && of == total),
            Progress::Duplicate { number } => assert!((1..=total).contains(&number)),
            Progress::Superseded => panic!("all fragments have the same total"),
        }
        assert!(reassembler.stored_bytes() <= plaintext.len());
    }
    let opened = complete.expect("every fragment was seen");
    assert_eq!(opened.plaintext.as_bytes(), plaintext);
    assert_eq!(opened.first_inner, PayloadType::Notify);
}
