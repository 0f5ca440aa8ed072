//! Whole messages written out by hand.

use ike::wire::*;

/// An IKE_SA_INIT request, octet by octet (RFC 7296 1.2 and 3).
#[rustfmt::skip]
const SA_INIT: &[u8] = &[
    // header: SPIs, SA follows, 2.0, IKE_SA_INIT, initiator, message ID 0, length 128
    0xde, 0xad, 0xbe, 0xef, 0x01, 0x02, 0x03, 0x04, 0, 0, 0, 0, 0, 0, 0, 0,
    33, 0x20, 34, 0x08, 0, 0, 0, 0, 0, 0, 0, 128,
    // SA: KE follows, length 40
    34, 0, 0, 40,
    // proposal: last, length 36, number 1, IKE, no SPI, 3 transforms
    0, 0, 0, 36, 1, 1, 0, 3,
    // ENCR AES_GCM_16 with a key length of 256
    3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0,
    // PRF HMAC_SHA2_256
    3, 0, 0, 8, 2, 0, 0, 5,
    // KE Curve25519
    0, 0, 0, 8, 4, 0, 0, 31,
    // KE: Nonce follows, length 16, method 31
    40, 0, 0, 16, 0, 31, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8,
    // Nonce: Notify follows, length 20
    41, 0, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    // Notify: Vendor ID follows, SIGNATURE_HASH_ALGORITHMS with SHA2_256 and IDENTITY
    43, 0, 0, 12, 0, 0, 0x40, 0x2f, 0, 2, 0, 5,
    // Vendor ID: last, critical bit (ignored), length 12
    0, 0x80, 0, 12, b'v', b'e', b'n', b'd', b'o', b'r', b'i', b'd',
];

#[test]
fn ike_sa_init_by_hand() {
    let message = Message::parse(SA_INIT).unwrap();

    assert_eq!(message.header.exchange, ExchangeType::IkeSaInit);
    let proposal = &message.payloads.sa().unwrap().proposals[0];
    assert_eq!(
        proposal.transforms,
        [
            Transform::encr(EncrId::AesGcm16, Some(256)),
            Transform::prf(PrfId::HmacSha2_256),
            Transform::ke(KeMethod::Curve25519),
        ]
    );
    assert_eq!(message.payloads.ke().unwrap().method, KeMethod::Curve25519);
    assert_eq!(message.payloads.nonce().unwrap().as_bytes().len(), 16);
    assert_eq!(
        message.payloads.notify(NotifyType::SignatureHashAlgorithms).unwrap().hash_algorithms(),
        Ok(vec![HashAlgorithm::Sha2_256, HashAlgorithm::Identity])
    );
    assert_eq!(message.payloads.check_critical(), Ok(()), "the payload is known");
    assert_eq!(message.encode().unwrap(), SA_INIT);
}

#[test]
fn every_prefix_is_an_error() {
    // RFC 7296 3.
    for length in 0..SA_INIT.len() {
        assert!(Message::parse(&SA_INIT[..length]).is_err(), "{length} octets");
    }
}

#[test]
fn unknown_critical_payloads_are_kept_and_refused() {
    // RFC 7296 2.5
    let mut bytes = SA_INIT.to_vec();
    bytes[104] = 200; // what follows the Notify payload
    let message = Message::parse(&bytes).unwrap();

    let error = message.payloads.check_critical().unwrap_err();

    assert_eq!(error, WireError::UnsupportedCritical { payload: PayloadType::from(200) });
    let notify = error.notify().unwrap();
    assert_eq!(notify, ErrorNotify::UnsupportedCriticalPayload(PayloadType::from(200)));
    assert_eq!(notify.kind(), NotifyType::UnsupportedCriticalPayload);
    assert_eq!(message.encode().unwrap(), bytes);
}

#[test]
fn unknown_payloads_without_critical_bit_are_skipped() {
    let mut bytes = SA_INIT.to_vec();
    bytes[104] = 200;
    bytes[117] = 0;

    let message = Message::parse(&bytes).unwrap();

    assert_eq!(message.payloads.check_critical(), Ok(()));
    assert_eq!(message.payloads.len(), 5);
}

