//! The Encrypted payload's framing with both shapes of cipher.

use ike::wire::*;
use proptest::prelude::*;

use crate::strategies::{header, inner_payloads};
use crate::toy::{ToyAead, ToyCbcMac, counting_iv};

const KEY: u64 = 77;

fn request() -> Header {
    Header::new(IkeSpi(1), IkeSpi(2), ExchangeType::Informational, Flags::REQUEST, 5)
}

#[test]
fn aead_layout() {
    // RFC 7296 3.14, RFC 5282 4: IV, ciphertext with the pad length octet only, ICV.
    let sealed = seal_plaintext(
        request(),
        PayloadType::Delete,
        &[1, 2, 3, 4, 5],
        &ToyAead(KEY),
        &mut counting_iv(),
    )
    .unwrap();

    assert_eq!(sealed.len(), 28 + 4 + 8 + 5 + 1 + 16);
    assert_eq!(sealed[16], PayloadType::Sk.value());
    assert_eq!(sealed[24..28], (sealed.len() as u32).to_be_bytes());
    assert_eq!(sealed[28..32], [PayloadType::Delete.value(), 0, 0, 34]);
    let frame = Frame::locate(&sealed).unwrap();
    assert_eq!(frame.aad(), &sealed[..32], "header and payload header, without IV");
    assert_eq!(frame.body(), &sealed[32..]);
    assert_eq!(frame.fragment(), None);
}

#[test]
fn cbc_pads_to_blocks() {
    for (content, blocks) in [(0, 1), (15, 1), (16, 2), (31, 2), (32, 3)] {
        let sealed = seal_plaintext(
            request(),
            PayloadType::Notify,
            &vec![7; content],
            &ToyCbcMac(KEY),
            &mut counting_iv(),
        )
        .unwrap();

        assert_eq!(sealed.len(), 28 + 4 + 16 + blocks * 16 + 12, "{content} octets");
        let opened = open(&sealed, &ToyCbcMac(KEY)).unwrap();
        assert_eq!(opened.plaintext.as_bytes(), vec![7; content]);
    }
}

#[test]
fn an_empty_message_has_no_first_payload() {
    // RFC 7296 1.4: an empty INFORMATIONAL is a liveness check.
    let sealed = seal(request(), &Payloads::new(), &ToyAead(KEY), &mut counting_iv()).unwrap();

    let opened = open(&sealed, &ToyAead(KEY)).unwrap();

    assert_eq!(opened.first_inner, PayloadType::None);
    assert!(opened.payloads().unwrap().is_empty());
}

#[test]
fn the_wrong_key_is_an_integrity_failure_without_notify() {
    let sealed = seal(request(), &Payloads::new(), &ToyAead(KEY), &mut counting_iv()).unwrap();

    let error = open(&sealed, &ToyAead(KEY + 1)).unwrap_err();

    assert_eq!(error, WireError::Integrity);
    assert_eq!(error.notify(), None);
}

#[test]
fn payloads_too_short_for_their_cipher_are_errors() {
    let sealed = seal(request(), &Payloads::new(), &ToyCbcMac(KEY), &mut counting_iv()).unwrap();
    for length in 32..sealed.len() {
        let mut short = sealed[..length].to_vec();
        short[24..28].copy_from_slice(&(length as u32).to_be_bytes());
        short[30..32].copy_from_slice(&((length - 28) as u16).to_be_bytes());
        let error = open(&short, &ToyCbcMac(KEY)).unwrap_err();
        assert_eq!(
            matches!(error, WireError::Truncated { .. } | WireError::Invalid { .. }),
            length != sealed.len(),
            "{length}: {error}"
        );
    }
}

#[test]
fn padding_longer_than_the_content_is_an_error() {
    struct Null;
    impl SkCipher for Null {
        fn iv_len(&self) -> usize {
            0
        }
        fn icv_len(&self) -> usize {
            0
        }
        fn block_len(&self) -> usize {
            1
        }
        fn seal(&self, _: &[u8], _: &[u8], _: &mut [u8], _: &mut [u8]) -> Result<(), CipherError> {
            Ok(())
        }
        fn open(&self, _: &[u8], _: &[u8], _: &mut [u8], _: &[u8]) -> Result<(), CipherError> {
            Ok(())
        }
    }
    let with_pad_len = |pad_len| {
        let mut bytes =
            seal_plaintext(request(), PayloadType::Notify, &[9; 4], &Null, &mut |_| {}).unwrap();
        *bytes.last_mut().unwrap() = pad_len;
        open(&bytes, &Null).map(|opened| opened.plaintext.as_bytes().to_vec())
    };

    assert_eq!(with_pad_len(4), Ok(vec![]));
    assert_eq!(with_pad_len(1), Ok(vec![9; 3]), "padding may have any content");
    assert_eq!(
        with_pad_len(5),
        Err(WireError::Invalid { part: Part::Padding, field: Field::Length, at: 4 })
    );
}

