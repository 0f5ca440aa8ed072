//! Tests of the Security Association payload.

use super::*;
use crate::wire::PayloadType;

fn parse(body: &[u8]) -> Result<SecurityAssociation, WireError> {
    SecurityAssociation::parse(Reader::new(body, Part::Payload(PayloadType::Sa), 0))
}

fn encode(sa: &SecurityAssociation) -> Vec<u8> {
    let mut w = Writer::new();
    sa.write(&mut w).unwrap();
    w.into_vec()
}

/// RFC 7296 3.3, figure 6: two proposals, ESP with an SPI.
#[rustfmt::skip]
const TWO: &[u8] = &[
    // more follow, length 36, number 1, ESP, SPI of 4, 2 transforms
    2, 0, 0, 32, 1, 3, 4, 2, 0xc0, 0xde, 0, 1,
    3, 0, 0, 12, 1, 0, 0, 12, 0x80, 14, 0, 128,
    0, 0, 0, 8, 3, 0, 0, 12,
    // last, length 20, number 2
    0, 0, 0, 20, 2, 3, 4, 1, 0xc0, 0xde, 0, 1,
    0, 0, 0, 8, 5, 0, 0, 0,
];

#[test]
fn proposals_and_transforms() {
    let sa = parse(TWO).unwrap();

    let spi = ChildSpi(0xc0de_0001);
    let first = vec![
        Transform::encr(EncrId::AesCbc, Some(128)),
        Transform::integ(IntegId::HmacSha2_256_128),
    ];
    let second = vec![Transform::esn(EsnId::NoEsn)];
    let proposals = vec![
        Proposal::new(1, ProtocolId::Esp, first).with_child_spi(spi),
        Proposal::new(2, ProtocolId::Esp, second).with_child_spi(spi),
    ];
    assert_eq!(sa, SecurityAssociation::new(proposals));
    assert_eq!(sa.proposals[0].child_spi(), Some(spi));
    assert_eq!(sa.proposals[0].transforms[0].key_bits(), Some(128));
    assert!(sa.is_numbered());
    assert_eq!(encode(&sa), TWO);
}

#[test]
fn markers_must_agree_with_lengths() {
    // RFC 7296 3.3.1 and 3.3.2
    let changed = |at: usize, value: u8| {
        let mut bytes = TWO.to_vec();
        bytes[at] = value;
        parse(&bytes)
    };
    for (at, value) in [(0, 0), (0, 3), (32, 2), (32, 1)] {
        assert!(
            matches!(
                changed(at, value),
                Err(WireError::Invalid { part: Part::Proposal, field: Field::More, .. })
            ),
            "proposal marker {at} {value}"
        );
    }
    for (at, value) in [(12, 0), (12, 2), (24, 3)] {
        assert!(
            matches!(
                changed(at, value),
                Err(WireError::Invalid { part: Part::Transform, field: Field::More, .. })
            ),
            "transform marker {at} {value}"
        );
    }
}

#[test]
fn counts_must_be_what_follows() {
    for (count, ok) in [(1, false), (2, true), (3, false)] {
        let mut bytes = TWO.to_vec();
        bytes[7] = count;
        assert_eq!(parse(&bytes).is_ok(), ok, "{count} transforms");
    }
}

#[test]
fn spi_sizes_are_the_protocols() {
    // RFC 7296 3.3.1
    let with = |protocol: u8, spi: &[u8]| {
        let length = 8 + spi.len() as u8;
        let head = [0, 0, 0, length, 1, protocol, spi.len() as u8, 0];
        parse(&[&head[..], spi].concat()).map(|sa| sa.proposals[0].spi.len())
    };
    let wrong = Err(WireError::Invalid { part: Part::Proposal, field: Field::SpiSize, at: 4 });

    assert_eq!(with(1, &[]), Ok(0));
    assert_eq!(with(1, &[1; 8]), Ok(8));
    assert_eq!(with(1, &[1; 4]), wrong);
    assert_eq!(with(3, &[1; 4]), Ok(4));
    assert_eq!(with(3, &[]), wrong);
    assert_eq!(with(2, &[1; 8]), wrong);
    let sa = SecurityAssociation::new(vec![Proposal::new(1, ProtocolId::Esp, vec![])]);
    assert!(sa.write(&mut Writer::new()).is_err());
}