#[test]
fn what_may_occur_once_occurs_once() {
    let mut bytes = SA_INIT.to_vec();
    bytes[104] = 34; // the last payload becomes a second Key Exchange
    assert_eq!(
        Message::parse(&bytes).unwrap_err(),
        WireError::Duplicate { payload: PayloadType::Ke }
    );

    let nonce = || Payload::Nonce(Nonce::new(vec![0; 16]).unwrap());
    let twice = Payloads::from(vec![nonce(), nonce()]);
    assert_eq!(twice.encode(), Err(WireError::Duplicate { payload: PayloadType::Nonce }));
}

#[test]
fn payloads_are_counted() {
    let many = Payloads::from(vec![Payload::VendorId(VendorId(vec![])); MAX_PAYLOADS]);
    let (first, mut chain) = many.encode().unwrap();
    assert_eq!(Payloads::parse(first, &chain).unwrap().len(), MAX_PAYLOADS);

    let last = chain.len() - 4;
    chain[last] = PayloadType::VendorId.value();
    chain.extend_from_slice(&[0, 0, 0, 4]);
    assert_eq!(
        Payloads::parse(first, &chain),
        Err(WireError::TooMany { part: Part::Message, limit: MAX_PAYLOADS })
    );
    let more = Payloads::from(vec![Payload::VendorId(VendorId(vec![])); MAX_PAYLOADS + 1]);
    assert!(matches!(more.encode(), Err(WireError::TooMany { .. })));
}

#[test]
fn a_chain_ends_where_it_says() {
    assert_eq!(
        Payloads::parse(PayloadType::None, &[0]),
        Err(WireError::Trailing { part: Part::GenericHeader, at: 0, extra: 1 })
    );
    assert_eq!(Payloads::parse(PayloadType::None, &[]), Ok(Payloads::new()));
    assert_eq!(
        Payloads::parse(PayloadType::Notify, &[]),
        Err(WireError::Truncated { part: Part::GenericHeader, at: 0, missing: 1 })
    );
}

#[test]
fn lengths_below_the_header_do_not_loop() {
    for length in 0..4 {
        let error = Payloads::parse(PayloadType::VendorId, &[43, 0, 0, length]).unwrap_err();
        assert_eq!(
            error,
            WireError::Invalid {
                part: Part::Payload(PayloadType::VendorId),
                field: Field::Length,
                at: 4
            }
        );
    }
}

#[test]
fn an_encrypted_payload_is_last() {
    let sk = Payload::Encrypted(EncryptedPayload {
        first_inner: PayloadType::Notify,
        body: vec![0; 20],
    });
    let header = Header::new(IkeSpi(1), IkeSpi(2), ExchangeType::IkeAuth, Flags::REQUEST, 1);
    let payloads = Payloads::from(vec![sk, Payload::Delete(Delete::Ike)]);
    let misplaced = Message { header, payloads };
    assert_eq!(misplaced.encode(), Err(WireError::Misplaced { payload: PayloadType::Sk }));
}

#[test]
fn octets_after_an_encrypted_payload_are_an_error() {
    let sk = Payload::Encrypted(EncryptedPayload {
        first_inner: PayloadType::Notify,
        body: vec![0; 20],
    });
    let header = Header::new(IkeSpi(1), IkeSpi(2), ExchangeType::IkeAuth, Flags::REQUEST, 1);
    let mut bytes = Message { header, payloads: Payloads::from(vec![sk]) }.encode().unwrap();
    bytes.push(0);
    bytes[27] += 1;

    assert_eq!(
        Message::parse(&bytes).unwrap_err(),
        WireError::Trailing { part: Part::GenericHeader, at: 52, extra: 1 }
    );
}

#[test]
fn oversized_payloads_cannot_be_encoded() {
    let payloads = Payloads::from(vec![Payload::VendorId(VendorId(vec![0; 65_532]))]);

    assert!(matches!(payloads.encode(), Err(WireError::TooLong { .. })));
    let largest = Payloads::from(vec![Payload::VendorId(VendorId(vec![0; 65_531]))]);
    assert!(largest.encode().is_ok());
}

#[test]
fn a_higher_version_is_answered_and_a_lower_one_not() {
    // RFC 7296 2.5
    let error_of = |version| {
        let mut bytes = SA_INIT.to_vec();
        bytes[17] = version;
        Message::parse(&bytes).unwrap_err()
    };

    assert_eq!(error_of(0x30).notify(), Some(ErrorNotify::InvalidMajorVersion));
    assert_eq!(error_of(0x10).notify(), None);
}