#[test]
fn payloads_before_the_encrypted_one_are_authenticated() {
    // RFC 7296 3.14: it is the last payload, not necessarily the only one.
    let plain = Payloads::from(vec![Payload::Notify(Notify::cookie(vec![1; 8]))]);
    let sealed = seal(request(), &Payloads::new(), &ToyAead(KEY), &mut counting_iv()).unwrap();
    let mut message = Message::parse(&sealed).unwrap();
    let sk = message.payloads.encrypted().unwrap().clone();
    message.payloads = plain;
    message.payloads.push(Payload::Encrypted(sk));
    let bytes = message.encode().unwrap();

    let frame = Frame::locate(&bytes).unwrap();

    assert_eq!(frame.aad().len(), 28 + 4 + 4 + 8 + 4);
    assert_eq!(frame.open(&ToyAead(KEY)), Err(WireError::Integrity), "the header is another");
}

#[test]
fn a_message_without_encrypted_payload_is_refused() {
    let message =
        Message { header: request(), payloads: Payloads::from(vec![Payload::Delete(Delete::Ike)]) };

    assert_eq!(
        Frame::locate(&message.encode().unwrap()).unwrap_err(),
        WireError::Missing { payload: PayloadType::Sk }
    );
}

#[test]
fn an_encrypted_payload_inside_another_is_refused() {
    let nested = Payloads::from(vec![Payload::Encrypted(EncryptedPayload {
        first_inner: PayloadType::None,
        body: vec![0; 40],
    })]);
    assert_eq!(nested.encode(), Err(WireError::Misplaced { payload: PayloadType::Sk }));

    let sealed = seal_plaintext(
        request(),
        PayloadType::Sk,
        &[0, 0, 0, 8, 1, 2, 3, 4],
        &ToyAead(KEY),
        &mut counting_iv(),
    )
    .unwrap();
    let opened = open(&sealed, &ToyAead(KEY)).unwrap();
    assert_eq!(opened.payloads(), Err(WireError::Misplaced { payload: PayloadType::Sk }));
}

#[test]
fn errors_inside_are_the_peers_and_answered() {
    let sealed = seal_plaintext(
        request(),
        PayloadType::Nonce,
        &[0, 0, 0, 5, 1],
        &ToyAead(KEY),
        &mut counting_iv(),
    )
    .unwrap();

    let error = open(&sealed, &ToyAead(KEY)).unwrap().payloads().unwrap_err();

    assert_eq!(error.notify(), Some(ErrorNotify::InvalidSyntax));
}

#[test]
fn int_auth_octets_have_the_adjusted_lengths() {
    // RFC 9242 3.3.2: lengths without IV, padding and ICV.
    let sealed = seal_plaintext(
        request(),
        PayloadType::Ke,
        &[1, 2, 3, 4, 5, 6],
        &ToyCbcMac(KEY),
        &mut counting_iv(),
    )
    .unwrap();
    let opened = open(&sealed, &ToyCbcMac(KEY)).unwrap();

    let octets =
        int_auth_octets(&opened.header, opened.first_inner, opened.plaintext.as_bytes()).unwrap();

    assert_eq!(octets[..24], sealed[..24]);
    assert_eq!(octets[24..28], [0, 0, 0, 38], "28 + 4 + 6");
    assert_eq!(octets[28..32], [PayloadType::Ke.value(), 0, 0, 10]);
    assert_eq!(octets[32..], [1, 2, 3, 4, 5, 6]);
}