#[test]
fn attributes_of_both_forms_are_kept() {
    // RFC 7296 3.3.5; a key length in the long form means nothing.
    let attributes = vec![
        Attribute::KeyLength(256),
        Attribute::Tv { kind: 300, value: 9 },
        Attribute::Tlv { kind: 14, value: vec![1, 0] },
    ];
    let odd = Transform { id: TransformId::Encr(EncrId::AesCbc), attributes };
    let sa = SecurityAssociation::new(vec![Proposal::new(1, ProtocolId::Ike, vec![odd.clone()])]);

    let bytes = encode(&sa);

    assert_eq!(
        bytes[16..],
        [0x80, 14, 1, 0, 0x81, 0x2c, 0, 9, 0, 14, 0, 2, 1, 0],
        "TV, TV and TLV"
    );
    assert_eq!(parse(&bytes), Ok(sa));
    assert!(odd.has_unknown_attributes());
    assert_eq!(odd.key_bits(), None);
}

#[test]
fn additional_key_exchanges_have_slots() {
    // RFC 9370 4: ADDKE1 is type 6, ADDKE7 type 12.
    let addke = Transform::add_ke(1, KeMethod::MlKem768);
    assert_eq!(addke.kind(), TransformType::AddKe1);
    assert_eq!(TransformId::from_wire(12, 0), Transform::add_ke(7, KeMethod::None).id);
    for slot in [0, 8] {
        let transforms = vec![Transform::add_ke(slot, KeMethod::MlKem768)];
        let sa = SecurityAssociation::new(vec![Proposal::new(1, ProtocolId::Ike, transforms)]);
        assert_eq!(
            sa.write(&mut Writer::new()),
            Err(WireError::Invalid { part: Part::Transform, field: Field::AddKe, at: 0 })
        );
    }
}

#[test]
fn unknown_transform_types_are_kept() {
    let body = [0, 0, 0, 16, 1, 1, 0, 1, 0, 0, 0, 8, 99, 0, 0, 7];

    let sa = parse(&body).unwrap();

    assert_eq!(sa.proposals[0].transforms[0].id, TransformId::Unknown { kind: 99, id: 7 });
    assert_eq!(encode(&sa), body);
}

#[test]
fn an_empty_payload_is_truncated() {
    assert!(matches!(parse(&[]), Err(WireError::Truncated { .. })));
    assert!(SecurityAssociation::default().write(&mut Writer::new()).is_err());
}

#[test]
fn sub_limits_hold_both_ways() {
    let proposals = |count: usize, transforms: usize| {
        let transform = Transform::prf(PrfId::HmacSha2_256);
        let proposal = Proposal::new(1, ProtocolId::Ike, vec![transform; transforms]);
        SecurityAssociation::new(vec![proposal; count])
    };
    let write = |sa: SecurityAssociation| sa.write(&mut Writer::new());
    assert_eq!(parse(&encode(&proposals(MAX_PROPOSALS, 8))), Ok(proposals(MAX_PROPOSALS, 8)));
    assert_eq!(
        write(proposals(MAX_PROPOSALS + 1, 1)),
        Err(WireError::TooMany { part: Part::Proposal, limit: MAX_PROPOSALS })
    );
    assert_eq!(
        write(proposals(3, 200)),
        Err(WireError::TooMany { part: Part::Transform, limit: MAX_TRANSFORMS })
    );

    let one = [2, 0, 0, 16, 1, 1, 0, 1, 0, 0, 0, 8, 2, 0, 0, 5];
    assert_eq!(
        parse(&one.repeat(MAX_PROPOSALS + 1)),
        Err(WireError::TooMany { part: Part::Proposal, limit: MAX_PROPOSALS })
    );
    let attributes = [[0x80, 14, 1, 0]; MAX_ATTRIBUTES + 1].concat();
    let mut many = vec![0, 0, 0, 16 + attributes.len() as u8, 1, 1, 0, 1];
    many.extend([0, 0, 0, 8 + attributes.len() as u8, 1, 0, 0, 12]);
    many.extend(attributes);
    assert_eq!(
        parse(&many),
        Err(WireError::TooMany { part: Part::Attribute, limit: MAX_ATTRIBUTES })
    );
}

#[test]
fn every_cut_is_an_error() {
    for length in 0..TWO.len() {
        assert!(parse(&TWO[..length]).is_err(), "{length} octets");
    }
}

#[test]
fn display_names_the_suite() {
    let sa = parse(TWO).unwrap();

    assert_eq!(sa.proposals[0].to_string(), "ESP:AES_CBC-128/HMAC_SHA2_256_128");
    let hybrid = Proposal::new(
        1,
        ProtocolId::Ike,
        vec![
            Transform::encr(EncrId::AesGcm16, Some(256)),
            Transform::prf(PrfId::HmacSha2_256),
            Transform::ke(KeMethod::Curve25519),
            Transform::add_ke(1, KeMethod::MlKem768),
        ],
    );
    assert_eq!(
        hybrid.to_string(),
        "IKE:AES_GCM_16-256/PRF_HMAC_SHA2_256/CURVE25519/KE1_ML_KEM_768"
    );
}