/// RFC 9242 3.3.2: what is covered begins with the message's first octet and ends with the header
/// of the Encrypted payload, whatever is in between and in the reserved bits.
#[test]
fn int_auth_of_a_received_message_is_made_of_the_octets_that_came() {
    let cipher = ToyAead(KEY);
    let plaintext = [1, 2, 3, 4, 5, 6];
    let notify = [PayloadType::Sk.value(), 0x7f, 0, 8, 0, 0, 0x40, 0x00];
    let mut front = Vec::new();
    front.extend_from_slice(&[0xa1; 8]);
    front.extend_from_slice(&[0xb2; 8]);
    // Version 2.7, IKE_INTERMEDIATE, initiator's flag and a reserved one, message 1.
    front.extend_from_slice(&[PayloadType::Notify.value(), 0x27, 43, 0x09, 0, 0, 0, 1]);
    front.extend_from_slice(&[0; 4]);
    front.extend_from_slice(&notify);
    front.extend_from_slice(&[PayloadType::Ke.value(), 0x55, 0, 0]);
    // IV, text with one octet of padding length, checksum.
    let (mut text, iv) = ([&plaintext[..], &[0]].concat(), vec![7; cipher.iv_len()]);
    let sealed_len = 4 + iv.len() + text.len() + cipher.icv_len();
    let total = u32::try_from(28 + 8 + sealed_len).unwrap();
    front[24..28].copy_from_slice(&total.to_be_bytes());
    front[38..40].copy_from_slice(&u16::try_from(sealed_len).unwrap().to_be_bytes());
    let mut icv = vec![0; cipher.icv_len()];
    cipher.seal(&front, &iv, &mut text, &mut icv).unwrap();

    let opened = open(&[front.clone(), iv, text, icv].concat(), &cipher).unwrap();

    let mut expected = front;
    expected[24..28].copy_from_slice(&[0, 0, 0, 46]);
    expected[38..40].copy_from_slice(&[0, 10]);
    expected.extend_from_slice(&plaintext);
    assert_eq!(opened.int_auth().unwrap(), expected);
}

#[test]
fn int_auth_of_a_message_in_fragments_is_that_of_the_whole_message() {
    let header = Header::new(
        IkeSpi(1),
        IkeSpi(2),
        ExchangeType::IkeIntermediate,
        Flags::new(true, false),
        1,
    );
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::with_data(NotifyType::Cookie, vec![5; 900]));
    let (first, plaintext) = payloads.encode().unwrap();
    let cipher = ToyAead(KEY);
    let datagrams =
        seal_fragments(header, first, &plaintext, 300, &cipher, &mut counting_iv()).unwrap();
    assert!(datagrams.len() > 2);
    let mut reassembler = Reassembler::new(FragmentLimits { fragments: 16, bytes: 10_000 });
    let mut whole = None;
    for datagram in &datagrams {
        let frame = Frame::locate(datagram).unwrap();
        if let Progress::Complete(opened) = reassembler.insert(&frame, &cipher).unwrap() {
            whole = Some(opened);
        }
    }

    let octets = whole.unwrap().int_auth().unwrap();

    assert_eq!(octets, int_auth_octets(&header, first, &plaintext).unwrap());
    assert_eq!(
        octets,
        open(&seal(header, &payloads, &cipher, &mut counting_iv()).unwrap(), &cipher)
            .unwrap()
            .int_auth()
            .unwrap()
    );
}

#[test]
fn plaintext_is_not_printed() {
    let sealed =
        seal_plaintext(request(), PayloadType::Eap, &[0xab; 20], &ToyAead(KEY), &mut counting_iv())
            .unwrap();

    let text = format!("{:?}", open(&sealed, &ToyAead(KEY)).unwrap());

    assert!(text.contains("Plaintext(20 octets)") && !text.contains("171"), "{text}");
}

proptest! {
    #[test]
    fn what_is_sealed_opens(header in header(), payloads in inner_payloads(), key: u64) {
        for cipher in [&ToyAead(key) as &dyn SkCipher, &ToyCbcMac(key)] {
            let sealed = seal(header, &payloads, cipher, &mut counting_iv()).unwrap();
            let opened = open(&sealed, cipher).unwrap();
            prop_assert_eq!(opened.payloads().unwrap(), payloads.clone());
            let message = Message::parse(&sealed).unwrap();
            prop_assert_eq!(message.encode().unwrap(), sealed);
        }
    }

    #[test]
    fn every_changed_octet_is_noticed(payloads in inner_payloads(), bit in 0u32..8) {
        for cipher in [&ToyAead(1) as &dyn SkCipher, &ToyCbcMac(1)] {
            let sealed = seal(request(), &payloads, cipher, &mut counting_iv()).unwrap();
            for at in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                prop_assert!(open(&changed, cipher).is_err(), "octet {}", at);
            }
        }
    }
}
